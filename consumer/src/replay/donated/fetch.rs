//! From a leaf's journal into the branch's own database, in one transaction.
//!
//! Batch by batch, and of each batch its ticks and then its events as they come: at no time is more of the journal in memory than the ticks of one
//! batch and a part of its events. What does not fit together (a gap, an event that no tick shows) is refused, and nothing of it is kept.

use std::pin::pin;

use bytes::Bytes;
use futures_util::{SinkExt, TryStreamExt};
use tokio_postgres::Client;

use super::super::table::Name;
use super::{check_tables, clear, lacks};
use crate::cascade::Node;
use crate::connect::flow::end;
use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;

/// Copies what the branch lacks into its own database. What is there from another time goes.
pub(in crate::replay) async fn fetch(
    branch: &Client,
    node: &Node,
    leaf: &Client,
    giver: &Node,
    upto: i64,
) -> Result<()> {
    check_tables(branch, node).await?;
    // The leaf is promised, too: nothing moves there, and if something does, this is one moment of it.
    let begin = "begin isolation level repeatable read, read only";
    leaf.batch_execute(begin)
        .await
        .doing(|| format!("read from {}", giver.title()))?;
    let giver = giver.reload(leaf).await?;
    if let Some(lacks) = lacks(leaf, &giver, node).await? {
        return Err(Error::failure(format!(
            "{} cannot fetch from leaf \"{}\": {lacks}",
            node.title(),
            giver.name
        ))
        .transient());
    }
    let what = || format!("store what leaf \"{}\" gives to {}", giver.name, node.title());
    branch
        .batch_execute(include_str!("../sql/donated_begin.sql"))
        .await
        .doing(what)?;
    clear(branch, &node.queue).await?;
    let mut after = node.tick;
    while let Some(batch) = leaf
        .query_opt(
            "select tick, from_tick, ticks::text from pgcascade_replay.journal where queue = $1 and tick > $2 order by tick limit 1",
            &[&node.queue, &after],
        )
        .await
        .doing(|| format!("read the journal of {}", giver.title()))?
    {
        let (tick, from, ticks): (i64, i64, &str) = (batch.get(0), batch.get(1), batch.get(2));
        store(branch, leaf, node, (from, tick), ticks).await?;
        after = tick;
    }
    failpoint("donated_copied");
    check(branch, node, upto).await?;
    check_partitions(branch, node, leaf, &giver).await?;
    branch.batch_execute("commit").await.doing(what)?;
    tracing::info!(
        node = node.name,
        leaf = giver.name,
        from = node.tick,
        upto,
        "fetched the ticks that only a leaf has; they are applied now"
    );
    Ok(())
}

/// One batch: its ticks, and each event with the tick that it belongs to.
async fn store(branch: &Client, leaf: &Client, node: &Node, (from, tick): (i64, i64), ticks: &str) -> Result<()> {
    let what = || format!("store tick {tick} of the journal of leaf \"{}\"", node.provider);
    // What the branch has of the batch is needed to tell which events are of which tick, and goes afterwards.
    branch
        .execute(include_str!("../sql/donated_ticks.sql"), &[&node.queue, &from, &ticks])
        .await
        .doing(what)
        .map_err(|error| unfit(error, node))?;
    copy_events(branch, leaf, node, tick).await?;
    let unseen = branch
        .query_one(include_str!("../sql/donated_unseen.sql"), &[&node.queue, &tick])
        .await
        .doing(what)?;
    if let Some(event) = unseen.get::<_, Option<i64>>(0) {
        return Err(not_whole(
            node,
            &format!("none of the ticks from {from} to {tick} shows event {event}, which is kept under them"),
        ));
    }
    branch
        .execute(include_str!("../sql/donated_events.sql"), &[&node.queue, &from, &tick])
        .await
        .doing(what)
        .map_err(|error| unfit(error, node))?;
    Ok(())
}

fn not_whole(node: &Node, wrong: &str) -> Error {
    Error::failure(format!(
        "what leaf \"{}\" gives to {} is not whole: {wrong}",
        node.provider,
        node.title()
    ))
    .hint(REMEDY)
}

const REMEDY: &str = "Abort the takeover, and give the leaf up with --lost.";

/// A value or a constraint does not fit: what the leaf has cannot be used, however often it is read.
fn unfit(error: Error, node: &Node) -> Error {
    let is_unfit = error
        .sqlstate()
        .is_some_and(|state| state.code().starts_with("22") || state.code().starts_with("23"));
    if !is_unfit {
        return error;
    }
    error
        .within(format_args!(
            "what leaf \"{}\" gives to {} is not whole",
            node.provider,
            node.title()
        ))
        .hint(REMEDY)
}

/// One batch of the journal goes into a table of the session, as it is.
async fn copy_events(branch: &Client, leaf: &Client, node: &Node, tick: i64) -> Result<()> {
    let read = || format!("read tick {tick} from the journal of leaf \"{}\"", node.provider);
    let what = || format!("store tick {tick} of the journal of leaf \"{}\"", node.provider);
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&node.queue, &tick];
    let parts = leaf
        .query_raw(
            "select content from pgcascade_replay.journal_part where queue = $1 and tick = $2 order by part",
            parameters,
        )
        .await
        .doing(read)?;
    let mut parts = pin!(parts);
    // A batch without events has no part, and no header to begin a COPY with.
    let Some(first) = parts.try_next().await.doing(read)? else {
        return Ok(());
    };
    let sink = branch
        .copy_in::<_, Bytes>("copy pg_temp.donated from stdin (format binary)")
        .await
        .doing(what)?;
    let mut sink = pin!(sink);
    let mut next = Some(first);
    while let Some(part) = next {
        let sent = sink.send(Bytes::from(part.get::<_, Vec<u8>>(0))).await;
        if sent.is_err() {
            return end(sink, sent).await.doing(what).map_err(|error| unfit(error, node));
        }
        next = parts.try_next().await.doing(read)?;
    }
    end(sink, Ok(())).await.doing(what).map_err(|error| unfit(error, node))
}

/// Every tick from the branch's own to the last, and every event in one.
async fn check(branch: &Client, node: &Node, upto: i64) -> Result<()> {
    let row = branch
        .query_one(
            include_str!("../sql/donated_check.sql"),
            &[&node.queue, &node.tick, &upto],
        )
        .await
        .doing(|| format!("check what leaf \"{}\" gives to {}", node.provider, node.title()))?;
    match row.get::<_, Option<String>>(0) {
        None => Ok(()),
        Some(wrong) => Err(not_whole(node, &wrong)),
    }
}

/// A partition that was made shortly before the root was lost may be known to the leaf alone: its rows must not be passed over.
async fn check_partitions(branch: &Client, node: &Node, leaf: &Client, giver: &Node) -> Result<()> {
    let known = leaf
        .query(
            "select partition_schema, partition_table, provider_schema, provider_table from pgcascade_replay.partition
              where queue = $1 and consumer = $2",
            &[&giver.queue, &giver.worker],
        )
        .await
        .doing(|| format!("read the partitions that {} knows", giver.title()))?;
    for row in known {
        let partition = Name::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let table = Name::new(row.get::<_, String>(2), row.get::<_, String>(3));
        let on_the_wire = partition.on_the_wire();
        let missing = branch
            .query_one(
                "select exists (select from pgcascade_replay.donated_event
                                 where queue = $1 and pg_catalog.convert_to(ev_extra1, pg_catalog.getdatabaseencoding()) = $2)
                        and exists (select from pgcascade_replay.table_state
                                     where queue = $1 and consumer = $3 and (provider_schema, provider_table) = ($4, $5))
                        and not exists (select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
                                         where n.nspname = $6 and c.relname = $7)",
                &[
                    &node.queue,
                    &on_the_wire,
                    &node.worker,
                    &table.schema,
                    &table.table,
                    &partition.schema,
                    &partition.table,
                ],
            )
            .await
            .doing(|| format!("look for partition {partition} of {}", node.title()))?;
        if missing.get(0) {
            return Err(Error::failure(format!(
                "{} lacks partition {partition} of table {table}, of which leaf \"{}\" has events",
                node.title(),
                giver.name
            ))
            .hint("Make it there as it was on the root (create table ... partition of ...); replay goes on by itself then.")
            .transient());
        }
    }
    Ok(())
}
