//! Storing events: pgext/src/queue.rs (`for_writing`) and insert.rs (`store`), by a trigger, by insert_event(), and by
//! maint_retry_events() (sql/retry.sql).

use super::naive::Naive;
use super::schedule::Act;
use super::store::{Event, Record, Retry, Sequence, Status};
use super::{Cached, Lock, Mode, Model, Step, Task};

const ROW: u8 = 0;
const CONTROL: u8 = 1;
const PARENT: u8 = 2;
const ID: u8 = 3;

impl Model {
    pub(super) fn write_step(&mut self, s: usize, task: &mut Task) -> Step {
        match task.step {
            ROW => match task.act {
                Act::Write(row) => self.write_row(s, task, usize::from(row)),
                Act::Reinsert => self.next_retry(s, task),
                _ => Step::On,
            },
            CONTROL => {
                if self.is_control_of_snapshot() {
                    self.top_xid(s);
                    task.control = Some(self.control(s, &self.snapshot(s)));
                    return Step::On;
                }
                if !self.without(Naive::ControlBeforeXid) {
                    self.top_xid(s);
                }
                let generation = self.sessions[s].generation;
                let good = |cached: &Cached| cached.generation == generation || self.without(Naive::CacheForEver);
                let control = match self.sessions[s].cache.filter(good) {
                    Some(cached) => cached.control,
                    None => self.control(s, &self.fresh(s)),
                };
                self.sessions[s].cache = Some(Cached { control, generation });
                task.control = Some(control);
                Step::On
            }
            PARENT => {
                self.top_xid(s);
                let newly = !self.transaction(s).holds(Lock::Parent);
                if !self.try_lock(s, Lock::Parent, Mode::Shared) {
                    return Step::Wait(Lock::Parent, Mode::Shared);
                }
                if self.without(Naive::ControlBeforeXid) {
                    return Step::On;
                }
                if newly {
                    self.accept(s);
                }
                let generation = self.sessions[s].generation;
                let stale = self.sessions[s]
                    .cache
                    .is_some_and(|cached| cached.generation != generation);
                if stale && !self.without(Naive::CacheForEver) {
                    Step::To(CONTROL)
                } else {
                    Step::On
                }
            }
            ID => {
                if task.number == 0 {
                    task.number = self.event_id(s);
                }
                Step::On
            }
            _ => self.insert(s, task),
        }
    }

    /// What PgQ does, which is not enough to lose anything as long as the other rules are there.
    fn is_control_of_snapshot(&self) -> bool {
        self.without(Naive::ControlOfSnapshot)
            || self.without(Naive::ControlOfSnapshotNoLook)
            || self.without(Naive::TruncateWithoutLock)
    }

    fn write_row(&mut self, s: usize, task: &mut Task, row: usize) -> Step {
        if self.without(Naive::IdBeforeRow) && task.number == 0 {
            task.number = self.event_id(s);
            return Step::To(ROW);
        }
        if self.conflicts(s, self.store.rows[row].iter().copied()) {
            return Step::Fail("serialization");
        }
        if !self.try_lock(s, Lock::Row(row), Mode::Exclusive) {
            return Step::Wait(Lock::Row(row), Mode::Exclusive);
        }
        let by = self.row_xid(s);
        self.log(Record::Row(by, row));
        self.turns += 1;
        task.turn = self.turns;
        Step::On
    }

    fn event_id(&mut self, s: usize) -> i64 {
        if self.without(Naive::CachedIds) {
            if self.sessions[s].ids.is_empty() {
                let first = self.draw(s, Sequence::Events);
                for _ in 0..9 {
                    self.draw(s, Sequence::Events);
                }
                self.sessions[s].ids = first..first + 10;
            }
            return self.sessions[s].ids.next().unwrap_or(0);
        }
        self.draw(s, Sequence::Events)
    }

    fn insert(&mut self, s: usize, task: &mut Task) -> Step {
        let Some(control) = task.control else {
            return Step::Fault("an event without a control row".to_owned());
        };
        if !self.try_lock(s, Lock::Table(control.table), Mode::Shared) {
            return Step::Wait(Lock::Table(control.table), Mode::Shared);
        }
        let top = self.top_xid(s);
        // The promise on which rotation rests (docs/concurrency.md).
        let mut versions = self.store.control.iter().rev();
        let newest = versions.find(|(by, _)| self.store.status(*by) != Status::Aborted);
        let newest = newest.map_or(control, |(_, newest)| *newest);
        if newest.step2.is_some_and(|step2| step2 < top)
            && newest.table != control.table
            && !self.is_control_of_snapshot()
        {
            return Step::Fault(format!(
                "transaction {top} is above step 2 ({newest:?}) and writes to table {}",
                control.table
            ));
        }
        // Somebody put it back since: its deletion then fails, and all of it with that.
        let back = task.retry.as_ref().is_some_and(|retry| {
            let gone = self
                .store
                .retries
                .iter()
                .find(|of| of.number == retry.number)
                .and_then(|of| of.gone);
            gone.is_some_and(|gone| self.store.committed(gone))
        });
        if back && self.is_old(s) {
            return Step::Fail("serialization");
        }
        let by = self.row_xid(s);
        self.labels += 1;
        let event = Event {
            label: self.labels,
            id: task.retry.as_ref().map_or(task.number, |retry| retry.event),
            txid: if self.without(Naive::SubtransactionId) { by } else { top },
            by,
            owner: task
                .retry
                .as_ref()
                .map(|retry| retry.owner)
                .filter(|_| !self.without(Naive::RetryForAll)),
            change: match task.act {
                Act::Write(row) => Some((row, task.turn)),
                _ => None,
            },
            retried: task.retry.as_ref().map(|retry| retry.number),
        };
        self.log(Record::Event(control.table, event));
        if let Some(retry) = task.retry.take() {
            self.try_lock(s, Lock::Retry(retry.owner, retry.event), Mode::Exclusive);
            self.log(Record::RetryGone(by, retry.number));
            task.number = 0;
            return Step::To(ROW);
        }
        Step::Done
    }

    /// maint_retry_events(): the next one to be put back.
    fn next_retry(&mut self, s: usize, task: &mut Task) -> Step {
        if !self.without(Naive::ReinsertWithoutLock) && !self.try_lock(s, Lock::RetryQueue, Mode::Exclusive) {
            return Step::Wait(Lock::RetryQueue, Mode::Exclusive);
        }
        // One query: it finds all there are, those that are put back by itself excepted.
        let snapshot = task.snapshot.get_or_insert(self.snapshot(s)).clone();
        let own = self.own(s);
        let due = self.store.retries.iter().find(|retry| {
            self.store.visible(retry.by, &snapshot, own)
                && !retry.gone.is_some_and(|gone| self.store.visible(gone, &snapshot, own))
                && retry.gone.is_none_or(|gone| Some(self.store.top(gone)) != own)
        });
        let Some(retry) = due.cloned() else {
            return Step::Done;
        };
        task.retry = Some(retry);
        Step::On
    }

    /// event_retry().
    pub(super) fn retry_step(&mut self, s: usize, _task: &mut Task, c: usize) -> Step {
        let Some(seen) = self.sessions[s].batches[c].as_ref().and_then(|held| held.read.clone()) else {
            return Step::Done;
        };
        let (snapshot, own) = (self.snapshot(s), self.own(s));
        let open = self
            .subscription(s, c, &snapshot)
            .is_some_and(|sub| sub.batch.is_some_and(|(id, _)| id == seen.batch));
        let Some(event) = seen.first.filter(|_| open) else {
            return Step::Fail("event not found");
        };
        let lock = Lock::Retry(seen.subscription, event);
        if !self.is_free(s, lock, Mode::Exclusive) {
            return Step::Wait(lock, Mode::Exclusive);
        }
        let fresh = self.fresh(s);
        let waits = self.store.retries.iter().find(|retry| {
            retry.owner == seen.subscription
                && retry.event == event
                && self.store.visible(retry.by, &fresh, own)
                && !retry.gone.is_some_and(|gone| self.store.visible(gone, &fresh, own))
        });
        if let Some(retry) = waits {
            if self.is_old(s) && !self.store.visible(retry.by, &snapshot, own) {
                return Step::Fail("serialization");
            }
            return Step::Done;
        }
        self.try_lock(s, lock, Mode::Exclusive);
        let by = self.row_xid(s);
        self.retries += 1;
        self.log(Record::Retry(Retry {
            number: self.retries,
            owner: seen.subscription,
            event,
            by,
            gone: None,
        }));
        Step::Done
    }
}
