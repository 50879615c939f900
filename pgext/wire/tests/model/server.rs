//! What statements are made of: transaction ids and snapshots, locks, commit and rollback, the log, and crashes.

use wire::snapshot::Snapshot;

use super::schedule::SESSIONS;
use super::store::{Control, Record, Sequence, Store, Xid};
use super::{Level, Lock, Mode, Model, Session, Step, Task, Transaction};

impl Model {
    pub(super) fn open(&mut self, s: usize, explicit: bool) {
        let transaction = Transaction {
            levels: vec![Level::default()],
            snapshot: None,
            explicit,
        };
        let at = self.transactions.iter().position(Option::is_none).unwrap_or_else(|| {
            self.transactions.push(None);
            self.transactions.len() - 1
        });
        self.transactions[at] = Some(transaction);
        self.sessions[s].transaction = Some(at);
    }

    /// The session's transaction; statements have one.
    pub(super) fn transaction(&mut self, s: usize) -> &mut Transaction {
        let at = self.sessions[s].transaction.expect("a statement runs in a transaction");
        self.transactions[at].as_mut().expect("the transaction is there")
    }

    fn looked_at(&self, s: usize) -> Option<&Transaction> {
        self.sessions[s]
            .transaction
            .and_then(|at| self.transactions[at].as_ref())
    }

    pub(super) fn level(&mut self, s: usize) -> &mut Level {
        self.transaction(s).levels.last_mut().expect("there is a top level")
    }

    pub(super) fn own(&self, s: usize) -> Option<Xid> {
        self.looked_at(s).and_then(Transaction::top)
    }

    pub(super) fn is_old(&self, s: usize) -> bool {
        self.looked_at(s)
            .is_some_and(|transaction| transaction.snapshot.is_some())
    }

    pub(super) fn log(&mut self, record: Record) {
        self.store.apply(&record);
        self.log.push(record);
    }

    /// The id of the session's top-level transaction, given to it now if it has none.
    pub(super) fn top_xid(&mut self, s: usize) -> Xid {
        if let Some(xid) = self.own(s) {
            return xid;
        }
        let xid = self.next_xid;
        self.next_xid += 1;
        self.store.know(xid);
        let level = &mut self.transaction(s).levels[0];
        level.xids.insert(0, xid);
        level.has_own = true;
        self.running.push(xid);
        xid
    }

    /// The id that rows are written with: that of the innermost subtransaction. Those above it get theirs first.
    pub(super) fn row_xid(&mut self, s: usize) -> Xid {
        let mut last = self.top_xid(s);
        let top = last;
        for depth in 1..self.transaction(s).levels.len() {
            if self.transaction(s).levels[depth].has_own {
                last = self.transaction(s).levels[depth].xids[0];
                continue;
            }
            last = self.next_xid;
            self.next_xid += 1;
            self.log(Record::Belongs(last, top));
            let level = &mut self.transaction(s).levels[depth];
            level.xids.insert(0, last);
            level.has_own = true;
        }
        last
    }

    /// A new snapshot, with top-level transactions as `txid_current_snapshot()` gives them. Like the server's it does not list the
    /// transaction that takes it, but never has its xmin above it.
    pub(super) fn take_snapshot(&self, own: Option<Xid>) -> Snapshot {
        let xmax = self.latest + 1;
        let mut in_progress: Vec<Xid> = self
            .running
            .iter()
            .copied()
            .filter(|xid| *xid < xmax && Some(*xid) != own)
            .collect();
        in_progress.sort_unstable();
        let xmin = in_progress.first().copied().unwrap_or(xmax).min(own.unwrap_or(xmax));
        Snapshot {
            xmin,
            xmax,
            in_progress,
        }
    }

    /// The snapshot of a statement, or of a query inside a function.
    pub(super) fn snapshot(&self, s: usize) -> Snapshot {
        match self.looked_at(s).and_then(|transaction| transaction.snapshot.clone()) {
            Some(old) => old,
            None => self.take_snapshot(self.own(s)),
        }
    }

    /// A snapshot as of now, whatever the isolation level.
    pub(super) fn fresh(&self, s: usize) -> Snapshot {
        self.take_snapshot(self.own(s))
    }

    pub(super) fn control(&self, s: usize, snapshot: &Snapshot) -> Control {
        let own = self.own(s);
        let visible = |(by, _): &&(Xid, Control)| self.store.visible(*by, snapshot, own);
        self.store
            .control
            .iter()
            .rev()
            .find(visible)
            .map_or(self.store.control[0].1, |(_, control)| *control)
    }

    /// Whether the newest committed version of a row is hidden from the snapshot of a REPEATABLE READ transaction: it may then not be
    /// changed or locked.
    pub(super) fn conflicts(&self, s: usize, versions: impl DoubleEndedIterator<Item = Xid>) -> bool {
        if !self.is_old(s) {
            return false;
        }
        let (fresh, own) = (self.fresh(s), self.own(s));
        versions
            .rev()
            .find(|by| self.store.visible(*by, &fresh, own))
            .is_some_and(|by| !self.store.visible(by, &self.snapshot(s), own))
    }

    pub(super) fn draw(&mut self, s: usize, sequence: Sequence) -> i64 {
        self.top_xid(s);
        let (number, record) = self.store.draw(sequence);
        if let Some(record) = record {
            self.log.push(record);
        }
        number
    }

    fn holders(&self, lock: Lock, mode: Mode, but: Option<usize>) -> impl Iterator<Item = usize> {
        self.transactions
            .iter()
            .enumerate()
            .filter_map(move |(at, transaction)| {
                let transaction = transaction.as_ref().filter(|_| Some(at) != but)?;
                // Nobody waits for a row of a transaction that has ended; other locks are held until it has told everybody.
                let ended = transaction.top().is_some_and(|top| !self.running.contains(&top));
                if ended
                    && !matches!(
                        lock,
                        Lock::Ticker | Lock::QueueTable | Lock::Parent | Lock::Table(_) | Lock::RetryQueue
                    )
                {
                    return None;
                }
                let conflict =
                    |(held, its): &(Lock, Mode)| *held == lock && (mode == Mode::Exclusive || *its == Mode::Exclusive);
                transaction
                    .levels
                    .iter()
                    .any(|level| level.locks.iter().any(conflict))
                    .then_some(at)
            })
    }

    pub(super) fn is_free(&self, s: usize, lock: Lock, mode: Mode) -> bool {
        self.holders(lock, mode, self.sessions[s].transaction).next().is_none()
    }

    /// Takes a lock if nobody is in the way.
    pub(super) fn try_lock(&mut self, s: usize, lock: Lock, mode: Mode) -> bool {
        if !self.is_free(s, lock, mode) {
            return false;
        }
        let level = self.level(s);
        if !level.locks.contains(&(lock, mode)) {
            level.locks.push((lock, mode));
        }
        true
    }

    /// The locks on all event tables that a query of the parent takes; the one that has to be waited for.
    pub(super) fn lock_for_reading(&mut self, s: usize) -> Option<Lock> {
        (0..super::store::TABLES)
            .map(Lock::Table)
            .find(|lock| !self.try_lock(s, *lock, Mode::Shared))
    }

    /// Whether the session's new wait closes a circle.
    pub(super) fn is_deadlock(&self, s: usize) -> bool {
        let mut reached: Vec<usize> = vec![s];
        let mut at = 0;
        while at < reached.len() {
            let waiter = reached[at];
            at += 1;
            let Some((lock, mode)) = self.sessions[waiter].waits else {
                continue;
            };
            for holder in self.holders(lock, mode, self.sessions[waiter].transaction) {
                let Some(of) = (0..SESSIONS).find(|of| self.sessions[*of].transaction == Some(holder)) else {
                    continue;
                };
                if of == s {
                    return true;
                }
                if !reached.contains(&of) {
                    reached.push(of);
                }
            }
        }
        false
    }

    /// Reads the messages that were sent.
    pub(super) fn accept(&mut self, s: usize) {
        let session = &mut self.sessions[s];
        if session.accepted < self.messages {
            session.accepted = self.messages;
            session.generation += 1;
        }
    }

    /// Commit, in the server's order: logged and flushed, visible, others told, locks released.
    pub(super) fn commit_step(&mut self, s: usize, task: &mut Task) -> Step {
        let Some(at) = task.transaction.or(self.sessions[s].transaction) else {
            return Step::Done;
        };
        let Some(transaction) = self.transactions[at].as_ref() else {
            return Step::Done;
        };
        let top = transaction.top();
        let prepared = task.transaction.is_some();
        let any = |what: fn(&Level) -> bool| transaction.levels.iter().any(what);
        let (flush, changed) = (any(|level| level.flush), any(|level| level.changed_control));
        if task.step == 0 {
            let levels = self.transactions[at]
                .iter_mut()
                .flat_map(|transaction| &mut transaction.levels);
            self.seen
                .extend(levels.flat_map(|level| std::mem::take(&mut level.seen)));
        }
        match (task.step, top) {
            (0, None) => Step::To(3),
            (0, Some(top)) => {
                self.log(Record::Commit(top));
                if prepared || flush || s.is_multiple_of(2) {
                    self.flushed = self.log.len();
                }
                Step::On
            }
            (1, Some(top)) => {
                self.ended(top, at);
                Step::On
            }
            (2, _) => {
                self.messages += u64::from(changed);
                Step::On
            }
            _ => {
                self.transactions[at] = None;
                if !prepared {
                    self.sessions[s].transaction = None;
                }
                Step::Done
            }
        }
    }

    /// Others do not see the transaction as running any more.
    fn ended(&mut self, top: Xid, at: usize) {
        self.running.retain(|xid| *xid != top);
        let last = self.transactions[at]
            .iter()
            .flat_map(|transaction| &transaction.levels)
            .flat_map(|level| level.xids.iter().copied())
            .max();
        self.latest = self.latest.max(last.unwrap_or(top));
    }

    pub(super) fn roll_back(&mut self, at: usize) {
        if let Some(top) = self.transactions[at].as_ref().and_then(Transaction::top) {
            self.log(Record::Abort(top));
            self.ended(top, at);
        }
        self.transactions[at] = None;
    }

    /// Undoes what was done since the last savepoint.
    pub(super) fn roll_back_level(&mut self, s: usize) {
        let Some(level) = self.transaction(s).levels.pop() else {
            return;
        };
        for xid in level.xids {
            self.log(Record::Abort(xid));
            self.latest = self.latest.max(xid);
        }
        // What was read below the savepoint counts for nothing: a batch from above it is read again before it is finished.
        for held in self.sessions[s].batches.iter_mut().flatten() {
            held.read
                .take_if(|read| level.seen.iter().any(|seen| seen.batch == read.batch));
        }
        self.sessions[s].generation += 1;
    }

    pub(super) fn prepare(&mut self, s: usize) {
        if self.transaction(s).levels.iter().any(|level| level.ticked) {
            return self.abandon(s);
        }
        let top = self.top_xid(s);
        self.log(Record::Prepare(top));
        self.flushed = self.log.len();
        if let Some(at) = self.sessions[s].transaction.take() {
            // What it holds of the batches it read was in that session.
            self.prepared.push(at);
            // As if it had been rolled back, the session forgets what it knows of its changes.
            self.sessions[s].generation += 1;
        }
    }

    /// SIGKILL, and a start: the log up to `flushed` is what there is.
    pub(crate) fn crash(&mut self, flushed: usize) {
        self.log.truncate(flushed);
        for at in 0..self.transactions.len() {
            if !self.prepared.contains(&at) {
                self.transactions[at] = None;
            }
        }
        let prepared = self.prepared.clone();
        let tops: Vec<Xid> = prepared
            .iter()
            .filter_map(|at| self.transactions[*at].as_ref().and_then(Transaction::top))
            .collect();
        self.store = Store::recovered(&mut self.log, &tops);
        self.flushed = self.log.len();
        self.next_xid = self.store.unused();
        self.latest = self.next_xid - 1;
        self.running = tops;
        self.sessions = std::array::from_fn(|_| Session {
            accepted: self.messages,
            ..Session::default()
        });
    }
}
