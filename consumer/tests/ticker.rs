//! The background workers of the extension: where a ticker runs, when it ticks, and what it survives. Real clusters, real
//! terminations. Each test has a database of its own in a cluster that all share, or a cluster of its own if it disturbs others.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![allow(dead_code, reason = "the other test program uses the rest of the module")]

mod cluster;

use std::sync::LazyLock;

use cluster::{Cluster, Db, eventually};

static SHARED: LazyLock<Cluster> = LazyLock::new(|| {
    Cluster::start(
        "ticker",
        &["-o", "pgcascade.maint_interval=1", "-o", "pgcascade.retry_interval=1"],
    )
});

/// Installing creates roles, which belong to the cluster: two sessions must not do it at once.
static INSTALL: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn database(cluster: &Cluster, name: &str) -> Db {
    let postgres = cluster.connect("postgres").await;
    postgres.run(&format!("create database {name}")).await;
    cluster.connect(name).await
}

async fn install(db: &Db) {
    let _alone = INSTALL.lock().await;
    db.run("create extension pgcascade").await;
}

/// A database with the extension and a queue `q` that is ticked at once.
async fn queue(cluster: &Cluster, name: &str) -> Db {
    let db = database(cluster, name).await;
    install(&db).await;
    db.run("select pgq.create_queue('q'); select pgq.set_queue_config('q', 'ticker_max_lag', '0')")
        .await;
    db
}

/// The process ids of a database's tickers.
async fn tickers(db: &Db, database: &str) -> Vec<String> {
    let pids = db
        .text(&format!(
            "select pid from pg_stat_activity where backend_type = 'pgcascade ticker' and datname = '{database}'"
        ))
        .await;
    pids.lines().map(str::to_owned).collect()
}

async fn until_tickers(db: &Db, database: &str, number: usize) {
    eventually(&format!("{number} tickers in {database}"), || async {
        tickers(db, database).await.len() == number
    })
    .await;
}

/// Waits until some tick of the queue sees every event that is committed. (Not until a tick is as young as now: transaction
/// ids are drawn in all databases of the cluster, and a queue without new events is not ticked for their sake.)
async fn until_ticked(db: &Db, queue: &str) {
    eventually("the tick", || async {
        db.text(&format!(
            "select not exists (
                select from pgq.event_template e
                  join pg_inherits i on i.inhrelid = e.tableoid
                  join pgq.queue q on i.inhparent = q.queue_data_pfx::regclass
                 where q.queue_name = '{queue}'
                   and not exists (select from pgq.tick t where t.tick_queue = q.queue_id
                                      and txid_visible_in_snapshot(e.ev_txid, t.tick_snapshot)))"
        ))
        .await
            == "t"
    })
    .await;
}

#[tokio::test]
async fn a_ticker_comes_with_the_extension_and_goes_with_it() {
    let db = database(&SHARED, "comes_and_goes").await;
    // One may come to look whether it is wanted.
    until_tickers(&db, "comes_and_goes", 0).await;
    install(&db).await;
    until_tickers(&db, "comes_and_goes", 1).await;
    db.run("drop extension pgcascade").await;
    until_tickers(&db, "comes_and_goes", 0).await;
    install(&db).await;
    until_tickers(&db, "comes_and_goes", 1).await;
}

#[tokio::test]
async fn a_rolled_back_installation_starts_nothing() {
    let db = database(&SHARED, "rolled_back").await;
    {
        let _alone = INSTALL.lock().await;
        db.run("begin; create extension pgcascade; rollback").await;
    }
    install(&db).await;
    until_tickers(&db, "rolled_back", 1).await;
}

#[tokio::test]
async fn the_ticker_can_be_kept_out_of_a_database() {
    let db = queue(&SHARED, "kept_out").await;
    until_tickers(&db, "kept_out", 1).await;
    db.run("alter database kept_out set pgcascade.ticker = off").await;
    until_tickers(&db, "kept_out", 0).await;
    // Nothing ticks now but what is called by hand, with exact tick ids.
    let before = db.text("select max(tick_id) from pgq.tick").await;
    db.run("select pgq.insert_event('q', 't', 'd')").await;
    let tick = db.text("select pgq.ticker('q')").await;
    assert_eq!(tick.parse::<i64>().unwrap(), before.parse::<i64>().unwrap() + 1);
    db.run("alter database kept_out reset pgcascade.ticker; select pg_reload_conf()")
        .await;
    until_tickers(&db, "kept_out", 1).await;

    // Also while it starts, and has the settings of before already.
    let off = "alter database kept_out set pgcascade.ticker = off";
    db.run(off).await;
    until_tickers(&db, "kept_out", 0).await;
    let other = SHARED.connect("kept_out").await;
    other.run("begin; drop extension pgcascade cascade").await;
    db.run("alter database kept_out reset pgcascade.ticker; select pg_reload_conf()")
        .await;
    eventually("a ticker waits to begin", || async {
        let waits = "select count(*) from pg_stat_activity where backend_type = 'pgcascade ticker' and datname = 'kept_out' and wait_event_type = 'Lock'";
        db.text(waits).await == "1"
    })
    .await;
    db.run(off).await;
    other.run("rollback").await;
    until_tickers(&db, "kept_out", 0).await;
}

#[tokio::test]
async fn commits_are_ticked() {
    let db = queue(&SHARED, "commits").await;
    until_tickers(&db, "commits", 1).await;
    db.run("select pgq.register_consumer('q', 'c')").await;
    for _ in 0..20 {
        db.run("select pgq.insert_event('q', 't', 'd')").await;
        until_ticked(&db, "q").await;
    }
    let mut events = 0;
    loop {
        let batch = db.text("select pgq.next_batch('q', 'c')").await;
        if batch == "<null>" {
            break;
        }
        events += db
            .text(&format!("select count(*) from pgq.get_batch_events({batch})"))
            .await
            .parse::<i32>()
            .unwrap();
        db.run(&format!("select pgq.finish_batch({batch})")).await;
    }
    assert_eq!(events, 20);
}

/// The id was drawn before a tick, the commit came after it: the event sequence does not move again, and an idle queue's next
/// tick may be a minute away.
#[tokio::test]
async fn an_event_committed_after_the_tick_that_counted_it_is_ticked_too() {
    let db = queue(&SHARED, "late").await;
    let other = SHARED.connect("late").await;
    db.run("select pgq.set_queue_config('q', 'ticker_idle_period', '1 hour')")
        .await;
    db.run("select pgq.set_queue_config('q', 'ticker_max_lag', '1 millisecond')")
        .await;
    until_tickers(&db, "late", 1).await;
    // A long gap between the last two ticks keeps idle ticks away.
    db.run("update pgq.tick set tick_time = tick_time - interval '1 day'")
        .await;
    other.run("begin; select pgq.insert_event('q', 'late', 'd')").await;
    db.run("select pgq.insert_event('q', 'early', 'd')").await;
    until_ticked(&db, "q").await;
    other.run("commit").await;
    let late = db.text("select ev_txid from pgq.event_1 where ev_type = 'late'").await;
    eventually("the tick that sees the late one", || async {
        db.text(&format!(
            "select exists (select from pgq.tick where txid_visible_in_snapshot({late}, tick_snapshot))"
        ))
        .await
            == "t"
    })
    .await;
}

#[tokio::test]
async fn a_queue_that_fails_does_not_stop_another_and_is_reported_once() {
    let cluster = Cluster::start("broken", &[]);
    let db = queue(&cluster, "broken").await;
    db.run("select pgq.create_queue('bad'); select pgq.set_queue_config('bad', 'ticker_max_lag', '0')")
        .await;
    db.run("alter sequence pgq.event_2_id_seq cache 10; select nextval('pgq.event_2_id_seq')")
        .await;
    until_tickers(&db, "broken", 1).await;
    let complaint = "could not tick queue bad: event sequence pgq.event_2_id_seq does not issue event ids in order";
    eventually("the complaint", || async { cluster.log().contains(complaint) }).await;
    for _ in 0..5 {
        db.run("select pgq.insert_event('q', 't', 'd')").await;
        until_ticked(&db, "q").await;
    }
    assert_eq!(cluster.log().matches(complaint).count(), 1, "one line for one cause");
    let errors = "select queue_name, ticker_error, ticker_error_time < now() from pgcascade.queue_stats where ticker_error is not null";
    let shown = db.text(errors).await;
    let expected = "bad|event sequence pgq.event_2_id_seq does not issue event ids in order (SQLSTATE ";
    assert!(shown.starts_with(expected) && shown.ends_with("|t"), "{shown}");
    db.run("alter sequence pgq.event_2_id_seq cache 1").await;
    eventually("the all-clear", || async {
        cluster.log().contains("tick queue bad: works again")
    })
    .await;
    assert_eq!(db.text(errors).await, "", "not after the next tick");
}

#[tokio::test]
async fn there_are_never_two_tickers_even_if_the_launcher_dies() {
    let cluster = Cluster::start("launcher", &[]);
    let db = queue(&cluster, "one").await;
    // By its first tick those have gone that came before there was an extension, to look.
    db.run("select pgq.insert_event('q', 't', 'd')").await;
    until_ticked(&db, "q").await;
    until_tickers(&db, "one", 1).await;
    let ticker = tickers(&db, "one").await;
    for _ in 0..3 {
        let old = db
            .text("select pid from pg_stat_activity where backend_type = 'pgcascade launcher'")
            .await;
        db.run(&format!("select pg_terminate_backend({old}, 10000)")).await;
        eventually("another launcher", || async {
            let new = db
                .text("select pid from pg_stat_activity where backend_type = 'pgcascade launcher'")
                .await;
            !new.is_empty() && new != old
        })
        .await;
        // The new launcher has looked at all databases once it has started a ticker in a new one.
        let name = format!("after_{old}");
        let new = database(&cluster, &name).await;
        install(&new).await;
        until_tickers(&db, &name, 1).await;
        assert_eq!(tickers(&db, "one").await, ticker, "the old ticker goes on, alone");
    }
    db.run(&format!("select pg_terminate_backend({}, 10000)", ticker[0]))
        .await;
    eventually("a new ticker", || async {
        let now = tickers(&db, "one").await;
        now.len() == 1 && now != ticker
    })
    .await;
}

#[tokio::test]
async fn a_database_can_be_dropped_by_force() {
    let cluster = Cluster::start("dropped", &[]);
    let db = queue(&cluster, "victim").await;
    until_tickers(&db, "victim", 1).await;
    cluster.drop_database("victim").await;
    assert!(
        !cluster.log().contains("database \"victim\" does not exist"),
        "nobody tried to come back"
    );
    // The name can be used again at once.
    let db = queue(&cluster, "victim").await;
    until_tickers(&db, "victim", 1).await;
}

#[tokio::test]
async fn an_idle_ticker_assigns_no_transaction_id() {
    let cluster = Cluster::start("idle", &["-o", "autovacuum=off"]);
    let db = queue(&cluster, "idle").await;
    db.run("select pgq.set_queue_config('q', 'ticker_idle_period', '1 hour')")
        .await;
    db.run("select pgq.set_queue_config('q', 'ticker_max_lag', '30 minutes')")
        .await;
    until_tickers(&db, "idle", 1).await;
    // The second tick of a queue is always due; from then on there is nothing to do for fifteen minutes.
    eventually("the second tick", || async {
        db.text("select count(*) > 1 from pgq.tick").await == "t"
    })
    .await;
    let commits = "select xact_commit from pg_stat_database where datname = 'idle'";
    let postgres = cluster.connect("postgres").await;
    drop(db);
    let looks = async || postgres.text(commits).await.parse::<i64>().unwrap();
    let first = looks().await;
    eventually("the ticker's first looks", || async { looks().await > first + 2 }).await;
    let (before, from) = (
        postgres
            .text("select txid_snapshot_xmax(txid_current_snapshot())")
            .await,
        looks().await,
    );
    eventually("more looks", || async { looks().await > from + 6 }).await;
    assert_eq!(
        postgres
            .text("select txid_snapshot_xmax(txid_current_snapshot())")
            .await,
        before
    );
}

/// Has consumer c retry the only event there is after so many seconds. Batches before it may be empty.
async fn retry(db: &Db, seconds: u32) {
    loop {
        let batch = db.text("select pgq.next_batch('q', 'c')").await;
        let events =
            format!("select count(pgq.event_retry({batch}, ev_id, {seconds})) from pgq.get_batch_events({batch})");
        let count = db.text(&events).await;
        db.run(&format!("select pgq.finish_batch({batch})")).await;
        if count == "1" {
            return;
        }
    }
}

#[tokio::test]
async fn the_ticker_rotates_and_retries() {
    let db = queue(&SHARED, "maintained").await;
    db.run("select pgq.register_consumer('q', 'c')").await;
    db.run("select pgq.insert_event('q', 'again', 'd')").await;
    until_ticked(&db, "q").await;
    retry(&db, 0).await;
    eventually("the event again", || async {
        db.text("select count(*) from pgq.event_template where ev_retry = 1")
            .await
            == "1"
    })
    .await;
    // Nobody needs the events any more: three rotations empty all tables.
    db.run("select pgq.unregister_consumer('q', 'c')").await;
    db.run("select pgq.set_queue_config('q', 'rotation_period', '0')").await;
    eventually("empty event tables", || async {
        db.text("select count(*) from pgq.event_template").await == "0"
    })
    .await;
}

/// The interval between rounds is an hour here: only what falls due makes the ticker look earlier.
#[tokio::test]
async fn retried_and_delayed_events_are_delivered_when_they_are_due() {
    let cluster = Cluster::start("due", &["-o", "pgcascade.retry_interval=3600"]);
    let db = queue(&cluster, "due").await;
    until_tickers(&db, "due", 1).await;
    db.run("select pgq.register_consumer('q', 'c')").await;
    db.run("select pgq.insert_event('q', 'again', 'd')").await;
    until_ticked(&db, "q").await;
    retry(&db, 1).await;
    db.run("select pgcascade.insert_event_at('q', now() + interval '2 seconds', 'later', n::text) from generate_series(1, 3000) n")
        .await;
    // Due long before those above, and told by a commit.
    db.run("select pgcascade.insert_event_at('q', now(), 'at once', 'd')")
        .await;
    for (kind, count) in [("at once", "1"), ("again", "2"), ("later", "3000")] {
        eventually(&format!("{kind} delivered and ticked"), || async {
            db.text(&format!(
                "select count(*) from pgq.event_template e
                  where e.ev_type = '{kind}' and exists (
                            select from pgq.tick t where txid_visible_in_snapshot(e.ev_txid, t.tick_snapshot))"
            ))
            .await
                == count
        })
        .await;
    }
    assert_eq!(
        db.text(
            "select count(*) from pgq.tick t join pgq.event_template e on txid_visible_in_snapshot(e.ev_txid, t.tick_snapshot)
              where e.ev_type = 'later' and t.tick_time < e.ev_time"
        )
        .await,
        "0",
        "none in a tick before its time"
    );
}

#[tokio::test]
async fn functions_of_extra_maint_run_without_the_rights_of_the_superuser() {
    let db = queue(&SHARED, "extra_maint").await;
    db.run(
        "create table ran (who text, queue text);
         grant insert on ran to pgq_admin;
         create function public.extra(queue text) returns int language plpgsql as $$
         begin insert into public.ran values (current_user, queue); return 1; end $$;
         update pgq.queue set queue_extra_maint = '{public.extra}'",
    )
    .await;
    eventually("the call", || async {
        db.text("select count(*) > 0 from ran").await == "t"
    })
    .await;
    assert_eq!(db.text("select distinct who, queue from ran").await, "pgq_admin|q");
}

#[tokio::test]
async fn a_standby_does_not_tick_and_a_promoted_one_does() {
    let primary = Cluster::start("primary", &[]);
    let db = queue(&primary, "promoted").await;
    until_tickers(&db, "promoted", 1).await;
    let standby = primary.standby("standby");
    let replica = standby.connect("promoted").await;
    assert_eq!(replica.text("select pg_is_in_recovery()").await, "t");
    assert_eq!(
        replica
            .text("select count(*) from pg_stat_activity where backend_type like 'pgcascade%'")
            .await,
        "0"
    );
    primary.kill();
    replica.run("select pg_promote(true, 600)").await;
    until_tickers(&replica, "promoted", 1).await;
    replica.run("select pgq.insert_event('q', 't', 'd')").await;
    until_ticked(&replica, "q").await;
}

#[tokio::test]
async fn a_crash_of_the_server_loses_no_ticker() {
    let cluster = Cluster::start("crash", &[]);
    let db = queue(&cluster, "crash").await;
    until_tickers(&db, "crash", 1).await;
    cluster.crash();
    let db = cluster.connect("crash").await;
    until_tickers(&db, "crash", 1).await;
    db.run("select pgq.insert_event('q', 't', 'd')").await;
    until_ticked(&db, "q").await;
}

#[tokio::test]
async fn without_preloading_all_but_the_ticker_works() {
    let cluster = Cluster::start("not_preloaded", &["--no-preload"]);
    let db = database(&cluster, "by_hand").await;
    let said = cluster.psql("by_hand", "create extension pgcascade");
    let notice = "NOTICE:  pgcascade is not in shared_preload_libraries, so no background worker ticks";
    assert!(said.contains(notice), "{said}");
    db.run(
        "create table t (id int primary key);
         select pgq.create_queue('q');
         select pgq.register_consumer('q', 'c');
         create trigger capture after insert on t for each row execute function pgq.logutriga('q');
         insert into t values (7);
         select pgq.force_tick('q')",
    )
    .await;
    assert_eq!(db.text("select pgq.ticker()").await, "1");
    let batch = db.text("select pgq.next_batch('q', 'c')").await;
    assert_eq!(
        db.text(&format!("select ev_type, ev_data from pgq.get_batch_events({batch})"))
            .await,
        "I:id|id=7"
    );
    assert_eq!(db.text(&format!("select pgq.finish_batch({batch})")).await, "1");
    db.run("select pgq.maint_rotate_tables_step1('q')").await;
    db.run("select pgq.maint_rotate_tables_step2()").await;
    // The library comes with the first trigger, in the middle of its statement: the rows are there when that ends all the same.
    for first in [
        "insert into t values (8), (9)",
        "do $$ begin insert into t values (8), (9); end $$",
    ] {
        let fresh = cluster.connect("by_hand").await;
        fresh.run(&format!("begin; {first}")).await;
        let events = "select count(*) from pgq.event_1 where ev_txid = txid_current()";
        assert_eq!(fresh.text(events).await, "2", "{first}");
        fresh.run("insert into t values (10), (11), (12)").await;
        assert_eq!(fresh.text(events).await, "5", "{first}");
        fresh.run("rollback").await;
    }
}
