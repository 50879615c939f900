//! Random changes of tables with every odd type and shape, while replay is killed and started again: equal at the end, and at
//! every tick at which somebody looks. docs/replay-torture.md lists what is in it, and which other tests take the rest.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::cluster::{Pair, eventually, pair};

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

#[tokio::test]
async fn types_and_shapes_under_random_changes_and_kills() {
    let pair = pair().await;
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
    let mut ticks = HashMap::new();
    let mut random = 20_261_121_u64;
    for round in 0..8 {
        let running = pair.replay().args(&arguments).spawn();
        // The first ones are killed in the copy or wherever they are, the others in the stream.
        if round > 2 {
            running.until_it_says("streaming").await;
        }
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let steps = 10 + (random >> 33) % 30;
        for _ in 0..steps {
            pair.provider.run("select tort.step()").await;
            // Nobody else writes: what is there now is what this tick sees. Before the first replay there is no queue.
            let tick = "select pgq.force_tick('q'); select pgq.ticker('q'); select max(tick_id) from pgq.tick";
            if let Ok(answers) = pair.provider.try_text(tick).await
                && let Some(tick) = answers.lines().last()
            {
                ticks.insert(tick.to_owned(), pair.provider.text(STATE).await);
            }
        }
        if round > 2 {
            let behind = ticks
                .keys()
                .filter_map(|tick| tick.parse::<i64>().ok())
                .max()
                .unwrap_or(0);
            eventually("replay is at the last of these ticks", async || {
                let at = pair
                    .subscriber
                    .text("select max(tick) from pgcascade_replay.position")
                    .await;
                at.parse::<i64>().is_ok_and(|at| at >= behind)
            })
            .await;
        }
        tokio::time::sleep(Duration::from_millis((random >> 40) % 150)).await; // whenever that is
        let output = running.kill().await;
        assert_eq!(output.code(), None, "{}", output.stderr);
    }
    stop.store(true, Ordering::Relaxed);
    let seen = looking.await.unwrap();
    let known = seen
        .iter()
        .filter_map(|(tick, state)| Some((tick, state, ticks.get(tick)?)));
    let mut compared = 0;
    for (tick, ours, theirs) in known {
        assert_eq!(ours, theirs, "at tick {tick}");
        compared += 1;
    }
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
