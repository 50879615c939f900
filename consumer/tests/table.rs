//! `consumer table`, the real binary, while replay runs and while it does not.
#![allow(missing_docs, unreachable_pub, dead_code, reason = "a test binary has no interface")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod cluster;
#[path = "table/execute.rs"]
mod execute;
#[path = "table/filters.rs"]
mod filters;
#[path = "table/inheritance.rs"]
mod inheritance;
#[path = "table/partitions.rs"]
mod partitions;

use std::process::{Command, Stdio};

use cluster::{Pair, eventually, pair, pause_ticks};

/// What a run of `consumer table` wrote.
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs `consumer table VERB ...` for queue q and consumer c.
fn table(pair: &Pair, arguments: &[&str]) -> Said {
    table_of(pair, "c", arguments)
}

fn table_of(pair: &Pair, consumer: &str, arguments: &[&str]) -> Said {
    said(
        Command::new(env!("CARGO_BIN_EXE_consumer"))
            .args(["table", arguments[0]])
            .args(["--provider", &pair.provider_cluster.conninfo(&pair.database)])
            .args(["--subscriber", &pair.subscriber_cluster.conninfo(&pair.database)])
            .args(["--queue", "q", "--consumer", consumer])
            .args(&arguments[1..]),
    )
}

/// Runs the command to its end.
fn said(command: &mut Command) -> Said {
    let output = command.env_remove("RUST_LOG").stdin(Stdio::null()).output().unwrap();
    Said {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap().replace("\\\"", "\""),
    }
}

#[track_caller]
fn done(pair: &Pair, arguments: &[&str]) -> String {
    done_of(pair, "c", arguments)
}

#[track_caller]
fn done_of(pair: &Pair, consumer: &str, arguments: &[&str]) -> String {
    let said = table_of(pair, consumer, arguments);
    assert_eq!(said.code, Some(0), "{arguments:?}: {}", said.stderr);
    said.stdout
}

#[track_caller]
fn refused(pair: &Pair, arguments: &[&str], texts: &[&str]) {
    refused_to(pair, "c", arguments, texts);
}

#[track_caller]
fn refused_to(pair: &Pair, consumer: &str, arguments: &[&str], texts: &[&str]) {
    let said = table_of(pair, consumer, arguments);
    assert_eq!(said.code, Some(1), "{arguments:?}: {}", said.stderr);
    for text in texts {
        assert!(
            said.stderr.contains(text),
            "{arguments:?}: \"{text}\" is not in: {}",
            said.stderr
        );
    }
}

const STATES: &str = "select string_agg(provider_table || ' ' || state, ', ' order by provider_table collate \"C\")
                        from pgcascade_replay.table_state where consumer = 'c'";

/// Waits until the states are these. What makes a table ok is a tick that shows all transactions of before the end of its copy,
/// other tests' among them.
async fn until_states(pair: &Pair, wanted: &str) {
    eventually(&format!("the states are {wanted}"), async || {
        pair.tick().await;
        pair.subscriber.text(STATES).await == wanted
    })
    .await;
}

/// Waits until replay has had every tick, and has seen that the set of tables is the same: then it waits, too.
async fn until_at_rest(pair: &Pair) {
    let last = pair.provider.text("select max(tick_id) from pgq.tick").await;
    let rests = format!(
        "select (select tick from pgcascade_replay.position) = {last} and state = 'idle' and query like 'select revision from %'
           from pg_stat_activity where datname = current_database() and application_name like 'pgcascade replay %'"
    );
    eventually("replay waits for a tick", async || {
        pair.subscriber.text(&rests).await == "t"
    })
    .await;
}

const TRIGGERS: &str =
    "select string_agg(tgrelid::regclass || ' ' || tgname, ', ' order by tgrelid::regclass::text, tgname)
                          from pg_trigger where tgname like 'pgcascade_capture%'";

/// What the provider keeps for `consumer execute` is the provider's.
#[tokio::test]
async fn the_end_that_refuses_is_named() {
    let pair = pair().await;
    let p = &pair.provider;
    p.run("create table t (id int primary key)").await;
    pair.catch_up(&["--table", "t", "--create"]).await;
    let role = format!("clerk_{}", pair.database);
    p.run(&format!(
        "create role {role} login password 'secret' in role pgq_writer, pgq_reader;
         grant set on parameter session_replication_role to {role}"
    ))
    .await;
    let path = pair.provider_cluster.file(&format!("{}.sql", pair.database));
    std::fs::write(&path, "select 1").unwrap();
    let refused = said(
        Command::new(env!("CARGO_BIN_EXE_consumer"))
            .args(["execute", "--queue", "q", "--provider"])
            .arg(pair.provider_cluster.conninfo_as(&pair.database, &role, "secret"))
            .arg(&path),
    );
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    let text = "could not make the schema pgcascade_replay on the provider: permission denied";
    assert!(refused.stderr.contains(text), "{}", refused.stderr);
    p.run(&format!("drop owned by {role}; drop role {role}")).await;
    pair.drop().await;
}

/// A copy ends after its table was taken out and added again: by then the events that were kept for it are gone.
#[tokio::test]
async fn a_copy_of_before_does_not_count() {
    let pair = pair().await;
    let p = &pair.provider;
    p.run("create table t (id int primary key); insert into t select generate_series(1, 100)")
        .await;
    done(&pair, &["add", "t", "--create"]);
    let go_on = pair.subscriber_cluster.file(&format!("go-on-{}", pair.database));
    let running = pair
        .replay()
        .args(&["--poll-interval", "3600"])
        .failpoints(&format!("in_copy=pause:{go_on}"))
        .spawn();
    running.until_it_says("in_copy waits").await;
    p.run("insert into t values (101)").await;
    let kept = "select count(*) from pgcascade_replay.held_event";
    eventually("the event is kept", async || pair.subscriber.text(kept).await == "1").await;
    // Without a tick replay looks at nothing.
    pause_ticks(p).await;
    until_at_rest(&pair).await;
    done(&pair, &["remove", "t", "--keep-triggers"]);
    done(&pair, &["add", "t", "--replace"]);
    assert_eq!(pair.subscriber.text(kept).await, "0");
    std::fs::write(&go_on, "").unwrap();
    running
        .until_it_says("the state of table public.t on the subscriber was changed while it was copied")
        .await;
    p.run("select pgq.set_queue_config('q', 'ticker_paused', 'false')")
        .await;
    until_states(&pair, "t ok").await;
    pair.assert_equal("t").await;
    running.stop().await;
    pair.drop().await;
}

#[tokio::test]
async fn the_set_is_changed_while_replay_runs() {
    let pair = pair().await;
    let p = &pair.provider;
    p.run(
        r#"create table a (id int primary key, v text); insert into a select i, 'a' from generate_series(1, 100) i;
           create table b (id int primary key, v text); insert into b select i, 'b' from generate_series(1, 100) i;
           create index b_v on b (v); create unique index b_both on b (v, id desc);
           create schema "Odd Na.me"; create table "Odd Na.me"."Ta,b""le" ("Ke y" int primary key);
           insert into "Odd Na.me"."Ta,b""le" values (1);
           create table keyless (v text); create view v as select 1 as one"#,
    )
    .await;

    refused(
        &pair,
        &["list"],
        &["the subscriber has no consumer \"c\" of queue \"q\""],
    );
    refused(
        &pair,
        &["add", "nowhere"],
        &["no table on the provider matches \"nowhere\""],
    );
    refused(&pair, &["add", "v"], &["public.v on the provider is a view"]);
    refused(
        &pair,
        &["add", "a"],
        &["table public.a does not exist on the subscriber", "--create"],
    );
    assert_eq!(p.text("select count(*) from pgq.queue").await, "0", "nothing was made");

    // Before replay ever ran.
    done(&pair, &["add", "a", "--create"]);
    assert_eq!(done(&pair, &["list"]), "public.a  in-copy\n");
    assert_eq!(
        p.text(TRIGGERS).await,
        "a pgcascade_capture_q, a pgcascade_capture_q_truncate"
    );
    refused(
        &pair,
        &["add", "a"],
        &["table public.a is replayed already", "consumer table resync 'public.a'"],
    );
    p.run("insert into a values (101, 'x')").await;

    let running = pair.replay().spawn();
    let states = async |wanted: &str| until_states(&pair, wanted).await;
    states("a ok").await;
    pair.assert_equal("a").await;

    // While it runs, and with other names.
    done(&pair, &["add", "b", "--create", "--rename", "archive.\"B b\""]);
    states("a ok, b ok").await;
    done(&pair, &["add", "\"Odd Na.me\".*", "--create", "--rename", "archive.*"]);
    p.run("update b set v = 'c' where id > 50; delete from b where id = 1; insert into \"Odd Na.me\".\"Ta,b\"\"le\" values (2)")
        .await;
    states("Ta,b\"le ok, a ok, b ok").await;
    let rows = "select string_agg(id || v, ',' order by id) from";
    eventually("the table with another name is equal", async || {
        pair.subscriber.text(&format!("{rows} archive.\"B b\"")).await == p.text(&format!("{rows} b")).await
    })
    .await;
    assert_eq!(
        pair.subscriber.text("select string_agg(indexdef, ';' order by indexname) from pg_indexes where schemaname = 'archive' and indexname ~ '^b_[bv]'").await,
        "CREATE UNIQUE INDEX b_both ON archive.\"B b\" USING btree (v, id DESC);CREATE INDEX b_v ON archive.\"B b\" USING btree (v)"
    );
    eventually("both rows are there", async || {
        pair.subscriber
            .text("select count(*) from archive.\"Ta,b\"\"le\"")
            .await
            == "2"
    })
    .await;
    let list = done(&pair, &["list"]);
    let line = format!("{:<22}  {:<11}  into archive.\"B b\"\n", "public.b", "ok");
    assert!(list.contains(&line), "{list}");
    refused(
        &pair,
        &["add", "keyless", "--create", "--rename", "archive.\"B b\""],
        &["table public.keyless would go into archive.\"B b\" on the subscriber, where public.b goes"],
    );
    assert_eq!(done(&pair, &["missing"]), "public.keyless  not replayed\n");
    assert_eq!(
        done(&pair, &["missing", "--json"]),
        "{\"table\":\"public.keyless\",\"state\":null,\"error\":null,\"waits_for\":null,\"waits_since\":null}\n"
    );

    // Copied again: what somebody did to the subscriber's rows is gone.
    pair.subscriber
        .run("delete from a where id < 50; update a set v = 'damaged'; insert into a values (1000, 'extra')")
        .await;
    done(&pair, &["resync", "a"]);
    eventually("it is copied again", async || {
        pair.subscriber
            .text("select count(*) from a where v in ('damaged', 'extra')")
            .await
            == "0"
    })
    .await;
    p.run("update a set v = 'y' where id = 7").await;
    eventually("the change arrives", async || {
        pair.subscriber.text("select v from a where id = 7").await == "y"
    })
    .await;
    pair.assert_equal("a").await;
    refused(
        &pair,
        &["resync", "keyless"],
        &["no table that consumer \"c\" of queue \"q\" replays matches \"keyless\""],
    );

    // Taken out.
    refused(&pair, &["remove", "b", "nowhere"], &["matches \"nowhere\""]);
    done(&pair, &["remove", "b"]);
    p.run("insert into b values (2000, 'late'); insert into a values (2000, 'late')")
        .await;
    eventually("the other table goes on", async || {
        pair.subscriber.text("select count(*) from a where id = 2000").await == "1"
    })
    .await;
    assert_eq!(
        pair.subscriber
            .text("select count(*) from archive.\"B b\" where id = 2000")
            .await,
        "0"
    );
    assert_eq!(
        p.text("select count(*) from pg_trigger where tgrelid = 'b'::regclass")
            .await,
        "0"
    );
    // Not back by itself, nor without a copy.
    refused(
        &pair,
        &["add", "b", "--rename", "archive.\"B b\""],
        &["has rows already", "--replace"],
    );
    done(&pair, &["add", "b", "--rename", "archive.\"B b\"", "--replace"]);
    states("Ta,b\"le ok, a ok, b ok").await;
    assert_eq!(
        pair.subscriber
            .text("select count(*) from archive.\"B b\" where id = 2000")
            .await,
        "1"
    );
    done(&pair, &["remove", "b", "--keep-triggers"]);
    assert_eq!(
        p.text("select count(*) from pg_trigger where tgrelid = 'b'::regclass")
            .await,
        "2"
    );
    // Another consumer of the queue may need them.
    p.run("select pgq.register_consumer('q', 'elsewhere')").await;
    done(&pair, &["add", "b", "--rename", "archive.\"B b\"", "--no-copy"]);
    let said = table(&pair, &["remove", "b"]);
    assert!(
        said.stderr
            .contains("consumer \"elsewhere\" of the queue may need them"),
        "{}",
        said.stderr
    );
    assert_eq!(
        p.text("select count(*) from pg_trigger where tgrelid = 'b'::regclass")
            .await,
        "2"
    );

    // The last ones, and everything.
    done(&pair, &["remove", "*.*"]);
    assert_eq!(done(&pair, &["list", "--json"]), "");
    running.until_it_says("the set of tables is empty").await;
    done(&pair, &["add", "--all", "--replace", "--create"]);
    states("Ta,b\"le ok, a ok, b ok, keyless ok").await;
    assert_eq!(done(&pair, &["missing"]), "");
    running.stop().await;
    pair.assert_equal("a").await;

    // --table adds at the start; what it does not name stays.
    let output = pair.catch_up(&["--table", "a"]).await;
    assert!(!output.stderr.contains("copy done"), "{}", output.stderr);
    assert_eq!(
        pair.subscriber.text(STATES).await,
        "Ta,b\"le ok, a ok, b ok, keyless ok"
    );
    pair.drop().await;
}

#[tokio::test]
async fn changes_in_the_middle_of_a_copy() {
    let pair = pair().await;
    let p = &pair.provider;
    p.run(
        "create table big (id int primary key, v text); insert into big select i, repeat('x', 100) from generate_series(1, 3000) i;
         create table small (id int primary key); insert into small values (1)",
    )
    .await;
    pair.catch_up(&["--table", "*", "--create"]).await;

    // Killed while it is copied again: readers have the old rows, the next start has the new ones.
    pair.subscriber.run("update big set v = 'old' where id <= 10").await;
    done(&pair, &["resync", "big"]);
    let killed = pair.replay().failpoints("in_copy=kill:2").output().await;
    assert_eq!(killed.code(), None, "{}", killed.stderr);
    assert_eq!(
        pair.subscriber
            .text("select count(*), count(*) filter (where v = 'old') from big")
            .await,
        "3000|10"
    );
    pair.catch_up(&[]).await;
    pair.assert_equal("big").await;

    // At a tick from after the transactions of other tests.
    eventually("the tables are ok", async || {
        pair.catch_up(&[]).await;
        pair.subscriber.text(STATES).await == "big ok, small ok"
    })
    .await;

    // In chunks.
    pair.subscriber.run("update big set v = 'old' where id <= 10").await;
    done(&pair, &["resync", "big"]);
    let chunks = ["--copy-chunk-bytes", "65536", "--jobs", "1"];
    let killed = pair
        .replay()
        .args(&chunks)
        .failpoints("after_chunk_commit=kill:2")
        .output()
        .await;
    assert_eq!(killed.code(), None, "{}", killed.stderr);
    refused(&pair, &["resync", "big"], &["table public.big is being copied already"]);
    refused(
        &pair,
        &["resync", "big", "*"],
        &["table public.big is being copied already"],
    );
    assert_eq!(done(&pair, &["missing"]), "public.big  in-copy\n");
    // One that a wildcard means is left as it is, with the chunks that it has.
    let chunks_done = "select count(*) filter (where copied_rows > 0) > 0 from pgcascade_replay.copy_chunk";
    for pattern in ["b*", "*"] {
        let said = table(&pair, &["resync", pattern]);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        let line = "left out: it is being copied already table=public.big";
        assert!(said.stderr.contains(line), "{}", said.stderr);
        assert_eq!(pair.subscriber.text(chunks_done).await, "t");
    }
    assert_eq!(
        done(&pair, &["missing"]),
        "public.big    in-copy\npublic.small  in-copy\n"
    );
    pair.catch_up(&chunks).await;
    pair.assert_equal("big").await;

    // Taken out while it is copied: the others go on.
    done(&pair, &["resync", "big"]);
    let go = pair.provider_cluster.file("go-on-with-the-copy");
    let running = pair.replay().failpoints(&format!("in_copy=pause:{go}")).spawn();
    running.until_it_says("in_copy waits").await;
    // Its triggers cannot be dropped while it is read.
    done(&pair, &["remove", "big", "--keep-triggers"]);
    std::fs::write(&go, "").unwrap();
    p.run("insert into small values (2)").await;
    eventually("the other table goes on", async || {
        pair.subscriber.text("select count(*) from small").await == "2"
    })
    .await;
    until_states(&pair, "small ok").await;
    running.stop().await;
    pair.drop().await;
}
