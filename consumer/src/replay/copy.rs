//! The rows that were there before capture began.
//!
//! One table at a time, one transaction on each end. On the provider the table is locked (ACCESS SHARE) before the
//! snapshot is taken: a TRUNCATE between the two would otherwise leave the copy empty and yet be older than the
//! snapshot's events. The triggers are committed by then, so every change that the snapshot does not see is in the
//! queue; the snapshot is recorded, in the transaction that stores the rows, for the stream to leave out what it does
//! see. COPY's own text goes through as it is, nothing is decoded. A crash rolls back one table's copy, and only that
//! is repeated.

use std::pin::pin;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use tokio_postgres::Client;

use super::Memory;
use super::create;
use super::preflight;
use super::setup::{Ready, Target};
use super::table::{self, Table, quoted};
use super::table_state::{self, State};
use crate::config::ReplayConfig;
use crate::connect::End;
use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;
use crate::progress::Progress;
use crate::shutdown::Shutdown;

/// Rows are gathered up to this many bytes before they are sent on: one message, one system call.
const PIECE_BYTES: usize = 64 * 1024;

/// Copies every table that has no copy. Returns false if a shutdown came in between; the table at hand is rolled back
/// then.
pub(super) async fn copy_missing(
    ready: &mut Ready,
    config: &ReplayConfig,
    shutdown: &Shutdown,
    progress: &Progress,
    memory: &mut Memory,
) -> Result<bool> {
    let Ready {
        provider,
        subscriber,
        who,
        targets,
        ..
    } = ready;
    for target in targets.iter_mut().filter(|target| target.state == State::InCopy) {
        if shutdown.requested() {
            return Ok(false);
        }
        let name = target.provider.name.clone();
        let s = &subscriber.client;
        progress.copy_started(&name.to_string(), target.provider.rows, Some(target.provider.bytes));
        s.batch_execute("begin")
            .await
            .doing(|| "begin a transaction on the subscriber".to_owned())?;
        empty(s, target, config).await?;
        let Some(copied) = pipe(&provider.client, s, target, shutdown, progress).await? else {
            s.batch_execute("rollback")
                .await
                .doing(|| format!("roll back the copy of table {name}"))?;
            tracing::info!(table = %name, "copy rolled back, as the process is to stop; it starts again at the next start");
            return Ok(false);
        };
        if config.create {
            make_later_indexes(s, target).await?;
        }
        table_state::copied(s, who, &name, &copied.snapshot, copied.rows).await?;
        s.batch_execute("commit")
            .await
            .doing(|| format!("commit the copy of table {name}"))?;
        memory.advanced = true;
        failpoint("after_copy_commit");
        target.state = State::CatchingUp(copied.snapshot.parse().map_err(|error| {
            Error::failure(format!(
                "the provider's snapshot \"{}\" cannot be read: {error}",
                copied.snapshot
            ))
        })?);
        progress.copy_done();
        // The planner must know that the table is not empty before updates look for rows. Without the right to it, a
        // warning is all.
        if let Err(error) = s
            .batch_execute(&format!("analyze {}", target.subscriber.name.quoted()))
            .await
            .doing(|| format!("analyze table {name}"))
        {
            if error.is_transient() {
                return Err(error);
            }
            tracing::warn!(table = %name, "{error}");
        }
    }
    Ok(true)
}

struct Copied {
    snapshot: String,
    rows: u64,
}

/// Makes sure that the copy goes into an empty table. Preflight looked already, but somebody may have written since.
async fn empty(subscriber: &Client, target: &Target, config: &ReplayConfig) -> Result<()> {
    let name = &target.subscriber.name;
    if config.truncate {
        return subscriber
            .batch_execute(&format!("truncate {}", name.quoted()))
            .await
            .doing(|| format!("empty table {name} on the subscriber"));
    }
    if preflight::has_rows(subscriber, name).await? {
        return Err(
            Error::failure(format!("table {name} on the subscriber has rows already")).hint(
                "Empty it, or let replay do that with --truncate; if the rows are equal to the provider's: --no-copy",
            ),
        );
    }
    Ok(())
}

/// Moves the rows. None: a shutdown came in between.
async fn pipe(
    provider: &Client,
    subscriber: &Client,
    target: &Target,
    shutdown: &Shutdown,
    progress: &Progress,
) -> Result<Option<Copied>> {
    let from = &target.provider.name;
    let to = &target.subscriber.name;
    let read = || format!("copy table {from} from the provider");
    let write = || format!("copy into table {to} of the subscriber");
    let columns = common_columns(&target.provider, &target.subscriber);
    provider
        .batch_execute(&format!(
            "begin isolation level repeatable read, read only; lock table {} in access share mode",
            from.quoted()
        ))
        .await
        .doing(read)?;
    let snapshot: String = provider
        .query_one("select pg_catalog.pg_current_snapshot()::text", &[])
        .await
        .doing(read)?
        .get(0);
    let mut rows = 0;
    {
        let mut source = pin!(
            provider
                .copy_out(&format!(
                    "copy {} ({columns}) to stdout (encoding 'UTF8')",
                    from.quoted()
                ))
                .await
                .doing(read)?
        );
        let mut sink = pin!(
            subscriber
                .copy_in::<_, Bytes>(&format!(
                    "copy {} ({columns}) from stdin (encoding 'UTF8')",
                    to.quoted()
                ))
                .await
                .doing(write)?
        );
        let mut piece = BytesMut::with_capacity(2 * PIECE_BYTES);
        let mut rows_in_piece = 0;
        loop {
            let row = source.next().await.transpose().doing(read)?;
            let at_end = row.is_none();
            if let Some(row) = row {
                // The server sends one row in each message.
                piece.extend_from_slice(&row);
                rows_in_piece += 1;
            }
            if piece.len() >= PIECE_BYTES || at_end {
                rows += rows_in_piece;
                progress.copied(rows_in_piece, piece.len() as u64);
                rows_in_piece = 0;
                sink.send(piece.split().freeze()).await.doing(write)?;
                piece.reserve(2 * PIECE_BYTES);
                failpoint("in_copy");
            }
            if at_end {
                break;
            }
            if rows_in_piece == 0 && shutdown.requested() {
                // Dropping the sink makes the server end its COPY with an error; the transactions are rolled back by
                // the caller and by the end of the session.
                return Ok(None);
            }
        }
        let stored = sink.finish().await.doing(write)?;
        if stored != rows {
            return Err(Error::failure(format!(
                "{rows} rows of table {from} were read, and {stored} were stored on the subscriber"
            ))
            .hint("A rule or trigger on the subscriber's table that fires always swallows rows: remove it."));
        }
    }
    provider.batch_execute("commit").await.doing(read)?;
    Ok(Some(Copied { snapshot, rows }))
}

/// The columns that both ends store, quoted for SQL.
fn common_columns(provider: &Table, subscriber: &Table) -> String {
    let columns: Vec<String> = provider
        .columns
        .iter()
        .filter(|column| !column.generated && subscriber.column(&column.name).is_some_and(|there| !there.generated))
        .map(|column| quoted(&column.name))
        .collect();
    columns.join(", ")
}

/// The plain indexes that --create left for after the copy. One that cannot be made is missed by queries, not by
/// replay.
async fn make_later_indexes(subscriber: &Client, target: &Target) -> Result<()> {
    let name = target.subscriber.name.clone();
    let fresh = table::inspect(subscriber, End::Subscriber, std::slice::from_ref(&name)).await?;
    let Some(there) = fresh.get(&name) else { return Ok(()) };
    for (index, definition) in create::later_indexes(&target.provider, there) {
        let made = subscriber
            .batch_execute(&format!(
                "savepoint later_index; {definition}; release savepoint later_index"
            ))
            .await
            .doing(|| format!("make index {index} on the subscriber"));
        if let Err(error) = made {
            if error.is_transient() {
                return Err(error);
            }
            tracing::warn!("{error}");
            subscriber
                .batch_execute("rollback to savepoint later_index")
                .await
                .doing(|| format!("go on without index {index}"))?;
        }
    }
    Ok(())
}
