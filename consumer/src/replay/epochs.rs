//! What a node asks the others of changes of root that it was not told: a root, whether it still is one ([`learn`]); a node that has
//! promised an epoch to a takeover, whether that was given up ([`released`]), so that nobody has to come back to a node that was
//! away just then.
//!
//! Whoever is silent, or knows nothing, proves nothing: then all stays as it is. Called at the start and at each look at the node.

use std::future::Future;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::cascade::{self, Node, Role, leaf};
use crate::connect::{End, Session, connect, exists};
use crate::conninfo::ConnInfo;
use crate::error::{Doing, Result};

/// How long another node's answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// A root that was away asks the others whether it still is one; where a newer epoch is in force, it closes itself.
pub(super) async fn learn(client: &Client, node: &Node) -> Result<()> {
    let epoch = epoch(client, node).await?;
    for name in others(client, node).await? {
        let look = async {
            let other = reach(client, node, &name).await?;
            // A promoted root that was never opened proves nothing: its takeover may have been given up for lost.
            let query = "select role = 'branch' or open from pgcascade.node_state where queue_name = $1";
            let row = other
                .client
                .query_opt(query, &[&node.queue])
                .await
                .doing(|| format!("look at node \"{name}\""))?;
            if !row.is_some_and(|row| row.get(0)) {
                return Ok(None);
            }
            cascade::newer_epochs(&other.client, &node.queue, epoch).await
        };
        if let Some(epochs) = answer(look).await.flatten() {
            client
                .execute(
                    "select pgcascade.learn_epochs($1, $2::text::jsonb)",
                    &[&node.queue, &epochs],
                )
                .await
                .doing(|| format!("have {} learn the epochs of node \"{name}\"", node.title()))?;
            tracing::warn!(
                node = node.name,
                from = name,
                "this node is not the root any more: there is a newer epoch, and it was closed for writers; docs/takeover.md"
            );
            return Ok(());
        }
    }
    Ok(())
}

/// A node that has promised an epoch asks the others whether the journal of that takeover says that it was given up; then it owes it nothing
/// any more, and goes on: as `consumer takeover --abort` would have it do.
pub(super) async fn released(client: &Client, node: &Node) -> Result<()> {
    let promises = promises(client, node).await?;
    if promises.is_empty() {
        return Ok(());
    }
    // A root must not open beside one that came after that takeover; a branch or leaf may be held by nothing else any more.
    let newest = match node.role {
        Role::Root => Some(epoch(client, node).await?),
        Role::Branch | Role::Leaf => None,
    };
    let names = others(client, node).await?;
    let asked = names
        .iter()
        .map(|name| answer(given_up(client, node, name, &promises, newest)));
    for op in join_all(asked).await.into_iter().flatten().flatten() {
        if node.role == Role::Leaf {
            leaf::release(client, node, &op).await?;
        } else {
            client
                .execute(
                    "select pgcascade.release_promise($1, $2::text::uuid)",
                    &[&node.queue, &op],
                )
                .await
                .doing(|| format!("release {}", node.title()))?;
        }
        tracing::info!(
            node = node.name,
            takeover = op,
            "the takeover that this node had promised its part in was given up: it goes on as before"
        );
    }
    Ok(())
}

/// The takeovers that the node has promised an epoch to.
async fn promises(client: &Client, node: &Node) -> Result<Vec<String>> {
    let query = if node.role == Role::Leaf {
        // Versions before 14 have no such column.
        "select pg_catalog.jsonb_object_keys(coalesce(pg_catalog.to_jsonb(n) -> 'promises', '{}')) from pgcascade_replay.node n where queue = $1"
    } else {
        "select op_id::text from pgcascade.node_promise where queue_name = $1"
    };
    let rows = client
        .query(query, &[&node.queue])
        .await
        .doing(|| format!("read what {} has promised", node.title()))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Which of the takeovers another node should have become root by, and did not. It must be that node itself, and, where an epoch is given,
/// neither know a newer one nor have promised to make one.
async fn given_up(
    client: &Client,
    node: &Node,
    name: &str,
    promises: &[String],
    newest: Option<i64>,
) -> Result<Vec<String>> {
    let other = reach(client, node, name).await?;
    let what = || format!("look at the journal of node \"{name}\"");
    if !exists(&other.client, "pgcascade.takeover").await? {
        return Ok(Vec::new());
    }
    let rows = other
        .client
        .query(
            "select t.op_id::text from pgcascade.takeover t join pgcascade.node_state s using (queue_name)
              where t.queue_name = $1 and t.op_id = any ($2::text[]::uuid[]) and t.step = 'aborted' and t.new_node = s.node_name
                and s.node_name = $3 and ($4::int8 is null or s.epoch <= $4 and s.promised_op is null)",
            &[&node.queue, &promises, &name, &newest],
        )
        .await
        .doing(what)?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

async fn epoch(client: &Client, node: &Node) -> Result<i64> {
    let row = client
        .query_one(
            "select epoch from pgcascade.node_state where queue_name = $1",
            &[&node.queue],
        )
        .await
        .doing(|| format!("read the epoch of {}", node.title()))?;
    Ok(row.get(0))
}

/// The other nodes that are not given up.
async fn others(client: &Client, node: &Node) -> Result<Vec<String>> {
    let query = if node.role == Role::Leaf {
        "select node from pgcascade_replay.node_location where queue = $1 and node <> $2 and not dead order by node"
    } else {
        "select node_name from pgq_node.node_location where queue_name = $1 and node_name <> $2 and not dead order by node_name"
    };
    let rows = client
        .query(query, &[&node.queue, &node.name])
        .await
        .doing(|| format!("read where the other nodes of queue \"{}\" are", node.queue))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

async fn reach(client: &Client, node: &Node, name: &str) -> Result<Session> {
    let location = node.find(client, name).await?.unwrap_or_default();
    connect(&ConnInfo::parse(&location)?, End::Node, "pgcascade replay").await
}

/// What another node says, in time; None: it says nothing.
async fn answer<T>(look: impl Future<Output = Result<T>>) -> Option<T> {
    match timeout(PATIENCE, look).await {
        Ok(Ok(said)) => Some(said),
        Ok(Err(error)) => {
            tracing::debug!("{error}");
            None
        }
        Err(_) => None,
    }
}
