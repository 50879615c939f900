//! Named places at which a test can make the process fail.
//!
//! The environment variable PGCASCADE_FAILPOINTS holds `name=action` pairs, separated by `;`. The actions:
//!
//! | action | what happens when the place is reached |
//! |---|---|
//! | `kill` | the process sends itself SIGKILL: nothing is cleaned up, no buffer is flushed |
//! | `kill:N` | the same, when the place is reached for the Nth time |
//! | `error:N` | the process exits with code N, without cleaning up |
//! | `pause:FILE` | the task stops until FILE exists |
//! | `pause:N:FILE` | the same, when the place is reached for the Nth time, and from then on |
//!
//! It is always compiled in, so that what is tested is what is shipped. When the variable is not set a failpoint costs
//! one load. The replay engine calls it around its commits, tail between its output and its position; who calls it,
//! names it: home_asked, lock_refused, before_look, after_position, after_node, before_place, before_partitions, after_states, before_copy, after_read, after_chunk, before_commit, after_commit, after_conflict, in_copy, after_aside,
//! before_plan_commit, after_plan_commit, after_chunk_commit, after_index, after_foreign_key, after_copy_commit,
//! before_held_commit, after_held_commit, before_window, after_flush;
//! `consumer node` between its steps: node_known, node_subscribed, node_paused, node_changed, node_seen, node_left,
//! node_forgotten, node_adopted, node_renamed, node_told, replay_awaited, lock_awaited,
//! rejoin_found, rejoin_closed, rejoin_written, rejoin_renamed, rejoin_subscribed,
//! rejoin_joining, rejoin_joined, rejoin_told, rejoin_left; `consumer takeover` around its steps: takeover_looked, takeover_before_STEP,
//! takeover_after_STEP, and within them takeover_promising_old, takeover_promised_old, takeover_fenced_old, takeover_sequences_set, takeover_confirmed_old,
//! takeover_subscribed_old, takeover_without_old,
//! takeover_demoted_old, takeover_settled_old,
//! takeover_told; for a dead root takeover_promised_one, takeover_promised_leaf, takeover_subscribed_new, takeover_fetching,
//! takeover_fetched, takeover_sequences_moved, takeover_gravestone, takeover_confirmed_one, takeover_confirmed, takeover_released_one, and donated_copied in the replay that fetches
//! from a leaf, adoption_lost in that of an adopted copy of the root; for a promoted standby takeover_set_aside, takeover_located.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use once_cell::sync::OnceCell;
use tokio::runtime::RuntimeFlavor;

use crate::error::{Error, Result};

const VARIABLE: &str = "PGCASCADE_FAILPOINTS";

static POINTS: OnceCell<Vec<Point>> = OnceCell::new();

#[derive(Debug)]
struct Point {
    name: String,
    action: Action,
    reached: AtomicU64,
}

#[derive(Debug, PartialEq, Eq)]
enum Action {
    Kill { at: u64 },
    Exit(u8),
    Pause { from: u64, file: PathBuf },
}

/// Reads the variable; called once at the start, so that a misspelt action is an error and not a test that passes by
/// accident.
pub(crate) fn arm() -> Result<()> {
    let points = match std::env::var(VARIABLE) {
        Ok(text) => parse(&text)?,
        Err(_) => Vec::new(),
    };
    if !points.is_empty() {
        tracing::warn!(
            failpoints = points.len(),
            "{VARIABLE} is set: this process will fail on purpose"
        );
    }
    let _ = POINTS.set(points);
    Ok(())
}

/// The place called `name` is reached.
pub(crate) fn failpoint(name: &str) {
    let Some(points) = POINTS.get() else { return };
    for point in points {
        if point.name == name {
            point.act();
        }
    }
}

impl Point {
    fn act(&self) {
        let reached = self.reached.fetch_add(1, Ordering::Relaxed) + 1;
        match &self.action {
            // Nor gets any other task past it, while this one is on its way to that.
            Action::Kill { at } if reached >= *at => {
                // SIGKILL to oneself is delivered before the call returns; should it ever not be, abort is the next
                // best thing.
                let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
                std::process::abort();
            }
            Action::Kill { .. } => {}
            Action::Exit(code) => std::process::exit(i32::from(*code)),
            Action::Pause { from, .. } if reached < *from => {}
            Action::Pause { file, .. } => {
                tracing::warn!("{} waits until {} exists", self.name, file.display());
                let wait = || {
                    while !file.exists() {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                };
                // The thread stops, so that the task does nothing at all; other tasks that wait for it go on elsewhere.
                let runtime = tokio::runtime::Handle::try_current();
                if runtime.is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread) {
                    tokio::task::block_in_place(wait);
                } else {
                    wait();
                }
            }
        }
    }
}

fn parse(text: &str) -> Result<Vec<Point>> {
    let pairs = text.split(';').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let wrong = || {
                Error::usage(format!("{VARIABLE}: \"{pair}\" is not name=action"))
                    .hint("The actions are kill, kill:N, error:N, pause:FILE and pause:N:FILE.")
            };
            let (name, action) = pair.split_once('=').ok_or_else(wrong)?;
            let action = match action.split_once(':') {
                None if action == "kill" => Action::Kill { at: 1 },
                Some(("kill", at)) => Action::Kill {
                    at: at.parse().map_err(|_| wrong())?,
                },
                Some(("error", code)) => Action::Exit(code.parse().map_err(|_| wrong())?),
                Some(("pause", rest)) if !rest.is_empty() => {
                    let counted = rest.split_once(':');
                    let counted = counted.and_then(|(from, file)| Some((from.parse().ok()?, file)));
                    let (from, file) = counted.unwrap_or((1, rest));
                    Action::Pause {
                        from,
                        file: PathBuf::from(file),
                    }
                }
                _ => return Err(wrong()),
            };
            Ok(Point {
                name: name.trim().to_owned(),
                action,
                reached: AtomicU64::new(0),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
    use super::*;

    #[test]
    fn every_action_is_read() {
        let pause = |from, file: &str| Action::Pause {
            from,
            file: file.into(),
        };
        let points =
            parse("after_read=kill; before_commit=kill:3;;a=error:2;b=pause:/tmp/x:y;b=pause:2:/tmp/x").unwrap();
        let actions: Vec<_> = points
            .iter()
            .map(|point| (point.name.as_str(), &point.action))
            .collect();
        assert_eq!(
            actions,
            [
                ("after_read", &Action::Kill { at: 1 }),
                ("before_commit", &Action::Kill { at: 3 }),
                ("a", &Action::Exit(2)),
                ("b", &pause(1, "/tmp/x:y")),
                ("b", &pause(2, "/tmp/x")),
            ]
        );
    }

    #[test]
    fn a_misspelt_action_is_refused() {
        for text in ["after_read", "a=die", "a=error:", "a=error:300", "a=pause:", "a=kill:x"] {
            assert_eq!(parse(text).unwrap_err().exit_code(), 2, "{text}");
        }
    }

    #[test]
    fn an_unarmed_failpoint_does_nothing() {
        failpoint("after_read");
    }
}
