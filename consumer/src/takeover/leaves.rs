//! Leaves in a takeover from a root that is gone, to a branch or to a promoted standby: they promise, as branches do, and one that has ticks which no branch has gives them
//! from its journal (replay/journal.rs, replay/donated.rs).
//!
//! A leaf cannot become the root, and does not confirm: where no other branch is left, the operator's word is needed as before.

use super::dead;
use super::journal::Op;
use super::sequences;
use crate::cascade::{Node, Role, leaf, newer_epochs};
use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;
use crate::node::tree::{self, Reached};
use crate::replay::donated;

/// Connects to the leaves that are not given up.
async fn all(new: &Reached, op: &Op) -> Result<Vec<Reached>> {
    let mut leaves = Vec::new();
    for known in dead::survivors(tree::known(new).await?, new, &op.old) {
        let other = tree::reach_known(&known, &op.queue).await?;
        if other.node.role == Role::Leaf {
            leaves.push(other);
        }
    }
    Ok(leaves)
}

/// Each takes no more ticks until it is told whom to follow.
pub(super) async fn promise(new: &Reached, op: &Op) -> Result<()> {
    for other in all(new, op).await? {
        leaf::promise(&other.client(), &other.node, &op.id, op.epoch).await?;
        failpoint("takeover_promised_leaf");
    }
    Ok(())
}

/// The leaf that is furthest, and its tick, if it is further than `furthest`, where the branches are. Of several one whose
/// journal reaches back to the new root.
pub(super) async fn ahead(new: &Reached, op: &Op, furthest: i64) -> Result<Option<(String, i64)>> {
    let mut ahead = Vec::new();
    for other in all(new, op).await? {
        let tick = leaf::promise(&other.client(), &other.node, &op.id, op.epoch).await?;
        if tick > furthest {
            let node = other.node.reload(&other.client()).await?;
            ahead.push(Reached { node, ..other });
        }
    }
    let Some(top) = ahead.iter().map(|leaf| leaf.node.tick).max() else {
        return Ok(None);
    };
    let mut lacking = None;
    for leaf in ahead.iter().filter(|leaf| leaf.node.tick == top) {
        check_epoch(new, op, leaf).await?;
        match check_journal(leaf, &new.node.reload(&new.client()).await?).await {
            Ok(()) => return Ok(Some((leaf.node.name.clone(), top))),
            Err(error) => lacking = Some(error),
        }
    }
    lacking.map_or(Ok(None), Err)
}

/// Refuses a leaf whose journal does not reach from the branch's tick to its own.
pub(super) async fn check_journal(leaf: &Reached, branch: &Node) -> Result<()> {
    match donated::lacks(&leaf.client(), &leaf.node, branch).await? {
        None => Ok(()),
        Some(lacks) => Err(Error::failure(format!(
            "{} has changes that no branch has, and cannot give them: {lacks}",
            leaf.node.title()
        ))
        .hint(REMEDY)),
    }
}

/// What is left where a leaf cannot give what it has.
pub(super) const REMEDY: &str = "make a branch the root that has a tick of the journal, if there is one; else stop the leaf's server, \
                                 give it up with --lost, compare its tables with the new root's afterwards, and make it anew";

/// Refuses ticks of a leaf that no branch can have: of an old root that was not one any more, or of an epoch that no branch knows.
async fn check_epoch(new: &Reached, op: &Op, leaf: &Reached) -> Result<()> {
    let history = epochs(new, op).await?;
    let last: Option<i64> = leaf
        .client()
        .query_one(
            "select (select max((t ->> 'epoch')::int8) from pg_catalog.jsonb_array_elements(j.ticks) t)
               from (select ticks from pgcascade_replay.journal where queue = $1 order by tick desc limit 1) j
              right join (values (1)) one on true",
            &[&op.queue],
        )
        .await
        .doing(|| format!("look at the journal of {}", leaf.node.title()))?
        .get(0);
    let row = new
        .client()
        .query_one(
            "select coalesce(pg_catalog.bool_or(h.start_tick < $2 and h.first_tick > $2), false), coalesce(max(h.epoch), 1)
               from pg_catalog.jsonb_to_recordset($1::text::jsonb) as h (epoch int8, start_tick int8, first_tick int8)",
            &[&history, &leaf.node.tick],
        )
        .await
        .doing(|| format!("compare the epochs of {}", leaf.node.title()))?;
    if row.get(0) || last > Some(row.get(1)) {
        return Err(Error::failure(format!(
            "{} is at tick {}, which belongs to no epoch that a branch knows",
            leaf.node.title(),
            leaf.node.tick
        ))
        .hint("It read from a root that had lost its role. Give it up with --lost, and make it anew."));
    }
    Ok(())
}

/// What the branch that knows most knows of epochs.
pub(super) async fn epochs(new: &Reached, op: &Op) -> Result<Option<String>> {
    let others = dead::branches(new, op).await?;
    let (mut newest, mut known) = (0, None);
    for branch in others.iter().chain([new]) {
        if let Some(history) = newer_epochs(&branch.client(), &op.queue, newest).await? {
            newest = branch
                .client()
                .query_one(
                    "select max((h ->> 'epoch')::int8) from pg_catalog.jsonb_array_elements($1::text::jsonb) h",
                    &[&history],
                )
                .await
                .doing(|| format!("read the epochs of {}", branch.node.title()))?
                .get(0);
            known = Some(history);
        }
    }
    Ok(known)
}

/// After the new root has caught up: what came from a leaf, which need not be there any more, has left its sequences where they were, and is
/// not needed again.
pub(super) async fn settle(new: &Reached, op: &Op) -> Result<()> {
    if donated::any(&new.client(), &op.queue).await? {
        sequences::move_beyond_rows(new).await?;
        failpoint("takeover_sequences_moved");
        donated::clear(&new.client(), &op.queue).await?;
    }
    Ok(())
}
