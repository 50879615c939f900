//! A promoted standby in the model: a copy of the old root, up to any moment, that is a closed root of its own from when it is promoted (takeover_promotion.sql,
//! standby.rs). The server that it was a standby of may go on meanwhile, and so may a takeover that knows nothing of it.

use super::{LeaveOut, Model, Node, OLD, PROTOCOL, Rules, State};
use crate::takeover::step::Kind;

/// Its number among the nodes, as that of whoever becomes root by the first takeover.
pub(super) const STANDBY: usize = 1;

impl Model {
    pub(super) fn has_standby(&self) -> bool {
        self.kinds[0] == Kind::Standby
    }

    /// Not a node that others know: it has the old root's name.
    pub(super) fn is_standby(&self, n: usize) -> bool {
        self.has_standby() && n == STANDBY
    }

    /// It has replayed the log so far, and is all that the old root is.
    pub(super) fn stream(&self, s: &mut State) -> bool {
        if s.standby_promoted {
            return false;
        }
        s.nodes[STANDBY] = Node {
            root: false,
            open: false,
            ..s.nodes[OLD]
        };
        true
    }

    /// notice_promotion(), before which no writer is let in.
    pub(super) fn promote_standby(&self, s: &mut State) -> bool {
        if s.standby_promoted {
            return false;
        }
        s.standby_promoted = true;
        let node = &mut s.nodes[STANDBY];
        node.root = true;
        node.fence_op = 0;
        node.open = !self.rules.promoted_is_closed;
        true
    }

    /// Somebody has given it up, and has made another root.
    pub(super) fn opens_late(&self, s: &State, n: usize) -> bool {
        self.is_standby(n) && s.nodes.iter().any(|other| other.epoch > s.nodes[n].epoch)
    }
}

fn explore(rules: Rules, other: Kind, nodes: usize) -> Result<usize, String> {
    Model {
        rules,
        kinds: [Kind::Standby, other],
        nodes,
        ticks: 1,
        leaf: false,
    }
    .explore()
}

/// Beside a takeover to a branch that has the old root fenced, or gives it up.
#[test]
fn a_promoted_standby_opens_with_all_and_alone() {
    for (other, nodes) in [(Kind::Planned, 4), (Kind::Dead, 4)] {
        let begun = std::time::Instant::now();
        match explore(PROTOCOL, other, nodes) {
            Ok(states) => println!(
                "a standby beside {other:?}, {nodes} nodes: {states} states in {:?}",
                begun.elapsed()
            ),
            Err(story) => panic!("{other:?}: {story}"),
        }
    }
}

/// A slow run of the command may open the standby by a confirmation that was true once, after somebody has declared it dead and made another
/// root. That is as if it had opened a moment before: an old root that takes writes until it is told. All that can happen by it is in the
/// states that can happen without; these are some of the others, so they are the same if they are as many.
#[test]
fn a_standby_that_opens_late_leads_nowhere_else() {
    let mut rules = PROTOCOL;
    (rules.confirms_are_fresh, rules.none_opens_late) = (false, false);
    let counted = explore(PROTOCOL, Kind::Dead, 4).and_then(|states| Ok((states, explore(rules, Kind::Dead, 4)?)));
    match counted {
        Ok((states, late)) => assert_eq!(states, late),
        Err(story) => panic!("{story}"),
    }
}

#[test]
fn without_any_of_the_rules_of_standbys_it_goes_wrong() {
    let rules: [(&str, Kind, usize, LeaveOut); 6] = [
        ("promoted_is_closed", Kind::Planned, 3, |r| r.promoted_is_closed = false),
        ("standby_fetches", Kind::Planned, 3, |r| r.standby_fetches = false),
        ("confirms_are_fresh", Kind::Dead, 4, |r| r.confirms_are_fresh = false),
        ("all_promise", Kind::Dead, 4, |r| r.all_promise = false),
        ("promise_stops_reading", Kind::Planned, 3, |r| {
            r.promise_stops_reading = false
        }),
        ("promise_is_compared", Kind::Planned, 3, |r| {
            r.promise_is_compared = false
        }),
    ];
    for (name, other, nodes, leave_out) in rules {
        let mut rules = PROTOCOL;
        leave_out(&mut rules);
        match explore(rules, other, nodes) {
            Ok(states) => panic!("without {name} nothing goes wrong beside {other:?} ({states} states)"),
            Err(story) => println!("without {name}: {story}"),
        }
    }
}
