//! Servers that restart, crash, throw sessions out, or go away in the middle of a COMMIT: replay goes on by itself, and
//! exactly once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::cluster::{Pair, Replay, eventually, own_pair, pair};

const SCHEMA: &str = "create table t (id int primary key, n int); create table journal (uid int);
                      insert into t select i, 0 from generate_series(1, 1000) i";

const TABLES: [&str; 5] = ["--table", "t", "--table", "journal", "--create"];

async fn write(pair: &Pair, uid: i32) {
    let db = pair.provider_cluster.connect(&pair.database).await;
    db.run(&format!(
        "begin; insert into journal values ({uid}); update t set n = n + 1 where id % 10 = {uid} % 10; commit"
    ))
    .await;
}

async fn arrived(pair: &Pair, uid: i32) {
    eventually(&format!("row {uid} arrives"), async || {
        let Ok(db) = pair.subscriber_cluster.try_connect(&pair.database).await else {
            return false;
        };
        db.try_text(&format!("select count(*) from journal where uid = {uid}"))
            .await
            .is_ok_and(|count| count == "1")
    })
    .await;
}

async fn reopen(pair: &mut Pair) {
    pair.provider = pair.provider_cluster.connect(&pair.database).await;
    pair.subscriber = pair.subscriber_cluster.connect(&pair.database).await;
}

#[tokio::test]
async fn restarts_and_crashes_of_either_end() {
    let mut pair = own_pair().await;
    pair.provider.run(SCHEMA).await;
    let running = pair.replay().args(&TABLES).spawn();
    running.until_it_says("streaming").await;
    let mut uid = 0;
    for round in 0..3 {
        for (cluster, mode) in [
            (&pair.subscriber_cluster, "immediate"),
            (&pair.provider_cluster, "immediate"),
            (&pair.subscriber_cluster, "fast"),
        ] {
            uid += 1;
            write(&pair, uid).await;
            cluster.restart(mode);
            uid += 1;
            write(&pair, uid).await;
            arrived(&pair, uid).await;
        }
        if round % 2 == 0 {
            pair.provider_cluster.crash()
        } else {
            pair.subscriber_cluster.crash()
        }
        uid += 1;
        write(&pair, uid).await;
        arrived(&pair, uid).await;
    }
    // A subscriber that is away for a while.
    pair.subscriber_cluster.kill();
    uid += 1;
    write(&pair, uid).await;
    let refused = || running.stderr().matches("could not connect to the subscriber").count();
    let before = refused();
    eventually("it tries in vain", async || refused() > before).await;
    pair.subscriber_cluster.start_again();
    arrived(&pair, uid).await;
    reopen(&mut pair).await;
    let output = running.stop().await;
    assert!(output.stderr.contains("retry_in_ms"), "{}", output.stderr);
    pair.catch_up(&TABLES).await;
    pair.assert_equal("t").await;
    pair.assert_equal("journal").await;
}

#[tokio::test]
async fn sessions_that_are_thrown_out() {
    let pair = pair().await;
    pair.provider.run(SCHEMA).await;
    let running = pair.replay().args(&TABLES).spawn();
    running.until_it_says("streaming").await;
    for uid in 0..6 {
        let db = if uid % 2 == 0 { &pair.provider } else { &pair.subscriber };
        // It may just be coming back from the last time; and what it does next it does with other sessions.
        eventually("sessions are thrown out", async || {
            db.text("select count(pg_terminate_backend(pid, 60000)) > 0 from pg_stat_activity where application_name like 'pgcascade replay%' and datname = current_database()")
                .await
                == "t"
        })
        .await;
        write(&pair, uid).await;
        arrived(&pair, uid).await;
    }
    running.stop().await;
    pair.catch_up(&TABLES).await;
    pair.assert_equal("t").await;
    pair.assert_equal("journal").await;
    pair.drop().await;
}

#[tokio::test]
async fn deadlocks_and_lock_timeouts_are_tried_again() {
    let pair = pair().await;
    pair.provider.run(SCHEMA).await;
    pair.catch_up(&TABLES).await;
    pair.subscriber
        .run(&format!("alter database {} set lock_timeout = '200ms'", pair.database))
        .await;
    // Somebody holds the table on the subscriber.
    let other = pair.subscriber_cluster.connect(&pair.database).await;
    other.run("begin; lock table t in access exclusive mode").await;
    write(&pair, 1).await;
    let running = pair.replay().args(&TABLES).spawn();
    running.until_it_says("55P03").await;
    other.run("rollback").await;
    arrived(&pair, 1).await;
    running.stop().await;
    pair.assert_equal("t").await;
    pair.assert_equal("journal").await;
    pair.drop().await;
}

/// A relay to the subscriber that breaks the connection when a COMMIT comes by: before or after handing it on.
async fn cutting_relay(port: u16, cut: Arc<AtomicU32>, hand_on: bool) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let own = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let cut = Arc::clone(&cut);
            tokio::spawn(async move {
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let silent = Arc::new(AtomicBool::new(false));
                let muted = Arc::clone(&silent);
                let back = tokio::spawn(async move {
                    let mut buffer = vec![0; 65536];
                    while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
                        if muted.load(Ordering::SeqCst) {
                            // Closed before it is done, the server might never read the COMMIT.
                            if buffer[..n].windows(7).any(|window| window == b"COMMIT\0") {
                                break;
                            }
                            continue;
                        }
                        if to_client.write_all(&buffer[..n]).await.is_err() {
                            break;
                        }
                    }
                });
                let mut buffer = vec![0; 65536];
                while let Ok(n @ 1..) = from_client.read(&mut buffer).await {
                    let is_commit = buffer[..n].windows(9).any(|window| window == b"; commit\0");
                    if is_commit && cut.load(Ordering::SeqCst) > 0 {
                        cut.fetch_sub(1, Ordering::SeqCst);
                        silent.store(true, Ordering::SeqCst);
                        if hand_on {
                            let _ = to_server.write_all(&buffer[..n]).await;
                            // The server answers, so it is done; the answer goes nowhere.
                            let _ = back.await;
                        }
                        return;
                    }
                    if to_server.write_all(&buffer[..n]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    own
}

#[tokio::test]
async fn connections_that_break_during_commit() {
    for hand_on in [true, false] {
        let pair = pair().await;
        pair.provider.run(SCHEMA).await;
        pair.catch_up(&TABLES).await;
        let cut = Arc::new(AtomicU32::new(0));
        let port = cutting_relay(pair.subscriber_cluster.port(), Arc::clone(&cut), hand_on).await;
        let through = pair.subscriber_cluster.conninfo(&pair.database).replace(
            &format!("port={}", pair.subscriber_cluster.port()),
            &format!("port={port}"),
        );
        // The password file names the real port; the relay's has to be told.
        let through = pair.subscriber_cluster.with_password(&through);
        let running = Replay::new(&pair.provider_cluster.conninfo(&pair.database), &through)
            .args(&TABLES)
            .spawn();
        running.until_it_says("streaming").await;
        for uid in 0..4 {
            cut.store(1, Ordering::SeqCst);
            write(&pair, uid).await;
            arrived(&pair, uid).await;
            eventually("the connection was cut", async || cut.load(Ordering::SeqCst) == 0).await;
        }
        eventually("it is connected again", async || {
            running.stderr().matches(" streaming ").count() >= 5
        })
        .await;
        let output = running.stop().await;
        assert_eq!(
            output.stderr.contains("batch applied already"),
            hand_on,
            "{}",
            output.stderr
        );
        pair.catch_up(&TABLES).await;
        pair.assert_equal("t").await;
        pair.assert_equal("journal").await;
        pair.drop().await;
    }
}
