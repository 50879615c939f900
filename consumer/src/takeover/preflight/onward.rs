//! What is looked at before a planned takeover goes on without its old root, which was lost after the new one had been promoted.
//!
//! The new root has all that the old one had, so nobody is asked for ticks. What counts is that no other root has been made of what was left of
//! the old one, a standby or a branch: the others say so here, and refuse in the steps that follow.

use super::{Found, NOBODY_CONFIRMS, SAY_HOW, facts};
use crate::cascade::Role;
use crate::cli::TakeoverArgs;
use crate::error::{Doing, Error, Result};
use crate::node::tree::{self, Reached};
use crate::takeover::journal::Op;
use crate::takeover::step::{Kind, Step};

/// How many other nodes have to confirm; None if the old root is not needed for what is left.
pub(in crate::takeover) async fn look(new: &Reached, op: &Op, old: &str, args: &TakeoverArgs) -> Result<Option<i32>> {
    if op.old != old {
        return Err(Error::failure(format!(
            "takeover {} is from root \"{}\", and not from \"{old}\"",
            op.id, op.old
        ))
        .hint("Correct --dead."));
    }
    let opened = match (op.kind, op.step) {
        (Kind::Dead, _) | (_, Some(Step::Demoted | Step::Repointed)) => return Ok(None),
        (Kind::Planned, Some(Step::Promoted)) => false,
        (Kind::Planned, Some(Step::Opened)) => true,
        (kind, step) => {
            return Err(Error::failure(format!(
                "takeover {} is {}, and cannot go on without \"{old}\"",
                op.id,
                step.map_or("aborted", Step::word)
            ))
            .hint(if kind == Kind::Standby {
                "It is that of a promoted standby: type it again with --promoted-standby."
            } else {
                "Give it up with --abort; then consumer takeover NEW --dead OLD, or OLD --promoted-standby if a standby of it was promoted."
            }));
        }
    };
    let mut found = Found::new(Kind::Dead, new, old, None);
    found.gone(new, old, args).await?;
    let mut branches = 0;
    for known in tree::known(new).await? {
        if known.name == new.node.name || known.name == old || args.lost.contains(&known.name) {
            continue;
        }
        match tree::reach_known(&known, &new.node.queue).await {
            Err(_) if known.dead => {}
            Ok(leaf) if leaf.node.role == Role::Leaf => found.promised_leaf(&leaf).await?,
            Ok(root) if root.node.role == Role::Root => {
                found.add(format!("\"{}\" is the root, too", known.name), SUPERSEDED)
            }
            Ok(branch) => {
                branches += 1;
                found.promised(&facts(&branch).await?, &known.name);
                found.follows_another(&branch, op).await?;
            }
            Err(error) => found.add(
                format!(
                    "node \"{}\" cannot be reached, and may know another root: {error}",
                    known.name
                ),
                "start it; or give it up with --lost",
            ),
        }
    }
    if branches == 0 && !opened {
        found.confirms = 0;
        if args.fenced_by.is_none() {
            found.add(NOBODY_CONFIRMS.to_owned(), SAY_HOW);
        }
    }
    found.into_result().map(|begin| Some(begin.confirms))
}

const SUPERSEDED: &str = "nothing: the cascade has that root; make this node anew";

impl Found {
    async fn follows_another(&mut self, branch: &Reached, op: &Op) -> Result<()> {
        let other = branch
            .client()
            .query_opt(
                "select epoch, root_node from pgcascade.epoch_history
                  where queue_name = $1 and epoch >= $2 and op_id <> $3::text::uuid order by epoch desc limit 1",
                &[&op.queue, &op.epoch, &op.id],
            )
            .await
            .doing(|| format!("look at the epochs of {}", branch.node.title()))?;
        if let Some(row) = other {
            let (epoch, root): (i64, String) = (row.get(0), row.get(1));
            self.add(
                format!(
                    "branch \"{}\" follows root \"{root}\" of epoch {epoch}",
                    branch.node.name
                ),
                SUPERSEDED,
            );
        }
        Ok(())
    }
}
