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

/// How far printing is: done with every event up to a tick, and with those after it, up to the next tick, whose id is
/// not greater than this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) tick: i64,
    pub(super) event: Option<i64>,
}

impl Place {
    pub(super) fn after(tick: i64) -> Self {
        Self { tick, event: None }
    }
}

impl Tail<'_> {
    /// The place that --from means.
    pub(super) async fn start(&self, from: From) -> Result<Place> {
        let (oldest, newest) = self.edges().await?;
        let tick = match from {
            From::Oldest => return Ok(Place::after(oldest.id)),
            From::Tick(tick) | From::Event { tick, .. } => tick,
        };
        let row = self
            .session
            .client
            .query_opt(
                "select (select b.tick_id from pgq.tick b where b.tick_queue = t.tick_queue and b.tick_id < t.tick_id
                          order by b.tick_id desc limit 1)
                   from pgq.tick t where t.tick_queue = $1 and t.tick_id = $2",
                &[&self.queue_id, &tick],
            )
            .await
            .doing(|| self.reading())?;
        let Some(row) = row else {
            return Err(
                Error::failure(format!("queue \"{}\" has no tick {tick}", self.queue())).hint(format!(
                    "It has ticks from {} (--from oldest) to {}.",
                    oldest.id, newest.id
                )),
            );
        };
        match (from, row.get::<_, Option<i64>>(0)) {
            // A line's tick is the one that made the event visible: the first one after those that the window begins at.
            (From::Event { event, .. }, Some(before)) => Ok(Place {
                tick: before,
                event: Some(event),
            }),
            (From::Event { .. }, None) => Err(Error::failure(format!(
                "queue \"{}\" may have lost events up to its oldest tick {tick} to rotation",
                self.queue()
            ))
            .hint(format!(
                "If none are missed: --from {tick} prints what comes after that tick."
            ))),
            _ => Ok(Place::after(tick)),
        }
    }

    /// The oldest and the newest tick.
    pub(super) async fn edges(&self) -> Result<(Tick, Tick)> {
        match (self.edge("asc").await?, self.edge("desc").await?) {
            (Some(oldest), Some(newest)) => Ok((oldest, newest)),
            _ => Err(Error::failure(format!("queue \"{}\" has no ticks", self.queue()))
                .hint("Every queue gets its first tick when it is created; was pgq.tick changed by hand?")),
        }
    }

    async fn edge(&self, order: &str) -> Result<Option<Tick>> {
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

    fn reading(&self) -> String {
        format!("read queue \"{}\"", self.queue())
    }
}
