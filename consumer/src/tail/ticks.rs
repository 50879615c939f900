//! The ticks of the queue that is read: where to begin, and what comes next.

use super::Tail;
use crate::cli::From;
use crate::error::{Doing, Error, Result};

/// A tick and how many event ids had been drawn by then.
#[derive(Clone, Copy)]
pub(super) struct Tick {
    pub(super) id: i64,
    pub(super) event_seq: i64,
}

impl Tail {
    /// The tick that --from means.
    pub(super) async fn start(&self, from: From) -> Result<i64> {
        let (Some(oldest), Some(newest)) = (self.edge("min").await?, self.edge("max").await?) else {
            return Err(self.no_ticks());
        };
        match from {
            From::Oldest => Ok(oldest.id),
            From::Tick(tick) => {
                let there = self
                    .session
                    .client
                    .query_opt(
                        "select from pgq.tick where tick_queue = $1 and tick_id = $2",
                        &[&self.queue_id, &tick],
                    )
                    .await
                    .doing(|| self.reading())?;
                if there.is_some() {
                    return Ok(tick);
                }
                Err(
                    Error::failure(format!("queue \"{}\" has no tick {tick}", self.queue)).hint(format!(
                        "It has ticks from {} (--from oldest) to {}.",
                        oldest.id, newest.id
                    )),
                )
            }
        }
    }

    /// The oldest ("min") or the newest ("max") tick.
    pub(super) async fn edge(&self, which: &str) -> Result<Option<Tick>> {
        let order = if which == "min" { "asc" } else { "desc" };
        let sql = format!(
            "select tick_id, tick_event_seq from pgq.tick where tick_queue = $1 order by tick_id {order} limit 1"
        );
        let row = self
            .session
            .client
            .query_opt(&sql, &[&self.queue_id])
            .await
            .doing(|| self.reading())?;
        Ok(row.map(|row| Tick {
            id: row.get(0),
            event_seq: row.get::<_, Option<i64>>(1).unwrap_or(0),
        }))
    }

    /// The newest tick at which no more than so many event ids had been drawn.
    pub(super) async fn tick_before(&self, event_seq: i64) -> Result<Option<i64>> {
        let row = self
            .session
            .client
            .query_opt(
                "select tick_id from pgq.tick
                  where tick_queue = $1 and tick_event_seq <= $2 order by tick_id desc limit 1",
                &[&self.queue_id, &event_seq],
            )
            .await
            .doing(|| self.reading())?;
        Ok(row.map(|row| row.get(0)))
    }

    /// The tick after this one, if there is one yet.
    pub(super) async fn tick_after(&self, tick: i64) -> Result<Option<i64>> {
        let row = self
            .session
            .client
            .query_opt(
                "select tick_id from pgq.tick where tick_queue = $1 and tick_id > $2 order by tick_id limit 1",
                &[&self.queue_id, &tick],
            )
            .await
            .doing(|| self.reading())?;
        Ok(row.map(|row| row.get(0)))
    }

    /// A queue in a state that it never has by itself.
    pub(super) fn no_ticks(&self) -> Error {
        Error::failure(format!("queue \"{}\" has no ticks", self.queue))
            .hint("Every queue gets its first tick when it is created; was pgq.tick changed by hand?")
    }
}
