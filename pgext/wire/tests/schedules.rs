//! Random schedules in the model of the queue (`model`): every committed event is in exactly one batch of every consumer, in order,
//! and nothing else is. `PGCASCADE_SCHEDULES=n` runs n schedules in each test instead of its usual number.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![allow(missing_docs, reason = "a test program")]

#[allow(dead_code, reason = "consumer/tests/queue/schedules.rs uses the rest")]
mod model;

use model::naive::Naive;
use model::run;
use model::schedule::{Draw, Schedule, schedules};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

fn hold(draw: Draw, usual: u32) {
    let cases = std::env::var("PGCASCADE_SCHEDULES").map_or(usual, |n| n.parse().expect("a number of schedules"));
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 100_000,
        ..Config::default()
    };
    let outcome = TestRunner::new(config).run(&schedules(draw), |schedule| {
        run(&schedule, None).map_err(TestCaseError::fail)
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

#[test]
fn whole_statements() {
    hold(
        Draw {
            moves: 60,
            inside: false,
            crashes: false,
        },
        30_000,
    );
}

#[test]
fn steps_of_statements() {
    hold(
        Draw {
            moves: 80,
            inside: true,
            crashes: false,
        },
        40_000,
    );
}

#[test]
fn crashes() {
    hold(
        Draw {
            moves: 70,
            inside: true,
            crashes: true,
        },
        30_000,
    );
}

#[test]
fn texts() {
    let mut runner = TestRunner::deterministic();
    let draw = Draw {
        moves: 60,
        inside: true,
        crashes: true,
    };
    for _ in 0..200 {
        let schedule = schedules(draw).new_tree(&mut runner).unwrap().current();
        assert_eq!(schedule.to_string().parse::<Schedule>().unwrap(), schedule);
    }
}

/// Races too narrow for chance to meet soon; a schedule is as good as the rule that it was made for.
const KEPT: [(Naive, &str); 1] = [(
    Naive::Step2WithoutTableLock,
    "idle; 0 tick; 0 next 0; 0 read 0; 0 finish 0; 2 event; 0 step1 /9; 1 step2 /3; 2 event",
)];

#[test]
fn kept_schedules() {
    for (rule, text) in KEPT {
        let schedule: Schedule = text.parse().unwrap();
        assert_eq!(run(&schedule, None), Ok(()), "{text}");
        assert!(run(&schedule, Some(rule)).is_err(), "{rule:?}: {text}");
    }
}

/// A crash loses a batch that was opened and read, and its id is that of another batch afterwards: what was read before counts for
/// nothing.
#[test]
fn a_batch_id_comes_again_after_a_crash() {
    let schedule: Schedule = "quiet; 3 write 1 /1; 4 begin; 4 reinsert; 2 write 2 /2; 3 tick; 3 next 0; 3 read 0; 3 finish 0; 3 tick; \
                              4 tick; 4 next 0; 4 read 0; 4 finish 0; 4 retry 0 /3; 1 next 0; 1 read 0; 1 retry 0; 1 finish 0; 1 crash; \
                              1 tick; 0 write 0"
        .parse()
        .unwrap();
    assert_eq!(run(&schedule, None), Ok(()));
}

/// Schedules until one notices that the rule is left out, always the same ones.
fn noticed(rule: Naive, limit: u32) -> Option<u32> {
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let strategy = schedules(Draw {
        moves: 80,
        inside: true,
        crashes: true,
    });
    (1..=limit).find(|_| {
        let schedule = strategy.new_tree(&mut runner).unwrap().current();
        run(&schedule, Some(rule)).is_err()
    })
}

#[test]
fn every_rule_is_needed() {
    let mut forgiven = Vec::new();
    for rule in Naive::ALL
        .into_iter()
        .filter(|rule| KEPT.iter().all(|(kept, _)| kept != rule))
    {
        match noticed(rule, 100_000) {
            Some(n) => println!("{rule:?}: {n}"),
            None => forgiven.push(rule),
        }
    }
    assert!(
        forgiven.is_empty(),
        "nothing noticed that these rules are left out: {forgiven:?}"
    );
}
