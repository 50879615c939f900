//! The steps of a takeover from a root that is gone for good.
//!
//! What the survivors have is all there is: each promises to take no more ticks, so that nothing that only the old root still
//! gives out can come after they said how far they are. The new root fetches what the furthest of them has, and opens when
//! another node has confirmed that it follows. As in planned.rs, each step may be taken again after it was taken.

use futures_util::future;
use tokio::time::{Instant, sleep};

use super::journal::Op;
use super::leaves;
use super::planned::{self, Limits};
use super::step::Step;
use crate::cascade::{Node, Role, ask, leaf, newer_epochs, set_location};
use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;
use crate::node::change::{leave_others, seen};
use crate::node::gravestone;
use crate::node::tree::{self, Known, Reached};
use crate::replay::{donated, duty};

/// Takes one step.
pub(super) async fn step(new: &Reached, op: &mut Op, step: Step, limits: &Limits) -> Result<()> {
    match step {
        Step::Promised => promise(new, op).await,
        Step::Elected => elect(new, op).await,
        Step::CaughtUp => catch_up(new, op, limits).await,
        Step::Promoted => promote(new, op).await,
        Step::Repointed => repoint(new, op, limits).await,
        Step::Opened => open(new, op, limits).await,
        Step::Done => {
            // From here on everybody knows: the root's events tell.
            let call = "pgq_node.register_location($1, $2, null, true)";
            ask(&new.client(), &new.node.title(), call, &[&op.queue, &op.old]).await?;
            op.advance(new, Step::Done).await
        }
        Step::Prepared | Step::Fenced | Step::Drained | Step::Demoted => Err(Error::failure(format!(
            "a takeover from a dead root has no step {}",
            step.word()
        ))),
    }
}

/// The other nodes that are not given up.
pub(super) fn survivors(known: Vec<Known>, new: &Reached, old: &str) -> Vec<Known> {
    let others = known.into_iter();
    others
        .filter(|known| known.name != new.node.name && known.name != old && !known.dead)
        .collect()
}

/// Connects to the other branches that are left. All of them count: one that is left out might have what no other has.
pub(super) async fn branches(new: &Reached, op: &Op) -> Result<Vec<Reached>> {
    let mut branches = Vec::new();
    for known in survivors(tree::known(new).await?, new, &op.old) {
        let other = tree::reach_known(&known, &op.queue).await?;
        if other.node.role != Role::Leaf {
            branches.push(other);
        }
    }
    Ok(branches)
}

/// Promises the epoch, and returns the epoch and the tick that the node is in; it will have no other.
pub(super) async fn promised(at: &Reached, op: &Op) -> Result<(i64, i64)> {
    let row = at
        .client()
        .query_one(
            "select in_epoch, last_tick from pgcascade.promise_epoch($1, $2::text::uuid, $3, 'dead')",
            &[&op.queue, &op.id, &op.epoch],
        )
        .await
        .doing(|| format!("have {} promise epoch {}", at.node.title(), op.epoch))?;
    Ok((row.get(0), row.get(1)))
}

pub(super) async fn promise(new: &Reached, op: &Op) -> Result<()> {
    for other in branches(new, op).await? {
        promised(&other, op).await?;
        failpoint("takeover_promised_one");
    }
    leaves::promise(new, op).await?;
    op.advance(new, Step::Promised).await
}

async fn elect(new: &Reached, op: &mut Op) -> Result<()> {
    let mut furthest = (promised(new, op).await?, new.node.name.clone());
    for other in branches(new, op).await? {
        let there = promised(&other, op).await?;
        if there > furthest.0 {
            furthest = (there, other.node.name);
        }
    }
    let ((_, mut tick), mut donor) = furthest;
    if let Some(ahead) = leaves::ahead(new, op, tick).await? {
        (donor, tick) = ahead;
    }
    (op.fork, op.donor) = (Some(tick), Some(donor));
    op.advance(new, Step::Elected).await
}

async fn catch_up(new: &Reached, op: &Op, limits: &Limits) -> Result<()> {
    let (fork, donor) = (op.fork()?, op.donor()?);
    let now = new.node.reload(&new.client()).await?;
    if donor != new.node.name && now.tick < fork {
        let from = tree::reach_known(&tree::find(new, donor).await?, &op.queue).await?;
        let after = Node {
            provider: donor.to_owned(),
            ..now.clone()
        };
        let epochs = if from.node.role == Role::Leaf {
            leaves::check_journal(&from, &now).await?;
            donated::check_tables(&new.client(), &after).await?;
            leaves::epochs(new, op).await?
        } else {
            if now.provider != donor {
                duty::subscribe(&from.client(), &new.client(), &after, now.tick).await?;
                failpoint("takeover_subscribed_new");
            }
            newer_epochs(&from.client(), &op.queue, 0).await?
        };
        op.fetch(new, donor, &epochs).await?;
        failpoint("takeover_fetching");
        planned::reach(new, fork, limits).await?;
        failpoint("takeover_fetched");
    }
    leaves::settle(new, op).await?;
    op.advance(new, Step::CaughtUp).await
}

pub(super) async fn promote(new: &Reached, op: &Op) -> Result<()> {
    let (mut tick, mut event) = (0, 0);
    for other in branches(new, op).await? {
        let (there_tick, there_event) = planned::highest(&other).await?;
        (tick, event) = (there_tick.max(tick), there_event.max(event));
    }
    op.promote(new, tick, event).await.map(drop)
}

/// Who read from the old root, or from a node that was given up with it, reads from the new one.
async fn repoint(new: &Reached, op: &Op, limits: &Limits) -> Result<()> {
    // So that it can come back.
    if let Err(error) = gravestone::set(new, &op.old, op.fork()?).await {
        tracing::warn!("{error}; if \"{}\" comes back, it has to be made anew", op.old);
    }
    failpoint("takeover_gravestone");
    // The new root may have been made so late that others have not heard of it.
    let itself = tree::find(new, &new.node.name).await?;
    let introduce = async |other: &Reached| itself.tell(&other.client(), &other.node).await;
    repoint_survivors(new, op, limits, &op.old, introduce).await
}

/// Every survivor learns who is gone and, by `introduce`, where the new root is. Who read from `old`, or from one who is gone, reads from
/// the new root.
pub(super) async fn repoint_survivors(
    new: &Reached,
    op: &Op,
    limits: &Limits,
    old: &str,
    introduce: impl AsyncFn(&Reached) -> Result<()>,
) -> Result<()> {
    let known = tree::known(new).await?;
    let gone: Vec<&Known> = known
        .iter()
        .filter(|known| known.name != new.node.name && (known.dead || known.name == old))
        .collect();
    let from: Vec<&str> = gone.iter().map(|node| node.name.as_str()).chain([old]).collect();
    let begun = planned::begun(new, op).await?;
    for other in survivors(known.clone(), new, &op.old) {
        let told = async {
            let other = tree::reach_known(&other, &op.queue).await?;
            for node in &gone {
                set_location(&other.client(), &other.node, &node.name, &node.location, true).await?;
            }
            introduce(&other).await?;
            planned::tell(new, &other, &begun, &from, limits).await
        };
        if let Err(error) = told.await {
            tracing::warn!(
                node = other.name,
                "{error}; see to it with consumer node change-provider, or drop it"
            );
        }
    }
    // Not before its replay knows that it reads from nobody now.
    seen(new, limits.wait).await?;
    leave_others(new, &new.node.name).await?;
    op.advance(new, Step::Repointed).await
}

/// A branch that has all ticks before the new epoch, and will never go back, lets the new root open. The first that there is: nobody
/// can write meanwhile, so who is away or behind is not waited for while another one is not.
pub(super) async fn open(new: &Reached, op: &Op, limits: &Limits) -> Result<()> {
    let history = planned::history(new, op).await?;
    let known = survivors(tree::known(new).await?, new, &op.old);
    let (mut waiting, mut failures) = (Vec::new(), Vec::new());
    for reached in future::join_all(known.iter().map(|known| tree::reach_known(known, &op.queue))).await {
        match reached {
            Ok(leaf) if leaf.node.role == Role::Leaf => {}
            Ok(branch) => waiting.push(branch),
            Err(error) => failures.push(error),
        }
    }
    let deadline = Instant::now() + limits.wait;
    while !waiting.is_empty() {
        let mut behind = Vec::new();
        for other in waiting {
            match confirmed_by(new, op, &other, &history).await {
                Ok(None) => {
                    failpoint("takeover_confirmed");
                    return op.open(new).await;
                }
                Ok(Some(tick)) if Instant::now() >= deadline => {
                    failures.push(planned::too_late(&other, tick, op.fork()?, limits));
                }
                Ok(Some(_)) => behind.push(other),
                Err(error) => failures.push(error),
            }
        }
        waiting = behind;
        sleep(planned::POLL).await;
    }
    for failure in failures {
        tracing::warn!("{failure}");
    }
    // Refuses, unless the operator has said how the old root was made sure to be off, and there is nobody to ask.
    op.open(new).await
}

/// The branch confirms the epoch, or says which tick it is at if that is before the fork.
async fn confirmed_by(new: &Reached, op: &Op, other: &Reached, history: &str) -> Result<Option<i64>> {
    let tick = other.node.reload(&other.client()).await?.tick;
    if tick < op.fork()? {
        return Ok(Some(tick));
    }
    planned::confirm(other, op, history).await?;
    failpoint("takeover_confirmed_one");
    op.confirmed(new, &other.node.name).await.map(|()| None)
}

/// The other nodes owe an aborted takeover nothing any more. Returns those that could not be told: they take no ticks until they are, by
/// the same command or by what their own replay asks when it runs (replay/epochs.rs). They stand in nobody's way: what is aborted
/// cannot promote, so it does not matter when, or in which order, its promises end.
pub(super) async fn release(new: &Reached, op: &Op) -> Result<Vec<String>> {
    let provider = new.node.reload(&new.client()).await?.provider;
    let mut left = Vec::new();
    let survivors = survivors(tree::known(new).await?, new, &op.old);
    // Who was lost has promised nothing.
    for known in survivors.into_iter().filter(|known| !op.lost.contains(&known.name)) {
        match release_one(new, op, &known, &provider).await {
            Ok(()) => failpoint("takeover_released_one"),
            Err(error) => {
                tracing::warn!(
                    node = known.name,
                    "{error}; if it had promised, it takes no ticks until its replay can ask \"{}\", or this command is typed again",
                    new.node.name
                );
                left.push(known.name);
            }
        }
    }
    donated::clear(&new.client(), &op.queue).await?;
    Ok(left)
}

async fn release_one(new: &Reached, op: &Op, known: &Known, provider: &str) -> Result<()> {
    let other = tree::reach_known(known, &op.queue).await?;
    if other.node.role == Role::Leaf {
        return leaf::release(&other.client(), &other.node, &op.id).await;
    }
    planned::release(&other, op).await?;
    if other.node.name != provider {
        // It was to give what the new root lacked.
        let call = "pgq_node.unregister_subscriber($1, $2)";
        ask(&other.client(), &other.node.title(), call, &[&op.queue, &new.node.name]).await?;
    }
    Ok(())
}
