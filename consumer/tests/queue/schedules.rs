//! Random schedules on a real server and in the model of pgext/wire/tests, move by move: the same statements fail, and every batch
//! has the same events. So what 100,000 schedules show of the model (pgext/wire/tests/schedules.rs) is true of the server.
//!
//! A session makes its whole move before another one does; one that would have to wait gives up, here as there. The ticker always ticks: how
//! old a tick is, is no matter for a schedule. `PGCASCADE_SCHEDULES=n` runs n schedules without a crash, instead of the usual number.

#[path = "../../../pgext/wire/tests/model/mod.rs"]
mod model;

use std::collections::BTreeMap;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use crate::cluster::{Cluster, Db};
use crate::queue;
use model::schedule::{Act, CONSUMERS, Draw, Move, SESSIONS, Schedule, schedules};
use model::{LOCK_TIMEOUT, Model, Outcome};

const DATABASE: &str = "schedules";

/// What was once found to differ.
const KEPT: [&str; 4] = [
    // A session locks a queue that it does not rotate, being older than the last rotation.
    "idle; 0 tick; 0 next 0; 0 read 0; 0 finish 0; 2 begin; 3 step1; 3 step2; 2 step1; 4 register 2 0; 2 commit",
    // The same, having had its transaction id before that rotation.
    "idle; 0 tick; 0 next 0; 0 read 0; 0 finish 0; 2 begin; 2 event; 3 step1; 3 step2; 2 step1; 2 commit",
    // A tick looks into the events, one of whose tables is being emptied: for the one event that there may be, and for its own.
    "idle; 0 tick; 0 next 0; 0 read 0; 0 finish 0; 3 begin; 3 step1; 1 event; 1 tick; 3 commit",
    "idle; 0 tick; 0 next 0; 0 read 0; 0 finish 0; 1 begin; 1 event; 3 begin; 3 step1; 1 event; 1 tick; 3 commit",
];

/// A server and the model of it, in step.
struct Both<'a> {
    cluster: &'a Cluster,
    sessions: Vec<Db>,
    model: Model,
    /// What the model's events have in `ev_data`.
    data: BTreeMap<u32, String>,
    /// The batch that each session has in hand, by consumer, and its first event.
    batches: [[Option<(String, String)>; CONSUMERS]; SESSIONS],
    prepared: Vec<String>,
    moves: usize,
}

async fn sessions(cluster: &Cluster) -> Vec<Db> {
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        let session = cluster.connect(DATABASE).await;
        session.run("set lock_timeout = '5ms'").await;
        sessions.push(session);
    }
    sessions
}

impl Both<'_> {
    fn sql(&self, s: usize, act: Act) -> String {
        let of = |c: u8| self.batches[s][usize::from(c)].clone().unwrap_or_default();
        match act {
            Act::Begin => "begin".to_owned(),
            Act::BeginOld => "begin isolation level repeatable read; select".to_owned(),
            Act::Savepoint => "savepoint s".to_owned(),
            Act::RollbackTo => "rollback to s".to_owned(),
            Act::Release => "release s".to_owned(),
            Act::Commit => "commit".to_owned(),
            Act::Rollback => "rollback".to_owned(),
            Act::Prepare => format!("prepare transaction 'schedules {}'", self.moves),
            Act::CommitPrepared(n) => format!("commit prepared '{}'", self.prepared[usize::from(n) % self.prepared.len()]),
            Act::RollbackPrepared(n) => {
                format!("rollback prepared '{}'", self.prepared[usize::from(n) % self.prepared.len()])
            }
            Act::Write(row) => format!("update captured set v = 'e{}' where id = {row}", self.moves),
            Act::Event => format!("select pgq.insert_event('q', 't', 'v=e{}')", self.moves),
            Act::Tick => "select pgq.ticker('q')".to_owned(),
            Act::Step1 => "select pgq.maint_rotate_tables_step1('q')".to_owned(),
            Act::Step2 => "select pgq.maint_rotate_tables_step2()".to_owned(),
            Act::Next(c) => format!("select pgq.next_batch('q', 'c{c}')"),
            Act::Read(c) => format!("select ev_id, ev_data from pgq.get_batch_events({})", of(c).0),
            Act::Finish(c) => format!("select pgq.finish_batch({})", of(c).0),
            Act::Retry(c) => format!("select pgq.event_retry({}, {}, timestamptz '2000-01-01')", of(c).0, of(c).1),
            Act::Reinsert => "select pgq.maint_retry_events()".to_owned(),
            // One that is registered stays where it is.
            Act::Register(c, back) => format!(
                "select case when exists (select from pgq.get_consumer_info('q', 'c{c}')) then pgq.register_consumer('q', 'c{c}')
                        else pgq.register_consumer_at('q', 'c{c}', (select min(tick_id) from (
                                 select tick_id from pgq.tick join pgq.queue on queue_id = tick_queue and queue_name = 'q'
                                  order by tick_id desc limit {back} + 1) t)) end"
            ),
            Act::Unregister(c) => format!("select pgq.unregister_consumer('q', 'c{c}')"),
            Act::Flush | Act::Crash => "checkpoint".to_owned(),
        }
    }

    /// Makes one move on both. The error says how they differ.
    async fn make(&mut self, s: usize, act: Act) -> Result<(), String> {
        if !self.model.takes(s, act) {
            return Ok(());
        }
        self.moves += 1;
        if act == Act::Crash {
            return self.crash().await;
        }
        let statement = self.sql(s, act);
        let written = self.model.store.written.len();
        let prepared = self.model.prepared();
        let expected = self.model.make_or_fail(s, act);
        let found = self.sessions[s].try_text(&statement).await;
        if found.is_err() {
            // The error is heard of before the transaction is rolled back, the answer to the next statement after it.
            let _ = self.sessions[s].try_text("select").await;
        }
        let state = found.as_ref().err().map(|error| {
            error
                .code()
                .map_or_else(|| error.to_string(), |code| code.code().to_owned())
        });
        let differ = |what: String| Err(format!("session {s}: {statement}: {what}"));

        for event in &self.model.store.written[written..] {
            let data = match event.retried {
                None => format!("e{}", self.moves),
                // The original has the same id.
                Some(_) => {
                    let original = self
                        .model
                        .store
                        .written
                        .iter()
                        .find(|of| of.id == event.id && of.retried.is_none());
                    original
                        .and_then(|of| self.data.get(&of.label))
                        .cloned()
                        .unwrap_or_default()
                }
            };
            self.data.insert(event.label, data);
        }
        match act {
            Act::Prepare if self.model.prepared() == prepared => return Ok(()), // rolled back instead, with or without an error
            Act::Prepare => self.prepared.push(format!("schedules {}", self.moves)),
            Act::CommitPrepared(n) | Act::RollbackPrepared(n) => {
                let at = usize::from(n) % self.prepared.len();
                self.prepared.remove(at);
            }
            _ => {}
        }
        let rows = match (expected, found) {
            (Outcome::Done, Ok(rows)) => rows,
            (Outcome::Failed(why), Err(_)) if (why == LOCK_TIMEOUT) == (state.as_deref() == Some("55P03")) => {
                return Ok(());
            }
            (expected, found) => return differ(format!("{expected:?} in the model, {found:?}, SQLSTATE {state:?}")),
        };
        match act {
            Act::Next(c) => {
                let batch = (rows != "<null>").then(|| (rows.clone(), String::new()));
                if batch.is_some() != self.model.in_hand(s, c).is_some() {
                    return differ(format!("{rows}, in the model {:?}", self.model.in_hand(s, c)));
                }
                self.batches[s][usize::from(c)] = batch;
            }
            Act::Read(c) => {
                let events: Vec<(&str, &str)> = rows
                    .lines()
                    .filter_map(|row| row.split_once('|'))
                    .map(|(id, data)| (id, data.rsplit("v=").next().unwrap_or(data)))
                    .collect();
                let Some(Some(seen)) = self.model.in_hand(s, c) else {
                    return differ(format!("{events:?}, in the model nothing"));
                };
                let mut expected: Vec<&str> = seen.labels.iter().map(|label| self.data[label].as_str()).collect();
                let mut got: Vec<&str> = events.iter().map(|(_, data)| *data).collect();
                // Events of one id, which was retried, come in any order.
                if events.windows(2).any(|pair| pair[0].0 == pair[1].0) {
                    expected.sort_unstable();
                    got.sort_unstable();
                }
                if expected != got {
                    return differ(format!("{got:?}, in the model {expected:?}"));
                }
                if let (Some(batch), Some((id, _))) = (&mut self.batches[s][usize::from(c)], events.first()) {
                    batch.1 = (*id).to_owned();
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// SIGKILL and a start, with all flushed that was committed.
    async fn crash(&mut self) -> Result<(), String> {
        self.model.make_or_fail(0, Act::Flush);
        self.model.make_or_fail(0, Act::Crash);
        self.cluster.crash();
        self.sessions = sessions(self.cluster).await;
        self.batches = Default::default();
        Ok(())
    }

    /// Ends all transactions and has everything delivered.
    async fn settle(&mut self) -> Result<(), String> {
        for s in 0..SESSIONS {
            self.make(s, if s % 2 == 0 { Act::Commit } else { Act::Rollback })
                .await?;
        }
        while self.model.prepared() > 0 {
            self.make(0, Act::CommitPrepared(0)).await?;
        }
        self.make(0, Act::Reinsert).await?;
        self.make(0, Act::Tick).await?;
        for c in [0, 1, 2] {
            loop {
                self.make(0, Act::Next(c)).await?;
                if self.model.in_hand(0, c).is_none() {
                    break;
                }
                self.make(0, Act::Read(c)).await?;
                self.make(0, Act::Finish(c)).await?;
                if c > 0
                    && self.sessions[0]
                        .text(&format!("select count(*) from pgq.get_consumer_info('q', 'c{c}')"))
                        .await
                        == "0"
                {
                    break;
                }
            }
        }
        self.model.verdict()
    }
}

/// Runs a schedule on both; returns how many moves that were.
async fn run(cluster: &Cluster, db: &Db, schedule: &Schedule) -> usize {
    db.run("select pgq.create_queue('q'); select pgq.register_consumer('q', 'c0')")
        .await;
    // Due even in a transaction that is older than the last rotation.
    db.run(
        "update pgq.queue set queue_ticker_max_lag = '0', queue_ticker_idle_period = '0', queue_rotation_period = '-1 day'",
    )
    .await;
    let mut both = Both {
        cluster,
        sessions: sessions(cluster).await,
        model: Model::new(true, None),
        data: BTreeMap::new(),
        batches: Default::default(),
        prepared: Vec::new(),
        moves: 0,
    };
    let mut result = Ok(());
    for Move { session, act, .. } in &schedule.moves {
        if result.is_ok() {
            result = both.make(*session, *act).await;
        }
    }
    if result.is_ok() {
        result = both.settle().await;
    }
    if let Err(why) = result {
        panic!("{why}, at move {} of {schedule}", both.moves);
    }
    both.moves
}

fn drawn(draw: Draw, mut runner: TestRunner) -> impl Iterator<Item = Schedule> {
    let strategy = schedules(draw);
    std::iter::repeat_with(move || strategy.new_tree(&mut runner).unwrap().current())
}

#[tokio::test]
async fn the_server_does_what_the_model_does() {
    let cluster = Cluster::start("schedules", &["-o", "pgcascade.ticker=off", "-o", "autovacuum=off"]);
    let mut db = queue(&cluster, DATABASE, &[]).await;
    db.run(
        "create table captured (id int primary key, v text); insert into captured select generate_series(0, 2);
            create trigger capture after update on captured for each row execute function pgq.logutriga('q');
            select pgq.drop_queue('q', true);
            alter table pgq.queue drop constraint queue_rotation_period_not_negative",
    )
    .await;
    let draw = Draw {
        moves: 60,
        inside: false,
        crashes: false,
    };
    let number = std::env::var("PGCASCADE_SCHEDULES").map_or(20, |n| n.parse().expect("a number of schedules"));
    let always = drawn(draw, TestRunner::deterministic()).take(number);
    let by_chance = drawn(draw, TestRunner::default()).take(number / 2);
    let crashes = Draw { crashes: true, ..draw };
    let with_crashes = drawn(crashes, TestRunner::deterministic())
        .filter(|schedule| schedule.moves.iter().filter(|one| one.act == Act::Crash).count() == 1)
        .take(2);
    let kept = KEPT.iter().map(|kept| kept.parse().unwrap());
    let mut moves = 0;
    for schedule in kept.chain(always).chain(by_chance).chain(with_crashes) {
        moves += run(&cluster, &db, &schedule).await;
        db = cluster.connect(DATABASE).await;
        db.run("select pgq.drop_queue('q', true)").await;
    }
    println!("{moves} moves");
    assert!(moves > 20 * number, "{moves} moves are too few to be a test");
}
