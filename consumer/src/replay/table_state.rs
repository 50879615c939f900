//! How far each table is: `pgcascade_replay.table_state` on the subscriber.
//!
//! A table begins as `in-copy`; its events are kept (held.rs). The end of the copy makes it `catching-up` and records the
//! provider's snapshot that was copied; the kept events are applied then, before those that come, and the events which that
//! snapshot sees are skipped, because they are in the copy. Of a table that was copied in
//! chunks there are two: one from before the first chunk and one from after the last; what only the second sees may be in
//! the copy or not. The first batch that ends after everything the (last) snapshot had to wait for makes it `ok`. Each
//! change is in the transaction of the data that it speaks of. A table that leaves `--table` loses its row: were it kept, a
//! table that comes back later would go on with a gap.

use std::collections::HashMap;
use std::str::FromStr;

use tokio_postgres::Client;
use wire::snapshot::Snapshot;

use super::position::Who;
use super::table::Name;
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
}

/// What a copy holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Copied {
    /// What this snapshot of the provider sees is in the copy.
    pub(super) from: Snapshot,
    /// What only this one sees may be in the copy or not. None: `from` is exactly what was copied.
    pub(super) to: Option<Snapshot>,
}

impl Copied {
    /// The last snapshot that any row of the copy was read with.
    pub(super) fn last(&self) -> &Snapshot {
        self.to.as_ref().unwrap_or(&self.from)
    }
}

/// All states of this consumer.
pub(super) async fn load(subscriber: &Client, who: &Who) -> Result<HashMap<Name, State>> {
    let rows = subscriber
        .query(
            "select provider_schema, provider_table, state, copy_snapshot, copy_end_snapshot
               from pgcascade_replay.table_state where consumer = $1 and queue = $2",
            &[&who.consumer, &who.queue],
        )
        .await
        .doing(|| "read the states of the tables on the subscriber".to_owned())?;
    let mut states = HashMap::new();
    for row in rows {
        let name = Name::new(row.get::<_, &str>(0), row.get::<_, &str>(1));
        let snapshot = |column: usize| {
            row.get::<_, Option<&str>>(column)
                .map(Snapshot::from_str)
                .transpose()
                .map_err(|error| {
                    Error::failure(format!(
                        "the state of table {name} has a snapshot that cannot be read: {error}"
                    ))
                })
        };
        let state = match (row.get::<_, &str>(2), snapshot(3)?) {
            ("ok", _) => State::Ok,
            ("catching-up", Some(from)) => State::CatchingUp(Copied { from, to: snapshot(4)? }),
            (_, Some(from)) => State::InChunks(from),
            (_, None) => State::InCopy,
        };
        states.insert(name, state);
    }
    Ok(states)
}

/// Adds a table.
pub(super) async fn add(
    subscriber: &Client,
    who: &Who,
    provider: &Name,
    subscriber_table: &Name,
    copy: bool,
) -> Result<()> {
    let state = if copy { "in-copy" } else { "ok" };
    subscriber
        .execute(
            "insert into pgcascade_replay.table_state
               (consumer, queue, provider_schema, provider_table, subscriber_schema, subscriber_table, state)
             values ($1, $2, $3, $4, $5, $6, $7)",
            &[
                &who.consumer,
                &who.queue,
                &provider.schema,
                &provider.table,
                &subscriber_table.schema,
                &subscriber_table.table,
                &state,
            ],
        )
        .await
        .doing(|| format!("record the state of table {provider} on the subscriber"))?;
    Ok(())
}

/// Forgets a table.
pub(super) async fn remove(subscriber: &Client, who: &Who, provider: &Name) -> Result<()> {
    // Not left to the foreign key, which is not heeded in replay's sessions.
    subscriber
        .execute(
            "with chunks as (delete from pgcascade_replay.copy_chunk
                              where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4),
                  held as (delete from pgcascade_replay.held_event
                            where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4)
             delete from pgcascade_replay.table_state
              where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4",
            &[&who.consumer, &who.queue, &provider.schema, &provider.table],
        )
        .await
        .doing(|| format!("forget the state of table {provider} on the subscriber"))?;
    Ok(())
}

/// The copy is complete; to be called in the transaction of its last rows, or after it.
pub(super) async fn copied(
    subscriber: &Client,
    who: &Who,
    provider: &Name,
    (from, to): (&str, Option<&str>),
    rows: u64,
) -> Result<()> {
    let rows = i64::try_from(rows).unwrap_or(i64::MAX);
    let changed = subscriber
        .execute(
            "update pgcascade_replay.table_state
                set state = 'catching-up', copy_snapshot = $5, copy_end_snapshot = $6, copied_rows = $7, error = null,
                    updated = pg_catalog.clock_timestamp()
              where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4 and state = 'in-copy'",
            &[&who.consumer, &who.queue, &provider.schema, &provider.table, &from, &to, &rows],
        )
        .await
        .doing(|| format!("record the state of table {provider} on the subscriber"))?;
    if changed == 1 {
        Ok(())
    } else {
        Err(Error::failure(format!(
            "the state of table {provider} on the subscriber was changed while it was copied"
        )))
    }
}

/// Everything that the copy left to the events is applied; to be called in the batch's transaction.
pub(super) async fn caught_up(subscriber: &Client, who: &Who, provider: &Name) -> Result<()> {
    subscriber
        .execute(
            "update pgcascade_replay.table_state
                set state = 'ok', copy_snapshot = null, copy_end_snapshot = null, updated = pg_catalog.clock_timestamp()
              where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4",
            &[&who.consumer, &who.queue, &provider.schema, &provider.table],
        )
        .await
        .doing(|| format!("record the state of table {provider} on the subscriber"))?;
    Ok(())
}

/// Writes why replay stopped at this table, or, without a text, that nothing of that is left.
pub(super) async fn set_error(
    subscriber: &Client,
    who: &Who,
    provider: Option<&Name>,
    error: Option<&str>,
) -> Result<()> {
    let schema = provider.map(|name| name.schema.as_str());
    let table = provider.map(|name| name.table.as_str());
    subscriber
        .execute(
            "update pgcascade_replay.table_state
                set error = $5, updated = pg_catalog.clock_timestamp()
              where consumer = $1 and queue = $2 and error is distinct from $5
                and provider_schema = coalesce($3, provider_schema) and provider_table = coalesce($4, provider_table)",
            &[&who.consumer, &who.queue, &schema, &table, &error],
        )
        .await
        .doing(|| "record the states of the tables on the subscriber".to_owned())?;
    Ok(())
}
