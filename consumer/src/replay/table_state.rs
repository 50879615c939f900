//! How far each table is: `pgcascade_replay.table_state` on the subscriber.
//!
//! A table begins as `in-copy`; its events are kept (held.rs). The end of the copy makes it `catching-up` and records
//! the provider's snapshot that was copied; the kept events are applied then, before those that come, and the events
//! which that snapshot sees are skipped, because they are in the copy. Of a table that was copied in chunks there are
//! two: one from before the first chunk and one from after the last; what only the second sees may be in the copy or
//! not. The first batch that ends after everything the (last) snapshot had to wait for makes it `ok`. Each change is in
//! the transaction of the data that it speaks of. One whose event could not be applied, with `--on-error park`, becomes
//! `broken` in the transaction of the first batch that went on without it, and only a new copy ends that. The rows are
//! also the set of tables that are replayed, which `--table` at the start and `consumer table` change (administer.rs);
//! each such change raises `position.revision`.

use std::str::FromStr;
use std::sync::Arc;

use tokio_postgres::Client;
use tokio_postgres::types::ToSql;
use wire::snapshot::Snapshot;

use super::filter::{Columns, Filter};
use super::places::Places;
use super::position::Who;
use super::table::{Name, Table};
use super::triggers::Capture;
use crate::cascade::Node;
use crate::error::{Doing, Error, Result};

/// One table's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// To be copied from the beginning.
    InCopy,
    /// Copied in chunks, of which some may be there; the snapshot is older than all of them.
    InChunks(Snapshot),
    /// Copied.
    CatchingUp(Copied),
    /// All events are applied.
    Ok,
    /// None is, since one could not be.
    Broken,
}

impl State {
    /// Whether rows of the provider are still to be copied.
    pub(super) fn to_copy(&self) -> bool {
        matches!(self, Self::InCopy | Self::InChunks(_))
    }
}

/// What a copy holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Copied {
    /// What this snapshot of the provider sees is in the copy.
    pub(super) from: Snapshot,
    /// What only this one sees may be in the copy or not. None: `from` is exactly what was copied.
    pub(super) to: Option<Snapshot>,
    /// Where its rows are, by which that is known of each; see places.rs.
    pub(super) places: Option<Arc<Places>>,
}

impl Copied {
    /// The last snapshot that any row of the copy was read with.
    pub(super) fn last(&self) -> &Snapshot {
        self.to.as_ref().unwrap_or(&self.from)
    }
}

/// A table of the set.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) provider: Name,
    pub(super) subscriber: Name,
    pub(super) state: State,
    /// As it is stored.
    pub(super) state_name: String,
    pub(super) filter: Filter,
    /// The copy removes the rows that the subscriber has.
    pub(super) replace_rows: bool,
    /// It was added with --create: its copy ends with making the provider's plain indexes, and partitions that come later are
    /// made, too.
    pub(super) made: bool,
    /// The set's revision when it was added or told to start over.
    pub(super) revision: i64,
    /// Why the last run stopped at it.
    pub(super) error: Option<String>,
    /// What its copy waits for.
    pub(super) waits: Option<Waits>,
    /// Not recorded yet.
    pub(super) is_new: bool,
}

impl Entry {
    /// What the table, or one below it, is called on the subscriber.
    pub(super) fn name_there(&self, name: &Name) -> Name {
        if *name == self.provider {
            self.subscriber.clone()
        } else if name.schema == self.provider.schema {
            Name::new(self.subscriber.schema.as_str(), name.table.as_str())
        } else {
            name.clone()
        }
    }

    pub(super) fn to_copy(&self) -> bool {
        self.state.to_copy()
    }

    /// Whether it needs every event from before now: what its triggers miss would be lost.
    pub(super) fn needs_capture(&self) -> bool {
        !self.is_new && self.state != State::InCopy
    }

    /// The triggers that capture it. All nodes of a cascade share those of the root, so they capture the whole table.
    pub(super) fn captures(&self, table: &Table, node: Option<&Node>) -> Vec<Capture> {
        match node {
            None => self.filter.captures(table),
            Some(_) => Filter::default().captures(table),
        }
    }
}

/// What keeps a copy waiting that is tried again.
#[derive(Debug, Clone)]
pub(super) struct Waits {
    /// Why it could not go on when it was tried last.
    pub(super) reason: String,
    pub(super) since: String,
}

/// The set of tables of this consumer, in the order of their names.
pub(super) async fn load(subscriber: &Client, who: &Who) -> Result<Vec<Entry>> {
    let rows = subscriber
        .query(
            "select provider_schema, provider_table, subscriber_schema, subscriber_table, state, copy_snapshot, copy_end_snapshot,
                    only_columns, except_columns, row_filter, replace_rows, with_indexes, revision, error,
                    waits_for, pg_catalog.to_json(waits_since) #>> '{}' as waits_since
               from pgcascade_replay.table_state where consumer = $1 and queue = $2",
            &[&who.consumer, &who.queue],
        )
        .await
        .doing(|| "read the states of the tables on the subscriber".to_owned())?;
    let mut entries = Vec::new();
    for row in rows {
        let provider = Name::new(row.get::<_, &str>(0), row.get::<_, &str>(1));
        let snapshot = |column: &str| {
            row.get::<_, Option<&str>>(column)
                .map(Snapshot::from_str)
                .transpose()
                .map_err(|error| {
                    Error::failure(format!(
                        "the state of table {provider} has a snapshot that cannot be read: {error}"
                    ))
                })
        };
        let state = match (row.get::<_, &str>("state"), snapshot("copy_snapshot")?) {
            ("ok", _) => State::Ok,
            ("catching-up", Some(from)) => State::CatchingUp(Copied {
                from,
                to: snapshot("copy_end_snapshot")?,
                places: Places::load(subscriber, who, &provider).await?.map(Arc::new),
            }),
            ("broken", _) => State::Broken,
            ("in-copy", Some(from)) => State::InChunks(from),
            ("in-copy", None) => State::InCopy,
            (other, _) => {
                return Err(Error::failure(format!(
                    "the state of table {provider} on the subscriber is \"{other}\", which cannot be"
                )));
            }
        };
        let columns = match (row.get("only_columns"), row.get("except_columns")) {
            (Some(only), _) => Columns::Only(only),
            (None, Some(except)) => Columns::Except(except),
            (None, None) => Columns::All,
        };
        entries.push(Entry {
            subscriber: Name::new(row.get::<_, &str>(2), row.get::<_, &str>(3)),
            state,
            state_name: row.get("state"),
            filter: Filter {
                columns,
                rows: row.get("row_filter"),
            },
            replace_rows: row.get("replace_rows"),
            made: row.get("with_indexes"),
            revision: row.get("revision"),
            error: row.get("error"),
            waits: row.get::<_, Option<String>>("waits_for").map(|reason| Waits {
                reason,
                since: row.get::<_, Option<String>>("waits_since").unwrap_or_default(),
            }),
            is_new: false,
            provider,
        });
    }
    entries.sort_by(|a, b| a.provider.cmp(&b.provider));
    Ok(entries)
}

/// How often the set was changed; None without a position. To be read before the set.
pub(super) async fn revision(subscriber: &Client, who: &Who) -> Result<Option<i64>> {
    let row = subscriber
        .query_opt(
            "select revision from pgcascade_replay.position where consumer = $1 and queue = $2",
            &[&who.consumer, &who.queue],
        )
        .await
        .doing(|| format!("read the position of consumer \"{}\" on the subscriber", who.consumer))?;
    Ok(row.map(|row| row.get(0)))
}

/// Begins a change of the set; returns its number. Waits for the end of the batch at hand, which has the position's row
/// locked.
pub(super) async fn begin_change(subscriber: &Client, who: &Who) -> Result<i64> {
    let what = || "change the set of tables on the subscriber".to_owned();
    subscriber
        .batch_execute("begin; set local lock_timeout = 0")
        .await
        .doing(what)?;
    next_revision(subscriber, who).await
}

/// The same inside a transaction that was begun.
pub(super) async fn next_revision(subscriber: &Client, who: &Who) -> Result<i64> {
    let row = subscriber
        .query_opt(
            "update pgcascade_replay.position set revision = revision + 1 where consumer = $1 and queue = $2
             returning revision",
            &[&who.consumer, &who.queue],
        )
        .await
        .doing(|| "change the set of tables on the subscriber".to_owned())?;
    row.map(|row| row.get(0))
        .ok_or_else(|| who.lost("its row on the subscriber is gone"))
}

/// Adds a table; inside the change of that number.
pub(super) async fn add(subscriber: &Client, who: &Who, entry: &Entry, revision: i64) -> Result<()> {
    let (only, except) = match &entry.filter.columns {
        Columns::All => (None, None),
        Columns::Only(names) => (Some(names), None),
        Columns::Except(names) => (None, Some(names)),
    };
    subscriber
        .execute(
            "insert into pgcascade_replay.table_state
               (consumer, queue, provider_schema, provider_table, subscriber_schema, subscriber_table, state,
                only_columns, except_columns, row_filter, replace_rows, with_indexes, revision)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
            &[
                &who.consumer,
                &who.queue,
                &entry.provider.schema,
                &entry.provider.table,
                &entry.subscriber.schema,
                &entry.subscriber.table,
                &entry.state_name,
                &only,
                &except,
                &entry.filter.rows,
                &entry.replace_rows,
                &entry.made,
                &revision,
            ],
        )
        .await
        .doing(|| format!("record the state of table {} on the subscriber", entry.provider))?;
    Ok(())
}

/// Has a table copied again, its present rows replaced; inside the change of that number. Whether it was being copied in chunks.
pub(super) async fn start_over(subscriber: &Client, who: &Who, provider: &Name, revision: i64) -> Result<bool> {
    let what = || format!("record the state of table {provider} on the subscriber");
    // First: a plan that is about to be committed is waited for here, and what it wrote down is seen below.
    subscriber
        .execute(
            "update pgcascade_replay.table_state
                set state = 'in-copy', copy_snapshot = null, copy_end_snapshot = null, copied_rows = null, error = null,
                    waits_for = null, waits_since = null, copied_from = null, copy_whole = false, replace_rows = true, revision = $5, updated = pg_catalog.clock_timestamp()
              where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4",
            &[&who.consumer, &who.queue, &provider.schema, &provider.table, &revision],
        )
        .await
        .doing(what)?;
    let forget = async |rows: &str| {
        let sql = format!(
            "delete from pgcascade_replay.{rows}
              where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4"
        );
        let key: [&(dyn ToSql + Sync); 4] = [&who.consumer, &who.queue, &provider.schema, &provider.table];
        subscriber.execute(&sql, &key).await.doing(what)
    };
    forget("held_event").await?;
    Ok(forget("copy_chunk").await? > 0)
}

/// Forgets a table; inside a change.
pub(super) async fn remove(subscriber: &Client, who: &Who, provider: &Name) -> Result<()> {
    // Not left to the foreign key, which is not heeded in replay's sessions.
    subscriber
        .execute(
            "with chunks as (delete from pgcascade_replay.copy_chunk
                              where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4),
                  held as (delete from pgcascade_replay.held_event
                            where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4),
                  keys as (delete from pgcascade_replay.foreign_key
                            where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4),
                  parts as (delete from pgcascade_replay.partition
                             where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4)
             delete from pgcascade_replay.table_state
              where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4",
            &[&who.consumer, &who.queue, &provider.schema, &provider.table],
        )
        .await
        .doing(|| format!("forget the state of table {provider} on the subscriber"))?;
    Ok(())
}

/// The copy that began at that revision is complete; to be called in the transaction of its last rows, or after it.
pub(super) async fn copied(
    subscriber: &Client,
    who: &Who,
    provider: &Name,
    revision: i64,
    (from, to): (&str, Option<&str>),
    rows: u64,
) -> Result<()> {
    let rows = i64::try_from(rows).unwrap_or(i64::MAX);
    let ended = subscriber
        .execute(
            "update pgcascade_replay.table_state
                set state = 'catching-up', copy_snapshot = $5, copy_end_snapshot = $6, copied_rows = $7, error = null,
                    waits_for = null, waits_since = null, replace_rows = false, updated = pg_catalog.clock_timestamp()
              where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4 and state = 'in-copy'
                and revision = $8",
            &[
                &who.consumer,
                &who.queue,
                &provider.schema,
                &provider.table,
                &from,
                &to,
                &rows,
                &revision,
            ],
        )
        .await
        .doing(|| format!("record the state of table {provider} on the subscriber"))?;
    if ended == 1 { Ok(()) } else { Err(changed(provider)) }
}

/// A table that is in copy, as it is now.
#[derive(Clone, Copy)]
pub(super) struct Begun {
    pub(super) revision: i64,
    /// It is cut into chunks, of which some may be there.
    pub(super) in_chunks: bool,
}

/// None: it is not in copy.
pub(super) async fn begun(subscriber: &Client, who: &Who, provider: &Name) -> Result<Option<Begun>> {
    let row = subscriber
        .query_opt(
            "select revision, copy_snapshot is not null from pgcascade_replay.table_state
              where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4 and state = 'in-copy'",
            &[&who.consumer, &who.queue, &provider.schema, &provider.table],
        )
        .await
        .doing(|| format!("read the state of table {provider} on the subscriber"))?;
    Ok(row.map(|row| Begun {
        revision: row.get(0),
        in_chunks: row.get(1),
    }))
}

/// Somebody took the table out, or had it start over: the copy at hand is of no use.
pub(super) fn changed(provider: &Name) -> Error {
    Error::failure(format!(
        "the state of table {provider} on the subscriber was changed while it was copied"
    ))
    .transient()
}

/// Everything that the copy left to the events is applied; to be called in the batch's transaction.
pub(super) async fn caught_up(subscriber: &Client, who: &Who, provider: &Name) -> Result<()> {
    subscriber
        .execute(
            // It may have been told to start over meanwhile.
            "with ok as (update pgcascade_replay.table_state
                            set state = 'ok', copy_snapshot = null, copy_end_snapshot = null, updated = pg_catalog.clock_timestamp()
                          where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4
                            and state = 'catching-up'
                         returning consumer, queue, provider_schema, provider_table)
             delete from pgcascade_replay.copy_chunk
              where (consumer, queue, provider_schema, provider_table) in (select * from ok)",
            &[&who.consumer, &who.queue, &provider.schema, &provider.table],
        )
        .await
        .doing(|| format!("record the state of table {provider} on the subscriber"))?;
    Ok(())
}

/// The table's events are left out from this batch on; to be called in its transaction.
pub(super) async fn park(subscriber: &Client, who: &Who, provider: &Name, error: &str) -> Result<()> {
    let what = || format!("park table {provider} on the subscriber");
    let parked = subscriber
        .execute(
            "with chunks as (delete from pgcascade_replay.copy_chunk
                              where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4),
                  held as (delete from pgcascade_replay.held_event
                            where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4)
             update pgcascade_replay.table_state
                set state = 'broken', copy_snapshot = null, copy_end_snapshot = null, error = $5,
                    waits_for = null, waits_since = null, updated = pg_catalog.clock_timestamp()
              where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4",
            &[&who.consumer, &who.queue, &provider.schema, &provider.table, &error],
        )
        .await
        .doing(what)?;
    if parked == 1 {
        Ok(())
    } else {
        Err(Error::failure(format!("could not {}: its state is gone", what())))
    }
}

/// Writes why replay failed at this table.
pub(super) async fn set_error(subscriber: &Client, who: &Who, provider: &Name, error: &str) -> Result<()> {
    subscriber
        .execute(
            "update pgcascade_replay.table_state
                set error = $5, updated = pg_catalog.clock_timestamp()
              where consumer = $1 and queue = $2 and error is distinct from $5
                and provider_schema = $3 and provider_table = $4",
            &[&who.consumer, &who.queue, &provider.schema, &provider.table, &error],
        )
        .await
        .doing(|| format!("record the state of table {provider} on the subscriber"))?;
    Ok(())
}

/// Writes down what the copy that began at that revision waits for; None: it goes on.
pub(super) async fn set_waits(
    subscriber: &Client,
    who: &Who,
    provider: &Name,
    revision: i64,
    reason: Option<&str>,
) -> Result<()> {
    subscriber
        .execute(
            "update pgcascade_replay.table_state
                set waits_for = $6, waits_since = case when $6 is not null then coalesce(waits_since, pg_catalog.clock_timestamp()) end
              where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4 and revision = $5
                and waits_for is distinct from $6",
            &[&who.consumer, &who.queue, &provider.schema, &provider.table, &revision, &reason],
        )
        .await
        .doing(|| format!("record the state of table {provider} on the subscriber"))?;
    Ok(())
}

/// No copy is under way, so none waits.
pub(super) async fn none_waits(subscriber: &Client, who: &Who) -> Result<()> {
    subscriber
        .execute(
            "update pgcascade_replay.table_state set waits_for = null, waits_since = null
              where consumer = $1 and queue = $2 and waits_for is not null",
            &[&who.consumer, &who.queue],
        )
        .await
        .doing(|| "record that no copy waits on the subscriber".to_owned())?;
    Ok(())
}
