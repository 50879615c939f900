//! Queues that are merged into the one whose root moves: where the old root has leaves of other cascades, the new one needs them,
//! and has to know how far they are (replay/merge.rs).

use std::collections::BTreeMap;

use crate::connect::exists;
use crate::error::{Doing, Result};
use crate::node::tree::Reached;

/// The queues that are merged on a node, and whether it is known how far.
async fn parts(at: &Reached) -> Result<BTreeMap<String, bool>> {
    let what = || format!("look for queues that are merged on {}", at.node.title());
    if !exists(&at.client(), "pgcascade_replay.node").await? {
        return Ok(BTreeMap::new());
    }
    let rows = at
        .client()
        .query(
            // Versions before 12 have no such columns.
            "select n.queue, coalesce((pg_catalog.to_jsonb(n) ->> 'position_known')::bool, true)
               from pgcascade_replay.node n where pg_catalog.to_jsonb(n) ->> 'combined_queue' = $1",
            &[&at.node.queue],
        )
        .await
        .doing(what)?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// What stands against the takeover, and what to do about it. Without the old root only the new one can be asked.
pub(super) async fn against(new: &Reached, old: Option<&Reached>) -> Result<Vec<(String, String)>> {
    let ours = parts(new).await?;
    let theirs = match old {
        Some(old) => parts(old).await?,
        None => BTreeMap::new(),
    };
    let mut against = Vec::new();
    for part in theirs.keys().filter(|part| !ours.contains_key(*part)) {
        against.push((
            format!(
                "queue \"{part}\" is merged into this one on the root, and not on \"{}\"",
                new.node.name
            ),
            format!(
                "consumer node create-leaf NAME --queue {part} --merge {}, in that database",
                new.node.queue
            ),
        ));
    }
    for (part, _) in ours.iter().filter(|(_, known)| !**known) {
        against.push((
            format!(
                "how far queue \"{part}\", which is merged into this one, has come on \"{}\" is not known yet",
                new.node.name
            ),
            "wait for the next tick of that queue; its replay has to run on the root".to_owned(),
        ));
    }
    Ok(against)
}
