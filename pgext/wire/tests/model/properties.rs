//! What must hold, whatever the schedule: checked against what was committed, with plain set arithmetic on snapshots.

use std::collections::BTreeMap;

use super::schedule::{Act, CONSUMERS, Move};
use super::store::{Event, Tick};
use super::{Model, Outcome, Seen};

/// A session that is idle once the schedule has ended.
const LAST: usize = 0;

impl Model {
    /// A statement after the end of the schedule.
    fn finally(&mut self, act: Act) -> bool {
        self.make(Move {
            session: LAST,
            act,
            steps: None,
        });
        if self.outcomes[LAST] != Some(Outcome::Done) {
            self.faults
                .push(format!("{act:?} after the end: {:?}", self.outcomes[LAST]));
        }
        self.faults.is_empty()
    }

    /// With all transactions ended: one tick shows everything, whether or not the idle period is over; consumers read it all;
    /// rotations empty all tables.
    pub(super) fn drain(&mut self) {
        if !self.finally(Act::Tick) {
            return;
        }
        let forgotten = self
            .committed()
            .filter(|event| !self.last().is_some_and(|tick| tick.snapshot.sees(event.txid)));
        if let Some(event) = forgotten.last() {
            let fault = format!(
                "the ticker sees nothing new, but event {} is not delivered",
                event.label
            );
            self.faults.push(fault);
            return;
        }
        self.idle_ticks = true;
        self.finally(Act::Reinsert);
        let old: Vec<u32> = self.store.tables.iter().flatten().map(|event| event.label).collect();
        for _ in 0..=self.store.tables.len() {
            let acts = [Act::Tick, Act::Tick];
            if !acts.into_iter().all(|act| self.finally(act)) || !self.catch_up() {
                return;
            }
            if ![Act::Step1, Act::Step2].into_iter().all(|act| self.finally(act)) {
                return;
            }
        }
        let left = self
            .store
            .tables
            .iter()
            .flatten()
            .filter(|event| old.contains(&event.label))
            .count();
        if left > 0 && self.naive.is_none() {
            self.faults
                .push(format!("rotation stands still: {left} old events are left"));
        }
    }

    fn catch_up(&mut self) -> bool {
        for c in 0..CONSUMERS {
            if self.store.subscriptions[c].is_empty() || self.subscription(LAST, c, &self.fresh(LAST)).is_none() {
                continue;
            }
            let argument = u8::try_from(c).unwrap_or(0);
            loop {
                if !self.finally(Act::Next(argument)) {
                    return false;
                }
                if self.sessions[LAST].batches[c].is_none() {
                    break;
                }
                if !self.finally(Act::Read(argument)) || !self.finally(Act::Finish(argument)) {
                    return false;
                }
            }
        }
        true
    }

    fn last(&self) -> Option<&Tick> {
        self.store
            .ticks
            .iter()
            .filter(|tick| self.store.committed(tick.by))
            .max_by_key(|tick| tick.id)
    }

    /// Whom an event is for; nobody: for all.
    fn owner(&self, event: &Event) -> Option<u32> {
        let number = event.retried?;
        self.store
            .retries
            .iter()
            .find(|retry| retry.number == number)
            .map(|retry| retry.owner)
    }

    fn committed(&self) -> impl Iterator<Item = &Event> {
        self.store.written.iter().filter(|event| self.store.committed(event.by))
    }

    /// The properties, once everything is delivered.
    pub(crate) fn verdict(&self) -> Result<(), String> {
        if let Some(fault) = self.faults.first() {
            return Err(fault.clone());
        }
        self.ticks_follow()?;
        for seen in &self.seen {
            self.is_batch(seen)?;
        }
        for c in 0..CONSUMERS {
            let Some((_, Some(sub))) = self.store.subscriptions[c]
                .iter()
                .rev()
                .find(|(by, _)| self.store.committed(*by))
            else {
                continue;
            };
            self.exactly_once(c, sub.id)?;
        }
        self.retried_once()
    }

    /// Ids of events are unique, and each tick sees what the one before it saw.
    fn ticks_follow(&self) -> Result<(), String> {
        let mut ticks: Vec<&Tick> = self
            .store
            .ticks
            .iter()
            .filter(|tick| self.store.committed(tick.by))
            .collect();
        ticks.sort_by_key(|tick| tick.id);
        for pair in ticks.windows(2) {
            if pair[0].id == pair[1].id || !pair[1].snapshot.includes(&pair[0].snapshot) {
                return Err(format!("tick {:?} does not follow {:?}", pair[1], pair[0]));
            }
        }
        let mut ids: Vec<i64> = self
            .committed()
            .filter(|event| event.retried.is_none())
            .map(|event| event.id)
            .collect();
        ids.sort_unstable();
        match ids.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!("event id {} twice", pair[0])),
            None => Ok(()),
        }
    }

    /// What a reader saw is what its two ticks say, of what is committed now: nothing uncommitted, nothing rolled back, nothing
    /// lost in a crash, all of each transaction, in the order of ids.
    fn is_batch(&self, seen: &Seen) -> Result<(), String> {
        let tick = |id: i64| {
            let found = self
                .store
                .ticks
                .iter()
                .find(|tick| tick.id == id && self.store.committed(tick.by));
            found.ok_or_else(|| format!("tick {id} was read and does not exist: {seen:?}"))
        };
        let (prev, cur) = (tick(seen.prev)?, tick(seen.cur)?);
        let mut events: Vec<&Event> = self
            .committed()
            .filter(|event| self.owner(event).is_none_or(|owner| owner == seen.subscription))
            .filter(|event| {
                let top = self.store.top(event.by);
                cur.snapshot.sees(top) && !prev.snapshot.sees(top)
            })
            .collect();
        events.sort_by_key(|event| event.id);
        let expected: Vec<u32> = events.iter().map(|event| event.label).collect();
        let mut labels = seen.labels.clone();
        if expected == labels {
            return Ok(());
        }
        // A retried event has the id of the original; their order in one batch says nothing.
        let mut sorted = expected.clone();
        sorted.sort_unstable();
        labels.sort_unstable();
        let twice = events.windows(2).any(|pair| pair[0].id == pair[1].id);
        if twice && sorted == labels {
            return Ok(());
        }
        Err(format!("{seen:?} should be {expected:?}"))
    }

    /// Every committed event that the tick of the registration does not see is in one batch of the consumer, and the
    /// changes of each row come in order.
    fn exactly_once(&self, c: usize, subscription: u32) -> Result<(), String> {
        // Batches whose opening was committed; reading one again gives the same, as checked above.
        let mut batches: BTreeMap<i64, &Seen> = BTreeMap::new();
        for (by, version) in &self.store.subscriptions[c] {
            let opened = version.filter(|version| version.id == subscription && self.store.committed(*by));
            let Some((id, _)) = opened.and_then(|version| version.batch) else {
                continue;
            };
            // The last one: a crash that loses an opening may lose the drawing of its id too, and a later batch has it again.
            match self
                .seen
                .iter()
                .rfind(|seen| seen.subscription == subscription && seen.batch == id)
            {
                Some(seen) => batches.insert(id, seen),
                None => return Err(format!("batch {id} of consumer {c} was opened and never read")),
            };
        }
        let mut batches: Vec<&Seen> = batches.into_values().collect();
        batches.sort_by_key(|seen| seen.cur);
        let mut times: BTreeMap<u32, u32> = BTreeMap::new();
        for label in batches.iter().flat_map(|seen| &seen.labels) {
            *times.entry(*label).or_default() += 1;
        }
        let start = self.starts.get(subscription as usize).copied().unwrap_or(0);
        let Some(start) = self
            .store
            .ticks
            .iter()
            .find(|tick| tick.id == start && self.store.committed(tick.by))
        else {
            return Err(format!("consumer {c} begins at tick {start}, which does not exist"));
        };
        for event in self.committed() {
            let its = self.owner(event).is_none_or(|owner| owner == subscription);
            let wanted = u32::from(its && !start.snapshot.sees(self.store.top(event.by)));
            let got = times.get(&event.label).copied().unwrap_or(0);
            if got != wanted {
                return Err(format!("consumer {c} got {event:?} {got} times instead of {wanted}"));
            }
        }
        let changes: BTreeMap<u32, (u8, u32)> = self
            .committed()
            .filter_map(|event| Some((event.label, event.change?)))
            .collect();
        let mut latest: BTreeMap<u8, u32> = BTreeMap::new();
        for label in batches.iter().flat_map(|seen| &seen.labels) {
            let Some((row, turn)) = changes.get(label) else {
                continue;
            };
            let before = latest.insert(*row, *turn).unwrap_or(0);
            if before > *turn {
                return Err(format!(
                    "consumer {c} got change {turn} of row {row} after change {before}"
                ));
            }
        }
        Ok(())
    }

    /// What consumers put into the retry queue came back once.
    fn retried_once(&self) -> Result<(), String> {
        for retry in self.store.retries.iter().filter(|retry| self.store.committed(retry.by)) {
            let back = self
                .committed()
                .filter(|event| event.retried == Some(retry.number))
                .count();
            let gone = retry.gone.is_some_and(|gone| self.store.committed(gone));
            let alive = self.store.subscriptions.iter().any(|versions| {
                versions
                    .iter()
                    .rev()
                    .find(|(by, _)| self.store.committed(*by))
                    .is_some_and(|(_, version)| version.is_some_and(|version| version.id == retry.owner))
            });
            if back > 1 || (alive && (back == 0 || !gone)) {
                return Err(format!("{retry:?} was put back {back} times"));
            }
        }
        Ok(())
    }
}
