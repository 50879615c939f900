//! A model of the queue inside a server: transactions with savepoints, snapshots, locks, messages, a log and crashes, and on
//! top of them our algorithm step by step, as sql/*.sql and pgext/src/queue.rs have it. A schedule is run in it, and what
//! consumers saw is compared with what was committed ([`properties`]). Used by the tests beside it, and by
//! consumer/tests/queue/schedules.rs, which makes the same moves on a real server.
//!
//! A statement is a list of steps, between which other sessions run: each look at shared state, each lock and each
//! snapshot is a step of its own. Commit too: logged, visible, others told, locks released. Messages are read only where the server must
//! read them. The model may so do what a real server would not, and the properties hold all the same.

mod consumer;
pub(crate) mod naive;
mod properties;
mod rotation;
pub(crate) mod schedule;
mod server;
pub(crate) mod store;
mod ticker;
mod writer;

use naive::Naive;
use schedule::{Act, CONSUMERS, Move, SESSIONS, Schedule};
use store::{Control, Record, Store, Xid};
use wire::snapshot::Snapshot;

/// What can be locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lock {
    /// The ticker lock of the queue.
    Ticker,
    /// SHARE UPDATE EXCLUSIVE on `pgq.queue`.
    QueueTable,
    /// The row of `pgq.queue`.
    ControlRow,
    /// RowExclusive on the queue's parent table: the writers.
    Parent,
    /// An event table: readers and writers share it, TRUNCATE does not.
    Table(usize),
    /// A row of `pgq.subscription`.
    Subscription(usize),
    /// The name of a consumer that is being registered or unregistered.
    Name(usize),
    /// SHARE UPDATE EXCLUSIVE on `pgq.retry_queue`.
    RetryQueue,
    /// A row of `pgq.retry_queue`, by subscription and event id.
    Retry(u32, i64),
    /// A row of the captured table.
    Row(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Shared,
    Exclusive,
}

/// A transaction, or a subtransaction since its savepoint.
#[derive(Debug, Clone, Default)]
struct Level {
    /// Its ids: its own, which comes first, and those of the released savepoints below it.
    xids: Vec<Xid>,
    has_own: bool,
    locks: Vec<(Lock, Mode)>,
    /// It changed the control row: others are told at commit.
    changed_control: bool,
    /// It must be flushed at commit: it made a tick or truncated a table.
    flush: bool,
    /// It announced a tick, so it cannot be prepared.
    ticked: bool,
    /// Batches that it read and nobody else could.
    seen: Vec<Seen>,
}

#[derive(Debug, Clone, Default)]
struct Transaction {
    levels: Vec<Level>,
    /// The one snapshot of a REPEATABLE READ transaction.
    snapshot: Option<Snapshot>,
    /// It was begun by a statement of its own.
    explicit: bool,
}

impl Transaction {
    fn top(&self) -> Option<Xid> {
        self.levels[0].xids.first().copied().filter(|_| self.levels[0].has_own)
    }

    fn holds(&self, lock: Lock) -> bool {
        self.levels
            .iter()
            .any(|level| level.locks.iter().any(|(held, _)| *held == lock))
    }
}

/// A batch that somebody read.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) subscription: u32,
    pub(crate) batch: i64,
    pub(crate) prev: i64,
    pub(crate) cur: i64,
    /// The events in the order in which they came.
    pub(crate) labels: Vec<u32>,
    pub(crate) first: Option<i64>,
}

/// The batch that a session has in hand.
#[derive(Debug, Clone)]
struct Held {
    id: i64,
    read: Option<Seen>,
}

/// The control row as a session has it cached.
#[derive(Debug, Clone, Copy)]
struct Cached {
    control: Control,
    generation: u64,
}

#[derive(Debug, Clone, Default)]
struct Session {
    transaction: Option<usize>,
    /// Its transaction failed and waits for ROLLBACK.
    failed: bool,
    task: Option<Task>,
    waits: Option<(Lock, Mode)>,
    cache: Option<Cached>,
    /// Goes up with each message that it read.
    generation: u64,
    /// How many messages it read.
    accepted: u64,
    batches: [Option<Held>; CONSUMERS],
    /// Ids that it drew in advance, for [`Naive::CachedIds`].
    ids: std::ops::Range<i64>,
}

/// A statement in progress, and what it remembers from step to step.
#[derive(Debug, Clone)]
struct Task {
    act: Act,
    step: u8,
    control: Option<Control>,
    snapshot: Option<Snapshot>,
    number: i64,
    seq: i64,
    turn: u32,
    xid: Option<Xid>,
    flag: bool,
    transaction: Option<usize>,
    range: Option<(i64, i64)>,
    retry: Option<store::Retry>,
}

impl Task {
    fn new(act: Act) -> Self {
        Self {
            act,
            step: 0,
            control: None,
            snapshot: None,
            number: 0,
            seq: 0,
            turn: 0,
            xid: None,
            flag: false,
            transaction: None,
            range: None,
            retry: None,
        }
    }
}

/// Why a statement fails that would have to wait for a lock.
pub(crate) const LOCK_TIMEOUT: &str = "lock timeout";

/// What a step came to.
enum Step {
    On,
    To(u8),
    Wait(Lock, Mode),
    Done,
    /// The statement fails, as it may.
    Fail(&'static str),
    /// The statement fails, as it must not.
    Fault(String),
}

/// What a statement came to, for the comparison with a real server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Failed(&'static str),
    Waits,
}

pub(crate) struct Model {
    pub(crate) store: Store,
    log: Vec<Record>,
    flushed: usize,
    /// Top-level transactions that others see as running.
    running: Vec<Xid>,
    next_xid: Xid,
    latest: Xid,
    transactions: Vec<Option<Transaction>>,
    prepared: Vec<usize>,
    sessions: [Session; SESSIONS],
    /// Messages about the control row so far.
    messages: u64,
    idle_ticks: bool,
    naive: Option<Naive>,
    labels: u32,
    turns: u32,
    subscriptions: u32,
    retries: u32,
    /// Where subscriptions began, by their id.
    starts: Vec<i64>,
    pub(crate) seen: Vec<Seen>,
    faults: Vec<String>,
    /// What the last statement of each session came to.
    outcomes: [Option<Outcome>; SESSIONS],
}

/// Runs a schedule to its end and beyond, until everything is delivered; the error says which property does not hold.
pub(crate) fn run(schedule: &Schedule, naive: Option<Naive>) -> Result<(), String> {
    let mut model = Model::new(schedule.idle_ticks, naive);
    for one in &schedule.moves {
        model.make(*one);
        if !model.faults.is_empty() {
            break;
        }
    }
    model.settle();
    model.verdict()
}

impl Model {
    pub(crate) fn new(idle_ticks: bool, naive: Option<Naive>) -> Self {
        Self {
            store: Store::new(),
            log: Vec::new(),
            flushed: 0,
            running: Vec::new(),
            next_xid: store::CREATION + 1,
            latest: store::CREATION,
            transactions: Vec::new(),
            prepared: Vec::new(),
            sessions: Default::default(),
            messages: 0,
            idle_ticks,
            naive,
            labels: 0,
            turns: 0,
            subscriptions: 1,
            retries: 0,
            starts: vec![1],
            seen: Vec::new(),
            faults: Vec::new(),
            outcomes: Default::default(),
        }
    }

    fn without(&self, rule: Naive) -> bool {
        self.naive == Some(rule)
    }

    /// Makes one move: begins it, unless the session is busy, and goes as far as it says.
    pub(crate) fn make(&mut self, one: Move) {
        let s = one.session;
        match one.act {
            Act::Crash => return self.crash(self.flushed),
            Act::Flush => {
                self.flushed = self.log.len();
                return;
            }
            _ => {}
        }
        if self.sessions[s].task.is_none() && !self.begin(s, one.act) {
            return;
        }
        let mut left = one.steps.unwrap_or(u8::MAX);
        while left > 0 && self.advance(s) {
            left -= 1;
        }
    }

    /// Whether a session that is not busy can do that now.
    pub(crate) fn takes(&self, s: usize, act: Act) -> bool {
        let session = &self.sessions[s];
        let inside = self.is_inside(s);
        let savepoints = session
            .transaction
            .and_then(|at| self.transactions[at].as_ref())
            .map_or(0, |transaction| transaction.levels.len() - 1);
        match act {
            Act::Flush | Act::Crash => true,
            Act::Begin | Act::BeginOld => !inside,
            Act::Savepoint => inside && !session.failed && savepoints < 3,
            Act::Release => !session.failed && savepoints > 0,
            Act::RollbackTo => savepoints > 0,
            Act::Commit | Act::Rollback | Act::Prepare => inside,
            Act::CommitPrepared(_) | Act::RollbackPrepared(_) => !inside && !self.prepared.is_empty(),
            _ => !session.failed && self.makes_sense(s, act),
        }
    }

    /// Whether a session is in a transaction that it began, be it a failed one.
    pub(crate) fn is_inside(&self, s: usize) -> bool {
        self.sessions[s].transaction.is_some() || self.sessions[s].failed
    }

    /// Begins a statement; false if there is nothing to go on with.
    fn begin(&mut self, s: usize, act: Act) -> bool {
        if !self.takes(s, act) {
            return false;
        }
        match act {
            Act::Begin | Act::BeginOld => {
                self.open(s, true);
                if act == Act::BeginOld {
                    let snapshot = self.take_snapshot(None);
                    self.transaction(s).snapshot = Some(snapshot);
                }
                false
            }
            Act::Savepoint => {
                self.transaction(s).levels.push(Level::default());
                false
            }
            Act::Release => {
                if let Some(mut last) = self.transaction(s).levels.pop() {
                    let below = self.transaction(s).levels.last_mut();
                    if let Some(below) = below {
                        below.xids.append(&mut last.xids);
                        below.locks.append(&mut last.locks);
                        below.seen.append(&mut last.seen);
                        below.changed_control |= last.changed_control;
                        below.flush |= last.flush;
                        below.ticked |= last.ticked;
                    }
                }
                false
            }
            Act::RollbackTo => {
                self.roll_back_level(s);
                self.transaction(s).levels.push(Level::default());
                self.sessions[s].failed = false;
                false
            }
            Act::Commit | Act::Prepare if self.sessions[s].failed => {
                self.abandon(s);
                false
            }
            Act::Rollback => {
                self.abandon(s);
                false
            }
            Act::Prepare => {
                self.prepare(s);
                false
            }
            Act::Commit => {
                self.sessions[s].task = Some(Task::new(act));
                true
            }
            Act::CommitPrepared(n) | Act::RollbackPrepared(n) => {
                let at = self.prepared.remove(usize::from(n) % self.prepared.len());
                if matches!(act, Act::RollbackPrepared(_)) {
                    self.roll_back(at);
                    return false;
                }
                let mut task = Task::new(act);
                task.transaction = Some(at);
                self.sessions[s].task = Some(task);
                true
            }
            _ => {
                if self.sessions[s].transaction.is_none() {
                    self.open(s, false);
                }
                self.sessions[s].task = Some(Task::new(act));
                true
            }
        }
    }

    /// Makes a move whole, as a real session with a `lock_timeout` does: what would have to wait fails.
    pub(crate) fn make_or_fail(&mut self, s: usize, act: Act) -> Outcome {
        self.outcomes[s] = Some(Outcome::Done);
        self.make(Move {
            session: s,
            act,
            steps: None,
        });
        if self.outcomes[s] == Some(Outcome::Waits) {
            self.sessions[s].waits = None;
            self.fail(s, LOCK_TIMEOUT);
        }
        self.outcomes[s].clone().unwrap_or(Outcome::Done)
    }

    /// How many transactions are prepared.
    pub(crate) fn prepared(&self) -> usize {
        self.prepared.len()
    }

    /// Whether a session has a batch of a consumer in hand; and what it read of it.
    pub(crate) fn in_hand(&self, s: usize, c: u8) -> Option<Option<&Seen>> {
        self.sessions[s].batches[usize::from(c)]
            .as_ref()
            .map(|held| held.read.as_ref())
    }

    /// A client reads the batch that it opened, and finishes the one that it read.
    fn makes_sense(&self, s: usize, act: Act) -> bool {
        let held = |c: u8| self.sessions[s].batches[usize::from(c)].as_ref();
        match act {
            Act::Read(c) => held(c).is_some(),
            Act::Finish(c) => held(c).is_some_and(|held| held.read.is_some()),
            Act::Retry(c) => held(c).is_some_and(|held| held.read.as_ref().is_some_and(|seen| seen.first.is_some())),
            _ => true,
        }
    }

    /// One step of a session's statement; false if there is none, or it has to wait.
    fn advance(&mut self, s: usize) -> bool {
        let Some(mut task) = self.sessions[s].task.take() else {
            return false;
        };
        self.sessions[s].waits = None;
        let step = match task.act {
            Act::Commit | Act::CommitPrepared(_) => self.commit_step(s, &mut task),
            Act::Write(_) | Act::Event | Act::Reinsert => self.write_step(s, &mut task),
            Act::Tick => self.tick_step(s, &mut task),
            Act::Step1 => self.step1_step(s, &mut task),
            Act::Step2 => self.step2_step(s, &mut task),
            Act::Next(c) => self.next_step(s, &mut task, usize::from(c)),
            Act::Read(c) => self.read_step(s, &mut task, usize::from(c)),
            Act::Finish(c) => self.finish_step(s, &mut task, usize::from(c)),
            Act::Retry(c) => self.retry_step(s, &mut task, usize::from(c)),
            Act::Register(c, back) => self.register_step(s, &mut task, usize::from(c), usize::from(back)),
            Act::Unregister(c) => self.unregister_step(s, &mut task, usize::from(c)),
            _ => Step::Done,
        };
        match step {
            Step::On => task.step += 1,
            Step::To(step) => task.step = step,
            Step::Wait(lock, mode) => {
                self.sessions[s].waits = Some((lock, mode));
                if self.is_deadlock(s) {
                    self.sessions[s].waits = None;
                    self.fail(s, "deadlock");
                    return true;
                }
                self.outcomes[s] = Some(Outcome::Waits);
                self.sessions[s].task = Some(task);
                return false;
            }
            Step::Done => {
                let implicit = self.sessions[s].transaction.is_some_and(|at| {
                    self.transactions[at]
                        .as_ref()
                        .is_some_and(|transaction| !transaction.explicit)
                });
                self.outcomes[s] = Some(Outcome::Done);
                if implicit {
                    self.sessions[s].task = Some(Task::new(Act::Commit));
                }
                return true;
            }
            Step::Fail(why) => {
                self.fail(s, why);
                return true;
            }
            Step::Fault(why) => {
                self.faults.push(why);
                self.fail(s, "fault");
                return true;
            }
        }
        self.sessions[s].task = Some(task);
        true
    }

    /// The statement fails: what was done since the savepoint is undone, and its locks go.
    fn fail(&mut self, s: usize, why: &'static str) {
        self.outcomes[s] = Some(Outcome::Failed(why));
        self.sessions[s].task = None;
        let explicit = self.transaction(s).explicit;
        if explicit && self.transaction(s).levels.len() > 1 {
            self.roll_back_level(s);
            self.transaction(s).levels.push(Level::default());
            self.sessions[s].failed = true;
        } else {
            self.abandon(s);
            self.sessions[s].failed = explicit;
        }
    }

    /// ROLLBACK.
    fn abandon(&mut self, s: usize) {
        self.sessions[s].failed = false;
        if let Some(at) = self.sessions[s].transaction.take() {
            self.roll_back(at);
            self.sessions[s].generation += 1;
        }
    }

    /// Runs what is left of the schedule, ends all transactions, and has everything delivered.
    fn settle(&mut self) {
        for round in 0.. {
            let mut busy = false;
            for s in 0..SESSIONS {
                while self.advance(s) {
                    busy = true;
                }
                if self.sessions[s].task.is_none()
                    && (self.sessions[s].transaction.is_some() || self.sessions[s].failed)
                {
                    self.make(Move {
                        session: s,
                        act: if s % 2 == round % 2 { Act::Commit } else { Act::Rollback },
                        steps: None,
                    });
                    busy = true;
                }
            }
            if !busy && self.prepared.is_empty() {
                break;
            }
            if !busy {
                let n = self.prepared.len();
                let at = self.prepared.remove(n - 1);
                if n.is_multiple_of(2) {
                    self.roll_back(at);
                } else {
                    let free = (0..SESSIONS).find(|s| self.sessions[*s].task.is_none()).unwrap_or(0);
                    let mut task = Task::new(Act::CommitPrepared(0));
                    task.transaction = Some(at);
                    self.sessions[free].task = Some(task);
                }
            }
            if round > 1000 {
                self.faults.push("sessions wait for each other".to_owned());
                break;
            }
        }
        if self.faults.is_empty() {
            self.drain();
        }
    }
}
