//! Why a promoted standby is merged with the branches as standby.rs does it: a random model of a root, its log and its ticks.
//!
//! A transaction of the root holds its rows until it is visible; its commit is in the log before that, and not in the same order
//! as others become visible (a synchronous commit waits in between). A tick shows what is visible when its snapshot is taken, and is in the log
//! later. The standby has the log up to some place, a branch the ticks up to some other. Then the standby gets what it lacks by a rule, and
//! the branch what the standby alone has; their rows and queues have to be equal. For the rule of standby.rs they are, in every case; for each
//! simpler one the test shows that they are not.

use std::collections::{BTreeMap, BTreeSet};

const ROWS: usize = 5;
const CASES: u64 = 20_000;

/// Numbers that are the same in each run (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % limit as u64).unwrap_or(0)
    }
}

/// An update of a row, as it is captured: the row's new contents. The id says its order, and is written to a journal without a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Event {
    id: u32,
    row: usize,
    value: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    Logged,
    Visible,
}

struct Transaction {
    events: Vec<Event>,
    phase: Phase,
}

/// What is in the log.
enum Record {
    Commit(usize),
    Tick(usize),
}

/// What became of a root.
struct History {
    transactions: Vec<Transaction>,
    log: Vec<Record>,
    /// The snapshot of each tick.
    ticks: Vec<BTreeSet<usize>>,
}

fn history(random: &mut Random) -> History {
    let mut all = History {
        transactions: Vec::new(),
        log: Vec::new(),
        ticks: vec![BTreeSet::new()],
    };
    all.log.push(Record::Tick(0));
    let (mut rows, mut next) = ([0; ROWS], 1);
    // The tick whose snapshot is taken, and which is not in the log yet.
    let mut ticking = None;
    for _ in 0..30 + random.below(60) {
        let of = random.below(all.transactions.len().max(1));
        match random.below(6) {
            0 => all.transactions.push(Transaction {
                events: Vec::new(),
                phase: Phase::Running,
            }),
            1 | 2 => {
                let row = random.below(ROWS);
                let held = all.transactions.iter().enumerate().any(|(other, transaction)| {
                    other != of
                        && transaction.phase != Phase::Visible
                        && transaction.events.iter().any(|event| event.row == row)
                });
                if let Some(transaction) = all.transactions.get_mut(of)
                    && transaction.phase == Phase::Running
                    && !held
                {
                    // Made of what the row held, so that an order of changes that was not shows.
                    rows[row] = rows[row] * 7 % 1009 + next;
                    transaction.events.push(Event {
                        id: next,
                        row,
                        value: rows[row],
                    });
                    next += 1;
                }
            }
            3 | 4 => {
                if let Some(transaction) = all.transactions.get_mut(of) {
                    match transaction.phase {
                        Phase::Running => {
                            transaction.phase = Phase::Logged;
                            all.log.push(Record::Commit(of));
                        }
                        Phase::Logged | Phase::Visible => transaction.phase = Phase::Visible,
                    }
                }
            }
            _ => match ticking.take() {
                None => {
                    let seen = all.transactions.iter().enumerate();
                    all.ticks.push(
                        seen.filter(|(_, transaction)| transaction.phase == Phase::Visible)
                            .map(|(number, _)| number)
                            .collect(),
                    );
                    ticking = Some(all.ticks.len() - 1);
                }
                Some(tick) => all.log.push(Record::Tick(tick)),
            },
        }
    }
    if ticking.is_some() {
        all.ticks.pop();
    }
    all
}

/// Rows, and how often each event was applied.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Tables {
    rows: [u32; ROWS],
    journal: BTreeMap<u32, u32>,
}

impl Tables {
    fn apply(&mut self, event: Event) {
        self.rows[event.row] = event.value;
        *self.journal.entry(event.id).or_default() += 1;
    }
}

/// How the standby gets what it lacks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rule {
    /// As standby.rs does it.
    Merge,
    /// Whole batches are applied over what is there.
    WholeBatches,
    /// What has a higher id than anything that is there is applied.
    HigherIds,
    /// As Merge, and what no batch has is forgotten.
    ForgetExtras,
    /// Nothing is fetched, and the branch goes on behind what is there.
    AsItIs,
}

const RULES: [Rule; 5] = [
    Rule::Merge,
    Rule::WholeBatches,
    Rule::HigherIds,
    Rule::ForgetExtras,
    Rule::AsItIs,
];

impl History {
    fn batch(&self, tick: usize) -> Vec<Event> {
        let new = self.ticks[tick].difference(&self.ticks[tick - 1]);
        let mut events: Vec<Event> = new
            .flat_map(|number| self.transactions[*number].events.clone())
            .collect();
        events.sort_by_key(|event| event.id);
        events
    }

    /// Whether a standby and a branch go the same way after a takeover; and whether there were extras. None: there is nothing to be fetched.
    fn outcome(&self, logged: usize, branch_at: usize, rule: Rule) -> Option<(bool, bool)> {
        let (mut here, mut there) = (Tables::default(), Tables::default());
        let (mut top, mut had) = (0, Vec::new());
        for record in &self.log[..logged] {
            match record {
                Record::Tick(tick) => top = *tick,
                Record::Commit(number) => {
                    for event in &self.transactions[*number].events {
                        here.apply(*event);
                        had.push((*number, *event));
                    }
                }
            }
        }
        if branch_at <= top {
            return None;
        }
        for event in (1..=branch_at).flat_map(|tick| self.batch(tick)) {
            there.apply(event);
        }
        let highest = had.iter().map(|(_, event)| event.id).max().unwrap_or(0);
        let mut tail: Vec<Event> = had
            .iter()
            .filter(|(number, _)| !self.ticks[top].contains(number))
            .map(|(_, event)| *event)
            .collect();
        tail.sort_by_key(|event| event.id);
        let fetched: Vec<Event> = (top + 1..=branch_at).flat_map(|tick| self.batch(tick)).collect();
        let applied = |event: &Event| match rule {
            Rule::Merge | Rule::ForgetExtras => !tail.contains(event),
            Rule::WholeBatches => true,
            Rule::HigherIds => event.id > highest,
            Rule::AsItIs => false,
        };
        fetched
            .iter()
            .filter(|event| applied(event))
            .for_each(|event| here.apply(*event));
        let extras: Vec<Event> = tail.into_iter().filter(|event| !fetched.contains(event)).collect();
        if rule != Rule::ForgetExtras {
            extras.iter().for_each(|event| there.apply(*event));
        }
        Some((here == there, !extras.is_empty()))
    }
}

#[test]
fn only_the_whole_merge_is_right() {
    let mut wrong = RULES.map(|rule| (rule, 0));
    let (mut behind, mut with_extras, mut seed) = (0_u64, 0_u64, 0);
    while behind < CASES {
        seed += 1;
        let random = &mut Random(seed);
        let all = history(random);
        let logged = 1 + random.below(all.log.len());
        let branch_at = random.below(all.ticks.len());
        for (rule, count) in &mut wrong {
            let Some((equal, extras)) = all.outcome(logged, branch_at, *rule) else {
                continue;
            };
            *count += u64::from(!equal);
            assert!(*rule != Rule::Merge || equal, "seed {seed}: the merge went wrong");
            behind += u64::from(*rule == Rule::Merge);
            with_extras += u64::from(*rule == Rule::Merge && extras);
        }
    }
    println!("{behind} cases with a branch ahead, {with_extras} with extras; went wrong: {wrong:?}");
    assert!(with_extras > CASES / 100);
    for (rule, count) in wrong {
        assert_eq!(count > 0, rule != Rule::Merge, "{rule:?}");
    }
}
