//! What of a pair of tables is compared, as SQL for either end.
//!
//! A row's values are the texts that its types' output functions give under the settings that every session of ours has
//! (connect.rs), which are those that copy and the capture triggers use; so NULL is not the empty string, and -0.0 is
//! not 0. Compared are the columns that both ends store: a generated column is its own end's affair, and one that only
//! one end has cannot differ. Where a column's types differ, the provider's text is read as the subscriber's type
//! first, as replay does.
//!
//! A row is known by the provider's primary key; without one, by all of its values, and how often it is there. Keys that
//! are equal may be written differently (1.0 and 1.00): [`Spelling`] says how to bring them to one form, so that a row, its
//! counterpart and its events are taken for the same.

use std::sync::Arc;

use super::spelling::Spelling;
use crate::replay::table::{Column, Index, Name, Table, literal, quoted};

const ONLY_THERE: &str = "only on the provider";
const NOT_REPLAYED: &str = "not replayed";
const ONLY_HERE: &str = "only on the subscriber";

/// One end's expressions.
#[derive(Debug, Clone)]
pub(super) struct Side {
    pub(super) name: Name,
    /// What stands after FROM.
    from: String,
    /// The same without alias and condition.
    table: String,
    /// The key's columns, quoted, and the operators that find them.
    key: Vec<(String, String)>,
    /// The identity of a row, as text[].
    identity: String,
    /// A number for all values of a row.
    hash: String,
    /// A number for its identity.
    identity_hash: String,
    /// A number for each column's value.
    hashes: String,
    /// The row as text, shortened.
    shown: String,
    /// The identity's parts, each as text.
    texts: Vec<String>,
    /// The compared columns, as they are stored.
    columns: Vec<String>,
}

/// A pair of tables.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub(super) provider: Side,
    pub(super) subscriber: Side,
    pub(super) provider_table: Arc<Table>,
    /// The compared columns.
    pub(super) columns: Vec<String>,
    /// Columns that are not compared, each with the reason.
    pub(super) left_out: Vec<(String, &'static str)>,
    /// Whether the first of a row's events tells if the row was there before it. Not where only some rows are replayed,
    /// nor where two rows may have one key for a while.
    pub(super) first_tells: bool,
    /// The subscriber's rows may stand in each other's way by more than the key.
    pub(super) constrained: bool,
    /// Columns that the subscriber lets no UPDATE set.
    pub(super) not_updatable: Vec<String>,
    /// Empty: rows have no key.
    pub(super) key: Vec<String>,
    spellings: Vec<Spelling>,
    /// Whether a range of keys is the same rows on both ends, and cheap to find there. What is found by a range is looked
    /// up by key before anything is said of it, so a wrong answer would cost time and nothing else.
    pub(super) ordered: bool,
}

/// Which part of a table is replayed, when it is not all of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Filter {
    /// A condition for the provider's rows.
    pub(super) rows: Option<String>,
    /// If not empty: no other columns.
    pub(super) only: Vec<String>,
    /// These columns are not.
    pub(super) except: Vec<String>,
}

impl Filter {
    fn leaves_out(&self, column: &str) -> bool {
        let named = |list: &[String]| list.iter().any(|name| name == column);
        named(&self.except) || !(self.only.is_empty() || named(&self.only))
    }
}

/// What both ends have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Common {
    /// They sort texts alike, as far as names can tell.
    pub(super) collation: bool,
    /// They store texts alike, and hashtextextended gives the same numbers.
    pub(super) hash: bool,
}

/// The number of a text.
fn hash(text: &str, common: Common) -> String {
    if common.hash {
        format!("pg_catalog.hashtextextended(({text}) collate pg_catalog.\"C\", 0)")
    } else {
        format!(
            "('x' || pg_catalog.left(pg_catalog.md5(pg_catalog.convert_to({text}, 'UTF8')), 16))::pg_catalog.bit(64)::pg_catalog.int8"
        )
    }
}

/// A column's value as an expression of either end, with the same text if the value is the same.
fn values(there: &Column, here: &Column) -> (String, String) {
    let name = format!("t.{}", quoted(&there.name));
    let scaled = ["numeric", "time", "interval", "bit"];
    let theirs = if there.type_name == here.type_name {
        name.clone()
    } else if there.bare_type != here.bare_type {
        format!("{name}::pg_catalog.text::{}", here.bare_type)
    } else if there.bare_type == "character" {
        // They differ in their blanks alone.
        return (format!("{name}::pg_catalog.text"), format!("{name}::pg_catalog.text"));
    } else if scaled.iter().any(|start| there.bare_type.starts_with(start)) {
        format!("{name}::{}", here.type_name)
    } else {
        name.clone()
    };
    (theirs, name)
}

impl Shape {
    /// From the catalogues of both ends.
    pub(super) fn new(provider: &Arc<Table>, subscriber: &Table, filter: &Filter, common: Common) -> Self {
        let mut columns = Vec::new();
        let mut left_out = Vec::new();
        let (mut theirs, mut ours) = (Vec::new(), Vec::new());
        for column in &provider.columns {
            let reason = match subscriber.column(&column.name) {
                _ if filter.leaves_out(&column.name) => Some(NOT_REPLAYED),
                None => Some(ONLY_THERE),
                Some(there) if column.generated || there.generated => Some("generated"),
                Some(there) => {
                    columns.push(column.name.clone());
                    let (their, our) = values(column, there);
                    theirs.push(their);
                    ours.push(our);
                    None
                }
            };
            left_out.extend(reason.map(|reason| (column.name.clone(), reason)));
        }
        for column in &subscriber.columns {
            if provider.column(&column.name).is_none() {
                left_out.push((column.name.clone(), ONLY_HERE));
            }
        }
        let mut key = provider.primary_key().to_vec();
        if !key.iter().all(|name| columns.contains(name)) {
            key.clear();
        }
        let pairs: Vec<(&Column, &Column)> = key
            .iter()
            .filter_map(|name| Some((provider.column(name)?, subscriber.column(name)?)))
            .collect();
        let spellings = pairs
            .iter()
            .map(|(there, here)| {
                if there.bare_type == here.bare_type {
                    Spelling::of(there)
                } else {
                    Spelling::Unknown
                }
            })
            .collect();
        let alike = |(there, here): &(&Column, &Column)| {
            there.bare_type == here.bare_type
                && there.collation == here.collation
                && Spelling::of(there) != Spelling::Unknown
                && (common.collation || there.collation.is_some() || !Spelling::sorts_by_collation(there))
        };
        let ordered = !key.is_empty()
            && pairs.iter().all(alike)
            && [provider.as_ref(), subscriber]
                .iter()
                .all(|table| key_index(table, &key).is_some());
        let mut shape = Self {
            provider: side(provider, &columns, theirs, &key, common),
            subscriber: side(subscriber, &columns, ours, &key, common),
            provider_table: Arc::clone(provider),
            first_tells: filter.rows.is_none() && key_index(provider, &key).is_some_and(|index| index.is_immediate),
            constrained: subscriber
                .indexes
                .iter()
                .any(|index| index.constrains && !(index.is_key && index.columns == key)),
            not_updatable: subscriber
                .columns
                .iter()
                .filter(|column| column.identity == "a")
                .map(|column| column.name.clone())
                .collect(),
            columns,
            left_out,
            key,
            spellings,
            ordered,
        };
        if let Some(rows) = &filter.rows {
            // As in the capture triggers and in the copy. The line end closes a comment.
            let all = shape.provider.table.clone();
            shape.provider.from = format!("(select * from {all} where ({rows}\n) is true) t");
        }
        shape
    }

    /// Whether the subscriber's rows hold more than the provider's.
    pub(super) fn has_own_columns(&self) -> bool {
        self.left_out
            .iter()
            .any(|(_, reason)| [ONLY_HERE, NOT_REPLAYED].contains(reason))
    }

    /// Whether events can be told apart by the texts of their keys.
    pub(super) fn keys_are_texts(&self) -> bool {
        !self.key.is_empty() && !self.spellings.contains(&Spelling::Unknown)
    }

    /// One form for all texts of the same key.
    pub(super) fn identity(&self, texts: Vec<String>) -> Vec<String> {
        if self.key.is_empty() {
            return texts;
        }
        texts
            .into_iter()
            .zip(&self.spellings)
            .map(|(text, spelling)| spelling.bring_to_form(text))
            .collect()
    }
}

fn key_index<'a>(table: &'a Table, key: &[String]) -> Option<&'a Index> {
    table.key_over(key)
}

fn side(table: &Table, columns: &[String], mut values: Vec<String>, key: &[String], common: Common) -> Side {
    let row = format!("row({})::pg_catalog.text", values.join(", "));
    let keys: Vec<&String> = key
        .iter()
        .filter_map(|name| values.get(columns.iter().position(|column| column == name)?))
        .collect();
    let texts: Vec<String> = keys
        .iter()
        .map(|value| format!("pg_catalog.format('%s', {value})"))
        .collect();
    let row_hash = hash(&row, common);
    let (identity, identity_hash) = if key.is_empty() {
        (format!("array[({row_hash})::pg_catalog.text]"), row_hash.clone())
    } else {
        let identity = format!("array[{}]", texts.join(", "));
        let number = hash(&format!("{identity}::pg_catalog.text"), common);
        (identity, number)
    };
    let index = key_index(table, key);
    let key = key
        .iter()
        .map(|name| {
            let operator = index.and_then(|index| {
                let at = index.columns.iter().position(|column| column == name)?;
                index.operators.get(at).cloned().flatten()
            });
            (
                format!("t.{}", quoted(name)),
                operator.unwrap_or_else(|| "pg_catalog.=".to_owned()),
            )
        })
        .collect();
    for value in &mut values {
        *value = hash(&format!("row({value})::pg_catalog.text"), common);
    }
    let stored = table.own_rows();
    Side {
        name: table.name.clone(),
        from: format!("{stored} t"),
        table: stored,
        key,
        identity,
        identity_hash,
        hashes: format!("array[{}]::pg_catalog.int8[]", values.join(", ")),
        shown: format!("pg_catalog.left({row}, 200)"),
        texts: if texts.is_empty() {
            vec![format!("({row_hash})::pg_catalog.text")]
        } else {
            texts
        },
        columns: columns.iter().map(|name| format!("t.{}", quoted(name))).collect(),
        hash: row_hash,
    }
}

/// A part of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// The keys above the first and up to the second; None is no limit.
    Range(Option<Vec<String>>, Option<Vec<String>>),
    /// The rows whose identity's number ends in one of these, under this mask.
    Buckets(i64, Vec<i64>),
    /// The rows with these identities.
    Rows(Vec<Vec<String>>),
}

impl Side {
    /// Count and sum of the numbers of a part's rows: two parts with the same are the same, but for one chance in 2^64.
    pub(super) fn sum(&self, part: &Part) -> String {
        format!(
            "select pg_catalog.count(*), coalesce(pg_catalog.sum(x.h), 0)::pg_catalog.text
               from (select {} as h from {} where {}) x",
            self.hash,
            self.from,
            self.condition(part)
        )
    }

    /// The same for each bucket of the whole table.
    pub(super) fn bucket_sums(&self, mask: i64) -> String {
        format!(
            "select x.b, pg_catalog.count(*), pg_catalog.sum(x.h)::pg_catalog.text
               from (select {} & {mask} as b, {} as h from {}) x group by x.b",
            self.identity_hash, self.hash, self.from
        )
    }

    /// Identity and number of each row of a part; of rows without a key how often they are there.
    pub(super) fn rows(&self, part: &Part) -> String {
        let condition = self.condition(part);
        if self.key.is_empty() {
            format!(
                "select array[x.h::pg_catalog.text], pg_catalog.count(*)
                   from (select {} as h from {} where {condition}) x group by x.h",
                self.hash, self.from
            )
        } else {
            format!(
                "select {}, {} from {} where {condition}",
                self.identity, self.hash, self.from
            )
        }
    }

    /// Identity, the columns' numbers and the row's number of each row of a part; of rows without a key how often they are
    /// there, and what they look like.
    pub(super) fn details(&self, part: &Part) -> String {
        let condition = self.condition(part);
        if self.key.is_empty() {
            format!(
                "select array[x.h::pg_catalog.text], array[pg_catalog.count(*)], x.h, pg_catalog.min(x.shown)
                   from (select {} as h, {} as shown from {} where {condition}) x group by x.h",
                self.hash, self.shown, self.from
            )
        } else {
            format!(
                "select {}, {}, {}, null::pg_catalog.text from {} where {condition}",
                self.identity, self.hashes, self.hash, self.from
            )
        }
    }

    /// Every `step`th key of a part, in the order of the key.
    pub(super) fn borders(&self, part: &Part, step: usize) -> String {
        let names: Vec<&str> = self.key.iter().map(|(name, _)| name.as_str()).collect();
        let names = names.join(", ");
        format!(
            "select x.k from (select {} as k, pg_catalog.row_number() over (order by {names}) as n from {} where {}) x
              where x.n % {step} = 0 order by x.n",
            self.identity,
            self.from,
            self.condition(part)
        )
    }

    /// Keys that cut the table into pieces, from a sample of its pages.
    pub(super) fn sample(&self, percent: u64) -> String {
        let names: Vec<&str> = self.key.iter().map(|(name, _)| name.as_str()).collect();
        format!(
            "select {} from {} t tablesample system ({percent}) order by {}",
            self.identity,
            self.table,
            names.join(", ")
        )
    }

    /// The parts of the identity and the compared columns of each row, for the simple protocol; of rows that are equal one.
    pub(super) fn values(&self, part: &Part) -> String {
        format!(
            "select {} {}{} from {} where {}",
            if self.key.is_empty() { "distinct on (1)" } else { "" },
            self.texts.join(", "),
            self.columns
                .iter()
                .map(|column| format!(", {column}"))
                .collect::<String>(),
            self.from,
            self.condition(part)
        )
    }

    /// A condition that holds for the row as it was when it had this number.
    pub(super) fn unchanged(&self, number: i64) -> String {
        format!("{} = {number}", self.hash)
    }

    pub(super) fn delete(&self, part: &Part) -> String {
        format!("delete from {} where ({})", self.from, self.condition(part))
    }

    /// Of rows that are all the same as many as there are more than `left`.
    pub(super) fn delete_copies(&self, part: &Part, left: u64) -> String {
        let Self { from, .. } = self;
        let condition = self.condition(part);
        format!(
            "delete from {from} where (t.tableoid, t.ctid) in (select t.tableoid, t.ctid from {from} where {condition}
              limit (select greatest(pg_catalog.count(*) - {left}, 0) from {from} where {condition}))"
        )
    }

    /// A condition: there are fewer such rows than this.
    pub(super) fn fewer_than(&self, part: &Part, wanted: u64) -> String {
        format!(
            "(select pg_catalog.count(*) from {} where ({})) < {wanted}",
            self.from,
            self.condition(part)
        )
    }

    pub(super) fn update(&self, sets: &str, part: &Part) -> String {
        format!("update {} set {sets} where ({})", self.from, self.condition(part))
    }

    fn condition(&self, part: &Part) -> String {
        match part {
            Part::Range(above, upto) => {
                let names: Vec<&str> = self.key.iter().map(|(name, _)| name.as_str()).collect();
                let names = names.join(", ");
                let limit = |operator: &str, values: &Option<Vec<String>>| {
                    values.as_ref().map(|values| {
                        let values: Vec<String> = values.iter().map(|value| literal(value)).collect();
                        format!("({names}) {operator} ({})", values.join(", "))
                    })
                };
                let limits: Vec<String> = [limit(">", above), limit("<=", upto)].into_iter().flatten().collect();
                if limits.is_empty() {
                    "true".to_owned()
                } else {
                    limits.join(" and ")
                }
            }
            Part::Buckets(mask, numbers) => {
                let numbers: Vec<String> = numbers.iter().map(ToString::to_string).collect();
                format!(
                    "{} & {mask} = any ('{{{}}}'::pg_catalog.int8[])",
                    self.identity_hash,
                    numbers.join(",")
                )
            }
            Part::Rows(rows) if self.key.is_empty() => {
                let numbers: Vec<&str> = rows.iter().flatten().map(String::as_str).collect();
                format!("{} = any ('{{{}}}'::pg_catalog.int8[])", self.hash, numbers.join(","))
            }
            Part::Rows(rows) => {
                let rows: Vec<String> = rows
                    .iter()
                    .map(|texts| {
                        let columns: Vec<String> = self
                            .key
                            .iter()
                            .zip(texts)
                            .map(|((name, operator), text)| format!("{name} operator({operator}) {}", literal(text)))
                            .collect();
                        format!("({})", columns.join(" and "))
                    })
                    .collect();
                rows.join(" or ")
            }
        }
    }
}
