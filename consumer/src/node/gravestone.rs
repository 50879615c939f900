//! A root that was given up may come back. Until then the node that took over keeps what came after the fork, as for any node that
//! is away: a consumer `NAME.gravestone` stands there, at the last tick that the two share, and moves by nobody.
//!
//! Set by the takeover; removed when the node has joined again (rejoin.rs), was made anew (create.rs) or is forgotten (drop.rs).

use super::tree::{self, Reached};
use crate::cascade::Role;
use crate::error::{Doing, Error, Result};

fn consumer(name: &str) -> String {
    format!("{name}.gravestone")
}

/// Has the node keep what comes after the tick for the one that is gone.
pub(crate) async fn set(at: &Reached, gone: &str, tick: i64) -> Result<()> {
    at.client()
        .execute(
            "select pgq.register_consumer_at($1, $2, $3)",
            &[&at.node.queue, &consumer(gone), &tick],
        )
        .await
        .doing(|| format!("have {} keep events for \"{gone}\"", at.node.title()))?;
    Ok(())
}

/// Nothing is kept for it any more on this node.
pub(super) async fn remove(at: &Reached, gone: &str) -> Result<()> {
    if at.node.role == Role::Leaf {
        return Ok(());
    }
    at.client()
        .execute(
            "select pgq.unregister_consumer(q.queue_name, c.co_name)
               from pgq.queue q join pgq.subscription s on s.sub_queue = q.queue_id join pgq.consumer c on c.co_id = s.sub_consumer
              where q.queue_name = $1 and c.co_name = $2",
            &[&at.node.queue, &consumer(gone)],
        )
        .await
        .doing(|| format!("have {} keep no more events for \"{gone}\"", at.node.title()))?;
    Ok(())
}

/// The same on all nodes that can be reached.
pub(super) async fn remove_everywhere(from: &Reached, gone: &str) -> Result<()> {
    for known in tree::known(from).await? {
        if known.name == gone || known.dead {
            continue;
        }
        let removed = async {
            let other = tree::reach_known(&known, &from.node.queue).await?;
            remove(&other, gone).await?;
            Ok::<(), Error>(())
        };
        if let Err(error) = removed.await {
            tracing::warn!(
                "{error}; if it took over from \"{gone}\", it keeps events for that: select pgq.unregister_consumer(queue, '{}')",
                consumer(gone)
            );
        }
    }
    Ok(())
}
