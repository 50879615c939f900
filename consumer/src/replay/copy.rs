//! The rows that were there before capture began.
//!
//! Copies go on beside the stream ([`start`], [`Copies`]), which keeps the events of their tables for later (held.rs). What may take long or
//! wait for others, the look at how a table is to be cut and the emptying of the subscriber's included, is a worker's task (worker.rs).
//!
//! A table is copied whole or, if it is large, in chunks: ranges of its primary key (plan.rs), of one partition each (parts.rs). Each is one transaction at
//! each end, short, with a snapshot of its own; several are on their way at once, in sessions of their own (worker.rs).
//! A crash loses what was on its way and nothing that was committed.
//!
//! Why that is right. The triggers are committed before, so every change that a snapshot does not see is in the
//! queue. A table that is copied whole has one snapshot, recorded with its rows; the stream leaves out what it sees. For a
//! table in chunks two are recorded: `from`, taken before the first chunk, and `to`, taken after the last. What `from` sees,
//! every chunk holds; what `to` does not see, none does. In between it depends on the row's chunk, which the stream need not
//! know: it applies these changes in a way that does not mind a row which is there already, or not there (chunk.rs,
//! `settling`). A row that nobody changed in between is in exactly one chunk, as its key does not change without an event;
//! one that somebody changed ends as its last event says. That takes a key, and no other constraint between rows: with one,
//! an older version of a row may for a moment stand in the way of a newer one of another row. Such tables are copied whole.
//!
//! On the provider a table is locked (ACCESS SHARE) before a snapshot is taken: a TRUNCATE between the two would otherwise
//! leave the copy empty and yet be older than the snapshot's events. COPY's own text goes through as it is.

pub(super) mod indexes;
mod parts;
mod plan;
mod source;
mod worker;

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_postgres::Client;

use super::position::Who;
use super::setup::{Ready, Target};
use super::table::{Name, Table, quoted};
use super::table_state::{Copied, State};
use crate::config::ReplayConfig;
use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;
use crate::progress::Progress;
use crate::shutdown::Shutdown;
use source::Source;

/// One table that is being copied.
struct Job {
    /// Which target.
    target: usize,
    provider: Arc<Table>,
    subscriber: Arc<Table>,
    /// The columns that both ends store, quoted for SQL.
    columns: String,
    /// Which rows.
    condition: Option<String>,
    replace_rows: bool,
    made: bool,
    revision: i64,
    /// It may be copied in chunks.
    can_be_cut: bool,
    /// The chunks are written down already.
    is_cut: bool,
    /// The tick up to which no events of it are kept.
    position: i64,
}

/// What the chunks of a table have in common.
struct Cut {
    /// The snapshot from before the first.
    from: String,
    /// Those that are not done.
    left: AtomicUsize,
}

/// What is copied in one transaction.
struct Piece {
    job: Arc<Job>,
    /// None: the whole table.
    chunk: Option<(Arc<Cut>, plan::Chunk)>,
}

impl Piece {
    /// Which partition it is read from; None: the table.
    fn partition(&self) -> Option<&Name> {
        self.chunk.as_ref()?.1.partition.as_ref()
    }
}

/// What a worker does at a time.
enum Task {
    /// To find out which pieces the table is copied in. That may wait for others, as the table is emptied.
    Plan(Arc<Job>),
    Copy(Piece),
}

impl Task {
    fn job(&self) -> &Arc<Job> {
        match self {
            Self::Plan(job) | Self::Copy(Piece { job, .. }) => job,
        }
    }
}

/// What is to be done, and who does it.
struct Queue {
    tasks: VecDeque<Task>,
    /// Tasks at work that may yet bring others: plans, and those of workers that have no sessions so far.
    open: usize,
    /// Workers that have not ended.
    workers: usize,
    /// Those of them that have sessions.
    connected: usize,
}

/// What the workers share.
struct Shared {
    queue: Mutex<Queue>,
    /// The queue is another one, or it is time to stop.
    changed: Notify,
    config: ReplayConfig,
    who: Who,
    shutdown: Shutdown,
    progress: Progress,
    source: Source,
    /// One of them failed: the others stop as they would for a shutdown.
    failed: AtomicBool,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next task for a worker. None: there is none any more, and the worker counts as ended.
    async fn next(&self, connected: bool) -> Option<Task> {
        loop {
            let mut changed = pin!(self.changed.notified());
            // Before the look, so that nothing is missed in between.
            changed.as_mut().enable();
            {
                let mut queue = self.queue();
                let stopping = self.stopping();
                if !stopping && let Some(task) = queue.tasks.pop_front() {
                    queue.open += usize::from(!connected || matches!(task, Task::Plan(_)));
                    return Some(task);
                }
                if stopping || queue.open == 0 {
                    queue.workers -= 1;
                    queue.connected -= usize::from(connected);
                    return None;
                }
            }
            // Both are cancel-safe.
            tokio::select! {
                () = changed => {}
                () = self.shutdown.wait() => {}
            }
        }
    }

    /// A worker has sessions for its first task.
    fn connected(&self, task: &Task) {
        let mut queue = self.queue();
        queue.connected += 1;
        if matches!(task, Task::Copy(_)) {
            queue.open -= 1;
            self.changed.notify_waiters();
        }
    }

    /// A worker got no sessions, and ends if there are others. False: there are none.
    fn leave_to_others(&self, task: Task) -> bool {
        let mut queue = self.queue();
        if queue.workers < 2 {
            return false;
        }
        queue.workers -= 1;
        queue.open -= 1;
        queue.tasks.push_front(task);
        self.changed.notify_waiters();
        true
    }

    /// A worker could not do its task now, and gave its sessions up.
    fn put_off(&self, task: Task) {
        let mut queue = self.queue();
        queue.connected -= 1;
        queue.open -= usize::from(matches!(task, Task::Plan(_)));
        queue.tasks.push_back(task);
        self.changed.notify_waiters();
    }

    /// The pieces of a table are known: they come before other tables.
    fn planned(&self, pieces: Vec<Piece>) {
        let mut queue = self.queue();
        queue.open -= 1;
        for piece in pieces.into_iter().rev() {
            queue.tasks.push_front(Task::Copy(piece));
        }
        self.changed.notify_waiters();
    }

    fn stop(&self) {
        self.failed.store(true, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    fn stopping(&self) -> bool {
        self.shutdown.requested() || self.failed.load(Ordering::Relaxed)
    }
}

/// A table that is complete.
pub(super) struct Done {
    pub(super) target: usize,
    pub(super) copied: Copied,
}

/// Why a worker ended, and which target it was at.
pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) target: Option<usize>,
}

/// How long copies are waited for when replay fails for another reason. Then their sessions are dropped.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// The copies that are on their way.
pub(super) struct Copies {
    shared: Arc<Shared>,
    done: mpsc::UnboundedReceiver<Done>,
    workers: JoinSet<Result<(), Failure>>,
    failure: Option<Failure>,
    running: bool,
}

impl Copies {
    /// Whether anything is still to come.
    pub(super) fn running(&self) -> bool {
        self.running
    }

    /// The next table that is complete. None: all are, or a shutdown ended the copies. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Option<Done>, Failure> {
        if let Some(done) = self.done.recv().await {
            return Ok(Some(done));
        }
        while let Some(outcome) = self.workers.join_next().await {
            let outcome = outcome.unwrap_or_else(|error| {
                Err(Failure {
                    error: Error::failure(format!("a task that copies ended: {error}")),
                    target: None,
                })
            });
            if let Err(failure) = outcome {
                // Of several the one that waiting does not help against.
                match &self.failure {
                    Some(other) if !other.error.is_transient() => {}
                    _ => self.failure = Some(failure),
                }
            }
        }
        self.running = false;
        self.failure.take().map_or(Ok(None), Err)
    }

    /// The same, if it is there at once.
    pub(super) async fn next_now(&mut self) -> Result<Option<Done>, Failure> {
        match self.done.try_recv() {
            Ok(done) => Ok(Some(done)),
            Err(mpsc::error::TryRecvError::Empty) => Ok(None),
            Err(mpsc::error::TryRecvError::Disconnected) if !self.running => Ok(None),
            Err(mpsc::error::TryRecvError::Disconnected) => self.next().await,
        }
    }

    /// Ends them: what is on its way is rolled back.
    pub(super) async fn stop(mut self) {
        self.shared.stop();
        let all = async { while self.workers.join_next().await.is_some() {} };
        let ended = tokio::time::timeout(END_PATIENCE, all).await;
        if self.running && ended.is_ok() {
            tracing::info!("copy stopped; what was on its way is rolled back, the next start goes on");
        }
    }
}

/// Begins to copy every table that has no copy, unless a file is pending (execute.rs).
pub(super) async fn start(
    ready: &Ready,
    config: &ReplayConfig,
    shutdown: &Shutdown,
    progress: &Progress,
) -> Result<Copies> {
    failpoint("before_copy");
    let mut tasks = VecDeque::new();
    for (i, target) in ready.targets.iter().enumerate() {
        if !target.state.to_copy() {
            // Of a copy that somebody gave up, the table being added again without one.
            indexes::make_left_over(&ready.subscriber.client, &ready.who, &target.provider.name).await?;
        } else if !ready.pending {
            tasks.push_back(Task::Plan(Arc::new(Job::new(i, target, ready))));
        }
    }
    let source = if tasks.is_empty() {
        Source::Provider
    } else {
        Source::find(ready, config).await?
    };
    for task in &tasks {
        let table = &task.job().provider;
        progress.copy_started(&table.name.to_string(), table.rows, Some(table.bytes));
    }
    // How many pieces there are is not known before they are planned. Who gets none opens no session.
    let sessions = if tasks.is_empty() { 0 } else { config.jobs };
    let shared = Arc::new(Shared {
        queue: Mutex::new(Queue {
            tasks,
            open: 0,
            workers: sessions,
            connected: 0,
        }),
        changed: Notify::new(),
        config: config.clone(),
        who: ready.who.clone(),
        shutdown: shutdown.clone(),
        progress: progress.clone(),
        source,
        failed: AtomicBool::new(false),
    });
    let (sender, done) = mpsc::unbounded_channel();
    let mut workers = JoinSet::new();
    for _ in 0..sessions {
        workers.spawn(worker::work(Arc::clone(&shared), sender.clone()));
    }
    Ok(Copies {
        shared,
        done,
        workers,
        failure: None,
        running: sessions > 0,
    })
}

impl Job {
    fn new(i: usize, target: &Target, ready: &Ready) -> Self {
        Self {
            target: i,
            provider: Arc::clone(&target.provider),
            subscriber: Arc::clone(&target.subscriber),
            columns: common_columns(&target.provider, &target.subscriber),
            condition: target.filter.condition(),
            replace_rows: target.replace_rows,
            made: target.made,
            revision: target.revision,
            can_be_cut: plan::can_be_cut(target),
            is_cut: matches!(target.state, State::InChunks(_)),
            position: ready.tick,
        }
    }
}

/// Begins a transaction on the provider with the table locked; returns the text of its snapshot.
async fn begin_reading(provider: &Client, name: &Name) -> Result<String> {
    let what = || format!("read table {name} of the provider");
    provider
        .batch_execute(&format!(
            "begin isolation level repeatable read, read only; lock table {} in access share mode",
            name.quoted()
        ))
        .await
        .doing(what)?;
    Ok(provider
        .query_one("select pg_catalog.pg_current_snapshot()::text", &[])
        .await
        .doing(what)?
        .get(0))
}

fn common_columns(provider: &Table, subscriber: &Table) -> String {
    let columns: Vec<String> = provider
        .columns
        .iter()
        .filter(|column| !column.generated && subscriber.column(&column.name).is_some_and(|there| !there.generated))
        .map(|column| quoted(&column.name))
        .collect();
    columns.join(", ")
}

/// The states of a copy, from texts of the provider's.
fn copied(from: &str, to: Option<&str>) -> Result<Copied> {
    let parse = |text: &str| {
        text.parse()
            .map_err(|error| Error::failure(format!("the provider's snapshot \"{text}\" cannot be read: {error}")))
    };
    Ok(Copied {
        from: parse(from)?,
        to: to.map(parse).transpose()?,
    })
}
