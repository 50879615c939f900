//! Tables that get rows from several sources: replays of several queues apply to the same table of the subscriber.
//!
//! Each source has rows of its own there, told apart by their keys. So a copy finds rows, and that is right; and nothing that is
//! about all rows of the table may be done for one source: it is not emptied, neither for a new copy nor because it is truncated at
//! one of them. Who replays into a table `pgcascade_replay.table_state` says. Another consumer of the same queue is not another
//! source: it would bring the same rows. Called by survey.rs, copy.rs, apply.rs, batch/transaction.rs and `table resync`.

use std::fmt::Display;

use tokio_postgres::Client;

use super::findings::{Findings, Kind, Remedy};
use super::position::Who;
use super::preflight::Pair;
use super::survey::Look;
use super::table::{Name, Table};
use super::table_state::{self, State};
use crate::connect::{End, exists};
use crate::error::{Doing, Error, Result};

/// The consumers that replay into a table.
async fn of(subscriber: &Client, name: &Name) -> Result<Vec<Who>> {
    let what = || format!("see who replays into table {name}");
    if !exists(subscriber, "pgcascade_replay.table_state").await? {
        return Ok(Vec::new());
    }
    let rows = subscriber
        .query(
            "select consumer, queue from pgcascade_replay.table_state where subscriber_schema = $1 and subscriber_table = $2 order by queue, consumer",
            &[&name.schema, &name.table],
        )
        .await
        .doing(what)?;
    Ok(rows
        .iter()
        .map(|row| Who {
            consumer: row.get(0),
            queue: row.get(1),
        })
        .collect())
}

/// The other ones, for a message. None: it has no other source.
async fn others(subscriber: &Client, who: &Who, name: &Name) -> Result<Option<String>> {
    let others: Vec<String> = of(subscriber, name)
        .await?
        .iter()
        .filter(|other| other.queue != who.queue)
        .map(|other| format!("consumer \"{}\" of queue \"{}\"", other.consumer, other.queue))
        .collect();
    Ok((!others.is_empty()).then(|| others.join(", ")))
}

/// Whether it has another source than this one.
pub(super) async fn are_several(subscriber: &Client, who: &Who, name: &Name) -> Result<bool> {
    others(subscriber, who, name).await.map(|others| others.is_some())
}

pub(super) async fn has_rows(client: &Client, table: &Table) -> Result<bool> {
    let row = client
        .query_one(&format!("select exists (select from {})", table.own_rows()), &[])
        .await
        .doing(|| format!("see whether table {} on the subscriber is empty", table.name))?;
    Ok(row.get(0))
}

/// Whether the rows that tables have, which are to be copied, stand against that.
pub(super) async fn look_for_rows(
    client: &Client,
    who: &Who,
    look: &Look<'_>,
    pairs: &[Pair<'_>],
    findings: &mut Findings,
) -> Result<()> {
    for Pair { entry, subscriber, .. } in pairs {
        let name = &subscriber.name;
        let is_read = entry.state == State::InCopy && subscriber.may("select") && subscriber.schema_usage;
        if !matches!(subscriber.kind.as_str(), "r" | "p") || !is_read || !has_rows(client, subscriber).await? {
            continue;
        }
        // They may have come with its copy, which goes on while replay begins anew.
        let begun = table_state::begun(client, who, &entry.provider);
        if !entry.is_new && begun.await?.is_none_or(|begun| begun.in_chunks) {
            continue;
        }
        findings.about(Some(&entry.provider));
        let removes = entry.replace_rows || look.truncate;
        let object: (End, &dyn Display) = (End::Subscriber, name);
        match others(client, who, name).await? {
            Some(others) if removes => findings.add(
                Kind::TableNotEmpty,
                object,
                format!("table {name} on the subscriber has rows of another source, too, which would be removed: {others}"),
                "use --merge in place of --truncate or --replace; remove this source's rows by hand, if it has any there",
            ),
            Some(others) if entry.is_new && !look.merge => findings.add(
                Kind::TableNotEmpty,
                object,
                format!("table {name} on the subscriber has rows of another source: {others}"),
                "with --merge this source's are copied beside them; or use --no-copy",
            ),
            None if !removes => findings.add(
                Kind::TableNotEmpty,
                object,
                format!("table {name} on the subscriber has rows already"),
                Remedy::run(End::Subscriber, format!("truncate {}", subscriber.own_rows())).words(
                    "let replay empty it with --truncate (table add: --replace); if the rows are equal to the provider's, use \
                     --no-copy; or",
                ),
            ),
            _ => {}
        }
    }
    findings.about(None);
    Ok(())
}

/// Refuses to remove the rows of other sources.
pub(super) async fn keep_others(subscriber: &Client, who: &Who, name: &Name) -> Result<()> {
    match others(subscriber, who, name).await? {
        None => Ok(()),
        Some(others) => Err(Error::failure(format!(
            "table {name} cannot be copied again, as that removes the rows of another source, too: {others}"
        ))
        .hint(
            "Remove this source's rows by hand, take the table out with consumer table remove, and add it again. If the other source is \
             gone, delete its row from pgcascade_replay.position on the subscriber.",
        )),
    }
}

/// Makes sure that a copy goes into a table without rows of its source. Preflight looked already, but somebody may have
/// written since.
///
/// Rows that are to be replaced are deleted, so that readers have them until the new ones are there, and foreign keys of other
/// tables do not mind.
pub(super) async fn make_room(
    subscriber: &Client,
    who: &Who,
    table: &Table,
    replace_rows: bool,
    truncate: bool,
) -> Result<()> {
    let name = &table.name;
    if !has_rows(subscriber, table).await? {
        return Ok(());
    }
    if replace_rows || truncate {
        keep_others(subscriber, who, name).await?;
    }
    if replace_rows {
        return subscriber
            .batch_execute(&format!("delete from {}", table.own_rows()))
            .await
            .doing(|| format!("remove the rows of table {name} on the subscriber"));
    }
    if truncate {
        return subscriber
            .batch_execute(&format!("truncate {}", table.own_rows()))
            .await
            .doing(|| format!("empty table {name} on the subscriber"));
    }
    if others(subscriber, who, name).await?.is_none() {
        return Err(
            Error::failure(format!("table {name} on the subscriber has rows already")).hint(
                "Empty it, or let replay do that with --truncate (table add: --replace); if the rows are equal to the provider's: --no-copy",
            ),
        );
    }
    Ok(())
}

/// Why a table, or a part of it, may not be emptied because its source was: it has several. None: it may.
pub(super) async fn refuses_truncate(subscriber: &Client, name: &Name, event: i64) -> Result<Option<Error>> {
    let mut queues: Vec<String> = of(subscriber, name).await?.into_iter().map(|who| who.queue).collect();
    queues.dedup();
    if queues.len() < 2 {
        return Ok(None);
    }
    let error = Error::failure(format!(
        "event {event} truncates table {name} at its provider, and it has rows of {} sources here",
        queues.len()
    ));
    Ok(Some(
        error
            .hint("Remove this source's rows by hand, and let replay leave the TRUNCATE out: --on-conflict skip for this table.")
            .of_one_table(),
    ))
}
