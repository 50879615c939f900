//! The loop over batches, and the one transaction that each of them is.

use futures_util::future;
use tokio::sync::mpsc;
use tokio_postgres::Statement;
use wire::snapshot::Snapshot;

use super::Memory;
use super::apply::{Applier, Failure};
use super::event;
use super::goal;
use super::idle::Idle;
use super::session;
use super::setup::{Ready, Target};
use super::stream::{Decoder, Summary};
use super::table_state;
use crate::config::ReplayConfig;
use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;
use crate::progress::{BatchReport, Progress};
use crate::shutdown::Shutdown;

/// While the consumer is behind, ticks are merged up to about this many events, as a commit for each tick would be most
/// of the work. Not many more: a row that one transaction updates n times costs n squared, as each update passes the
/// versions before it, and every queue has its hot rows.
const EVENTS_WANTED: i32 = 4_000;

/// A batch as the provider offers it.
struct Offer {
    id: i64,
    from: i64,
    to: i64,
}

/// An offer, opened.
struct Batch {
    to: i64,
    snapshot: Snapshot,
    lag: BatchReport,
    /// The query for the events; None when there can be none.
    events: Option<String>,
}

enum Applied {
    Committed(Summary),
    /// A shutdown came in between, and everything was rolled back.
    Stopped,
}

struct Stream<'a> {
    ready: Ready,
    next_batch: Statement,
    open_batch: Statement,
    finish_batch: Statement,
    /// None while it is lent to the task that reads.
    decoder: Option<Decoder>,
    applier: Applier,
    shutdown: &'a Shutdown,
}

/// Streams until told to stop, or until caught up where that was asked for.
pub(super) async fn stream(
    ready: Ready,
    config: &ReplayConfig,
    shutdown: &Shutdown,
    progress: &Progress,
    memory: &mut Memory,
) -> Result<()> {
    let p = &ready.provider.client;
    let what = || "prepare the queries for batches on the provider".to_owned();
    let next_batch = p.prepare(include_str!("sql/next_batch.sql")).await.doing(what)?;
    let open_batch = p.prepare(include_str!("sql/open_batch.sql")).await.doing(what)?;
    let finish_batch = p.prepare("select pgq.finish_batch($1)").await.doing(what)?;
    if config.until_caught_up && memory.goal.is_none() {
        memory.goal = Some(goal::goal(p, &config.queue).await?);
    }
    session::match_encoding(&ready.subscriber.client, &ready.encoding).await?;
    if ready.targets.iter().all(|target| !target.subscriber.fires_triggers) {
        session::look_up_by_index(&ready.subscriber.client).await?;
    }
    let mut reached = goal::reached(p, &ready).await?;
    let decoder = Some(Decoder::new(&ready.targets, config.chunk_bytes));
    let applier = Applier::new(&ready.targets);
    tracing::info!(
        queue = config.queue,
        consumer = config.consumer,
        tick = ready.tick,
        tables = ready.targets.len(),
        "streaming"
    );
    let mut stream = Stream {
        ready,
        next_batch,
        open_batch,
        finish_batch,
        decoder,
        applier,
        shutdown,
    };
    let mut to_finish = None;
    let mut idle = Idle::new();
    loop {
        let caught_up = memory
            .goal
            .as_ref()
            .zip(reached.as_ref())
            .is_some_and(|(goal, reached)| reached.includes(goal));
        if caught_up || shutdown.requested() {
            if let Some(id) = to_finish {
                stream.finish(id).await?;
            }
            tracing::info!(
                tick = stream.ready.tick,
                "{}",
                if caught_up { "caught up" } else { "stopped" }
            );
            return Ok(());
        }
        // What was announced up to here, the answer will know of.
        while stream.ready.provider.notifications.try_recv().is_ok() {}
        let Some(offer) = stream.next(to_finish.take()).await? else {
            progress.idle();
            idle.look(&stream.ready.provider.client, &config.queue).await?;
            stream.wait(config).await;
            continue;
        };
        idle.over();
        to_finish = Some(offer.id);
        if offer.to == stream.ready.tick {
            // Applied by the life before this one, which ended before it could say so.
            tracing::info!(tick = offer.to, "batch applied already, finishing it");
            continue;
        }
        let batch = stream.open(&offer).await?;
        match stream.apply(&batch, memory).await {
            Ok(Applied::Committed(summary)) => {
                stream.ready.tick = batch.to;
                memory.advanced = true;
                memory.careful = None;
                progress.batch(BatchReport {
                    tick: batch.to,
                    events: summary.events,
                    bytes: summary.bytes,
                    ..batch.lag
                });
                reached = Some(batch.snapshot);
            }
            Ok(Applied::Stopped) => {
                tracing::info!(tick = stream.ready.tick, "stopped; the batch at hand was rolled back");
                return Ok(());
            }
            Err(failure) => {
                memory.failed_table = failure
                    .table
                    .map(|table| stream.ready.targets[table].provider.name.clone());
                if failure.unclear && memory.careful != Some(batch.to) {
                    memory.careful = Some(batch.to);
                    memory.again = true;
                }
                return Err(failure.error);
            }
        }
    }
}

impl Stream<'_> {
    /// Tells the provider that a batch is done, and asks for the next, in one go.
    async fn next(&self, finished: Option<i64>) -> Result<Option<Offer>> {
        let client = &self.ready.provider.client;
        let who = &self.ready.who;
        let ask = async {
            client
                .query_opt(&self.next_batch, &[&who.queue, &who.consumer, &EVENTS_WANTED])
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

    async fn finish(&self, id: i64) -> Result<()> {
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

    async fn wait(&mut self, config: &ReplayConfig) {
        // All three are cancel-safe. A closed channel is a lost connection, which the next query reports.
        tokio::select! {
            _ = self.ready.provider.notifications.recv() => {}
            () = tokio::time::sleep(config.poll_interval) => {}
            () = self.shutdown.wait() => {}
        }
    }

    async fn open(&self, offer: &Offer) -> Result<Batch> {
        if offer.from != self.ready.tick {
            return Err(self.ready.who.lost(&format!(
                "the subscriber is at tick {}, the provider offers the batch from tick {} to {}",
                self.ready.tick, offer.from, offer.to
            )));
        }
        let row = self
            .ready
            .provider
            .client
            .query_one(&self.open_batch, &[&offer.id])
            .await
            .doing(|| format!("open batch {} on the provider", offer.id))?;
        let text: String = row.get("snapshot");
        let snapshot = text
            .parse()
            .map_err(|error| Error::failure(format!("the snapshot of tick {} cannot be read: {error}", offer.to)))?;
        Ok(Batch {
            to: offer.to,
            snapshot,
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
            events: row.get("events"),
        })
    }

    /// The transaction.
    async fn apply(&mut self, batch: &Batch, memory: &mut Memory) -> Result<Applied, Failure> {
        let (began, source) = future::join(self.begin(), async {
            match &batch.events {
                Some(events) => self
                    .ready
                    .provider
                    .client
                    .copy_out(&event::events_query(events))
                    .await
                    .map(Some),
                None => Ok(None),
            }
        })
        .await;
        began?;
        let source = source.doing(|| "read the batch from the provider".to_owned())?;
        let mut summary = Summary::default();
        if let Some(source) = source {
            let mut decoder = self
                .decoder
                .take()
                .ok_or_else(|| Error::failure("a batch was begun inside another").transient())?;
            let careful = memory.careful == Some(batch.to);
            decoder.careful = careful;
            // One chunk waits while another is applied, and the reader holds a third.
            let (sender, mut chunks) = mpsc::channel(1);
            let reader = tokio::spawn(async move {
                let outcome = decoder.read(source, sender).await;
                (decoder, outcome)
            });
            let mut first = true;
            while let Some(chunk) = chunks.recv().await {
                if std::mem::take(&mut first) {
                    failpoint("after_read");
                }
                if self.shutdown.requested() && !reader.is_finished() {
                    return Ok(Applied::Stopped);
                }
                self.applier
                    .apply(&self.ready.subscriber.client, &chunk, careful)
                    .await?;
            }
            if first {
                failpoint("after_read");
            }
            let (decoder, outcome) = reader
                .await
                .map_err(|error| Error::failure(format!("the task that reads the batch ended: {error}")))?;
            let table = decoder.failed;
            self.decoder = Some(decoder);
            summary = outcome.map_err(|error| Failure {
                error,
                table,
                unclear: false,
            })?;
            self.applier.finish().await?;
        }
        self.commit(batch, memory).await?;
        Ok(Applied::Committed(summary))
    }

    /// Begins the transaction and locks the position in it. Whoever waited for the lock finds the position moved, and
    /// stops.
    async fn begin(&self) -> Result<()> {
        let who = &self.ready.who;
        match who.begin(&self.ready.subscriber.client).await? {
            Some(tick) if tick == self.ready.tick => Ok(()),
            Some(tick) => {
                let was = self.ready.tick;
                Err(who.lost(&format!(
                    "it was tick {was}, and somebody moved it to tick {tick} meanwhile"
                )))
            }
            None => Err(who.lost("its row on the subscriber is gone")),
        }
    }

    async fn commit(&mut self, batch: &Batch, memory: &mut Memory) -> Result<()> {
        let client = &self.ready.subscriber.client;
        let who = &self.ready.who;
        let decoder = self.decoder.as_ref();
        let caught_up = decoder.map_or_else(Vec::new, |decoder| decoder.caught_up(&batch.snapshot));
        for &table in &caught_up {
            table_state::caught_up(client, who, &self.ready.targets[table].provider.name).await?;
        }
        if !memory.errors_wiped {
            table_state::set_error(client, who, None, None).await?;
        }
        failpoint("before_commit");
        who.commit(client, batch.to).await?;
        failpoint("after_commit");
        memory.errors_wiped = true;
        for table in caught_up {
            if let Some(decoder) = &mut self.decoder {
                decoder.stop_filtering(table);
            }
            let target: &mut Target = &mut self.ready.targets[table];
            target.state = table_state::State::Ok;
            tracing::info!(table = %target.provider.name, "table caught up");
        }
        Ok(())
    }
}
