//! The steps of a planned takeover: the old root is there and hands over.
//!
//! Each may be taken again after it was taken, wherever the command was killed: what a node did is known to the node.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::Row;

use super::journal::Op;
use super::preflight;
use super::sequences;
use super::step::Step;
use crate::cascade::{Node, Role, ask, newer_epochs};
use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;
use crate::node::change::{leave_others, seen};
use crate::node::epoch::{self, Epoch};
use crate::node::tree::{self, Reached};
use crate::replay::duty;

/// How often the new root is asked whether it has the closing tick. Nobody can write meanwhile.
pub(super) const POLL: Duration = Duration::from_millis(5);

/// A new root that has what the old one had this long ago is near enough for writers to be stopped.
const NEAR: Duration = Duration::from_millis(100);

/// What the operator allows.
pub(super) struct Limits {
    /// How long what is waited for may take.
    pub(super) wait: Duration,
    pub(super) fence_ms: i32,
    /// Tables that the new root need not have.
    pub(super) ignored: Vec<String>,
}

/// The old root, connected to: nobody can write while a step would connect anew.
pub(super) type OldRoot = Option<Reached>;

/// Takes one step.
pub(super) async fn step(new: &Reached, op: &mut Op, step: Step, limits: &Limits, old: &mut OldRoot) -> Result<()> {
    match step {
        Step::Fenced => fence(new, op, limits, old).await,
        Step::Drained => drain(new, op, limits, old).await,
        Step::Promoted => promote(new, op, limits, old).await,
        Step::Opened => open(new, op, old).await,
        Step::Demoted => demote(new, op, limits).await,
        Step::Repointed => repoint(new, op, limits).await,
        Step::Done => op.advance(new, Step::Done).await,
        Step::Prepared | Step::Promised | Step::Elected | Step::CaughtUp => Err(Error::failure(format!(
            "a planned takeover has no step {}",
            step.word()
        ))),
    }
}

async fn old_root<'a>(new: &Reached, op: &Op, old: &'a mut OldRoot) -> Result<&'a Reached> {
    let there = match old.take().filter(|old| !old.client().is_closed()) {
        Some(there) => there,
        None => tree::reach_known(&tree::find(new, &op.old).await?, &op.queue).await?,
    };
    Ok(old.insert(there))
}

/// The same once there is no way back.
async fn handed_over<'a>(new: &Reached, op: &Op, old: &'a mut OldRoot) -> Result<&'a Reached> {
    old_root(new, op, old).await.map_err(|error| {
        error.hint(format!(
            "Bring node \"{old}\" back, and type --resume. If it is gone for good, go on without it: consumer takeover {new} --resume --dead {old}.",
            old = op.old,
            new = new.node.name
        ))
    })
}

async fn fence(new: &Reached, op: &mut Op, limits: &Limits, old: &mut OldRoot) -> Result<()> {
    let old = old_root(new, op, old).await?;
    preflight::look_for_replays(new, old, limits.wait).await?;
    // What is there already is not to be waited for while nobody can write; nor what comes during that wait, as long as it gets less.
    let mut waited = limits.wait;
    loop {
        let begin = Instant::now();
        reach(new, old.node.reload(&old.client()).await?.tick, limits).await?;
        let before = std::mem::replace(&mut waited, begin.elapsed());
        if waited < NEAR || waited * 2 > before {
            break;
        }
    }
    preflight::look_again(new, old, limits).await?;
    preflight::look_for_replays(new, old, limits.wait).await?;
    failpoint("takeover_promising_old");
    old.client()
        .execute(
            "select pgcascade.promise_epoch($1, $2::text::uuid, $3, 'planned')",
            &[&op.queue, &op.id, &op.epoch],
        )
        .await
        .doing(|| format!("have {} promise epoch {}", old.node.title(), op.epoch))?;
    failpoint("takeover_promised_old");
    let row = old
        .client()
        .query_one(
            "select closing_tick from pgcascade.fence_root($1, $2::text::uuid, $3)",
            &[&op.queue, &op.id, &limits.fence_ms],
        )
        .await
        .doing(|| format!("close {}", old.node.title()))?;
    op.fork = Some(row.get(0));
    failpoint("takeover_fenced_old");
    op.advance(new, Step::Fenced).await
}

async fn drain(new: &Reached, op: &mut Op, limits: &Limits, old: &mut OldRoot) -> Result<()> {
    let old = old_root(new, op, old).await?;
    // At once, as nobody can write meanwhile. What came in the last moment may come to the new root with the closing tick, as partitions do.
    let (reached, looked) = tokio::join!(reach(new, op.fork()?, limits), preflight::look_again(new, old, limits));
    reached?;
    if looked.is_err() {
        preflight::look_again(new, old, limits).await?;
    }
    op.looked = true;
    op.advance(new, Step::Drained).await
}

/// Waits until the new root has applied a tick.
pub(super) async fn reach(new: &Reached, tick: i64, limits: &Limits) -> Result<()> {
    let deadline = Instant::now() + limits.wait;
    loop {
        let reached = new.node.reload(&new.client()).await?.tick;
        if reached >= tick {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(too_late(new, reached, tick, limits));
        }
        sleep(POLL).await;
    }
}

/// It was waited for in vain.
pub(super) fn too_late(at: &Reached, reached: i64, tick: i64, limits: &Limits) -> Error {
    Error::failure(format!(
        "{} is at tick {reached}, and did not reach tick {tick} within {} seconds",
        at.node.title(),
        limits.wait.as_secs()
    ))
    .hint("consumer status shows whether its replay runs, and why it is behind.")
}

async fn promote(new: &Reached, op: &Op, limits: &Limits, old: &mut OldRoot) -> Result<()> {
    let old = old_root(new, op, old).await?;
    if !op.looked {
        // Nobody may have gone on with it for days.
        preflight::look_again(new, old, limits).await?;
    }
    let (tick, event) = highest(old).await?;
    op.promote(new, tick, event).await.map(drop)
}

/// The highest ids of ticks and events that a node has given out or got.
pub(super) async fn highest(at: &Reached) -> Result<(i64, i64)> {
    let row = at
        .client()
        .query_one(
            "select pgq.seq_getval(queue_tick_seq), pgq.seq_getval(queue_event_seq) from pgq.queue where queue_name = $1",
            &[&at.node.queue],
        )
        .await
        .doing(|| format!("read the sequences of {}", at.node.title()))?;
    Ok((row.get(0), row.get(1)))
}

async fn open(new: &Reached, op: &Op, old: &mut OldRoot) -> Result<()> {
    let history = history(new, op).await?;
    let old = handed_over(new, op, old).await?;
    sequences::set(new, old).await?;
    failpoint("takeover_sequences_set");
    confirm(old, op, &history).await?;
    failpoint("takeover_confirmed_old");
    op.confirmed(new, &op.old).await?;
    op.open(new).await
}

/// The node knows the new epoch for good.
pub(super) async fn confirm(at: &Reached, op: &Op, history: &str) -> Result<()> {
    at.client()
        .execute(
            "select pgcascade.confirm_epoch($1, $2::text::uuid, $3::text::jsonb)",
            &[&op.queue, &op.id, &history],
        )
        .await
        .doing(|| format!("have {} confirm epoch {}", at.node.title(), op.epoch))?;
    Ok(())
}

/// The node owes an aborted takeover nothing any more.
pub(super) async fn release(at: &Reached, op: &Op) -> Result<()> {
    at.client()
        .execute(
            "select pgcascade.release_promise($1, $2::text::uuid)",
            &[&op.queue, &op.id],
        )
        .await
        .doing(|| format!("release {}", at.node.title()))?;
    Ok(())
}

/// Refuses to open the old root again where another one was made since, or is about to be.
pub(super) async fn check_only_root(new: &Reached, old: &Reached, op: &Op) -> Result<()> {
    let state = async |at: &Reached| {
        let row = at
            .client()
            .query_one(
                "select epoch, promised_op::text from pgcascade.node_state where queue_name = $1",
                &[&op.queue],
            )
            .await
            .doing(|| format!("look at {}", at.node.title()))?;
        Ok::<(i64, Option<String>), Error>((row.get(0), row.get(1)))
    };
    let ((ours, promised), (theirs, _)) = (state(new).await?, state(old).await?);
    let since = match promised {
        _ if ours > theirs => format!("\"{}\" knows another root, of epoch {ours}", new.node.name),
        Some(other) => format!("\"{}\" has a part in takeover {other}", new.node.name),
        None => return Ok(()),
    };
    Err(Error::failure(format!(
        "takeover {} is aborted, and {} is not opened again: {since}",
        op.id,
        old.node.title()
    ))
    .hint("consumer status shows which node is the root; docs/takeover.md says how the old one joins again."))
}

/// The old root has all the rows, so it goes on as a branch as it is: its replay finds that it was the root (duty.rs).
async fn demote(new: &Reached, op: &Op, limits: &Limits) -> Result<()> {
    let begun = begun(new, op).await?;
    // It has changed since it was closed.
    let mut anew = None;
    let old = handed_over(new, op, &mut anew).await?;
    if old.node.role == Role::Root {
        // From here on the new root keeps what comes after the fork for it, also if its replay does not run.
        subscribe(new, old, op.fork()?).await?;
        failpoint("takeover_subscribed_old");
        epoch::follow(old, &begun, &new.node.name).await?;
        failpoint("takeover_demoted_old");
    }
    // So that it can be the root again at once, whether its replay runs or not.
    duty::settle(&old.client(), &old.node.reload(&old.client()).await?).await?;
    failpoint("takeover_settled_old");
    // Not before its replay knows that it reads from nobody now.
    seen(new, limits.wait).await?;
    let call = "pgq_node.unregister_subscriber($1, $2)";
    ask(&old.client(), &old.node.title(), call, &[&op.queue, &new.node.name]).await?;
    op.advance(new, Step::Demoted).await
}

/// Has the new root keep for a node what comes after a tick.
async fn subscribe(new: &Reached, other: &Reached, tick: i64) -> Result<()> {
    let after = Node {
        provider: new.node.name.clone(),
        ..other.node.clone()
    };
    duty::subscribe(&new.client(), &other.client(), &after, tick).await
}

/// Who read from the old root reads from the new one; the others learn of the epoch. A node that cannot be reached is named,
/// and left as it is: it goes on behind the old root, which has everything, too.
async fn repoint(new: &Reached, op: &Op, limits: &Limits) -> Result<()> {
    let begun = begun(new, op).await?;
    let itself = tree::find(new, &new.node.name).await?;
    for known in tree::known(new).await? {
        if known.name == new.node.name || known.name == op.old || known.dead {
            continue;
        }
        let told = async {
            let other = tree::reach_known(&known, &op.queue).await?;
            // The new root may have been made so late that the other has not heard of it.
            itself.tell(&other.client(), &other.node).await?;
            tell(new, &other, &begun, &[&op.old], limits).await
        };
        if let Err(error) = told.await {
            tracing::warn!(
                node = known.name,
                "{error}; it reads from where it read before: consumer node change-provider {} --provider {} later",
                known.name,
                new.node.name
            );
        }
    }
    op.advance(new, Step::Repointed).await
}

/// Tells a node of the epoch, and has it read from the new root if it reads from one of `from`.
pub(super) async fn tell(new: &Reached, other: &Reached, epoch: &Epoch, from: &[&str], limits: &Limits) -> Result<()> {
    let mut provider = other.node.provider.as_str();
    let mut refused = Ok(());
    if from.contains(&provider) {
        refused = subscribe(new, other, other.node.tick).await;
        if refused.is_ok() {
            provider = &new.node.name;
        }
    }
    if let Err(error) = epoch::follow(other, epoch, provider).await {
        if provider != other.node.provider {
            forget(new, other).await;
        }
        return Err(error);
    }
    failpoint("takeover_told");
    // Also a node that was moved by the run before.
    if *provider == new.node.name {
        seen(other, limits.wait).await?;
        leave_others(other, provider).await?;
    }
    refused
}

/// Keeps nothing for a node that did not come, unless it came and could not say so.
async fn forget(new: &Reached, other: &Reached) {
    let forgotten = async {
        if other.node.reload(&other.client()).await?.provider != new.node.name {
            let call = "pgq_node.unregister_subscriber($1, $2)";
            ask(
                &new.client(),
                &new.node.title(),
                call,
                &[&new.node.queue, &other.node.name],
            )
            .await?;
        }
        Ok::<(), Error>(())
    };
    if let Err(error) = forgotten.await {
        tracing::warn!(
            "{error}; {} may keep events for \"{}\" until that reads from it, or is dropped",
            new.node.title(),
            other.node.name
        );
    }
}

/// The epoch that the takeover has begun.
pub(super) async fn begun(new: &Reached, op: &Op) -> Result<Epoch> {
    Ok(Epoch {
        op: op.id.clone(),
        number: op.epoch,
        history: history(new, op).await?,
    })
}

/// What the new root knows of epochs.
pub(super) async fn history(new: &Reached, op: &Op) -> Result<String> {
    newer_epochs(&new.client(), &op.queue, 0)
        .await?
        .ok_or_else(|| Error::failure(format!("{} does not know epoch {}", new.node.title(), op.epoch)))
}

/// What of a table is captured.
pub(super) struct Captured {
    /// Bits of `pg_trigger.tgtype`.
    pub(super) events: i32,
    /// It is a partition, and captured as part of this table.
    pub(super) part_of: Option<(String, String)>,
}

/// The tables that are captured on a node, by schema and name.
pub(super) async fn captured(at: &Reached) -> Result<BTreeMap<(String, String), Captured>> {
    let rows = at
        .client()
        .query(include_str!("captured.sql"), &[&at.node.queue])
        .await
        .doing(|| format!("list the tables that {} captures", at.node.title()))?;
    let captured = |row: &Row| Captured {
        events: row.get(2),
        part_of: row.get::<_, Option<_>>(3).zip(row.get(4)),
    };
    Ok(rows
        .iter()
        .map(|row| ((row.get(0), row.get(1)), captured(row)))
        .collect())
}
