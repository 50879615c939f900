//! The place of a node at its provider: that it is the right node, has the ticks that come after the node's own, and keeps them for it.
//! Taken by replay at its start, and by the commands that give a node another provider.

use tokio_postgres::Client;

use super::{position, was_root, who};
use crate::cascade::{self, Node, ask};
use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;
use crate::replay::table::Name;
use crate::replay::table_state;

/// What [`super::attach`] will refuse, for `consumer check`. Changes nothing.
pub(in crate::replay) async fn check_place(provider: &Client, subscriber: &Client, node: &Node) -> Result<()> {
    loop {
        let node = here(subscriber, node).await?;
        failpoint("before_place");
        let found = place(provider, &node, node.tick).await.map(drop);
        // A replay that runs beside this may have gone on, and rotation behind it.
        if found.is_ok() || node.reload(subscriber).await?.tick == node.tick {
            return found;
        }
    }
}

/// The node as it is now, and in step with itself: its tick, its replay's position and the last tick in its queue are looked at as at
/// one moment, as a replay that runs beside this moves all of them at once.
async fn here(subscriber: &Client, node: &Node) -> Result<Node> {
    let what = || format!("look where {} is", node.title());
    subscriber
        .batch_execute("begin isolation level repeatable read, read only")
        .await
        .doing(what)?;
    let looked = async {
        let node = node.reload(subscriber).await?;
        failpoint("after_node");
        if !was_root(subscriber, &node).await? {
            position(subscriber, &node).await?;
        }
        Ok(node)
    };
    let looked = looked.await;
    subscriber.batch_execute("rollback").await.doing(what)?;
    looked
}

/// Checks that the provider is the node that it should be, and has it keep what comes after the tick.
pub(crate) async fn subscribe(provider: &Client, subscriber: &Client, node: &Node, tick: i64) -> Result<()> {
    if !place(provider, node, tick).await? {
        register(provider, subscriber, node, tick).await?;
    }
    Ok(())
}

/// What to do about a location that leads to somebody else.
const WRONG_PLACE: &str =
    "Say where that node is: consumer node change-location; or correct what --address-query gives.";

/// Checks that the provider is the node that it should be, and returns it.
pub(in crate::replay) async fn upstream(provider: &Client, node: &Node) -> Result<Node> {
    let upstream = cascade::load(provider, &node.queue).await?.ok_or_else(|| {
        Error::failure(format!(
            "the location of node \"{}\" leads to a database that is no node of queue \"{}\"",
            node.provider, node.queue
        ))
        .hint(WRONG_PLACE)
    })?;
    if !cascade::is_called(provider, &upstream, &node.provider).await? {
        return Err(Error::failure(format!(
            "the location of node \"{}\" leads to {}",
            node.provider,
            upstream.title()
        ))
        .hint(WRONG_PLACE));
    }
    Ok(upstream)
}

/// Checks that the provider can go on after the tick. Returns whether it knows the node there.
async fn place(provider: &Client, node: &Node, tick: i64) -> Result<bool> {
    let upstream = upstream(provider, node).await?;
    let row = provider
        .query_one(include_str!("../sql/attach.sql"), &[&node.queue, &node.worker, &tick])
        .await
        .doing(|| format!("look for tick {tick} of {}", upstream.title()))?;
    let (time, top): (Option<String>, Option<i64>) = (row.get("tick_time"), row.get("top"));
    match (&time, &node.tick_time) {
        (None, _) if top.is_none_or(|top| top < tick) => {
            return Err(Error::failure(format!(
                "{} is at tick {tick}, and its provider \"{}\" at tick {}: it has to catch up first",
                node.title(),
                node.provider,
                top.unwrap_or(0)
            ))
            .transient());
        }
        (None, _) => {
            return Err(who(node).lost(&format!(
                "the node is at tick {tick}, which node \"{}\" does not have any more",
                node.provider
            )));
        }
        (Some(there), Some(here)) if there != here => {
            return Err(Error::failure(format!(
                "{} and its provider \"{}\" do not have the same ticks: tick {tick} was made at {here} here and at {there} there",
                node.title(),
                node.provider
            ))
            .hint("One of them was restored, or is of another cascade. Make the node anew: consumer node drop, then create it."));
        }
        _ => {}
    }
    let (last, next): (Option<i64>, Option<i64>) = (row.get("last_tick"), row.get("next_tick"));
    Ok(last == Some(tick) || next == Some(tick))
}

/// Done again, it only moves the worker to the tick.
async fn register(provider: &Client, subscriber: &Client, node: &Node, tick: i64) -> Result<()> {
    let location = cascade::location(subscriber, node, &node.name).await?;
    let known = provider
        .query_opt(
            "select node_location from pgq_node.node_location where queue_name = $1 and node_name = $2 and not dead",
            &[&node.queue, &node.name],
        )
        .await
        .doing(|| format!("look up where node \"{}\" is", node.provider))?;
    // A root tells all nodes, and cannot while it is closed.
    if known.map(|row| row.get::<_, String>(0)) != location {
        ask(
            provider,
            &node.title(),
            "pgq_node.register_location($1, $2, $3, false)",
            &[&node.queue, &node.name, &location],
        )
        .await?;
    }
    ask(
        provider,
        &node.title(),
        "pgq_node.register_subscriber($1, $2, $3, $4)",
        &[&node.queue, &node.name, &node.worker, &tick],
    )
    .await?;
    tracing::info!(node = node.name, provider = node.provider, tick, "subscribed");
    Ok(())
}

/// What a copy holds is known by the transaction ids of the provider that it was made from. So tables that are still being copied, or
/// catch up with their copy, and were begun at another provider are copied anew from this one. Called with the worker's lock, before
/// a copy begins or goes on.
pub(in crate::replay) async fn start_copies_over(subscriber: &Client, node: &Node) -> Result<()> {
    let who = who(node);
    let what = || format!("have the copies of {} start over", node.title());
    let tables = cascade::unfinished(subscriber, node).await?;
    let begun = tables.into_iter().filter_map(|table| {
        let from = table.copied_from.filter(|from| *from != node.provider)?;
        let (schema, table) = (table.schema, table.table);
        Some((Name { schema, table }, from))
    });
    let mut begun = begun.peekable();
    if begun.peek().is_none() {
        return Ok(());
    }
    let number = table_state::begin_change(subscriber, &who).await?;
    for (name, from) in begun {
        table_state::start_over(subscriber, &who, &name, number).await?;
        tracing::warn!(
            table = %name,
            node = node.name,
            "the copy was begun from node \"{from}\", and starts over from node \"{}\"",
            node.provider
        );
    }
    subscriber.batch_execute("commit").await.doing(what)
}

/// The copies that were not begun yet will be from the present provider.
pub(in crate::replay) async fn note_copies(subscriber: &Client, node: &Node) -> Result<()> {
    let who = who(node);
    subscriber
        .execute(
            "update pgcascade_replay.table_state set copied_from = $3
              where consumer = $1 and queue = $2 and copied_from is null and state = 'in-copy'",
            &[&who.consumer, &who.queue, &node.provider],
        )
        .await
        .doing(|| format!("note where {} copies from", node.title()))?;
    Ok(())
}
