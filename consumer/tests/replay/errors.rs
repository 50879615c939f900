//! Errors of every class, made for real: what is tried again and shown meanwhile, what parks a table, what stops.

use serde_json::Value;

use crate::beside;
use crate::cluster::{Pair, eventually, pair};

/// Schema pgcascade_replay of an older version: everything stays, what is new is added, once.
#[tokio::test]
async fn an_older_state_is_brought_up_to_date() {
    let pair = pair().await;
    let first = concat!(env!("CARGO_MANIFEST_DIR"), "/src/replay/sql/state.sql");
    pair.subscriber.run(&std::fs::read_to_string(first).unwrap()).await;
    pair.subscriber
        .run(
            "insert into pgcascade_replay.position (consumer, queue, provider_identity) values ('older', 'q', '1:2:3')",
        )
        .await;
    pair.provider
        .run("create table t (id int primary key); insert into t values (1); create table u (id int primary key); select pgq.create_queue('q')")
        .await;
    let version = "select substring(obj_description('pgcascade_replay'::regnamespace, 'pg_namespace') from 'version (\\d+)')::int";
    assert_eq!(pair.subscriber.text(version).await, "1");
    // Two consumers at once: one of them takes the steps.
    let (provider, subscriber) = (
        pair.provider_cluster.conninfo(&pair.database),
        pair.subscriber_cluster.conninfo(&pair.database),
    );
    let mut other = std::process::Command::new(env!("CARGO_BIN_EXE_consumer"))
        .args(["replay", "-q", "--provider", &provider, "--subscriber", &subscriber])
        .args([
            "--queue",
            "q",
            "--consumer",
            "d",
            "--table",
            "u",
            "--create",
            "--until-caught-up",
        ])
        .spawn()
        .unwrap();
    pair.catch_up(&["--table", "t", "--create"]).await;
    assert!(other.wait().unwrap().success());
    pair.assert_equal("t").await;
    assert_ne!(pair.subscriber.text(version).await, "1");
    assert_eq!(
        pair.subscriber
            .text("select consumer, tick is null from pgcascade_replay.position order by 1")
            .await,
        "c|f\nd|f\nolder|t"
    );
    // And one of a version that is not known yet.
    pair.subscriber
        .run("comment on schema pgcascade_replay is 'of the future (version 1000)'")
        .await;
    let output = pair
        .replay()
        .args(&["--table", "t", "--until-caught-up"])
        .output()
        .await;
    assert_eq!(output.code(), Some(1), "{}", output.stderr);
    assert!(
        output.stderr.contains("is of version 1000") && output.stderr.contains("install that version"),
        "{}",
        output.stderr
    );
    pair.drop().await;
}

/// What `consumer status --json` says of the consumer.
fn status(pair: &Pair) -> Value {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_consumer"))
        .args(["status", "--json"])
        .args(["--provider", &pair.provider_cluster.conninfo(&pair.database)])
        .args(["--subscriber", &pair.subscriber_cluster.conninfo(&pair.database)])
        .output()
        .unwrap();
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    status["consumers"][0].clone()
}

/// What `consumer table` says.
fn table(pair: &Pair, arguments: &[&str]) -> String {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_consumer"))
        .args(["table", arguments[0]])
        .args(["--provider", &pair.provider_cluster.conninfo(&pair.database)])
        .args(["--subscriber", &pair.subscriber_cluster.conninfo(&pair.database)])
        .args(["--queue", "q", "--consumer", "c"])
        .args(&arguments[1..])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The state of each table, and whether there is an error.
async fn states(pair: &Pair) -> String {
    pair.subscriber
        .text(
            "select provider_table, replace(state, 'catching-up', 'ok'), error is not null
               from pgcascade_replay.table_state order by 1",
        )
        .await
}

/// Waits until status has an error with this SQLSTATE and a next attempt.
async fn retrying(pair: &Pair, sqlstate: &str) {
    let sqlstate = format!("SQLSTATE {sqlstate}");
    eventually(&format!("status shows {sqlstate}"), async || {
        let failure = &status(pair)["failure"];
        failure["error"].as_str().is_some_and(|error| error.contains(&sqlstate))
            && failure["next_attempt"].is_string()
            && failure["attempts"].as_i64() >= Some(1)
    })
    .await;
}

/// Waits until the provider's last change is there, and nothing is said of failures any more.
async fn in_order(pair: &Pair) {
    let state = "select md5(string_agg(t::text, ' ' order by id)) from t";
    eventually("replay is in order again", async || {
        pair.provider.text(state).await == pair.subscriber.text(state).await && status(pair)["failure"].is_null()
    })
    .await;
}

#[tokio::test]
async fn what_is_tried_again_is_shown_meanwhile() {
    let pair = pair().await;
    pair.provider
        .run("create table t (id int primary key, n int); insert into t select i, 0 from generate_series(1, 100) i")
        .await;
    pair.catch_up(&["--table", "t", "--create"]).await;
    assert!(status(&pair)["failure"].is_null());
    let (subscriber, other) = (&pair.subscriber, pair.subscriber_cluster.connect(&pair.database).await);
    let set = async |what: &str| {
        subscriber
            .run(&format!("alter database {} {what}", pair.database))
            .await
    };
    // Instead of the consumer's own patience with locks: here they are given up when the test says so.
    set("set lock_timeout = '1h'").await;
    let running = pair.replay().args(&["--table", "t", "--retry-max", "1"]).spawn();
    running.until_it_says("streaming").await;
    let sessions =
        "from pg_stat_activity where datname = current_database() and application_name like 'pgcascade replay %'";
    let waiting = format!("select count(*) {sessions} and wait_event_type = 'Lock'");
    let until_it_waits = async || {
        eventually("replay waits for a lock", async || {
            subscriber.text(&waiting).await == "1"
        })
        .await;
    };

    // A deadlock: each has what the other wants. Replay is the first to wait for one row, and gets it; it is the last to wait for what it
    // cannot get, so it is who finds that out.
    let third = pair.subscriber_cluster.connect(&pair.database).await;
    third.run("begin; update t set n = -1 where id = 1").await;
    other
        .run("set deadlock_timeout = '1h'; begin; update t set n = -1 where id = 2")
        .await;
    pair.provider
        .run("begin; update t set n = 1 where id = 1; update t set n = 1 where id = 2; commit")
        .await;
    until_it_waits().await;
    let pid = other.text("select pg_backend_pid()").await;
    let waits = format!("select wait_event_type from pg_stat_activity where pid = {pid}");
    tokio::join!(other.run("update t set n = -1 where id = 1"), async {
        eventually("the other one waits behind it", async || {
            subscriber.text(&waits).await == "Lock"
        })
        .await;
        third.run("rollback").await;
    });
    running.until_it_says("SQLSTATE 40P01").await;
    retrying(&pair, "40P01").await;
    other.run("rollback").await;
    in_order(&pair).await;

    // Somebody cancels what the consumer does.
    other.run("begin; lock table t").await;
    pair.provider.run("update t set n = 2 where id = 3").await;
    until_it_waits().await;
    subscriber
        .text(&format!("select pg_cancel_backend(pid) {sessions}"))
        .await;
    retrying(&pair, "57014").await;
    other.run("rollback").await;
    in_order(&pair).await;

    // A conflict between transactions, which one that is serializable may be told of, and so whoever waits for it.
    subscriber
        .run(
            "create table refusing (why text); insert into refusing values ('could not serialize access');
             create function refuse() returns trigger language plpgsql as $$ declare r record; begin
                 for r in select why from public.refusing loop raise '%', r.why using errcode = 'serialization_failure'; end loop;
                 return new; end $$;
             create trigger refuse before update on t for each row execute function refuse(); alter table t enable always trigger refuse",
        )
        .await;
    pair.provider.run("update t set n = 4 where id = 5").await;
    retrying(&pair, "40001").await;
    subscriber.run("truncate refusing").await;
    in_order(&pair).await;
    subscriber.run("drop trigger refuse on t").await;

    // A lock that cannot be had; the limit is the database's own, which sessions from now on have.
    set("set lock_timeout = '100ms'").await;
    other.run("begin; lock table t").await;
    subscriber
        .text(&format!("select pg_terminate_backend(pid) {sessions}"))
        .await;
    pair.provider.run("update t set n = 3 where id = 4").await;
    retrying(&pair, "55P03").await;
    let attempts = || status(&pair)["failure"]["attempts"].as_i64();
    let first = attempts();
    eventually("it keeps trying", async || attempts() > first).await;
    other.run("rollback").await;
    in_order(&pair).await;

    let output = running.stop().await;
    assert!(!output.stderr.contains("ERROR"), "{}", output.stderr);
    pair.drop().await;
}

/// Tables each of which breaks in a way of its own, among one that does not.
#[tokio::test]
async fn tables_that_break_are_parked_and_the_others_go_on() {
    let pair = pair().await;
    pair.provider
        .run(
            "create table fine (id int primary key, n int); create table checked (id int primary key, n int);
             create table columned (id int primary key, n int); create table conflicting (id int primary key, n int);
             create table deferred (id int primary key, n int); create table dropped (id int primary key, n int);
             insert into fine select i, 0 from generate_series(1, 100) i;
             insert into checked table fine; insert into columned table fine;
             insert into conflicting table fine; insert into deferred table fine; insert into dropped table fine",
        )
        .await;
    let park = ["--table", "*", "--on-error", "park"];
    pair.catch_up(&["--table", "*", "--create"]).await;
    pair.provider.run("update fine set n = 1").await;
    pair.catch_up(&["--table", "*"]).await;
    pair.subscriber
        .run(
            "alter table checked add check (n < 5); delete from conflicting where id = 50;
             alter table deferred add foreign key (n) references conflicting deferrable initially deferred not valid;
             do $$ declare t record; begin
                 for t in select tgname from pg_trigger where tgisinternal and tgrelid = 'deferred'::regclass loop
                     execute format('alter table deferred enable always trigger %I', t.tgname);
                 end loop; end $$",
        )
        .await;
    let all = ["checked", "columned", "conflicting", "deferred", "dropped", "fine"];
    let states_are = |broken: &[&str]| {
        all.iter()
            .map(|table| {
                let state = if broken.contains(table) { "broken|t" } else { "ok|f" };
                format!("{table}|{state}")
            })
            .collect::<Vec<_>>()
            .join("\n")
    };
    let sum = "select sum(n) from fine";
    let tick = "select tick from pgcascade_replay.position";

    // By default it stops, and that stays visible.
    pair.provider
        .run(
            "begin; update fine set n = 2; update checked set n = n + 1; update checked set n = 7 where id = 7; commit",
        )
        .await;
    let output = pair.replay().args(&["--table", "*"]).output().await;
    assert_eq!(output.code(), Some(1), "{}", output.stderr);
    let found = status(&pair);
    assert!(
        found["failure"]["error"]
            .as_str()
            .unwrap()
            .contains("updates row (id)=(7) of table public.checked")
            && found["failure"]["next_attempt"].is_null(),
        "{found}"
    );
    assert_ne!(found["tables"][0]["state"], "broken");

    // Killed before the commit nothing is parked, killed after it everything is done.
    let before = pair.subscriber.text(tick).await;
    for (point, broken, fine) in [
        ("before_commit", &[][..], "100"),
        ("after_commit", &["checked"][..], "200"),
    ] {
        let output = pair
            .replay()
            .args(&park)
            .failpoints(&format!("{point}=kill"))
            .output()
            .await;
        assert_eq!(output.code(), None, "{}", output.stderr);
        assert_eq!(pair.subscriber.text(sum).await, fine, "{point}");
        assert_eq!(pair.subscriber.text(tick).await == before, broken.is_empty(), "{point}");
        let found = pair
            .subscriber
            .text("select string_agg(provider_table, ' ') from pgcascade_replay.table_state where state = 'broken'")
            .await;
        assert_eq!(found == "checked", !broken.is_empty(), "{point}: {found}");
    }
    let sum_of_checked = "select sum(n) from checked";
    let checked = pair.subscriber.text(sum_of_checked).await;
    assert_eq!(checked, "0", "nothing of the batch is in it");

    // It is not forgotten, whatever the flag says now; and the others break while it streams.
    let output = pair.catch_up(&["--table", "*"]).await;
    assert!(
        output.stderr.contains("broken, so its events are left out") && output.stderr.contains("public.checked"),
        "{}",
        output.stderr
    );
    assert_eq!(states(&pair).await, states_are(&["checked"]));
    assert!(status(&pair)["failure"].is_null());
    let running = pair.replay().args(&park).spawn();
    running.until_it_says("streaming").await;
    pair.provider.run("alter table columned add more int").await;
    pair.provider
        .run(
            "begin; update fine set n = 3; update checked set n = 1; update columned set n = 1;
             update conflicting set n = 1; update deferred set n = 1000 where id = 9; update dropped set n = 1; commit;
             update fine set n = 4; update columned set n = 2",
        )
        .await;
    eventually("the last change arrives", async || {
        pair.subscriber.text(sum).await == "400"
    })
    .await;
    running.stop().await;
    let broken = ["checked", "columned", "conflicting", "deferred"];
    assert_eq!(states(&pair).await, states_are(&broken));
    pair.assert_equal("fine").await;
    pair.assert_equal("dropped").await;
    assert_eq!(pair.subscriber.text(sum_of_checked).await, checked);
    let errors = status(&pair)["tables"]
        .as_array()
        .unwrap()
        .iter()
        .map(|table| format!("{}: {}", table["table"], table["error"]))
        .collect::<Vec<_>>()
        .join("\n");
    for text in [
        "updates row (id)=(7) of table public.checked",
        "column \\\"more\\\"",
        "updates row (id)=(50) of table public.conflicting, and the subscriber has no such row",
        "violates foreign key constraint",
    ] {
        assert!(errors.contains(text), "{text}: {errors}");
    }

    // One that is gone when replay starts; a new one in its place would be empty.
    pair.subscriber.run("drop table dropped").await;
    let output = pair
        .replay()
        .args(&["--table", "*", "--create", "--until-caught-up"])
        .output()
        .await;
    assert_eq!(output.code(), Some(1), "{}", output.stderr);
    assert!(
        output
            .stderr
            .contains("table public.dropped does not exist on the subscriber any more"),
        "{}",
        output.stderr
    );
    pair.provider
        .run("update dropped set n = 5; update fine set n = 5")
        .await;
    pair.catch_up(&park).await;
    assert_eq!(states(&pair).await, states_are(&all[..5]));
    assert_eq!(pair.subscriber.text(sum).await, "500");

    // What brings them back.
    pair.subscriber
        .run(
            "alter table checked drop constraint checked_n_check; alter table columned add more int;
             drop table deferred",
        )
        .await;
    let listed = table(&pair, &["list"]);
    assert!(
        listed.contains("public.checked      broken       ERROR: could not apply event"),
        "{listed}"
    );
    assert_eq!(table(&pair, &["missing"]).matches("  broken").count(), 5);
    table(&pair, &["resync", "checked", "columned", "conflicting", "d*"]);
    pair.catch_up(&["--table", "*", "--create"]).await;
    pair.provider
        .run("update fine set n = 6; update checked set n = 6; update columned set n = 6, more = 1")
        .await;
    pair.catch_up(&["--table", "*"]).await;
    for table in all {
        pair.assert_equal(table).await;
    }
    assert_eq!(states(&pair).await, states_are(&[]));
    pair.drop().await;
}

/// A table breaks while it is copied, by its kept events and by its rows; and comes back while the others go on.
#[tokio::test]
async fn a_table_that_is_copied_is_parked_and_copied_again() {
    let pair = pair().await;
    let (running, _) = beside::begun(&pair, "").await;
    running.kill().await;
    pair.subscriber.run("alter table big add check (v <> 'again')").await;
    let go_on = pair.subscriber_cluster.file(&format!("go-on-again-{}", pair.database));
    let running = pair
        .replay()
        .args(&["--on-error", "park", "--table", "small", "--table", "big"])
        .failpoints(&format!("in_copy=pause:{go_on}"))
        .spawn();
    beside::it_reads(&running).await;
    beside::change(&pair).await;
    std::fs::write(go_on, "").unwrap();
    let wait_for = async |wanted: &str| {
        eventually(&format!("the states are {wanted}"), async || {
            states(&pair).await.replace('\n', " ") == wanted
        })
        .await;
    };
    wait_for("big|broken|t small|ok|f").await;
    assert_eq!(
        pair.subscriber
            .text("select count(*) from pgcascade_replay.held_event")
            .await,
        "0"
    );
    let error = |text: &str| {
        let found = status(&pair)["tables"][0]["error"].to_string();
        assert!(found.contains(text) && found.contains("23514"), "{found}");
    };
    error("inserts row (id)=(30) of table public.big");

    // Now by a row that is copied.
    table(&pair, &["resync", "big"]);
    running.until_it_says("the set of tables was changed").await;
    eventually("the other table goes on", async || {
        let found = status(&pair);
        found["tables"][0]["state"] == "broken" && !found["tables"][0]["error"].to_string().contains("event")
    })
    .await;
    error("copy");
    pair.provider.run("insert into small values (3)").await;
    eventually("the other table goes on", async || {
        pair.subscriber.text("select count(*) from small").await == "3"
    })
    .await;

    pair.subscriber.run("alter table big drop constraint big_v_check").await;
    table(&pair, &["resync", "big"]);
    wait_for("big|ok|f small|ok|f").await;
    running.stop().await;
    pair.provider.run("update big set v = 'later' where id < 900").await;
    pair.catch_up(&["--table", "small", "--table", "big"]).await;
    pair.assert_equal("big").await;
    pair.assert_equal("small").await;
    pair.drop().await;
}

#[tokio::test]
async fn on_error_is_stop_or_park() {
    let pair = pair().await;
    pair.provider.run("create table t (id int primary key)").await;
    let output = pair
        .replay()
        .args(&["--table", "t", "--on-error", "skip"])
        .output()
        .await;
    assert_eq!(output.code(), Some(2), "{}", output.stderr);
    assert!(
        output.stderr.contains("--on-error is neither stop nor park"),
        "{}",
        output.stderr
    );
    // What is new and does not fit is a mistake in the configuration, not a table that broke.
    let output = pair
        .replay()
        .args(&["--table", "t", "--on-error", "park"])
        .output()
        .await;
    assert_eq!(output.code(), Some(1), "{}", output.stderr);
    assert!(
        output
            .stderr
            .contains("table public.t does not exist on the subscriber"),
        "{}",
        output.stderr
    );
    pair.drop().await;
}
