//! Notices that nobody makes ticks.
//!
//! Without a ticker events are captured and never delivered, and a replay that waits for them looks just like one that
//! has caught up. So a replay that had no batch for a while asks the provider whether events are waiting, and says so
//! once.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Client;

use crate::error::{Doing, Result};

/// How long without a batch, or without a tick while events wait, is worth a look. Far more than a ticker that runs
/// would take.
const LONG: Duration = Duration::from_secs(30);

/// Since when there was no batch.
#[derive(Debug)]
pub(super) struct Idle {
    look_at: Instant,
    said: bool,
}

impl Idle {
    pub(super) fn new() -> Self {
        Self {
            look_at: Instant::now() + LONG,
            said: false,
        }
    }

    /// A batch came.
    pub(super) fn over(&mut self) {
        *self = Self::new();
    }

    /// Again no batch came.
    pub(super) async fn look(&mut self, provider: &Client, queue: &str) -> Result<()> {
        if self.said || Instant::now() < self.look_at {
            return Ok(());
        }
        self.look_at = Instant::now() + LONG;
        let row = provider
            .query_opt(include_str!("sql/waiting_events.sql"), &[&queue])
            .await
            .doing(|| format!("look at the last tick of queue \"{queue}\" on the provider"))?;
        if let Some(row) = row {
            let age: f64 = row.get(0);
            if row.get(1) && age > LONG.as_secs_f64() {
                self.said = true;
                tracing::warn!(
                    queue,
                    seconds = age.round(),
                    "events are waiting and there was no tick for a while: is pgcascade in shared_preload_libraries of the \
                     provider and pgcascade.ticker on, or does anything else call pgq.ticker()?"
                );
            }
        }
        Ok(())
    }
}
