//! Rotating the event tables: maint_rotate_tables_step1() and step2() of sql/maint.sql, and registering consumers, which must not
//! be given a tick that rotation takes away (sql/consumer.sql).

use super::naive::Naive;
use super::store::{Control, Record, Subscription, TABLES};
use super::{Lock, Mode, Model, Step, Task};

impl Model {
    pub(super) fn step1_step(&mut self, s: usize, task: &mut Task) -> Step {
        match task.step {
            0 => {
                if self.is_old(s) {
                    return Step::Fail("isolation level");
                }
                if !self.try_lock(s, Lock::QueueTable, Mode::Exclusive) {
                    return Step::Wait(Lock::QueueTable, Mode::Exclusive);
                }
                Step::On
            }
            1 => {
                let control = self.control(s, &self.fresh(s));
                let may = self.without(Naive::RegisterWithoutLock);
                if control.step2.is_none() || !(may || self.is_free(s, Lock::ControlRow, Mode::Exclusive)) {
                    return Step::Done;
                }
                self.try_lock(s, Lock::ControlRow, Mode::Exclusive);
                if self.top_xid(s) < control.step1 {
                    return Step::Done;
                }
                task.control = Some(control);
                Step::On
            }
            2 => {
                let (snapshot, own) = (self.fresh(s), self.own(s));
                let mut needed = None;
                for c in 0..self.store.subscriptions.len() {
                    let Some(sub) = self.subscription(s, c, &snapshot) else {
                        continue;
                    };
                    let Some(tick) = self.ticks(s, &snapshot).find(|tick| tick.id == sub.last) else {
                        return Step::Fault(format!("rotation does not find tick {} ({own:?})", sub.last));
                    };
                    needed = Some(tick.snapshot.xmin.min(needed.unwrap_or(u64::MAX)));
                }
                task.xid = needed.filter(|_| !self.without(Naive::RotationIgnoresConsumers));
                let step2 = task.control.and_then(|control| control.step2);
                if task.xid.is_some() && task.xid <= step2 {
                    return Step::Done;
                }
                Step::On
            }
            3 => {
                let next = self.next_table(task);
                if !self.without(Naive::TruncateWithoutLock) && !self.try_lock(s, Lock::Table(next), Mode::Exclusive) {
                    return Step::Done;
                }
                Step::On
            }
            4 => {
                let (snapshot, own) = (self.fresh(s), self.own(s));
                let newest = self.store.tables[self.next_table(task)]
                    .iter()
                    .filter(|event| self.store.visible(event.by, &snapshot, own))
                    .map(|event| event.txid)
                    .max();
                let look = !self.without(Naive::ControlOfSnapshotNoLook);
                if look && newest.is_some() && task.xid.is_some() && newest >= task.xid {
                    return Step::Done;
                }
                task.seq = newest.unwrap_or(0).cast_signed();
                Step::On
            }
            5 => {
                let by = self.row_xid(s);
                let next = self.next_table(task);
                self.log(Record::Truncate(by, next));
                let step2 = self.without(Naive::OneStep).then_some(self.top_xid(s));
                let control = Control {
                    table: next,
                    step1: self.top_xid(s),
                    step2,
                };
                self.log(Record::Control(by, control));
                self.sessions[s].generation += 1;
                let level = self.level(s);
                level.changed_control = true;
                level.flush = true;
                Step::On
            }
            _ => {
                let Some(step2) = task.control.and_then(|control| control.step2) else {
                    return Step::Done;
                };
                if self.without(Naive::TicksStay) {
                    return Step::Done;
                }
                let snapshot = self.fresh(s);
                let newest = task.seq.cast_unsigned();
                let Some((last, _)) = self.last_tick(s, &snapshot) else {
                    return Step::Done;
                };
                let gone: Vec<i64> = self
                    .ticks(s, &snapshot)
                    .filter(|tick| tick.id < last.id)
                    .filter(|tick| tick.snapshot.xmin < step2 || tick.snapshot.xmin <= newest)
                    .map(|tick| tick.id)
                    .collect();
                let by = self.row_xid(s);
                for id in gone {
                    self.log(Record::TickGone(by, id));
                }
                Step::Done
            }
        }
    }

    fn next_table(&self, task: &Task) -> usize {
        task.control.map_or(0, |control| (control.table + 1) % TABLES)
    }

    pub(super) fn step2_step(&mut self, s: usize, task: &mut Task) -> Step {
        match task.step {
            0 => {
                if !self.without(Naive::Step2WithoutTableLock) && !self.try_lock(s, Lock::QueueTable, Mode::Exclusive) {
                    return Step::Wait(Lock::QueueTable, Mode::Exclusive);
                }
                Step::On
            }
            1 => {
                // An id from before step 1 was committed is below those of writers that do not know of it.
                let older = self.own(s).is_some() && !self.without(Naive::Step2OfOldTransaction);
                if older || self.control(s, &self.snapshot(s)).step2.is_some() {
                    return Step::Done;
                }
                self.top_xid(s);
                Step::On
            }
            _ => {
                if self.conflicts(s, self.store.control.iter().map(|(by, _)| *by)) {
                    return Step::Fail("serialization");
                }
                let mut control = self.control(s, &self.fresh(s));
                let top = self.top_xid(s);
                if control.step2.is_some() || control.step1 >= top {
                    return Step::Done;
                }
                if !self.try_lock(s, Lock::ControlRow, Mode::Exclusive) {
                    return Step::Wait(Lock::ControlRow, Mode::Exclusive);
                }
                control.step2 = Some(top);
                let by = self.row_xid(s);
                self.log(Record::Control(by, control));
                self.sessions[s].generation += 1;
                self.level(s).changed_control = true;
                Step::Done
            }
        }
    }

    pub(super) fn register_step(&mut self, s: usize, task: &mut Task, c: usize, back: usize) -> Step {
        match task.step {
            0 => {
                if !self.without(Naive::RegisterWithoutLock) {
                    if self.conflicts(s, self.store.control.iter().map(|(by, _)| *by)) {
                        return Step::Fail("serialization");
                    }
                    if !self.is_free(s, Lock::ControlRow, Mode::Shared) {
                        return Step::Wait(Lock::ControlRow, Mode::Shared);
                    }
                    self.try_lock(s, Lock::ControlRow, Mode::Shared);
                }
                Step::On
            }
            1 => {
                if !self.is_free(s, Lock::Name(c), Mode::Exclusive) {
                    return Step::Wait(Lock::Name(c), Mode::Exclusive);
                }
                if self.subscription(s, c, &self.snapshot(s)).is_some() {
                    return Step::Done;
                }
                if self.conflicts(s, self.store.subscriptions[c].iter().map(|(by, _)| *by)) {
                    return Step::Fail("serialization");
                }
                self.try_lock(s, Lock::Name(c), Mode::Exclusive);
                Step::On
            }
            2 => {
                let snapshot = self.snapshot(s);
                let mut ids: Vec<i64> = self.ticks(s, &snapshot).map(|tick| tick.id).collect();
                ids.sort_unstable();
                let at = ids.len().saturating_sub(1 + back);
                task.number = ids.get(at).copied().unwrap_or(0);
                Step::On
            }
            _ => {
                if self.subscription(s, c, &self.fresh(s)).is_some() {
                    return Step::Done;
                }
                let by = self.row_xid(s);
                let subscription = Subscription {
                    id: self.subscriptions,
                    last: task.number,
                    batch: None,
                };
                self.subscriptions += 1;
                self.starts.push(task.number);
                self.log(Record::Subscription(by, c, Some(subscription)));
                Step::Done
            }
        }
    }

    pub(super) fn unregister_step(&mut self, s: usize, _task: &mut Task, c: usize) -> Step {
        if self.subscription(s, c, &self.snapshot(s)).is_none() {
            return Step::Done;
        }
        if self.conflicts(s, self.store.subscriptions[c].iter().map(|(by, _)| *by)) {
            return Step::Fail("serialization");
        }
        if !self.is_free(s, Lock::Subscription(c), Mode::Exclusive) {
            return Step::Wait(Lock::Subscription(c), Mode::Exclusive);
        }
        let fresh = self.fresh(s);
        let Some(sub) = self.subscription(s, c, &fresh) else {
            return Step::Done;
        };
        // Its retried events: those that somebody puts back just now are waited for.
        let own = self.own(s);
        let retries: Vec<_> = self
            .store
            .retries
            .iter()
            .filter(|retry| retry.owner == sub.id && self.store.visible(retry.by, &fresh, own))
            .filter(|retry| !retry.gone.is_some_and(|gone| self.store.visible(gone, &fresh, own)))
            .cloned()
            .collect();
        for retry in &retries {
            let lock = Lock::Retry(retry.owner, retry.event);
            if !self.is_free(s, lock, Mode::Exclusive) {
                return Step::Wait(lock, Mode::Exclusive);
            }
        }
        self.try_lock(s, Lock::Subscription(c), Mode::Exclusive);
        self.try_lock(s, Lock::Name(c), Mode::Exclusive);
        let by = self.row_xid(s);
        self.log(Record::Subscription(by, c, None));
        for retry in retries {
            self.try_lock(s, Lock::Retry(retry.owner, retry.event), Mode::Exclusive);
            self.log(Record::RetryGone(by, retry.number));
        }
        Step::Done
    }
}
