//! `consumer node drop`.
//!
//! The node's provider and the root forget it first, the database ceases to be a node last: until then the command can be
//! typed again, with --db of any node, the one that is dropped included.

use super::change::{leave_others, lock_soon};
use super::gravestone;
use super::tree::{self, Reached};
use crate::cascade::{Role, ask};
use crate::cli::DropArgs;
use crate::connect::exists;
use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;
use crate::replay::{make_left_over_indexes, state};

/// `drop`
pub(super) async fn run(args: DropArgs) -> Result<()> {
    let entry = tree::entry(&args.cascade).await?;
    if args.dead {
        return forget(&entry, &args.name).await;
    }
    let other = tree::other(&entry, &args.name).await.map_err(|error| {
        if error.is_transient() {
            error.hint("If it will not come back: --dead")
        } else {
            error
        }
    })?;
    let at = other.as_ref().unwrap_or(&entry);
    let subscribers = subscribers(at).await?;
    if !subscribers.is_empty() {
        return Err(Error::failure(format!(
            "{} cannot be dropped, as others read from it: {}",
            at.node.title(),
            subscribers.join(", ")
        ))
        .hint("Have them read from another node first (consumer node change-provider), or drop them."));
    }
    if !lock_soon(at).await? {
        return Err(Error::failure(format!("{} is being replayed", at.node.title())).hint("Stop its replay first."));
    }
    if at.node.role != Role::Root {
        leave_others(at, "").await?;
        failpoint("node_left");
        let root = tree::root(at).await?;
        let root = root.as_ref().unwrap_or(at);
        let call = "pgq_node.unregister_location($1, $2)";
        ask(&root.client(), &at.node.title(), call, &[&at.node.queue, &at.node.name]).await?;
        failpoint("node_forgotten");
    }
    make_left_over_indexes(&at.client(), &at.node).await?;
    erase(at).await?;
    tracing::info!(node = at.node.name, queue = at.node.queue, "node dropped");
    Ok(())
}

async fn subscribers(at: &Reached) -> Result<Vec<String>> {
    if at.node.role == Role::Leaf {
        return Ok(Vec::new());
    }
    let rows = at
        .client()
        .query(
            "select subscriber_node from pgq_node.subscriber_info where queue_name = $1 order by 1",
            &[&at.node.queue],
        )
        .await
        .doing(|| format!("read who reads from {}", at.node.title()))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The database is an ordinary one again.
async fn erase(at: &Reached) -> Result<()> {
    let (client, node) = (&at.client(), &at.node);
    let what = || format!("drop {}", node.title());
    client.batch_execute("begin").await.doing(what)?;
    if node.role == Role::Leaf {
        for table in ["node", "node_location"] {
            client
                .execute(
                    &format!("delete from pgcascade_replay.{table} where queue = $1"),
                    &[&node.queue],
                )
                .await
                .doing(what)?;
        }
        state::forget_journal(client, &node.queue).await?;
    } else {
        let triggers = client
            .query(include_str!("triggers.sql"), &[&node.queue])
            .await
            .doing(what)?;
        for trigger in triggers {
            client.batch_execute(trigger.get(0)).await.doing(what)?;
        }
        let call = "pgq_node.drop_node($1, $2)";
        ask(client, &node.title(), call, &[&node.queue, &node.name]).await?;
    }
    if exists(client, "pgcascade_replay.position").await? {
        client
            .execute(
                "delete from pgcascade_replay.position where consumer = $1 and queue = $2",
                &[&node.worker, &node.queue],
            )
            .await
            .doing(what)?;
    }
    client.batch_execute("commit").await.doing(what)
}

/// `drop --dead`: every node that can be reached ends its subscription, and the root tells all to forget it.
async fn forget(entry: &Reached, name: &str) -> Result<()> {
    let queue = &entry.node.queue;
    tree::find(entry, name).await?;
    if entry.node.name == name {
        return Err(Error::usage(format!(
            "{} is not dead: --db leads to it",
            entry.node.title()
        )));
    }
    let root = tree::root(entry).await.map_err(|error| {
        error.hint("Without its root the cascade cannot forget a node; if it is the root that is dead: consumer takeover --dead")
    })?;
    let root = root.as_ref().unwrap_or(entry);
    for known in tree::known(root).await? {
        if known.name == name || known.dead || known.name == root.node.name {
            continue;
        }
        let reached = match tree::reach_known(&known, queue).await {
            Ok(reached) => reached,
            Err(error) => {
                tracing::warn!("{error}; if the dropped node read from there, drop it again when that node is back");
                continue;
            }
        };
        if reached.node.provider == name {
            return Err(
                Error::failure(format!("{} reads from node \"{name}\"", reached.node.title()))
                    .hint("Have it read from another node first: consumer node change-provider"),
            );
        }
        if reached.node.role != Role::Leaf {
            let call = "pgq_node.unregister_subscriber($1, $2)";
            ask(&reached.client(), &reached.node.title(), call, &[queue, &name]).await?;
        }
        gravestone::remove(&reached, name).await?;
    }
    gravestone::remove(root, name).await?;
    let call = "pgq_node.unregister_location($1, $2)";
    ask(&root.client(), &root.node.title(), call, &[queue, &name]).await?;
    tracing::info!(node = name, queue, "node dropped");
    Ok(())
}
