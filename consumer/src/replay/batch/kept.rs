//! The events that were kept for a table during its copy (held.rs), once the copy is there: applied portion by portion, each a
//! transaction of its own, which also forgets them.

use super::super::apply::Failure;
use super::super::conflict::Book;
use super::super::event::Order;
use super::super::held;
use super::super::stream::Summary;
use super::super::table::Name;
use super::super::{Memory, Portion};
use super::Stream;
use super::transaction::Source;
use crate::config::ReplayConfig;
use crate::connect::flow::Reading;
use crate::connect::{End, connect};
use crate::error::{Doing, Result};
use crate::failpoint::failpoint;

/// What came of applying kept events.
pub(super) enum Drained {
    All,
    /// A shutdown came in between.
    Stopped,
    /// The set of tables was changed.
    TablesChanged,
}

impl Stream<'_> {
    /// Applies a portion of the kept events of every table that has its copy. If something came in between, the transaction
    /// is open then and the decoder away, so nothing may follow but the end of the session, which rolls back.
    pub(super) async fn drain(&mut self, config: &ReplayConfig, memory: &mut Memory) -> Result<Drained> {
        for table in std::mem::take(&mut self.draining) {
            let name = self.ready.targets[table].provider.name.clone();
            let mut left = self.portion(&name).await?;
            if let Some(upto) = left {
                let portion = Portion::Held(name.clone(), upto);
                let careful = (memory.careful.as_ref() == Some(&portion)).then(|| self.book(upto));
                match self.apply_held(&name, upto, careful.as_ref(), config).await {
                    Ok(Ok(summary)) => {
                        memory.advanced = true;
                        memory.careful = None;
                        if self
                            .decoder
                            .as_ref()
                            .is_some_and(|decoder| !decoder.unplaced().is_empty())
                        {
                            memory.forget_goal();
                            return Ok(Drained::TablesChanged);
                        }
                        tracing::info!(table = %name, events = summary.events, "events that came during its copy are applied");
                    }
                    Ok(Err(why)) => return Ok(why),
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
        Ok(Drained::All)
    }

    async fn portion(&self, table: &Name) -> Result<Option<i64>> {
        held::portion(&self.ready.subscriber.client, &self.ready.who, table).await
    }

    /// The transaction that applies a portion of kept events, and forgets them; or what came in between.
    async fn apply_held(
        &mut self,
        name: &Name,
        upto: i64,
        careful: Option<&Book>,
        config: &ReplayConfig,
    ) -> Result<Result<Summary, Drained>, Failure> {
        let held = match self.held.take() {
            Some(held) => held,
            None => {
                let application_name = format!("pgcascade held {} {}", self.ready.who.queue, self.ready.who.consumer);
                connect(&config.subscriber, End::Subscriber, &application_name).await?
            }
        };
        if self.begin().await? != self.ready.revision {
            return Ok(Err(Drained::TablesChanged));
        }
        let query = held::portion_query(&self.ready.who, name, upto);
        let source = Reading::begin(&held, &query, self.max_memory.kept())
            .await
            .doing(|| format!("read kept events of table {name} on the subscriber"))?;
        let reader = self.start(source, Source::Kept, Order::ById, careful)?;
        let Some((summary, _)) = self.apply_events(reader, None, careful).await? else {
            return Ok(Err(Drained::Stopped));
        };
        let client = &self.ready.subscriber.client;
        held::applied(client, &self.ready.who, name, upto).await?;
        self.start_unplaced_over().await?;
        failpoint("before_held_commit");
        self.ready
            .who
            .commit(client, self.ready.tick, "")
            .await
            .map_err(|error| self.of_constraint(error))?;
        failpoint("after_held_commit");
        self.held = Some(held);
        self.tell_of_conflicts(upto);
        Ok(Ok(summary))
    }
}
