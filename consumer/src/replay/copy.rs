//! The rows that were there before capture began.
//!
//! Copies go on beside the stream ([`start`], [`Copies`]), which keeps the events of their tables for later (held.rs). What may take long or
//! wait for others, the look at how a table is to be cut and the emptying of the subscriber's included, is a worker's task (worker.rs).
//!
//! A table is copied whole or, if it is large, in chunks: ranges of its primary key, or of its blocks (plan.rs), of one partition each (parts.rs). Each is one transaction at
//! each end, short, with a snapshot of its own; several are on their way at once, in sessions of their own (worker.rs).
//! A crash loses what was on its way and nothing that was committed.
//!
//! Why that is right. The triggers are committed before, so every change that a snapshot does not see is in the
//! queue. A table that is copied whole has one snapshot, recorded with its rows; the stream leaves out what it sees. For a
//! table in chunks two are recorded: `from`, taken before the first chunk, and `to`, taken after the last. What `from` sees,
//! every chunk holds; what `to` does not see, none does. In between it depends on the row's chunk, which the stream need not
//! know: it applies these changes in a way that does not mind a row which is there already, or not there (chunk.rs,
//! `settling`). A row that nobody changed in between is in exactly one chunk, as its key does not change without an event;
//! one that somebody changed ends as its last event says. That takes a key: places.rs says how it goes without. With another constraint between rows an older
//! version of a row may for a moment stand in the way of a newer one of another row: displaced.rs has what is done about that,
//! and which tables are copied whole because it cannot be.
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
use tokio::task::{JoinError, JoinSet};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::displaced::OtherKeys;
use super::places::{Places, Stored};
use super::position::Who;
use super::setup::{Ready, Target};
use super::table::{Name, Table, quoted};
use super::table_state::{self, Copied, State};
use super::trouble;
use crate::config::ReplayConfig;
use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;
use crate::progress::Progress;
use crate::shutdown::Shutdown;
use source::Source;

/// One table that is being copied.
struct Job {
    provider: Arc<Table>,
    subscriber: Arc<Table>,
    /// The columns that both ends store, quoted for SQL.
    columns: String,
    /// Which rows.
    condition: Option<String>,
    replace_rows: bool,
    made: bool,
    revision: i64,
    /// It may be copied in chunks of these.
    cut_by: Option<plan::By>,
    /// By which its chunks' rows may be in each other's way, see displaced.rs.
    other_keys: OtherKeys,
    /// The chunks are written down already.
    is_cut: bool,
    /// The tick up to which no events of it are kept.
    position: i64,
    /// Others were in its way, and that is written down.
    waits: AtomicBool,
    /// It is not wanted any more: what is on its way is rolled back.
    given_up: AtomicBool,
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
    /// Rows of other chunks are in its way: it is stored aside first, see displaced.rs.
    aside: bool,
}

impl Piece {
    /// It is of blocks of these.
    fn stored(&self) -> Option<&Stored> {
        self.chunk.as_ref()?.1.stored.as_ref()
    }

    /// Where that partition is, if the chunk is one of its key.
    fn place(&self) -> Option<&str> {
        self.chunk.as_ref()?.1.place.as_deref()
    }

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
    /// Whether the error means that rows of other chunks are in the way, so that it is to be done otherwise.
    fn goes_aside(&mut self, error: &Error) -> bool {
        match self {
            Self::Copy(piece) if !piece.aside && piece.chunk.is_some() && !piece.job.other_keys.is_empty() => {
                piece.aside = matches!(
                    error.sqlstate(),
                    Some(&SqlState::UNIQUE_VIOLATION | &SqlState::EXCLUSION_VIOLATION)
                );
                piece.aside
            }
            _ => false,
        }
    }

    fn job(&self) -> &Arc<Job> {
        match self {
            Self::Plan(job) | Self::Copy(Piece { job, .. }) => job,
        }
    }
}

/// What is to be done, and who does it.
#[derive(Default)]
struct Queue {
    tasks: VecDeque<Task>,
    /// The tables of the tasks that workers are at.
    at_work: Vec<Arc<Job>>,
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
    /// The provider's.
    identity: String,
    shutdown: Shutdown,
    progress: Progress,
    source: Source,
    /// One of them failed: the others stop as they would for a shutdown.
    failed: AtomicBool,
}

impl Queue {
    /// Takes the first task that may be done now: not one of a table that an older copy is still at, which was given up.
    fn take(&mut self) -> Option<Task> {
        let is_free = |task: &Task| {
            let name = &task.job().provider.name;
            let mut older = self.at_work.iter().filter(|job| job.is_given_up());
            !older.any(|job| job.provider.name == *name)
        };
        let at = self.tasks.iter().position(is_free)?;
        let task = self.tasks.remove(at)?;
        self.at_work.push(Arc::clone(task.job()));
        Some(task)
    }

    /// A worker is not at a task of this table any more.
    fn leave(&mut self, job: &Arc<Job>) {
        if let Some(at) = self.at_work.iter().position(|other| Arc::ptr_eq(other, job)) {
            self.at_work.swap_remove(at);
        }
    }

    /// Has it done later, unless nobody wants it any more.
    fn put_back(&mut self, task: Task) {
        self.leave(task.job());
        if !task.job().is_given_up() {
            self.tasks.push_back(task);
        }
    }
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
                if !stopping && let Some(task) = queue.take() {
                    queue.open += usize::from(!connected || matches!(task, Task::Plan(_)));
                    return Some(task);
                }
                if stopping || queue.open == 0 && queue.tasks.is_empty() {
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
        queue.put_back(task);
        self.changed.notify_waiters();
        true
    }

    /// A worker did not do its task, be it that others were in the way or that the table was given up, and ended its sessions.
    fn put_off(&self, task: Task) {
        let mut queue = self.queue();
        queue.connected -= 1;
        queue.open -= usize::from(matches!(task, Task::Plan(_)));
        queue.put_back(task);
        self.changed.notify_waiters();
    }

    /// The pieces of a table are known: they come before other tables.
    fn planned(&self, job: &Arc<Job>, pieces: Vec<Piece>) {
        let mut queue = self.queue();
        queue.open -= 1;
        queue.leave(job);
        if !job.is_given_up() {
            for piece in pieces.into_iter().rev() {
                queue.tasks.push_front(Task::Copy(piece));
            }
        }
        self.changed.notify_waiters();
    }

    /// A piece is copied.
    fn copied(&self, job: &Arc<Job>) {
        self.queue().leave(job);
        if job.is_given_up() {
            self.changed.notify_waiters();
        }
    }

    /// Nothing more is done for these tables.
    fn give_up<'a>(&self, jobs: impl Iterator<Item = &'a Arc<Job>>) {
        for job in jobs {
            job.given_up.store(true, Ordering::Relaxed);
        }
        self.queue().tasks.retain(|task| !task.job().is_given_up());
        self.changed.notify_waiters();
    }

    /// Others are in the way of the table's copy, which is tried again.
    async fn waits(&self, job: &Job, error: &Error) {
        job.waits.store(true, Ordering::Relaxed);
        trouble::copy_waits(
            &self.config.subscriber,
            &self.who,
            &job.provider.name,
            job.revision,
            Some(error),
        )
        .await;
    }

    /// Nobody is any more.
    async fn goes_on(&self, job: &Job) {
        if job.waits.swap(false, Ordering::Relaxed) {
            trouble::copy_waits(
                &self.config.subscriber,
                &self.who,
                &job.provider.name,
                job.revision,
                None,
            )
            .await;
        }
    }

    fn stop(&self) {
        self.failed.store(true, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// Returns when it is time to stop. Cancel-safe.
    async fn stopped(&self) {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.stopping() {
                return;
            }
            tokio::select! {
                () = changed => {}
                () = self.shutdown.wait() => {}
            }
        }
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

/// The same for whoever does not know the targets.
struct Broken {
    error: Error,
    job: Option<Arc<Job>>,
}

/// How long servers are waited for that are to cancel what copies do. Then their sessions are dropped without.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// The copies that are on their way. They outlive the stream's sessions where the stream begins anew for another reason.
pub(super) struct Copies {
    shared: Arc<Shared>,
    /// Those that are not complete, and which targets they are now.
    jobs: Vec<(Arc<Job>, usize)>,
    sender: mpsc::UnboundedSender<(Arc<Job>, Copied)>,
    done: mpsc::UnboundedReceiver<(Arc<Job>, Copied)>,
    workers: JoinSet<Result<(), Broken>>,
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
        loop {
            // What a worker has to tell, it told before it ended.
            if let Some(done) = self.told() {
                return Ok(Some(done));
            }
            if self.workers.is_empty() {
                break;
            }
            // Both are cancel-safe.
            tokio::select! {
                Some((job, copied)) = self.done.recv() => {
                    if let Some(done) = self.complete(&job, copied) {
                        return Ok(Some(done));
                    }
                }
                Some(outcome) = self.workers.join_next() => self.ended(outcome),
            }
        }
        self.running = false;
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        if !self.jobs.is_empty() {
            tell_of_the_end();
        }
        Ok(None)
    }

    /// The same, if it is there at once.
    pub(super) async fn next_now(&mut self) -> Result<Option<Done>, Failure> {
        if let Some(done) = self.told() {
            return Ok(Some(done));
        }
        while let Some(outcome) = self.workers.try_join_next() {
            self.ended(outcome);
        }
        if self.running && self.workers.is_empty() {
            return self.next().await;
        }
        Ok(None)
    }

    fn told(&mut self) -> Option<Done> {
        while let Ok((job, copied)) = self.done.try_recv() {
            if let Some(done) = self.complete(&job, copied) {
                return Some(done);
            }
        }
        None
    }

    /// None: it was given up before that was known.
    fn complete(&mut self, job: &Arc<Job>, copied: Copied) -> Option<Done> {
        let at = self.jobs.iter().position(|(other, _)| Arc::ptr_eq(other, job))?;
        let (_, target) = self.jobs.swap_remove(at);
        Some(Done { target, copied })
    }

    fn ended(&mut self, outcome: Result<Result<(), Broken>, JoinError>) {
        let outcome = outcome.unwrap_or_else(|error| {
            Err(Broken {
                error: Error::failure(format!("a task that copies ended: {error}")),
                job: None,
            })
        });
        let Err(Broken { error, job }) = outcome else { return };
        // Of several the one that waiting does not help against.
        if self.failure.as_ref().is_none_or(|failure| failure.error.is_transient()) {
            let at = |job: Arc<Job>| self.jobs.iter().find(|(other, _)| Arc::ptr_eq(other, &job));
            let target = job.and_then(at).map(|(_, target)| *target);
            self.failure = Some(Failure { error, target });
        }
    }

    /// Whether they can go on in another life of the stream's sessions.
    fn go_on_with(&self, ready: &Ready, config: &ReplayConfig, source: &Source) -> bool {
        let is_same = self.shared.identity == ready.identity && self.shared.source.is_same(source);
        self.running && is_same && !self.shared.stopping() && !ready.pending && !config.donated
    }

    /// To be called before the stream begins anew. The next look at partitioned tables may make partitions, which a copy would
    /// be in the way of. None: there is nothing to go on with.
    pub(super) async fn hand_over(self) -> Option<Self> {
        if !self.running || self.shared.stopping() {
            self.stop().await;
            return None;
        }
        let jobs = self.jobs.iter().map(|(job, _)| job);
        self.shared.give_up(jobs.filter(|job| job.provider.kind == "p"));
        Some(self)
    }

    /// Ends them: what is on its way is cancelled, and rolled back.
    pub(super) async fn stop(mut self) {
        self.shared.stop();
        let all = async { while self.workers.join_next().await.is_some() {} };
        let ended = tokio::time::timeout(END_PATIENCE, all).await;
        if self.running && ended.is_ok() {
            tell_of_the_end();
        }
    }
}

fn tell_of_the_end() {
    tracing::info!("copy stopped; what was on its way is rolled back, the next start goes on");
}

/// Begins to copy every table that has no copy, unless a file is pending (execute.rs). `kept` are copies that are on their way: those
/// that are still wanted go on.
pub(super) async fn start(
    kept: &mut Option<Copies>,
    ready: &Ready,
    config: &ReplayConfig,
    shutdown: &Shutdown,
    progress: &Progress,
) -> Result<Copies> {
    failpoint("before_copy");
    let mut jobs = Vec::new();
    for (i, target) in ready.targets.iter().enumerate() {
        if !target.state.to_copy() {
            // Of a copy that somebody gave up, the table being added again without one.
            indexes::make_left_over(&ready.subscriber.client, &ready.who, &target.provider.name).await?;
        } else if !ready.pending {
            jobs.push((Arc::new(Job::new(target, ready)), i));
        }
    }
    let source = if jobs.is_empty() {
        Source::Provider
    } else {
        Source::find(ready, config).await?
    };
    let mut copies = match kept.take() {
        Some(kept) if kept.go_on_with(ready, config, &source) => kept,
        kept => {
            if let Some(kept) = kept {
                kept.stop().await;
            }
            table_state::none_waits(&ready.subscriber.client, &ready.who).await?;
            Copies::none(ready, config, shutdown, progress, source)
        }
    };
    copies.go_on(jobs);
    Ok(copies)
}

impl Copies {
    fn none(ready: &Ready, config: &ReplayConfig, shutdown: &Shutdown, progress: &Progress, source: Source) -> Self {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue::default()),
            changed: Notify::new(),
            config: config.clone(),
            who: ready.who.clone(),
            identity: ready.identity.clone(),
            shutdown: shutdown.clone(),
            progress: progress.clone(),
            source,
            failed: AtomicBool::new(false),
        });
        let (sender, done) = mpsc::unbounded_channel();
        Self {
            shared,
            jobs: Vec::new(),
            sender,
            done,
            workers: JoinSet::new(),
            failure: None,
            running: false,
        }
    }

    /// From now on these tables are copied, those among them that are already included, and no others.
    fn go_on(&mut self, wanted: Vec<(Arc<Job>, usize)>) {
        let before = std::mem::take(&mut self.jobs);
        let mut fresh = VecDeque::new();
        for (job, target) in wanted {
            match before.iter().find(|(other, _)| other.is_same(&job)) {
                Some((other, _)) => self.jobs.push((Arc::clone(other), target)),
                None => {
                    let table = &job.provider;
                    let progress = &self.shared.progress;
                    progress.copy_started(&table.name.to_string(), table.rows, Some(table.bytes));
                    fresh.push_back(Task::Plan(Arc::clone(&job)));
                    self.jobs.push((job, target));
                }
            }
        }
        let is_wanted = |job: &Arc<Job>| self.jobs.iter().any(|(other, _)| Arc::ptr_eq(other, job));
        let others = before.iter().map(|(job, _)| job);
        self.shared.give_up(others.filter(|job| !is_wanted(job)));
        if fresh.is_empty() {
            return;
        }
        let more = {
            let mut queue = self.shared.queue();
            queue.tasks.append(&mut fresh);
            // How many pieces there are is not known before they are planned. Who gets none opens no session.
            let more = self.shared.config.jobs.saturating_sub(queue.workers);
            queue.workers += more;
            more
        };
        self.shared.changed.notify_waiters();
        for _ in 0..more {
            let work = worker::work(Arc::clone(&self.shared), self.sender.clone());
            self.workers.spawn(work);
        }
        self.running = true;
    }
}

impl Job {
    fn new(target: &Target, ready: &Ready) -> Self {
        Self {
            provider: Arc::clone(&target.provider),
            subscriber: Arc::clone(&target.subscriber),
            columns: common_columns(&target.provider, &target.subscriber),
            condition: target.filter.condition(),
            replace_rows: target.replace_rows,
            made: target.made,
            revision: target.revision,
            cut_by: plan::by(target),
            other_keys: target.other_keys().unwrap_or_default(),
            is_cut: matches!(target.state, State::InChunks(_)),
            position: ready.tick,
            waits: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
        }
    }

    fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    /// Whether this copy is also the other one: of the same tables as they were.
    fn is_same(&self, other: &Self) -> bool {
        let of = |job: &Self| {
            (
                job.revision,
                job.provider.oid,
                job.subscriber.oid,
                job.made,
                job.cut_by,
                Arc::clone(&job.other_keys),
            )
        };
        !self.is_given_up()
            && of(self) == of(other)
            && self.provider.name == other.provider.name
            && self.subscriber.name == other.subscriber.name
            && self.provider.primary_key() == other.provider.primary_key()
            && self.columns == other.columns
            && self.condition == other.condition
    }
}

/// Whether it is nothing but others' locks, of which the session and what else goes on take no harm.
pub(super) fn is_in_the_way(error: &Error) -> bool {
    let code = error.sqlstate();
    code == Some(&SqlState::LOCK_NOT_AVAILABLE) || code == Some(&SqlState::T_R_DEADLOCK_DETECTED)
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
fn copied(from: &str, to: Option<&str>, places: Option<Places>) -> Result<Copied> {
    let parse = |text: &str| {
        text.parse()
            .map_err(|error| Error::failure(format!("the provider's snapshot \"{text}\" cannot be read: {error}")))
    };
    Ok(Copied {
        from: parse(from)?,
        to: to.map(parse).transpose()?,
        places: places.map(Arc::new),
    })
}
