//! `consumer node rejoin`: a root that was given up (`consumer takeover --dead`) is there again and becomes a branch.
//!
//! 1. It is closed for writers; what it has after the fork, the last tick that it shares with the others, is saved in
//!    `pgcascade.lost_event` there (sql/takeover_return.sql), and written to a file (lost_file.rs).
//!    Nodes that read from it before and read from elsewhere now are its subscribers no more.
//! 2. Its provider keeps what comes after the fork for it.
//! 3. In one transaction on it: what was saved goes out of its queue, it is a branch that stands at the fork, the tables that
//!    lost events are of are to be copied again (replay/returned.rs). Its replay does the rest.
//! 4. The others learn that it is back.
//!
//! Killed anywhere, the same command goes on: what is done says the node itself, 1 is done again from the beginning, 2 and 4 may be
//! repeated, and 3 is there wholly or not at all. What only it has is deleted in 3, after the file was read back.

mod lost_file;

use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::Row;

use super::gravestone;
use super::tree::{self, Reached};
use crate::cascade::{self, Node, Role, ask, newer_epochs};
use crate::cli::RejoinArgs;
use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;
use crate::replay::{duty, returned};

/// How long another node is given to answer.
const PROBE: Duration = Duration::from_secs(10);

/// A return as the node knows it.
struct Return {
    op: String,
    fork: i64,
    lost: i64,
    sha256: Option<String>,
}

/// `rejoin`
pub(super) async fn run(args: RejoinArgs) -> Result<()> {
    let entry = tree::entry(&args.cascade).await?;
    let other = tree::other(&entry, &args.name).await.map_err(|error| {
        error.hint("If the others have forgotten it (consumer node drop --dead): name its own database in --db.")
    })?;
    let old = other.as_ref().unwrap_or(&entry);
    if old.node.role == Role::Leaf {
        return Err(Error::failure(format!(
            "{} is a leaf, and was never the root",
            old.node.title()
        )));
    }
    let root = root_without(&entry, old).await?;
    let named = match &args.provider {
        Some(name) if *name != root.node.name => {
            Some(tree::reach_known(&tree::find(&root, name).await?, &root.node.queue).await?)
        }
        _ => None,
    };
    let provider = named.as_ref().unwrap_or(&root);
    if provider.node.role == Role::Leaf || provider.node.name == old.node.name {
        return Err(Error::usage(format!(
            "{} cannot be the provider of {}",
            provider.node.title(),
            old.node.title()
        ))
        .hint("Name the root or a branch, or leave --provider out."));
    }
    returned::prepare(&old.client(), &old.node).await?;
    let found = match old.node.role {
        Role::Root => become_branch(old, &root, provider, &args).await?,
        _ => {
            let found = joined(old).await?.ok_or_else(|| {
                Error::failure(format!(
                    "{} is a branch, and not a root that was given up",
                    old.node.title()
                ))
                .hint("consumer status shows the cascade.")
            })?;
            leave_behind(old).await?;
            found
        }
    };
    tree::tell_all(old, &root).await?;
    failpoint("rejoin_told");
    gravestone::remove_everywhere(&root, &old.node.name).await?;
    tracing::info!(
        node = old.node.name,
        queue = old.node.queue,
        tick = found.fork,
        lost_events = found.lost,
        sha256 = found.sha256,
        "it is a branch; its replay does the rest"
    );
    Ok(())
}

/// The root that the cascade has without that node: of those that are found the one of the newest epoch.
async fn root_without(entry: &Reached, old: &Reached) -> Result<Reached> {
    let mut newest = None::<(i64, bool, Reached)>;
    for known in tree::known(entry).await? {
        if known.name == old.node.name || known.dead {
            continue;
        }
        let look = async {
            let other = tree::reach_known(&known, &old.node.queue).await?;
            let root = tree::root(&other).await?.unwrap_or(other);
            let row = root
                .client()
                .query_one(
                    "select epoch, open from pgcascade.node_state where queue_name = $1",
                    &[&old.node.queue],
                )
                .await
                .doing(|| format!("look at {}", root.node.title()))?;
            Ok::<_, Error>((row.get::<_, i64>(0), row.get::<_, bool>(1), root))
        };
        match timeout(PROBE, look).await {
            Ok(Ok(found)) if found.2.node.name == old.node.name => {}
            Ok(Ok(found)) if newest.as_ref().is_none_or(|newest| newest.0 < found.0) => newest = Some(found),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!("{error}"),
            Err(_) => tracing::debug!(node = known.name, "no answer"),
        }
    }
    match newest {
        Some((_, true, root)) => Ok(root),
        Some((_, false, root)) => Err(Error::failure(format!(
            "{} is the root, and is not open yet",
            root.node.title()
        ))
        .hint("Finish its takeover first: consumer takeover --resume.")),
        None => Err(Error::failure(format!(
            "no node of queue \"{}\" that answers has another root than \"{}\"",
            old.node.queue, old.node.name
        ))
        .hint("Start the others; or, if none has become the root: consumer takeover NEW --dead OLD.")),
    }
}

/// The last return of this node that was completed.
async fn joined(old: &Reached) -> Result<Option<Return>> {
    let row = old
        .client()
        .query_opt(
            "select op_id::text, fork_tick, lost_events, sha256 from pgcascade.root_return
              where queue_name = $1 and step = 'joined' order by updated_at desc limit 1",
            &[&old.node.queue],
        )
        .await
        .doing(|| format!("read whether {} has returned", old.node.title()))?;
    Ok(row.map(|row| Return {
        op: row.get(0),
        fork: row.get(1),
        lost: row.get(2),
        sha256: row.get(3),
    }))
}

/// From a root that was given up to a branch.
async fn become_branch(old: &Reached, root: &Reached, provider: &Reached, args: &RejoinArgs) -> Result<Return> {
    let (client, queue) = (&old.client(), &old.node.queue);
    let history = newer_epochs(&root.client(), queue, 0).await?.ok_or_else(|| {
        Error::failure(format!("the cascade of {} has no other root", old.node.title()))
            .hint("No takeover has declared it dead: it is the root.")
    })?;
    // Everything is looked at before it is closed.
    check_handed_over(old, root).await?;
    let row = client
        .query_one(
            "select fork_tick from pgcascade.return_fork($1, $2::text::jsonb)",
            &[queue, &history],
        )
        .await
        .doing(|| format!("find where {} and the cascade parted", old.node.title()))?;
    let at_fork = at_fork(old, provider, row.get(0)).await?;
    failpoint("rejoin_found");
    let wait = i32::try_from(args.fence_timeout).unwrap_or(i32::MAX);
    let row = client
        .query_one(
            "select op_id::text, fork_tick, lost_events from pgcascade.return_close($1, $2::text::jsonb, $3)",
            &[queue, &history, &wait],
        )
        .await
        .doing(|| format!("close {}, and save what only it has", old.node.title()))?;
    let mut found = Return {
        op: row.get(0),
        fork: row.get(1),
        lost: row.get(2),
        sha256: None,
    };
    failpoint("rejoin_closed");
    found.sha256 = save(old, &found, args.lost_events.as_deref()).await?;
    // Also if it is to be made anew, which needs that nobody reads from it.
    leave_behind(old).await?;
    let files = returned::executed(client, &old.node, &found.op).await?;
    if !files.is_empty() {
        return Err(Error::failure(format!(
            "files were executed on {} after tick {}, and what they did cannot be taken back: {}",
            old.node.title(),
            found.fork,
            files.join(", ")
        ))
        .hint("It is closed, and its lost events are saved. Make it anew: consumer node drop, create-branch."));
    }
    let at_fork = at_fork.ok_or_else(|| {
        Error::failure(format!(
            "{} does not have tick {} any more, from which {} would have to go on",
            provider.node.title(),
            found.fork,
            old.node.title()
        ))
        .hint("It is closed, and its lost events are saved. Name another node in --provider, which has the tick; if none has, make this one anew: consumer node drop, create-branch.")
    })?;
    duty::subscribe(&provider.client(), client, &at_fork, found.fork).await?;
    failpoint("rejoin_subscribed");
    join(old, provider, &found, &history).await?;
    failpoint("rejoin_joined");
    Ok(found)
}

/// Refuses while the takeover that it handed over to has still to make it a branch.
async fn check_handed_over(old: &Reached, root: &Reached) -> Result<()> {
    let what = || format!("see whether the takeover from {} is over", old.node.title());
    let promised: Option<String> = old
        .client()
        .query_one(
            "select promised_op::text from pgcascade.node_state where queue_name = $1",
            &[&old.node.queue],
        )
        .await
        .doing(what)?
        .get(0);
    let live = root
        .client()
        .query_opt(
            "select step from pgcascade.takeover where op_id = $1::text::uuid and step not in ('done', 'aborted')",
            &[&promised],
        )
        .await
        .doing(what)?;
    match live {
        None => Ok(()),
        Some(row) => Err(Error::failure(format!(
            "{} is promised to takeover {}, which is {}",
            old.node.title(),
            promised.unwrap_or_default(),
            row.get::<_, &str>(0)
        ))
        .hint(format!(
            "Finish that one, which makes it a branch: consumer takeover {} --resume.",
            root.node.name
        ))),
    }
}

/// The node as it will be at the fork, which its provider must have as it has. None: that one does not have it any more.
async fn at_fork(old: &Reached, provider: &Reached, fork: i64) -> Result<Option<Node>> {
    const TICK: &str =
        "select t.tick_time::text, t.tick_event_seq from pgq.tick t join pgq.queue q on q.queue_id = t.tick_queue
                         where q.queue_name = $1 and t.tick_id = $2";
    let mut ticks = Vec::new();
    for node in [old, provider] {
        let row: Option<Row> = node
            .client()
            .query_opt(TICK, &[&old.node.queue, &fork])
            .await
            .doing(|| format!("look for tick {fork} of {}", node.node.title()))?;
        ticks.push(row.map(|row| (row.get::<_, String>(0), row.get::<_, i64>(1))));
    }
    let [Some(here), Some(there)] = ticks.as_slice() else {
        return Ok(None);
    };
    if here != there {
        return Err(Error::failure(format!(
            "tick {fork} of {} is another one than that of {}",
            old.node.title(),
            provider.node.title()
        ))
        .hint("One of them was restored, or is of another cascade. Make this one anew: consumer node drop, create-branch."));
    }
    Ok(Some(Node {
        role: Role::Branch,
        provider: provider.node.name.clone(),
        tick: fork,
        tick_time: Some(here.0.clone()),
        ..old.node.clone()
    }))
}

/// Writes the file, if there is anything to write. Returns its hash.
async fn save(old: &Reached, found: &Return, file: Option<&Path>) -> Result<Option<String>> {
    match file {
        _ if found.lost == 0 => Ok(None),
        Some(file) => lost_file::write(old, found, file).await.map(Some),
        None => Err(Error::usage(format!(
            "{} has {} events after tick {} that no other node has",
            old.node.title(),
            found.lost,
            found.fork
        ))
        .hint(
            "Say which file they are to be written to: --lost-events FILE. The node is closed for writers, and nothing was removed.",
        )),
    }
}

/// The one transaction.
async fn join(old: &Reached, provider: &Reached, found: &Return, history: &str) -> Result<()> {
    let (client, node) = (&old.client(), &old.node);
    let what = || format!("make {} a branch of \"{}\"", node.title(), provider.node.name);
    let known = tree::known(provider).await?;
    let nodes: Vec<serde_json::Value> = known
        .iter()
        .map(|known| serde_json::json!({ "node": known.name, "location": known.location, "dead": known.dead }))
        .collect();
    let nodes = serde_json::Value::from(nodes).to_string();
    client.batch_execute("begin").await.doing(what)?;
    let row = client
        .query_one(
            "select pgcascade.return_join($1, $2::text::uuid, $3::text::jsonb, $4, $5, $6, $7::text::jsonb)",
            &[
                &node.queue,
                &found.op,
                &history,
                &found.lost,
                &found.sha256,
                &provider.node.name,
                &nodes,
            ],
        )
        .await
        .doing(what)?;
    let below: Vec<String> = row.get::<_, Option<Vec<String>>>(0).unwrap_or_default();
    for known in &known {
        cascade::tell_admin_location(client, &node.queue, &known.name, known.admin_location.as_deref()).await?;
    }
    let copied = returned::join(client, node, found.fork, &found.op).await?;
    failpoint("rejoin_joining");
    client.batch_execute("commit").await.doing(what)?;
    for table in copied {
        tracing::info!(table, "it has lost changes, and is to be copied again");
    }
    for node in below {
        tracing::warn!(
            node,
            "this node has applied lost events: make it anew (consumer node drop, then create it)"
        );
    }
    Ok(())
}

/// Nodes that read from here while it was the root, and read from elsewhere now, are subscribers no more.
async fn leave_behind(old: &Reached) -> Result<()> {
    let rows = old
        .client()
        .query(
            "select subscriber_node from pgq_node.subscriber_info where queue_name = $1 order by 1",
            &[&old.node.queue],
        )
        .await
        .doing(|| format!("read who reads from {}", old.node.title()))?;
    for row in rows {
        let name: String = row.get(0);
        let reads_here = async {
            let other = tree::reach_known(&tree::find(old, &name).await?, &old.node.queue).await?;
            Ok::<_, Error>(other.node.provider == old.node.name)
        };
        match timeout(PROBE, reads_here).await {
            Ok(Ok(false)) => {
                let call = "pgq_node.unregister_subscriber($1, $2)";
                ask(&old.client(), &old.node.title(), call, &[&old.node.queue, &name]).await?;
                failpoint("rejoin_left");
            }
            Ok(Ok(true)) => {}
            _ => tracing::warn!(
                node = name,
                "it cannot be reached and was a subscriber here, so events are kept for it: type the command again when it is back, or drop it"
            ),
        }
    }
    Ok(())
}
