//! The loop over batches: which comes next, and what comes between them.
//!
//! Each batch is one transaction (batch/transaction.rs). Between batches it looks what has become of the copies (copy.rs): a
//! table whose copy is complete gets the events that were kept for it (batch/kept.rs).

mod kept;
mod late;
mod transaction;

use futures_util::future;
use tokio_postgres::{Client, Statement};
use wire::snapshot::Snapshot;

use super::apply::{Applier, Failure};
use super::copy::{self, Copies};
use super::duty::{Duty, Tick};
use super::execute;
use super::goal;
use super::had;
use super::held;
use super::idle::Idle;
use super::sequences::Values;
use super::session;
use super::setup::Ready;
use super::stream::Decoder;
use super::table_state::{self, State};
use super::trouble;
use super::{Ended, Memory, Portion};
use crate::config::{Policy, ReplayConfig};
use crate::error::{Doing, Error, Result};
use crate::progress::{BatchReport, Progress};
use crate::shutdown::Shutdown;
use transaction::Applied;

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
    /// When its tick was made.
    time: String,
    /// Where the sequence of event ids stood then.
    event_seq: i64,
    lag: BatchReport,
    /// Where the provider's sequences stood after its last tick.
    sequences: Values,
    /// The partitioned tables have the same partitions after its last tick as when the tables were looked at.
    same_partitions: bool,
    /// The query for the events; None when there can be none.
    events: Option<String>,
}

struct Stream<'a> {
    ready: Ready,
    next_batch: Statement,
    open_batch: Statement,
    finish_batch: Statement,
    /// None while it is lent to the task that reads.
    decoder: Option<Decoder>,
    applier: Applier,
    chunk_bytes: usize,
    /// The role that files are executed as.
    execute_as: Option<String>,
    /// Tables whose copy is there, and of which events are kept.
    draining: Vec<usize>,
    /// Reads kept events; opened when there are some.
    held: Option<Client>,
    /// A copy came, whose values no sequence was moved for.
    copied: bool,
    /// What a node does besides.
    duty: Option<Duty>,
    late: late::Until,
    /// The node may have events of ticks that it lacks (had.rs).
    had: bool,
    shutdown: &'a Shutdown,
}

/// Streams until told to stop, or until caught up where that was asked for.
pub(super) async fn stream(
    mut ready: Ready,
    copies: &mut Copies,
    config: &ReplayConfig,
    shutdown: &Shutdown,
    progress: &Progress,
    memory: &mut Memory,
) -> Result<Ended> {
    let p = &ready.provider.client;
    let what = || "prepare the queries for batches on the provider".to_owned();
    let duty = config
        .node
        .as_ref()
        .map(|node| Duty::new(node.clone(), &ready.encoding, config.watermark_interval));
    let had = had::any(&ready.subscriber.client, config.node.as_ref()).await?;
    let tick_by_tick = duty.as_ref().is_some_and(Duty::tick_by_tick);
    let next_batch = p
        .prepare(if tick_by_tick {
            include_str!("sql/next_tick.sql")
        } else {
            include_str!("sql/next_batch.sql")
        })
        .await
        .doing(what)?;
    let open_batch = p.prepare(include_str!("sql/open_batch.sql")).await.doing(what)?;
    let finish_batch = p.prepare("select pgq.finish_batch($1)").await.doing(what)?;
    session::match_encoding(&ready.subscriber.client, &ready.encoding).await?;
    if ready.targets.iter().all(|target| !target.subscriber.fires_triggers) {
        session::look_up_by_index(&ready.subscriber.client).await?;
    }
    let mut reached = goal::reached(p, &ready).await?;
    ready.sequences.begin(&ready.subscriber.client).await?;
    let held = held::tables(&ready.subscriber.client, &ready.who).await?;
    let decoder = Some(Decoder::new(&ready.targets, &held, &ready.parked, config.chunk_bytes));
    let late = match &decoder {
        Some(decoder) => late::Until::now(&ready, decoder, &config.queue).await?,
        None => late::Until::Never,
    };
    let draining = (0..ready.targets.len())
        .filter(|&i| {
            let target = &ready.targets[i];
            matches!(target.state, State::CatchingUp(_) | State::Ok) && held.contains(&target.provider.name)
        })
        .collect();
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
        chunk_bytes: config.chunk_bytes,
        execute_as: config.execute_as.clone(),
        draining,
        held: None,
        // What was copied before has values, too.
        copied: true,
        duty,
        late,
        had,
        shutdown,
    };
    let mut to_finish = None;
    let mut kept_first = false;
    let mut idle = Idle::new();
    loop {
        while let Some(done) = arrived(copies.next_now().await, &stream.ready, memory).await? {
            stream.copied(done, memory);
        }
        if std::mem::take(&mut stream.copied) {
            stream.move_sequences().await?;
        }
        stream.drain(config, memory).await?;
        if stream.partitions_change(reached.as_ref(), memory) {
            if let Some(id) = to_finish {
                stream.finish(id).await?;
            }
            return Ok(Ended::TablesChanged);
        }
        // After the copies, so that what is reached shows their tables whole.
        if config.until_caught_up
            && memory.goal.is_none()
            && memory.goal_tick.is_none()
            && !copies.running()
            && !stream.holds()
        {
            let p = &stream.ready.provider.client;
            if stream.duty.is_some() {
                memory.goal_tick = Some(goal::goal_tick(p, &config.queue).await?);
            } else {
                memory.goal = Some(goal::goal(p, &config.queue).await?);
            }
        }
        let caught_up = !copies.running()
            && !stream.holds()
            && (memory
                .goal
                .as_ref()
                .zip(reached.as_ref())
                .is_some_and(|(goal, reached)| reached.includes(goal))
                || memory
                    .goal_tick
                    .is_some_and(|goal| stream.ready.tick >= goal && stream.settled()));
        if caught_up {
            stream.in_order(memory).await?;
        }
        if caught_up || shutdown.requested() {
            if let Some(id) = to_finish {
                stream.finish(id).await?;
            }
            if caught_up && config.exact_sequences {
                let (p, s) = (&stream.ready.provider.client, &stream.ready.subscriber.client);
                stream.ready.sequences.set_exactly(p, s).await?;
            }
            tracing::info!(
                tick = stream.ready.tick,
                "{}",
                if caught_up { "caught up" } else { "stopped" }
            );
            return Ok(Ended::Done);
        }
        kept_first &= !stream.draining.is_empty();
        if kept_first {
            continue;
        }
        // What was announced up to here, the answer will know of.
        while stream.ready.provider.notifications.try_recv().is_ok() {}
        if let Some(duty) = &mut stream.duty {
            duty.publish(&stream.ready.provider.client, &stream.ready.subscriber.client)
                .await?;
        }
        let Some(offer) = stream.next(to_finish.take()).await? else {
            if let Some(duty) = &stream.duty
                && duty.changed(&stream.ready.subscriber.client).await?
            {
                return Ok(Ended::NodeChanged);
            }
            if stream.draining.is_empty() {
                progress.idle();
                let (s, who) = (&stream.ready.subscriber.client, &stream.ready.who);
                if table_state::revision(s, who).await? != Some(stream.ready.revision)
                    || !stream.ready.partitions.holds(&stream.ready.provider.client).await?
                {
                    return Ok(Ended::TablesChanged);
                }
                stream.in_order(memory).await?;
                idle.look(&stream.ready.provider.client, &config.queue).await?;
                if memory.goal_tick.is_some() && !copies.running() {
                    // A tick from after the copies is what makes the tables ok.
                    goal::force_tick(&stream.ready.provider.client, &config.queue).await?;
                }
                if let Some(done) = stream.wait(config, copies, memory).await? {
                    stream.copied(done, memory);
                }
            }
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
        if !batch.same_partitions {
            return Ok(Ended::TablesChanged);
        }
        match stream.apply(&batch, memory).await {
            Ok(outcome @ (Applied::Committed(summary) | Applied::Executed(summary))) => {
                stream.ready.tick = batch.to;
                memory.advanced = true;
                memory.careful = None;
                progress.batch(BatchReport {
                    tick: batch.to,
                    events: summary.events,
                    bytes: summary.bytes,
                    ..batch.lag
                });
                if matches!(outcome, Applied::Executed(_)) {
                    stream.finish(offer.id).await?;
                    return Ok(Ended::Executed);
                }
                reached = Some(batch.snapshot);
            }
            Ok(Applied::KeptFirst) => {
                let s = &stream.ready.subscriber.client;
                s.batch_execute("rollback")
                    .await
                    .doing(|| "roll back on the subscriber".to_owned())?;
                to_finish = None;
                kept_first = true;
            }
            Ok(Applied::Stopped) => {
                tracing::info!(tick = stream.ready.tick, "stopped; the batch at hand was rolled back");
                return Ok(Ended::Done);
            }
            Ok(Applied::TablesChanged) => return Ok(Ended::TablesChanged),
            Ok(Applied::NodeChanged) => return Ok(Ended::NodeChanged),
            Err(failure) => return Err(stream.failed(failure, Portion::Batch(batch.to), memory)),
        }
    }
}

impl Batch {
    /// With these events of it.
    fn tick<'a>(&'a self, events: Option<&'a str>) -> Tick<'a> {
        Tick {
            id: self.to,
            time: &self.time,
            event_seq: self.event_seq,
            events,
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

    /// Until there may be something to do.
    async fn wait(
        &mut self,
        config: &ReplayConfig,
        copies: &mut Copies,
        memory: &mut Memory,
    ) -> Result<Option<copy::Done>> {
        // All four are cancel-safe. A closed channel is a lost connection, which the next query reports.
        tokio::select! {
            _ = self.ready.provider.notifications.recv() => Ok(None),
            () = tokio::time::sleep(config.poll_interval) => Ok(None),
            () = self.shutdown.wait() => Ok(None),
            done = copies.next(), if copies.running() => arrived(done, &self.ready, memory).await,
        }
    }

    /// Keeps the subscriber's sequences ahead, outside of a batch.
    async fn move_sequences(&mut self) -> Result<()> {
        let values = self.ready.sequences.read(&self.ready.provider.client).await?;
        self.ready
            .sequences
            .advance(&self.ready.subscriber.client, &values)
            .await
    }

    /// A copy is complete.
    fn copied(&mut self, done: copy::Done, memory: &mut Memory) {
        memory.advanced = true;
        self.copied = true;
        if let Some(decoder) = &mut self.decoder {
            decoder.copied(done.target, done.copied.clone());
        }
        self.ready.targets[done.target].state = State::CatchingUp(done.copied);
        self.draining.push(done.target);
    }

    /// Whether every table is ok, or as far as it can get: a provider that is no root makes no tick for us.
    fn settled(&self) -> bool {
        self.ready.external || self.ready.targets.iter().all(|target| target.state == State::Ok)
    }

    /// Whether a table has no copy yet, or kept events.
    fn holds(&self) -> bool {
        self.decoder.as_ref().is_some_and(Decoder::holds)
    }

    /// Notes what a failure is about, for the next attempt and for the table's state.
    fn failed(&self, failure: Failure, portion: Portion, memory: &mut Memory) -> Error {
        memory.failed_table = failure
            .table
            .map(|table| self.ready.targets[table].provider.name.clone());
        let answerable = !failure.error.is_transient()
            && failure
                .table
                .is_some_and(|table| self.ready.targets[table].policy != Policy::Stop);
        if (failure.unclear || answerable) && memory.careful.as_ref() != Some(&portion) {
            memory.careful = Some(portion);
            memory.again = true;
        }
        failure.error
    }

    async fn open(&self, offer: &Offer) -> Result<Batch> {
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
            events: row.get("events"),
        })
    }

    /// There is nothing to apply, and nothing went wrong on the way to knowing that.
    async fn in_order(&self, memory: &mut Memory) -> Result<()> {
        if memory.in_order && memory.parking.is_empty() {
            return Ok(());
        }
        let (client, who) = (&self.ready.subscriber.client, &self.ready.who);
        if self.begin().await? != self.ready.revision {
            return Err(Error::failure("the set of tables was changed").transient());
        }
        memory.parking.write(client, who).await?;
        trouble::over(client, who).await?;
        who.commit(client, self.ready.tick, "").await?;
        memory.parking.done();
        memory.in_order = true;
        Ok(())
    }
}

/// What a copy reports. A failure is noted with its table, unless a file was executed on the provider meanwhile: then the
/// tables may just not fit yet.
async fn arrived(
    outcome: Result<Option<copy::Done>, copy::Failure>,
    ready: &Ready,
    memory: &mut Memory,
) -> Result<Option<copy::Done>> {
    let failure = match outcome {
        Ok(done) => return Ok(done),
        Err(failure) => failure,
    };
    if execute::pending(&ready.provider.client, &ready.who, ready.tick).await? {
        return Err(failure.error.transient());
    }
    memory.failed_table = failure.target.map(|target| ready.targets[target].provider.name.clone());
    Err(failure.error)
}
