//! A database with queues, saved by the real pg_dump and loaded into the same cluster and into a younger one.
//!
//! The promise: each consumer gets exactly the events that it had not finished when the dump was made, and those written
//! after. The state that is saved is random, but every event is known by its text, and what each consumer has finished
//! is noted here on the side. The seed is printed; `RESTORE_SEED=n` runs that one again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![allow(dead_code, reason = "the other test programs use the rest of the module")]

mod cluster;
#[path = "restore/source.rs"]
mod source;

use std::collections::BTreeSet;

use cluster::{Cluster, Db, eventually};
use source::{Events, QUEUES, Random, Reader, Source, committed, events, quoted, tick};

/// Reads all consumers to the end and compares with what they were to get.
async fn drain(db: &Db, readers: &[Reader], what: &str) {
    let mut left: Vec<Events> = readers.iter().map(|reader| reader.pending.clone()).collect();
    loop {
        while db.text("select pgq.maint_retry_events()").await != "0" {}
        for queue in QUEUES {
            tick(db, queue).await;
        }
        let mut came = false;
        for (reader, left) in readers.iter().zip(&mut left) {
            for session in 0..reader.sessions() {
                while let Some(batch) = reader.next(db, session).await {
                    let mut last = 0;
                    for (id, event) in events(db, &batch).await {
                        came = true;
                        let id: i64 = id.parse().unwrap();
                        assert!(id > last, "{what}: order");
                        last = id;
                        // The cascade writes events of its own.
                        if event.0.starts_with("event ") || event.0.starts_with("id=") {
                            *left.entry(event).or_default() -= 1;
                        }
                    }
                    reader.finish(db, &batch).await;
                }
            }
        }
        if !came {
            break;
        }
    }
    for (reader, left) in readers.iter().zip(left) {
        let wrong: Vec<_> = left.iter().filter(|(_, count)| **count != 0).take(10).collect();
        assert!(
            wrong.is_empty(),
            "{what}: consumer {} of {}: lost (above 0) or doubled (below): {wrong:?}",
            reader.name,
            reader.queue
        );
    }
}

/// Writes some more, by hand and by the trigger.
async fn write_more(db: &Db, readers: &mut [Reader]) {
    for (n, queue) in QUEUES.iter().enumerate() {
        let text = format!("event after {n}");
        db.run(&format!("select pgq.insert_event({}, 't', '{text}')", quoted(queue)))
            .await;
        committed(readers, queue, &text);
    }
    db.run("insert into captured values (-1, 'after')").await;
    committed(readers, "q.one", "id=-1&v=after");
}

/// What must be the same before and after: positions, batches with their events, nodes.
async fn state(db: &Db) -> String {
    db.text(
        "select s.sub_queue, s.sub_consumer, s.sub_id, s.sub_last_tick, s.sub_batch, s.sub_next_tick,
                case when s.sub_batch is not null then
                    (select string_agg(e.ev_id || ':' || e.ev_data, ',') from pgq.get_batch_events(s.sub_batch) e) end
           from pgq.subscription s
          order by 1, 2",
    )
    .await
        + "\n"
        + &db
            .text("select ret_code, node_type, node_name, global_watermark, local_watermark from pgq_node.get_node_info('tree')")
            .await
}

/// One way to save and load.
const WAYS: [(&str, &str); 4] = [
    (
        "plain",
        "\"$PGBIN/pg_dump\" \"$from\" >\"$file\" && load -v ON_ERROR_STOP=1 -f \"$file\"",
    ),
    (
        "custom",
        "\"$PGBIN/pg_dump\" -Fc -f \"$file\" \"$from\" && restore -e \"$file\"",
    ),
    (
        "directory",
        "\"$PGBIN/pg_dump\" -Fd -j 2 -f \"$file\" \"$from\" &&
         PGOPTIONS='-c session_replication_role=replica' restore -e -j 3 \"$file\"",
    ),
    (
        "parts",
        "\"$PGBIN/pg_dump\" --schema-only \"$from\" >\"$file\" && load -v ON_ERROR_STOP=1 -f \"$file\" &&
         \"$PGBIN/pg_dump\" --data-only \"$from\" >\"$file\" &&
         PGOPTIONS='-c session_replication_role=replica' load -v ON_ERROR_STOP=1 -f \"$file\"",
    ),
];

/// Saves `from` and loads it into the new database `to` of another cluster, or the same.
fn copy(source: &Cluster, from: &str, target: &Cluster, to: &str, way: &str) {
    let file = source.file(&format!("{to}.dump"));
    let env = target.file("env");
    // In a subshell of its own, because both clusters' settings have the same names.
    let script = format!(
        "set -e
         from={from} file={file}
         load() {{ (. {env} && exec \"$PGBIN/psql\" -X -q -d {to} \"$@\" >/dev/null); }}
         restore() {{ (. {env} && exec \"$PGBIN/pg_restore\" -d {to} \"$@\"); }}
         (. {env} && \"$PGBIN/createdb\" {to})
         {way}"
    );
    source.shell(&script);
}

async fn random_source(cluster: &Cluster, database: &str, seed: u64) -> Source {
    let mut random = Random(seed);
    let mut source = Source::new(cluster, database).await;
    for _ in 0..250 {
        source.step(&mut random).await;
    }
    // The dump is made while something is in progress: it is not in it.
    if source.late_events.is_none() {
        let text = source.text();
        source
            .late
            .run(&format!("begin; select pgq.insert_event('q.one', 't', '{text}')"))
            .await;
        source.late_events = Some(Vec::new());
    }
    // And something younger than that is committed.
    let text = source.text();
    source
        .db
        .run(&format!("select pgq.insert_event('q.one', 't', '{text}')"))
        .await;
    source.committed("q.one", &text);
    source
}

fn seeds() -> Vec<u64> {
    match std::env::var("RESTORE_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => vec![u64::from(std::process::id()), 2],
    }
}

/// Uses up transaction ids.
async fn age(db: &Db, transactions: u32) {
    db.run(&format!(
        "do $$ begin for i in 1..{transactions} loop perform txid_current(); commit; end loop; end $$"
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn into_a_younger_cluster() {
    const SAID: &str =
        "could not tick queue q.one: Invalid PgQ state: queue \"q.one\" was restored from another cluster: ";
    let old = Cluster::start("restore-old", &["-o", "pgcascade.ticker=off"]);
    let young = Cluster::start("restore-young", &[]);
    // What the tickers said of such queues: which transaction ids they have, and which the cluster had.
    let causes = || -> Vec<String> {
        let log = young.log();
        log.lines()
            .filter_map(|line| Some(line.split_once(SAID)?.1.to_owned()))
            .collect()
    };
    age(&old.connect("postgres").await, 30_000).await;
    for (round, seed) in seeds().into_iter().enumerate() {
        println!("seed {seed}");
        let source = random_source(&old, &format!("source_{round}"), seed).await;
        let before = state(&source.db).await;
        for (way, commands) in WAYS {
            let database = format!("{way}_{round}");
            let what = format!("seed {seed}, {way}");
            let said = causes().len();
            copy(&old, &source.database, &young, &database, commands);
            let db = young.connect(&database).await;
            assert_eq!(state(&db).await, before, "{what}: as it was saved");

            // Named by the ticker in the log, and by whoever writes.
            eventually("the ticker names the queue", || async { causes().len() > said }).await;
            for statement in [
                "select pgq.insert_event('q.one', 't', 'refused')",
                "insert into captured values (-2, 'refused')",
                "select pgq.current_event_table('q.one')",
            ] {
                let error = db.try_text(statement).await.expect_err(statement);
                let message = error.as_db_error().expect("of the server").message().to_owned();
                assert_eq!(
                    message,
                    "queue 'q.one' was restored from a dump and takes no events yet"
                );
            }

            assert_eq!(db.text("select pgcascade.mend_restored()").await, "3", "{what}");
            assert_eq!(state(&db).await, before, "{what}: mended");
            // It was the root on another server, which may still be there.
            let error = db.try_text("select pgq.insert_event('tree', 't', 'refused')").await;
            let message = error
                .expect_err("a second root")
                .as_db_error()
                .expect("of the server")
                .message()
                .to_owned();
            assert!(
                message.contains("promoted outside takeover") || message.contains("disallowed"),
                "{message}"
            );
            db.run("select pgcascade.confirm_promotion('tree')").await;
            let mut readers = source.readers.clone();
            write_more(&db, &mut readers).await;
            drain(&db, &readers, &what).await;
            // While several sessions load it, it may come to have younger ones.
            let all = causes();
            let distinct: BTreeSet<&String> = all.iter().collect();
            assert_eq!(distinct.len(), all.len(), "{what}: said once, {all:?}");
        }
        // The same where it came from: what was noted on the side is right.
        source.late.run("rollback").await;
        drain(&source.db, &source.readers, "the source").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn into_the_same_cluster() {
    let cluster = Cluster::start("restore-same", &["-o", "pgcascade.ticker=off"]);
    for (round, seed) in seeds().into_iter().enumerate() {
        println!("seed {seed}");
        let mut source = random_source(&cluster, &format!("source_{round}"), seed).await;
        let before = state(&source.db).await;

        // A transaction that is open now has an id that ticks of the source have passed: it could write into the copy.
        let (way, commands) = WAYS[round % WAYS.len()];
        let database = format!("open_{round}");
        copy(&cluster, &source.database, &cluster, &database, commands);
        let db = cluster.connect(&database).await;
        let error = db.try_text("select pgq.ticker('q.one')").await.expect_err("not ticked");
        let message = error.as_db_error().expect("of the server").message().to_owned();
        assert!(
            message.starts_with("Invalid PgQ state: queue \"q.one\" was restored"),
            "{message}"
        );
        assert_eq!(db.text("select pgcascade.mend_restored()").await, "3");
        assert_eq!(state(&db).await, before);
        let mut readers = source.readers.clone();
        write_more(&db, &mut readers).await;
        drain(&db, &readers, &format!("seed {seed}, {way}, mended")).await;

        // Without one nothing has to be done.
        source.late.run("rollback").await;
        source.late_events = None;
        for (way, commands) in WAYS {
            let database = format!("{way}_{round}");
            copy(&cluster, &source.database, &cluster, &database, commands);
            let db = cluster.connect(&database).await;
            db.run("select pgq.ticker()").await;
            assert_eq!(db.text("select pgcascade.mend_restored()").await, "0");
            assert_eq!(state(&db).await, before);
            let mut readers = source.readers.clone();
            write_more(&db, &mut readers).await;
            drain(&db, &readers, &format!("seed {seed}, {way}")).await;
        }
        drain(&source.db, &source.readers, "the source").await;
    }
}

/// The ticker of the new database looks at queues while they are being loaded, and takes the mark off by itself.
#[tokio::test(flavor = "multi_thread")]
async fn the_ticker_waits_for_the_restore() {
    let cluster = Cluster::start("restore-ticker", &[]);
    let mut source = Source::new(&cluster, "source").await;
    for n in 0..20 {
        let text = source.text();
        source
            .db
            .run(&format!("select pgq.insert_event('q.one', 't', '{text}')"))
            .await;
        source.committed("q.one", &text);
        if n % 5 == 0 {
            tick(&source.db, "q.one").await;
        }
    }
    copy(&cluster, "source", &cluster, "first", WAYS[0].1);
    // A restore that stops between the queues and their ticks.
    let schema = cluster.file("halves");
    cluster.shell(&format!(
        ". {env}
         \"$PGBIN/pg_dump\" source >{schema}
         \"$PGBIN/createdb\" halves
         sed '/^COPY pgq.retry_queue/,$d' {schema} | \"$PGBIN/psql\" -X -q -v ON_ERROR_STOP=1 -d halves >/dev/null",
        env = cluster.file("env")
    ));
    let said = "could not tick queue q.one: queue \"q.one\" is being restored: it has no ticks yet";
    eventually("the ticker says that it waits", || async {
        cluster.log().contains(said)
    })
    .await;
    cluster.shell(&format!(
        ". {env}
         sed -n '/^COPY pgq.retry_queue/,$p' {schema} | grep -v '^.unrestrict' |
             \"$PGBIN/psql\" -X -q -v ON_ERROR_STOP=1 -d halves >/dev/null",
        env = cluster.file("env")
    ));
    for database in ["first", "halves"] {
        let db = cluster.connect(database).await;
        eventually("the mark is gone", || async {
            db.text("select count(*) from pgcascade.restored_queue").await == "0"
        })
        .await;
        let mut readers = source.readers.clone();
        write_more(&db, &mut readers).await;
        drain(&db, &readers, database).await;
    }
}

/// A restore that leaves out the table that says which queues have packs: nobody gets a pack as one event meanwhile, and the
/// queue takes no events until it is said.
#[tokio::test(flavor = "multi_thread")]
async fn packs_that_nothing_says_are_not_taken_for_events() {
    const WITHOUT: &str = "\"$PGBIN/pg_dump\" -Fc -f \"$file\" \"$from\"
        \"$PGBIN/pg_restore\" -l \"$file\" | grep -v ' TABLE DATA pgcascade packed_queue ' >\"$file.list\"
        restore -e -L \"$file.list\" \"$file\"";
    const SAID: &str =
        "queue \"q.one\" is being restored: it has packs, and pgcascade.packed_queue has no row of it yet";
    let old = Cluster::start("restore-packs", &["-o", "pgcascade.ticker=off"]);
    let young = Cluster::start("restore-unsaid", &["-o", "pgcascade.ticker=off"]);
    age(&old.connect("postgres").await, 10_000).await;
    let mut source = Source::new(&old, "source").await;
    source
        .db
        .run("insert into captured select i, 'x' from generate_series(1, 50) i")
        .await;
    for id in 1..=50 {
        source.committed("q.one", &format!("id={id}&v=x"));
    }
    tick(&source.db, "q.one").await;
    let batch = source.readers[0].next(&source.db, 0).await.expect("a batch");
    let before = state(&source.db).await;
    let is_said = async |db: &Db, statement: &str| {
        let error = db.try_text(statement).await.expect_err(statement);
        assert_eq!(error.as_db_error().expect("of the server").message(), SAID);
    };
    let mend = "select pgcascade.mend_restored()";
    let new_root = "select pgcascade.mend_restored(); select pgcascade.confirm_promotion('tree')";
    let tick = "select pgq.ticker('q.one')";
    for (target, refused, ready) in [(&old, tick, tick), (&young, mend, new_root)] {
        copy(&old, "source", target, "unsaid", WITHOUT);
        let db = target.connect("unsaid").await;
        assert_eq!(state(&db).await, before);
        assert_eq!(events(&db, &batch).await.len(), 50);
        is_said(&db, refused).await;
        let error = db.try_text("insert into captured values (-2, 'refused')").await;
        assert!(error.is_err(), "a queue that waits takes an event");
        db.run("select pgcascade.pack_events('q.one', true)").await;
        assert_eq!(events(&db, &batch).await.len(), 50);
        db.run(ready).await;
        assert_eq!(db.text("select count(*) from pgcascade.restored_queue").await, "0");
        let mut readers = source.readers.clone();
        write_more(&db, &mut readers).await;
        drain(&db, &readers, refused).await;
    }
}

/// More ticks than the young cluster had transactions: some go, no event does.
#[tokio::test(flavor = "multi_thread")]
async fn more_ticks_than_transactions() {
    const TICKS: i64 = 3_000;
    let old = Cluster::start("restore-ticks", &["-o", "pgcascade.ticker=off"]);
    let young = Cluster::start("restore-few", &["-o", "pgcascade.ticker=off"]);
    let source = old.connect("postgres").await;
    source
        .run("create extension pgcascade; select pgq.create_queue('q'); select pgq.register_consumer('q', 'behind')")
        .await;
    source
        .run(&format!(
            "do $$ begin for i in 1..{TICKS} loop
                 perform pgq.insert_event('q', 't', i::text); commit;
                 perform pgq.force_tick('q'), pgq.ticker('q'); commit;
                 if i = 1000 then perform pgq.register_consumer('q', 'middle'), pgq.next_batch('q', 'middle'); end if;
             end loop; end $$"
        ))
        .await;
    source
        .run("select pgq.next_batch('q', 'middle'); select pgq.insert_event('q', 't', 'no tick')")
        .await;
    assert_eq!(
        source.text("select count(*) from pgq.tick").await,
        (TICKS + 1).to_string()
    );
    copy(&old, "postgres", &young, "few", WAYS[1].1);
    let db = young.connect("few").await;
    assert_eq!(db.text("select pgcascade.mend_restored()").await, "1");
    let kept: i64 = db.text("select count(*) from pgq.tick").await.parse().unwrap();
    let room: i64 = db.text("select txid_current()").await.parse().unwrap();
    assert!(kept < room && kept > room / 2, "{kept} of {room}");
    let largest = db
        .text("select max(tick_id - before) from (select tick_id, lag(tick_id) over (order by tick_id) as before from pgq.tick) t")
        .await;
    assert!(
        largest.parse::<i64>().unwrap() <= 2 * TICKS / kept + 1,
        "evenly: {largest}"
    );
    tick(&db, "q").await;
    for (consumer, from) in [("behind", 1), ("middle", 1001)] {
        let mut came = Vec::new();
        loop {
            let batch = db.text(&format!("select pgq.next_batch('q', '{consumer}')")).await;
            if batch == "<null>" {
                break;
            }
            came.extend(events(&db, &batch).await.into_iter().map(|(_, event)| event.0));
            db.run(&format!("select pgq.finish_batch({batch})")).await;
        }
        let mut wanted: Vec<String> = (from..=TICKS).map(|n| n.to_string()).collect();
        wanted.push("no tick".to_owned());
        assert_eq!(came, wanted, "{consumer}");
    }
}
