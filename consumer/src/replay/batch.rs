//! The loop over batches, and the one transaction that each of them is.
//!
//! Between batches it looks what has become of the copies (copy.rs): a table whose copy is complete gets the events that
//! were kept for it (held.rs), portion by portion, each a transaction too.

use std::sync::Arc;

use futures_util::future;
use tokio::sync::mpsc;
use tokio_postgres::{Client, CopyOutStream, Statement};
use wire::snapshot::Snapshot;

use super::apply::{Applier, Failure};
use super::conflict::Book;
use super::copy::{self, Copies};
use super::duty::{Duty, Tick};
use super::event;
use super::execute::{self, Execute};
use super::goal;
use super::held;
use super::idle::Idle;
use super::sequences::Values;
use super::session;
use super::setup::{Ready, Target};
use super::stream::{Decoder, Summary};
use super::table::{self, Name};
use super::table_state::{self, State};
use super::trouble;
use super::{Ended, Memory, Portion};
use crate::config::{Policy, ReplayConfig};
use crate::connect::{End, connect};
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

enum Applied {
    Committed(Summary),
    /// The same, with something that was executed in it: the tables may be others now.
    Executed(Summary),
    /// Before what is to be executed in it, kept events have to be applied. Nothing was.
    KeptFirst,
    /// A shutdown came in between, and everything was rolled back.
    Stopped,
    /// The set of tables is another one: nothing was applied.
    TablesChanged,
    /// The node was asked for something else; nothing was applied.
    NodeChanged,
}

/// What was found when a batch's transaction began.
enum Begun {
    AsBefore,
    TablesChanged,
    NodeChanged,
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
        shutdown,
    };
    let mut to_finish = None;
    let mut kept_first = false;
    let mut idle = Idle::new();
    loop {
        while let Some(done) = arrived(copies.next_now().await, &stream.ready, memory)? {
            stream.copied(done, memory);
        }
        if std::mem::take(&mut stream.copied) {
            stream.move_sequences().await?;
        }
        stream.drain(config, memory).await?;
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
    fn tick(&self) -> Tick<'_> {
        Tick {
            id: self.to,
            time: &self.time,
            event_seq: self.event_seq,
            events: self.events.as_deref(),
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
            done = copies.next(), if copies.running() => arrived(done, &self.ready, memory),
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

    /// Applies a portion of the kept events of every table that has its copy.
    async fn drain(&mut self, config: &ReplayConfig, memory: &mut Memory) -> Result<()> {
        for table in std::mem::take(&mut self.draining) {
            let name = self.ready.targets[table].provider.name.clone();
            let mut left = self.portion(&name).await?;
            if let Some(upto) = left {
                let portion = Portion::Held(name.clone(), upto);
                let careful = (memory.careful.as_ref() == Some(&portion)).then(|| self.book(upto));
                match self.apply_held(&name, upto, careful.as_ref(), config).await {
                    Ok(Some(summary)) => {
                        memory.advanced = true;
                        memory.careful = None;
                        tracing::info!(table = %name, events = summary.events, "events that came during its copy are applied");
                    }
                    Ok(None) => return Ok(()),
                    Err(failure) => return Err(self.failed(failure, portion, memory)),
                }
                left = self.portion(&name).await?;
            }
            // Looked at before the next batch: a table that is written to all the time would never be without.
            match &mut self.decoder {
                Some(decoder) if left.is_none() => decoder.release(table),
                _ => self.draining.push(table),
            }
        }
        Ok(())
    }

    async fn portion(&self, table: &Name) -> Result<Option<i64>> {
        held::portion(&self.ready.subscriber.client, &self.ready.who, table).await
    }

    /// The transaction that applies a portion of kept events, and forgets them. None: a shutdown came in between.
    async fn apply_held(
        &mut self,
        name: &Name,
        upto: i64,
        careful: Option<&Book>,
        config: &ReplayConfig,
    ) -> Result<Option<Summary>, Failure> {
        let held = match self.held.take() {
            Some(held) => held,
            None => {
                let application_name = format!("pgcascade held {} {}", self.ready.who.queue, self.ready.who.consumer);
                connect(&config.subscriber, End::Subscriber, &application_name)
                    .await?
                    .client
            }
        };
        if self.begin().await? != self.ready.revision {
            return Err(Error::failure("the set of tables was changed").transient().into());
        }
        let source = held
            .copy_out(&held::portion_query(&self.ready.who, name, upto))
            .await
            .doing(|| format!("read kept events of table {name} on the subscriber"))?;
        let Some((summary, _)) = self.apply_events(source, None, careful).await? else {
            return Ok(None);
        };
        let client = &self.ready.subscriber.client;
        held::applied(client, &self.ready.who, name, upto).await?;
        failpoint("before_held_commit");
        self.ready
            .who
            .commit(client, self.ready.tick, "")
            .await
            .map_err(|error| self.of_constraint(error))?;
        failpoint("after_held_commit");
        self.held = Some(held);
        self.tell_of_conflicts(upto);
        Ok(Some(summary))
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

    /// The transaction.
    async fn apply(&mut self, batch: &Batch, memory: &mut Memory) -> Result<Applied, Failure> {
        let (began, source) = self.begin_and_read(batch).await;
        match began? {
            Begun::AsBefore => {}
            Begun::TablesChanged => return Ok(Applied::TablesChanged),
            Begun::NodeChanged => return Ok(Applied::NodeChanged),
        }
        let mut source = source?;
        let mut summary = Summary::default();
        // Whatever was waiting for it (setup.rs) is looked at again, also where the file is not for this subscriber.
        let mut executed = false;
        while let Some(part) = source.take() {
            let careful = (memory.careful == Some(Portion::Batch(batch.to))).then(|| self.book(batch.to));
            let Some((read, execute)) = self.apply_events(part, Some(batch.to), careful.as_ref()).await? else {
                return Ok(Applied::Stopped);
            };
            summary.events += read.events;
            summary.bytes += read.bytes;
            if let Some(execute) = execute {
                if !self.draining.is_empty() {
                    return Ok(Applied::KeptFirst);
                }
                executed |= self.execute(&execute).await? || self.ready.pending;
                source = self.read(batch, Some(execute.id)).await?;
            }
        }
        if let Some(duty) = &self.duty
            && self
                .decoder
                .as_mut()
                .is_some_and(|decoder| std::mem::take(&mut decoder.told))
        {
            duty.tell(
                &self.ready.provider.client,
                &self.ready.subscriber.client,
                &batch.tick(),
            )
            .await?;
        }
        self.commit(batch, memory).await?;
        Ok(if executed {
            Applied::Executed(summary)
        } else {
            Applied::Committed(summary)
        })
    }

    /// Executes a file in the batch's transaction, and looks at the tables again. Returns whether it did.
    async fn execute(&mut self, execute: &Execute) -> Result<bool> {
        let (s, who) = (&self.ready.subscriber.client, &self.ready.who);
        let targets = &self.ready.targets;
        let names = |target: &Target| (target.provider.name.clone(), target.subscriber.name.clone());
        // Those that are parked come back some day, and then have to fit.
        let parked = self.ready.parked.iter();
        let parked = parked.map(|entry| (entry.provider.clone(), entry.subscriber.clone()));
        let tables: Vec<(Name, Name)> = targets.iter().map(names).chain(parked).collect();
        if !execute::on_subscriber(s, who, self.execute_as.as_deref(), &tables, execute).await? {
            return Ok(false);
        }
        let mut revision = None;
        for target in targets {
            let is_older = match &target.state {
                State::InCopy | State::InChunks(_) => false,
                State::CatchingUp(copied) => !copied.last().sees(execute.txid),
                State::Ok | State::Broken => true,
            };
            if !is_older {
                let number = match revision {
                    Some(number) => number,
                    None => *revision.insert(table_state::next_revision(s, who).await?),
                };
                table_state::start_over(s, who, &target.provider.name, number).await?;
                tracing::info!(table = %target.provider.name, "to be copied again, as the file was executed during its copy");
            }
        }
        let names = |name: fn(&Target) -> &Name| targets.iter().map(|target| name(target).clone()).collect::<Vec<_>>();
        let provider_names = names(|target| &target.provider.name);
        let subscriber_names = names(|target| &target.subscriber.name);
        let at_provider = table::inspect(&self.ready.provider.client, End::Provider, &provider_names).await?;
        // Inside the transaction, which sees what was executed.
        let at_subscriber = table::inspect(s, End::Subscriber, &subscriber_names).await?;
        for target in &mut self.ready.targets {
            // One that is gone can have no more events; the next start says that it is.
            if let Some(table) = at_provider.get(&target.provider.name) {
                target.provider = Arc::new(target.filter.part_of(table));
            }
            if let Some(table) = at_subscriber.get(&target.subscriber.name) {
                target.subscriber = Arc::new(table.clone());
            }
        }
        let held = self.decoder.as_ref().map(Decoder::held).unwrap_or_default();
        let ready = &self.ready;
        self.decoder = Some(Decoder::new(&ready.targets, &held, &ready.parked, self.chunk_bytes));
        let answered = self.applier.answered;
        self.applier = Applier::new(&ready.targets);
        self.applier.answered = answered;
        Ok(true)
    }

    /// The batch's events, or those behind one of them.
    async fn read(&self, batch: &Batch, behind: Option<i64>) -> Result<Option<CopyOutStream>> {
        let Some(events) = &batch.events else { return Ok(None) };
        let by_rows = self.decoder.as_ref().is_some_and(Decoder::by_rows);
        let query = event::events_query(events, by_rows, behind);
        let source = self.ready.provider.client.copy_out(&query).await;
        source.doing(|| "read the batch from the provider".to_owned()).map(Some)
    }

    /// Begins the transaction, and the read of the batch.
    async fn begin_and_read(&self, batch: &Batch) -> (Result<Begun>, Result<Option<CopyOutStream>>) {
        let begin = async {
            if self.begin().await? != self.ready.revision {
                return Ok(Begun::TablesChanged);
            }
            let Some(duty) = &self.duty else {
                return Ok(Begun::AsBefore);
            };
            let (p, s) = (&self.ready.provider.client, &self.ready.subscriber.client);
            if duty.changed(s).await? {
                return Ok(Begun::NodeChanged);
            }
            duty.store(p, s, &batch.tick()).await?;
            Ok::<Begun, Error>(Begun::AsBefore)
        };
        let read = self.read(batch, None);
        // Both at once, unless the batch is read to be stored first.
        if self.duty.as_ref().is_some_and(Duty::tick_by_tick) {
            match begin.await {
                Ok(Begun::AsBefore) => (Ok(Begun::AsBefore), read.await),
                other => (other, Ok(None)),
            }
        } else {
            future::join(begin, read).await
        }
    }

    /// Reads events and applies them, up to what is to be executed; those of tables in copy are kept for later, under `tick`.
    /// Without a tick these are kept events. None: a shutdown came in between.
    async fn apply_events(
        &mut self,
        source: CopyOutStream,
        tick: Option<i64>,
        careful: Option<&Book>,
    ) -> Result<Option<(Summary, Option<Execute>)>, Failure> {
        let mut decoder = self
            .decoder
            .take()
            .ok_or_else(|| Error::failure("a batch was begun inside another").transient())?;
        decoder.careful = careful.is_some();
        decoder.draining = tick.is_none();
        // One chunk waits while another is applied, and the reader holds a third.
        let (sender, mut chunks) = mpsc::channel(1);
        let reader = tokio::spawn(async move {
            let outcome = decoder.read(source, sender).await;
            (decoder, outcome)
        });
        let client = &self.ready.subscriber.client;
        let mut first = true;
        while let Some(chunk) = chunks.recv().await {
            if std::mem::take(&mut first) {
                failpoint("after_read");
            }
            if self.shutdown.requested() && !reader.is_finished() {
                return Ok(None);
            }
            if let (false, Some(tick)) = (chunk.held.is_empty(), tick) {
                // Rows may still be on their way in a COPY.
                self.applier.finish().await?;
                let names: Vec<&Name> = self.ready.targets.iter().map(|target| &target.provider.name).collect();
                held::keep(client, &self.ready.who, tick, &names, &chunk).await?;
            }
            self.applier.apply(client, &chunk, careful).await?;
        }
        if first {
            failpoint("after_read");
        }
        let (decoder, outcome) = reader
            .await
            .map_err(|error| Error::failure(format!("the task that reads the batch ended: {error}")))?;
        let table = decoder.failed;
        self.decoder = Some(decoder);
        let read = outcome.map_err(|error| Failure {
            table,
            ..Failure::from(error)
        })?;
        self.applier.finish().await?;
        Ok(Some(read))
    }

    /// Begins the transaction and locks the position in it; returns the revision of the set of tables. Whoever waited for
    /// the lock finds the position moved, and stops.
    async fn begin(&self) -> Result<i64> {
        let who = &self.ready.who;
        match who.begin(&self.ready.subscriber.client).await? {
            Some((tick, revision)) if tick == self.ready.tick => Ok(revision),
            Some((tick, _)) => {
                let was = self.ready.tick;
                Err(who.lost(&format!(
                    "it was tick {was}, and somebody moved it to tick {tick} meanwhile"
                )))
            }
            None => Err(who.lost("its row on the subscriber is gone")),
        }
    }

    async fn commit(&mut self, batch: &Batch, memory: &mut Memory) -> Result<(), Failure> {
        let client = &self.ready.subscriber.client;
        let who = &self.ready.who;
        let decoder = self.decoder.as_ref();
        let caught_up = decoder.map_or_else(Vec::new, |decoder| decoder.caught_up(&batch.snapshot));
        for &table in &caught_up {
            table_state::caught_up(client, who, &self.ready.targets[table].provider.name).await?;
        }
        memory.parking.write(client, who).await?;
        if !memory.in_order {
            trouble::over(client, who).await?;
        }
        self.ready.sequences.advance(client, &batch.sequences).await?;
        failpoint("before_commit");
        let beside = self.duty.as_ref().map(|duty| duty.commit(batch.to, &batch.time));
        who.commit(client, batch.to, &beside.unwrap_or_default())
            .await
            .map_err(|error| self.of_constraint(error))?;
        failpoint("after_commit");
        memory.in_order = true;
        memory.parking.done();
        self.tell_of_conflicts(batch.to);
        for table in caught_up {
            if let Some(decoder) = &mut self.decoder {
                decoder.stop_filtering(table);
            }
            let target: &mut Target = &mut self.ready.targets[table];
            target.state = State::Ok;
            tracing::info!(table = %target.provider.name, "table caught up");
        }
        Ok(())
    }

    /// A constraint that is checked at the end of the transaction says which table it is of, and not which row.
    fn of_constraint(&self, error: Error) -> Failure {
        let table = error.table().and_then(|(schema, table)| {
            let name = Name::new(schema, table);
            self.ready
                .targets
                .iter()
                .position(|target| target.subscriber.name == name)
        });
        Failure {
            table,
            ..Failure::from(error)
        }
    }

    /// What the conflicts of a transaction that ends with this tick are recorded under.
    fn book(&self, tick: i64) -> Book {
        Book {
            who: self.ready.who.clone(),
            tick,
        }
    }

    fn tell_of_conflicts(&mut self, tick: i64) {
        let answered = std::mem::take(&mut self.applier.answered);
        if answered > 0 {
            tracing::warn!(
                tick,
                conflicts = answered,
                "conflicts were answered as --on-conflict says, see pgcascade_replay.conflict on the subscriber"
            );
        }
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

/// What a copy reports. A failure is noted with its table.
fn arrived(
    outcome: Result<Option<copy::Done>, copy::Failure>,
    ready: &Ready,
    memory: &mut Memory,
) -> Result<Option<copy::Done>> {
    outcome.map_err(|failure| {
        memory.failed_table = failure.target.map(|target| ready.targets[target].provider.name.clone());
        failure.error
    })
}
