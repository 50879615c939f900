//! Subtransactions: random nesting of savepoints, releases, rollbacks, errors and PL/pgSQL exception blocks, in sessions that
//! take turns, against a model that is a stack of lists. What is delivered is what the model says was committed, exactly, and
//! in the order in which each transaction wrote it.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::cluster::Db;
use crate::delivered::Delivered;
use crate::{SHARED, queue, rotate, tick};

/// A transaction of the model: the events of each level that is still open. A savepoint opens a level.
#[derive(Default)]
struct Transaction {
    levels: Vec<(String, Vec<String>)>,
    number: usize,
    /// A statement failed: only ROLLBACK TO a savepoint helps.
    failed: bool,
}

struct Schedule {
    random: StdRng,
    events: usize,
}

impl Schedule {
    fn event(&mut self) -> String {
        self.events += 1;
        format!("e{:05}", self.events)
    }

    /// A statement that stores one event: by the function, or by the trigger.
    fn store(&mut self, event: &str) -> String {
        if self.random.random_bool(0.5) {
            format!("select pgq.insert_event('q', 't', 'v={event}');")
        } else {
            format!("insert into captured values ('{event}');")
        }
    }

    /// A PL/pgSQL block with exception blocks inside; `kept` gets the events that survive it. `true` as the second result: the
    /// block fails as a whole.
    fn block(&mut self, depth: usize, kept: &mut Vec<String>) -> (String, bool) {
        let mut body = String::new();
        let mut inside = Vec::new();
        let mut fails = false;
        for _ in 0..self.random.random_range(1..4) {
            if depth < 3 && self.random.random_bool(0.4) {
                let mut inner = Vec::new();
                let (block, failed) = self.block(depth + 1, &mut inner);
                let caught = self.event();
                let handler = self.store(&caught).replace("select ", "perform ");
                body += &format!("begin {block} exception when others then {handler} end;");
                if failed {
                    inside.push(caught);
                } else {
                    inside.append(&mut inner);
                }
            } else {
                let event = self.event();
                body += &self.store(&event).replace("select ", "perform ");
                inside.push(event);
            }
        }
        if self.random.random_bool(0.3) {
            // Raised by hand, and by the server in the middle of a statement that stored events already.
            body += if self.random.random_bool(0.5) {
                "raise 'given up';"
            } else {
                "insert into captured values ('duplicate'), ('duplicate');"
            };
            fails = true;
        } else {
            kept.append(&mut inside);
        }
        (body, fails)
    }

    /// One statement of a transaction, on the server and in the model.
    async fn step(&mut self, db: &Db, transaction: &mut Transaction) {
        let choice = self.random.random_range(0..100);
        let top = transaction.levels.len() - 1;
        if transaction.failed || (choice < 15 && top > 0) {
            let name = transaction.levels[self.random.random_range(1..=top)].0.clone();
            db.run(&format!("rollback to {name}")).await;
            // Of two savepoints of one name the younger is meant.
            let level = transaction.levels.iter().rposition(|level| level.0 == name).unwrap();
            transaction.levels.truncate(level + 1);
            transaction.levels[level].1.clear();
            transaction.failed = false;
        } else if choice < 30 && top > 0 {
            let name = transaction.levels[self.random.random_range(1..=top)].0.clone();
            db.run(&format!("release {name}")).await;
            let level = transaction.levels.iter().rposition(|level| level.0 == name).unwrap();
            let mut events: Vec<String> = transaction.levels.drain(level..).flat_map(|level| level.1).collect();
            transaction.levels[level - 1].1.append(&mut events);
        } else if choice < 50 {
            let name = format!("s{}", self.random.random_range(0..4));
            db.run(&format!("savepoint {name}")).await;
            transaction.levels.push((name, Vec::new()));
        } else if choice < 75 {
            let event = self.event();
            let statement = self.store(&event);
            db.run(&statement).await;
            transaction.levels[top].1.push(event);
        } else {
            let mut kept = Vec::new();
            let (body, fails) = self.block(0, &mut kept);
            // Without a savepoint to go back to, a failure would be the end of the transaction.
            if fails && top == 0 {
                return;
            }
            let result = db.try_text(&format!("do $$ begin {body} end $$")).await;
            assert_eq!(result.is_err(), fails, "{body}: {result:?}");
            transaction.failed = fails;
            transaction.levels[top].1.append(&mut kept);
        }
    }
}

async fn run(seed: u64, db: &Db, sessions: &[Db]) {
    let mut schedule = Schedule {
        random: StdRng::seed_from_u64(seed),
        events: 0,
    };
    let mut open: Vec<Option<Transaction>> = sessions.iter().map(|_| None).collect();
    let mut delivered = Delivered::default();
    let mut committed: Vec<String> = Vec::new();
    let mut prepared: Vec<(String, Vec<String>)> = Vec::new();
    let mut transactions = 0;
    // Events committed, per transaction, to compare the order within each.
    let mut orders: Vec<Vec<String>> = Vec::new();
    while transactions < 150 || open.iter().any(Option::is_some) {
        let turn = schedule.random.random_range(0..sessions.len());
        let session = &sessions[turn];
        if let Some(transaction) = &mut open[turn] {
            if !transaction.failed && schedule.random.random_bool(0.08) {
                let transaction = open[turn].take().unwrap();
                let events: Vec<String> = transaction.levels.into_iter().flat_map(|level| level.1).collect();
                match schedule.random.random_range(0..10) {
                    0..2 => session.run("rollback").await,
                    2..4 => {
                        let name = format!("savepoints {}", transaction.number);
                        session.run(&format!("prepare transaction '{name}'")).await;
                        prepared.push((name, events));
                    }
                    _ => {
                        session.run("commit").await;
                        committed.extend(events.clone());
                        orders.push(events);
                    }
                }
            } else {
                schedule.step(session, transaction).await;
            }
        } else if transactions < 150 {
            transactions += 1;
            let level = ["read committed", "repeatable read"][schedule.random.random_range(0..2)];
            session.run(&format!("begin isolation level {level}")).await;
            open[turn] = Some(Transaction {
                levels: vec![(String::new(), Vec::new())],
                number: transactions,
                failed: false,
            });
        }
        match schedule.random.random_range(0..60) {
            0..4 => {
                tick(db).await;
            }
            4..6 => {
                rotate(db).await;
            }
            6..8 => delivered.read(db).await,
            8..10 if !prepared.is_empty() => {
                let one = schedule.random.random_range(0..prepared.len());
                let (name, events) = prepared.swap_remove(one);
                if schedule.random.random_bool(0.7) {
                    db.run(&format!("commit prepared '{name}'")).await;
                    committed.extend(events.clone());
                    orders.push(events);
                } else {
                    db.run(&format!("rollback prepared '{name}'")).await;
                }
            }
            _ => {}
        }
    }
    for (name, events) in prepared {
        db.run(&format!("commit prepared '{name}'")).await;
        committed.extend(events.clone());
        orders.push(events);
    }
    tick(db).await;
    delivered.read(db).await;
    let delivered_data: Vec<String> = delivered
        .events
        .iter()
        .map(|event| event.strip_prefix("v=").unwrap().to_owned())
        .collect();
    for order in orders {
        let places: Vec<usize> = order
            .iter()
            .filter_map(|event| delivered_data.iter().position(|given| given == event))
            .collect();
        assert!(places.is_sorted(), "{order:?} came in another order");
    }
    delivered.assert_is(&committed.iter().map(|event| format!("v={event}")).collect::<Vec<_>>());
    println!(
        "seed {seed}: {} events stored, {} committed, in {} batches",
        schedule.events,
        committed.len(),
        delivered.batches
    );
    assert!(committed.len() > 200, "too little to be a test");
}

#[tokio::test]
async fn random_nesting_delivers_what_was_committed() {
    for seed in [1, 20_261_121, rand::rng().random()] {
        println!("seed {seed}");
        let name = format!("savepoints_{seed}");
        let db = queue(&SHARED, &name, &["pgcascade.ticker = off"]).await;
        db.run(
            "create table captured (v text primary key);
             create trigger capture after insert or update or delete on captured for each row execute function pgq.logutriga('q')",
        )
        .await;
        let mut sessions = Vec::new();
        for _ in 0..3 {
            sessions.push(SHARED.connect(&name).await);
        }
        run(seed, &db, &sessions).await;
    }
}
