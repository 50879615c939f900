//! What a branch does for the confirm gate (sql/gate.sql): it tells its provider that it can become the root, and takes over how
//! many branches must have a tick before leaves get it, and up to where that is so.
//!
//! Called by duty.rs at the start and between batches. A leaf has nobody below it.

use tokio_postgres::Client;

use crate::cascade::{Node, Role};
use crate::error::{Doing, Result};

/// What the branch has stored of its provider's gate.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Gate {
    candidates: i32,
    released: Option<i64>,
}

impl Gate {
    /// Whether how far the provider has released matters here. If one branch is enough, this one is.
    pub(super) fn moves(&self) -> bool {
        self.candidates > 1
    }

    /// Stores what the provider says now, if it is another answer than before.
    pub(super) async fn follow(&mut self, provider: &Client, subscriber: &Client, node: &Node) -> Result<()> {
        if node.role != Role::Branch {
            return Ok(());
        }
        let row = provider
            .query_opt(
                "select candidates, released_tick from pgcascade.gate_state where queue_name = $1",
                &[&node.queue],
            )
            .await
            .doing(|| format!("read the confirm gate of node \"{}\"", node.provider))?;
        let now = row.map_or_else(Self::default, |row| Self {
            candidates: row.get(0),
            released: row.get(1),
        });
        if *self != now {
            subscriber
                .execute(
                    "select pgcascade.follow_gate($1, $2, $3)",
                    &[&node.queue, &now.candidates, &now.released],
                )
                .await
                .doing(|| format!("store the confirm gate of {}", node.title()))?;
            *self = now;
        }
        Ok(())
    }
}

/// Counts for the provider's gate from now on, and has the gate before anybody reads from this node.
pub(super) async fn join(provider: &Client, subscriber: &Client, node: &Node) -> Result<()> {
    if node.role != Role::Branch {
        return Ok(());
    }
    provider
        .execute(
            "select pgcascade.register_candidate($1, $2)",
            &[&node.queue, &node.name],
        )
        .await
        .doing(|| {
            format!(
                "have node \"{}\" count {} for its confirm gate",
                node.provider,
                node.title()
            )
        })?;
    // A gate that was there before and is not any more is no default.
    let mut unknown = Gate {
        candidates: -1,
        released: None,
    };
    unknown.follow(provider, subscriber, node).await
}
