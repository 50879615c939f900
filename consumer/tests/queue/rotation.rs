//! Rotation under load while pg_dump holds its locks, and a queue that is written by COPY.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::SinkExt;

use crate::cluster::{Cluster, eventually};
use crate::delivered::Delivered;
use crate::queue;

/// Dumps one after the other of a database whose worker rotates as fast as it can, with writers of every kind: all dumps
/// succeed, all events are delivered once, and in the end all tables are empty.
#[tokio::test]
async fn dumps_rotations_and_writers_do_not_disturb_each_other() {
    let cluster = Arc::new(Cluster::start("dumps", &["-o", "pgcascade.maint_interval=1"]));
    let db = queue(&cluster, "dumps", &[]).await;
    db.run(
        "create table captured (v text primary key);
         create trigger capture after insert or update or delete on captured for each row execute function pgq.logutriga('q')",
    )
    .await;
    let done = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for n in 0..3 {
        let (done, session) = (Arc::clone(&done), cluster.connect("dumps").await);
        writers.push(tokio::spawn(async move {
            let mut committed = Vec::new();
            let mut i = 0;
            while !done.load(Ordering::Relaxed) {
                i += 1;
                let event = format!("v={n}-{i}");
                match n {
                    0 => {
                        session
                            .run(&format!("select pgq.insert_event('q', 't', '{event}')"))
                            .await
                    }
                    1 => session.run(&format!("insert into captured values ('{n}-{i}')")).await,
                    _ => {
                        // Into whatever table was named, also when a rotation comes between: a client may have kept the name.
                        let table = session.text("select pgq.current_event_table('q')").await;
                        let copy = format!("copy {table} (ev_time, ev_type, ev_data) from stdin");
                        let sink = session.client.copy_in::<_, Bytes>(&copy).await.unwrap();
                        let mut sink = std::pin::pin!(sink);
                        sink.send(Bytes::from(format!("now\tt\t{event}\n"))).await.unwrap();
                        sink.close().await.unwrap();
                    }
                }
                committed.push(event);
            }
            committed
        }));
    }
    let folder = tempfile::tempdir().unwrap();
    let dumps = {
        let (cluster, done, to) = (Arc::clone(&cluster), Arc::clone(&done), folder.path().join("dump"));
        tokio::task::spawn_blocking(move || {
            for _ in 0..5 {
                // pg_dump fails if its locks or its reads fail; `run` panics then.
                cluster.run(&[
                    "pg_dump",
                    "--dbname=dumps",
                    "--format=custom",
                    &format!("--file={}.custom", to.display()),
                ]);
            }
            cluster.run(&["pg_dump", "--dbname=dumps", &format!("--file={}", to.display())]);
            done.store(true, Ordering::Relaxed);
        })
    };
    let mut delivered = Delivered::default();
    let mut tables = std::collections::HashSet::new();
    while !dumps.is_finished() || tables.len() < 3 {
        delivered.read(&db).await;
        tables.insert(db.text("select queue_cur_table from pgq.queue").await);
    }
    dumps.await.unwrap();
    let mut committed = Vec::new();
    for writer in writers {
        committed.extend(writer.await.unwrap());
    }
    delivered.read_until(&db, &committed).await;
    println!(
        "{} events in {} batches during 6 dumps",
        committed.len(),
        delivered.batches
    );
    assert!(!cluster.log().contains("deadlock detected"), "{}", cluster.log());
    let delivered = tokio::sync::Mutex::new(delivered);
    eventually("all tables are rotated away", async || {
        delivered.lock().await.read(&db).await;
        db.text("select count(*) from pgq.event_template").await == "0"
    })
    .await;
}
