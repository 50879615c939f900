//! kill -9 at every window of the commit protocol, and at random: each row arrives exactly once.
//!
//! `journal` has no unique key on the subscriber, so a row that is applied twice is there twice.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::cluster::{Pair, eventually, pair};

async fn prepared() -> Pair {
    let pair = pair().await;
    pair.provider
        .run(
            "create table t (id int primary key, n int);
             create table journal (uid int, what text);
             insert into t select i, 0 from generate_series(1, 5000) i;
             insert into journal select i, 'before' from generate_series(1, 5000) i",
        )
        .await;
    pair
}

fn arguments() -> [&'static str; 5] {
    ["--table", "t", "--table", "journal", "--create"]
}

async fn write(pair: &Pair, from: i32) {
    pair.provider
        .run(&format!(
            "begin; update t set n = n + 1 where id % 7 = 0; insert into journal select i, 'after' from generate_series({from}, {}) i; commit;
             insert into t values ({}, 0); delete from t where id = {}; insert into journal values (-{from}, 'alone')",
            from + 2000,
            10_000 + from,
            from % 5000
        ))
        .await;
}

async fn killed_at(pair: &Pair, point: &str) {
    let output = pair
        .replay()
        .args(&arguments())
        // A worker beside the one that is killed could commit its copy at that moment, and there would be none left.
        .args(&["--until-caught-up", "--jobs", "1"])
        .failpoints(&format!("{point}=kill"))
        .output()
        .await;
    assert_eq!(output.code(), None, "{point} was not reached: {}", output.stderr);
}

#[tokio::test]
async fn killed_at_each_failpoint_of_a_batch() {
    let pair = prepared().await;
    pair.catch_up(&arguments()).await;
    for (i, point) in ["after_read", "before_commit", "after_commit"].into_iter().enumerate() {
        write(&pair, 10_000 * (i32::try_from(i).unwrap() + 1)).await;
        // One that was made while they were written may be without them.
        pair.tick().await;
        let before = pair.subscriber.text("select tick from pgcascade_replay.position").await;
        killed_at(&pair, point).await;
        let after = pair.subscriber.text("select tick from pgcascade_replay.position").await;
        assert_eq!(before == after, point != "after_commit", "{point}");
        killed_at(&pair, "before_commit").await; // again, at the batch that follows or is repeated
        let output = pair.catch_up(&arguments()).await;
        pair.assert_equal("t").await;
        pair.assert_equal("journal").await;
        assert!(!output.stderr.contains("ERROR"), "{}", output.stderr);
    }
    pair.drop().await;
}

#[tokio::test]
async fn a_batch_that_was_committed_and_not_finished_is_only_finished() {
    let pair = prepared().await;
    pair.catch_up(&arguments()).await;
    write(&pair, 1).await;
    killed_at(&pair, "after_commit").await;
    let output = pair.catch_up(&arguments()).await;
    assert!(output.stderr.contains("batch applied already"), "{}", output.stderr);
    pair.assert_equal("journal").await;
    pair.drop().await;
}

#[tokio::test]
async fn killed_in_the_first_copy() {
    let pair = prepared().await;
    for (i, point) in ["in_copy", "after_copy_commit", "in_copy", "after_read"]
        .into_iter()
        .enumerate()
    {
        killed_at(&pair, point).await;
        write(&pair, 777 + i32::try_from(i).unwrap()).await;
    }
    let states = pair
        .subscriber
        .text("select state from pgcascade_replay.table_state order by 1")
        .await;
    // A batch that was applied beside the other table's copy may have made it ok.
    assert!(states.contains("catching-up") || states.contains("ok"), "{states}");
    pair.catch_up(&arguments()).await;
    pair.assert_equal("t").await;
    pair.assert_equal("journal").await;
    pair.drop().await;
}

#[tokio::test]
async fn killed_at_any_time() {
    let pair = prepared().await;
    let mut random = 12345_u64;
    for round in 0..12 {
        let running = pair.replay().args(&arguments()).spawn();
        for i in 0..3 {
            write(&pair, 20_000 + 100 * round + i).await;
        }
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        tokio::time::sleep(Duration::from_millis((random >> 33) % 250)).await; // the point of the test: whenever that is
        running.kill().await;
    }
    pair.catch_up(&arguments()).await;
    pair.assert_equal("t").await;
    pair.assert_equal("journal").await;
    pair.drop().await;
}

#[tokio::test]
async fn told_to_stop_at_any_time() {
    let pair = prepared().await;
    let mut random = 999_u64;
    for round in 0..12 {
        let running = pair.replay().args(&arguments()).spawn();
        write(&pair, 20_000 + 100 * round).await;
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        // Before it listens to signals, a SIGTERM is nothing that it could take as a request.
        tokio::time::sleep(Duration::from_millis(30 + (random >> 33) % 300)).await;
        running.stop().await;
    }
    pair.catch_up(&arguments()).await;
    pair.assert_equal("t").await;
    pair.assert_equal("journal").await;
    pair.drop().await;
}

#[tokio::test]
async fn two_starts_at_once_make_one_replay() {
    let pair = prepared().await;
    let (one, other) = (
        pair.replay().args(&arguments()).spawn(),
        pair.replay().args(&arguments()).spawn(),
    );
    eventually("one of them gives up", async || {
        one.stderr().contains("in use already") || other.stderr().contains("in use already")
    })
    .await;
    let (winner, loser) = if one.stderr().contains("in use already") {
        (other, one)
    } else {
        (one, other)
    };
    assert_eq!(loser.wait().await.code(), Some(1));
    winner.until_it_says("streaming").await;
    winner.stop().await;
    write(&pair, 1).await;
    pair.catch_up(&arguments()).await;
    pair.assert_equal("journal").await;
    pair.drop().await;
}

/// The session of a replay that was killed has the consumer's lock as long as its statement does not let it notice. So who comes next waits for
/// longer than for one that does nothing.
#[tokio::test]
async fn the_session_of_a_killed_replay_is_waited_for() {
    let pair = prepared().await;
    let running = pair.replay().args(&arguments()).spawn();
    running.until_it_says("streaming").await;
    let lock = pair
        .subscriber
        .text(
            "select (l.classid::int8 << 32) | l.objid::int8 from pg_locks l join pg_stat_activity a using (pid)
              where a.datname = current_database() and a.application_name like 'pgcascade replay %' and l.locktype = 'advisory'",
        )
        .await;
    running.stop().await;
    pair.until_sessions_are_gone().await;
    let (busy, keeper) = (
        pair.subscriber_cluster.connect(&pair.database).await,
        pair.subscriber_cluster.connect(&pair.database).await,
    );
    keeper.run("begin; select pg_advisory_xact_lock(1)").await;
    busy.run(&format!("select pg_advisory_lock({lock})")).await;
    let [second, third] = ["second", "third"].map(|name| {
        let name = format!("{name}-{}", pair.database);
        pair.subscriber_cluster.file(&name)
    });
    let points = format!("lock_refused=pause:2:{second};lock_refused=pause:3:{third}");
    let (_, next) = tokio::join!(busy.run("select pg_advisory_lock(1)"), async {
        let next = pair.replay().args(&arguments()).failpoints(&points).spawn();
        // The first time it went on.
        next.until_it_says(&format!("waits until {second} exists")).await;
        keeper.run("commit").await;
        next
    });
    // When it looks for the second time who has the lock, that session is at no statement any more; for the third time, it is gone.
    let until_it_says = async |text: &str| {
        eventually(text, async || {
            assert!(!next.stderr().contains("in use already"), "{}", next.stderr());
            next.stderr().contains(text)
        })
        .await;
    };
    std::fs::write(&second, "").unwrap();
    until_it_says(&format!("waits until {third} exists")).await;
    drop(busy);
    let held = format!(
        "select count(*) from pg_locks where locktype = 'advisory' and ((classid::int8 << 32) | objid::int8) = {lock}
            and database = (select oid from pg_database where datname = current_database())"
    );
    eventually("nobody has it", async || pair.subscriber.text(&held).await == "0").await;
    std::fs::write(&third, "").unwrap();
    until_it_says("streaming").await;
    next.stop().await;
    pair.drop().await;
}

/// Whoever reads the subscriber sees a state that the provider had: whole transactions, in their order.
#[tokio::test]
async fn every_state_that_can_be_seen_was_one_of_the_providers() {
    let pair = pair().await;
    pair.provider
        .run(
            "create table account (id int primary key, balance bigint);
             create table total (id int primary key, balance bigint);
             create table history (id bigint generated always as identity primary key, delta bigint);
             insert into account select i, 0 from generate_series(1, 500) i; insert into total values (1, 0)",
        )
        .await;
    let tables = [
        "--table", "account", "--table", "total", "--table", "history", "--create",
    ];
    pair.catch_up(&tables).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for writer in 0..2 {
        let (db, stop) = (pair.provider_cluster.connect(&pair.database).await, Arc::clone(&stop));
        writers.push(tokio::spawn(async move {
            let mut n = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                let (account, delta) = ((n * 31 + writer * 7) % 500 + 1, n % 13);
                db.run(&format!(
                    "begin; update account set balance = balance + {delta} where id = {account};
                     insert into history (delta) values ({delta}); update total set balance = balance + {delta}; commit"
                ))
                .await;
            }
        }));
    }
    let (db, done) = (pair.subscriber_cluster.connect(&pair.database).await, Arc::clone(&stop));
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    let sampler = tokio::spawn(async move {
        let mut states = HashSet::new();
        while !done.load(Ordering::Relaxed) {
            let sums = db
                .text(
                    "select (select sum(balance) from account), (select sum(balance) from total), \
                            (select coalesce(sum(delta), 0) from history)",
                )
                .await;
            let sums: Vec<&str> = sums.split('|').collect();
            assert!(sums[0] == sums[1] && sums[1] == sums[2], "{sums:?}");
            states.insert(sums[0].to_owned());
            count.store(states.len(), Ordering::Relaxed);
        }
    });
    for round in 0..4 {
        let running = pair.replay().args(&tables).spawn();
        running.until_it_says("streaming").await;
        let before = seen.load(Ordering::Relaxed);
        eventually("some more states were seen", async || {
            seen.load(Ordering::Relaxed) > before + 10
        })
        .await;
        if round % 2 == 0 {
            running.kill().await
        } else {
            running.stop().await
        };
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    sampler.await.unwrap();
    pair.catch_up(&tables).await;
    for table in ["account", "total", "history"] {
        pair.assert_equal(table).await;
    }
    pair.drop().await;
}

/// A replay that was frozen, and lost its sessions and so its locks meanwhile, finds another one at its place and does
/// no harm.
#[tokio::test]
async fn a_replay_that_wakes_up_after_another_took_over() {
    let pair = prepared().await;
    pair.catch_up(&arguments()).await;
    let frozen = pair.replay().args(&arguments()).spawn();
    frozen.until_it_says("streaming").await;
    frozen.signal("STOP");
    write(&pair, 1).await;
    // As long as its sessions live, nobody else gets in.
    let refused = pair.replay().args(&arguments()).output().await;
    assert_eq!(refused.code(), Some(1));
    assert!(refused.stderr.contains("in use already"), "{}", refused.stderr);
    for db in [&pair.provider, &pair.subscriber] {
        db.text(
            "select pg_terminate_backend(pid, 60000) from pg_stat_activity
              where application_name like 'pgcascade replay%' and datname = current_database()",
        )
        .await;
    }
    let other = pair.replay().args(&arguments()).spawn();
    other.until_it_says("streaming").await;
    write(&pair, 5000).await;
    frozen.signal("CONT");
    frozen.until_it_says("retry_in_ms").await;
    write(&pair, 10_000).await;
    eventually("the last row arrives", async || {
        pair.subscriber
            .text("select count(*) from journal where uid = -10000")
            .await
            == "1"
    })
    .await;
    frozen.kill().await;
    other.stop().await;
    pair.catch_up(&arguments()).await;
    pair.assert_equal("t").await;
    pair.assert_equal("journal").await;
    pair.drop().await;
}
