//! What the provider offers: which batch comes next, what is to be known of it before it is applied, and that it is done.

use futures_util::future;

use super::super::event::Order;
use super::super::{Memory, Portion};
use super::{Batch, Offer, Stream};
use crate::error::{Doing, Error, Result};
use crate::progress::BatchReport;

/// A batch of this many events is read as it is stored, if it can be: to sort less takes no time.
const MANY_EVENTS: i64 = 20_000;

/// After one that was not stored by event id, so many batches of that size are not tried.
pub(super) const SORTED_AFTERWARDS: u32 = 16;

impl Stream<'_> {
    /// Tells the provider that a batch is done, and asks for the next, in one go.
    pub(super) async fn next(&self, finished: Option<i64>) -> Result<Option<Offer>> {
        let client = &self.ready.provider.client;
        let who = &self.ready.who;
        let ask = async {
            client
                .query_opt(&self.next_batch, &[&who.queue, &who.consumer, &self.batch_events])
                .await
        };
        let row = match finished {
            // Both are sent before either is answered; the server does them in this order.
            Some(id) => {
                let (done, row) = future::join(self.finish(id), ask).await;
                done?;
                row
            }
            None => ask.await,
        };
        let row = row.doing(|| {
            format!(
                "get the next batch of queue \"{}\" for consumer \"{}\"",
                who.queue, who.consumer
            )
        })?;
        Ok(row.map(|row| Offer {
            id: row.get(0),
            from: row.get(1),
            to: row.get(2),
        }))
    }

    pub(super) async fn open(&self, offer: &Offer, memory: &mut Memory) -> Result<Batch> {
        if offer.from != self.ready.tick {
            return Err(self.ready.who.lost(&format!(
                "the subscriber is at tick {}, the provider offers the batch from tick {} to {}",
                self.ready.tick, offer.from, offer.to
            )));
        }
        let client = &self.ready.provider.client;
        let (row, sequences, same_partitions) = future::join3(
            client.query_one(&self.open_batch, &[&offer.id]),
            self.ready.sequences.read(client),
            self.ready.partitions.holds(client),
        )
        .await;
        let row = row.doing(|| format!("open batch {} on the provider", offer.id))?;
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
            sequences: sequences?,
            same_partitions: same_partitions?,
            events: row
                .get::<_, Option<&str>>("events")
                .map(|events| events.trim_end().trim_end_matches(';').to_owned()),
            order: self.order(offer, row.get("events_about"), memory),
        })
    }

    /// In which order a batch is read that may have `about` events: so many ids were drawn. Those that are not worth a trial count for
    /// nothing.
    fn order(&self, offer: &Offer, about: i64, memory: &mut Memory) -> Order {
        let once_more = memory.careful == Some(Portion::Batch(offer.to));
        if about < MANY_EVENTS || once_more || self.had {
            return Order::ById;
        }
        if memory.sorted_next > 0 {
            memory.sorted_next -= 1;
            return Order::ById;
        }
        Order::AsStored
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
