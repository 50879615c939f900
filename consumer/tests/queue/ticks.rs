//! R3: whoever ticks, every tick sees what the one before saw, and ticks do not stop for reasons of the database.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::cluster::eventually;
use crate::delivered::Delivered;
use crate::{SHARED, queue, tick};

/// What the isolation level is by default is a matter of applications: the background ticker sets its own. A daemon that calls
/// the functions is told what to do, each time, and works when it has done it.
#[tokio::test]
async fn a_database_that_is_serializable_by_default_is_ticked() {
    let options = ["default_transaction_isolation = 'serializable'"];
    let db = queue(&SHARED, "serializable", &options).await;
    let mut delivered = Delivered::default();
    let mut committed = Vec::new();
    for i in 0..20 {
        committed.push(format!("event {i}"));
        db.run(&format!("select pgq.insert_event('q', 't', 'event {i}')")).await;
        if i % 5 == 0 {
            delivered.read_until(&db, &committed).await;
        }
    }
    delivered.read_until(&db, &committed).await;
    eventually("rotations", async || {
        db.text("select queue_switch_step1 > txid_snapshot_xmax(t.tick_snapshot) from pgq.queue, pgq.tick t order by tick_id limit 1")
            .await
            == "t"
    })
    .await;

    let daemon = SHARED.connect("serializable").await;
    for call in ["pgq.ticker('q')", "pgq.ticker()", "pgq.maint_rotate_tables_step1('q')"] {
        let error = daemon.try_text(&format!("select {call}")).await.unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(error.code().code(), "25001", "{call}");
        assert!(
            error.message().contains("in a serializable transaction"),
            "{call}: {}",
            error.message()
        );
        assert!(
            error
                .hint()
                .unwrap()
                .contains("ALTER ROLE name SET default_transaction_isolation")
        );
    }
    db.run(
        "create role torture_daemon superuser;
         alter role torture_daemon set default_transaction_isolation = 'read committed'",
    )
    .await;
    // What a login of that role gets.
    daemon
        .run("set session authorization torture_daemon; set default_transaction_isolation = 'read committed'")
        .await;
    tick(&daemon).await;
}

/// pgqd goes on running while the worker does: five tickers of one queue, two of which also rotate.
#[tokio::test]
async fn tickers_from_outside_and_the_worker_make_one_row_of_ticks() {
    let db = queue(&SHARED, "outside", &[]).await;
    // Only when there is something new: five who tick without need are faster than anybody who reads.
    db.run("update pgq.queue set queue_ticker_idle_period = '1 minute'")
        .await;
    let done = Arc::new(AtomicBool::new(false));
    let mut others = Vec::new();
    for n in 0..4 {
        let (done, session) = (Arc::clone(&done), SHARED.connect("outside").await);
        others.push(tokio::spawn(async move {
            let mut ticks = Vec::new();
            while !done.load(Ordering::Relaxed) {
                if n % 2 == 0 {
                    let tick = session.text("select pgq.ticker('q')").await;
                    ticks.extend(tick.parse::<i64>().ok());
                } else {
                    session.run("select pgq.ticker()").await;
                    let operations = session
                        .text("select func_name, func_arg from pgq.maint_operations()")
                        .await;
                    for operation in operations.lines() {
                        let (function, argument) = operation.split_once('|').unwrap();
                        let argument = if argument == "<null>" {
                            String::new()
                        } else {
                            format!("'{argument}'")
                        };
                        session.run(&format!("select {function}({argument})")).await;
                    }
                    session.run("select pgq.maint_retry_events()").await;
                }
            }
            ticks
        }));
    }
    let mut writers = Vec::new();
    for n in 0..3 {
        let session = SHARED.connect("outside").await;
        writers.push(tokio::spawn(async move {
            let mut committed = Vec::new();
            for i in 0..200 {
                let event = format!("{n} {i}");
                let level = ["read committed", "repeatable read", "serializable"][i % 3];
                let end = if i % 7 == 0 { "rollback" } else { "commit" };
                session
                    .run(&format!(
                        "begin isolation level {level}; select pgq.insert_event('q', 't', '{event}'); {end}"
                    ))
                    .await;
                if end == "commit" {
                    committed.push(event);
                }
            }
            committed
        }));
    }
    let mut delivered = Delivered::default();
    while writers.iter().any(|writer| !writer.is_finished()) {
        delivered.read(&db).await;
    }
    let mut committed = Vec::new();
    for writer in writers {
        committed.extend(writer.await.unwrap());
    }
    done.store(true, Ordering::Relaxed);
    let mut ticks = Vec::new();
    for other in others {
        ticks.extend(other.await.unwrap());
    }
    delivered.read_until(&db, &committed).await;
    let number = ticks.len();
    ticks.sort_unstable();
    ticks.dedup();
    assert_eq!(ticks.len(), number, "no tick id was given to two tickers");
    // Of the ticks that are left: the one with the higher id is the younger one, by its snapshot and its time.
    let wrong = "select count(*) from (
            select tick_time, tick_snapshot, lag(tick_time) over w as time, lag(tick_snapshot) over w as before
              from pgq.tick window w as (order by tick_id)) t
         where tick_time < time or txid_snapshot_xmax(tick_snapshot) < txid_snapshot_xmax(before)
            or exists (select from txid_snapshot_xip(tick_snapshot) x (xid) where txid_visible_in_snapshot(x.xid, before))";
    assert_eq!(db.text(wrong).await, "0");
    assert!(delivered.batches > 10, "{} batches", delivered.batches);
}
