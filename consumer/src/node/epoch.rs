//! A node follows the root of a new epoch. `consumer takeover` tells every node that it knows; who was away then, or was made so shortly before
//! that nobody who was left had heard of it, is told by `consumer node change-provider`.

use super::tree::Reached;
use crate::cascade::{Role, leaf, newer_epochs};
use crate::connect::exists;
use crate::error::{Doing, Error, Result};

/// An epoch that was begun by a takeover.
pub(crate) struct Epoch {
    pub(crate) op: String,
    pub(crate) number: i64,
    /// It and those before it, as pgcascade.epoch_history has them.
    pub(crate) history: String,
}

/// Has a node follow the root of that epoch, and read from that provider. What it had promised to that takeover it keeps thereby.
pub(crate) async fn follow(at: &Reached, epoch: &Epoch, provider: &str) -> Result<()> {
    if at.node.role == Role::Leaf {
        return leaf::follow(&at.client(), &at.node, &epoch.op, epoch.number, provider).await;
    }
    at.client()
        .execute(
            "select pgcascade.follow_root($1, $2::text::uuid, $3::text::jsonb, $4)",
            &[&at.node.queue, &epoch.op, &epoch.history, &provider],
        )
        .await
        .doing(|| format!("have {} follow \"{provider}\"", at.node.title()))?;
    Ok(())
}

/// The epoch that a node is in. The first, if it is one of PgQ's own, which has none.
pub(super) async fn of(at: &Reached) -> Result<i64> {
    let query = if at.node.role == Role::Leaf {
        // Versions before 14 have no such column.
        "select coalesce((pg_catalog.to_jsonb(n) ->> 'epoch')::int8, 1) from pgcascade_replay.node n where queue = $1"
    } else if exists(&at.client(), "pgcascade.node_state").await? {
        "select epoch from pgcascade.node_state where queue_name = $1"
    } else {
        return Ok(1);
    };
    let row = at
        .client()
        .query_one(query, &[&at.node.queue])
        .await
        .doing(|| format!("read the epoch of {}", at.node.title()))?;
    Ok(row.get(0))
}

/// The epoch that the new provider is in, if the node has not heard of it. Refuses a node that has ticks of a root which the cascade went on
/// without, and a root that may never open.
pub(super) async fn unheard(at: &Reached, new: &Reached) -> Result<Option<Epoch>> {
    let queue = &at.node.queue;
    let known = of(at).await?;
    let Some(history) = newer_epochs(&new.client(), queue, known).await? else {
        return Ok(None);
    };
    let tick = at.node.reload(&at.client()).await?.tick;
    let row = new
        .client()
        .query_one(
            "select h.epoch, h.op_id::text, s.role = 'branch' or s.open, parted.epoch, parted.start_tick
               from pgcascade.node_state s
               join pgcascade.epoch_history h on h.queue_name = s.queue_name and h.epoch = s.epoch
               left join pgcascade.epoch_history parted
                      on parted.queue_name = s.queue_name and parted.start_tick < $2 and parted.first_tick > $2
              where s.queue_name = $1
              order by parted.epoch limit 1",
            &[queue, &tick],
        )
        .await
        .doing(|| format!("compare the epochs of {} and {}", at.node.title(), new.node.title()))?;
    if !row.get::<_, bool>(2) {
        return Err(
            Error::failure(format!("{} is the root, and is not open yet", new.node.title()))
                .hint("Finish its takeover first: consumer takeover --resume."),
        );
    }
    let (epoch, parted): (Option<i64>, Option<i64>) = (row.get(3), row.get(4));
    if let Some((epoch, parted)) = epoch.zip(parted) {
        return Err(Error::failure(format!(
            "{} is at tick {tick}, and epoch {epoch} began after tick {parted} without what it has since: it went on behind a root that was \
             given up",
            at.node.title()
        ))
        .hint("Nothing was changed. Look for what only it has, then make it anew: consumer node drop, then create it."));
    }
    Ok(Some(Epoch {
        op: row.get(1),
        number: row.get(0),
        history,
    }))
}
