//! A promoted standby after random histories of its root: cut off at a random moment, with branches and a leaf at random ticks.
//!
//! Who is furthest has to give all that it has, and what only the standby has has to get to everybody: the rows of every node are those that the
//! history says, the queues are the same, and what is written next arrives. The command is killed at random places, too.
//!
//! `PGCASCADE_MERGES=n` runs n histories instead of the usual few, from seed `MERGE_SEED` on, which is printed for each.

use std::collections::{BTreeMap, BTreeSet};

use crate::changes::{ROWS, TABLES};
use crate::cluster::Db;
use crate::history::{History, TICK};
use crate::planned::command;
use crate::standby::{BELOW, LOCAL, PROMOTED, Standby, commits_wait};
use crate::tree::{Tree, until};

/// Each has found one wrong way to merge: whole batches over what is there, what nobody else has forgotten, only events with higher ids.
const USUAL: [u64; 3] = [4, 2, 16];
const NODES: [&str; 3] = ["far", "near", "leaf"];

/// What it is killed at, if it comes there.
const POINTS: [&str; 13] = [
    "takeover_after_prepared",
    "takeover_promised_one",
    "takeover_promised_leaf",
    "takeover_after_elected",
    "takeover_set_aside",
    "donated_copied",
    "before_commit",
    "after_commit",
    "takeover_after_caught-up",
    "takeover_after_promoted",
    "takeover_told",
    "takeover_confirmed_one",
    "takeover_after_opened",
];

/// A root with its standby and nodes, whose servers have stopped.
async fn servers() -> Standby {
    let options = [LOCAL, &["-o", "pgcascade.ticker=off"]].concat();
    let tree = Tree::apart_with(&options).await.together(&NODES);
    let root = tree.connect("root").await;
    root.run(TABLES).await;
    let standby = Standby::of(tree, BELOW).await;
    drop(root);
    commits_wait(&standby.tree).await;
    for cluster in [
        &standby.cluster,
        standby.tree.apart_cluster(),
        standby.tree.cluster("far"),
    ] {
        cluster.keep();
    }
    standby
}

/// All of them are as they were.
async fn go_back(standby: &Standby) -> Db {
    std::thread::scope(|scope| {
        for cluster in [
            standby.tree.apart_cluster(),
            standby.tree.cluster("far"),
            &standby.cluster,
        ] {
            scope.spawn(|| cluster.go_back());
        }
    });
    let root = standby.tree.connect("root").await;
    until(
        &root,
        "select count(*) from pg_stat_replication where state = 'streaming'",
        "1",
    )
    .await;
    commits_wait(&standby.tree).await;
    root
}

/// Each event once, in one tick.
async fn each_event_once(node: &Db) {
    let all = node
        .text("select read_queue((select min(tick_id) from pgq.tick))")
        .await;
    let mut seen = BTreeSet::new();
    for line in all.lines().filter(|line| !line.starts_with("tick ")) {
        if let Some(id) = line.split(' ').next().and_then(|id| id.parse::<i64>().ok()) {
            assert!(seen.insert(id), "event {id} is there twice");
        }
    }
    assert!(!seen.is_empty());
}

/// Returns who gave what the standby lacked, and how many transactions it had of that, and of nobody's.
async fn merge(standby: &Standby, seed: u64) -> (String, usize, usize) {
    let tree = &standby.tree;
    let root = go_back(standby).await;
    let mut history = History::new(tree, seed).await;
    let (before, after) = (20 + history.below(60), history.below(40));
    history.moves(tree, before).await;
    standby.synchronous(&root).await;
    standby.sever().await;
    history.cut();
    history.moves(tree, after).await;
    if history.below(4) > 0 {
        history.catch_up(tree).await;
        let last = history.below(10);
        history.moves(tree, last).await;
    }
    drop(root);
    let mut here = standby.promote_unnoticed().await;
    history.end_what_was_prepared(&here).await;
    let top = here.text("select max(tick_id) from pgq.tick").await.parse().unwrap();

    let replays = tree.replays(&NODES);
    for _ in 0..history.below(3) {
        let point = POINTS[history.below(POINTS.len())];
        println!("killed at {point}");
        let output = standby
            .command(PROMOTED)
            .failpoints(&format!("{point}=kill"))
            .output()
            .await;
        let promoted = here
            .text("select role = 'root' and epoch > 1 from pgcascade.node_state")
            .await
            == "t";
        if output.code().is_none() && !promoted && history.below(3) == 0 {
            standby.takeover(&["--abort"], 0).await;
        }
    }
    let output = standby.command(PROMOTED).output().await;
    let mut root_of = None;
    if output.code() != Some(0) {
        // The leaf has forgotten what the standby lacks, as all nodes had it. One of the branches can be the root.
        assert!(output.stderr.contains("and cannot give them"), "{}", output.stderr);
        for name in ["far", "near"] {
            let dead = command(tree, name, name).args(&["--dead", "root"]).output().await;
            if dead.code() == Some(0) {
                root_of = Some(name);
                break;
            }
            assert!(dead.stderr.contains("and cannot give them"), "{}", dead.stderr);
        }
        here = tree.connect(root_of.expect("a branch that can be the root")).await;
    }
    let outcome = history.outcome(root_of.is_none(), top);
    let donor = match root_of {
        Some(_) => "none, a branch is the root".to_owned(),
        None => {
            here.text("select donor from pgcascade.takeover where step = 'done'")
                .await
        }
    };
    println!(
        "{donor} gives; the standby had {} transactions of it, and {} of nobody's",
        outcome.had, outcome.extras
    );
    here.run("insert into journal values (0, 'next')").await;
    here.run(TICK).await;
    assert_rows(&here, &outcome.rows, "the root").await;
    for name in NODES.into_iter().filter(|name| root_of != Some(name)) {
        let node = tree.connect(name).await;
        until(&node, "select count(*) from journal where uid = 0", "1").await;
        assert_rows(&node, &outcome.rows, name).await;
        if name != "leaf" {
            tree.assert_same_queue(&node, &here).await;
        }
    }
    each_event_once(&here).await;
    for replay in replays {
        replay.kill().await;
    }
    (donor, outcome.had, outcome.extras)
}

async fn assert_rows(node: &Db, wanted: &str, name: &str) {
    let rows = node.text(ROWS).await;
    let (mut rows, wanted): (Vec<&str>, Vec<&str>) = (rows.lines().collect(), wanted.lines().collect());
    rows.sort_unstable();
    let lost: Vec<_> = wanted.iter().filter(|row| !rows.contains(row)).collect();
    let more: Vec<_> = rows.iter().filter(|row| !wanted.contains(row)).collect();
    assert!(
        rows == wanted,
        "{name}: {} rows instead of {}; missing {lost:?}, not expected {more:?}",
        rows.len(),
        wanted.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_are_merged() {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().expect("a number"));
    let seeds: Vec<u64> = match (number("MERGE_SEED"), number("PGCASCADE_MERGES")) {
        (None, None) => USUAL.to_vec(),
        (from, histories) => {
            let from = from.unwrap_or(USUAL[0]);
            (from..from + histories.unwrap_or(1)).collect()
        }
    };
    let standby = servers().await;
    let mut donors: BTreeMap<String, usize> = BTreeMap::new();
    let (mut had, mut extras) = (0, 0);
    for &seed in &seeds {
        println!("MERGE_SEED={seed}");
        let (donor, of_it, of_nobody) = merge(&standby, seed).await;
        *donors.entry(donor).or_default() += 1;
        had += usize::from(of_it > 0);
        extras += usize::from(of_nobody > 0);
    }
    println!("donors: {donors:?}; {had} with a part of what was lacking, {extras} with what nobody else had");
    assert!(
        seeds.len() < USUAL.len() || had > 0 && extras > 0,
        "histories in which nothing happens"
    );
}
