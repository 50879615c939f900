//! Queues dropped and created again while they are written, ticked, rotated and read.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::cluster::{Cluster, eventually};
use crate::delivered::Delivered;
use crate::queue;

/// Writers get a clear error or their event lands; consumers likewise. No process dies, nothing is left of a dropped queue,
/// and another queue goes on as if nothing happened, with the same ticker.
#[tokio::test]
async fn queues_come_and_go_under_load() {
    let cluster = Cluster::start(
        "drops",
        &["-o", "pgcascade.maint_interval=1", "-o", "deadlock_timeout=100ms"],
    );
    let db = queue(&cluster, "drops", &[]).await;
    db.run("create table captured (v text); update pgq.queue set queue_ticker_idle_period = '1 minute'")
        .await;
    let ticker =
        "select pid from pg_stat_activity where backend_type = 'pgcascade ticker' and datname = current_database()";
    let (mut delivered, mut committed) = (Delivered::default(), vec!["first".to_owned()]);
    db.run("select pgq.insert_event('q', 't', 'first')").await;
    delivered.read_until(&db, &committed).await;
    // One that came before there was an extension, to look, goes by itself.
    eventually("the ticker is alone", async || {
        db.text(ticker).await.lines().count() == 1
    })
    .await;
    let pid = db.text(ticker).await;
    let done = Arc::new(AtomicBool::new(false));
    let mut others = Vec::new();
    for n in 0..6 {
        let (done, session) = (Arc::clone(&done), cluster.connect("drops").await);
        others.push(tokio::spawn(async move {
            let statements: &[&str] = match n {
                0 => &["select pgq.insert_event('d', 't', 'x')"],
                1 => {
                    &["begin isolation level repeatable read; select 1; select pgq.insert_event('d', 't', 'x'); commit"]
                }
                2 => &["insert into captured values ('x')"],
                3 => &[
                    "select pgq.register_consumer('d', 'e')",
                    "select count(*) from pgq.next_batch('d', 'e') b, pgq.get_batch_events(b)",
                ],
                4 => &["select pgq.ticker('d')"],
                _ => &[
                    "select pgq.maint_rotate_tables_step1('d')",
                    "select pgq.maint_rotate_tables_step2()",
                    "select pgq.ticker()",
                ],
            };
            let (mut landed, mut said) = (0, BTreeSet::new());
            for statement in statements.iter().cycle() {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                match session.try_text(statement).await {
                    Ok(_) => landed += 1,
                    Err(error) => {
                        let error = error
                            .as_db_error()
                            .unwrap_or_else(|| panic!("{statement}: the session is gone: {error}"));
                        said.insert(format!("{} {}", error.code().code(), without_numbers(error.message())));
                        let _ = session.try_text("rollback").await;
                    }
                }
            }
            (statements, landed, said)
        }));
    }
    for i in 0..40 {
        db.run("select pgq.create_queue('d')").await;
        db.run(
            "update pgq.queue set queue_ticker_max_lag = '0', queue_ticker_idle_period = '0', queue_rotation_period = '0' where queue_name = 'd';
             create or replace trigger capture after insert on captured for each row execute function pgq.logutriga('d')",
        )
        .await;
        let event = format!("kept {i}");
        db.run(&format!("select pgq.insert_event('q', 't', '{event}')")).await;
        committed.push(event);
        delivered.read_until(&db, &committed).await;
        db.run("select pgq.drop_queue('d', true)").await;
    }
    done.store(true, Ordering::Relaxed);
    let mut strange = Vec::new();
    for other in others {
        let (statements, landed, said) = other.await.unwrap();
        println!("{landed} times: {statements:?}; else {said:?}");
        assert!(landed > 0, "{statements:?} never worked");
        strange.extend(said.into_iter().filter(|line| !EXPECTED.contains(&line.as_str())));
    }
    assert!(strange.is_empty(), "{strange:#?}");
    delivered.assert_is(&committed);
    // Nothing of a dropped queue is left.
    let left = "select relname from pg_class c where relnamespace = 'pgq'::regnamespace and relname ~ '^event_[0-9]' and relkind in ('r', 'S')
                   and not exists (select from pgq.queue where 'pgq.' || relname ~ ('^' || queue_data_pfx || '(_|$)'))
                union all select 'subscription' from pgq.subscription where sub_queue not in (select queue_id from pgq.queue)
                union all select 'tick' from pgq.tick where tick_queue not in (select queue_id from pgq.queue)
                union all select 'consumer ' || co_name from pgq.consumer where co_id not in (select sub_consumer from pgq.subscription) and co_name <> 'e'";
    assert_eq!(db.text(left).await, "");
    assert_eq!(db.text(ticker).await, pid, "the same ticker");
    let log = cluster.log();
    for bad in ["terminated by signal", "PANIC", "panicked", "cache lookup failed"] {
        assert!(!log.contains(bad), "{bad}: {log}");
    }
}

fn without_numbers(message: &str) -> String {
    let mut out = String::new();
    for character in message.chars() {
        if !character.is_ascii_digit() {
            out.push(character);
        } else if !out.ends_with('N') {
            out.push('N');
        }
    }
    out
}

/// All that somebody who uses a queue that is dropped just now may be told.
const EXPECTED: &[&str] = &[
    "42704 No such queue",
    "42704 no such queue",
    "42704 Event queue not created yet",
    "42704 Not subscriber to queue: d/e",
    "42704 batch not found",
    // Found the batch, and then the queue's ticks gone.
    "42704 queue number N does not have both ticks N and N",
    // Waited for the lock on a table that was gone then.
    "42P01 relation \"pgq.event_N\" does not exist",
];
