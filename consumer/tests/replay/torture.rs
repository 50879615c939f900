//! Random changes of tables with every odd type and shape by several sessions, while replay is killed and started again: equal at the end,
//! and at every tick at which somebody looks. docs/replay-torture.md lists what is in it, and which other tests take the rest.
//!
//! PGCASCADE_TEST_SECONDS makes it longer or shorter than it is in every run.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::RwLock;

use crate::cluster::{Pair, eventually, own_pair};

const WRITERS: u64 = 3;

/// The same tables at both ends.
const TABLES: &str = include_str!("torture.sql");
/// What makes the changes.
const STEP: &str = include_str!("torture_step.sql");

/// All rows of all tables, as one number; of extra what both ends have.
const STATE: &str = "select md5(string_agg(line, E'\\n' order by line collate \"C\")) from (
    select 'kinds' || t from tort.kinds t union all select 'numbered' || t from tort.numbered t
    union all select 'parent' || t from tort.parent t union all select 'child' || t from tort.child t
    union all select 'extra' || row(id, v) from tort.extra) all_of_them(line)";

/// The subscriber's ticks, and the state that goes with each at which all tables are copied. The position comes before the tables: at
/// first there are none.
async fn tick_and_state(pair: &Pair, stop: &AtomicBool) -> HashMap<String, String> {
    let db = pair.subscriber_cluster.connect(&pair.database).await;
    let mut seen = HashMap::new();
    while !stop.load(Ordering::Relaxed) {
        let text = db
            .try_text(&format!(
                "select tick, ({STATE}) from pgcascade_replay.position
                  where (select bool_and(state = 'ok') from pgcascade_replay.table_state)"
            ))
            .await;
        if let Some((tick, state)) = text.unwrap_or_default().split_once('|') {
            let before = seen.insert(tick.to_owned(), state.to_owned());
            assert!(before.is_none_or(|before| before == state), "two states at tick {tick}");
        }
    }
    seen
}

/// Sessions that change the tables at random.
struct Writers {
    /// Each of them has it for every transaction; whoever has it alone sees what the next tick sees.
    quiet: RwLock<()>,
    committed: AtomicU64,
    stop: AtomicBool,
}

impl Writers {
    async fn write(&self, pair: &Pair, number: u64) {
        let db = pair.provider_cluster.connect(&pair.database).await;
        db.run(&format!("set deadlock_timeout = 20; select setseed(0.{number})"))
            .await;
        while !self.stop.load(Ordering::Relaxed) {
            let _others = self.quiet.read().await;
            match db.try_text("select tort.step()").await {
                Ok(_) => self.committed.fetch_add(1, Ordering::Relaxed),
                Err(error) => {
                    let code = error.code().map_or("", |state| state.code());
                    // Some are in each other's way: a deadlock, or a key that another one made.
                    assert!(["40P01", "23505"].contains(&code), "{error:?}");
                    continue;
                }
            };
        }
    }

    /// Until they have committed so many more.
    async fn go_on(&self, more: u64) {
        let enough = self.committed.load(Ordering::Relaxed) + more;
        eventually("the writers write", async || {
            self.committed.load(Ordering::Relaxed) >= enough
        })
        .await;
    }
}

/// Makes a tick and returns it with the state that it sees; none before the first replay, which makes the queue. Nobody may write meanwhile.
async fn tick(pair: &Pair) -> Option<(i64, String)> {
    let tick = "select pgq.force_tick('q'); select pgq.ticker('q'); select max(tick_id) from pgq.tick";
    let answers = pair.provider.try_text(tick).await.ok()?;
    let tick = answers.lines().last()?.parse().ok()?;
    Some((tick, pair.provider.text(STATE).await))
}

#[tokio::test]
async fn types_and_shapes_under_random_changes_and_kills() {
    // With no transactions of others, for which tables stay short of ok.
    let pair = own_pair().await;
    // A server built without libxml has the type and takes no value of it.
    let xml = pair.provider.try_text("select xml '<a/>'").await.is_ok();
    let without = |sql: &str| {
        if xml {
            sql.to_owned()
        } else {
            sql.replace(" x xml", " x text").replace("::xml", "")
        }
    };
    for db in [&pair.provider, &pair.subscriber] {
        db.run("create schema tort").await;
        db.run(&without(TABLES)).await;
    }
    pair.provider
        .run("create table tort.extra (id int primary key, v text)")
        .await;
    pair.subscriber
        .run(
            "create table tort.extra (note text default 'here', id int primary key, seen timestamptz not null default now(),
                                      v text default 'never', n int generated always as (id * 2) stored)",
        )
        .await;
    pair.provider.run(&without(STEP)).await;
    pair.provider.run("select setseed(0.4); select tort.fill(1, 200); insert into tort.parent select i, i from generate_series(1, 20) i").await;

    let arguments = ["--table", "tort.*", "--copy-chunk-bytes", "65536"];
    let pair = Arc::new(pair);
    let stop = Arc::new(AtomicBool::new(false));
    let looking = tokio::spawn({
        let (pair, stop) = (Arc::clone(&pair), Arc::clone(&stop));
        async move { tick_and_state(&pair, &stop).await }
    });
    let writers = Arc::new(Writers {
        quiet: RwLock::new(()),
        committed: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    let writing: Vec<_> = (1..=WRITERS)
        .map(|number| {
            let (pair, writers) = (Arc::clone(&pair), Arc::clone(&writers));
            tokio::spawn(async move { writers.write(&pair, number).await })
        })
        .collect();
    let mut ticks = HashMap::new();
    let mut random = 20_261_121_u64;
    let seconds = std::env::var("PGCASCADE_TEST_SECONDS").map_or(60, |text| text.parse().expect("a number"));
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut compared = 0;
    let mut round = 0;
    while round < 8 || Instant::now() < end {
        let running = pair.replay().args(&arguments).spawn();
        // The first ones are killed in the copy or wherever they are, the others in the stream.
        if round > 2 {
            running.until_it_says("streaming").await;
        }
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        for _ in 0..5 + (random >> 33) % 15 {
            writers.go_on(2).await;
            let _quiet = writers.quiet.write().await;
            ticks.extend(tick(&pair).await);
        }
        if round > 2 {
            let _quiet = writers.quiet.write().await;
            let (behind, state) = tick(&pair).await.expect("there is a queue");
            // A copy has nothing beyond the tick: nobody has written since.
            let there = format!(
                "select bool_and(state in ('ok', 'catching-up')) and not exists (select from pgcascade_replay.held_event)
                        and (select tick from pgcascade_replay.position) >= {behind} from pgcascade_replay.table_state"
            );
            eventually("replay is at this tick", async || {
                pair.subscriber.text(&there).await == "t"
            })
            .await;
            assert_eq!(pair.subscriber.text(STATE).await, state, "at tick {behind}");
            compared += 1;
        }
        tokio::time::sleep(Duration::from_millis((random >> 40) % 150)).await; // whenever that is
        let output = running.kill().await;
        assert_eq!(output.code(), None, "{}", output.stderr);
        round += 1;
    }
    writers.stop.store(true, Ordering::Relaxed);
    for writer in writing {
        writer.await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let seen = looking.await.unwrap();
    let known = seen
        .iter()
        .filter_map(|(tick, state)| Some((tick, state, ticks.get(&tick.parse().ok()?)?)));
    for (tick, ours, theirs) in known {
        assert_eq!(ours, theirs, "at tick {tick}");
        compared += 1;
    }
    println!(
        "{round} rounds, {} transactions, {} states seen, {compared} compared",
        writers.committed.load(Ordering::Relaxed),
        seen.len()
    );
    assert!(
        compared > 4,
        "{compared} of {} states were at a tick that is known",
        seen.len()
    );
    let pair = Arc::into_inner(pair).unwrap();
    let output = pair.catch_up(&arguments).await;
    assert!(!output.stderr.contains("ERROR"), "{}", output.stderr);
    for table in ["kinds", "numbered", "parent", "child"] {
        let rows = pair.provider.text(&format!("select count(*) from tort.{table}")).await;
        assert_ne!(rows, "0", "{table}");
        pair.assert_equal(&format!("tort.{table}")).await;
    }
    let extra = "select id, v from tort.extra order by id";
    assert_eq!(pair.provider.text(extra).await, pair.subscriber.text(extra).await);
    let own = "select count(*) from tort.extra where note is distinct from 'here' or seen is null or n is distinct from id * 2";
    assert_eq!(pair.subscriber.text(own).await, "0");
    pair.drop().await;
}
