//! A branch that was adopted as a copy of the root (node/adopt.rs), whose root was lost before the branch had all ticks that the copy's last
//! changes are in. Those of them that no tick has which the cascade goes on from are on no other node: lost with that root, but not here.
//!
//! They are treated as those of an old root that comes back (returned.rs): saved in `pgcascade.lost_event`, and the tables that they have
//! changed are copied again. Everything else is in step. Done at the last tick of the root's epoch, before the first one of the next.

use tokio_postgres::Client;

use super::duty::who;
use super::{returned, session};
use crate::cascade::Node;
use crate::connect::End;
use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;

/// Whether the branch stands there.
async fn stands(client: &Client, node: &Node) -> Result<bool> {
    let row = client
        .query_one(
            "select exists (select from pgcascade.adoption_end($1) h where h.start_tick <= $2)",
            &[&node.queue, &node.tick],
        )
        .await
        .doing(|| format!("look whether {} was a copy of the root", node.title()))?;
    Ok(row.get(0))
}

/// Called at the start of each life of the branch's sessions.
pub(super) async fn settle(client: &Client, node: &Node) -> Result<()> {
    if !stands(client, node).await? {
        return Ok(());
    }
    session::lock(client, End::Subscriber, &who(node), session::LOCK_PATIENCE_AGAIN).await?;
    returned::prepare(client, node).await?;
    let what = || format!("save what only {} has of a root that was lost", node.title());
    client.batch_execute("begin").await.doing(what)?;
    let row = client
        .query_one(
            "select op_id::text, lost_events from pgcascade.adoption_lost($1)",
            &[&node.queue],
        )
        .await
        .doing(what)?;
    let (Some(op), events): (Option<String>, i64) = (row.get(0), row.get(1)) else {
        return client.batch_execute("rollback").await.doing(what);
    };
    let files = returned::executed(client, node, &op).await?;
    if !files.is_empty() {
        return Err(Error::failure(format!(
            "{} was adopted as a copy of a root that was lost, and files were executed there that no other node knows: {}",
            node.title(),
            files.join(", ")
        ))
        .hint("Nobody can take back what they did. Make it anew: consumer node drop, then create-branch."));
    }
    let copied = returned::copy_again(client, node, &op).await?;
    failpoint("adoption_lost");
    client.batch_execute("commit").await.doing(what)?;
    if events == 0 {
        return Ok(());
    }
    tracing::warn!(
        node = node.name,
        events,
        tables = copied.join(", "),
        "the root was lost that this node was a copy of, with events that no other node has: they are in pgcascade.lost_event, and \
         the tables that they have changed are copied again"
    );
    Ok(())
}
