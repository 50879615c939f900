//! What a branch does for the confirm gate (sql/gate.sql): it tells its provider that it can become the root, and takes over how
//! many branches and standbys must have a tick before leaves get it, and up to where that is so.
//!
//! It also stores the names of the root's standbys that count there, so that a takeover to it can ask for them, and only then tells its
//! provider that it has: until all branches have, such a standby does not count.
//!
//! Called by duty.rs at the start and between batches. A leaf has nobody below it.

use tokio_postgres::Client;

use crate::cascade::{Node, Role};
use crate::error::{Doing, Result};
use crate::failpoint::failpoint;

/// What the branch has stored of its provider's gate.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Gate {
    candidates: i32,
    released: Option<i64>,
    /// The standbys that count, and what the provider calls them.
    standbys: Vec<String>,
    ids: Vec<i64>,
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
            .query_one(
                "select candidates, released_tick, standbys, ids, last_tick from pgcascade.offered_gate($1)",
                &[&node.queue],
            )
            .await
            .doing(|| format!("read the confirm gate of node \"{}\"", node.provider))?;
        let now = Self {
            candidates: row.get(0),
            released: row.get(1),
            standbys: row.get(2),
            ids: row.get(3),
        };
        if *self == now {
            return Ok(());
        }
        let last: Option<i64> = row.get(4);
        subscriber
            .execute(
                "select pgcascade.follow_gate($1, $2, $3, $4, $5)",
                &[&node.queue, &now.candidates, &now.released, &now.standbys, &last],
            )
            .await
            .doing(|| format!("store the confirm gate of {}", node.title()))?;
        failpoint("gate_followed");
        if self.ids != now.ids {
            register(provider, node, &now.ids).await?;
        }
        *self = now;
        Ok(())
    }
}

/// Counts for the provider's gate from now on, and has the gate before anybody reads from this node.
pub(super) async fn join(provider: &Client, subscriber: &Client, node: &Node) -> Result<()> {
    if node.role != Role::Branch {
        return Ok(());
    }
    // Unlike any answer: a gate that was there before and is not any more is stored, too.
    let mut unknown = Gate {
        ids: vec![0],
        ..Gate::default()
    };
    unknown.follow(provider, subscriber, node).await
}

async fn register(provider: &Client, node: &Node, knows: &[i64]) -> Result<()> {
    provider
        .execute(
            "select pgcascade.register_candidate($1, $2, $3)",
            &[&node.queue, &node.name, &knows],
        )
        .await
        .doing(|| {
            format!(
                "have node \"{}\" count {} for its confirm gate",
                node.provider,
                node.title()
            )
        })?;
    Ok(())
}
