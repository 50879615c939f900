//! Events that find something else on the subscriber than they did on the provider, and what the policies say to that.
//!
//! Only in the careful mode, and only when a table has a policy other than stop: then a chunk is applied in groups of
//! rows, each behind a savepoint. A group in which everything is as it should be costs that savepoint and no more. One
//! in which anything is not is rolled back and applied again row by row, each behind a savepoint of its own, so that
//! what an event finds is what the events before it left. What was not as it should be is answered by the table's
//! policy and recorded in pgcascade_replay.conflict, in the batch's transaction: exactly once, like the data.
//!
//! overwrite means that the row becomes what the event says: an insert of a row that is there becomes an update, an
//! update of one that is not there an insert, as events hold whole rows. Where that is not enough (another unique
//! constraint, a foreign key) overwrite stops.

use std::fmt::Write as _;
use std::sync::Arc;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use wire::event_type::Operation;

use super::apply::{Applier, Failure, Prepared, prepared};
use super::chunk::{Chunk, Row, Shape, Value};
use super::position::Who;
use super::statement::{self, Text};
use super::table::Table;
use crate::config::Policy;
use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;

/// Rows behind one savepoint. A group that fails is applied three times in all; more rows make the savepoints cheaper.
const GROUP: usize = 128;

/// What kind of conflict; the names are those of PostgreSQL 18's own, where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Its key, or another unique or exclusion constraint, is taken.
    InsertExists,
    /// The same, by an update.
    UpdateExists,
    UpdateMissing,
    DeleteMissing,
    /// A foreign key of the row's own table.
    MissingParent,
    /// Another table's.
    StillReferenced,
    /// A table with rows of several sources is truncated at one of them.
    TruncateShared,
}

impl Kind {
    /// Of a statement that met no row.
    pub(super) fn of_missing(operation: Operation) -> Option<Self> {
        match operation {
            Operation::Update => Some(Self::UpdateMissing),
            Operation::Delete => Some(Self::DeleteMissing),
            Operation::Insert | Operation::Truncate => None,
        }
    }

    /// Of a statement that failed, on this table of the subscriber.
    pub(super) fn of_error(shape: &Shape, table: &Table, error: &Error) -> Option<Self> {
        let state = error.sqlstate()?;
        // An update may be applied as something else, see filter.rs.
        let operation = if shape.event_type.first() == Some(&b'U') {
            Operation::Update
        } else {
            shape.operation
        };
        let is = |other: &SqlState| state == other;
        if is(&SqlState::FOREIGN_KEY_VIOLATION) {
            // The server names the table that refers.
            let own = error.table() == Some((table.name.schema.as_str(), table.name.table.as_str()));
            return match operation {
                Operation::Insert => Some(Self::MissingParent),
                Operation::Update if own => Some(Self::MissingParent),
                Operation::Update | Operation::Delete => Some(Self::StillReferenced),
                Operation::Truncate => None,
            };
        }
        if !is(&SqlState::UNIQUE_VIOLATION) && !is(&SqlState::EXCLUSION_VIOLATION) {
            return None;
        }
        match operation {
            Operation::Insert => Some(Self::InsertExists),
            Operation::Update => Some(Self::UpdateExists),
            Operation::Delete | Operation::Truncate => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::InsertExists => "insert_exists",
            Self::UpdateExists => "update_exists",
            Self::UpdateMissing => "update_missing",
            Self::DeleteMissing => "delete_missing",
            Self::MissingParent => "missing_parent",
            Self::StillReferenced => "still_referenced",
            Self::TruncateShared => "truncate_shared",
        }
    }
}

/// The batch whose conflicts are recorded.
#[derive(Debug, Clone)]
pub(super) struct Book {
    pub(super) who: Who,
    /// The batch's end.
    pub(super) tick: i64,
}

impl Applier {
    /// Applies the chunk, and answers what does not fit.
    pub(super) async fn apply_and_answer(
        &mut self,
        client: &Client,
        chunk: &Chunk,
        book: &Book,
    ) -> Result<(), Failure> {
        let mut at = 0;
        while at < chunk.rows.len() {
            let mut end = (at + GROUP).min(chunk.rows.len());
            // Tables that are emptied together must not be emptied apart.
            while end < chunk.rows.len() && is_truncate(chunk, end - 1) && is_truncate(chunk, end) {
                end += 1;
            }
            savepoint(client, "savepoint pgcascade_group").await?;
            match self.apply_rows(client, chunk, &chunk.rows[at..end], true).await {
                Ok(()) => self.record_left_out(client, chunk, book).await?,
                Err(failure) if failure.error.is_transient() => return Err(failure),
                Err(_) => {
                    self.left_out.clear();
                    savepoint(client, "rollback to savepoint pgcascade_group").await?;
                    self.one_by_one(client, chunk, at, end, book).await?;
                }
            }
            savepoint(client, "release savepoint pgcascade_group").await?;
            at = end;
        }
        Ok(())
    }

    async fn one_by_one(
        &mut self,
        client: &Client,
        chunk: &Chunk,
        mut at: usize,
        end: usize,
        book: &Book,
    ) -> Result<(), Failure> {
        while at < end {
            let mut next = at + 1;
            while next < end && is_truncate(chunk, at) && is_truncate(chunk, next) {
                next += 1;
            }
            savepoint(client, "savepoint pgcascade_row").await?;
            if let Err(failure) = self.apply_rows(client, chunk, &chunk.rows[at..next], true).await {
                let kind = failure.conflict.filter(|_| !failure.error.is_transient());
                let policy = self.policies[chunk.shape(&chunk.rows[at]).table];
                let Some(kind) = kind.filter(|_| policy != Policy::Stop) else {
                    return Err(failure);
                };
                savepoint(client, "rollback to savepoint pgcascade_row").await?;
                let row = &chunk.rows[at];
                let outcome = match kind {
                    _ if policy == Policy::Skip => "skipped",
                    Kind::DeleteMissing => "skipped",
                    Kind::InsertExists if self.instead(client, chunk, row, Operation::Update).await? => "updated",
                    Kind::UpdateMissing if self.instead(client, chunk, row, Operation::Insert).await? => "inserted",
                    _ => return Err(unanswered(failure)),
                };
                self.record(client, chunk, at, (kind, policy, outcome), &failure.error, book)
                    .await?;
                self.answered += 1;
                failpoint("after_conflict");
            }
            self.record_left_out(client, chunk, book).await?;
            savepoint(client, "release savepoint pgcascade_row").await?;
            at = next;
        }
        Ok(())
    }

    /// Records what was left out of what was applied.
    async fn record_left_out(&mut self, client: &Client, chunk: &Chunk, book: &Book) -> Result<(), Failure> {
        for event in std::mem::take(&mut self.left_out) {
            let Some(at) = chunk.rows.iter().position(|row| row.ev_id == event) else {
                continue;
            };
            let error = Error::failure(format!("event {event} is a TRUNCATE at one of several sources"));
            let answer = (Kind::TruncateShared, Policy::Skip, "skipped");
            self.record(client, chunk, at, answer, &error, book).await?;
            self.answered += 1;
            failpoint("after_conflict");
        }
        Ok(())
    }

    /// Applies the row's values by another operation. False: that met no row, either.
    async fn instead(
        &mut self,
        client: &Client,
        chunk: &Chunk,
        row: &Row,
        operation: Operation,
    ) -> Result<bool, Failure> {
        let shape = chunk.shape(row);
        let table = Arc::clone(&self.tables[shape.table]);
        if operation == Operation::Update && shape.key.is_empty() {
            return Ok(false);
        }
        let remedy = match self.remedies.get(&shape.id) {
            Some(remedy) => remedy.clone(),
            None => {
                let Some(row_sql) = statement::row_sql(&shape.with_operation(operation), &table) else {
                    return Ok(false);
                };
                let remedy = prepared(client, shape, &table, row_sql).await?;
                self.remedies.insert(shape.id, remedy.clone());
                remedy
            }
        };
        let Prepared { statement, parameters } = remedy;
        let count = client
            .execute_raw(
                &statement,
                parameters.iter().map(|&column| Text(chunk.value(row, column))),
            )
            .await
            .doing(|| {
                format!(
                    "overwrite what is in the way of event {} in table {}",
                    row.ev_id, table.name
                )
            })
            .map_err(|error| Failure::of_row(error, shape))?;
        Ok(count == 1)
    }

    /// Writes the conflict down.
    async fn record(
        &mut self,
        client: &Client,
        chunk: &Chunk,
        at: usize,
        (kind, policy, outcome): (Kind, Policy, &str),
        error: &Error,
        book: &Book,
    ) -> Result<(), Failure> {
        let row = &chunk.rows[at];
        let shape = chunk.shape(row);
        let name = &self.provider_names[shape.table];
        let what = || format!("record the conflict of event {} of table {name}", row.ev_id);
        let statement = match &self.recording {
            Some(statement) => statement.clone(),
            None => {
                let statement = client.prepare(RECORD).await.doing(what)?;
                self.recording.insert(statement).clone()
            }
        };
        let (ev_id, tick) = (row.ev_id.to_string(), book.tick.to_string());
        // Values are in the provider's encoding, which the session converts from; our own sentences are not.
        let reason = error.sqlstate().map(|_| hex(error.to_string().as_bytes()));
        let key = key(chunk, row, shape);
        let values: [Option<&[u8]>; 13] = [
            Some(book.who.consumer.as_bytes()),
            Some(book.who.queue.as_bytes()),
            Some(ev_id.as_bytes()),
            Some(tick.as_bytes()),
            Some(name.schema.as_bytes()),
            Some(name.table.as_bytes()),
            Some(kind.name().as_bytes()),
            Some(policy.name().as_bytes()),
            Some(outcome.as_bytes()),
            Some(&key),
            Some(&shape.event_type),
            chunk.original(at),
            reason.as_deref().map(str::as_bytes),
        ];
        client
            .execute_raw(&statement, values.into_iter().map(|value| Text(value.map(Value::Here))))
            .await
            .doing(what)?;
        tracing::debug!(table = %name, kind = kind.name(), outcome, "{error}");
        Ok(())
    }
}

const RECORD: &str = "insert into pgcascade_replay.conflict
       (consumer, queue, ev_id, tick, provider_schema, provider_table, kind, policy, outcome, row_key, ev_type, ev_data,
        reason)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, pg_catalog.convert_from($13::pg_catalog.bytea, 'UTF8'))";

async fn savepoint(client: &Client, sql: &str) -> Result<(), Failure> {
    client
        .batch_execute(sql)
        .await
        .doing(|| format!("go on within the batch's transaction ({sql})"))?;
    Ok(())
}

fn is_truncate(chunk: &Chunk, at: usize) -> bool {
    chunk.shape(&chunk.rows[at]).operation == Operation::Truncate
}

fn unanswered(failure: Failure) -> Failure {
    Failure {
        error: failure.error.hint(
            "Nothing of the batch was applied. --on-conflict overwrite can replace the row with the same key, and make \
             one that is missing; here something else is in the way. Put that right and start again, or choose skip \
             for this table.",
        ),
        ..failure
    }
}

/// "(id)=(5)", as the server writes it, in the encoding of the values; of a TRUNCATE nothing.
fn key(chunk: &Chunk, row: &Row, shape: &Shape) -> Vec<u8> {
    if shape.operation == Operation::Truncate {
        return Vec::new();
    }
    let names: Vec<&str> = shape.key.iter().map(|&column| shape.columns[column].as_str()).collect();
    let values: Vec<&[u8]> = shape
        .key
        .iter()
        .map(|&column| chunk.key_value(row, column).unwrap_or(b"null"))
        .collect();
    [
        format!("({})=(", names.join(", ")).as_bytes(),
        &values.join(&b", "[..]),
        b")",
    ]
    .concat()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("\\x".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
