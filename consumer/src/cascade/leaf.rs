//! What a leaf does in a takeover when it is asked: it promises to take no more ticks, follows the new root, or is released.
//! Branches do that in sql/takeover_node.sql; a leaf has no extension, so the command writes what it promised into
//! `pgcascade_replay.node`, by the same rules.
//!
//! Every batch locks the position's row first, and then reads what the leaf is: so a promise, which is made with that lock, comes
//! before a batch, which then takes nothing, or after it, and knows its tick.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{Node, Role};
use crate::connect::End;
use crate::error::{Doing, Error, Result};
use crate::replay::{Who, state};

/// Promises an epoch to a takeover, and returns the tick that the leaf is at; it will have no other until it is told whom to
/// follow, or that the takeover was given up.
pub(crate) async fn promise(client: &Client, node: &Node, op: &str, epoch: i64) -> Result<i64> {
    debug_assert_eq!(node.role, Role::Leaf);
    let what = || format!("have {} promise epoch {epoch}", node.title());
    state::install(client, End::Node).await?;
    // Its replay has the position locked while it applies a batch.
    client
        .batch_execute("begin; set local lock_timeout = '60s'")
        .await
        .doing(what)?;
    let promised = locked(client, node, op, epoch).await.map_err(|error| {
        if error.sqlstate() == Some(&SqlState::LOCK_NOT_AVAILABLE) {
            return error.hint(format!(
                "The replay of leaf \"{0}\" has been in one batch for a minute: wait for it or stop it, and type the command again; or \
                 give up what it has with --lost {0}.",
                node.name
            ));
        }
        error
    });
    client
        .batch_execute(if promised.is_ok() { "commit" } else { "rollback" })
        .await
        .doing(what)?;
    promised
}

async fn locked(client: &Client, node: &Node, op: &str, epoch: i64) -> Result<i64> {
    let what = || format!("have {} promise epoch {epoch}", node.title());
    let who = Who {
        consumer: node.worker.clone(),
        queue: node.queue.clone(),
    };
    who.lock_row(client).await?;
    let row = client
        .query_one(
            "select p.tick, n.epoch, (n.promises ->> $3)::int8,
                    (select max(x.value::int8) from pg_catalog.jsonb_each_text(n.promises) x)
               from pgcascade_replay.node n
               join pgcascade_replay.position p on p.queue = n.queue and p.consumer = n.worker
              where n.queue = $1 and n.worker = $2",
            &[&node.queue, &node.worker, &op],
        )
        .await
        .doing(what)?;
    let (tick, known): (i64, i64) = (row.get(0), row.get(1));
    let (ours, highest): (Option<i64>, Option<i64>) = (row.get(2), row.get(3));
    if ours == Some(epoch) {
        return Ok(tick);
    }
    if epoch <= known.max(highest.unwrap_or(0)) {
        return Err(Error::failure(format!(
            "{} cannot promise epoch {epoch} to takeover {op}: it {}",
            node.title(),
            match highest {
                Some(epoch) => format!("has promised epoch {epoch} to another one"),
                None => format!("is in epoch {known}"),
            }
        ))
        .hint("Another takeover came between. Finish or abort that one first; consumer takeover --plan shows where it is."));
    }
    // Not by what was read above: who releases it does not wait for a batch.
    let changed = client
        .execute(
            "update pgcascade_replay.node set promises = promises || pg_catalog.jsonb_build_object($2::text, $3::int8)
              where queue = $1 and $2 <> all (released)",
            &[&node.queue, &op, &epoch],
        )
        .await
        .doing(what)?;
    if changed == 0 {
        return Err(Error::failure(format!(
            "{} cannot promise epoch {epoch} to takeover {op}, which was given up",
            node.title()
        ))
        .hint("Nothing is to be done for it; consumer status shows which node is root."));
    }
    Ok(tick)
}

/// Reads from that provider, in the epoch that a takeover began. What was promised is kept thereby.
pub(crate) async fn follow(client: &Client, node: &Node, op: &str, epoch: i64, provider: &str) -> Result<()> {
    state::install(client, End::Node).await?;
    let changed = client
        .execute(
            "update pgcascade_replay.node n
                set provider = $4, uptodate = uptodate and provider = $4 and promises = '{}', epoch = $3, promises = '{}', released = '{}'
              where queue = $1 and epoch <= $3
                and not exists (select from pg_catalog.jsonb_each_text(n.promises) x where x.key <> $2 and x.value::int8 > $3)",
            &[&node.queue, &op, &epoch, &provider],
        )
        .await
        .doing(|| format!("have {} follow \"{provider}\"", node.title()))?;
    if changed == 0 {
        return Err(Error::failure(format!(
            "{} does not follow takeover {op}: it has learned or promised a newer epoch",
            node.title()
        ))
        .hint("Another takeover came between; consumer takeover --plan shows where it is."));
    }
    Ok(())
}

/// Owes an aborted takeover nothing any more. What that asked before, and comes later, is refused.
pub(crate) async fn release(client: &Client, node: &Node, op: &str) -> Result<()> {
    state::install(client, End::Node).await?;
    client
        .execute(
            "update pgcascade_replay.node
                set promises = promises - $2, released = pg_catalog.array_append(pg_catalog.array_remove(released, $2), $2) where queue = $1",
            &[&node.queue, &op],
        )
        .await
        .doing(|| format!("release {}", node.title()))?;
    Ok(())
}
