//! The foreign keys of tables that were added with `--create`, which are made when the tables of both sides have all their rows.
//!
//! Replay itself has no use for them: they do not act in its sessions, as the provider's have acted already. They are for the day on
//! which the subscriber is written to, above all as the root after a takeover.
//!
//! When a table is added, its foreign keys are written down on the subscriber ([`record`]), and each is forgotten when it is there. So one
//! that somebody drops later stays away, and one that refers to a table which is not replayed waits until that is added. Each is made
//! in two steps, so that nobody waits for long: NOT VALID between two batches, with locks that writers wait for and that are given up
//! after a moment if they cannot be had; then VALIDATE, beside which rows are read and written. A partitioned table gets the key from below, as
//! PostgreSQL takes the valid ones of the partitions over (and has NOT VALID for partitioned tables only since 18). All is looked
//! for before it is made, so a process that is killed in between is followed by one that goes on.
//!
//! The work is done by a task with a session of its own ([`Keys`]), which outlives the attempts of replay (mod.rs). What keeps a key from being
//! made is logged once, and is found by `consumer check` ([`check`]); it is tried again now and then, as somebody may have put it right.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Row};

use super::findings::{Findings, Kind, Remedy};
use super::held;
use super::position::Who;
use super::session;
use super::table::{Name, Table, literal, quoted};
use super::table_state::{self, Entry, State};
use crate::backoff::Backoff;
use crate::connect::{End, connect};
use crate::conninfo::ConnInfo;
use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;

/// How long writers may have to wait behind a lock that is waited for. Longer than a deadlock is looked for, which is what ends an autovacuum
/// that has the table.
const LOCK_TIMEOUT: &str = "2s";

/// The longest pause before a lock is tried for again.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The longest pause before one that was refused is tried again.
const LONGEST_REFUSAL: Duration = Duration::from_secs(300);

/// And so many times as long as that took: VALIDATE reads a whole table.
const IDLE_SHARE: u32 = 20;

/// How often a lock is tried for when replay is about to end.
const LAST_TRIES: usize = 3;

/// One that is to be made, by names on the provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    /// The table of the set.
    table: Name,
    /// What has the key: the table, or one below it.
    relation: Name,
    name: String,
    columns: Vec<String>,
    parent: Name,
    /// In the order of `columns`.
    parent_columns: Vec<String>,
    /// `FOREIGN KEY (...)`
    referring: String,
    /// What follows the name of the referenced table.
    referred: String,
    /// Every row has its parent on the provider.
    validates: bool,
    /// It is there, and not valid yet.
    made: bool,
    /// Why it cannot be made, or not be valid.
    error: Option<String>,
}

impl Key {
    fn title(&self) -> String {
        format!("foreign key {} of table {}", quoted(&self.name), self.relation)
    }

    /// What has it on the subscriber.
    fn relation_there(&self, entry: &Entry) -> Name {
        entry.name_there(&self.relation)
    }

    /// The table of the set that has the rows which it refers to, and what that is called on the subscriber.
    fn parent_there<'a>(&self, entries: &[&'a Entry], parts: &Parts) -> Option<(&'a Entry, Name)> {
        let of = |name: &Name| entries.iter().find(|entry| entry.provider == *name).copied();
        if let Some(entry) = of(&self.parent) {
            return Some((entry, entry.subscriber.clone()));
        }
        let entry = of(parts.get(&self.parent)?)?;
        Some((entry, entry.name_there(&self.parent)))
    }

    /// The table of the set that it refers to a partition of, which the subscriber does not have.
    fn parent_above<'a>(&self, entries: &[&'a Entry], below: &Parts) -> Option<&'a Entry> {
        let above = below.get(&self.parent)?;
        entries.iter().find(|entry| entry.provider == *above).copied()
    }

    /// What of the set keeps it from being made, and what to do about it. `below` are all partitions of the provider's tables.
    fn obstacle(&self, entries: &[&Entry], parts: &Parts, below: &Parts) -> Option<(String, Remedy)> {
        let parent = &self.parent;
        let left_out =
            |entry: &Entry, columns: &[String]| columns.iter().find(|name| entry.filter.leaves_out(name)).cloned();
        let own = entries.iter().find(|entry| entry.provider == self.table)?;
        if let Some(column) = left_out(own, &self.columns) {
            return Some((
                format!("column {} is left out", quoted(&column)),
                "add the table with that column if the key is needed".into(),
            ));
        }
        let there = self.parent_there(entries, parts).map(|(there, _)| there);
        let Some(there) = there.or_else(|| self.parent_above(entries, below)) else {
            return Some((
                format!("it refers to table {parent}, which is not replayed"),
                format!(
                    "it is made when that one is added, too: consumer table add {}",
                    literal(&parent.to_string())
                )
                .into(),
            ));
        };
        let remedy = format!("add table {parent} without that, or make the key by hand if it holds on the subscriber");
        if there.filter.rows.is_some() {
            return Some((
                format!("it refers to table {parent}, whose rows are not all replayed (--where)"),
                remedy.into(),
            ));
        }
        if let Some(column) = left_out(there, &self.parent_columns) {
            return Some((
                format!(
                    "it refers to column {} of table {parent}, which is left out",
                    quoted(&column)
                ),
                remedy.into(),
            ));
        }
        self.parent_there(entries, parts).is_none().then(|| {
            let by_hand = format!(
                "alter table {} add constraint {} {} references {}{}",
                self.relation_there(own).quoted(),
                quoted(&self.name),
                self.referring,
                there.subscriber.quoted(),
                self.referred
            );
            (
                format!(
                    "it refers to partition {parent} of table {}, which table {} on the subscriber does not have",
                    there.provider, there.subscriber
                ),
                Remedy::run(End::Subscriber, by_hand).words("let it refer to the whole table"),
            )
        })
    }

    /// The columns of the row that it is written down in, before those that change.
    fn place<'a>(&'a self, who: &'a Who) -> [&'a (dyn tokio_postgres::types::ToSql + Sync); 5] {
        [
            &who.consumer,
            &who.queue,
            &self.relation.schema,
            &self.relation.table,
            &self.name,
        ]
    }
}

/// Partitions that keys refer to, by their names on the provider: of which table of the set.
pub(super) type Parts = HashMap<Name, Name>;

/// All that replay knows of the provider's.
pub(super) async fn known_parts(subscriber: &Client, who: &Who) -> Result<Parts> {
    let rows = subscriber
        .query(
            "select partition_schema, partition_table, provider_schema, provider_table
               from pgcascade_replay.partition where consumer = $1 and queue = $2",
            &[&who.consumer, &who.queue],
        )
        .await
        .doing(|| "read the partitions that are known on the subscriber".to_owned())?;
    let name = |row: &Row, at: usize| Name::new(row.get::<_, &str>(at), row.get::<_, &str>(at + 1));
    Ok(rows.iter().map(|row| (name(row, 0), name(row, 2))).collect())
}

/// Those that the subscriber has.
async fn parts_there(subscriber: &Client, keys: &[Key], entries: &[&Entry]) -> Result<Parts> {
    let is_in_set = |name: &Name| entries.iter().any(|entry| entry.provider == *name);
    let parents: HashSet<&Name> = keys
        .iter()
        .map(|key| &key.parent)
        .filter(|name| !is_in_set(name))
        .collect();
    let pairs = parents
        .into_iter()
        .flat_map(|parent| entries.iter().map(move |entry| (parent, entry)));
    let pairs: Vec<(&Name, &&Entry)> = pairs.collect();
    if pairs.is_empty() {
        return Ok(Parts::new());
    }
    let names: Vec<Name> = pairs.iter().map(|(name, entry)| entry.name_there(name)).collect();
    let schemas: Vec<&str> = names.iter().map(|name| name.schema.as_str()).collect();
    let tables: Vec<&str> = names.iter().map(|name| name.table.as_str()).collect();
    let top_schemas: Vec<&str> = pairs
        .iter()
        .map(|(_, entry)| entry.subscriber.schema.as_str())
        .collect();
    let tops: Vec<&str> = pairs.iter().map(|(_, entry)| entry.subscriber.table.as_str()).collect();
    // Not by to_regclass(), which wants the right to use the schema.
    let rows = subscriber
        .query(
            "select n.place - 1
               from rows from (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[]),
                               pg_catalog.unnest($4::text[])) with ordinality n(schema, name, top_schema, top, place)
               join pg_catalog.pg_namespace s on s.nspname = n.schema
               join pg_catalog.pg_class c on c.relnamespace = s.oid and c.relname = n.name
               join pg_catalog.pg_namespace ts on ts.nspname = n.top_schema
               join pg_catalog.pg_class t on t.relnamespace = ts.oid and t.relname = n.top
              where t.relkind = 'p' and t.oid <> c.oid and pg_catalog.pg_partition_root(c.oid) = t.oid",
            &[&schemas, &tables, &top_schemas, &tops],
        )
        .await
        .doing(|| "look for the partitions on the subscriber that foreign keys refer to".to_owned())?;
    let place = |row: &Row| {
        usize::try_from(row.get::<_, i64>(0))
            .ok()
            .and_then(|place| pairs.get(place))
    };
    let found = rows.iter().filter_map(place);
    Ok(found
        .map(|(name, entry)| ((*name).clone(), entry.provider.clone()))
        .collect())
}

const AT_PLACE: &str = "consumer = $1 and queue = $2 and relation_schema = $3 and relation_table = $4 and name = $5";

fn key(row: &Row, table: Name, validates: bool) -> Key {
    let name = |schema, table| Name::new(row.get::<_, &str>(schema), row.get::<_, &str>(table));
    Key {
        table,
        relation: name("relation_schema", "relation_table"),
        name: row.get("name"),
        columns: row.get("columns"),
        parent: name("parent_schema", "parent_table"),
        parent_columns: row.get("parent_columns"),
        referring: row.get("referring"),
        referred: row.get("referred"),
        validates,
        made: false,
        error: None,
    }
}

/// Those of the provider's tables that are new in the set and were wished for with `--create`. A branch that is the provider may have
/// some of them to come itself.
pub(super) async fn of_provider(provider: &Client, who: &Who, tables: &[&Table], external: bool) -> Result<Vec<Key>> {
    let what = || "read the foreign keys of the provider".to_owned();
    let mut keys: Vec<Key> = Vec::new();
    if tables.is_empty() {
        return Ok(keys);
    }
    // First: what is made meanwhile is found among those that are there.
    if external && may_read_to_make(provider).await? {
        let rows = provider
            .query(
                "select * from pgcascade_replay.foreign_key where queue = $1",
                &[&who.queue],
            )
            .await
            .doing(what)?;
        for row in rows {
            let table = Name::new(
                row.get::<_, &str>("provider_schema"),
                row.get::<_, &str>("provider_table"),
            );
            if tables.iter().any(|new| new.name == table) {
                keys.push(key(&row, table, row.get("validates")));
            }
        }
    }
    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    let rows = provider
        .query(include_str!("sql/foreign_keys.sql"), &[&oids])
        .await
        .doing(what)?;
    for row in rows {
        let top: u32 = row.get("top");
        let Some(table) = tables.iter().find(|table| table.oid == top) else {
            continue;
        };
        let found = key(&row, table.name.clone(), row.get("is_valid"));
        if !keys
            .iter()
            .any(|key| key.relation == found.relation && key.name == found.name)
        {
            keys.push(found);
        }
    }
    Ok(keys)
}

/// Whether a branch lets us see which keys it is still to get. An older one has no such list.
async fn may_read_to_make(branch: &Client) -> Result<bool> {
    let row = branch
        .query_one(
            "select coalesce((select pg_catalog.has_schema_privilege(n.oid, 'usage') and pg_catalog.has_table_privilege(c.oid, 'select')
                                from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
                               where n.nspname = 'pgcascade_replay' and c.relname = 'foreign_key'), false)",
            &[],
        )
        .await
        .doing(|| "look for the foreign keys that are still to be made on the provider".to_owned())?;
    Ok(row.get(0))
}

/// Writes down those that are to be made, in the transaction that adds their tables.
pub(super) async fn record(subscriber: &Client, who: &Who, keys: &[Key], entries: &[Entry]) -> Result<()> {
    for key in keys {
        let own = entries.iter().find(|entry| entry.provider == key.table);
        if own.is_none_or(|own| key.columns.iter().any(|column| own.filter.leaves_out(column))) {
            continue;
        }
        subscriber
            .execute(
                "insert into pgcascade_replay.foreign_key
                   (consumer, queue, relation_schema, relation_table, name, provider_schema, provider_table, columns,
                    parent_schema, parent_table, parent_columns, referring, referred, validates)
                 values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
                &[
                    &who.consumer,
                    &who.queue,
                    &key.relation.schema,
                    &key.relation.table,
                    &key.name,
                    &key.table.schema,
                    &key.table.table,
                    &key.columns,
                    &key.parent.schema,
                    &key.parent.table,
                    &key.parent_columns,
                    &key.referring,
                    &key.referred,
                    &key.validates,
                ],
            )
            .await
            .doing(|| format!("write down {} on the subscriber", key.title()))?;
    }
    Ok(())
}

/// Those that are to be made.
async fn to_make(subscriber: &Client, who: &Who) -> Result<Vec<Key>> {
    let rows = subscriber
        .query(
            "select * from pgcascade_replay.foreign_key where consumer = $1 and queue = $2 order by relation_schema, relation_table, name",
            &[&who.consumer, &who.queue],
        )
        .await
        .doing(|| "read the foreign keys that are to be made on the subscriber".to_owned())?;
    let read = |row: &Row| Key {
        made: row.get("made"),
        error: row.get("error"),
        ..key(
            row,
            Name::new(
                row.get::<_, &str>("provider_schema"),
                row.get::<_, &str>("provider_table"),
            ),
            row.get("validates"),
        )
    };
    Ok(rows.iter().map(read).collect())
}

/// Adds a finding for each of these keys of new tables that the set stands in the way of. `parts` are those of tables that are going
/// to be made, `below` all of the provider's.
pub(super) async fn look(
    subscriber: &Client,
    keys: &[Key],
    entries: &[&Entry],
    mut parts: Parts,
    below: &Parts,
    findings: &mut Findings,
) -> Result<()> {
    parts.extend(parts_there(subscriber, keys, entries).await?);
    for key in keys {
        if let Some((why, remedy)) = key.obstacle(entries, &parts, below)
            && !is_there(subscriber, key, entries, &parts, below).await
        {
            missing(key, &why, remedy, findings);
        }
    }
    Ok(())
}

fn missing(key: &Key, why: &str, remedy: Remedy, findings: &mut Findings) {
    findings.add(
        Kind::ForeignKeyMissing,
        (End::Subscriber, &key.relation),
        format!("{} is not made on the subscriber, as {why}", key.title()),
        remedy,
    );
}

/// Adds a finding for each that is written down and will not be made by waiting.
pub(super) async fn check(subscriber: &Client, who: &Who, entries: &[&Entry], findings: &mut Findings) -> Result<()> {
    let keys = to_make(subscriber, who).await?;
    let parts = parts_there(subscriber, &keys, entries).await?;
    let below = known_parts(subscriber, who).await?;
    for key in keys {
        // Somebody may have put it right by hand; replay sees that when it tries again.
        if is_there(subscriber, &key, entries, &parts, &below).await {
            continue;
        }
        if let Some((why, remedy)) = key.obstacle(entries, &parts, &below) {
            missing(&key, &why, remedy, findings);
        } else if let Some(error) = &key.error {
            let own = entries.iter().find(|entry| entry.provider == key.table);
            let relation = own.map_or_else(|| key.relation.clone(), |own| key.relation_there(own));
            findings.add(
                Kind::ForeignKeyMissing,
                (End::Subscriber, &relation),
                error,
                remedy(&key, &relation),
            );
        }
    }
    Ok(())
}

/// Whether the subscriber has it, as valid as it is to be. Of what cannot be looked at it has none.
async fn is_there(subscriber: &Client, key: &Key, entries: &[&Entry], parts: &Parts, below: &Parts) -> bool {
    let own = entries.iter().find(|entry| entry.provider == key.table);
    let Some(own) = own else { return false };
    let parent = key.parent_there(entries, parts);
    let parent = parent
        .map(|(_, name)| name)
        .or_else(|| Some(key.parent_above(entries, below)?.subscriber.clone()))
        .unwrap_or_else(|| key.parent.clone());
    let found = find(subscriber, key, &key.relation_there(own), &parent).await;
    matches!(found, Ok(Some(there)) if there.is_valid || !key.validates)
}

fn remedy(key: &Key, relation: &Name) -> Remedy {
    if key.made {
        Remedy::run(
            End::Subscriber,
            format!(
                "alter table {} validate constraint {}",
                relation.quoted(),
                quoted(&key.name)
            ),
        )
        .words("consumer compare shows which rows differ; when every row has its parent, replay does it within minutes, or by hand")
    } else {
        "put that right; replay tries again every few minutes, and when it starts".into()
    }
}

/// One that the subscriber has.
struct Found {
    name: String,
    is_valid: bool,
}

/// The key over the same columns, whatever its name.
async fn find(subscriber: &Client, key: &Key, relation: &Name, parent: &Name) -> Result<Option<Found>> {
    let what = || format!("look for {} on the subscriber", key.title());
    let oid: Option<u32> = subscriber
        .query_one("select pg_catalog.to_regclass($1)::oid", &[&relation.quoted()])
        .await
        .doing(what)?
        .get(0);
    let Some(oid) = oid else {
        return Err(Error::failure(format!(
            "{} cannot be made: the subscriber has no table {relation}",
            key.title()
        )));
    };
    let rows = subscriber
        .query(include_str!("sql/foreign_keys.sql"), &[&vec![oid]])
        .await
        .doing(what)?;
    let found = rows
        .iter()
        .map(|row| (self::key(row, relation.clone(), true), row.get("is_valid")));
    let is_same = |other: &Key| {
        (&other.relation, &other.columns, &other.parent, &other.parent_columns)
            == (relation, &key.columns, parent, &key.parent_columns)
    };
    let mut same = found.filter(|(other, _)| is_same(other));
    Ok(same.next().map(|(other, is_valid)| Found {
        name: other.name,
        is_valid,
    }))
}

/// What a look at the keys that are to be made left.
enum Left {
    /// None that waiting helps.
    Nothing,
    /// The server refused some.
    Refused,
    /// Their tables are not complete.
    Tables,
    /// Somebody has locks.
    Locks,
}

/// Makes what can be made now; those that were refused only if it is their `turn`. `said` has the reasons that were told.
async fn pass(s: &Client, who: &Who, turn: bool, said: &mut HashSet<String>) -> Result<Left> {
    let keys = to_make(s, who).await?;
    if keys.is_empty() {
        return Ok(Left::Nothing);
    }
    let entries = table_state::load(s, who).await?;
    let entries: Vec<&Entry> = entries.iter().collect();
    let parts = parts_there(s, &keys, &entries).await?;
    let held = held::tables(s, who).await?;
    let (mut waits, mut locked, mut refused) = (false, false, false);
    for key in keys {
        if key.obstacle(&entries, &parts, &Parts::new()).is_some() {
            continue;
        }
        let own = entries.iter().find(|entry| entry.provider == key.table);
        let (Some(own), Some((above, parent))) = (own, key.parent_there(&entries, &parts)) else {
            continue;
        };
        let both = [own, above];
        if both.iter().any(|entry| entry.state == State::Broken) {
            continue;
        }
        if both
            .iter()
            .any(|entry| entry.state != State::Ok || held.contains(&entry.provider))
        {
            waits = true;
            continue;
        }
        if key.error.is_some() && !turn {
            refused = true;
            continue;
        }
        let relation = key.relation_there(own);
        match make(s, who, &key, &relation, &parent).await {
            Ok(()) => {}
            Err(error)
                if [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED]
                    .iter()
                    .any(|state| error.sqlstate() == Some(state)) =>
            {
                tracing::debug!("{error}");
                locked = true;
            }
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => {
                refused = true;
                put_off(s, who, &key, &relation, &error, said).await?;
            }
        }
    }
    Ok(if locked {
        Left::Locks
    } else if waits {
        Left::Tables
    } else if refused {
        Left::Refused
    } else {
        Left::Nothing
    })
}

async fn make(s: &Client, who: &Who, key: &Key, relation: &Name, parent: &Name) -> Result<()> {
    let definition = format!(
        "add constraint {} {} references {}{}",
        quoted(&key.name),
        key.referring,
        parent.quoted(),
        key.referred
    );
    let there = find(s, key, relation, parent).await?;
    let leaves = leaves(s, relation).await?;
    if leaves.is_empty() || there.is_some() {
        one(s, who, key, relation, (there, &definition)).await?;
    } else {
        for leaf in &leaves {
            let there = find(s, key, leaf, parent).await?;
            one(s, who, key, leaf, (there, &definition)).await?;
        }
        let end = if key.validates { "" } else { " not valid" };
        add(s, who, key, relation, &format!("{definition}{end}")).await?;
    }
    s.execute(
        &format!("delete from pgcascade_replay.foreign_key where {AT_PLACE}"),
        &key.place(who),
    )
    .await
    .doing(|| format!("record that {} is made", key.title()))?;
    match find(s, key, relation, parent).await? {
        Some(there) if there.name == key.name => tracing::info!("{} is on the subscriber", key.title()),
        _ => {}
    }
    Ok(())
}

/// What is below a partitioned table and has rows; of a table without partitions, nothing.
async fn leaves(s: &Client, relation: &Name) -> Result<Vec<Name>> {
    let rows = s
        .query(
            "select n.nspname::text, c.relname::text
               from pg_catalog.pg_partition_tree(pg_catalog.to_regclass($1)) t
               join pg_catalog.pg_class c on c.oid = t.relid
               join pg_catalog.pg_namespace n on n.oid = c.relnamespace
              where t.isleaf and t.level > 0 order by 1, 2",
            &[&relation.quoted()],
        )
        .await
        .doing(|| format!("read the partitions of table {relation} on the subscriber"))?;
    Ok(rows
        .iter()
        .map(|row| Name::new(row.get::<_, &str>(0), row.get::<_, &str>(1)))
        .collect())
}

/// Makes it on one table, and valid.
async fn one(s: &Client, who: &Who, key: &Key, table: &Name, (there, definition): (Option<Found>, &str)) -> Result<()> {
    let ours = match &there {
        None => {
            add(s, who, key, table, &format!("{definition} not valid")).await?;
            failpoint("after_foreign_key");
            true
        }
        Some(there) => key.made && there.name == key.name && !there.is_valid,
    };
    if ours && key.validates {
        s.batch_execute(&format!(
            "alter table {} validate constraint {}",
            table.quoted(),
            quoted(&key.name)
        ))
        .await
        .doing(|| format!("validate {} on the subscriber", key.title()))?;
    }
    Ok(())
}

/// Between two batches, so that replay does not stand in the way. Whoever else does, has it given up soon.
async fn add(s: &Client, who: &Who, key: &Key, table: &Name, definition: &str) -> Result<()> {
    let what = || format!("make {} on the subscriber", key.title());
    let work = async {
        s.batch_execute("begin; set local lock_timeout = 0").await.doing(what)?;
        who.lock_row(s).await?;
        let sql = format!("update pgcascade_replay.foreign_key set made = true where {AT_PLACE}");
        if s.execute(&sql, &key.place(who)).await.doing(what)? == 0 {
            return Err(Error::failure(format!("table {} was taken out of the set", key.table)).transient());
        }
        s.batch_execute(&format!(
            "set local lock_timeout = '{LOCK_TIMEOUT}'; alter table {} {definition}; commit",
            table.quoted()
        ))
        .await
        .doing(what)
    };
    let outcome = work.await;
    if outcome.is_err() {
        s.batch_execute("rollback").await.doing(what)?;
    }
    outcome
}

/// It was refused, and is tried again some time.
async fn put_off(
    s: &Client,
    who: &Who,
    key: &Key,
    relation: &Name,
    error: &Error,
    said: &mut HashSet<String>,
) -> Result<()> {
    let detail = error
        .get_detail()
        .map_or_else(String::new, |detail| format!(": {detail}"));
    let sentence = format!("{error}{detail}");
    let sql = format!("update pgcascade_replay.foreign_key set error = $6 where {AT_PLACE} returning made");
    let [consumer, queue, schema, table, name] = key.place(who);
    let row = s
        .query_opt(&sql, &[consumer, queue, schema, table, name, &sentence])
        .await
        .doing(|| format!("record why {} is not made", key.title()))?;
    let key = Key {
        made: row.is_some_and(|row| row.get(0)),
        ..key.clone()
    };
    if said.insert(sentence.clone()) {
        tracing::warn!("{sentence}; {}; replay goes on without", remedy(&key, relation));
    }
    Ok(())
}

/// What the task is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    /// Go on while there is something to wait for.
    Made,
    /// What can be made now.
    Now,
}

/// The task that makes them, while there is something to make.
#[derive(Debug, Default)]
pub(super) struct Keys {
    task: Option<(watch::Sender<Until>, JoinHandle<()>)>,
    /// The revision of the set at which those that failed were tried again.
    tried: Option<i64>,
}

impl Keys {
    /// Begins, or goes on. `revision` is the set's.
    pub(super) async fn begin(
        &mut self,
        s: &Client,
        at: &ConnInfo,
        who: &Who,
        revision: i64,
        poll: Duration,
    ) -> Result<()> {
        if self.tried != Some(revision) {
            s.execute(
                "update pgcascade_replay.foreign_key set error = null where consumer = $1 and queue = $2 and error is not null",
                &[&who.consumer, &who.queue],
            )
            .await
            .doing(|| "have foreign keys tried again on the subscriber".to_owned())?;
            self.tried = Some(revision);
            if let Some((sender, _)) = &self.task {
                // It may have ended, or pause for long.
                let _ = sender.send(Until::Made);
            }
        }
        let runs = self.task.as_ref().is_some_and(|(_, task)| !task.is_finished());
        if !runs && !to_make(s, who).await?.is_empty() {
            let (sender, until) = watch::channel(Until::Made);
            self.task = Some((sender, tokio::spawn(work(at.clone(), who.clone(), poll, until))));
        }
        Ok(())
    }

    /// Ends the task; with `complete` after what can be made now. A statement that is on its way ends with its session, and is whole or not at all.
    pub(super) async fn end(&mut self, complete: bool) {
        let Some((sender, mut task)) = self.task.take() else {
            return;
        };
        if complete && sender.send(Until::Now).is_ok() {
            // A task that ended by a panic has said so.
            let _ = (&mut task).await;
        }
        task.abort();
    }
}

async fn work(at: ConnInfo, who: Who, poll: Duration, mut until: watch::Receiver<Until>) {
    let mut backoff = Backoff::new(LONGEST_PAUSE);
    let mut tries = 0;
    let mut session = None;
    let mut refusals = Backoff::new(LONGEST_REFUSAL);
    let mut turn = Instant::now();
    let mut said = HashSet::new();
    loop {
        let now = *until.borrow_and_update() == Until::Now;
        let began = Instant::now();
        let (is_turn, told) = (began >= turn, said.len());
        let outcome = async {
            if session.is_none() {
                let application_name = format!("pgcascade keys {} {}", who.queue, who.consumer);
                let opened = connect(&at, End::Subscriber, &application_name).await?;
                session::set_up(&opened.client, End::Subscriber).await?;
                session = Some(opened);
            }
            match &session {
                Some(session) => pass(&session.client, &who, is_turn, &mut said).await,
                None => Ok(Left::Nothing),
            }
        }
        .await;
        let is_new = said.len() > told;
        if is_new {
            refusals.reset();
        }
        if is_turn || is_new {
            turn = Instant::now() + refusals.next_pause().max(began.elapsed() * IDLE_SHARE);
        }
        let pause = match outcome {
            Ok(Left::Nothing) => return,
            Ok(Left::Tables | Left::Refused) if now => return,
            Ok(Left::Refused) => turn.saturating_duration_since(Instant::now()),
            Ok(Left::Tables) => poll,
            Ok(Left::Locks) => {
                if tries == 0 {
                    tracing::info!("foreign keys wait for locks that others have on the subscriber's tables");
                }
                tries += 1;
                backoff.next_pause()
            }
            Err(error) if error.is_transient() => {
                tracing::debug!("{error}");
                session = None;
                tries += 1;
                backoff.next_pause()
            }
            Err(error) => {
                tracing::warn!("{error}; foreign keys that are still to be made wait for the next start of replay");
                return;
            }
        };
        if now && tries >= LAST_TRIES {
            tracing::warn!(
                "foreign keys could not be made, as others have the tables locked; the next start of replay goes on"
            );
            return;
        }
        // Both are cancel-safe. A sender that is gone has aborted this task.
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = until.changed() => tries = 0,
        }
    }
}
