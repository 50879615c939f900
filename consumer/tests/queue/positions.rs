//! The table of positions is written anew while somebody holds vacuum back (sql/compact.sql): by the background worker, without being
//! asked, and whole or not at all if the server is killed meanwhile.

use crate::cluster::{Cluster, Db, eventually};
use crate::{SHARED, queue, tick};

const POSITIONS: &str = "select s::text from pgq.subscription s order by sub_consumer";
const PAGES: &str = "select pg_relation_size('pgq.subscription') / 8192 <= 4";
const FILE: &str = "select pg_relation_filenode('pgq.subscription')";

/// Makes the table of positions grow by some 20 pages, as consumers do in time.
async fn grow(db: &Db) {
    db.run("do $$ begin for i in 1..2000 loop update pgq.subscription set sub_active = '2026-01-01'; commit; end loop; end $$")
        .await;
}

/// A session with a snapshot from now, which has not read the table: that would keep it from being written anew.
async fn hold(cluster: &Cluster, database: &str) -> Db {
    let holder = cluster.connect(database).await;
    holder.run("begin isolation level repeatable read").await;
    holder.text("select txid_current_snapshot()").await;
    holder
}

#[tokio::test]
async fn positions_are_compacted_under_a_held_snapshot() {
    let db = queue(&SHARED, "positions", &[]).await;
    let holder = hold(&SHARED, "positions").await;
    let file = db.text(FILE).await;
    grow(&db).await;
    eventually("the table of positions is small again", || async {
        db.text(PAGES).await == "t"
    })
    .await;
    assert_ne!(db.text(FILE).await, file, "somebody else made it small");
    // As small as that, with the old versions that the holder's snapshot still shows gone.
    let now = db.text(POSITIONS).await;
    assert!(now.contains("2026-01-01"), "{now}");
    assert_eq!(holder.text(POSITIONS).await, now);
}

#[tokio::test]
async fn a_kill_amid_compaction_loses_no_position() {
    let cluster = Cluster::start("positions", &["-o", "pgcascade.ticker=off"]);
    let mut db = queue(&cluster, "positions", &[]).await;
    db.run("select pgq.register_consumer('q', 'late'), pgq.insert_event('q', 't', 'first')")
        .await;
    tick(&db).await;
    let batch = db.text("select pgq.next_batch('q', 'c')").await;
    let holder = hold(&cluster, "positions").await;
    grow(&db).await;
    let positions = db.text(POSITIONS).await;

    // Emptied, written anew, on disk, and not committed.
    db.run("begin").await;
    assert_eq!(db.text("select pgcascade.compact_positions()").await, "1");
    assert_eq!(db.text(POSITIONS).await, positions);
    cluster.connect("postgres").await.run("checkpoint").await;
    cluster.crash();
    db = cluster.connect("positions").await;
    assert_eq!(db.text(POSITIONS).await, positions, "after a kill before the commit");
    assert_eq!(db.text(PAGES).await, "f");
    drop(holder);

    // Committed, and killed at once.
    let holder = hold(&cluster, "positions").await;
    assert_eq!(db.text("select pgcascade.compact_positions()").await, "1");
    cluster.crash();
    db = cluster.connect("positions").await;
    assert_eq!(db.text(POSITIONS).await, positions, "after a kill after the commit");
    assert_eq!(db.text(PAGES).await, "t");
    drop(holder);

    // The indexes too: the consumer finds its open batch.
    assert_eq!(db.text("select pgq.next_batch('q', 'c')").await, batch);
    assert_eq!(
        db.text(&format!("select ev_data from pgq.get_batch_events({batch})"))
            .await,
        "first"
    );
    assert_eq!(db.text(&format!("select pgq.finish_batch({batch})")).await, "1");
}
