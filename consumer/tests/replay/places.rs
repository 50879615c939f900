//! Tables without a key are copied in chunks of blocks: which rows a copy has is known by where they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::cluster::{Pair, eventually, own_pair, pair};
use crate::copies::table;

const CHUNKS: [&str; 4] = ["--create", "--copy-chunk-bytes", "65536", "--batch-events"];

/// `pad` is such that a chunk has about 500 rows.
async fn fill(pair: &Pair, tables: &[&str]) {
    for table in tables {
        let rows = "select i, repeat('x', 90) from generate_series(1, 12000) i";
        pair.provider
            .run(&format!("insert into {table} {rows}; analyze {table}"))
            .await;
    }
}

/// Rows come in transactions of every kind, into new blocks and into the room that rolled back ones left, while the copy is killed and goes on.
#[tokio::test]
async fn rows_come_during_the_copy() {
    // Of its own: a transaction is left open over the whole copy.
    let pair = own_pair().await;
    pair.provider
        .run(
            "create table t (n int, pad text);
             create table parted (n int, pad text) partition by hash (n);
             create table parted_0 partition of parted for values with (modulus 2, remainder 0);
             create table parted_1 partition of parted for values with (modulus 2, remainder 1)",
        )
        .await;
    fill(&pair, &["t", "parted"]).await;
    let arguments = ["--table", "t", "--table", "parted", "--jobs", "3"];
    let arguments: Vec<&str> = arguments.into_iter().chain(CHUNKS).chain(["200"]).collect();
    // Capture has to be there for the transaction that is open before the first snapshot and after the last.
    let points = "before_plan_commit=kill";
    let output = pair.replay().args(&arguments).failpoints(points).output().await;
    assert_eq!(output.code(), None, "{points} was not reached: {}", output.stderr);
    let long = pair.provider_cluster.connect(&pair.database).await;
    long.run(
        "begin; insert into t select -i, 'long' from generate_series(1, 700) i;
         savepoint a; insert into t select -i, 'long, inner' from generate_series(1, 700) i; release a;
         insert into parted select -i, 'long' from generate_series(1, 700) i",
    )
    .await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writing = Vec::new();
    for number in 0..3 {
        let writer = pair.provider_cluster.connect(&pair.database).await;
        let stopped = Arc::clone(&stop);
        writing.push(tokio::spawn(async move {
            let mut n = 0;
            while !stopped.load(Ordering::Relaxed) {
                n += 1;
                writer
                    .run(&format!(
                        "begin; insert into t select {n}, 'taken back ' || repeat('y', 80) from generate_series(1, 50) i; rollback;
                         begin; insert into t values ({n}, 'of {number}'); insert into parted values ({n}, 'of {number}');
                         savepoint a; insert into t values ({n}, 'no'); insert into parted values ({n}, 'no'); rollback to a;
                         savepoint b; insert into t values ({n}, 'inner of {number}'); insert into parted values ({n}, 'inner of {number}'); release b;
                         commit"
                    ))
                    .await;
                if n % 10 == number {
                    writer.run("vacuum t").await;
                }
            }
            n
        }));
    }
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
    let chunks = "select count(*) from pgcascade_replay.copy_chunk where place is not null and snapshot is not null";
    assert_ne!(pair.subscriber.text(chunks).await, "0");
    let running = pair.replay().args(&arguments).spawn();
    pair.until_past_copies(2).await;
    long.run("insert into t values (-1, 'long, behind'); commit").await;
    stop.store(true, Ordering::Relaxed);
    let mut transactions = 0;
    for writing in writing {
        transactions += writing.await.unwrap();
    }
    running.stop().await;
    pair.catch_up(&arguments).await;
    for table in ["t", "parted"] {
        pair.assert_equal(table).await;
    }
    println!("{transactions} transactions were written meanwhile");
    let left = "select count(*) from pgcascade_replay.copy_chunk";
    assert_eq!(pair.subscriber.text(left).await, "0");
    pair.drop().await;
}

/// After some chunks of table t: what is done to it, at which the copy begins again.
#[tokio::test]
async fn rows_that_move_are_copied_again() {
    let pair = pair().await;
    pair.provider.run("create table t (n int, pad text)").await;
    fill(&pair, &["t"]).await;
    let arguments: Vec<&str> = ["--table", "t"].into_iter().chain(CHUNKS).chain(["200"]).collect();
    for (n, change) in [
        "vacuum full t",
        "truncate t; insert into t select i, repeat('z', 90) from generate_series(1, 12000) i",
    ]
    .iter()
    .enumerate()
    {
        for killed in [true, false] {
            let release = pair.subscriber_cluster.file(&format!("release-{n}-{killed}"));
            let points = if killed {
                "after_chunk_commit=kill:5".to_owned()
            } else {
                format!("after_chunk_commit=pause:5:{release}")
            };
            let running = pair.replay().args(&arguments).failpoints(&points).spawn();
            let output = if killed {
                running.wait().await;
                pair.provider.run(change).await;
                pair.catch_up(&arguments).await
            } else {
                let chunks = "select count(*) from pgcascade_replay.copy_chunk where copied_rows is not null";
                eventually("some chunks are there", async || {
                    running.stderr().contains("cut into chunks")
                        && pair.subscriber.text(chunks).await.parse::<u32>().unwrap() > 4
                })
                .await;
                pair.provider.run(change).await;
                std::fs::write(&release, "").unwrap();
                pair.until_past_copies(1).await;
                running.stop().await
            };
            assert!(
                output.stderr.contains("begins again: its rows are not where they were"),
                "{change}, {killed}: {}",
                output.stderr
            );
            pair.catch_up(&arguments).await;
            pair.assert_equal("t").await;
            table(&pair, &["resync", "t"]);
        }
    }
    pair.drop().await;
}

/// A row of which no event tells where it is: then the copy is of no use, and a whole one takes its place.
#[tokio::test]
async fn an_event_that_does_not_tell() {
    let pair = pair().await;
    pair.provider.run("create table t (n int, pad text)").await;
    fill(&pair, &["t"]).await;
    let arguments: Vec<&str> = ["--table", "t"].into_iter().chain(CHUNKS).chain(["200"]).collect();
    let release = pair.subscriber_cluster.file("release");
    let points = format!("after_chunk_commit=pause:5:{release}");
    let running = pair.replay().args(&arguments).failpoints(&points).spawn();
    running.until_it_says("cut into chunks").await;
    pair.provider
        .run(
            "begin; set local session_replication_role = replica; insert into t values (-1, 'by hand');
             select pgq.insert_event('q', 'I:', 'n=-1&pad=by+hand', 'public.t', null, null, null); commit",
        )
        .await;
    std::fs::write(&release, "").unwrap();
    running.until_it_says("so the table is copied again, whole").await;
    pair.until_past_copies(1).await;
    let output = running.stop().await;
    assert_eq!(output.stderr.matches("cut into chunks").count(), 1, "{}", output.stderr);
    pair.catch_up(&arguments).await;
    pair.assert_equal("t").await;
    pair.drop().await;
}

/// Triggers of before, or of one's own, which do not tell; and a partition whose rows can change.
#[tokio::test]
async fn copied_whole_where_nothing_tells() {
    let pair = pair().await;
    pair.provider
        .run(
            "select pgq.create_queue('q');
             create table silent (n int, pad text);
             create trigger mine after insert or update or delete on silent for each row execute function pgq.logutriga('q');
             create table keyed (n int, pad text);
             create trigger mine after insert or update or delete on keyed for each row execute function pgq.logutriga('q', 'place', 'pkey=n');
             create table replaced (n int, pad text);
             create trigger mine after insert or update or delete on replaced
                for each row execute function pgq.logutriga('q', 'place', 'ev_extra4=n');
             create table parted (n int, pad text) partition by hash (n);
             create table parted_0 partition of parted for values with (modulus 2, remainder 0);
             create table parted_1 partition of parted for values with (modulus 2, remainder 1);
             alter table parted_1 add primary key (n)",
        )
        .await;
    let tables = ["silent", "keyed", "replaced", "parted"];
    fill(&pair, &tables).await;
    let mut arguments: Vec<&str> = CHUNKS.into_iter().chain(["200"]).collect();
    for table in tables {
        arguments.extend(["--table", table]);
    }
    let output = pair.catch_up(&arguments).await;
    assert!(!output.stderr.contains("cut into chunks"), "{}", output.stderr);
    for table in tables {
        pair.assert_equal(table).await;
    }
    pair.drop().await;
}
