//! The replay engine: keeps a subscriber's tables equal to a provider's, batch by batch, exactly once.
//!
//! [`run`] is called by `main` and returns when it is told to stop, when `--until-caught-up` is reached, or with an
//! error that needs somebody to look. Everything transient (a lost connection, a deadlock, a server that restarts) it
//! survives by starting again from the position, which is cheap, because that is all the state there is. With
//! `--on-error park` it survives a table's errors, too, by going on without that table. Each attempt:
//!
//! 1. setup.rs opens and checks both sessions and makes what is missing; copy.rs fills new tables, beside all that follows,
//!    and held.rs keeps their events until then;
//! 2. the provider is asked for its next batch: the events between the tick that the subscriber has reached and a later
//!    one;
//! 3. stream.rs reads them and apply.rs applies them, at the same time, in one transaction on the subscriber, which
//! 4. ends by moving the position (position.rs), and commits;
//! 5. the provider is told that the batch is finished, and may forget it.
//!
//! The set of tables is in table_state.rs; whoever changes it raises a number beside the position, which is compared at each
//! batch and each poll: when it is another, all begins again with setup.rs, without loss, but for the copies of tables that it does
//! not concern: these go on.
//!
//! A crash before the commit leaves nothing; a crash after it leaves the position at the batch's end, and when the
//! provider offers the same batch again it is only finished. No future of the database is ever dropped half way in
//! order to stop: shutdown is looked for between batches and chunks. (Copies may wait for long: their servers are asked to cancel what they do,
//! worker.rs.) An attempt that fails drops both sessions, and
//! with them whatever was on its way.

pub(crate) mod administer;
mod adopted;
mod apply;
mod batch;
mod check;
mod chunk;
mod collapse;
mod conflict;
mod copy;
mod create;
mod displaced;
pub(crate) mod donated;
pub(crate) mod duty;
mod epochs;
mod event;
pub(crate) mod execute;
mod filter;
mod findings;
mod foreign_keys;
mod gate;
pub(crate) mod goal;
mod had;
mod held;
mod idle;
mod journal;
mod merge;
mod parking;
mod partitions;
pub(crate) mod pattern;
mod places;
mod policy;
pub(crate) mod position;
mod preflight;
pub(crate) mod returned;
pub(crate) mod sequences;
mod session;
mod setup;
mod sources;
pub(crate) mod state;
mod statement;
mod stream;
mod survey;
pub(crate) mod table;
mod table_state;
mod triggers;
mod trouble;
mod watch;
mod wish;

use std::collections::HashSet;

use futures_util::future;

use crate::backoff::Backoff;
use crate::config::{Job, ReplayConfig};
use crate::error::{Class, Result};
use crate::progress::Progress;
use crate::shutdown::Shutdown;
pub(crate) use check::check;
pub(crate) use copy::indexes::make_left_over_indexes;
pub(crate) use duty::hop;
pub(crate) use findings::{Finding, Severity};
use foreign_keys::Keys;
use parking::Parking;
pub(crate) use pattern::Pattern;
use policy::Policies;
pub(crate) use position::Who;
pub(crate) use session::{LOCK_PATIENCE, LOCK_PATIENCE_AGAIN, holder, lock};
pub(crate) use table::Name;
use wish::Wish;

/// What outlives a lost connection.
#[derive(Default)]
struct Memory {
    /// Both ends could be reached at least once: from now on a lost connection is an incident and not a misspelt
    /// address.
    connected: bool,
    /// The node could be, which knows where its provider is.
    node_reached: bool,
    /// Whoever has the node's location could not tell whether this is the node.
    home_silent: bool,
    /// Something was committed since the last failure.
    advanced: bool,
    /// This is to be applied row by row, to find the row at fault.
    careful: Option<Portion>,
    /// Whether to begin that at once.
    again: bool,
    /// So many large batches are read by event id before one is read as it is stored again.
    sorted_next: u32,
    /// The table that the last failure was about.
    failed_table: Option<Name>,
    /// Tables whose events could not be applied.
    parking: Parking,
    /// Partitions that may be made now; see partitions/make.rs.
    ripe: HashSet<Name>,
    /// What `--table` means is in the set of tables.
    tables_added: bool,
    /// The warnings that were logged.
    warned: HashSet<String>,
    /// Makes foreign keys.
    keys: Keys,
    /// What it waits for, as it is recorded; nothing else was recorded since.
    waits_for: Option<String>,
    /// Nothing on the subscriber says that replay fails.
    in_order: bool,
    /// Another replay of the consumer runs: what keeps this one from running is not the consumer's trouble.
    another_runs: bool,
    /// What `--until-caught-up` has to reach: the provider's snapshot at the start.
    goal: Option<wire::snapshot::Snapshot>,
    /// The same for a node of a cascade: its provider's last tick at the start.
    goal_tick: Option<i64>,
    /// The batch that was committed last has some table start over.
    starts_over: bool,
    /// Copies that go on while the stream begins anew.
    copies: Option<copy::Copies>,
}

impl Memory {
    /// A table is to be copied again: what is to be reached is what is there when it is.
    fn forget_goal(&mut self) {
        self.goal = None;
        self.goal_tick = None;
    }
}

/// What one transaction on the subscriber applies.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Portion {
    /// The batch that ends with this tick.
    Batch(i64),
    /// Kept events of this table, up to those that came with this tick.
    Held(Name, i64),
}

/// Replays until stopped.
pub(crate) async fn run(job: Job, shutdown: Shutdown, progress: Progress) -> Result<()> {
    let config = match &job {
        Job::Hop(config) => config,
        Job::Node(config) => &config.checked,
    };
    let mut memory = Memory::default();
    let outcome = Box::pin(again_and_again(&job, config, &shutdown, &progress, &mut memory)).await;
    memory.stop_copies().await;
    let complete = config.until_caught_up && outcome.is_ok() && !shutdown.requested();
    memory.keys.end(complete).await;
    outcome
}

/// One attempt after the other.
async fn again_and_again(
    job: &Job,
    config: &ReplayConfig,
    shutdown: &Shutdown,
    progress: &Progress,
    memory: &mut Memory,
) -> Result<()> {
    let wish = Wish::of_start(config)?;
    let policies = Policies::of_start(config)?;
    let mut backoff = Backoff::new(config.retry_max);
    loop {
        let outcome = match job {
            Job::Hop(config) => Box::pin(attempt(config, &wish, &policies, shutdown, progress, memory)).await,
            Job::Node(config) => Box::pin(duty::attempt(config, &wish, &policies, shutdown, progress, memory)).await,
        };
        let copies_go_on = match &outcome {
            Ok(Ended::TablesChanged | Ended::OutOfOrder) => true,
            Ok(Ended::Done | Ended::Executed | Ended::Swollen | Ended::NodeChanged) => false,
            Err(error) => memory.again || copy::is_in_the_way(error) || config.park && error.class() == Class::Park,
        };
        if !copies_go_on {
            memory.stop_copies().await;
        }
        let error = match outcome {
            Ok(Ended::Done) => return Ok(()),
            Ok(Ended::TablesChanged) => {
                tracing::info!("the set of tables was changed, or their partitions or triggers were");
                continue;
            }
            Ok(Ended::Executed | Ended::OutOfOrder | Ended::Swollen) => continue,
            Ok(Ended::NodeChanged) => {
                memory.hop_changed();
                continue;
            }
            // Nothing was begun: it waited for another replay of the consumer to end.
            Err(_) if memory.another_runs && shutdown.requested() => return Ok(()),
            Err(error) => error,
        };
        let table = memory.failed_table.take();
        if std::mem::take(&mut memory.again) {
            tracing::warn!("{error}; the batch is applied again row by row, to find the row");
            continue;
        }
        match (error.class(), table) {
            (Class::Wait, _) => {
                let text = error.to_string();
                if memory.warned.insert(text.clone()) {
                    tracing::warn!("{error}");
                }
                if memory.waits_for.as_ref() != Some(&text)
                    && trouble::record(job, &error, None, None, trouble::PATIENCE).await
                {
                    memory.waits_for = Some(text);
                }
                memory.in_order = false;
                // Cancel-safe, all of it.
                tokio::select! {
                    () = tokio::time::sleep(config.poll_interval) => {}
                    () = shutdown.wait() => return Ok(()),
                }
                continue;
            }
            (Class::Retry, _) if memory.connected || memory.node_reached => {}
            (Class::Park, Some(table)) if config.park && memory.parking.add(&table, error.to_string()) => {
                tracing::warn!(
                    %table,
                    detail = error.get_detail(),
                    "{error}; the batch is applied again without the table"
                );
                memory.careful = None;
                continue;
            }
            (_, table) => {
                // Before anything was reached it is a mistake in the configuration, unless a node tells what to reach.
                if (memory.connected || matches!(job, Job::Node(_))) && !memory.another_runs {
                    let patience = if shutdown.requested() || !(memory.connected || memory.node_reached) {
                        trouble::PATIENCE
                    } else {
                        trouble::LAST_PATIENCE
                    };
                    trouble::record(job, &error, table.as_ref(), None, patience).await;
                }
                return Err(error);
            }
        }
        memory.waits_for = None;
        if std::mem::take(&mut memory.advanced) {
            backoff.reset();
        }
        let pause = backoff.next_pause();
        tracing::warn!(
            retry_in_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            hint = error.get_hint(),
            "{error}"
        );
        memory.in_order = false;
        let pausing = async {
            tokio::join!(
                tokio::time::sleep(pause),
                trouble::record(job, &error, None, Some(pause), trouble::PATIENCE)
            );
        };
        let told = async {
            match job {
                Job::Hop(_) => future::pending().await,
                Job::Node(config) => duty::told(config).await,
            }
        };
        // Cancel-safe, all of it.
        tokio::select! {
            () = pausing => {}
            () = told => {}
            () = shutdown.wait() => return Ok(()),
        }
    }
}

/// Why the sessions were given up without an error.
enum Ended {
    /// Told to stop, or caught up.
    Done,
    /// The set of tables, or of their partitions, is another one: to begin again with that.
    TablesChanged,
    /// A file was executed: to begin again with the tables as they are now.
    Executed,
    /// A batch that was read as it is stored was not in order: to begin again with it, sorted.
    OutOfOrder,
    /// A large event left large buffers in the sessions: to go on with new ones.
    Swollen,
    /// The node's state was changed: to begin again with the new one.
    NodeChanged,
}

/// One life of the two sessions.
async fn attempt(
    config: &ReplayConfig,
    wish: &Wish,
    policies: &Policies,
    shutdown: &Shutdown,
    progress: &Progress,
    memory: &mut Memory,
) -> Result<Ended> {
    if let Some(copies) = memory.copies.take() {
        memory.copies = copies.hand_over().await;
    }
    let ready = setup::prepare(config, wish, policies, shutdown, memory).await?;
    if !config.donated {
        let s = &ready.subscriber.client;
        let keys = &mut memory.keys;
        keys.begin(s, &config.subscriber, &ready.who, ready.revision, config.poll_interval)
            .await?;
    }
    let mut copies = copy::start(&mut memory.copies, &ready, config, shutdown, progress).await?;
    let outcome = batch::stream(ready, &mut copies, config, shutdown, progress, memory).await;
    // Whether they go on, the outcome decides.
    memory.copies = Some(copies);
    outcome
}

impl Memory {
    async fn stop_copies(&mut self) {
        if let Some(copies) = self.copies.take() {
            copies.stop().await;
        }
    }

    /// What was found out about one provider says nothing about the next.
    fn hop_changed(&mut self) {
        self.careful = None;
        self.again = false;
        self.failed_table = None;
        self.parking = Parking::default();
        self.another_runs = false;
    }
}
