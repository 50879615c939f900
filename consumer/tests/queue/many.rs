//! Five thousand transactions in progress: the snapshot of a tick lists them all. Ticks stay readable, batches complete, and
//! every event comes once when they commit. The times are printed, not judged.

use std::time::Instant;

use crate::cluster::Cluster;
use crate::delivered::Delivered;
use crate::{queue, rotate, tick};

const MANY: usize = 5000;

#[tokio::test]
async fn five_thousand_transactions_in_progress() {
    let cluster = Cluster::start(
        "many",
        &[
            "-o",
            "pgcascade.ticker=off",
            // Whose transactions would be in the ticks, too.
            "-o",
            "autovacuum=off",
            "-o",
            &format!("max_prepared_transactions={}", MANY + 10),
        ],
    );
    let db = queue(&cluster, "many", &[]).await;
    let mut delivered = Delivered::default();
    let mut committed = Vec::new();
    let mut begun = Vec::new();
    let clock = |what: &str, from: Instant| println!("{what}: {:?}", from.elapsed());

    let from = Instant::now();
    for hundred in 0..MANY / 100 {
        let mut statements = String::new();
        for i in hundred * 100..(hundred + 1) * 100 {
            statements +=
                &format!("begin; select pgq.insert_event('q', 't', 'many {i}'); prepare transaction 'many {i}';");
            begun.push(format!("many {i}"));
        }
        db.run(&statements).await;
    }
    clock("5,000 events prepared", from);
    // Ticks under that load, with events in between; each tick row lists all of them, and reads back as what it is.
    for i in 0..20 {
        let event = format!("between {i}");
        db.run(&format!("select pgq.insert_event('q', 't', '{event}')")).await;
        committed.push(event);
        let from = Instant::now();
        tick(&db).await;
        if i % 10 == 0 {
            clock("a tick", from);
        }
    }
    let rows = db
        .text(
            "select count(*), min(n), max(n), pg_size_pretty(max(pg_column_size(tick_snapshot))::bigint)
                 from (select tick_snapshot, (select count(*) from txid_snapshot_xip(tick_snapshot)) n from pgq.tick
                        where tick_id > 1 and tick_snapshot::text::txid_snapshot::text = tick_snapshot::text) t",
        )
        .await;
    println!("ticks, least and most transactions in them, size of the largest: {rows}");
    assert!(rows.starts_with(&format!("20|{MANY}|{MANY}|")), "{rows}");
    let from = Instant::now();
    db.run("select pgq.next_batch('q', 'c')").await;
    clock("next_batch", from);
    let from = Instant::now();
    delivered.read(&db).await;
    clock("20 batches", from);
    delivered.assert_is(&committed);
    assert_eq!(rotate(&db).await, "1");
    assert_eq!(rotate(&db).await, "1", "held back");
    let from = Instant::now();
    let blockers = db
        .text("select count(*), count(distinct name) from pgcascade.rotation_blockers()")
        .await;
    clock("rotation_blockers()", from);
    assert_eq!(blockers, format!("{MANY}|{MANY}"));

    // A part of them ends between two ticks, the rest before the last one; every tenth is rolled back.
    let from = Instant::now();
    for (i, event) in begun.into_iter().enumerate() {
        if i == MANY / 3 {
            tick(&db).await;
        }
        if i % 10 == 0 {
            db.run(&format!("rollback prepared '{event}'")).await;
        } else {
            db.run(&format!("commit prepared '{event}'")).await;
            committed.push(event);
        }
    }
    clock("5,000 ended", from);
    tick(&db).await;
    let from = Instant::now();
    delivered.read(&db).await;
    clock("two batches with their events", from);
    delivered.assert_is(&committed);
    for _ in 0..4 {
        tick(&db).await;
        delivered.read(&db).await;
        rotate(&db).await;
    }
    assert_eq!(db.text("select count(*) from pgq.event_template").await, "0");
}
