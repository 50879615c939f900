//! The root goes round among three nodes while applications write and others look on.
//!
//! What holds after each takeover: the new root has each transaction that was committed, once; at the end every node has. What holds all
//! the time, on every node: the sum of all accounts, as transfers keep it; a list only gets longer, in the one order that there is; and one node at
//! most takes writes in an epoch.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::cluster::{Db, eventually};
use crate::dead;
use crate::planned::{takeover, writers};
use crate::tree::{self, Tree};
use crate::writers::{Done, journal};

const TABLES: &str = "
    create table account (id int primary key, balance int); insert into account select i, 1000 from generate_series(0, 19) i;
    create table list (id int primary key, items int[] not null); insert into list select i, '{}' from generate_series(0, 199) i";

const CANDIDATES: [&str; 3] = ["root", "left", "right"];

/// A transfer between two accounts in the order of their ids, so that none waits for another in a circle; the number is
/// appended to a list and to the journal.
fn transfer(number: i32) -> String {
    let from = number % 19;
    let to = from + 1 + number / 19 % (19 - from);
    format!(
        "update account set balance = balance - {0} where id = {from}; update account set balance = balance + {0} where id = {to};
         update list set items = items || {number} where id = {1}; insert into journal values ({number}, 'transfer')",
        number % 7,
        number % 200,
    )
}

/// What somebody saw who looked at one node again and again.
#[derive(Default)]
struct Seen {
    looks: usize,
    /// The epochs in which it took writes.
    open: BTreeSet<i64>,
}

async fn look_on(node: Db, leaf: bool, stop: Arc<AtomicBool>) -> Seen {
    let state = if leaf {
        "select null"
    } else {
        "select epoch from pgcascade.node_state where open"
    };
    let mut seen = Seen::default();
    let mut lists: BTreeMap<String, String> = BTreeMap::new();
    while !stop.load(Ordering::Relaxed) {
        if let Ok(epoch) = node.text(state).await.parse() {
            seen.open.insert(epoch);
        }
        let rows = node
            .text(
                "select (select sum(balance) from account), id, array_to_string(items || null::int, ',', '') from list",
            )
            .await;
        for row in rows.lines() {
            let fields: Vec<&str> = row.split('|').collect();
            assert_eq!(fields[0], "20000", "the sum of all accounts");
            let before = lists
                .insert(fields[1].to_owned(), fields[2].to_owned())
                .unwrap_or_default();
            assert!(
                fields[2].starts_with(&before),
                "list {} was {before}, and is {}",
                fields[1],
                fields[2]
            );
        }
        seen.looks += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    seen
}

/// For `bench/takeover`, and for who reads the log of the tests: past what holds a test's output back.
fn print(spans: &[(Instant, Instant)], done: &Done) {
    let mut out = std::io::stderr().lock();
    let (mut gaps, mut whole) = (Vec::new(), Vec::new());
    for (from, to) in spans {
        gaps.push(done.gap(*from, *to).as_millis());
        whole.push((*to - *from).as_millis());
        let _ = writeln!(out, "    {} {}", gaps[gaps.len() - 1], whole[whole.len() - 1]);
    }
    let _ = writeln!(
        out,
        "| planned takeovers, milliseconds | p50 | p99 | longest |\n|---|---|---|---|"
    );
    for (what, mut all) in [("without writes", gaps), ("the command", whole)] {
        all.sort_unstable();
        let quantile = |of_hundred: usize| all[(all.len() - 1) * of_hundred / 100];
        let _ = writeln!(
            out,
            "| {what} | {} | {} | {} |",
            quantile(50),
            quantile(99),
            quantile(100)
        );
    }
    let _ = writeln!(out, "{} writes, {} refused", done.committed.len(), done.refused);
}

/// `TAKEOVERS` says how many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_root_goes_round() {
    let rounds = std::env::var("TAKEOVERS").map_or(30, |n| n.parse().expect("TAKEOVERS is a number"));
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    root.run(TABLES).await;
    let left = tree.add("branch", "left", "root").await;
    let right = tree.add("branch", "right", "root").await;
    let leaf = tree.add("leaf", "leaf", "left").await;
    tree.catch_up_all(&["left", "right", "leaf"]).await;
    let replays = tree.replays(&["root", "left", "right", "leaf"]);
    for name in ["left", "right"] {
        tree.wait(name).await;
    }
    // Else its copies would start over from another node, where another test has a transaction open, and rows be gone for a while.
    tree.until_ok("leaf").await;

    let stop = Arc::new(AtomicBool::new(false));
    let mut watching: Vec<(&str, JoinHandle<Seen>)> = Vec::new();
    for name in ["root", "left", "right", "leaf"] {
        let node = tree.connect(name).await;
        watching.push((name, tokio::spawn(look_on(node, name == "leaf", Arc::clone(&stop)))));
    }
    let writing = writers(&tree, &CANDIDATES, 4, transfer).await;

    let mut spans = Vec::new();
    let mut at = 0;
    for round in 0..rounds {
        writing.go_on().await;
        // To the next one, or to the one after it.
        at = (at + 1 + round % 2) % CANDIDATES.len();
        let begin = Instant::now();
        takeover(&tree, CANDIDATES[at], CANDIDATES[at], &[], 0).await;
        spans.push((begin, Instant::now()));
        writing.assert_kept_by([&root, &left, &right][at]).await;
    }
    writing.go_on().await;
    let done = writing.stop().await;
    done.assert_on(&[&root, &left, &right, &leaf], &["account", "list"])
        .await;
    stop.store(true, Ordering::Relaxed);

    let mut open: BTreeMap<i64, &str> = BTreeMap::new();
    for (name, watch) in watching {
        let seen = watch.await.unwrap();
        assert!(seen.looks > rounds, "{name} was looked at {} times", seen.looks);
        for epoch in seen.open {
            let other = open.insert(epoch, name);
            assert_eq!(other, None, "epoch {epoch} was open on {name} as well");
        }
    }
    print(&spans, &done);
    for node in [&left, &right] {
        tree.assert_same_queue(node, &root).await;
    }
    tree::stop(replays).await;
    drop((root, left, right, leaf));
    tree.drop(&["leaf", "left", "right", "root"]).await;
}

/// The root's server is killed while applications write. What no branch has got is lost, and nothing else: of each writer it is the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_dies_while_applications_write() {
    let tree = Tree::apart().await;
    let root = tree.connect("root").await;
    root.run(TABLES).await;
    let nodes = [("branch", "left"), ("branch", "right"), ("leaf", "leaf")];
    let [left, right, leaf] = tree.below_root(nodes).await;
    let replays = tree.replays(&["left", "right", "leaf"]);
    for (_, name) in nodes {
        tree.wait(name).await;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut watching = Vec::new();
    for (kind, name) in nodes {
        let node = tree.connect(name).await;
        watching.push(tokio::spawn(look_on(node, kind == "leaf", Arc::clone(&stop))));
    }
    let writing = writers(&tree, &["root"], 4, transfer).await;
    for _ in 0..10 {
        writing.go_on().await;
    }
    eventually("something has arrived", async || journal(&left).await.len() >= 50).await;
    drop(root);
    tree.kill_root();
    let done = writing.ended().await;
    assert!(!done.unknown.is_empty(), "nobody wrote when it died");
    dead::takeover(&tree, "left", &["--dead", "root"], 0).await;

    let there: BTreeSet<i32> = journal(&left).await.into_iter().collect();
    assert!(there.len() >= 50, "{} rows are left", there.len());
    for order in &done.orders {
        let lost = order.iter().skip_while(|number| there.contains(number));
        let later: Vec<&i32> = lost.filter(|number| there.contains(number)).collect();
        assert!(
            later.is_empty(),
            "{later:?} are there, and something before them is not"
        );
    }
    let lists = "select string_agg(n::text, ',' order by n) from (select unnest(items) as n from list) l";
    let listed: Vec<String> = there.iter().map(i32::to_string).collect();
    assert_eq!(left.text(lists).await, listed.join(","), "the lists and the journal");

    let writing = writers(&tree, &["left", "right"], 4, transfer).await;
    writing.go_on().await;
    let mut all = writing.stop().await;
    all.committed.extend(there);
    all.assert_on(&[&left, &right, &leaf], &["account", "list"]).await;
    stop.store(true, Ordering::Relaxed);
    for watch in watching {
        assert!(watch.await.unwrap().looks > 0);
    }
    tree.assert_same_queue(&right, &left).await;
    tree::stop(replays).await;
    drop((left, right, leaf));
    tree.drop(&["leaf", "left", "right"]).await;
}
