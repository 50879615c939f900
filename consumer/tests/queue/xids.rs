//! Transaction ids beyond 2^31 and 2^32. A cluster's next id is moved by pg_resetwal to just below each, and crosses it with
//! writers, savepoints, a prepared transaction, ticks, rotations, open batches and retries under way. An id of 32 bits anywhere
//! loses or repeats events there.

use std::fs;
use std::path::PathBuf;

use crate::cluster::{Cluster, Db};
use crate::delivered::Delivered;
use crate::{queue, rotate, tick};

/// Makes `next` the next transaction id of a cluster that is stopped for it. Everything is frozen first, as it would be in
/// a database that came here by itself; the commit log must have the file of that id.
async fn jump(cluster: &Cluster, next: u64) -> Db {
    for database in ["template0", "template1", "postgres", "x"] {
        let postgres = cluster.connect("postgres").await;
        postgres
            .run(&format!("alter database {database} with allow_connections true"))
            .await;
        let db = cluster.connect(database).await;
        db.run("vacuum (freeze)").await;
    }
    cluster.stop();
    // 8192 bytes a page, 4 transactions a byte, 32 pages a file.
    let segment = (next & 0xffff_ffff) / (8192 * 4 * 32);
    // PostgreSQL pads the name to four digits.
    let file = PathBuf::from(cluster.file(&format!("data/pg_xact/{segment:04X}")));
    if !file.exists() {
        fs::write(&file, vec![0; 8192 * 32]).unwrap();
    }
    let (epoch, xid) = (next >> 32, next & 0xffff_ffff);
    let data = cluster.file("data");
    cluster.run(&[
        "pg_resetwal",
        "-x",
        &xid.to_string(),
        "-e",
        &epoch.to_string(),
        "-D",
        &data,
    ]);
    cluster.start_again();
    let db = cluster.connect("x").await;
    let now = db.text("select txid_current()").await.parse::<u64>().unwrap();
    assert!((next..next + 50).contains(&now), "{now} is near {next}");
    db
}

/// Writes, ticks, rotates and reads until the next transaction id is beyond `boundary`, and everything committed was delivered.
async fn cross(cluster: &Cluster, mut db: Db, boundary: u64, delivered: &mut Delivered, committed: &mut Vec<String>) {
    let next = "select txid_snapshot_xmax(txid_current_snapshot())";
    let long = cluster.connect("x").await;
    let mut store = async |db: &Db, event: String| {
        db.run(&format!("select pgq.insert_event('q', 't', '{event}')")).await;
        committed.push(event);
    };
    let first = db.text(next).await.parse::<u64>().unwrap();
    assert!(first < boundary, "{first} is below {boundary}");

    // Open from below the boundary to above it: one in a session, one prepared. Both hold back the oldest table.
    long.run("begin isolation level repeatable read").await;
    store(&long, format!("{boundary} long")).await;
    db.run("begin").await;
    store(&db, format!("{boundary} prepared")).await;
    db.run(&format!("prepare transaction 'over {boundary}'")).await;
    let (mut retried, mut i) = (0, 0);
    while db.text(next).await.parse::<u64>().unwrap() < boundary + 100 {
        i += 1;
        db.run("begin; savepoint a").await;
        store(&db, format!("{boundary} {i}")).await;
        db.run("savepoint b; select pgq.insert_event('q', 't', 'lost'); rollback to b; release a; commit")
            .await;
        if i % 5 == 0 {
            tick(&db).await;
        }
        if i % 10 == 0 {
            let batch = db.text("select pgq.next_batch('q', 'c')").await;
            if batch != "<null>" {
                let again =
                    format!("select pgq.event_retry({batch}, ev_id, 0) from pgq.get_batch_events({batch}) limit 1");
                retried += db.text(&again).await.lines().filter(|line| *line == "1").count();
            }
            delivered.read(&db).await;
            rotate(&db).await;
        }
    }
    // A restart in which ids of both sides of the boundary matter: the prepared one is below, the next one above.
    long.run("commit").await;
    cluster.restart("immediate");
    db = cluster.connect("x").await;
    tick(&db).await;
    delivered.read(&db).await;
    rotate(&db).await;
    tick(&db).await;
    delivered.read(&db).await;
    assert_eq!(
        db.text("select blocker, name from pgcascade.rotation_blockers()").await,
        format!("transaction|over {boundary}"),
        "an id below the boundary is recognised above it"
    );
    db.run(&format!("commit prepared 'over {boundary}'")).await;
    while db.text("select pgq.maint_retry_events()").await != "0" {}
    // The retried ones are read here: `Delivered` leaves them out, and counts each event as it came first.
    let mut again = 0;
    tick(&db).await;
    let batch = db.text("select pgq.next_batch('q', 'c')").await;
    again += db
        .text(&format!(
            "select count(*) from pgq.get_batch_events({batch}) where ev_retry = 1"
        ))
        .await
        .parse::<usize>()
        .unwrap();
    delivered.read(&db).await;
    assert!(retried > 0);
    assert_eq!(again, retried, "each retried event came again");
    delivered.assert_is(committed);
    let (below, above) = (
        db.text(&format!(
            "select count(*) from pgq.event_template where ev_txid < {boundary}"
        ))
        .await,
        db.text(&format!(
            "select count(*) from pgq.event_template where ev_txid > {boundary}"
        ))
        .await,
    );
    println!("{boundary}: {i} transactions, events below {below}, above {above}, {retried} retried");
    assert!(below != "0" && above != "0", "written on both sides");
    for _ in 0..6 {
        tick(&db).await;
        delivered.read(&db).await;
        rotate(&db).await;
    }
    assert_eq!(
        db.text("select count(*) from pgq.event_template").await,
        "0",
        "rotated away"
    );
}

#[tokio::test]
async fn ids_beyond_two_to_the_31_and_to_the_32() {
    let cluster = Cluster::start(
        "xids",
        &[
            "-o",
            "pgcascade.ticker=off",
            "-o",
            "autovacuum=off",
            "-o",
            "full_page_writes=off",
        ],
    );
    let db = queue(&cluster, "x", &[]).await;
    let (mut delivered, mut committed) = (Delivered::default(), Vec::new());
    db.run("select pgq.insert_event('q', 't', 'early')").await;
    committed.push("early".to_owned());
    tick(&db).await;
    delivered.read(&db).await;
    drop(db);
    // No database may be older than half the circle, so it takes steps. What is in the cluster is frozen at each.
    let mut oldest = 0;
    for boundary in [1 << 31, 1 << 32, (1 << 32) + (1 << 31)] {
        while boundary - oldest > 1_500_000_000 {
            oldest += 1_000_000_000;
            drop(jump(&cluster, oldest).await);
        }
        let db = jump(&cluster, boundary - 100).await;
        cross(&cluster, db, boundary, &mut delivered, &mut committed).await;
        oldest = boundary;
    }
}
