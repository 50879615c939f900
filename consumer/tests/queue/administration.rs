//! What administrators of PgQ do by UPDATE, while the background worker runs.

use crate::cluster::eventually;
use crate::delivered::Delivered;
use crate::{SHARED, queue};

/// Settings of a queue take effect for sessions that wrote before, and for the worker, without a restart.
#[tokio::test]
async fn updates_of_pgq_queue_take_effect_at_once() {
    let db = queue(&SHARED, "updates", &[]).await;
    let writer = SHARED.connect("updates").await;
    let mut delivered = Delivered::default();
    let mut committed = vec!["first".to_owned()];
    writer.run("select pgq.insert_event('q', 't', 'first')").await;
    delivered.read_until(&db, &committed).await;

    db.run("update pgq.queue set queue_per_tx_limit = 2").await;
    let error = writer
        .try_text("select pgq.insert_event('q', 't', i::text) from generate_series(1, 3) i")
        .await
        .unwrap_err();
    assert_eq!(
        error.as_db_error().unwrap().message(),
        "Queue 'q' allows max 2 events from one TX"
    );
    // Savepoints do not go round the limit, and what they took back counts.
    let error = writer
        .client
        .batch_execute(
            "begin; savepoint a; select pgq.insert_event('q', 't', '1'); rollback to a; select pgq.insert_event('q', 't', '2');
             savepoint b; select pgq.insert_event('q', 't', '3'); commit",
        )
        .await;
    writer.run("rollback").await;
    assert!(error.is_err());
    writer
        .run("select pgq.insert_event('q', 't', 'two ' || i) from generate_series(1, 2) i")
        .await;
    committed.extend(["two 1", "two 2"].map(str::to_owned));
    db.run("update pgq.queue set queue_per_tx_limit = null, queue_ticker_paused = true")
        .await;
    let last = "select max(tick_id) from pgq.tick";
    let error = db.try_text("select pgq.ticker('q')").await.unwrap_err();
    assert_eq!(
        error.as_db_error().unwrap().message(),
        "Ticker has been paused for this queue"
    );
    let before = db.text(last).await;
    writer.run("select pgq.insert_event('q', 't', 'paused')").await;
    committed.push("paused".to_owned());
    // The worker has looked at this database after the pause when it ticked another queue of it.
    db.run(
        "select pgq.create_queue('other'); update pgq.queue set queue_ticker_max_lag = '0' where queue_name = 'other'",
    )
    .await;
    db.run("select pgq.insert_event('other', 't', 'd')").await;
    eventually("a tick of the other queue", async || {
        db.text("select count(*) > 1 from pgq.tick join pgq.queue on queue_id = tick_queue where queue_name = 'other'")
            .await
            == "t"
    })
    .await;
    assert_eq!(
        db.text("select max(tick_id) from pgq.tick where tick_queue = 1").await,
        before
    );
    db.run("update pgq.queue set queue_ticker_paused = false").await;
    delivered.read_until(&db, &committed).await;

    // Only sessions that replicate may write to a queue that is closed, and they see that it is.
    db.run("update pgq.queue set queue_disable_insert = true").await;
    let insert = "select pgq.insert_event('q', 't', 'replica') is not null";
    assert!(writer.try_text(insert).await.is_err());
    writer.run("set session_replication_role = replica").await;
    assert_eq!(writer.text(insert).await, "t");
    committed.push("replica".to_owned());
    delivered.read_until(&db, &committed).await;
}

/// A position set by UPDATE is where the consumer goes on: what lies between comes again, and rotation keeps it.
#[tokio::test]
async fn a_subscription_moved_by_update_goes_on_there() {
    let db = queue(&SHARED, "moved", &["pgcascade.ticker = off"]).await;
    db.run("update pgq.queue set queue_rotation_period = '1 hour'").await;
    for i in 0..5 {
        db.run(&format!("select pgq.insert_event('q', 't', '{i}')")).await;
        crate::tick(&db).await;
    }
    let mut delivered = Delivered::default();
    delivered.read(&db).await;
    assert_eq!(delivered.events, ["0", "1", "2", "3", "4"]);
    let batch = db.text("select pgq.next_batch('q', 'c')").await;
    assert_eq!(batch, "<null>");
    db.run("update pgq.subscription set sub_last_tick = 3, sub_batch = null, sub_next_tick = null")
        .await;
    let mut again = Delivered::default();
    again.read(&db).await;
    assert_eq!(again.events, ["2", "3", "4"]);
    // A tick that does not exist is an error of next_batch and of the rotation, not an empty batch.
    db.run("update pgq.subscription set sub_last_tick = 1000; update pgq.queue set queue_rotation_period = '0'")
        .await;
    for call in ["pgq.next_batch('q', 'c')", "pgq.maint_rotate_tables_step1('q')"] {
        let error = db.try_text(&format!("select {call}")).await.unwrap_err();
        assert!(error.as_db_error().unwrap().message().contains("tick 1000"), "{call}");
    }
}
