//! `consumer node rename`: a node gets another name, while everything runs.
//!
//! 1. All nodes learn the new name, with the location of the old one: from here on the node goes by both, and whoever looks for
//!    it under either finds it (`cascade::is_called`).
//! 2. Its provider keeps for the new name what it keeps for the old one.
//! 3. The node itself changes its name: one transaction. Its replay sees that before its next batch, and takes its place
//!    at the provider under the new name.
//! 4. Who reads from it reads from the new name: one write on each.
//! 5. The old name is forgotten, on the root last, whose event tells who was not told.
//!
//! Every step finds out whether it was done. Nodes that cannot be reached are refused before the first: they would look
//! for a name that nobody has.

use std::collections::HashMap;
use std::time::Duration;

use super::change;
use super::tree::{self, Known, Reached};
use crate::cascade::{self, ADMIN_LOCATIONS, Node, Role};
use crate::cli::RenameArgs;
use crate::config::name;
use crate::connect::{End, exists};
use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;
use crate::replay::{Who, state};

/// `rename`
pub(super) async fn run(args: RenameArgs) -> Result<()> {
    let (old, new) = (name("OLD", Some(&args.old))?, name("NEW", Some(&args.new))?);
    if old == new {
        return Err(Error::usage("the old name and the new one are the same"));
    }
    let entry = tree::entry(&args.cascade).await?;
    let root = tree::root(&entry).await?;
    let root = root.as_ref().unwrap_or(&entry);
    let known = tree::known(root).await?;
    let told = itself(root, &known, &old)?;
    let place = told.location.clone();
    let told = Known {
        name: new.clone(),
        ..told
    };
    if let Some(taken) = known.iter().find(|known| known.name == new && known.location != place) {
        return Err(taken_by(root, taken));
    }
    let nodes = reach_all(&root.node.queue, &known).await?;
    for node in &nodes {
        check(node, &new, &place).await?;
    }
    let is_it = |node: &&Reached| node.node.name == old || node.node.name == new;
    let Some(at) = nodes.iter().find(is_it) else {
        return Err(Error::failure(format!(
            "the location of node \"{old}\" leads to another node"
        )));
    };
    let worker = worker(&at.node, &old, &new);

    for node in &nodes {
        told.tell(&node.client(), &node.node).await?;
        failpoint("node_known");
    }
    let above = nodes
        .iter()
        .find(|above| above.node.name == at.node.provider && at.node.role != Role::Root);
    if let Some(above) = above {
        let call = "select pgcascade.rename_subscriber($1, $2, $3, $4)";
        above
            .client()
            .execute(call, &[&at.node.queue, &old, &new, &worker])
            .await
            .doing(|| format!("have {} know node \"{old}\" as \"{new}\"", above.node.title()))?;
    }
    failpoint("node_subscribed");
    rename(at, &old, &new, &worker).await?;
    failpoint("node_renamed");
    for node in &nodes {
        tell(node, &old, &new).await?;
        failpoint("node_told");
    }
    change::seen(at, Duration::from_secs(args.timeout)).await?;
    failpoint("node_seen");
    // The root comes last: until then the command finds the node under its old name.
    for node in nodes.iter().filter(|node| node.node.role != Role::Root) {
        let now = node.node.reload(&node.client()).await?;
        cascade::forget_location(&node.client(), &now, &old).await?;
        failpoint("node_forgotten");
    }
    for node in nodes.iter().filter(|node| node.node.role == Role::Root) {
        cascade::forget_location(&node.client(), &node.node, &old).await?;
    }
    tracing::info!(old, new, queue = at.node.queue, "node renamed");
    Ok(())
}

/// The node, as the root knows it.
fn itself(root: &Reached, known: &[Known], old: &str) -> Result<Known> {
    match known.iter().find(|known| known.name == old) {
        Some(known) if known.dead => Err(Error::usage(format!("node \"{old}\" is declared dead"))),
        Some(known) => Ok(known.clone()),
        None => Err(
            Error::usage(format!("queue \"{}\" has no node \"{old}\"", root.node.queue))
                .hint("consumer status shows the nodes. If it was renamed already, there is nothing left to do."),
        ),
    }
}

fn taken_by(at: &Reached, taken: &Known) -> Error {
    Error::failure(format!(
        "{} knows a node \"{}\" already, at {}",
        at.node.title(),
        taken.name,
        taken.location
    ))
    .hint("Choose another name; or, if that node is gone: consumer node drop")
}

/// All nodes that are not dead, each once.
async fn reach_all(queue: &str, known: &[Known]) -> Result<Vec<Reached>> {
    let mut nodes: HashMap<String, Reached> = HashMap::new();
    let mut failures = Vec::new();
    for known in known.iter().filter(|known| !known.dead) {
        match tree::reach_known(known, queue).await {
            Ok(reached) => {
                nodes.entry(reached.node.name.clone()).or_insert(reached);
            }
            Err(error) => failures.push((known.name.clone(), error)),
        }
    }
    if failures.is_empty() {
        let mut nodes: Vec<Reached> = nodes.into_values().collect();
        nodes.sort_by(|a, b| a.node.name.cmp(&b.node.name));
        return Ok(nodes);
    }
    let names: Vec<&str> = failures.iter().map(|(name, _)| name.as_str()).collect();
    let reasons: Vec<String> = failures.iter().map(|(_, error)| error.to_string()).collect();
    Err(Error::failure(format!(
        "every node has to learn the new name, and these cannot be asked: {}",
        names.join(", ")
    ))
    .detail(reasons.join("\n"))
    .hint("Nothing was changed. Start them; or, if one will not come back: consumer node drop NODE --dead"))
}

/// Whether nothing on a node stands against it.
async fn check(node: &Reached, new: &str, place: &str) -> Result<()> {
    let known = tree::known(node).await?;
    if let Some(taken) = known.iter().find(|known| known.name == new && known.location != place) {
        return Err(taken_by(node, taken));
    }
    if node.node.role != Role::Leaf && !exists(&node.client(), ADMIN_LOCATIONS).await? {
        return Err(Error::failure(format!(
            "{} is a node of PgQ's own, and cannot know a node under another name",
            node.node.title()
        ))
        .hint("Drop the node that is to be renamed, and make it anew. Nothing was changed."));
    }
    tree::check_no_takeover(node).await?;
    if node.node.role != Role::Root {
        return Ok(());
    }
    let row = node
        .client()
        .query_one(
            "select open from pgcascade.node_state where queue_name = $1",
            &[&node.node.queue],
        )
        .await
        .doing(|| format!("read the state of {}", node.node.title()))?;
    if row.get(0) {
        return Ok(());
    }
    Err(
        Error::failure(format!("{} is closed, and cannot tell the others", node.node.title()))
            .hint("pgcascade.node_state on it says why."),
    )
}

/// A worker's name that was made of the node's goes with it.
fn worker(node: &Node, old: &str, new: &str) -> String {
    if node.worker == format!("{old}_worker") {
        format!("{new}_worker")
    } else {
        node.worker.clone()
    }
}

/// The one transaction on the node.
async fn rename(at: &Reached, old: &str, new: &str, worker: &str) -> Result<()> {
    let (client, node) = (&at.client(), &at.node);
    if node.name == new {
        return Ok(());
    }
    let what = || format!("rename {}", node.title());
    let who = Who {
        consumer: node.worker.clone(),
        queue: node.queue.clone(),
    };
    state::install(client, End::Node).await?;
    client.batch_execute("begin").await.doing(what)?;
    who.lock_row(client).await?;
    // Under the lock no table is added.
    let copying = cascade::in_copy(client, node).await?;
    if !copying.is_empty() {
        return Err(Error::failure(format!(
            "{} is copying tables, and can be renamed when that is done: {}",
            node.title(),
            copying.join(", ")
        ))
        .hint("Type the command again then; until it is done the node goes by both names."));
    }
    state::rename(client, &who, worker).await?;
    if node.role == Role::Leaf {
        client
            .execute(
                "update pgcascade_replay.node set node = $2, worker = $3, uptodate = false where queue = $1",
                &[&node.queue, &new, &worker],
            )
            .await
            .doing(what)?;
    } else {
        client
            .execute(
                "select pgcascade.rename_node($1, $2, $3, $4)",
                &[&node.queue, &old, &new, &worker],
            )
            .await
            .doing(what)?;
    }
    client.batch_execute("commit").await.doing(what)
}

/// Who reads from the old name reads from the new one.
async fn tell(node: &Reached, old: &str, new: &str) -> Result<()> {
    let now = node.node.reload(&node.client()).await?;
    if now.role == Role::Leaf {
        if now.provider == old {
            now.set_provider(&node.client(), new).await?;
        }
        return Ok(());
    }
    node.client()
        .execute(
            "select pgcascade.rename_provider($1, $2, $3)",
            &[&now.queue, &old, &new],
        )
        .await
        .doing(|| format!("tell {} the new name of node \"{old}\"", now.title()))?;
    Ok(())
}
