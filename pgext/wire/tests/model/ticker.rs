//! pgq.ticker(1): sql/tick.sql, and pgcascade.tick_due_in(9) and has_undelivered(2) of sql/pgcascade.sql.

use wire::snapshot::Snapshot;

use super::naive::Naive;
use super::store::{Record, Sequence, TABLES, Tick};
use super::{Lock, Mode, Model, Step, Task};

const LOCK: u8 = 0;
const DUE: u8 = 1;
const LOOK: u8 = 2;
const WRITERS: u8 = 3;
const NUMBER: u8 = 4;
const SNAPSHOT: u8 = 5;

impl Model {
    pub(super) fn tick_step(&mut self, s: usize, task: &mut Task) -> Step {
        match task.step {
            LOCK => {
                if self.is_old(s) && !self.without(Naive::TickOfSnapshot) {
                    return Step::Fail("isolation level");
                }
                if self.without(Naive::TickBeforeLock) && task.snapshot.is_none() {
                    task.snapshot = Some(self.snapshot(s));
                    return Step::To(LOCK);
                }
                if !self.try_lock(s, Lock::Ticker, Mode::Exclusive) {
                    return Step::Wait(Lock::Ticker, Mode::Exclusive);
                }
                Step::On
            }
            DUE => {
                task.seq = self.store.last_value(Sequence::Events);
                let Some((last, single)) = self.last_tick(s, &self.snapshot(s)) else {
                    return Step::Fault("the queue has no tick".to_owned());
                };
                let new = task.seq - last.seq;
                if new == 1 {
                    Step::On
                } else if self.idle_ticks || single || new != 0 {
                    Step::To(WRITERS)
                } else if task.seq == 1 {
                    Step::On
                } else {
                    Step::Done
                }
            }
            LOOK => {
                let snapshot = task.snapshot.get_or_insert(self.snapshot(s)).clone();
                if let Some(lock) = self.lock_for_reading(s) {
                    return Step::Wait(lock, Mode::Shared);
                }
                if !self.without(Naive::TickBeforeLock) {
                    task.snapshot = None;
                }
                match self.last_tick(s, &self.snapshot(s)) {
                    Some((last, single)) if self.idle_ticks || single || self.has_undelivered(s, &last, &snapshot) => {
                        Step::On
                    }
                    _ => Step::Done,
                }
            }
            WRITERS => {
                if self.without(Naive::SnapshotBeforeWriters) && task.snapshot.is_none() {
                    task.snapshot = Some(self.snapshot(s));
                    return Step::To(WRITERS);
                }
                let Some((last, _)) = self.last_tick(s, &self.snapshot(s)) else {
                    return Step::Fault("the queue has no tick".to_owned());
                };
                // Exclusive: whoever holds the lock of the writers is in the way of that.
                let others = !self.is_free(s, Lock::Parent, Mode::Exclusive);
                let itself = self.own(s).is_some() && !self.without(Naive::TickNotLoweredForItself);
                if itself
                    && !others
                    && let Some(lock) = self.lock_for_reading(s)
                {
                    return Step::Wait(lock, Mode::Shared);
                }
                if (others || itself) && !self.without(Naive::TickNotLowered) {
                    task.seq = last.seq.max(task.seq - 1);
                }
                Step::On
            }
            NUMBER => {
                task.number = self.draw(s, Sequence::Ticks);
                Step::On
            }
            SNAPSHOT => self.write_tick(s, task),
            _ => Step::Done,
        }
    }

    fn write_tick(&mut self, s: usize, task: &mut Task) -> Step {
        let mut snapshot = task.snapshot.take().unwrap_or_else(|| self.snapshot(s));
        // Own events are for the next tick: the transaction goes on, and may store more.
        let own = self
            .own(s)
            .filter(|own| *own < snapshot.xmax && !self.without(Naive::TickShowsItself));
        if let Some(own) = own
            && let Err(at) = snapshot.in_progress.binary_search(&own)
        {
            snapshot.in_progress.insert(at, own);
        }
        let Some((last, _)) = self.last_tick(s, &self.snapshot(s)) else {
            return Step::Fault("the queue has no tick".to_owned());
        };
        let checked = !self.without(Naive::TickBeforeLock) && !self.without(Naive::TickOfSnapshot);
        if checked && !snapshot.includes(&last.snapshot) {
            return Step::Fault(format!("tick {snapshot} after {}", last.snapshot));
        }
        let by = self.row_xid(s);
        let level = self.level(s);
        level.ticked = true;
        if !self.without(Naive::TickNotFlushed) {
            self.level(s).flush = true;
        }
        self.log(Record::Tick(Tick {
            id: task.number,
            snapshot,
            seq: task.seq,
            by,
            gone: None,
        }));
        Step::Done
    }

    /// The ticks that a snapshot shows, in order.
    pub(super) fn ticks(&self, s: usize, snapshot: &Snapshot) -> impl DoubleEndedIterator<Item = &Tick> {
        let own = self.own(s);
        let snapshot = snapshot.clone();
        self.store.ticks.iter().filter(move |tick| {
            self.store.visible(tick.by, &snapshot, own)
                && !tick.gone.is_some_and(|gone| self.store.visible(gone, &snapshot, own))
        })
    }

    /// The last tick, and whether there is no other.
    pub(super) fn last_tick(&self, s: usize, snapshot: &Snapshot) -> Option<(Tick, bool)> {
        let last = self.ticks(s, snapshot).max_by_key(|tick| tick.id)?.clone();
        Some((last, self.ticks(s, snapshot).nth(1).is_none()))
    }

    fn has_undelivered(&self, s: usize, last: &Tick, now: &Snapshot) -> bool {
        let own = self.own(s);
        let finished = |xid| now.sees(xid) && !last.snapshot.sees(xid);
        (0..TABLES)
            .flat_map(|table| &self.store.tables[table])
            .any(|event| self.store.visible(event.by, now, own) && finished(event.txid))
    }
}
