//! Large tables are copied in chunks: several at once, while others write; killed, the copy goes on where it was.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::cluster::{Pair, eventually, own_pair, pair};

/// The chunks that are done, and the row versions that say so.
async fn done(pair: &Pair) -> HashMap<String, String> {
    let there = pair
        .subscriber
        .text("select to_regclass('pgcascade_replay.copy_chunk') is not null")
        .await;
    if there != "true" && there != "t" {
        return HashMap::new();
    }
    pair.subscriber
        .text("select string_agg(chunk || '=' || xmin, ' ') from pgcascade_replay.copy_chunk where copied_rows is not null")
        .await
        .split_whitespace()
        .filter_map(|one| one.split_once('='))
        .map(|(chunk, version)| (chunk.to_owned(), version.to_owned()))
        .collect()
}

fn random(seed: &mut u64, below: u64) -> u64 {
    *seed = seed
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) % below
}

/// Five million rows, killed ten times at random points.
#[tokio::test]
async fn a_large_copy_is_killed_and_goes_on() {
    // Of its own: long transactions on the shared ones would hold back what other tests wait for.
    let pair = own_pair().await;
    pair.provider
        .run(
            "create table large (id int primary key, n int, v text);
             insert into large select i, i % 1000, 'row ' || i from generate_series(1, 5000000) i; analyze large",
        )
        .await;
    let arguments = [
        "--table",
        "large",
        "--create",
        "--jobs",
        "2",
        "--copy-chunk-bytes",
        "2097152",
    ];
    // About a hundred chunks, of which no round does more than ten, however late the kill comes: so there are some for the last.
    let never = pair.subscriber_cluster.file("never");
    let points = format!("after_chunk_commit=pause:9:{never}");
    let mut seed = 20_261_121;
    let mut kept = HashMap::new();
    for round in 0..10 {
        let running = pair.replay().args(&arguments).failpoints(&points).spawn();
        // Whenever it is, but not always before anything is there.
        let more = random(&mut seed, 4);
        let wanted = kept.len() + usize::try_from(more).unwrap();
        eventually("some chunks are there", async || {
            done(&pair).await.len() >= wanted || wanted == 0
        })
        .await;
        tokio::time::sleep(Duration::from_millis(random(&mut seed, 200))).await; // the point of the test
        running.kill().await;
        let now = done(&pair).await;
        for (chunk, version) in &kept {
            assert_eq!(
                now.get(chunk),
                Some(version),
                "chunk {chunk} was copied again in round {round}"
            );
        }
        kept = now;
        pair.provider
            .run(&format!(
                "update large set n = n + 1 where id % 5000 = {round}; delete from large where id % 10000 = {round};
                 insert into large values ({}, 0, 'new')",
                6_000_000 + round
            ))
            .await;
    }
    assert!(
        !kept.is_empty(),
        "nothing was copied in ten starts: the test shows nothing"
    );
    let output = pair.catch_up(&arguments).await;
    assert!(output.stderr.contains("going on with its copy"), "{}", output.stderr);
    let sum = "select count(*) || ' ' || sum(id::bigint) || ' ' || sum(n::bigint) || ' ' || sum(hashtext(large::text)::bigint) from large";
    assert_eq!(pair.provider.text(sum).await, pair.subscriber.text(sum).await);
    println!(
        "{} chunks survived ten kills; peak resident memory of the last run {} kB",
        kept.len(),
        output.peak_kb
    );
    pair.drop().await;
}

/// Changes of every kind while the chunks are read: updates, rows whose key moves from chunk to chunk in either direction,
/// rows that come and go, TRUNCATE; with kills in between.
#[tokio::test]
async fn chunks_meet_writers() {
    let pair = pair().await;
    pair.provider
        .run(
            "create table t (a int, b text collate \"C\", n int, pad text, primary key (b, a));
             insert into t select i, 'k''\\' || i % 977, 0, repeat('x', 100) from generate_series(1, 30000) i; analyze t;
             create table other (id int primary key, n int) ; insert into other select i, 0 from generate_series(1, 20000) i; analyze other",
        )
        .await;
    let writer = pair.provider_cluster.connect(&pair.database).await;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let writing = tokio::spawn(async move {
        let mut n = 0;
        while !stopped.load(Ordering::Relaxed) {
            n += 1;
            writer
                .run(&format!(
                    "begin;
                     update t set n = n + 1 where b = 'k''\\{0}' and a % 3 = 0;
                     update t set b = 'k''\\' || (({0} * 31) % 977), a = a + 1000000 where b = 'k''\\{0}' and a % 7 = 0 and a < 1000000;
                     delete from t where b = 'k''\\{1}' and a % 5 = 0;
                     insert into t values ({n}, 'new', 0, ''); delete from t where b = 'new' and a = {n} - 3;
                     update other set n = n + 1 where id % 500 = {1} % 500;
                     commit",
                    (n * 131) % 977,
                    (n * 577) % 977
                ))
                .await;
            if n % 40 == 0 {
                writer.run("begin; truncate other; insert into other select i, -1 from generate_series(1, 20000) i; commit").await;
            }
        }
        n
    });
    let arguments = [
        "--table",
        "t",
        "--table",
        "other",
        "--create",
        "--jobs",
        "4",
        "--copy-chunk-bytes",
        "65536",
    ];
    for points in [
        "in_copy=kill:3",
        "after_chunk_commit=kill:4",
        "after_chunk_commit=kill:9",
        "in_copy=kill:30",
        "after_copy_commit=kill",
    ] {
        let output = pair.replay().args(&arguments).failpoints(points).output().await;
        assert_eq!(output.code(), None, "{points} was not reached: {}", output.stderr);
    }
    let running = pair.replay().args(&arguments).spawn();
    pair.until_past_copies(2).await;
    stop.store(true, Ordering::Relaxed);
    let transactions = writing.await.unwrap();
    running.stop().await;
    pair.catch_up(&arguments).await;
    pair.assert_equal("t").await;
    pair.assert_equal("other").await;
    println!("{transactions} transactions were written meanwhile");
    assert_eq!(
        pair.subscriber
            .text("select count(*) from pgcascade_replay.copy_chunk")
            .await,
        "0"
    );
    pair.drop().await;
}

const TABLES: [&str; 8] = [
    "keyless",
    "two_keys",
    "composite",
    "collated",
    "taken",
    "deferred",
    "cut",
    "empty",
];

/// What cannot be cut is copied whole; a copy that is told to stop goes on later; several tables at once.
#[tokio::test]
async fn whole_tables_and_stops() {
    let pair = pair().await;
    pair.provider
        .run(
            "create table keyless (n int, pad text); insert into keyless select i, repeat('x', 100) from generate_series(1, 10000) i;
             create table two_keys (id int primary key, u int, pad text); create unique index on two_keys ((u + 1.0));
             insert into two_keys select i, i, repeat('x', 100) from generate_series(1, 10000) i;
             create type pair as (a int, b int); create table composite (id int primary key, u pair unique, pad text);
             insert into composite select i, (i, i)::pair, repeat('x', 100) from generate_series(1, 10000) i;
             create table collated (id int primary key, u text, pad text); create unique index on collated (u collate \"C\");
             insert into collated select i, i, repeat('x', 100) from generate_series(1, 10000) i;
             create table taken (id int primary key, u int, pad text); create unique index odd_name on taken (u);
             insert into taken select i, i, repeat('x', 100) from generate_series(1, 10000) i;
             create table deferred (id int primary key deferrable, pad text);
             insert into deferred select i, repeat('x', 100) from generate_series(1, 10000) i;
             create table cut (id uuid primary key, pad text); insert into cut select gen_random_uuid(), repeat('x', 100) from generate_series(1, 10000) i;
             create table empty (id int primary key); analyze",
        )
        .await;
    let mut arguments = vec!["--create", "--jobs", "3", "--copy-chunk-bytes", "65536"];
    // A type is not made by --create; and an index of that name cannot be.
    pair.subscriber
        .run("create type pair as (a int, b int); create table odd_name (id int)")
        .await;
    for table in TABLES {
        arguments.extend(["--table", table]);
    }
    let running = pair.replay().args(&arguments).spawn();
    running.until_it_says("copy starts").await;
    let before = running.stop().await.stderr;
    let after = pair.catch_up(&arguments).await.stderr;
    let cut = |line: &&str| line.contains("cut into chunks");
    for line in before.lines().chain(after.lines()).filter(cut) {
        let whole = ["taken", "deferred", "empty"].map(|table| line.contains(&format!("table=public.{table} ")));
        assert!(!whole.contains(&true), "{line}");
    }
    assert!(before.contains("cut into chunks") || after.contains("cut into chunks"));
    for table in TABLES {
        let rows =
            format!("select count(*) || coalesce(md5(string_agg(t::text, ' ' order by t::text)), '') from {table} t");
        assert_eq!(
            pair.provider.text(&rows).await,
            pair.subscriber.text(&rows).await,
            "{table}"
        );
    }
    pair.drop().await;
}
