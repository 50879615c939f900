//! `consumer takeover`: another node of a cascade becomes the root.
//!
//! All that matters is decided in the databases (sql/takeover_node.sql, sql/takeover_journal.sql): each step is a transaction
//! that may be repeated and that refuses if another takeover came between. Here they are called in their order, which is
//! step.rs's, and what lies between them is waited for, with a deadline. The journal on the new root says how far a takeover is; a
//! command that is killed anywhere leaves a takeover that another one resumes or aborts, and nothing else.
//!
//! preflight.rs looks before anything is changed; planned.rs has the steps where the old root hands over, dead.rs those where it
//! is gone (leaves.rs: what leaves have to do with it), standby.rs those where a standby of it was promoted; journal.rs has the calls on the new root. model.rs
//! looks at every order in which two takeovers can do them.

mod dead;
mod journal;
mod leaves;
#[cfg(test)]
mod merge;
mod merged;
#[cfg(test)]
mod model;
mod planned;
mod preflight;
mod sequences;
mod standby;
mod step;

use std::time::Duration;

use tokio_postgres::error::SqlState;

use crate::cascade::Role;
use crate::cli::TakeoverArgs;
use crate::connect::silence::Patience;
use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;
use crate::node::tree::{self, Reached};
use crate::shutdown::Shutdown;
use crate::status::print;
use journal::{Begin, Op};
use standby::Place;
use step::{Kind, Step};

/// Runs one takeover, or what is left of it.
pub(crate) async fn run(args: TakeoverArgs, shutdown: Shutdown) -> Result<()> {
    let _ = tree::PATIENCE.set(patience(&args));
    // Nothing is changed before it is entered, and to abort may be repeated.
    let looked = tokio::select! {
        looked = Box::pin(look(&args, &shutdown)) => looked?,
        () = shutdown.wait() => return Err(Error::failure(STOPPED)
            .hint("If it had begun, finish it with --resume, or give it up with --abort.")),
    };
    let (new, op, place) = match looked {
        Looked::Nothing => return Ok(()),
        Looked::Begun(new, op, place) => (new, op, place),
        // Not dropped half way: nobody would know of it.
        Looked::Fit(new, begin, place) => {
            let op = enter(&new, &begin, &args, &place).await?;
            (new, op, place)
        }
    };
    Box::pin(finish(&new, op, &args, &place, &shutdown)).await
}

/// What there is to do.
enum Looked {
    Nothing,
    /// A takeover that is in the journal.
    Begun(Reached, Op, Place),
    /// One that nothing stands against.
    Fit(Reached, Begin, Place),
}

const STOPPED: &str = "stopped before the takeover was done";

/// How long a node may take for what it is asked. Closing the old root waits for writers, too.
fn patience(args: &TakeoverArgs) -> Patience {
    // For a server 0 would be no limit.
    let lock = Duration::from_secs(args.timeout.max(1));
    Patience {
        lock,
        statement: lock + Duration::from_millis(args.fence_timeout.into()),
    }
}

/// Connects to the node that becomes the root.
async fn reach_new(args: &TakeoverArgs) -> Result<Reached> {
    let entry = tree::entry(&args.cascade).await?;
    if args.promoted_standby {
        return standby::itself(entry, args).await;
    }
    Ok(match tree::other(&entry, &args.name).await? {
        Some(other) => other,
        None => entry,
    })
}

/// Finds what is to be done, and changes nothing but to abort and to claim.
async fn look(args: &TakeoverArgs, shutdown: &Shutdown) -> Result<Looked> {
    let new = reach_new(args).await?;
    let place = Place::of(args, shutdown.clone())?;
    if new.node.role == Role::Leaf {
        return Err(Error::failure(format!(
            "{} is a leaf, and only a branch can become the root",
            new.node.title()
        ))
        .hint("A leaf has no queue. Choose a branch, or make this database one."));
    }
    let last = journal::last(&new).await?;
    if args.abort {
        let op = last.ok_or_else(|| nothing(&new, "abort"))?;
        return give_up(&new, op, "aborted by the operator")
            .await
            .map(|_| Looked::Nothing);
    }
    if args.resume
        && let Some(op) = last.as_ref().filter(|op| op.step == Some(Step::Done))
    {
        tracing::info!(takeover = op.id, "done already");
        return Ok(Looked::Nothing);
    }
    let live = last.filter(|op| op.step.is_some_and(|step| step != Step::Done));
    let again = args.promoted_standby && !args.plan && live.as_ref().is_some_and(|op| op.kind == Kind::Standby);
    if args.resume || again {
        let op = live.ok_or_else(|| nothing(&new, "resume"))?;
        let confirms = match &args.dead {
            Some(old) => preflight::onward::look(&new, &op, old, args).await?,
            None => None,
        };
        let mut op = journal::claim(&new, op).await?;
        if let Some(confirms) = confirms {
            op = op
                .without_old(&new, confirms, args.fenced_by.as_deref(), &lost(args))
                .await?;
            failpoint("takeover_without_old");
        }
        return Ok(Looked::Begun(new, op, place));
    }
    if args.promoted_standby && preflight::standby::is_open(&new).await? {
        tracing::info!("{} is the root, and open: there is nothing to do", new.node.title());
        return Ok(Looked::Nothing);
    }

    let found = match &args.dead {
        _ if args.promoted_standby => preflight::standby::look(&new, live, args, &place).await?,
        None => preflight::look(&new, live, args).await?,
        Some(old) => preflight::look_without(&new, old, live, args).await?,
    };
    if args.plan {
        print(&found.plan())?;
        return found.into_result().map(|_| Looked::Nothing);
    }
    let begin = found.into_result()?;
    failpoint("takeover_looked");
    Ok(Looked::Fit(new, begin, place))
}

/// Enters it in the journal.
async fn enter(new: &Reached, begin: &Begin, args: &TakeoverArgs, place: &Place) -> Result<Op> {
    if begin.kind == Kind::Standby {
        let call = "select pgcascade.note_location($1, $2, $3, false)";
        let noted = new
            .client()
            .execute(call, &[&new.node.queue, &new.node.name, &place.told()])
            .await;
        noted.doing(|| format!("note on {} where it is", new.node.title()))?;
    }
    let op = journal::begin(new, begin, args.fenced_by.as_deref(), &lost(args)).await?;
    tracing::info!(
        takeover = op.id,
        from = op.old,
        to = new.node.name,
        epoch = op.epoch,
        "takeover begun"
    );
    failpoint("takeover_after_prepared");
    Ok(op)
}

/// Who is given up; all that follows passes over them.
fn lost(args: &TakeoverArgs) -> Vec<&str> {
    args.dead.iter().chain(&args.lost).map(String::as_str).collect()
}

fn nothing(new: &Reached, what: &str) -> Error {
    Error::failure(format!("there is no takeover to {what} on {}", new.node.title()))
        .hint("consumer takeover NEW --plan shows what a new one would do.")
}

/// Goes on until it is done. What fails before the promotion is given up, so that the old root does not stay closed.
async fn finish(new: &Reached, mut op: Op, args: &TakeoverArgs, place: &Place, shutdown: &Shutdown) -> Result<()> {
    let limits = planned::Limits {
        wait: Duration::from_secs(args.timeout),
        fence_ms: i32::try_from(args.fence_timeout).unwrap_or(i32::MAX),
        ignored: args.ignore_table.clone(),
    };
    let mut old = None;
    while let Some(at) = op.step
        && let Some(next) = op.kind.after(at)
    {
        failpoint(&format!("takeover_before_{}", next.word()));
        let step = async {
            match op.kind {
                Kind::Planned => planned::step(new, &mut op, next, &limits, &mut old).await,
                Kind::Dead => Box::pin(dead::step(new, &mut op, next, &limits)).await,
                Kind::Standby => Box::pin(standby::step(new, &mut op, next, &limits, place)).await,
            }
        };
        let outcome = tokio::select! {
            biased;
            () = shutdown.wait() => Err(stopped(op.kind.before(at, Step::Promoted))),
            outcome = step => outcome,
        };
        match outcome {
            Ok(()) => {
                op.step = Some(next);
                tracing::info!(takeover = op.id, "{}", next.word());
                failpoint(&format!("takeover_after_{}", next.word()));
            }
            // What was dropped half way may be on its way in the session that we have; or that was ended because nobody answers.
            Err(error) if shutdown.requested() || new.client().is_closed() => {
                return Err(match reach_new(args).await {
                    Ok(again) => failed(&again, op, error).await,
                    Err(second) => unfinished(&op.id, error, &second),
                });
            }
            Err(error) => return Err(failed(new, op, error).await),
        }
    }
    Ok(())
}

async fn failed(new: &Reached, op: Op, error: Error) -> Error {
    let superseded = error.sqlstate() == Some(&SqlState::OBJECT_IN_USE);
    let promoted = op.step.is_some_and(|step| !op.kind.before(step, Step::Promoted));
    if let Err(note) = journal::failed(new, &op, &error.to_string()).await {
        tracing::debug!("the reason could not be recorded: {note}");
    }
    let id = op.id.clone();
    let after = match op.kind {
        Kind::Planned => "and the old root is open",
        Kind::Dead => "and the other nodes are as before",
        Kind::Standby => "the promoted standby is closed, and the other nodes are as before",
    };
    if superseded && op.kind == Kind::Planned && op.step == Some(Step::Prepared) {
        // Nobody else goes on with it, or this is refused; and no other node has done anything for it but promise.
        if journal::abort(new, &op, &error.to_string()).await.is_ok() {
            if let Err(second) = release(new, &op).await {
                tracing::warn!("{second}");
            }
            return error.within(format_args!("takeover {id} came second and was given up"));
        }
    }
    if superseded {
        return error.within(format_args!("takeover {id} stopped"));
    }
    if promoted {
        return error.within(format_args!(
            "takeover {id} stopped after it promoted, and goes on with --resume"
        ));
    }
    let op = match abort(new, op, &error.to_string()).await {
        Ok(op) => op,
        Err(second) => return unfinished(&id, error, &second),
    };
    match release(new, &op).await {
        Ok(left) if left.is_empty() => error.within(format_args!("takeover {id} was given up, {after}")),
        Ok(left) => error.within(format_args!(
            "takeover {id} was given up, {after}, but for those that it could not tell: {}",
            left.join(", ")
        )),
        Err(second) => {
            let hint = second.get_hint().unwrap_or_default().to_owned();
            error
                .within(format_args!(
                    "takeover {id} was given up, and not all were told: {second}; it had stopped because"
                ))
                .hint(hint)
        }
    }
}

/// Somebody wants it to stop.
fn stopped(is_given_up: bool) -> Error {
    let error = Error::failure(STOPPED);
    if is_given_up {
        error
    } else {
        error.hint("Finish it with --resume.")
    }
}

/// It did not go on, and giving it up failed, too.
fn unfinished(id: &str, error: Error, second: &Error) -> Error {
    tracing::error!("{second}");
    error
        .within(format_args!("takeover {id} stopped, and could not be given up"))
        .hint("Nodes may still wait for it. Finish the takeover with --resume, or give it up with --abort.")
}

/// First the journal, from which on it cannot promote; then the others, each by itself: the old root opens, branches and leaves take
/// ticks again. Returns those that could not be told.
async fn give_up(new: &Reached, op: Op, why: &str) -> Result<Vec<String>> {
    let op = abort(new, op, why).await?;
    release(new, &op).await
}

/// From here on it cannot promote.
async fn abort(new: &Reached, op: Op, why: &str) -> Result<Op> {
    if op.step.is_none() {
        // It was, and perhaps others were not told.
        return Ok(op);
    }
    let op = journal::claim(new, op).await?;
    failpoint("takeover_before_aborted");
    journal::abort(new, &op, why).await?;
    failpoint("takeover_after_aborted");
    Ok(op)
}

/// The others owe the takeover, which was aborted, nothing any more.
async fn release(new: &Reached, op: &Op) -> Result<Vec<String>> {
    let again = |error: Error| {
        error.hint(format!(
            "The takeover is aborted, but other nodes may not know it yet: their replays ask \"{}\" when they run, or type --abort again.",
            new.node.name
        ))
    };
    if op.kind != Kind::Planned {
        let left = dead::release(new, op).await.map_err(again)?;
        tracing::info!(takeover = op.id, "aborted");
        return Ok(left);
    }
    let old = tree::reach_known(&tree::find(new, &op.old).await?, &op.queue)
        .await
        .map_err(again)?;
    planned::check_only_root(new, &old, op).await?;
    planned::release(&old, op).await.map_err(again)?;
    tracing::info!(takeover = op.id, "aborted; \"{}\" is the root", op.old);
    Ok(Vec::new())
}
