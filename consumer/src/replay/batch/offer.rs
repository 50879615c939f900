//! What the provider offers: which batch comes next, what is to be known of it before it is applied, and that it is done.

use futures_util::future::{self, OptionFuture};
use tokio_postgres::Row;

use super::super::event::Order;
use super::super::sequences::Values;
use super::super::{Memory, Portion};
use super::{Batch, Stream};
use crate::error::{Doing, Error, Result};
use crate::progress::BatchReport;

/// A batch of this many events is read as it is stored, if it can be: to sort less takes no time.
const MANY_EVENTS: i64 = 20_000;

/// After one that was not stored by event id, so many batches of that size are not tried.
pub(super) const SORTED_AFTERWARDS: u32 = 16;

/// A batch as the provider offers it.
pub(super) struct Offer {
    pub(super) id: i64,
    from: i64,
    pub(super) to: i64,
    opened: Option<Opened>,
}

/// What the provider says of the batch that is open.
struct Opened {
    row: Option<Row>,
    sequences: Values,
    same_partitions: bool,
}

impl Stream<'_> {
    /// Tells the provider that a batch is done, and asks for the next, in one go.
    pub(super) async fn next(&self, finished: Option<i64>) -> Result<Option<Offer>> {
        let who = &self.ready.who;
        let ask = async {
            let client = &self.ready.provider.client;
            client
                .query_opt(&self.next_batch, &[&who.queue, &who.consumer, &self.batch_events])
                .await
        };
        // All are sent before any is answered; the server does them in this order.
        let (done, row, opened) = future::join3(
            OptionFuture::from(finished.map(|id| self.finish(id))),
            ask,
            OptionFuture::from(self.is_behind.then(|| self.look())),
        )
        .await;
        done.transpose()?;
        let row = row.doing(|| {
            format!(
                "get the next batch of queue \"{}\" for consumer \"{}\"",
                who.queue, who.consumer
            )
        })?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(Offer {
            id: row.get(0),
            from: row.get(1),
            to: row.get(2),
            opened: opened.transpose()?,
        }))
    }

    /// What is to be known of the batch that is open.
    async fn look(&self) -> Result<Opened> {
        let client = &self.ready.provider.client;
        let who = &self.ready.who;
        let with_events = self.duty.is_some();
        let (row, sequences, same_partitions) = future::join3(
            client.query_opt(&self.open_batch, &[&who.queue, &who.consumer, &with_events]),
            self.ready.sequences.read(client),
            self.ready.partitions.holds(client),
        )
        .await;
        Ok(Opened {
            row: row.doing(|| format!("look at the open batch of queue \"{}\" on the provider", who.queue))?,
            sequences: sequences?,
            same_partitions: same_partitions?,
        })
    }

    pub(super) async fn open(&self, offer: Offer, memory: &mut Memory) -> Result<Batch> {
        if offer.from != self.ready.tick {
            return Err(self.ready.who.lost(&format!(
                "the subscriber is at tick {}, the provider offers the batch from tick {} to {}",
                self.ready.tick, offer.from, offer.to
            )));
        }
        let opened = match offer.opened {
            Some(opened) => opened,
            None => self.look().await?,
        };
        let row = opened.row.ok_or_else(|| {
            Error::failure(format!(
                "batch {} was finished or closed on the provider meanwhile",
                offer.id
            ))
            .transient()
        })?;
        let text: String = row.get("snapshot");
        let snapshot = text
            .parse()
            .map_err(|error| Error::failure(format!("the snapshot of tick {} cannot be read: {error}", offer.to)))?;
        Ok(Batch {
            from: offer.from,
            to: offer.to,
            snapshot,
            time: row.get("tick_time"),
            event_seq: row.get("event_seq"),
            lag: BatchReport {
                lag_ticks: row.get::<_, i64>("lag_ticks").try_into().unwrap_or(0),
                lag_events: row
                    .get::<_, Option<i64>>("lag_events")
                    .unwrap_or(0)
                    .try_into()
                    .unwrap_or(0),
                lag_seconds: row.get("lag_seconds"),
                ..BatchReport::default()
            },
            sequences: opened.sequences,
            same_partitions: opened.same_partitions,
            events: query_of(&row, "events"),
            rows: query_of(&row, "rows"),
            order: self.order(offer.to, row.get("events_about"), memory),
        })
    }

    /// In which order a batch is read that may have `about` events: so many ids were drawn. Those that are not worth a trial count for
    /// nothing.
    fn order(&self, tick: i64, about: i64, memory: &mut Memory) -> Order {
        let once_more = memory.careful == Some(Portion::Batch(tick));
        if about < MANY_EVENTS || once_more || self.had {
            return Order::ById;
        }
        let sorted = memory.sorted_next > 0;
        memory.sorted_next = memory.sorted_next.saturating_sub(1);
        order(about, sorted)
    }

    pub(super) async fn finish(&self, id: i64) -> Result<()> {
        let row = self
            .ready
            .provider
            .client
            .query_one(&self.finish_batch, &[&id])
            .await
            .doing(|| format!("finish batch {id} on the provider"))?;
        if row.get::<_, i32>(0) == 0 {
            // The next offer shows whether that matters: it must begin where the subscriber is.
            tracing::warn!(
                batch = id,
                "the provider does not know the batch that was to be finished"
            );
        }
        Ok(())
    }
}

/// In which order a batch is read of which nothing else is known.
pub(super) fn order(about: i64, sorted: bool) -> Order {
    if sorted || about < MANY_EVENTS {
        Order::ById
    } else {
        Order::AsStored
    }
}

/// A query for a batch, as the provider says it.
pub(super) fn query_of(row: &Row, column: &str) -> Option<String> {
    let query: Option<&str> = row.get(column);
    query.map(|query| query.trim_end().trim_end_matches(';').to_owned())
}
