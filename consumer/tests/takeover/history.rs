//! A random history of a root, move by move, of which it is known at any time what is in the log, what is visible, and which node has what:
//! transactions that overlap, with savepoints, prepared ones, commits that are in the log and not visible yet, of writers as of the ticker.
//!
//! Whatever set of transactions survives, [`History::outcome`] says what the tables have to hold then. A change that would have to wait for
//! another transaction is not made, so the order of the changes is the one in which they were tried.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinHandle;
use tokio_postgres::SimpleQueryMessage;

use crate::changes::{Change, Rows};
use crate::cluster::{Db, eventually};
use crate::tree::Tree;

/// What is changed, and when, of all changes.
type Changes = Vec<(usize, Change)>;

enum Phase {
    Idle,
    Open {
        changes: Changes,
        marks: Vec<usize>,
    },
    /// Its commit is in the log; that of a transaction, or of a tick.
    Unseen(Option<usize>, JoinHandle<()>),
}

struct Session {
    db: Arc<Db>,
    pid: String,
    phase: Phase,
}

impl Session {
    async fn new(tree: &Tree) -> Self {
        let db = tree.connect("root").await;
        db.run("set lock_timeout = '30ms'; set deadlock_timeout = '10s'").await;
        Self {
            pid: db.text("select pg_backend_pid()").await,
            db: Arc::new(db),
            phase: Phase::Idle,
        }
    }

    async fn try_change(&self, change: Change) -> bool {
        let (sql, wanted) = change.sql();
        let done = self
            .db
            .client
            .simple_query(&format!("savepoint one; {sql}; release one"))
            .await;
        let found = done.map(|messages| {
            let rows = messages.iter().map(|message| match message {
                SimpleQueryMessage::CommandComplete(rows) => *rows,
                _ => 0,
            });
            rows.sum::<u64>()
        });
        match found {
            Ok(found) if found == wanted => true,
            // Its savepoint is gone, but nothing was found either.
            Ok(0) => false,
            Ok(found) => panic!("{sql} found {found} rows"),
            Err(_) => {
                self.db.run("rollback to one; release one").await;
                false
            }
        }
    }

    /// Sends what commits, and waits until the commit is in the log.
    async fn commit_unseen(&mut self, tree: &Tree, of: Option<usize>, sql: &str) {
        self.db.run("set synchronous_commit = on").await;
        let (db, sql) = (Arc::clone(&self.db), sql.to_owned());
        // Ends when its wait is cancelled, or with the server.
        let task = tokio::spawn(async move { drop(db.client.batch_execute(&sql).await) });
        let look = tree.connect("root").await;
        let waits = format!(
            "select count(*) from pg_stat_activity where pid = {} and wait_event = 'SyncRep'",
            self.pid
        );
        eventually("a commit waits to be seen", async || look.text(&waits).await == "1").await;
        self.phase = Phase::Unseen(of, task);
    }

    async fn release(&mut self, tree: &Tree) -> Option<usize> {
        let Phase::Unseen(of, task) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return None;
        };
        let look = tree.connect("root").await;
        eventually("a commit is seen", async || {
            look.text(&format!(
                "select pg_cancel_backend({}) from pg_stat_activity where pid = {0} and wait_event = 'SyncRep'",
                self.pid
            ))
            .await;
            task.is_finished()
        })
        .await;
        self.db.run("set synchronous_commit = local").await;
        of
    }
}

/// A transaction whose commit is in the log.
struct Logged {
    changes: Changes,
    /// Its identifier, if it was prepared.
    gid: Option<String>,
}

pub(crate) struct History {
    random: StdRng,
    writers: Vec<Session>,
    ticker: Session,
    /// In the order of the log.
    logged: Vec<Logged>,
    /// In the order in which they became visible.
    visible: Vec<usize>,
    prepared: Vec<(String, Changes)>,
    /// How many transactions were visible when each tick was made; and what its session makes now.
    ticks: BTreeMap<i64, usize>,
    ticking: Option<(i64, usize)>,
    /// How many transactions each node has.
    has: BTreeMap<&'static str, usize>,
    /// How many are in the log of the standby, and what is prepared there.
    cut: Option<(usize, Vec<(String, Changes)>)>,
    number: i32,
    tried: usize,
}

pub(crate) const TICK: &str = "select pgq.force_tick('q'); select pgq.ticker('q')";

impl History {
    /// Commits have to wait on the root already, where they are told to.
    pub(crate) async fn new(tree: &Tree, seed: u64) -> Self {
        let mut writers = Vec::new();
        for _ in 0..4 {
            writers.push(Session::new(tree).await);
        }
        Self {
            random: StdRng::seed_from_u64(seed),
            writers,
            ticker: Session::new(tree).await,
            logged: Vec::new(),
            visible: Vec::new(),
            prepared: Vec::new(),
            ticks: BTreeMap::new(),
            ticking: None,
            has: BTreeMap::new(),
            cut: None,
            number: 1000,
            tried: 0,
        }
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.random.random_range(0..limit)
    }

    /// Makes some moves.
    pub(crate) async fn moves(&mut self, tree: &Tree, moves: usize) {
        for _ in 0..moves {
            match self.below(30) {
                0 => self.catch_up(tree).await,
                1..4 => self.tick(tree).await,
                _ => self.write(tree).await,
            }
        }
    }

    /// From here on the standby gets nothing.
    pub(crate) fn cut(&mut self) {
        println!("cut after {} transactions", self.logged.len());
        self.cut = Some((self.logged.len(), self.prepared.clone()));
    }

    async fn write(&mut self, tree: &Tree) {
        let w = self.below(self.writers.len());
        let (dice, isolation) = (self.below(100), self.below(3));
        let writer = &mut self.writers[w];
        match &mut writer.phase {
            Phase::Idle if dice < 30 && !self.prepared.is_empty() => self.end_prepared(tree, w, dice).await,
            Phase::Idle => {
                let level = ["read committed", "read committed", "repeatable read"][isolation];
                writer.db.run(&format!("begin isolation level {level}")).await;
                writer.phase = Phase::Open {
                    changes: Vec::new(),
                    marks: Vec::new(),
                };
                self.change(w).await;
            }
            Phase::Unseen(..) if dice < 12 => {
                let of = writer.release(tree).await;
                println!("writer {w} is seen");
                self.visible.extend(of);
            }
            Phase::Unseen(..) => {}
            Phase::Open { marks, changes } => match dice {
                0..6 => {
                    marks.push(changes.len());
                    writer.db.run("savepoint here").await;
                }
                6..12 => {
                    if let Some(mark) = marks.last() {
                        changes.truncate(*mark);
                        writer.db.run("rollback to here").await;
                    }
                }
                12..16 => {
                    if marks.pop().is_some() {
                        writer.db.run("release here").await;
                    }
                }
                16..60 => self.change(w).await,
                _ => self.end(tree, w, dice).await,
            },
        }
    }

    async fn change(&mut self, w: usize) {
        self.number += 1;
        self.tried += 1;
        let change = Change::random(&mut self.random, self.number);
        let writer = &mut self.writers[w];
        let done = writer.try_change(change).await;
        println!("writer {w}: {}{}", change.sql().0, if done { "" } else { " (not)" });
        if let Phase::Open { changes, .. } = &mut writer.phase
            && done
        {
            changes.push((self.tried, change));
        }
    }

    /// Ends the transaction of a writer, one way or another.
    async fn end(&mut self, tree: &Tree, w: usize, dice: usize) {
        let writer = &mut self.writers[w];
        let Phase::Open { changes, .. } = std::mem::replace(&mut writer.phase, Phase::Idle) else {
            return;
        };
        // What has written nothing waits for nothing.
        let written = writer.db.text("select txid_current_if_assigned() is not null").await == "t";
        match dice {
            60..64 => writer.db.run("rollback").await,
            64..69 if written && self.prepared.len() < 5 => {
                let gid = format!("history {}", self.number);
                writer.db.run(&format!("prepare transaction '{gid}'")).await;
                println!("writer {w} prepares '{gid}'");
                self.prepared.push((gid, changes));
            }
            69..88 if written => {
                println!("writer {w} commits unseen");
                self.logged.push(Logged { changes, gid: None });
                writer.commit_unseen(tree, Some(self.logged.len() - 1), "commit").await;
            }
            _ => {
                println!("writer {w} commits");
                writer.db.run("commit").await;
                self.visible.push(self.logged.len());
                self.logged.push(Logged { changes, gid: None });
            }
        }
    }

    async fn end_prepared(&mut self, tree: &Tree, w: usize, dice: usize) {
        let which = self.below(self.prepared.len());
        let (gid, changes) = self.prepared.remove(which);
        let (writer, number) = (&mut self.writers[w], self.logged.len());
        println!("writer {w} ends '{gid}': {dice}");
        if dice < 8 {
            writer.db.run(&format!("rollback prepared '{gid}'")).await;
            return;
        }
        let commit = format!("commit prepared '{gid}'");
        self.logged.push(Logged {
            changes,
            gid: Some(gid),
        });
        if dice < 18 {
            writer.commit_unseen(tree, Some(number), &commit).await;
        } else {
            writer.db.run(&commit).await;
            self.visible.push(number);
        }
    }

    /// A tick, or a step of one that takes long.
    async fn tick(&mut self, tree: &Tree) {
        let dice = self.below(4);
        match (&self.ticker.phase, dice) {
            (Phase::Idle, 0 | 1) => {
                let tick = self.ticker.db.text(TICK).await;
                self.made(&tick);
            }
            (Phase::Idle, _) => {
                self.ticker.db.run("begin").await;
                let tick = self.ticker.db.text(TICK).await;
                println!("tick {tick} begins");
                self.ticking = Some((number(&tick), self.visible.len()));
                self.ticker.phase = Phase::Open {
                    changes: Vec::new(),
                    marks: Vec::new(),
                };
            }
            (Phase::Open { .. }, 0) => {
                println!("it is in the log");
                self.ticker.commit_unseen(tree, None, "commit").await;
            }
            _ => self.end_tick(tree, dice == 1).await,
        }
    }

    fn made(&mut self, tick: &str) {
        println!("tick {tick} shows {} of {}", self.visible.len(), self.logged.len());
        self.ticks.insert(number(tick), self.visible.len());
    }

    /// Whatever tick is being made is there then, or given up.
    async fn end_tick(&mut self, tree: &Tree, give_up: bool) {
        let made = match &self.ticker.phase {
            Phase::Idle => return,
            Phase::Open { .. } if give_up => {
                self.ticker.db.run("rollback").await;
                false
            }
            Phase::Open { .. } => {
                self.ticker.db.run("commit").await;
                true
            }
            Phase::Unseen(..) => {
                self.ticker.release(tree).await;
                true
            }
        };
        self.ticker.phase = Phase::Idle;
        if let Some((tick, shows)) = self.ticking.take() {
            println!("tick {tick} {}", if made { "is seen" } else { "is given up" });
            if made {
                self.ticks.insert(tick, shows);
            }
        }
    }

    /// A node gets all that is visible.
    pub(crate) async fn catch_up(&mut self, tree: &Tree) {
        // Replay looks at the tables when it starts, and would wait for who empties one.
        let emptied = "select count(*) from pg_locks where mode = 'AccessExclusiveLock' and relation = 'bin'::regclass";
        if tree.connect("root").await.text(emptied).await != "0" {
            return;
        }
        self.end_tick(tree, false).await;
        let name = ["far", "near", "leaf"][self.below(3)];
        tree.catch_up(name).await;
        let tick = tree
            .connect("root")
            .await
            .text("select max(tick_id) from pgq.tick")
            .await;
        println!("{name} is at tick {tick}");
        self.made(&tick);
        self.has.insert(name, self.visible.len());
    }

    /// Ends what is prepared on the promoted standby as the root had ended it, and what it had not in any way.
    pub(crate) async fn end_what_was_prepared(&mut self, here: &Db) {
        let (_, prepared) = self.cut.clone().unwrap_or_default();
        for (gid, _) in &prepared {
            let committed = self.logged.iter().any(|logged| logged.gid.as_ref() == Some(gid));
            let open = self.prepared.iter().position(|(open, _)| open == gid);
            let way = match open {
                Some(which) if self.below(2) == 0 => {
                    let (gid, changes) = self.prepared.remove(which);
                    self.logged.push(Logged {
                        changes,
                        gid: Some(gid),
                    });
                    "commit"
                }
                None if committed => "commit",
                _ => "rollback",
            };
            println!("on the standby: {way} prepared '{gid}'");
            here.run(&format!("{way} prepared '{gid}'")).await;
        }
    }

    /// What is there in the end, with or without the standby.
    pub(crate) fn outcome(&self, standby: bool, top: i64) -> Outcome {
        let most = self.has.values().max().copied().unwrap_or(0);
        let shown: BTreeSet<usize> = self.visible[..most].iter().copied().collect();
        let at_top: BTreeSet<usize> = self.visible[..self.ticks.get(&top).copied().unwrap_or(0)]
            .iter()
            .copied()
            .collect();
        let (cut, prepared) = self.cut.clone().unwrap_or_default();
        let there = self.logged.iter().enumerate().filter(|(n, logged)| {
            standby && (*n < cut || prepared.iter().any(|(gid, _)| logged.gid.as_ref() == Some(gid)))
        });
        let there: BTreeSet<usize> = there.map(|(n, _)| n).collect();
        let kept = shown.union(&there).map(|n| &self.logged[*n].changes);
        let mut changes: Changes = kept.flatten().copied().collect();
        changes.sort_by_key(|(when, _)| *when);
        let mut rows = Rows::new();
        for (_, change) in changes {
            rows.apply(change);
        }
        Outcome {
            rows: rows.lines(),
            had: there.intersection(&shown).filter(|n| !at_top.contains(n)).count(),
            extras: there.difference(&shown).count(),
        }
    }
}

pub(crate) struct Outcome {
    /// As [`ROWS`] gives them.
    pub(crate) rows: String,
    /// How many transactions the standby had of ticks that it lacked, and of none that anybody had.
    pub(crate) had: usize,
    pub(crate) extras: usize,
}

fn number(tick: &str) -> i64 {
    tick.lines().last().and_then(|line| line.parse().ok()).expect("a tick")
}
