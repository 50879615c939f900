//! Prepared transactions with events in them: across rotations, across restarts of every kind. They are in progress as long as
//! nobody ends them; their events are kept, are delivered once, and who blocks a rotation is named by its global id.

use crate::cluster::Cluster;
use crate::delivered::Delivered;
use crate::{queue, rotate, tick};

/// No other transaction holds back a rotation.
const ALONE: &[&str] = &["-o", "pgcascade.ticker=off", "-o", "autovacuum=off"];

#[tokio::test]
async fn prepared_transactions_survive_rotations_and_restarts() {
    let cluster = Cluster::start("prepared", ALONE);
    let mut db = queue(&cluster, "p", &[]).await;
    db.run(
        "create table captured (v text primary key);
         create trigger capture after insert or update or delete on captured for each row execute function pgq.logutriga('q')",
    )
    .await;
    let mut committed = vec!["v=before".to_owned()];
    db.run("insert into captured values ('before')").await;
    tick(&db).await;
    for (name, level) in [("keep", "read committed"), ("drop", "serializable")] {
        db.run(&format!(
            "begin isolation level {level};
             insert into captured values ('{name}-1');
             savepoint s; insert into captured values ('lost'); rollback to s;
             select pgq.insert_event('q', 't', 'v={name} 2');
             prepare transaction '{name}, it''s'"
        ))
        .await;
    }
    let mut delivered = Delivered::default();
    let blockers = "select blocker, name from pgcascade.rotation_blockers()";
    let mut current = String::new();
    for (i, stop) in ["", "fast", "immediate", "kill -9"].iter().enumerate() {
        match *stop {
            "" => {}
            "kill -9" => cluster.crash(),
            mode => cluster.restart(mode),
        }
        db = cluster.connect("p").await;
        // Rotations go on to the table that nobody wrote to yet, and no further.
        for round in 0..4 {
            let event = format!("v={i} {round}");
            db.run(&format!("select pgq.insert_event('q', 't', '{event}')")).await;
            committed.push(event);
            tick(&db).await;
            delivered.read(&db).await;
            current = rotate(&db).await;
        }
        delivered.assert_is(&committed);
        assert_eq!(current, "1", "after '{stop}'");
        assert_eq!(
            db.text(blockers).await,
            "transaction|drop, it's\ntransaction|keep, it's",
            "after '{stop}'"
        );
    }
    db.run("commit prepared 'keep, it''s'").await;
    committed.extend(["v=keep-1", "v=keep 2"].map(str::to_owned));
    tick(&db).await;
    delivered.read(&db).await;
    delivered.assert_is(&committed);
    assert_eq!(db.text(blockers).await, "transaction|drop, it's");
    cluster.restart("immediate");
    db = cluster.connect("p").await;
    db.run("rollback prepared 'drop, it''s'").await;
    for _ in 0..6 {
        tick(&db).await;
        delivered.read(&db).await;
        rotate(&db).await;
    }
    tick(&db).await;
    delivered.read(&db).await;
    delivered.assert_is(&committed);
    assert_eq!(db.text(blockers).await, "");
    assert_eq!(
        db.text("select count(*) from pgq.event_template").await,
        "0",
        "everything was rotated away"
    );
}

/// A consumer may prepare as well: an open batch, a finished one, and a tick, in a transaction that a crash leaves open.
#[tokio::test]
async fn a_batch_that_was_finished_in_a_prepared_transaction_stays_where_it_is() {
    let cluster = Cluster::start("prepared-batch", ALONE);
    let mut db = queue(&cluster, "p", &[]).await;
    db.run("select pgq.insert_event('q', 't', 'one')").await;
    tick(&db).await;
    let open = "select pgq.next_batch('q', 'c')";
    let batch = db.text(open).await;
    db.run(&format!(
        "begin; select pgq.finish_batch({batch}); prepare transaction 'finishing'"
    ))
    .await;
    cluster.crash();
    db = cluster.connect("p").await;
    // Whether it is finished is not decided yet: it is still the batch, and another one who finishes it has to wait.
    assert_eq!(db.text(open).await, batch);
    db.run("set lock_timeout = '100ms'").await;
    let error = db
        .try_text(&format!("select pgq.finish_batch({batch})"))
        .await
        .unwrap_err();
    assert_eq!(error.code().unwrap().code(), "55P03");
    db.run("commit prepared 'finishing'").await;
    assert_eq!(db.text(open).await, "<null>");
    assert_eq!(db.text(&format!("select pgq.finish_batch({batch})")).await, "0");
}

/// A rotation that is prepared and rolled back: the session that made it, and others, go on with the table that is current then.
#[tokio::test]
async fn a_rotation_that_is_prepared_and_rolled_back_is_forgotten_by_the_session_that_made_it() {
    let cluster = Cluster::start("prepared-rotation", ALONE);
    let db = queue(&cluster, "p", &[]).await;
    let other = cluster.connect("p").await;
    let event = |name: &str| format!("select pgq.insert_event('q', 't', '{name}')");
    // The others are locked by the rotation.
    let current = "select ev_data from pgq.event_1_0 order by ev_id";
    db.run(&event("before")).await;
    tick(&db).await;
    let mut delivered = Delivered::default();
    delivered.read(&db).await;
    db.run("begin").await;
    db.run("select pgq.maint_rotate_tables_step1('q')").await;
    assert_eq!(db.text("select queue_cur_table from pgq.queue").await, "1");
    db.run(&event("inside")).await;
    db.run("prepare transaction 'rotation'").await;
    db.run(&event("prepared")).await;
    other.run(&event("prepared, other")).await;
    assert_eq!(db.text(current).await, "before\nprepared\nprepared, other");
    db.run("rollback prepared 'rotation'").await;
    db.run(&event("after")).await;
    other.run(&event("after, other")).await;
    assert_eq!(
        db.text(current).await,
        "before\nprepared\nprepared, other\nafter\nafter, other"
    );
}
