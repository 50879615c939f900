//! `consumer node pause`, `resume` and `change-provider`: what a node's replay is asked to do.
//!
//! Replay reads its node's state at every batch and says when it has seen a change; that is waited for. When no replay of
//! the node runs, nothing can be on its way: whoever holds the worker's lock, which replay takes first, may speak for it.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::epoch;
use super::tree::{self, Reached};
use crate::backoff::Looks;
use crate::cascade::{self, Node, Role, ask};
use crate::cli::{ChangeProviderArgs, WaitingArgs};
use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;
use crate::replay::{LOCK_PATIENCE, Who, duty, holder};

/// How often a node is asked whether its replay has seen a change.
const POLL: Duration = Duration::from_millis(50);

/// `pause`, `resume`
pub(super) async fn pause(args: WaitingArgs, paused: bool) -> Result<()> {
    let entry = tree::entry(&args.cascade).await?;
    let other = tree::other(&entry, &args.name).await?;
    let at = other.as_ref().unwrap_or(&entry);
    at.node.set_paused(&at.client(), paused).await?;
    failpoint("node_paused");
    seen(at, Duration::from_secs(args.timeout)).await?;
    tracing::info!(
        node = at.node.name,
        queue = at.node.queue,
        "{}",
        if paused { "paused" } else { "resumed" }
    );
    Ok(())
}

/// Waits until the node's replay has seen the last change, or none runs. Returns whether one runs.
pub(crate) async fn seen(at: &Reached, timeout: Duration) -> Result<bool> {
    let deadline = Instant::now() + timeout;
    loop {
        let now = at.node.reload(&at.client()).await?;
        if now.uptodate {
            return Ok(true);
        }
        if try_lock(at).await? {
            let outcome = now.set_uptodate(&at.client()).await;
            unlock(at).await?;
            return outcome.map(|()| false);
        }
        if Instant::now() >= deadline {
            return Err(Error::failure(format!(
                "the replay of {} did not answer within {} seconds",
                at.node.title(),
                timeout.as_secs()
            ))
            .hint("The change stays asked for; consumer status shows what that replay does. Type the command again to wait longer."));
        }
        sleep(POLL).await;
    }
}

/// Takes the lock that the node's replay holds while it runs.
async fn try_lock(at: &Reached) -> Result<bool> {
    let row = at
        .client()
        .query_one("select pg_catalog.pg_try_advisory_lock($1)", &[&key(&at.node)])
        .await
        .doing(|| format!("see whether {} is being replayed", at.node.title()))?;
    Ok(row.get(0))
}

/// The same, and keeps it. Who ended a moment ago, be it a replay or this command, may have left a session that has not noticed yet.
pub(super) async fn lock_soon(at: &Reached) -> Result<bool> {
    let mut looks = Looks::new(LOCK_PATIENCE, POLL);
    while !try_lock(at).await? {
        if !looks.again().await {
            return Ok(false);
        }
        failpoint("lock_awaited");
    }
    Ok(true)
}

/// How long who only looks waits for a replay: one that begins anew, with other tables or another provider, has no session for a moment.
pub(crate) const BEGINS_ANEW: Duration = Duration::from_secs(1);

/// Whether a replay of the node runs, perhaps one that is about to start. Looks without taking the lock, which would keep that one out.
pub(crate) async fn is_replayed(at: &Reached, patience: Duration) -> Result<bool> {
    let mut looks = Looks::new(patience, POLL);
    loop {
        let holder = holder(&at.client(), key(&at.node))
            .await
            .doing(|| format!("see whether {} is being replayed", at.node.title()))?;
        if holder.is_some() {
            return Ok(true);
        }
        if !looks.again().await {
            return Ok(false);
        }
        failpoint("replay_awaited");
    }
}

async fn unlock(at: &Reached) -> Result<()> {
    at.client()
        .execute("select pg_catalog.pg_advisory_unlock($1)", &[&key(&at.node)])
        .await
        .doing(|| format!("let {} be replayed", at.node.title()))?;
    Ok(())
}

fn key(node: &Node) -> i64 {
    Who {
        consumer: node.worker.clone(),
        queue: node.queue.clone(),
    }
    .lock_key()
}

/// `change-provider`
///
/// 1. The new provider is asked to keep what comes after the node's tick, which also shows that it has it.
/// 2. The node's provider is changed: one write, which replay sees before its next batch; it then takes its place at the new
///    provider itself, wherever it has got to.
///    If it has not heard of a change of root, it learns of that in the same write, and before, the root and it of each other.
/// 3. When it has seen that, nobody reads for the node anywhere else, and the other nodes forget it as a subscriber.
pub(super) async fn provider(args: ChangeProviderArgs) -> Result<()> {
    let entry = tree::entry(&args.cascade).await?;
    let other = tree::other(&entry, &args.name).await?;
    let at = other.as_ref().unwrap_or(&entry);
    if at.node.role == Role::Root {
        return Err(
            Error::usage(format!("{} is the root, and reads from nobody", at.node.title()))
                .hint("Another node becomes the root with consumer takeover."),
        );
    }
    let mut known = tree::find(at, &args.provider).await;
    let stranger = known.is_err() && other.is_some();
    if stranger {
        known = tree::find(&entry, &args.provider).await;
    }
    let known = known?;
    if known.name == at.node.name {
        return Err(Error::usage(format!("{} cannot read from itself", at.node.title())));
    }
    let new = tree::reach_known(&known, &at.node.queue).await?;
    if new.node.role == Role::Leaf {
        return Err(Error::usage(format!(
            "{} is a leaf, which has no queue to read from",
            new.node.title()
        )));
    }
    check_not_below(at, &new).await?;
    let unheard = epoch::unheard(at, &new).await?;
    if at.node.provider != new.node.name || unheard.is_some() {
        check_copies(at).await?;
        let after = Node {
            provider: new.node.name.clone(),
            ..at.node.reload(&at.client()).await?
        };
        wait_for_tick(&new, after.tick, Duration::from_secs(args.timeout)).await?;
        if unheard.is_some() || stranger {
            introduce(at, &new).await?;
        }
        duty::subscribe(&new.client(), &at.client(), &after, after.tick).await?;
        failpoint("node_subscribed");
        match unheard {
            Some(epoch) => epoch::follow(at, &epoch, &new.node.name).await?,
            None => at.node.set_provider(&at.client(), &new.node.name).await?,
        }
        failpoint("node_changed");
    }
    seen(at, Duration::from_secs(args.timeout)).await?;
    failpoint("node_seen");
    leave_others(at, &new.node.name).await?;
    tracing::info!(
        node = at.node.name,
        queue = at.node.queue,
        provider = new.node.name,
        "provider changed"
    );
    Ok(())
}

/// The node and the others may never have heard of each other, or of what became of some of them: it is told by its new provider, they
/// are told by the root.
async fn introduce(at: &Reached, new: &Reached) -> Result<()> {
    let known = tree::known(new).await?;
    let root = tree::root(new).await?;
    tree::tell_all(at, root.as_ref().unwrap_or(new)).await?;
    failpoint("node_known");
    for known in known.iter().filter(|known| known.name != at.node.name) {
        known.tell(&at.client(), &at.node).await?;
    }
    Ok(())
}

/// A node that reads from one that reads from it would read nothing ever again.
async fn check_not_below(at: &Reached, new: &Reached) -> Result<()> {
    let mut above = None::<Reached>;
    for _ in 0..64 {
        let here = above.as_ref().unwrap_or(new);
        if here.node.role == Role::Root {
            return Ok(());
        }
        if here.node.provider == at.node.name {
            break;
        }
        above = Some(tree::reach_known(&tree::find(here, &here.node.provider).await?, &here.node.queue).await?);
    }
    Err(Error::usage(format!(
        "{} cannot read from \"{}\", which is below it",
        at.node.title(),
        new.node.name
    ))
    .hint("Have that one read from another node first."))
}

/// Copies would start over from the new provider (duty/place.rs). Where the present one still answers, that is a pity.
async fn check_copies(at: &Reached) -> Result<()> {
    let names = cascade::in_copy(&at.client(), &at.node).await?;
    if names.is_empty() {
        return Ok(());
    }
    let present = async { tree::reach_known(&tree::find(at, &at.node.provider).await?, &at.node.queue).await };
    if let Err(error) = present.await {
        tracing::warn!(
            tables = names.join(", "),
            "{error}; tables that are being copied from it are copied anew"
        );
        return Ok(());
    }
    Err(Error::failure(format!(
        "{} is copying tables from its provider, and can be given another one when that is done: {}",
        at.node.title(),
        names.join(", ")
    ))
    .hint("consumer status shows how far they are."))
}

/// A provider that is behind is one that will have the tick.
async fn wait_for_tick(new: &Reached, tick: i64, timeout: Duration) -> Result<()> {
    let deadline = Instant::now() + timeout;
    loop {
        let reached = new.node.reload(&new.client()).await?.tick;
        if reached >= tick {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::failure(format!(
                "{} is at tick {reached}, and did not reach tick {tick} within {} seconds",
                new.node.title(),
                timeout.as_secs()
            ))
            .hint("Nothing was changed. Is its replay running?"));
        }
        sleep(POLL).await;
    }
}

/// Wherever the node is a subscriber and should not be, it is one no more. A node that cannot be reached is left as it is.
pub(crate) async fn leave_others(at: &Reached, provider: &str) -> Result<()> {
    for known in tree::known(at).await? {
        if known.name == provider || known.name == at.node.name || known.dead {
            continue;
        }
        let left = async {
            let other = tree::reach_known(&known, &at.node.queue).await?;
            if other.node.role != Role::Leaf {
                let call = "pgq_node.unregister_subscriber($1, $2)";
                ask(
                    &other.client(),
                    &at.node.title(),
                    call,
                    &[&at.node.queue, &at.node.name],
                )
                .await?;
            }
            Ok::<(), Error>(())
        };
        if let Err(error) = left.await {
            tracing::warn!(
                "{error}; if {} was a subscriber there, that node keeps events for it: type the command again when it is back",
                at.node.title()
            );
        }
    }
    Ok(())
}
