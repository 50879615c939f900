//! The loop over batches: which comes next, and what comes between them.
//!
//! Each batch is one transaction (batch/transaction.rs). Between batches it looks what has become of the copies (copy.rs): a
//! table whose copy is complete gets the events that were kept for it (batch/kept.rs).

mod ahead;
mod kept;
mod late;
mod offer;
mod rest;
mod transaction;

use tokio_postgres::Statement;
use wire::snapshot::Snapshot;

use super::apply::{Applier, Failure};
use super::copy::{self, Copies};
use super::donated::{self, Queries};
use super::duty::{Duty, Tick};
use super::event::Order;
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
use super::{Ended, Memory, Portion};
use crate::config::{MaxMemory, Policy, ReplayConfig};
use crate::connect::Session;
use crate::error::{Doing, Error, Result};
use crate::progress::{BatchReport, Progress};
use crate::shutdown::Shutdown;
pub(super) use ahead::Part;
use ahead::{Ahead, Reader};
use kept::Drained;
use transaction::Applied;
pub(super) use transaction::Source;

/// What the provider offers, opened.
struct Batch {
    from: i64,
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
    /// The query for the events, which a node stores or passes on; None when there can be none, and where there is no node.
    events: Option<String>,
    /// That for the rows in which they are stored (event.rs).
    rows: Option<String>,
    order: Order,
}

struct Stream<'a> {
    ready: Ready,
    next_batch: Statement,
    open_batch: Statement,
    finish_batch: Statement,
    /// None while it is lent to the task that reads.
    decoder: Option<Decoder>,
    /// It has the decoder also between batches where it reads ahead.
    reader: Option<Reader>,
    /// None where nothing can be read ahead.
    ahead: Option<Ahead>,
    /// There was another tick behind the last batch.
    is_behind: bool,
    /// The size of the largest event so far.
    largest: usize,
    applier: Applier,
    /// While the consumer is behind, ticks are merged up to about so many events, as a commit for each tick would be most of the work.
    batch_events: i32,
    max_memory: MaxMemory,
    /// The role that files are executed as.
    execute_as: Option<String>,
    /// Tables whose copy is there, and of which events are kept.
    draining: Vec<usize>,
    /// Reads kept events; opened when there are some.
    held: Option<Session>,
    /// A copy came, whose values no sequence was moved for.
    copied: bool,
    /// What a node does besides.
    duty: Option<Duty>,
    late: late::Until,
    /// The node may have events of ticks that it lacks (had.rs).
    had: bool,
    /// Both ends are one database (donated.rs).
    donated: bool,
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
    let duty = config.node.as_ref().map(|node| {
        Duty::new(
            node.clone(),
            &ready.encoding,
            config.watermark_interval,
            config.journal_bytes,
        )
    });
    let had = had::any(&ready.subscriber.client, config.node.as_ref()).await?;
    let queries = if config.donated {
        Queries::donated()
    } else {
        Queries::of_provider(duty.as_ref().is_some_and(Duty::tick_by_tick), ready.of_pgq)
    };
    let next_batch = p.prepare(&queries.next).await.doing(what)?;
    let open_batch = p.prepare(&queries.open).await.doing(what)?;
    let finish_batch = p.prepare(&queries.finish).await.doing(what)?;
    session::match_encoding(&ready.subscriber.client, &ready.encoding).await?;
    if ready.targets.iter().all(|target| !target.subscriber.fires_triggers) {
        session::look_up_by_index(&ready.subscriber.client).await?;
    }
    let mut reached = goal::reached(p, &ready).await?;
    ready.sequences.begin(&ready.subscriber.client).await?;
    let held = held::tables(&ready.subscriber.client, &ready.who).await?;
    let decoder = Some(Decoder::new(
        &ready.targets,
        &held,
        &ready.parked,
        config.max_memory.chunk(),
    ));
    // What is fetched from a leaf is near, PgQ does not say what it would offer next, and events that the node has had are found out by their tick.
    let ahead = if config.donated || ready.of_pgq || had {
        None
    } else {
        let tick_by_tick = duty.as_ref().is_some_and(Duty::tick_by_tick);
        let by_rows = decoder.as_ref().is_some_and(Decoder::by_rows);
        Some(Ahead::new(config, p, tick_by_tick, by_rows).await?)
    };
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
        reader: None,
        ahead,
        is_behind: false,
        largest: 0,
        applier,
        batch_events: config.batch_events,
        max_memory: config.max_memory,
        execute_as: config.execute_as.clone(),
        draining,
        held: None,
        // What was copied before has values, too.
        copied: true,
        duty,
        late,
        had,
        donated: config.donated,
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
        match stream.drain(config, memory).await? {
            Drained::All => {}
            Drained::Stopped => {
                tracing::info!(
                    tick = stream.ready.tick,
                    "stopped; the kept events at hand were rolled back"
                );
                return Ok(Ended::Done);
            }
            Drained::TablesChanged => return Ok(Ended::TablesChanged),
        }
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
            if config.donated {
                memory.goal_tick = Some(donated::last(p, &config.queue).await?);
            } else if stream.duty.is_some() {
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
        if caught_up && !stream.in_order(memory).await? {
            return Ok(Ended::TablesChanged);
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
        if let Some(duty) = stream.duty.as_mut().filter(|_| !config.donated) {
            duty.publish(&stream.ready.provider.client, &stream.ready.subscriber.client)
                .await?;
        }
        if let Some(duty) = &stream.duty
            && duty.moved(&stream.ready.subscriber.client).await?
        {
            // What is not finished is offered again, and known to be applied.
            return Ok(Ended::NodeChanged);
        }
        if stream.ready.watch.is_over(&stream.ready.provider.client).await? {
            return Ok(Ended::TablesChanged);
        }
        let Some(offer) = stream.next(to_finish.take()).await? else {
            if stream.reader.is_some() {
                stream.forget_ahead();
            }
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
                if !stream.in_order(memory).await? {
                    return Ok(Ended::TablesChanged);
                }
                if stream.is_swollen() && !copies.running() && !config.donated {
                    return Ok(Ended::Swollen);
                }
                idle.look(&stream.ready.provider.client, &config.queue).await?;
                if memory.goal_tick.is_some() && !copies.running() && !config.donated {
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
        let id = offer.id;
        let batch = stream.open(offer, memory).await?;
        stream.is_behind = batch.lag.lag_ticks > 0;
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
                    stream.finish(id).await?;
                    return Ok(Ended::Executed);
                }
                if memory.starts_over {
                    // What is not finished is offered again, and known to be applied.
                    return Ok(Ended::TablesChanged);
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
            // Be it that the order was found out, or what came of it.
            Err(failure) if batch.order == Order::AsStored && !failure.error.is_transient() => {
                tracing::info!(
                    tick = batch.to,
                    "the batch is read again by event id, as it is not stored in that order"
                );
                memory.sorted_next = offer::SORTED_AFTERWARDS + 1;
                return Ok(Ended::OutOfOrder);
            }
            Err(failure) => return Err(stream.failed(failure, Portion::Batch(batch.to), memory)),
        }
    }
}

impl Batch {
    /// The query for the events but those that the node has had (had.rs).
    fn events_without(&self, had: &[i64]) -> Option<String> {
        self.events.as_ref().map(|events| had::without(events, had))
    }

    /// What is to be read for them.
    fn rows_without(&self, had: &[i64]) -> Option<String> {
        if had.is_empty() {
            self.rows.clone()
        } else {
            self.events_without(had)
        }
    }

    /// With these events of it.
    fn tick<'a>(&'a self, events: Option<&'a str>) -> Tick<'a> {
        Tick {
            id: self.to,
            from: self.from,
            time: &self.time,
            event_seq: self.event_seq,
            events,
        }
    }
}

impl Stream<'_> {
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

    /// Whether a table has no copy yet, or kept events: not while the decoder reads ahead.
    fn holds(&self) -> bool {
        self.decoder.as_ref().map_or(self.reader.is_none(), Decoder::holds)
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
