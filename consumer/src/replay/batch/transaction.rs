//! The transaction that a batch is: its events, what is executed among them, the position, and what is recorded beside it.
//!
//! Nothing of it is seen before all of it. Called by the loop (batch.rs); the parts that read and apply events also by kept.rs.

use std::sync::Arc;

use futures_util::future;

use super::super::apply::{Applier, Failure};
use super::super::conflict::Book;
use super::super::displaced;
use super::super::duty::Duty;
use super::super::event::{self, Order};
use super::super::execute::{self, Execute};
use super::super::had;
use super::super::held;
use super::super::merge;
use super::super::places;
use super::super::session;
use super::super::setup::Target;
use super::super::sources;
use super::super::stream::{Decoder, Summary};
use super::super::table::{self, Name};
use super::super::table_state::{self, State};
use super::super::trouble;
use super::super::{Memory, Portion};
use super::ahead::{Part, Reader};
use super::{Batch, Stream};
use crate::connect::End;
use crate::connect::flow::Reading;
use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;

pub(super) enum Applied {
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

/// Which events are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::replay) enum Source {
    /// Those of a batch.
    Batch,
    /// What comes in it behind a file that was executed, which is that event.
    Behind(i64),
    /// Those that were kept during a copy.
    Kept,
}

/// What was found when a batch's transaction began.
enum Begun {
    /// As before; with the events of the batch that the node has had before it.
    AsBefore(Vec<i64>),
    TablesChanged,
    NodeChanged,
}

impl Stream<'_> {
    /// The transaction.
    pub(super) async fn apply(&mut self, batch: &Batch, memory: &mut Memory) -> Result<Applied, Failure> {
        let careful = (memory.careful == Some(Portion::Batch(batch.to))).then(|| self.book(batch.to));
        let careful = careful.as_ref();
        let (began, source) = match self.read_ahead(batch).await {
            Some(reader) => (self.begin_batch(batch).await, Ok(Some(reader))),
            None => {
                let (began, source) = self.begin_and_read(batch).await;
                let start = |source| self.start(source, Source::Batch, batch.order, careful);
                (
                    began,
                    source
                        .map_err(Failure::from)
                        .and_then(|source| source.map(start).transpose()),
                )
            }
        };
        let had = match began? {
            Begun::AsBefore(had) => had,
            Begun::TablesChanged => return Ok(Applied::TablesChanged),
            Begun::NodeChanged => return Ok(Applied::NodeChanged),
        };
        let rows = batch.rows_without(&had);
        let mut source = source?;
        if let (Some(reader), Some(ahead)) = (&source, &self.ahead) {
            reader.goes_on_with(|| ahead.of(batch, memory.sorted_next > 0));
        }
        let mut summary = Summary::default();
        // Whatever was waiting for it (setup.rs) is looked at again, also where the file is not for this subscriber.
        let mut executed = false;
        while let Some(part) = source.take() {
            let applied = self.apply_events(part, Some(batch.to), careful).await?;
            let Some((read, execute)) = applied else {
                return Ok(Applied::Stopped);
            };
            summary.events += read.events;
            summary.bytes += read.bytes;
            summary.told |= read.told;
            if let Some(execute) = execute {
                if !self.draining.is_empty() {
                    return Ok(Applied::KeptFirst);
                }
                executed |= self.execute(&execute).await? || self.ready.pending;
                source = match self.read(rows.as_deref(), Some(execute.id), Order::ById).await? {
                    Some(behind) => Some(self.start(behind, Source::Behind(execute.id), Order::ById, careful)?),
                    None => None,
                };
            }
        }
        if let Some(duty) = &self.duty
            && summary.told
        {
            duty.tell(
                &self.ready.provider.client,
                &self.ready.subscriber.client,
                &batch.tick(batch.events_without(&had).as_deref()),
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
        let Some(named) = execute.here(&tables)? else {
            return Ok(false);
        };
        // First, and without the rows that are there: the file may meet those that it made itself on the provider.
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
                let was_cut = table_state::start_over(s, who, &target.provider.name, number).await?;
                // It may have been cut into chunks since the start.
                if target.state != State::InCopy || was_cut {
                    let table = &target.subscriber;
                    sources::keep_others(s, who, &table.name).await?;
                    s.batch_execute(&format!("delete from {}", table.own_rows()))
                        .await
                        .doing(|| format!("remove the rows of table {} on the subscriber", table.name))?;
                }
                tracing::info!(table = %target.provider.name, "to be copied again, as the file was executed during its copy");
            }
        }
        // A leaf that passes its events on does not pass files on: it stops unless somebody has seen to the file.
        let passes_on = self.duty.as_ref().is_some_and(|duty| duty.node().combined.is_some());
        let role = self.execute_as.as_deref().filter(|_| !passes_on);
        execute::on_subscriber(s, who, role, &self.ready.encoding, &named, execute).await?;
        let names = |name: fn(&Target) -> &Name| targets.iter().map(|target| name(target).clone()).collect::<Vec<_>>();
        let provider_names = names(|target| &target.provider.name);
        let subscriber_names = names(|target| &target.subscriber.name);
        // Inside the transaction, which sees what was executed; and locks it, where both ends are one database.
        let p = if self.donated { s } else { &self.ready.provider.client };
        let at_provider = table::inspect(p, End::Provider, &provider_names).await?;
        let at_subscriber = table::inspect(s, End::Subscriber, &subscriber_names).await?;
        session::match_encoding(s, &self.ready.encoding).await?;
        for target in &mut self.ready.targets {
            // One that is gone can have no more events; the next start says that it is.
            if let Some(table) = at_provider.get(&target.provider.name) {
                target.provider = Arc::new(target.filter.part_of(table));
            }
            if let Some(table) = at_subscriber.get(&target.subscriber.name) {
                target.subscriber = Arc::new(table.clone());
            }
        }
        self.begin_anew();
        Ok(true)
    }

    /// With a decoder and an applier that know nothing but the tables as they are.
    pub(super) fn begin_anew(&mut self) {
        let before = self.decoder.as_ref();
        let held = before.map(Decoder::held).unwrap_or_default();
        let unplaced = before.map(Decoder::unplaced).unwrap_or_default();
        let ready = &self.ready;
        let mut decoder = Decoder::new(&ready.targets, &held, &ready.parked, self.max_memory.chunk());
        decoder.refuse(&unplaced);
        self.decoder = Some(decoder);
        let answered = self.applier.answered;
        self.applier = Applier::new(&ready.targets);
        self.applier.answered = answered;
    }

    /// The batch's events, or those behind one of them.
    async fn read(&self, rows: Option<&str>, behind: Option<i64>, order: Order) -> Result<Option<Reading>> {
        let Some(rows) = rows else { return Ok(None) };
        let decoder = self.decoder.as_ref();
        let by = decoder.map_or((false, false), |decoder| (decoder.by_rows(), decoder.by_place()));
        let query = event::events_query(rows, by, behind, order);
        let source = Reading::begin(&self.ready.provider, &query, self.max_memory.kept()).await;
        source.doing(|| "read the batch from the provider".to_owned()).map(Some)
    }

    /// Begins the transaction, with what is done in it before the batch is applied.
    async fn begin_batch(&self, batch: &Batch) -> Result<Begun> {
        let revision = match (self.begin().await, &self.duty) {
            // Its position has another name now.
            (Err(_), Some(duty)) if duty.changed(&self.ready.subscriber.client).await.unwrap_or(false) => {
                return Ok(Begun::NodeChanged);
            }
            (revision, _) => revision?,
        };
        if revision != self.ready.revision {
            return Ok(Begun::TablesChanged);
        }
        let Some(duty) = &self.duty else {
            return Ok(Begun::AsBefore(Vec::new()));
        };
        let (p, s) = (&self.ready.provider, &self.ready.subscriber.client);
        if duty.changed(s).await? {
            return Ok(Begun::NodeChanged);
        }
        let tick = batch.tick(batch.events.as_deref());
        duty.store(p, s, &tick, batch.rows.as_deref()).await?;
        let mut whole = self.caught_up(batch);
        // Of those one may have to start over.
        whole.retain(
            |&table| !matches!(&self.ready.targets[table].state, State::CatchingUp(copied) if copied.places.is_some()),
        );
        merge::pass_on(p, s, duty.node(), &self.ready.targets, &whole, &tick).await?;
        Ok(Begun::AsBefore(match self.had {
            true => had::of_tick(s, &self.ready.who.queue, batch.to).await?,
            false => Vec::new(),
        }))
    }

    /// The same, and begins to read the batch.
    async fn begin_and_read(&self, batch: &Batch) -> (Result<Begun>, Result<Option<Reading>>) {
        // Both at once, unless the batch is read to be stored first.
        if self.duty.as_ref().is_some_and(Duty::stores) {
            match self.begin_batch(batch).await {
                Ok(Begun::AsBefore(had)) => {
                    let source = self.read(batch.rows_without(&had).as_deref(), None, batch.order).await;
                    (Ok(Begun::AsBefore(had)), source)
                }
                other => (other, Ok(None)),
            }
        } else {
            let source = self.read(batch.rows.as_deref(), None, batch.order);
            future::join(self.begin_batch(batch), source).await
        }
    }

    /// Begins to read events.
    pub(super) fn start(
        &mut self,
        reading: Reading,
        source: Source,
        order: Order,
        careful: Option<&Book>,
    ) -> Result<Reader, Failure> {
        let mut decoder = self
            .decoder
            .take()
            .ok_or_else(|| Error::failure("a batch was begun inside another").transient())?;
        decoder.begin(order, source, careful.is_some());
        let goes_on = source == Source::Batch && careful.is_none() && self.ahead.is_some();
        Ok(Reader::start(decoder, reading, goes_on))
    }

    /// Reads events and applies them, up to what is to be executed; those of tables in copy are kept for later, under `tick`.
    /// Without a tick these are kept events. None: a shutdown came in between.
    pub(super) async fn apply_events(
        &mut self,
        mut reader: Reader,
        tick: Option<i64>,
        careful: Option<&Book>,
    ) -> Result<Option<(Summary, Option<Execute>)>, Failure> {
        let client = &self.ready.subscriber.client;
        let mut first = true;
        let ended = loop {
            let part = reader.part().await;
            if std::mem::take(&mut first) {
                failpoint("after_read");
            }
            let chunk = match part {
                Some(Part::Chunk(chunk)) => chunk,
                Some(Part::Ended(ended)) => break ended,
                _ => return Err(Error::failure("the task that reads the batch ended").into()),
            };
            if self.shutdown.requested() && !reader.has_read() {
                return Ok(None);
            }
            if let (false, Some(tick)) = (chunk.held.is_empty(), tick) {
                // Rows may still be on their way in a COPY.
                self.applier.finish().await?;
                let names: Vec<&Name> = self.ready.targets.iter().map(|target| &target.provider.name).collect();
                held::keep(client, &self.ready.who, tick, &names, &chunk).await?;
            }
            self.applier.apply(client, &chunk, careful).await?;
            failpoint("after_chunk");
        };
        match ended.decoder {
            Some(decoder) => self.decoder = Some(decoder),
            None => self.reader = Some(reader),
        }
        let (summary, execute) = ended.outcome.map_err(|error| Failure {
            table: ended.table,
            ..Failure::from(error)
        })?;
        self.largest = self.largest.max(summary.largest);
        self.applier.finish().await?;
        Ok(Some((summary, execute)))
    }

    /// Begins the transaction and locks the position in it; returns the revision of the set of tables. Whoever waited for
    /// the lock finds the position moved, and stops.
    pub(super) async fn begin(&self) -> Result<i64> {
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

    /// The tables that are ok once the batch is committed, and were not before.
    fn caught_up(&self, batch: &Batch) -> Vec<usize> {
        let decoder = self.decoder.as_ref();
        decoder.map_or_else(Vec::new, |decoder| decoder.caught_up(&batch.snapshot))
    }

    /// The tables of which the decoder could not say whether their copies have an event's row are copied again.
    pub(super) async fn start_unplaced_over(&self) -> Result<Vec<usize>> {
        let tables = self.decoder.as_ref().map_or_else(Vec::new, Decoder::unplaced);
        let (client, who) = (&self.ready.subscriber.client, &self.ready.who);
        for &table in &tables {
            let number = table_state::next_revision(client, who).await?;
            let name = &self.ready.targets[table].provider.name;
            places::start_over(client, who, name, number).await?;
            tracing::warn!(table = %name, "an event from the time of its copy does not tell where its row was, so the table is copied again, whole");
        }
        Ok(tables)
    }

    async fn commit(&mut self, batch: &Batch, memory: &mut Memory) -> Result<(), Failure> {
        let client = &self.ready.subscriber.client;
        let who = &self.ready.who;
        // Which the next batch finds out by the revision of the set.
        let mut again = self.start_unplaced_over().await?;
        let mut caught_up = self.caught_up(batch);
        caught_up.retain(|table| !again.contains(table));
        for &table in &caught_up {
            let target = &self.ready.targets[table];
            let name = &target.provider.name;
            let provider = &self.ready.provider.client;
            if displaced::left(client, provider, &target.provider, &target.subscriber).await? {
                let number = table_state::next_revision(client, who).await?;
                table_state::start_over(client, who, name, number).await?;
                again.push(table);
            } else {
                table_state::caught_up(client, who, name).await?;
            }
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
        memory.starts_over = !again.is_empty();
        if memory.starts_over {
            memory.forget_goal();
        }
        memory.parking.done();
        self.tell_of_conflicts(batch.to);
        for table in caught_up.into_iter().filter(|table| !again.contains(table)) {
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
    pub(super) fn of_constraint(&self, error: Error) -> Failure {
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
    pub(super) fn book(&self, tick: i64) -> Book {
        Book {
            who: self.ready.who.clone(),
            tick,
        }
    }

    pub(super) fn tell_of_conflicts(&mut self, tick: i64) {
        let answered = std::mem::take(&mut self.applier.answered);
        if answered > 0 {
            tracing::warn!(
                tick,
                conflicts = answered,
                "conflicts were answered as --on-conflict says, see pgcascade_replay.conflict on the subscriber"
            );
        }
    }
}
