//! `pgcascade.wait_batch()`: what a waiting session holds (nothing), who wakes it, and what ends it. Real clusters, real
//! cancels and shutdowns. A wake-up that did not come would be noticed by the procedure itself only minutes later, long after a
//! test gave up.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![allow(dead_code, reason = "the other test programs use the rest of the module")]

mod cluster;

use std::sync::LazyLock;

use cluster::{Cluster, Db, PATIENCE, eventually};
use tokio::task::JoinHandle;

static SHARED: LazyLock<Cluster> = LazyLock::new(|| Cluster::start("wait", &[]));

/// A database with queue `q`, where every call of `pgq.ticker()` ticks, and consumer `c`. No ticker runs there unless asked for.
async fn queue(cluster: &Cluster, name: &str, ticker: bool) -> Db {
    let postgres = cluster.connect("postgres").await;
    postgres.run(&format!("create database {name}")).await;
    if !ticker {
        postgres
            .run(&format!("alter database {name} set pgcascade.ticker = off"))
            .await;
    }
    let db = cluster.connect(name).await;
    cluster.create_extension(&db).await;
    db.run("select pgq.create_queue('q'); select pgq.register_consumer('q', 'c')")
        .await;
    db.run("update pgq.queue set queue_ticker_max_lag = '0', queue_ticker_idle_period = '1 hour'")
        .await;
    db
}

/// A tick from a session of its own kind: an event, and then `pgq.ticker()`.
async fn tick(db: &Db) {
    db.run("select pgq.insert_event('q', 't', 'd')").await;
    assert_eq!(db.text("select pgq.ticker()").await, "1");
}

struct Waiter {
    pid: String,
    said: JoinHandle<Result<String, tokio_postgres::Error>>,
}

/// Runs `statement` in a session of its own.
async fn session(cluster: &Cluster, name: &str, statement: &'static str) -> Waiter {
    let session = cluster.connect(name).await;
    let pid = session.text("select pg_backend_pid()").await;
    let said = tokio::spawn(async move { session.try_text(statement).await });
    Waiter { pid, said }
}

/// The same, and returns once it sleeps in it, holding nothing.
async fn waiter(cluster: &Cluster, db: &Db, name: &str, statement: &'static str) -> Waiter {
    let waiter = session(cluster, name, statement).await;
    assert!(waiter.sleeps(db).await, "it waits, and has not found a batch");
    waiter
}

impl Waiter {
    /// Waits until it sleeps, without transaction id, snapshot and lock, or has ended: then false.
    async fn sleeps(&self, db: &Db) -> bool {
        let state = format!(
            "select wait_event_type, backend_xid is null, backend_xmin is null,
                    (select count(*) from pg_locks l where l.pid = a.pid and l.locktype <> 'virtualxid')
               from pg_stat_activity a where a.pid = {}",
            self.pid
        );
        eventually("it sleeps or has ended", || async {
            self.said.is_finished() || db.text(&state).await == "Extension|t|t|0"
        })
        .await;
        !self.said.is_finished()
    }

    async fn end(self) -> Result<String, String> {
        tokio::time::timeout(PATIENCE, self.said)
            .await
            .expect("the wait ends")
            .expect("the task ends")
            .map_err(|error| match error.as_db_error() {
                Some(error) => format!("{}: {}", error.code().code(), error.message()),
                None => error.to_string(),
            })
    }
}

const WAIT: &str = "call pgcascade.wait_batch('q', 'c', '1 hour')";

#[tokio::test]
async fn a_commit_elsewhere_ends_the_wait_by_way_of_the_background_ticker() {
    let db = queue(&SHARED, "background", true).await;
    // A new queue is ticked a few times without an event: those are batches too.
    let mut waiting = session(&SHARED, "background", WAIT).await;
    while !waiting.sleeps(&db).await {
        let batch = waiting.end().await.unwrap();
        db.run(&format!("select pgq.finish_batch({batch})")).await;
        waiting = session(&SHARED, "background", WAIT).await;
    }
    db.run("select pgq.insert_event('q', 't', 'awaited')").await;
    let batch = loop {
        let batch = waiting.end().await.unwrap();
        let events = format!("select ev_data from pgq.get_batch_events({batch})");
        if db.text(&events).await == "awaited" {
            break batch;
        }
        db.run(&format!("select pgq.finish_batch({batch})")).await;
        waiting = session(&SHARED, "background", WAIT).await;
    };
    assert_eq!(db.text(WAIT).await, batch, "an open batch is not waited for");
}

/// The tick is there, and goes to a plain consumer once the branch has it.
#[tokio::test]
async fn a_branch_that_confirms_ends_the_wait_at_a_gate() {
    let db = queue(&SHARED, "gate", false).await;
    db.run(
        "select pgq_node.register_location('q', n, 'dbname=' || n, false) from unnest(array['root', 'branch']) n;
         select pgq_node.create_node('q', 'root', 'root', 'root_worker', null, null, null);
         select pgq_node.register_subscriber('q', 'branch', 'branch_worker', null);
         select pgcascade.register_candidate('q', 'branch'), pgcascade.set_confirm_gate('q', 1)",
    )
    .await;
    tick(&db).await;
    let waiting = waiter(&SHARED, &db, "gate", WAIT).await;
    db.run("select pgq.finish_batch(pgq.next_batch('q', 'branch_worker'))")
        .await;
    assert_ne!(waiting.end().await.unwrap(), "<null>");
}

#[tokio::test]
async fn a_ticker_called_from_outside_wakes_too_from_wherever_it_is_called() {
    let db = queue(&SHARED, "outside", false).await;
    // From plain SQL, from a DO block (which has done something before), from a procedure in a procedure.
    db.run(
        "create table seen (batch bigint);
         create procedure inner_one(inout b bigint) language plpgsql as
             $$ begin perform 1; call pgcascade.wait_batch('q', 'c', null, b); end $$;
         create procedure outer_one() language plpgsql as
             $$ declare b bigint; begin insert into seen values (null); call inner_one(b); insert into seen values (b); end $$",
    )
    .await;
    for statement in [
        WAIT,
        "do $$ declare b bigint; begin
             perform count(*) from pg_class;
             call pgcascade.wait_batch('q', 'c', '1 hour', b);
             insert into seen values (b);
         end $$",
        "call outer_one()",
    ] {
        let waiter = waiter(&SHARED, &db, "outside", statement).await;
        tick(&db).await;
        waiter.end().await.unwrap();
        let open = db.text("select sub_batch from pgq.subscription").await;
        assert_ne!(open, "<null>", "{statement}");
        db.run(&format!("select pgq.finish_batch({open})")).await;
    }
    assert_eq!(
        db.text("select count(batch), count(*) from seen").await,
        "2|3",
        "each was told its batch"
    );
}

#[tokio::test]
async fn two_sessions_of_one_consumer_get_one_batch_and_another_consumer_its_own() {
    let db = queue(&SHARED, "several", false).await;
    db.run("select pgq.register_consumer('q', 'other')").await;
    let one = waiter(&SHARED, &db, "several", WAIT).await;
    let two = waiter(&SHARED, &db, "several", WAIT).await;
    let other = waiter(&SHARED, &db, "several", "call pgcascade.wait_batch('q', 'other', null)").await;
    tick(&db).await;
    let (one, two, other) = (
        one.end().await.unwrap(),
        two.end().await.unwrap(),
        other.end().await.unwrap(),
    );
    assert_eq!(one, two);
    assert_ne!(one, other);
}

#[tokio::test]
async fn many_wait_at_once_for_many_queues() {
    let db = queue(&SHARED, "many", false).await;
    let mut waiters = Vec::new();
    for _ in 0..3 {
        for n in 1..=10 {
            let statement: &'static str =
                Box::leak(format!("call pgcascade.wait_batch('q{n}', 'c', null)").into_boxed_str());
            db.run(&format!(
                "select pgq.create_queue('q{n}'); select pgq.register_consumer('q{n}', 'c')"
            ))
            .await;
            waiters.push((n, waiter(&SHARED, &db, "many", statement).await));
        }
    }
    // The second tick of a queue is always due.
    db.run("select pgq.ticker()").await;
    for (n, waiter) in waiters {
        let batch = waiter.end().await.unwrap();
        let whose = format!("select queue_name from pgq.get_batch_info({batch})");
        assert_eq!(db.text(&whose).await, format!("q{n}"));
    }
}

#[tokio::test]
async fn the_time_out_gives_null() {
    let db = queue(&SHARED, "timeout", false).await;
    assert_eq!(
        db.text("call pgcascade.wait_batch('q', 'c', '50 milliseconds')").await,
        "<null>"
    );
}

#[tokio::test]
async fn a_cancel_a_statement_timeout_and_a_termination_end_the_wait() {
    let db = queue(&SHARED, "ended", false).await;
    let cancelled = waiter(&SHARED, &db, "ended", WAIT).await;
    db.run(&format!("select pg_cancel_backend({})", cancelled.pid)).await;
    assert_eq!(
        cancelled.end().await.unwrap_err(),
        "57014: canceling statement due to user request"
    );

    let session = SHARED.connect("ended").await;
    session.run("set statement_timeout = '1s'").await;
    let error = session.try_text(WAIT).await.unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.message(), "canceling statement due to statement timeout");
    session.run("reset statement_timeout").await;
    let now = "call pgcascade.wait_batch('q', 'c', '0')";
    assert_eq!(session.text(now).await, "<null>", "the session goes on");

    let terminated = waiter(&SHARED, &db, "ended", WAIT).await;
    let terminate = format!("select pg_terminate_backend({}, 300000)", terminated.pid);
    assert_eq!(db.text(&terminate).await, "t");
    let said = terminated.end().await.unwrap_err();
    assert_eq!(said, "57P01: terminating connection due to administrator command");
    // Nobody is left on the list of waiters who is not there.
    let waiter = waiter(&SHARED, &db, "ended", WAIT).await;
    tick(&db).await;
    waiter.end().await.unwrap();
}

#[tokio::test]
async fn a_queue_or_a_subscription_that_goes_ends_the_wait_and_a_move_gives_a_batch() {
    let db = queue(&SHARED, "gone", false).await;
    tick(&db).await;
    let batch = db.text(WAIT).await;
    db.run(&format!("select pgq.finish_batch({batch})")).await;

    let moved = waiter(&SHARED, &db, "gone", WAIT).await;
    db.run("select pgq.register_consumer_at('q', 'c', 1)").await;
    let batch = moved.end().await.unwrap();
    db.run(&format!("select pgq.finish_batch({batch})")).await;

    let not_subscribed = "42704: Not subscriber to queue: q/c";
    let unregistered = waiter(&SHARED, &db, "gone", WAIT).await;
    db.run("select pgq.unregister_consumer('q', 'c')").await;
    assert_eq!(unregistered.end().await.unwrap_err(), not_subscribed);

    db.run("select pgq.register_consumer('q', 'c')").await;
    let dropped = waiter(&SHARED, &db, "gone", WAIT).await;
    db.run("select pgq.drop_queue('q', true)").await;
    assert_eq!(dropped.end().await.unwrap_err(), not_subscribed);
}

#[tokio::test]
async fn a_fast_shutdown_is_not_held_up() {
    let cluster = Cluster::start("wait-shutdown", &[]);
    let db = queue(&cluster, "shutdown", false).await;
    let waiting = waiter(&cluster, &db, "shutdown", WAIT).await;
    cluster.restart("fast");
    let said = waiting.end().await.unwrap_err();
    assert_eq!(said, "57P01: terminating connection due to administrator command");
    let db = cluster.connect("shutdown").await;
    let waiter = waiter(&cluster, &db, "shutdown", WAIT).await;
    tick(&db).await;
    waiter.end().await.unwrap();
}

#[tokio::test]
async fn without_preloading_it_looks_now_and_then() {
    let cluster = Cluster::start("wait-plain", &["--no-preload"]);
    let db = queue(&cluster, "plain", false).await;
    let woken = waiter(&cluster, &db, "plain", WAIT).await;
    tick(&db).await;
    let batch = woken.end().await.unwrap();
    db.run(&format!("select pgq.finish_batch({batch})")).await;
    let cancelled = waiter(&cluster, &db, "plain", WAIT).await;
    db.run(&format!("select pg_cancel_backend({})", cancelled.pid)).await;
    assert_eq!(
        cancelled.end().await.unwrap_err(),
        "57014: canceling statement due to user request"
    );
}
