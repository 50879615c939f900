//! A model of takeover, small enough to look at every state that it can get into.
//!
//! A root, three nodes that may succeed it, and two takeovers that know nothing of each other: each transaction of the protocol
//! (sql/takeover_node.sql, sql/takeover_journal.sql) is one action here, and actions come in every order. A takeover may stop
//! for good anywhere, go on at any later time with what it remembers, and be aborted by a second run of the command; the old
//! root goes on writing as long as it is open. The steps, and their order, are those of step.rs.
//!
//! A node's ticks are a list of the epochs that they were made in. What must hold when a root opens:
//! 1. it has every tick that counted as safe: in a planned takeover all that the old root made, else those that one
//!    other node had, too;
//! 2. no other root is open in its epoch or a later one, and after a planned takeover none at all;
//! 3. what was safe once is not replaced by something else in the same place;
//! 4. where there is a leaf (leaf.rs), the root has every tick that the leaf has.
//!
//! By the first of the two takeovers a promoted standby of the old root may be the new one (standby.rs).
//!
//! [`Rules`] has the rules that were found necessary; with each of them left out there is a run that breaks one of these.

#![allow(
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking; the numbers here are all below ten"
)]

mod leaf;
mod standby;

use std::collections::HashSet;

use super::step::{Kind, Step};
use leaf::{LEAF, Leaf};
use standby::STANDBY;

/// The most nodes, the old root included.
const NODES: usize = 4;
const OLD: usize = 0;
const LOG: usize = 8;

/// What the protocol relies on. All true: the protocol as it is.
#[derive(Debug, Clone, Copy)]
struct Rules {
    /// A promoted root stays closed until another node has confirmed its epoch.
    open_is_a_step: bool,
    /// A node that has promised takes no ticks from its provider.
    promise_stops_reading: bool,
    /// Promoting and opening compare the promise.
    promise_is_compared: bool,
    /// All nodes that may succeed have to promise; without it two of three.
    all_promise: bool,
    /// Whoever has promoted cannot be aborted.
    no_abort_after_promote: bool,
    /// The old root opens again only after the journal says aborted.
    abort_before_release: bool,
    /// A promise that is released puts the one before into force again.
    older_promises_are_kept: bool,
    /// A root is promised to one planned takeover at a time.
    one_holds_the_root: bool,
    /// A root that has learned of another one stays closed when it is released.
    learned_stays_closed: bool,
    /// The old root is not released by who knows of another one, or has promised to make one.
    released_by_who_knows_none: bool,
    /// An old root that was released by hand is not said to be gone for good, nor the other way round.
    operators_agree: bool,
    /// A leaf that is ahead is the donor.
    leaf_gives: bool,
    /// A leaf that has promised takes no ticks.
    leaf_stops_reading: bool,
    /// A tick stays in the leaf's journal until every node has it.
    journal_is_kept: bool,
    /// Nothing is fetched from a journal that begins later than the new root ends.
    journal_is_checked: bool,
    /// A standby that is promoted takes no writes before it has begun an epoch.
    promoted_is_closed: bool,
    /// It fetches what branches have and it lacks.
    standby_fetches: bool,
    /// A branch that has confirmed counts only if it still follows when the standby opens.
    confirms_are_fresh: bool,
    /// A standby that opens when a later root was made is nothing wrong by itself.
    none_opens_late: bool,
}

const PROTOCOL: Rules = Rules {
    open_is_a_step: true,
    promise_stops_reading: true,
    promise_is_compared: true,
    all_promise: true,
    no_abort_after_promote: true,
    abort_before_release: true,
    older_promises_are_kept: true,
    one_holds_the_root: true,
    learned_stays_closed: true,
    released_by_who_knows_none: true,
    operators_agree: true,
    leaf_gives: true,
    leaf_stops_reading: true,
    journal_is_kept: true,
    journal_is_checked: true,
    promoted_is_closed: true,
    standby_fetches: true,
    confirms_are_fresh: true,
    none_opens_late: true,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Log {
    epochs: [u8; LOG],
    len: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Node {
    log: Log,
    epoch: u8,
    /// The epoch promised to each takeover; 0: none. The higher one counts.
    promises: [u8; 2],
    /// To which of them it promised to take no ticks.
    frozen: u8,
    root: bool,
    open: bool,
    fence_op: u8,
    provider: u8,
    /// The takeovers whose epoch it knows.
    knows: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Takeover {
    /// How many steps are in the journal; 0: not begun.
    steps: u8,
    aborted: bool,
    epoch: u8,
    fork: u8,
    donor: u8,
    /// A planned one, that goes on without the old root since it promoted.
    alone: bool,
    /// What the command remembers, which may be out of date: who promised, who confirmed.
    promised: u8,
    confirmed: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct State {
    nodes: [Node; NODES],
    ops: [Takeover; 2],
    leaf: Leaf,
    standby_promoted: bool,
    /// The longest list of ticks that counted as safe.
    safe: Log,
}

/// What happens, at which node, and for which takeover.
type Action = (&'static str, usize, Option<usize>);

/// Two takeovers, of these kinds, to the nodes 1 and 2.
#[derive(Debug, Clone, Copy)]
struct Model {
    rules: Rules,
    kinds: [Kind; 2],
    nodes: usize,
    /// How many ticks the old root makes.
    ticks: usize,
    /// Whether there is a leaf, which reads from the old root.
    leaf: bool,
}

impl Log {
    fn push(&mut self, epoch: u8) {
        if let Some(place) = self.epochs.get_mut(usize::from(self.len)) {
            *place = epoch;
            self.len += 1;
        }
    }

    fn ticks(&self) -> &[u8] {
        &self.epochs[..usize::from(self.len)]
    }

    fn begins(&self, other: &Self) -> bool {
        other.ticks().starts_with(self.ticks())
    }

    fn last(&self) -> (u8, u8) {
        (self.ticks().last().copied().unwrap_or(0), self.len)
    }
}

impl Node {
    /// The takeover that the promise is to, and the epoch.
    fn promise(&self) -> Option<(usize, u8)> {
        let highest = (0..2).max_by_key(|op| self.promises[*op])?;
        (self.promises[highest] > 0).then_some((highest, self.promises[highest]))
    }

    fn give(&mut self, op: usize, epoch: u8, frozen: bool) {
        self.promises[op] = epoch;
        self.frozen |= if frozen { bit(op) } else { 0 };
    }

    fn forget(&mut self, op: usize) {
        self.promises[op] = 0;
        self.frozen &= !bit(op);
    }
}

fn bit(node: usize) -> u8 {
    1 << node
}

impl Model {
    fn start(&self) -> State {
        let mut state = State::default();
        for node in &mut state.nodes {
            node.epoch = 1;
        }
        state.nodes[OLD].root = true;
        state.nodes[OLD].open = true;
        state
    }

    fn planned(&self) -> bool {
        self.kinds == [Kind::Planned, Kind::Planned]
    }

    /// Everything that can happen next.
    fn next(&self, state: &State, out: &mut Vec<(Action, State)>) {
        let mut add = |what: Action, change: &dyn Fn(&mut State) -> bool| {
            let mut next = *state;
            if change(&mut next) && next != *state {
                out.push((what, next));
            }
        };
        for n in 0..self.nodes {
            add(("writes", n, None), &|s| self.write(s, n));
            add(("fetches a tick", n, None), &|s| self.fetch(s, n));
        }
        if self.has_standby() {
            add(("streams", STANDBY, None), &|s| self.stream(s));
            add(("is promoted by somebody", STANDBY, None), &|s| self.promote_standby(s));
        }
        if self.leaf {
            add(("fetches a tick", LEAF, None), &|s| self.leaf_fetch(s));
            add(("forgets ticks", LEAF, None), &|s| self.leaf_forget(s));
        }
        for op in 0..2 {
            let t = state.ops[op];
            let kind = self.kinds[op];
            let new = op + 1;
            if t.steps == 0 {
                add(("begins", op + 1, Some(op)), &|s| self.begin(s, op));
                continue;
            }
            let at = kind.steps()[usize::from(t.steps) - 1];
            let mut advance = |step: Step, when: bool| {
                if when && kind.after(at) == Some(step) && !t.aborted {
                    add((step.word(), op + 1, Some(op)), &|s| {
                        s.ops[op].steps += 1;
                        true
                    });
                }
            };
            advance(Step::Fenced, t.fork > 0);
            let is_planned = kind == Kind::Planned && !t.alone;
            let drained = state.nodes[new].log == state.nodes[OLD].log;
            advance(Step::Drained, drained);
            let others = self.nodes - 1 - usize::from(self.has_standby() && op != 0);
            let needed = if self.rules.all_promise { others } else { others - 1 };
            let have = ((t.promised | bit(new)) & !bit(LEAF)).count_ones() as usize;
            let leaf_has = !self.leaf || t.promised & bit(LEAF) != 0;
            advance(Step::Promised, have >= needed && leaf_has);
            advance(Step::Repointed, t.confirmed != 0 || kind == Kind::Planned);
            advance(Step::Demoted, state.nodes[OLD].provider == new as u8 || t.alone);
            advance(Step::Done, true);
            for n in (0..self.nodes).filter(|n| *n != new) {
                // At the old root's place there may be its standby.
                let asked = if is_planned {
                    n == OLD || self.is_standby(n) && state.standby_promoted
                } else {
                    n != OLD && !self.is_standby(n)
                };
                if asked {
                    add(("promises", n, Some(op)), &|s| self.promise(s, op, n));
                    add(("confirms", n, Some(op)), &|s| self.confirm(s, op, n));
                    add(("follows", n, Some(op)), &|s| self.follow(s, op, n));
                    add(("is released", n, Some(op)), &|s| self.release(s, op, n));
                }
            }
            if self.leaf {
                add(("promises", LEAF, Some(op)), &|s| self.leaf_promise(s, op));
                add(("follows", LEAF, Some(op)), &|s| self.leaf_follow(s, op));
                add(("is released", LEAF, Some(op)), &|s| self.leaf_release(s, op));
            }
            add(("learns", OLD, Some(op)), &|s| self.learn(s, op));
            add(("is fenced", OLD, Some(op)), &|s| self.fence(s, op));
            add(("elects", op + 1, Some(op)), &|s| self.elect(s, op));
            add(("catches up", op + 1, Some(op)), &|s| self.catch_up(s, op));
            add(("promotes", op + 1, Some(op)), &|s| self.promote(s, op));
            add(("does without the old root", op + 1, Some(op)), &|s| {
                self.go_on_alone(s, op)
            });
            add(("opens", op + 1, Some(op)), &|s| self.open(s, op));
            add(("aborts", op + 1, Some(op)), &|s| self.abort(s, op));
        }
    }

    fn write(&self, s: &mut State, n: usize) -> bool {
        let most = if n == OLD { self.ticks } else { self.ticks + 2 };
        let node = &mut s.nodes[n];
        if !node.open || usize::from(node.log.len) >= most {
            return false;
        }
        node.log.push(node.epoch);
        true
    }

    fn fetch(&self, s: &mut State, n: usize) -> bool {
        let node = s.nodes[n];
        let from = s.nodes[usize::from(node.provider)];
        if self.is_standby(n)
            || node.root
            || node.frozen != 0
            || usize::from(node.provider) == n
            || from.log.len <= node.log.len
        {
            return false;
        }
        if !node.log.begins(&from.log) {
            return false;
        }
        s.nodes[n].log.push(from.log.ticks()[usize::from(node.log.len)]);
        true
    }

    /// takeover_begin()
    fn begin(&self, s: &mut State, op: usize) -> bool {
        let node = &mut s.nodes[op + 1];
        let planned = self.kinds[op] == Kind::Planned;
        let fit = if self.is_standby(op + 1) {
            node.root && !node.open
        } else {
            !node.root
        };
        if !fit || planned && node.promise().is_some() {
            return false;
        }
        let epoch = node.epoch.max(node.promise().map_or(0, |promise| promise.1)) + 1;
        node.give(op, epoch, !planned);
        s.ops[op] = Takeover {
            steps: 1,
            epoch,
            ..Takeover::default()
        };
        true
    }

    /// promise_epoch()
    fn promise(&self, s: &mut State, op: usize, n: usize) -> bool {
        let t = s.ops[op];
        let planned = self.kinds[op] == Kind::Planned;
        let node = &mut s.nodes[n];
        if t.steps != 1 || t.promised & bit(n) != 0 {
            return false;
        }
        let held = planned && self.rules.one_holds_the_root && node.promise().is_some();
        let too_old = t.epoch <= node.epoch.max(node.promise().map_or(0, |promise| promise.1));
        // Without the rule a second takeover takes the root over from the first, whatever its epoch.
        if held || too_old && (self.rules.one_holds_the_root || !planned) || !planned && node.open {
            return false;
        }
        if planned && !self.rules.one_holds_the_root {
            node.promises = [0; 2];
        }
        node.give(op, t.epoch, !planned && self.rules.promise_stops_reading);
        s.ops[op].promised |= bit(n);
        true
    }

    /// fence_root()
    fn fence(&self, s: &mut State, op: usize) -> bool {
        let node = &mut s.nodes[OLD];
        let ours = node.promise().is_some_and(|promise| promise.0 == op);
        if self.kinds[op] != Kind::Planned || s.ops[op].promised == 0 || !node.open || !ours {
            return false;
        }
        node.open = false;
        node.fence_op = op as u8 + 1;
        node.log.push(node.epoch);
        s.ops[op].fork = node.log.len;
        true
    }

    fn elect(&self, s: &mut State, op: usize) -> bool {
        let t = s.ops[op];
        if self.at(op, &t) != Some(Step::Promised) || t.aborted {
            return false;
        }
        let asked = (1..self.nodes).filter(|n| *n == op + 1 || t.promised & bit(*n) != 0);
        let donor = asked.max_by_key(|n| (s.nodes[*n].log.last(), *n == op + 1));
        let donor = donor.unwrap_or(op + 1);
        let ahead = self.leaf && self.rules.leaf_gives && s.leaf.log.last() > s.nodes[donor].log.last();
        s.ops[op].donor = if ahead { LEAF } else { donor } as u8;
        s.ops[op].steps += 1;
        true
    }

    /// takeover_fetch(), and what is fetched then.
    fn catch_up(&self, s: &mut State, op: usize) -> bool {
        let t = s.ops[op];
        if self.at(op, &t) != Some(Step::Elected) || t.aborted || !self.promised(s, op) {
            return false;
        }
        if usize::from(t.donor) == LEAF {
            return self.leaf_give(s, op);
        }
        if self.is_standby(op + 1) && !self.rules.standby_fetches {
            s.ops[op].steps += 1;
            return true;
        }
        let (new, donor) = (s.nodes[op + 1], s.nodes[usize::from(t.donor)]);
        let log = &mut s.nodes[op + 1].log;
        if !new.log.begins(&donor.log) {
            return false;
        }
        while log.len < donor.log.len {
            log.push(donor.log.ticks()[usize::from(log.len)]);
        }
        s.ops[op].steps += 1;
        true
    }

    /// takeover_promote()
    fn promote(&self, s: &mut State, op: usize) -> bool {
        let t = s.ops[op];
        let node = &mut s.nodes[op + 1];
        let ready = self.at(op, &t).and_then(|at| self.kinds[op].after(at)) == Some(Step::Promoted);
        let fit = !node.root || self.has_standby() && op == 0;
        if !ready || t.aborted || !fit || t.fork > 0 && node.log.len != t.fork {
            return false;
        }
        if self.rules.promise_is_compared && node.promise() != Some((op, t.epoch)) {
            return false;
        }
        node.root = true;
        node.open = !self.rules.open_is_a_step;
        node.epoch = t.epoch;
        node.provider = op as u8 + 1;
        node.knows |= bit(op);
        s.ops[op].fork = node.log.len;
        node.log.push(t.epoch);
        s.ops[op].steps += 1;
        true
    }

    /// takeover_without_old()
    fn go_on_alone(&self, s: &mut State, op: usize) -> bool {
        let (old, t) = (s.nodes[OLD], &mut s.ops[op]);
        let released = old.promises[op] == 0 && old.knows & bit(op) == 0;
        if self.kinds[op] != Kind::Planned
            || self.at(op, t) != Some(Step::Promoted)
            || t.alone
            || released && self.rules.operators_agree
        {
            return false;
        }
        (t.alone, t.confirmed) = (true, 0);
        true
    }

    /// confirm_epoch(), and takeover_confirmed() on the new root.
    fn confirm(&self, s: &mut State, op: usize, n: usize) -> bool {
        let t = s.ops[op];
        let node = s.nodes[n];
        let ours = node.promise() == Some((op, t.epoch));
        let follows = node.promise().is_none() && node.knows & bit(op) != 0 && node.epoch == t.epoch;
        let reached = node.log.len >= t.fork
            && s.nodes[op + 1]
                .log
                .ticks()
                .starts_with(&node.log.ticks()[..usize::from(t.fork.min(node.log.len))]);
        if s.nodes[op + 1].knows & bit(op) == 0 || !(ours || follows) || !reached {
            return false;
        }
        s.nodes[n].knows |= bit(op);
        s.nodes[n].epoch = t.epoch;
        s.ops[op].confirmed |= bit(n);
        true
    }

    /// takeover_open()
    fn open(&self, s: &mut State, op: usize) -> bool {
        let t = s.ops[op];
        let ready = self.at(op, &t).and_then(|at| self.kinds[op].after(at)) == Some(Step::Opened);
        let promised = !self.rules.promise_is_compared || self.promised(s, op);
        let confirmed = self.confirms(s, op) || !self.rules.open_is_a_step;
        if !ready || t.aborted || !promised || !confirmed {
            return false;
        }
        let node = &mut s.nodes[op + 1];
        node.open = true;
        (node.promises, node.frozen) = ([0; 2], 0);
        s.ops[op].steps += 1;
        true
    }

    /// Whether somebody has confirmed. Nobody asks a promoted standby for a promise, as it has the old root's name; so who made it wait is asked
    /// again by each run of the command (takeover_claim()). That both happen in one moment here is more than a run can do; why that is no
    /// fault: standby.rs.
    fn confirms(&self, s: &State, op: usize) -> bool {
        let t = s.ops[op];
        let follows = |n: usize| {
            let node = s.nodes[n];
            node.epoch == t.epoch && node.promise().is_none_or(|promise| promise.0 == op)
        };
        let fresh = self.is_standby(op + 1) && self.rules.confirms_are_fresh;
        (0..self.nodes).any(|n| t.confirmed & bit(n) != 0 && (!fresh || follows(n)))
    }

    /// follow_root()
    fn follow(&self, s: &mut State, op: usize, n: usize) -> bool {
        let t = s.ops[op];
        let begun = s.nodes[op + 1].knows & bit(op) != 0;
        let opened = self.kinds[op] != Kind::Planned || t.alone || self.at(op, &t) == Some(Step::Opened);
        let node = &mut s.nodes[n];
        let other = node.promise().is_some_and(|promise| promise.0 != op);
        if !begun || !opened || other || node.open || node.epoch > t.epoch {
            return false;
        }
        node.root = false;
        node.provider = op as u8 + 1;
        node.epoch = t.epoch;
        (node.promises, node.frozen) = ([0; 2], 0);
        node.fence_op = 0;
        node.knows |= bit(op);
        true
    }

    /// epochs::learn(), learn_epochs(): the old root hears of the new one from that itself.
    fn learn(&self, s: &mut State, op: usize) -> bool {
        let (t, new) = (s.ops[op], s.nodes[op + 1]);
        let node = &mut s.nodes[OLD];
        if !new.open || new.epoch != t.epoch || !node.root || node.epoch >= t.epoch {
            return false;
        }
        (node.open, node.epoch) = (false, t.epoch);
        node.knows |= bit(op);
        if self.rules.learned_stays_closed {
            node.fence_op = 0;
        }
        for promise in 0..2 {
            if node.promises[promise] < t.epoch {
                node.forget(promise);
            }
        }
        true
    }

    /// takeover_abort()
    fn abort(&self, s: &mut State, op: usize) -> bool {
        let t = s.ops[op];
        let promoted = s.nodes[op + 1].knows & bit(op) != 0;
        if t.steps == 0 || t.aborted || promoted && self.rules.no_abort_after_promote {
            return false;
        }
        s.ops[op].aborted = true;
        s.nodes[op + 1].forget(op);
        true
    }

    /// release_promise(), which the command calls (dead::release()), or the node's own replay (epochs::released()): whenever, in any order,
    /// or never, as a node that is away.
    fn release(&self, s: &mut State, op: usize, n: usize) -> bool {
        let journal = s.nodes[op + 1];
        let node = &mut s.nodes[n];
        let elsewhere = journal.epoch > node.epoch || journal.promise().is_some();
        if n == OLD && elsewhere && self.rules.released_by_who_knows_none {
            return false;
        }
        let too_early = self.rules.abort_before_release && !s.ops[op].aborted;
        let confirmed = self.rules.no_abort_after_promote && node.knows & bit(op) != 0;
        let gone = n == OLD && s.ops[op].alone && self.rules.operators_agree;
        if too_early || confirmed || gone || node.promises[op] == 0 {
            return false;
        }
        if self.rules.older_promises_are_kept {
            node.forget(op);
        } else {
            (node.promises, node.frozen) = ([0; 2], 0);
        }
        if node.fence_op != 0 && node.promises == [0; 2] {
            (node.open, node.fence_op) = (true, 0);
        }
        true
    }

    fn at(&self, op: usize, t: &Takeover) -> Option<Step> {
        self.kinds[op]
            .steps()
            .get(usize::from(t.steps.checked_sub(1)?))
            .copied()
    }

    fn promised(&self, s: &State, op: usize) -> bool {
        s.nodes[op + 1].promise() == Some((op, s.ops[op].epoch))
    }

    /// Counts what has become safe, and says what is wrong.
    fn check(&self, before: &State, s: &mut State) -> Result<(), &'static str> {
        for n in (0..NODES).filter(|n| s.nodes[*n].open) {
            let root = s.nodes[n];
            for (place, epoch) in root.log.ticks().iter().enumerate() {
                let upto = &root.log.ticks()[..=place];
                let held =
                    (1..self.nodes).any(|m| m != n && !self.is_standby(m) && s.nodes[m].log.ticks().starts_with(upto));
                if *epoch != root.epoch || !(held || self.planned() && n == OLD) {
                    continue;
                }
                let (ticks, both) = (s.safe.ticks(), upto.len().min(s.safe.ticks().len()));
                if ticks[..both] != upto[..both] {
                    return Err("what was safe is replaced");
                }
                if upto.len() > ticks.len() {
                    s.safe = Log::default();
                    upto.iter().for_each(|epoch| s.safe.push(*epoch));
                }
            }
        }
        for n in (0..NODES).filter(|n| s.nodes[*n].open && !before.nodes[*n].open) {
            if self.opens_late(s, n) && !self.rules.none_opens_late {
                continue;
            }
            if n != OLD && !s.safe.begins(&s.nodes[n].log) {
                return Err("a root opens without a tick that was safe");
            }
            let beside = |m: usize| s.nodes[m].open && (self.planned() || s.nodes[m].epoch >= s.nodes[n].epoch);
            if (0..NODES).any(|m| m != n && beside(m)) {
                return Err("a root opens beside another one");
            }
        }
        self.check_leaf(s)?;
        let known = |op: usize| s.nodes.iter().any(|node| node.knows & bit(op) != 0);
        if self.rules.no_abort_after_promote && (0..2).any(|op| s.ops[op].aborted && known(op)) {
            return Err("a node that is promised to an aborted takeover cannot be released");
        }
        if self.planned() && s.nodes[OLD].open && (1..NODES).any(|n| s.nodes[n].open) {
            return Err("a root opens beside another one");
        }
        Ok(())
    }

    /// Looks at all states; how many there are, or how one goes wrong.
    fn explore(&self) -> Result<usize, String> {
        let start = self.start();
        let mut seen = HashSet::from([start]);
        let mut all: Vec<(State, usize, Action)> = vec![(start, 0, ("starts", OLD, None))];
        let mut opened = false;
        let mut at = 0;
        let mut out = Vec::new();
        while let Some((state, ..)) = all.get(at).copied() {
            self.next(&state, &mut out);
            for (what, mut next) in out.drain(..) {
                if let Err(wrong) = self.check(&state, &mut next) {
                    let mut story = vec![what];
                    let mut from = at;
                    while from != 0 {
                        story.push(all[from].2);
                        from = all[from].1;
                    }
                    let say = |(what, node, op): &Action| match op {
                        Some(op) => format!("node {node} {what} (takeover {op})"),
                        None => format!("node {node} {what}"),
                    };
                    let story: Vec<_> = story.iter().rev().map(say).collect();
                    return Err(format!("{wrong}: {}", story.join(", ")));
                }
                opened |= next.nodes[1].open && next.ops[0].steps == 8;
                if seen.insert(next) {
                    all.push((next, at, what));
                }
            }
            at += 1;
        }
        assert!(opened, "no takeover came to its end");
        Ok(all.len())
    }
}

const PLANNED: [Kind; 2] = [Kind::Planned, Kind::Planned];
const DEAD: [Kind; 2] = [Kind::Dead, Kind::Dead];
const MIXED: [Kind; 2] = [Kind::Planned, Kind::Dead];

fn explore(rules: Rules, kinds: [Kind; 2], nodes: usize, ticks: usize) -> Result<usize, String> {
    Model {
        rules,
        kinds,
        nodes,
        ticks,
        leaf: false,
    }
    .explore()
}

#[test]
fn no_order_of_actions_loses_a_tick_or_opens_two_roots() {
    for (kinds, nodes) in [(PLANNED, 4), (DEAD, 3), (MIXED, 4)] {
        let begun = std::time::Instant::now();
        match explore(PROTOCOL, kinds, nodes, 2) {
            Ok(states) => println!("{kinds:?}, {nodes} nodes: {states} states in {:?}", begun.elapsed()),
            Err(story) => panic!("{kinds:?}: {story}"),
        }
    }
}

/// The old root may be released by hand where the new one is gone for good: it cannot confirm any more, so the new one never
/// opens, whatever becomes of it.
#[test]
fn a_root_that_is_released_by_hand_stays_the_only_one() {
    let mut rules = PROTOCOL;
    (rules.abort_before_release, rules.released_by_who_knows_none) = (false, false);
    assert!(explore(rules, PLANNED, 3, 1).is_ok());
    let leave_out: [LeaveOut; 2] = [|r| r.open_is_a_step = false, |r| r.operators_agree = false];
    for leave_out in leave_out {
        let mut rules = rules;
        leave_out(&mut rules);
        match explore(rules, PLANNED, 3, 1) {
            Ok(states) => panic!("nothing goes wrong ({states} states)"),
            Err(story) => println!("{story}"),
        }
    }
}

type LeaveOut = fn(&mut Rules);

/// Each rule left out, where that shows.
#[test]
fn without_any_of_the_rules_it_goes_wrong() {
    let rules: [(&str, [Kind; 2], usize, LeaveOut); 9] = [
        ("promise_stops_reading", DEAD, 3, |r| r.promise_stops_reading = false),
        ("promise_is_compared", DEAD, 3, |r| r.promise_is_compared = false),
        ("all_promise", DEAD, 4, |r| r.all_promise = false),
        ("no_abort_after_promote", PLANNED, 3, |r| {
            r.no_abort_after_promote = false
        }),
        ("abort_before_release", DEAD, 3, |r| r.abort_before_release = false),
        ("older_promises_are_kept", DEAD, 4, |r| {
            r.older_promises_are_kept = false
        }),
        ("one_holds_the_root", PLANNED, 3, |r| r.one_holds_the_root = false),
        ("learned_stays_closed", MIXED, 3, |r| {
            r.learned_stays_closed = false;
        }),
        ("released_by_who_knows_none", MIXED, 3, |r| {
            r.released_by_who_knows_none = false;
        }),
    ];
    for (name, kinds, nodes, leave_out) in rules {
        let mut rules = PROTOCOL;
        leave_out(&mut rules);
        match explore(rules, kinds, nodes, 1) {
            Ok(states) => panic!("without {name} nothing goes wrong in {kinds:?} ({states} states)"),
            Err(story) => println!("without {name}: {story}"),
        }
    }
}

/// The database and the documentation have the same steps in the same order.
#[test]
fn the_steps_are_the_same_everywhere() {
    let sql = include_str!("../../../sql/takeover.sql");
    let docs = include_str!("../../../docs/takeover.md");
    for kind in Kind::ALL {
        let words: Vec<&str> = kind.steps().iter().map(|step| step.word()).collect();
        let list = format!("when '{}' then array['{}']", kind.word(), words.join("', '"));
        assert!(sql.contains(&list), "sql/takeover.sql has no {list}");
    }
    let mut rest = docs;
    for step in Kind::Planned.steps() {
        let row = format!("| {} |", step.word());
        let Some((_, after)) = rest.split_once(&row) else {
            panic!("docs/takeover.md has no row {row}, or not in that place");
        };
        rest = after;
    }
}
