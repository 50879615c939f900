//! Changes of rows, at random, and what the tables hold after some of them: transfers between accounts, lists that are appended to, a journal
//! without a key, places that are unique, rows that refer to others, keys that change, a table that is emptied.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use rand::RngExt;
use rand::rngs::StdRng;

pub(crate) const TABLES: &str = "
    create table account (id int primary key, balance int); insert into account select i, 1000 from generate_series(0, 9) i;
    create table list (id int primary key, items int[]); insert into list select i, '{}' from generate_series(0, 4) i;
    create table slot (id int primary key, place int unique); insert into slot select i, i from generate_series(0, 4) i;
    create table parent (id int primary key); create table child (id int primary key, parent int references parent);
    create table bin (id int primary key)";

/// What [`Rows::lines`] is to be compared with.
pub(crate) const ROWS: &str = "
    select 'journal', uid::text, '' from journal where uid >= 1000
    union all select 'account', id::text, balance::text from account
    union all select 'list', id::text, array_to_string(items, ' ') from list
    union all select 'slot', place::text, id::text from slot
    union all select 'parent', id::text, '' from parent
    union all select 'child', id::text, parent::text from child
    union all select 'bin', id::text, '' from bin
    union all select 't', id::text, n::text from t where n <> 0";

/// What a transaction does to rows.
#[derive(Clone, Copy)]
pub(crate) enum Change {
    /// The journal has no key.
    Note(i32),
    Transfer(i32, i32, i32),
    Append(i32, i32),
    /// All rows of a residue class.
    Count(i32, i32),
    /// Somebody else has the place.
    Take(i32, i32),
    Parent(i32),
    NoParent(i32),
    Child(i32, i32),
    NoChild(i32),
    Throw(i32),
    Swap(i32, i32),
    Empty,
}

const CLASSES: i32 = 25;

impl Change {
    pub(crate) fn random(random: &mut StdRng, number: i32) -> Self {
        let (a, b) = (random.random_range(0..5), random.random_range(0..8));
        match random.random_range(0..28) {
            0..=4 => Self::Note(number),
            5..=8 => Self::Transfer(a, a + 1 + b % 4, number % 7 + 1),
            9..=12 => Self::Append(a, number),
            13..=15 => Self::Count(b, number % 5 + 1),
            16..=17 => Self::Take(a, number),
            18 => Self::Parent(b),
            19 => Self::NoParent(b),
            20 | 21 => Self::Child(random.random_range(0..16), b),
            22 => Self::NoChild(random.random_range(0..16)),
            23..=25 => Self::Throw(b),
            26 => Self::Swap(b, a + 8),
            _ => Self::Empty,
        }
    }

    /// And how many rows it has to find.
    pub(crate) fn sql(self) -> (String, u64) {
        match self {
            Self::Note(number) => (format!("insert into journal values ({number}, 'note')"), 1),
            Self::Transfer(from, to, amount) => (
                format!(
                    "update account set balance = balance - {amount} where id = {from};
                     update account set balance = balance + {amount} where id = {to}"
                ),
                2,
            ),
            Self::Append(list, number) => (
                format!("update list set items = items || {number} where id = {list}"),
                1,
            ),
            Self::Count(class, by) => (format!("update t set n = n + {by} where id % {CLASSES} = {class}"), 20),
            Self::Take(place, number) => (
                format!("delete from slot where place = {place}; insert into slot values ({number}, {place})"),
                2,
            ),
            Self::Parent(id) => (format!("insert into parent values ({id})"), 1),
            Self::NoParent(id) => (format!("delete from parent where id = {id}"), 1),
            Self::Child(id, parent) => (format!("insert into child values ({id}, {parent})"), 1),
            Self::NoChild(id) => (format!("delete from child where id = {id}"), 1),
            Self::Throw(id) => (format!("insert into bin values ({id})"), 1),
            Self::Swap(from, to) => (format!("update bin set id = {to} where id = {from}"), 1),
            Self::Empty => ("truncate bin".to_owned(), 0),
        }
    }
}

/// The tables, as they have to be.
#[derive(Default)]
pub(crate) struct Rows {
    journal: BTreeSet<i32>,
    account: BTreeMap<i32, i32>,
    list: BTreeMap<i32, String>,
    slot: BTreeMap<i32, i32>,
    parent: BTreeSet<i32>,
    child: BTreeMap<i32, i32>,
    bin: BTreeSet<i32>,
    t: BTreeMap<i32, i32>,
}

impl Rows {
    pub(crate) fn new() -> Self {
        Self {
            account: (0..10).map(|id| (id, 1000)).collect(),
            list: (0..5).map(|id| (id, String::new())).collect(),
            slot: (0..5).map(|id| (id, id)).collect(),
            ..Self::default()
        }
    }

    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::Note(number) => drop(self.journal.insert(number)),
            Change::Transfer(from, to, amount) => {
                *self.account.entry(from).or_default() -= amount;
                *self.account.entry(to).or_default() += amount;
            }
            Change::Append(list, number) => {
                let items = self.list.entry(list).or_default();
                let _ = write!(items, "{}{number}", if items.is_empty() { "" } else { " " });
            }
            Change::Count(class, by) => {
                for id in (1..=500).filter(|id| id % CLASSES == class) {
                    *self.t.entry(id).or_default() += by;
                }
            }
            Change::Take(place, number) => drop(self.slot.insert(place, number)),
            Change::Parent(id) => drop(self.parent.insert(id)),
            Change::NoParent(id) => drop(self.parent.remove(&id)),
            Change::Child(id, parent) => drop(self.child.insert(id, parent)),
            Change::NoChild(id) => drop(self.child.remove(&id)),
            Change::Throw(id) => drop(self.bin.insert(id)),
            Change::Swap(from, to) => {
                self.bin.remove(&from);
                self.bin.insert(to);
            }
            Change::Empty => self.bin.clear(),
        }
    }

    /// As the database puts them.
    pub(crate) fn lines(&self) -> String {
        let sets = [("journal", &self.journal), ("parent", &self.parent), ("bin", &self.bin)];
        let maps = [
            ("account", &self.account),
            ("slot", &self.slot),
            ("child", &self.child),
            ("t", &self.t),
        ];
        let sets = sets
            .iter()
            .flat_map(|(table, ids)| ids.iter().map(move |id| format!("{table}|{id}|")));
        let maps = maps
            .iter()
            .flat_map(|(table, rows)| rows.iter().map(move |(id, n)| format!("{table}|{id}|{n}")));
        let lists = self.list.iter().map(|(id, items)| format!("list|{id}|{items}"));
        let mut lines: Vec<String> = sets.chain(maps).chain(lists).collect();
        lines.sort();
        lines.join("\n")
    }
}
