//! What a node waits for above itself: a table that its provider, a branch, does not have or does not have whole yet.
//!
//! Nodes may be started in any order, so this is no failure; but what the root does not have either will never come, and is one.
//! Called by setup.rs, before anything is made here.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::Client;

use super::super::pattern::{self, Pattern};
use super::super::table::Name;
use super::super::table_state::Entry;
use super::super::wish::Wish;
use crate::cascade::{self, Node, Role};
use crate::connect::{End, connect};
use crate::conninfo::ConnInfo;
use crate::error::{Doing, Error, Result};

/// A copy from a branch must not begin before the branch has the whole table itself.
pub(in crate::replay) async fn check_source(
    provider: &Client,
    node: &Node,
    entries: &[Entry],
    waits: bool,
) -> Result<()> {
    if !entries.iter().any(Entry::to_copy) {
        return Ok(());
    }
    let upstream = cascade::load(provider, &node.queue).await?;
    let Some(upstream) = upstream.filter(|upstream| upstream.role == Role::Branch) else {
        return Ok(());
    };
    for entry in entries.iter().filter(|entry| entry.to_copy()) {
        if let Some(error) = lacks(provider, &upstream, &entry.provider).await? {
            return Err(if waits { waiting(node, error) } else { error });
        }
    }
    Ok(())
}

fn waiting(node: &Node, error: Error) -> Error {
    let hint = format!(
        "It goes on by itself when node \"{}\" has what it lacks.",
        node.provider
    );
    error
        .within(format_args!("{} waits for its provider", node.title()))
        .hint(hint)
        .waits()
}

/// What it means that the provider lacks tables that are wished for: a branch will have them once its own replay has begun, unless
/// the root does not have them either. Where the root cannot be asked they are waited for.
pub(in crate::replay) async fn not_yet(provider: &Client, node: &Node, wish: &Wish, error: Error) -> Result<Error> {
    let upstream = cascade::load(provider, &node.queue).await?;
    let Some(upstream) = upstream.filter(|upstream| upstream.role == Role::Branch) else {
        return Ok(error);
    };
    match timeout(ROOT_PATIENCE, nowhere(upstream, wish)).await {
        Ok(Ok(Some(nowhere))) => return Ok(nowhere),
        Ok(Ok(None)) => {}
        Ok(Err(why)) => tracing::debug!("{why}"),
        Err(_) => tracing::debug!("the root of queue \"{}\" did not answer", node.queue),
    }
    Ok(waiting(node, error))
}

/// How long the root is given to say which tables it has.
const ROOT_PATIENCE: Duration = Duration::from_secs(5);

/// How many nodes may be above each other.
const HIGHEST: usize = 64;

/// Says so if a pattern matches no table of the root: then no branch will ever have one.
async fn nowhere(branch: Node, wish: &Wish) -> Result<Option<Error>> {
    let mut at = branch;
    for _ in 0..HIGHEST {
        let Some(location) = &at.provider_location else {
            return Ok(None);
        };
        let session = connect(&ConnInfo::parse(location)?, End::Node, "pgcascade replay").await?;
        let Some(above) = cascade::load(&session.client, &at.queue).await? else {
            return Ok(None);
        };
        if above.role != Role::Root {
            at = above;
            continue;
        }
        let relations = pattern::relations(&session.client).await?;
        let misses = |pattern: &&Pattern| !relations.iter().any(|relation| pattern.matches(&relation.name));
        return Ok(wish.patterns.iter().find(misses).map(|pattern| {
            Error::failure(format!(
                "no table matches \"{}\": neither on the provider nor on the root, {}",
                pattern.text(),
                above.title()
            ))
            .hint("Correct --table; or make the table on the root first.")
        }));
    }
    Ok(None)
}

/// Whether a branch has the whole table.
pub(in crate::replay) async fn check_has(client: &Client, branch: &Node, name: &Name) -> Result<()> {
    lacks(client, branch, name).await?.map_or(Ok(()), Err)
}

/// Why it has not. None: it has.
async fn lacks(client: &Client, branch: &Node, name: &Name) -> Result<Option<Error>> {
    let state = client
        .query_opt(
            "select case when exists (select from pgcascade_replay.held_event h
                                            where (h.consumer, h.queue, h.provider_schema, h.provider_table)
                                                = (t.consumer, t.queue, t.provider_schema, t.provider_table))
                               then 'catching-up' else t.state end
                   from pgcascade_replay.table_state t
                  where consumer = $1 and queue = $2 and subscriber_schema = $3 and subscriber_table = $4",
            &[&branch.worker, &branch.queue, &name.schema, &name.table],
        )
        .await
        .doing(|| format!("read the state of table {name} of {}", branch.title()))?
        .map(|row| row.get::<_, String>(0));
    Ok(match state.as_deref() {
        Some("ok") => None,
        Some(state) => Some(
            Error::failure(format!(
                "table {name} of the provider, {}, is {state} itself; it can be copied from there when it is ok",
                branch.title()
            ))
            .transient(),
        ),
        None => Some(
            Error::failure(format!(
                "the provider, {}, does not replay table {name}",
                branch.title()
            ))
            .hint("Have that node replay the table first, with --table, or read from another one."),
        ),
    })
}
