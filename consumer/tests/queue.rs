//! The queue inside the server, under what a database goes through: kills, restarts, prepared transactions, transaction ids
//! that wrap, thousands of open transactions, dumps, other tickers. Real clusters; each test has a database or a cluster of its
//! own. What the isolation tester can express is in regress/specs; docs/rules.md lists both.
#![allow(missing_docs, dead_code, reason = "a test binary has no interface")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod cluster;

use std::sync::LazyLock;

use cluster::{Cluster, Db};

#[path = "queue/administration.rs"]
mod administration;
#[path = "queue/captured.rs"]
mod captured;
#[path = "queue/delivered.rs"]
mod delivered;
#[path = "queue/drops.rs"]
mod drops;
#[path = "queue/durability.rs"]
mod durability;
#[path = "queue/many.rs"]
mod many;
#[path = "queue/positions.rs"]
mod positions;
#[path = "queue/prepared.rs"]
mod prepared;
#[path = "queue/rotation.rs"]
mod rotation;
#[path = "queue/savepoints.rs"]
mod savepoints;
#[path = "queue/schedules.rs"]
mod schedules;
#[path = "queue/ticks.rs"]
mod ticks;
#[path = "queue/xids.rs"]
mod xids;

static SHARED: LazyLock<Cluster> = LazyLock::new(|| {
    Cluster::start(
        "queue",
        &[
            "-o",
            "pgcascade.maint_interval=1",
            "-o",
            "pgcascade.retry_interval=1",
            // More than savepoints.rs has transactions, all of which it may draw to be prepared.
            "-o",
            "max_prepared_transactions=200",
        ],
    )
});

/// A new database with the extension, the queue `q` and its consumer `c`. By `options` of CREATE DATABASE's settings, such as
/// `pgcascade.ticker = off`. The queue is always due for a tick, and its tables for a rotation.
async fn queue(cluster: &Cluster, database: &str, options: &[&str]) -> Db {
    let postgres = cluster.connect("postgres").await;
    postgres.run(&format!("create database {database}")).await;
    for option in options {
        postgres.run(&format!("alter database {database} set {option}")).await;
    }
    let db = cluster.connect(database).await;
    cluster.create_extension(&db).await;
    db.run(
        "select pgq.create_queue('q');
         select pgq.register_consumer('q', 'c');
         update pgq.queue set queue_ticker_max_lag = '0', queue_ticker_idle_period = '0', queue_rotation_period = '0'",
    )
    .await;
    db
}

/// Ticks `q`, as a ticker that is called from outside does.
async fn tick(db: &Db) -> i64 {
    db.text("select pgq.ticker('q')").await.parse().unwrap()
}

/// One round of maintenance, as pgqd does it: each operation is a call of its own. Returns the current event table.
async fn rotate(db: &Db) -> String {
    db.run("select pgq.maint_rotate_tables_step1('q')").await;
    db.run("select pgq.maint_rotate_tables_step2()").await;
    db.text("select queue_cur_table from pgq.queue where queue_name = 'q'")
        .await
}
