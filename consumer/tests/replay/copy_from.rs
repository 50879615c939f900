//! `--copy-from` a standby of the provider: rows are read there, and nothing is missed or doubled of what is written meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::cluster::{Replay, eventually, own_pair};

#[tokio::test]
async fn a_standby_is_read_instead() {
    let pair = own_pair().await;
    let (p, s) = (&pair.provider, &pair.subscriber);
    p.run("alter system set log_statement = 'all'").await;
    p.run(
        "select pg_reload_conf();
         create table t (id int primary key, n int, pad text); insert into t select i, 0, repeat('x', 100) from generate_series(1, 10000) i;
         create table parted (id int primary key, n int) partition by range (id);
         create table parted_1 partition of parted for values from (0) to (5000);
         create table parted_2 partition of parted for values from (5000) to (100000);
         insert into parted select i, 0 from generate_series(1, 10000) i;
         create table small (id int primary key); insert into small values (1);
         create table journal (n int); insert into journal select 0 from generate_series(1, 12000)",
    )
    .await;
    let standby = pair.provider_cluster.standby("standby");
    let there = standby.connect(&pair.database).await;
    let at = standby.conninfo(&pair.database);
    let mut add = Replay::command(&[
        "table",
        "add",
        "t",
        "parted",
        "small",
        "journal",
        "--create",
        "--queue",
        "q",
        "--consumer",
        "c",
    ]);
    for (end, cluster) in [
        ("--provider", &pair.provider_cluster),
        ("--subscriber", &pair.subscriber_cluster),
    ] {
        add = add.args(&[end, &cluster.conninfo(&pair.database)]);
    }
    let added = add.output().await;
    assert_eq!(added.code(), Some(0), "{}", added.stderr);
    // One that is on its way when the copy begins, and is seen after it.
    let slow = pair.provider_cluster.connect(&pair.database).await;
    slow.run("begin; update t set n = n + 1000 where id > 9900; insert into parted values (20000, 1); insert into journal values (-1)")
        .await;
    // What the standby has not replayed yet may be older than the triggers.
    there.run("select pg_wal_replay_pause()").await;
    p.run("update t set n = 7 where id < 500; delete from parted where id % 10 = 3")
        .await;
    let writer = pair.provider_cluster.connect(&pair.database).await;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let writing = tokio::spawn(async move {
        let mut n = 1;
        while !stopped.load(Ordering::Relaxed) {
            n += 1;
            writer
                .run(&format!(
                    "begin; update t set n = n + 1 where id % 97 = {n} % 97 and id <= 9900; update t set id = id + 100000 where id = {n} * 3 + 1 and id <= 9900;
                     delete from t where id = {n} * 7 + 100000; insert into t values (-{n}, {n});
                     update parted set n = n + 1 where id % 89 = {n} % 89; insert into journal values ({n}); commit"
                ))
                .await;
        }
    });
    let arguments = ["--copy-chunk-bytes", "65536", "--copy-from", at.as_str()];
    let chunks = "select count(*) from pgcascade_replay.copy_chunk where copied_rows > 0";
    let running = pair
        .replay()
        .args(&arguments)
        .failpoints("after_chunk_commit=kill:4")
        .spawn();
    running.until_it_says("streaming").await;
    eventually("a worker asks the standby", async || {
        standby.log().contains("pg_last_wal_replay_lsn() >=")
    })
    .await;
    assert_eq!(s.text(chunks).await, "0");
    there.run("select pg_wal_replay_resume()").await;
    assert_eq!(running.wait().await.code(), None, "killed");
    assert_ne!(s.text(chunks).await, "0");
    let running = pair.replay().args(&arguments).spawn();
    pair.until_past_copies(4).await;
    stop.store(true, Ordering::Relaxed);
    writing.await.unwrap();
    slow.run("commit").await;
    running.stop().await;
    pair.catch_up(&arguments).await;
    for table in ["t", "parted", "small", "journal"] {
        let rows =
            format!("select count(*), md5(string_agg(x::text, ' ' order by x::text collate \"C\")) from {table} x");
        assert_eq!(s.text(&rows).await, p.text(&rows).await, "{table}");
    }
    // What is cut by its key is read there, what is cut by its blocks or not at all is not.
    let in_blocks = "from only \"public\".\"journal\" where ctid";
    assert!(pair.provider_cluster.log().contains(in_blocks));
    for (log, read, not) in [
        (standby.log(), ["\"t\"", "\"small\""], "\"journal\""),
        (pair.provider_cluster.log(), ["\"journal\"", "\"journal\""], "\"t\""),
    ] {
        let copies: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("copy (select") || line.contains("copy \"public\""))
            .collect();
        for table in read {
            assert!(
                copies.iter().any(|line| line.contains(&format!("\"public\".{table}"))),
                "{table}: {copies:?}"
            );
        }
        assert!(
            !copies.iter().any(|line| line.contains(&format!("\"public\".{not}"))),
            "{not}: {copies:?}"
        );
    }
    let other = pair.subscriber_cluster.standby("other");
    s.run("update pgcascade_replay.table_state set state = 'in-copy', replace_rows = true where provider_table = 't'")
        .await;
    let wrong = other.conninfo(&pair.database);
    let refused = pair.replay().args(&["--copy-from", &wrong]).output().await;
    assert_eq!(refused.code(), Some(1));
    let text = "--copy-from leads to a standby of another server than the provider";
    assert!(refused.stderr.contains(text), "{}", refused.stderr);
    there.run("select pg_promote(true, 600)").await;
    // Promoted, it has a life of its own: it is not read.
    there.run("delete from t").await;
    let output = pair.catch_up(&arguments).await;
    assert!(
        output.stderr.contains("--copy-from leads to no standby"),
        "{}",
        output.stderr
    );
    let rows = "select count(*), sum(n) from t";
    assert_eq!(s.text(rows).await, p.text(rows).await);
    pair.drop().await;
}
