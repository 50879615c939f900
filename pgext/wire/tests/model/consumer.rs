//! Batches: next_batch(), get_batch_events() and finish_batch() of sql/batch.sql, and the condition on transaction ids of
//! pgcascade.tick_event_sql().

use wire::snapshot::Snapshot;

use super::naive::Naive;
use super::store::{Event, Record, Sequence, Subscription, TABLES, Tick};
use super::{Held, Lock, Mode, Model, Seen, Step, Task};

impl Model {
    pub(super) fn subscription(&self, s: usize, c: usize, snapshot: &Snapshot) -> Option<Subscription> {
        let own = self.own(s);
        let mut versions = self.store.subscriptions[c].iter().rev();
        versions.find(|(by, _)| self.store.visible(*by, snapshot, own))?.1
    }

    fn conflicting_subscription(&self, s: usize, c: usize) -> bool {
        self.conflicts(s, self.store.subscriptions[c].iter().map(|(by, _)| *by))
    }

    /// next_batch(). The flag says that the subscription's row is locked; the range is what it says then.
    pub(super) fn next_step(&mut self, s: usize, task: &mut Task, c: usize) -> Step {
        match task.step {
            0 => {
                let Some(sub) = self.subscription(s, c, &self.snapshot(s)) else {
                    return Step::Fail("not subscribed");
                };
                task.range = Some((sub.last, 0));
                task.number = sub.batch.map_or(0, |(id, _)| id);
                Step::On
            }
            1 => {
                let Some((last, _)) = task.range else {
                    return Step::Done;
                };
                let snapshot = self.snapshot(s);
                if !self.ticks(s, &snapshot).any(|tick| tick.id == last) {
                    if task.flag || self.without(Naive::NoSecondLook) {
                        return Step::Fault(format!("next_batch does not find tick {last}"));
                    }
                    return Step::To(2);
                }
                if task.number != 0 {
                    self.sessions[s].batches[c] = Some(Held {
                        id: task.number,
                        read: None,
                    });
                    return Step::Done;
                }
                let next = self
                    .ticks(s, &snapshot)
                    .map(|tick| tick.id)
                    .filter(|id| *id > last)
                    .min();
                let Some(next) = next else {
                    self.sessions[s].batches[c] = None;
                    return Step::Done;
                };
                task.range = Some((last, next));
                if task.flag || self.without(Naive::OpenWithoutLock) {
                    return Step::To(3);
                }
                Step::On
            }
            2 => {
                if self.conflicting_subscription(s, c) {
                    return Step::Fail("serialization");
                }
                if !self.is_free(s, Lock::Subscription(c), Mode::Exclusive) {
                    return Step::Wait(Lock::Subscription(c), Mode::Exclusive);
                }
                let Some(sub) = self.subscription(s, c, &self.fresh(s)) else {
                    return Step::Fail("not subscribed");
                };
                self.try_lock(s, Lock::Subscription(c), Mode::Exclusive);
                task.flag = true;
                task.range = Some((sub.last, 0));
                task.number = sub.batch.map_or(0, |(id, _)| id);
                Step::To(1)
            }
            _ => {
                if !self.try_lock(s, Lock::Subscription(c), Mode::Exclusive) {
                    return Step::Wait(Lock::Subscription(c), Mode::Exclusive);
                }
                let Some((sub, (_, next))) = self.subscription(s, c, &self.fresh(s)).zip(task.range) else {
                    return Step::Done;
                };
                let id = self.draw(s, Sequence::Batches);
                let by = self.row_xid(s);
                let batch = Some((id, next));
                self.log(Record::Subscription(by, c, Some(Subscription { batch, ..sub })));
                self.sessions[s].batches[c] = Some(Held { id, read: None });
                Step::Done
            }
        }
    }

    /// get_batch_events().
    pub(super) fn read_step(&mut self, s: usize, task: &mut Task, c: usize) -> Step {
        let Some(id) = self.sessions[s].batches[c].as_ref().map(|held| held.id) else {
            return Step::Done;
        };
        match task.step {
            0 => {
                let snapshot = self.snapshot(s);
                let Some((sub, (_, cur))) = self.open_batch(s, c, id, &snapshot) else {
                    return Step::Fail("batch not found");
                };
                task.range = Some((sub.last, cur));
                Step::On
            }
            1 => {
                let Some((prev, cur)) = task.range else {
                    return Step::Done;
                };
                let snapshot = self.snapshot(s);
                let found = [prev, cur].map(|id| self.ticks(s, &snapshot).any(|tick| tick.id == id));
                if found.contains(&false) {
                    // Somebody else finished it, and it was forgotten.
                    return Step::Fail("no ticks");
                }
                task.snapshot = Some(snapshot);
                Step::On
            }
            2 => match self.lock_for_reading(s) {
                Some(lock) => Step::Wait(lock, Mode::Shared),
                None => Step::On,
            },
            _ => {
                let Some(((prev, cur), snapshot)) = task.range.zip(task.snapshot.take()) else {
                    return Step::Done;
                };
                // What is read of a batch that is not open any more counts for nothing: finishing it will fail.
                let fresh = self.fresh(s);
                let Some((sub, _)) = self.open_batch(s, c, id, &fresh) else {
                    return Step::Done;
                };
                self.read(s, c, id, (prev, cur), sub, &snapshot);
                Step::Done
            }
        }
    }

    fn open_batch(&self, s: usize, c: usize, id: i64, snapshot: &Snapshot) -> Option<(Subscription, (i64, i64))> {
        let sub = self.subscription(s, c, snapshot)?;
        let batch = sub.batch.filter(|(open, _)| *open == id)?;
        Some((sub, batch))
    }

    fn read(&mut self, s: usize, c: usize, id: i64, (prev, cur): (i64, i64), sub: Subscription, snapshot: &Snapshot) {
        let own = self.own(s);
        let tick = |id: i64| self.store.ticks.iter().rev().find(|tick| tick.id == id);
        let (Some(from), Some(to)) = (tick(prev), tick(cur)) else {
            return;
        };
        let control = self.control(s, snapshot);
        let mut events: Vec<&Event> = (0..TABLES)
            .filter(|table| !self.without(Naive::ControlOfSnapshot) || pgq_table(control, *table, from, to))
            .flat_map(|table| &self.store.tables[table])
            .filter(|event| self.store.visible(event.by, snapshot, own))
            .filter(|event| event.owner.is_none_or(|owner| owner == sub.id))
            .filter(|event| self.wanted(event.txid, &from.snapshot, &to.snapshot))
            .collect();
        events.sort_by_key(|event| event.id);
        let seen = Seen {
            subscription: sub.id,
            batch: id,
            prev,
            cur,
            labels: events.iter().map(|event| event.label).collect(),
            first: events.first().map(|event| event.id),
        };
        // What nobody else can see yet goes if the transaction goes.
        let opened = self.store.subscriptions[c].iter().rev();
        let opened = opened
            .filter(|(_, version)| version.is_some_and(|version| version.batch.is_some_and(|(open, _)| open == id)))
            .map(|(by, _)| *by);
        let mine = opened
            .chain([to.by])
            .any(|by| !self.store.committed(by) || self.running.contains(&self.store.top(by)));
        if let Some(held) = self.sessions[s].batches[c].as_mut() {
            held.read = Some(seen.clone());
        }
        if mine {
            self.level(s).seen.push(seen);
        } else {
            self.seen.push(seen);
        }
    }

    /// The condition of the batch query.
    fn wanted(&self, txid: u64, prev: &Snapshot, cur: &Snapshot) -> bool {
        if self.without(Naive::WholeRange) {
            return txid >= prev.xmin && txid < cur.xmax && cur.sees(txid);
        }
        let after = txid >= prev.xmax && txid < cur.xmax;
        let running = cur.in_progress.iter().any(|xid| *xid >= prev.xmax) && !self.without(Naive::NoRunningList);
        let late = prev.in_progress.contains(&txid) && cur.sees(txid) && !self.without(Naive::NoLateList);
        (after && (!running || cur.sees(txid))) || late
    }

    /// finish_batch().
    pub(super) fn finish_step(&mut self, s: usize, _task: &mut Task, c: usize) -> Step {
        let Some(id) = self.sessions[s].batches[c].as_ref().map(|held| held.id) else {
            return Step::Done;
        };
        let anything = self.without(Naive::FinishAnything);
        if self.open_batch(s, c, id, &self.snapshot(s)).is_none() && !anything {
            return Step::Done;
        }
        if self.conflicting_subscription(s, c) {
            return Step::Fail("serialization");
        }
        if !self.is_free(s, Lock::Subscription(c), Mode::Exclusive) {
            return Step::Wait(Lock::Subscription(c), Mode::Exclusive);
        }
        let Some(sub) = self.subscription(s, c, &self.fresh(s)) else {
            return Step::Done;
        };
        let Some((_, next)) = sub.batch.filter(|(open, _)| *open == id || anything) else {
            return Step::Done;
        };
        self.try_lock(s, Lock::Subscription(c), Mode::Exclusive);
        let by = self.row_xid(s);
        let after = Subscription {
            last: next,
            batch: None,
            ..sub
        };
        self.log(Record::Subscription(by, c, Some(after)));
        Step::Done
    }
}

/// Whether PgQ's batch_event_tables() has a table: the current one, and the one before, if the ticks are old enough.
fn pgq_table(control: super::Control, table: usize, prev: &Tick, cur: &Tick) -> bool {
    let before = (control.table + TABLES - 1) % TABLES;
    (table == control.table && cur.snapshot.xmax >= control.step1)
        || (table == before && control.step2.is_none_or(|step2| prev.snapshot.xmin < step2))
}
