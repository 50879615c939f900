//! Applications: each writes to the node that is root, one transaction after the other, and remembers what was committed. It ends when its
//! server dies.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_postgres::error::{DbError, Severity};

use crate::cluster::{Db, eventually};
use crate::tree::until;

/// The numbers that were given out, over all writers of the process.
static NEXT: AtomicI32 = AtomicI32::new(1_000_000);

/// What they have done.
#[derive(Default)]
pub(crate) struct Done {
    pub(crate) committed: BTreeSet<i32>,
    /// Their server died before it answered.
    pub(crate) unknown: BTreeSet<i32>,
    /// What each of them wrote, in order.
    pub(crate) orders: Vec<Vec<i32>>,
    /// When each of these was committed, in order.
    times: Vec<Instant>,
    pub(crate) refused: usize,
}

impl Done {
    /// The longest time without a write that was taken, of those that touch this one.
    pub(crate) fn gap(&self, from: Instant, to: Instant) -> Duration {
        let pairs = self.times.windows(2).filter(|pair| pair[1] >= from && pair[0] <= to);
        pairs.map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// Nothing that was committed is lost or there twice, on any node,
    /// and the tables are the same on all. One of the nodes is the root.
    pub(crate) async fn assert_on(&self, nodes: &[&Db], tables: &[&str]) {
        let mut root = None;
        for &node in nodes {
            let leaf = node.text("select to_regnamespace('pgcascade') is null").await == "t";
            if !leaf && node.text("select open from pgcascade.node_state").await == "t" {
                root = Some(node);
            }
        }
        let root = root.expect("a root that is open");
        assert!(self.unknown.is_empty(), "a server died");
        let before = root.text("select pgq.force_tick('q')").await;
        until(root, &format!("select max(tick_id) > {before} from pgq.tick"), "t").await;
        let tick = root.text("select max(tick_id) from pgq.tick").await;
        let wanted: Vec<i32> = self.committed.iter().copied().collect();
        for node in nodes {
            let position = if node.text("select to_regnamespace('pgq_node') is null").await == "f" {
                "select max(tick_id) from pgq.tick"
            } else {
                "select tick from pgcascade_replay.position"
            };
            until(node, &format!("select ({position}) >= {tick}"), "t").await;
            // Tables that were copied for other transactions' sake once more have events that are applied beside the ticks.
            if node
                .text("select to_regclass('pgcascade_replay.held_event') is null")
                .await
                == "f"
            {
                let left = "select (select count(*) from pgcascade_replay.held_event)
                                   + (select count(*) from pgcascade_replay.table_state where state = 'in-copy')";
                until(node, left, "0").await;
            }
            let there = journal(node).await;
            assert_eq!(there.len(), wanted.len(), "rows of the journal");
            assert!(there == wanted, "the journal differs");
            for table in tables {
                let query = format!("select x::text from {table} x order by x::text collate \"C\"");
                assert_eq!(node.text(&query).await, nodes[0].text(&query).await, "{table}");
            }
        }
    }
}

/// The numbers that are in the journal of a node, in order.
pub(crate) async fn journal(node: &Db) -> Vec<i32> {
    let there = node
        .text("select uid from journal where uid >= 1000000 order by uid")
        .await;
    there.lines().map(|line| line.parse().unwrap()).collect()
}

/// One transaction with a number: its statements, without begin and commit.
pub(crate) type Work = fn(i32) -> String;

/// A line of the journal and a row that changes.
pub(crate) fn plain(number: i32) -> String {
    format!(
        "insert into journal values ({number}, 'plain'); update t set n = n + 1 where id = {}",
        1 + number % 500
    )
}

/// Some that write at the same time.
pub(crate) struct Writers {
    stop: Arc<AtomicBool>,
    committed: Arc<Mutex<BTreeSet<i32>>>,
    tasks: Vec<JoinHandle<Done>>,
}

impl Writers {
    /// One per list of sessions, one with each node that may be the root; it tries them in turn, beginning where it was taken last.
    pub(crate) fn start(sessions: Vec<Vec<Db>>, work: Work) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let committed = Arc::new(Mutex::new(BTreeSet::new()));
        let tasks = sessions
            .into_iter()
            .enumerate()
            .map(|(i, nodes)| tokio::spawn(write(nodes, i, work, Arc::clone(&stop), Arc::clone(&committed))))
            .collect();
        Self { stop, committed, tasks }
    }

    /// Waits until they have written some more.
    pub(crate) async fn go_on(&self) {
        let wanted = self.committed().len() + 10;
        eventually("ten more writes", async || self.committed().len() >= wanted).await;
    }

    fn committed(&self) -> BTreeSet<i32> {
        self.committed.lock().expect("no panic in between").clone()
    }

    /// The node has all that was committed until now, each once.
    pub(crate) async fn assert_kept_by(&self, node: &Db) {
        let mut missing = self.committed();
        let mut last = None;
        for number in journal(node).await {
            assert_ne!(last.replace(number), Some(number), "{number} is there twice");
            missing.remove(&number);
        }
        assert!(missing.is_empty(), "{missing:?} are lost");
    }

    pub(crate) async fn stop(self) -> Done {
        self.stop.store(true, Ordering::Relaxed);
        self.ended().await
    }

    /// When each of them has found out that its server has died.
    pub(crate) async fn ended(self) -> Done {
        let mut all = Done::default();
        for task in self.tasks {
            let done = task.await.unwrap();
            all.unknown.extend(done.unknown);
            all.orders.extend(done.orders);
            all.times.extend(done.times);
            all.refused += done.refused;
        }
        all.times.sort();
        all.committed = std::mem::take(&mut self.committed.lock().expect("no panic in between"));
        all
    }
}

async fn write(
    nodes: Vec<Db>,
    which: usize,
    work: Work,
    stop: Arc<AtomicBool>,
    committed: Arc<Mutex<BTreeSet<i32>>>,
) -> Done {
    let mut done = Done {
        orders: vec![Vec::new()],
        ..Done::default()
    };
    let mut at = 0;
    // One of them in transactions that keep their snapshot.
    let level = if which.is_multiple_of(2) {
        "read committed"
    } else {
        "repeatable read"
    };
    while !stop.load(Ordering::Relaxed) {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let sql = format!(
            "begin isolation level {level}; select count(*) from pgq.queue; {}; commit",
            work(number)
        );
        match nodes[at].client.batch_execute(&sql).await {
            Ok(()) => {
                committed.lock().expect("no panic in between").insert(number);
                done.orders[0].push(number);
                done.times.push(Instant::now());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => {
                // A server that is killed may have its last word.
                let is_last = |refused: &&DbError| refused.parsed_severity() == Some(Severity::Fatal);
                let Some(refused) = error.as_db_error().filter(|refused| !is_last(refused)) else {
                    done.unknown.insert(number);
                    done.orders[0].push(number);
                    return done;
                };
                let message = refused.message().to_owned();
                assert!(
                    message.contains("disallowed") || message.contains("serialize"),
                    "{message}"
                );
                if nodes[at].client.batch_execute("rollback").await.is_err() {
                    return done;
                }
                if message.contains("disallowed") {
                    at = (at + 1) % nodes.len();
                    done.refused += 1;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }
    }
    done
}
