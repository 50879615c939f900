//! `consumer node wait`: until a node has applied what another one has now.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::tree::{self, Reached};
use crate::cascade::Role;
use crate::cli::{WaitArgs, Whose};
use crate::error::{Doing, Error, Result};
use crate::replay::goal;

/// How often the node is asked how far it is.
const POLL: Duration = Duration::from_millis(50);

/// `wait`
pub(super) async fn run(args: WaitArgs) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    let entry = tree::entry(&args.cascade).await?;
    let other = tree::other(&entry, &args.name).await?;
    let at = other.as_ref().unwrap_or(&entry);
    let tick = target(at, args.for_tick_of).await?;
    loop {
        let reached = at.node.reload(&at.client()).await?.tick;
        // The position goes on while a table is being copied.
        if reached >= tick && (at.node.role == Role::Root || !copying(at).await?) {
            tracing::info!(node = at.node.name, queue = at.node.queue, tick, "reached");
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::failure(format!(
                "{} is at tick {reached}, and did not reach tick {tick} with all its tables within {} seconds",
                at.node.title(),
                args.timeout
            ))
            .hint("consumer status shows whether its replay runs, and why it is behind."));
        }
        sleep(POLL).await;
    }
}

/// Whether a table has no copy yet, or events that wait for it.
async fn copying(at: &Reached) -> Result<bool> {
    let row = at
        .client()
        .query_one(
            "select exists (select from pgcascade_replay.table_state where consumer = $1 and queue = $2 and state = 'in-copy')
                    or exists (select from pgcascade_replay.held_event where consumer = $1 and queue = $2)",
            &[&at.node.worker, &at.node.queue],
        )
        .await
        .doing(|| format!("read the states of the tables of {}", at.node.title()))?;
    Ok(row.get(0))
}

/// The tick that holds everything that is committed there now.
async fn target(at: &Reached, whose: Whose) -> Result<i64> {
    let queue = &at.node.queue;
    if at.node.role == Role::Root {
        return goal::goal_tick(&at.client(), queue).await;
    }
    match whose {
        Whose::Root => {
            let root = tree::root(at).await?;
            goal::goal_tick(&root.as_ref().unwrap_or(at).client(), queue).await
        }
        Whose::Provider => {
            let provider = tree::reach_known(&tree::find(at, &at.node.provider).await?, queue).await?;
            goal::goal_tick(&provider.client(), queue).await
        }
    }
}
