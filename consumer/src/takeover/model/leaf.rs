//! The leaf in the model: it reads from the old root, keeps what it has in a journal, promises, and gives the new root what no branch has
//! (cascade/leaf.rs, takeover/leaves.rs, replay/journal.rs).

use super::{LeaveOut, Log, Model, OLD, PROTOCOL, Rules, State, bit};
use crate::takeover::step::Kind;

/// Its number among the nodes.
pub(super) const LEAF: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Leaf {
    pub(super) log: Log,
    /// How many of its first ticks are not in the journal any more.
    forgotten: u8,
    epoch: u8,
    /// As a branch's.
    promises: [u8; 2],
    frozen: u8,
    provider: u8,
}

impl Model {
    /// A batch.
    pub(super) fn leaf_fetch(&self, s: &mut State) -> bool {
        let from = s.nodes[usize::from(s.leaf.provider)].log;
        let leaf = &mut s.leaf;
        if leaf.frozen != 0 || from.len <= leaf.log.len || !leaf.log.begins(&from) {
            return false;
        }
        leaf.log.push(from.ticks()[usize::from(leaf.log.len)]);
        true
    }

    /// journal::forget()
    pub(super) fn leaf_forget(&self, s: &mut State) -> bool {
        let all_have = (0..self.nodes).map(|n| s.nodes[n].log.len).min().unwrap_or(0);
        let upto = if self.rules.journal_is_kept {
            all_have.min(s.leaf.log.len)
        } else {
            s.leaf.log.len
        };
        s.leaf.forgotten = s.leaf.forgotten.max(upto);
        true
    }

    /// leaf::promise()
    pub(super) fn leaf_promise(&self, s: &mut State, op: usize) -> bool {
        let t = s.ops[op];
        let leaf = &mut s.leaf;
        let known = leaf.promises.into_iter().fold(leaf.epoch, u8::max);
        if self.kinds[op] != Kind::Dead || t.steps != 1 || t.promised & bit(LEAF) != 0 || t.epoch <= known {
            return false;
        }
        leaf.promises[op] = t.epoch;
        if self.rules.leaf_stops_reading {
            leaf.frozen |= bit(op);
        }
        s.ops[op].promised |= bit(LEAF);
        true
    }

    /// What the replay of the new root fetches from the journal.
    pub(super) fn leaf_give(&self, s: &mut State, op: usize) -> bool {
        let leaf = s.leaf;
        let log = &mut s.nodes[op + 1].log;
        if self.rules.journal_is_checked && (leaf.forgotten > log.len || !log.begins(&leaf.log)) {
            return false;
        }
        for tick in &leaf.log.ticks()[usize::from(leaf.forgotten.max(log.len))..] {
            log.push(*tick);
        }
        s.ops[op].steps += 1;
        true
    }

    /// leaf::follow()
    pub(super) fn leaf_follow(&self, s: &mut State, op: usize) -> bool {
        let t = s.ops[op];
        let new = s.nodes[op + 1];
        let leaf = &mut s.leaf;
        let begun = new.knows & bit(op) != 0;
        if !begun || leaf.epoch > t.epoch || leaf.promises[1 - op] > t.epoch {
            return false;
        }
        // Its place at the new root is refused where that does not have its tick.
        if leaf.log.begins(&new.log) {
            leaf.provider = op as u8 + 1;
        }
        leaf.epoch = t.epoch;
        (leaf.promises, leaf.frozen) = ([0; 2], 0);
        true
    }

    /// leaf::release()
    pub(super) fn leaf_release(&self, s: &mut State, op: usize) -> bool {
        if !s.ops[op].aborted {
            return false;
        }
        s.leaf.promises[op] = 0;
        s.leaf.frozen &= !bit(op);
        true
    }

    /// What must hold of a leaf.
    pub(super) fn check_leaf(&self, s: &State) -> Result<(), &'static str> {
        if !self.leaf {
            return Ok(());
        }
        if (1..self.nodes).any(|n| n != OLD && s.nodes[n].open && !s.leaf.log.begins(&s.nodes[n].log)) {
            return Err("a leaf has a tick that the root lacks");
        }
        let stuck = |op: usize| {
            let t = s.ops[op];
            let elected = t.steps == 3 && usize::from(t.donor) == LEAF && !t.aborted;
            elected && s.leaf.forgotten > s.nodes[op + 1].log.len
        };
        if self.rules.journal_is_checked && (0..2).any(stuck) {
            return Err("the donor cannot give what the new root lacks");
        }
        Ok(())
    }
}

fn explore(rules: Rules, ticks: usize) -> Result<usize, String> {
    Model {
        rules,
        kinds: [Kind::Dead, Kind::Dead],
        nodes: 3,
        ticks,
        leaf: true,
    }
    .explore()
}

#[test]
fn what_a_leaf_has_is_in_every_root_that_opens() {
    let begun = std::time::Instant::now();
    match explore(PROTOCOL, 1) {
        Ok(states) => println!("with a leaf: {states} states in {:?}", begun.elapsed()),
        Err(story) => panic!("{story}"),
    }
}

#[test]
fn without_any_of_the_rules_of_leaves_it_goes_wrong() {
    let rules: [(&str, LeaveOut); 4] = [
        ("leaf_gives", |r| r.leaf_gives = false),
        ("leaf_stops_reading", |r| r.leaf_stops_reading = false),
        ("journal_is_kept", |r| r.journal_is_kept = false),
        ("journal_is_checked", |r| {
            // There is nothing to check as long as it is kept: here it has a bound.
            (r.journal_is_kept, r.journal_is_checked) = (false, false);
        }),
    ];
    for (name, leave_out) in rules {
        let mut rules = PROTOCOL;
        leave_out(&mut rules);
        match explore(rules, 1) {
            Ok(states) => panic!("without {name} nothing goes wrong ({states} states)"),
            Err(story) => println!("without {name}: {story}"),
        }
    }
}
