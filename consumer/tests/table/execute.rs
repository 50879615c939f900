//! `consumer execute`: on the provider, and at its place on the subscriber; once each, whatever is killed.

use std::process::Command;

use crate::cluster::{Pair, Replay, eventually, pair, pause_ticks};
use crate::{STATES, Said, done, refused as table_refused, said, until_states};

const ROLE: [&str; 2] = ["--execute-as", "postgres"];

/// Writes a file beside the provider's cluster.
fn file(pair: &Pair, name: &str, sql: &str) -> String {
    let folder = pair.provider_cluster.file(&format!("sql-{}", pair.database));
    std::fs::create_dir_all(&folder).unwrap();
    let path = format!("{folder}/{name}");
    std::fs::write(&path, sql).unwrap();
    path
}

/// Runs `consumer execute` for queue q.
fn execute(pair: &Pair, files: &[&str], failpoints: &str) -> Said {
    said(
        Command::new(env!("CARGO_BIN_EXE_consumer"))
            .args(["execute", "--queue", "q", "--provider"])
            .arg(pair.provider_cluster.conninfo(&pair.database))
            .args(files)
            .env("PGCASCADE_FAILPOINTS", failpoints),
    )
}

#[track_caller]
fn executed(pair: &Pair, files: &[&str]) -> String {
    let said = execute(pair, files, "");
    assert_eq!(said.code, Some(0), "{files:?}: {}", said.stderr);
    said.stderr
}

#[track_caller]
fn refused(pair: &Pair, files: &[&str], text: &str) {
    let said = execute(pair, files, "");
    assert_eq!(said.code, Some(1), "{files:?}: {}", said.stderr);
    assert!(said.stderr.contains(text), "\"{text}\" is not in: {}", said.stderr);
}

#[tokio::test]
async fn changes_of_tables_at_their_place() {
    let pair = pair().await;
    let p = &pair.provider;
    p.run(
        "create table t (id int primary key, v text); insert into t select i, 'a' from generate_series(1, 30) i;
         create table elsewhere (id int primary key)",
    )
    .await;
    pair.catch_up(&["--table", "t", "--create"]).await;
    done(
        &pair,
        &["add", "elsewhere", "--create", "--rename", "archive.\"Else where\""],
    );

    // All in one batch: rows of before, changes, rows of after.
    p.run("insert into t values (31, 'before'); update t set v = 'b' where id < 10")
        .await;
    let add = file(
        &pair,
        "001 add.sql",
        "alter table t add column \"W w\" int not null default 7;\nupdate t set \"W w\" = id where id > 20; -- also rows\n",
    );
    executed(&pair, &[&add]);
    p.run(
        "insert into t values (32, 'between', 5); update t set \"W w\" = -1 where id <= 3; delete from t where id = 4",
    )
    .await;
    let names = file(
        &pair,
        "002.sql",
        "alter table t rename column v to \"née\"; alter table t alter column \"W w\" type text using 'n' || \"W w\"",
    );
    let drops = file(&pair, "003.sql", "alter table t drop column \"née\"");
    executed(&pair, &[&names]);
    p.run("update t set \"née\" = 'ü' where id = 5").await;
    executed(&pair, &[&drops]);
    p.run("insert into t values (33, 'after'); delete from t where id = 31; update t set id = 100 where id = 1")
        .await;
    let here = file(
        &pair,
        "004.sql",
        "--*-- Local-Table: public.elsewhere\nalter table @public.elsewhere@ add column z int default 3;",
    );
    let not_here = file(
        &pair,
        "005.sql",
        "--*-- Local-Table: public.nobody_has\ncreate table left_out (id int);",
    );
    executed(&pair, &[&here, &not_here]);
    p.run("insert into elsewhere values (1, 2)").await;
    // Not without a role.
    let stopped = pair.replay().arg("--until-caught-up").output().await;
    assert_eq!(stopped.code(), Some(1), "{}", stopped.stderr);
    assert!(
        stopped
            .stderr
            .contains("asks for file \\\"001 add.sql\\\" to be executed")
            || stopped.stderr.contains("asks for file \"001 add.sql\" to be executed"),
        "{}",
        stopped.stderr
    );
    let output = pair.catch_up(&ROLE).await;
    assert!(
        output
            .stderr
            .contains("not executed, as none of its tables is replayed"),
        "{}",
        output.stderr
    );
    pair.assert_equal("t").await;
    assert_eq!(
        p.text("select \"W w\" from t where id in (2, 10, 32, 30) order by id")
            .await,
        "n-1\nn7\nn30\nn5"
    );
    assert_eq!(
        pair.subscriber.text("select * from archive.\"Else where\"").await,
        "1|2"
    );
    assert_eq!(pair.subscriber.text("select to_regclass('left_out')").await, "<null>");
    assert_eq!(p.text("select count(*) from left_out").await, "0");
    let record = "select string_agg(file, ', ' order by file) from pgcascade_replay.executed where queue = 'q'";
    assert_eq!(p.text(record).await, "001 add.sql, 002.sql, 003.sql, 004.sql, 005.sql");
    assert_eq!(
        pair.subscriber.text(record).await,
        "001 add.sql, 002.sql, 003.sql, 004.sql"
    );

    // Again, and another of that name; what cannot be in a transaction, and what would end it.
    let again = executed(&pair, &[&add, &drops]);
    assert_eq!(again.matches("executed already, left out").count(), 2, "{again}");
    file(&pair, "003.sql", "select 1");
    refused(&pair, &[&drops], "another file \"003.sql\" was executed on ");
    for sql in [
        "create table ended (id int); commit; select 1",
        "create index concurrently on t (id)",
        "alter table nowhere add x int",
    ] {
        let wrong = file(&pair, "wrong.sql", sql);
        refused(&pair, &[&wrong], "could not execute file \"wrong.sql\" on the provider");
    }
    assert_eq!(p.text("select to_regclass('ended')").await, "<null>");
    // What the other end could not follow.
    for (sql, text) in [
        (
            "update t set id = id where id = 2",
            "changes rows of table public.t while others may change them",
        ),
        (
            "alter table t rename to renamed",
            "renames, moves or drops table public.t",
        ),
        ("drop table t", "renames, moves or drops table public.t"),
    ] {
        refused(&pair, &[&file(&pair, "wrong.sql", sql)], text);
    }
    let locks = file(
        &pair,
        "locks.sql",
        "lock table t in share row exclusive mode; update t set id = id where id = 2",
    );
    executed(&pair, &[&locks]);
    // While a replay runs, which goes on.
    let running = pair.replay().args(&ROLE).spawn();
    running.until_it_says("streaming").await;
    let late = file(&pair, "006.sql", "alter table t add column late int");
    executed(&pair, &[&late]);
    p.run("insert into t values (200, 'x', 9)").await;
    eventually("the row arrives", async || {
        pair.tick().await;
        pair.subscriber
            .try_text("select late from t where id = 200")
            .await
            .is_ok_and(|text| text == "9")
    })
    .await;
    running.stop().await;
    pair.drop().await;
}

/// What editors and slips leave behind.
#[tokio::test]
async fn files_as_people_write_them() {
    let pair = pair().await;
    pair.provider.run("create table t (id int primary key)").await;
    pair.catch_up(&["--table", "t", "--create"]).await;
    let empty = file(&pair, "a.sql", "\u{feff} \r\n");
    let said = execute(&pair, &[&empty], "");
    assert_eq!(said.code, Some(2), "{}", said.stderr);
    assert!(said.stderr.contains("a.sql is empty"), "{}", said.stderr);
    // So it is not taken for another one when it is written after all.
    let marked = file(
        &pair,
        "a.sql",
        "\u{feff}--*-- Local-Table: public.t\r\nalter table t add v text;\r\n",
    );
    executed(&pair, &[&marked]);
    for (name, sql, line, hint) in [
        (
            "b.sql",
            "-- é\nalter table t add w int;\n  selec 1;\n",
            "line 3: selec 1;",
            "",
        ),
        (
            "c.sql",
            "begin;\nalter table t add w int;\ncommit;",
            "",
            "it has no BEGIN",
        ),
        (
            "d.sql",
            "create index concurrently on t (v)",
            "",
            "CREATE INDEX CONCURRENTLY and VACUUM can be run by hand",
        ),
        (
            "e.sql",
            "\\set x 1\nalter table t add w int;",
            "line 1: \\set x 1",
            "no command of psql",
        ),
        (
            "f.sql",
            "copy t from stdin;\n1\tv\n\\.\n",
            "line 2: 1\tv",
            "no rows for COPY",
        ),
        (
            "g.sql",
            "alter table t add w int;\nalter table nobody add w int;",
            "nobody",
            "",
        ),
    ] {
        let said = execute(&pair, &[&file(&pair, name, sql)], "");
        let told = said.code == Some(1) && said.stderr.contains(line) && said.stderr.contains(hint);
        assert!(told, "{sql}: {}", said.stderr);
    }
    pair.catch_up(&ROLE).await;
    pair.provider.run("insert into t values (1, 'v')").await;
    pair.catch_up(&[]).await;
    pair.assert_equal("t").await;
    pair.drop().await;
}

/// As a statement that can be run as it stands.
#[tokio::test]
async fn a_right_that_is_missing_is_named() {
    let pair = pair().await;
    let p = &pair.provider;
    p.run("create table t (id int primary key)").await;
    pair.catch_up(&["--table", "t", "--create"]).await;
    let role = format!("Clerk {}", pair.database);
    p.run(&format!(
        "create role \"{role}\" login password 'secret' in role pgq_writer, pgq_reader"
    ))
    .await;
    let path = file(&pair, "a.sql", "create temporary table x (id int)");
    let execute = || {
        said(
            Command::new(env!("CARGO_BIN_EXE_consumer"))
                .args(["execute", "--queue", "q", "--provider"])
                .arg(
                    pair.provider_cluster
                        .conninfo_as(&pair.database, &format!("'{role}'"), "secret"),
                )
                .arg(&path),
        )
        .stderr
    };
    let statement = format!("grant set on parameter session_replication_role to \"{role}\"");
    let before = execute();
    assert!(before.contains(&statement), "{before}");
    p.run(&statement).await;
    let after = execute();
    assert!(!after.contains("session_replication_role"), "{after}");
    p.run(&format!("drop owned by \"{role}\"; drop role \"{role}\"")).await;
    pair.drop().await;
}

#[tokio::test]
async fn once_whatever_is_killed() {
    let pair = pair().await;
    let p = &pair.provider;
    p.run("create table t (id int primary key); create table counter (n int); insert into counter values (0)")
        .await;
    pair.subscriber
        .run("create table counter (n int); insert into counter values (0)")
        .await;
    pair.catch_up(&["--table", "t", "--create"]).await;
    let count = file(&pair, "count.sql", "update counter set n = n + 1");
    let counts = async |provider: &str, subscriber: &str| {
        assert_eq!(p.text("select n from counter").await, provider);
        assert_eq!(pair.subscriber.text("select n from counter").await, subscriber);
    };
    for (point, after) in [("before_commit", "0"), ("after_commit", "1")] {
        let killed = execute(&pair, &[&count], &format!("{point}=kill"));
        assert_eq!(killed.code, None, "{}", killed.stderr);
        counts(after, "0").await;
    }
    executed(&pair, &[&count]);
    counts("1", "0").await;
    p.run("insert into t values (1)").await;
    // The first batch has it, whatever ticks there were meanwhile.
    pair.tick().await;
    for (point, after) in [("after_read", "0"), ("before_commit", "0"), ("after_commit", "1")] {
        let killed = pair
            .replay()
            .args(&ROLE)
            .failpoints(&format!("{point}=kill"))
            .output()
            .await;
        assert_eq!(killed.code(), None, "{}", killed.stderr);
        counts("1", after).await;
    }
    pair.catch_up(&ROLE).await;
    counts("1", "1").await;
    pair.assert_equal("t").await;

    // One that fails on the subscriber stops replay, with nothing of the batch applied.
    pair.subscriber.run("create table there_already (id int)").await;
    let fails = file(&pair, "fails.sql", "create table there_already (id int)");
    p.run("insert into t values (2)").await;
    executed(&pair, &[&fails]);
    let stopped = pair.replay().args(&ROLE).arg("--until-caught-up").output().await;
    assert_eq!(stopped.code(), Some(1), "{}", stopped.stderr);
    for text in [
        "could not execute file \"fails.sql\" on the subscriber",
        "42P07",
        "insert into pgcascade_replay.executed (queue, file) values ('q', 'fails.sql')",
    ] {
        assert!(
            stopped.stderr.contains(text),
            "\"{text}\" is not in: {}",
            stopped.stderr
        );
    }
    assert_eq!(pair.subscriber.text("select count(*) from t").await, "1");
    pair.subscriber
        .run("insert into pgcascade_replay.executed (queue, file) values ('q', 'fails.sql')")
        .await;
    pair.catch_up(&ROLE).await;
    pair.assert_equal("t").await;

    // Somebody has the table locked: tried again, at either end.
    for side in [&pair.provider_cluster, &pair.subscriber_cluster] {
        side.connect("postgres")
            .await
            .run(&format!("alter database {} set lock_timeout = '100ms'", pair.database))
            .await;
    }
    let waits = file(&pair, "waits.sql", "alter table t add column w int");
    let locks = pair.provider_cluster.connect(&pair.database).await;
    locks.run("begin; lock table t in access share mode").await;
    let said = Command::new(env!("CARGO_BIN_EXE_consumer"))
        .args(["execute", "--queue", "q", "--retries", "1", "--provider"])
        .args([&pair.provider_cluster.conninfo(&pair.database), &waits])
        .output()
        .unwrap();
    let stderr = String::from_utf8(said.stderr).unwrap();
    assert!(
        said.status.code() == Some(1) && stderr.contains("trying again"),
        "{stderr}"
    );
    locks.run("commit").await;
    executed(&pair, &[&waits]);
    let locks = pair.subscriber_cluster.connect(&pair.database).await;
    locks.run("begin; lock table t in access share mode").await;
    let running = pair.replay().args(&ROLE).arg("--until-caught-up").spawn();
    running
        .until_it_says("could not execute file \"waits.sql\" on the subscriber")
        .await;
    locks.run("commit").await;
    let output = running.wait().await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    pair.assert_equal("t").await;
    pair.drop().await;
}

/// A file that is executed between a replay's look for what is pending and its look at the tables makes them differ: not for
/// long, so replay goes on.
#[tokio::test]
async fn while_the_tables_are_looked_at() {
    let pair = pair().await;
    let p = &pair.provider;
    p.run("create table t (id int primary key)").await;
    pair.catch_up(&["--table", "t", "--create"]).await;
    executed(&pair, &[&file(&pair, "first.sql", "select 1")]);
    pair.catch_up(&ROLE).await;
    let go_on = pair.subscriber_cluster.file(&format!("go-on-{}", pair.database));
    let running = pair
        .replay()
        .args(&ROLE)
        .arg("--until-caught-up")
        .failpoints(&format!("before_look=pause:{go_on}"))
        .spawn();
    running.until_it_says("before_look waits").await;
    executed(&pair, &[&file(&pair, "more.sql", "alter table t add column more int")]);
    p.run("insert into t values (1, 2)").await;
    std::fs::write(&go_on, "").unwrap();
    let output = running.wait().await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    let text = "a file was executed on the provider while the tables were looked at";
    assert!(output.stderr.contains(text), "{}", output.stderr);
    pair.assert_equal("t").await;

    // Nor does a check find anything, whether the file comes meanwhile or is on its way already.
    for sql in [
        "alter table t add column late int",
        "alter table t alter id type bigint",
    ] {
        let go_on = format!("{go_on}-{}", sql.len());
        let printed = pair.subscriber_cluster.file(&format!("checked-{}", pair.database));
        let ends = [&pair.provider_cluster, &pair.subscriber_cluster].map(|cluster| cluster.conninfo(&pair.database));
        let checks = Replay::command(&["check", "--queue", "q", "--consumer", "c"])
            .args(&["--provider", &ends[0], "--subscriber", &ends[1]])
            .failpoints(&format!("before_look=pause:{go_on}"))
            .stdout_to(&printed)
            .spawn();
        checks.until_it_says("before_look waits").await;
        executed(&pair, &[&file(&pair, &format!("{}.sql", sql.len()), sql)]);
        std::fs::write(&go_on, "").unwrap();
        let output = checks.wait().await;
        let printed = std::fs::read_to_string(&printed).unwrap();
        let said = format!("{printed}{}", output.stderr);
        assert_eq!(output.code(), Some(0), "{said}");
        assert!(
            printed.ends_with("Nothing was found that would stop replication.\n"),
            "{said}"
        );
    }
    pair.catch_up(&ROLE).await;
    pair.assert_equal("t").await;
    pair.drop().await;
}

/// The file counts once for every row, also for those that a copy reads before, while and after it is executed.
#[tokio::test]
async fn beside_a_copy() {
    let pair = pair().await;
    let p = &pair.provider;
    p.run(
        "create table t (id int primary key, n int not null default 0); insert into t select generate_series(1, 500)",
    )
    .await;
    p.run("create table small (id int primary key)").await;
    pair.catch_up(&["--table", "small", "--create"]).await;
    done(&pair, &["add", "t", "--create"]);
    let go_on = pair.subscriber_cluster.file(&format!("go-on-{}", pair.database));
    let running = pair
        .replay()
        .args(&ROLE)
        .failpoints(&format!("in_copy=pause:{go_on}"))
        .spawn();
    running.until_it_says("in_copy waits").await;
    p.run("insert into t values (501)").await;
    let count = file(
        &pair,
        "count.sql",
        "--*-- Local-Table: public.t\nupdate t set n = n + 1",
    );
    executed(&pair, &[&count]);
    running
        .until_it_says("to be copied again, as the file was executed during its copy")
        .await;
    std::fs::write(&go_on, "").unwrap();
    until_states(&pair, "small ok, t ok").await;
    pair.assert_equal("t").await;
    assert_eq!(pair.subscriber.text("select distinct n from t").await, "1");
    running.stop().await;

    // What is copied begins behind a file that is on its way, whoever asks for it when.
    p.run("create table late (id int primary key, n int not null default 0); insert into late select generate_series(1, 10)").await;
    let more = file(
        &pair,
        "more.sql",
        "alter table t add column m int; update t set n = n + 1; update late set n = n + 1",
    );
    pair.subscriber
        .run("create table late (id int primary key, n int not null default 0)")
        .await;
    executed(&pair, &[&more]);
    table_refused(
        &pair,
        &["add", "late"],
        &["a file that was executed on the provider has not come through queue \"q\" yet"],
    );
    pair.catch_up(&["--execute-as", "postgres", "--table", "late"]).await;
    pair.assert_equal("late").await;
    pair.assert_equal("t").await;
    assert_eq!(pair.subscriber.text("select distinct n from late").await, "1");
    pair.drop().await;
}

/// The file is committed after replay has seen that none is on its way, and before the snapshot of a copy: the copy has what the file did, and its
/// event is still to come.
#[tokio::test]
async fn between_the_look_and_a_copy() {
    let pair = pair().await;
    let p = &pair.provider;
    p.run(
        "create table small (id int primary key);
         create table t (id int primary key, n int not null default 0); insert into t select generate_series(1, 500)",
    )
    .await;
    pair.catch_up(&["--table", "small", "--create"]).await;
    done(&pair, &["add", "t", "--create"]);
    let go_on = pair.subscriber_cluster.file(&format!("go-on-{}", pair.database));
    let running = pair
        .replay()
        .args(&ROLE)
        .failpoints(&format!("before_copy=pause:{go_on}"))
        .spawn();
    running.until_it_says("before_copy waits").await;
    // Its event comes when the copy is there.
    pause_ticks(p).await;
    let count = file(
        &pair,
        "count.sql",
        "--*-- Local-Table: public.t\nupdate t set n = n + 1",
    );
    executed(&pair, &[&count]);
    std::fs::write(&go_on, "").unwrap();
    // When the other table is ok depends on other tests' transactions, too.
    eventually("the copy is there", async || {
        pair.subscriber.text(STATES).await.ends_with(", t catching-up")
    })
    .await;
    assert_eq!(pair.subscriber.text("select distinct n from t").await, "1");
    p.run("select pgq.set_queue_config('q', 'ticker_paused', 'false')")
        .await;
    running
        .until_it_says("to be copied again, as the file was executed during its copy")
        .await;
    until_states(&pair, "small ok, t ok").await;
    pair.assert_equal("t").await;
    running.stop().await;
    pair.drop().await;
}

/// The file is committed between the plan of a copy in chunks and its first chunk, which has the file's row then; its event comes before the
/// second.
#[tokio::test]
async fn among_the_chunks_of_a_copy() {
    let pair = pair().await;
    let p = &pair.provider;
    p.run(
        "create table small (id int primary key);
         create table t (id int primary key, pad text); insert into t select i, repeat('x', 100) from generate_series(1, 10000) i; analyze t",
    )
    .await;
    pair.catch_up(&["--table", "small", "--create"]).await;
    done(&pair, &["add", "t", "--create"]);
    let [planned, copied] = ["planned", "copied"].map(|name| {
        let name = format!("{name}-{}", pair.database);
        pair.subscriber_cluster.file(&name)
    });
    let running = pair
        .replay()
        .args(&ROLE)
        .args(&["--copy-chunk-bytes", "65536", "--jobs", "1"])
        .failpoints(&format!(
            "after_plan_commit=pause:{planned};after_chunk_commit=pause:{copied}"
        ))
        .spawn();
    running.until_it_says(&format!("waits until {planned} exists")).await;
    pause_ticks(p).await;
    let insert = file(
        &pair,
        "insert.sql",
        "--*-- Local-Table: public.t\ninsert into t values (0, 'of the file')",
    );
    executed(&pair, &[&insert]);
    std::fs::write(&planned, "").unwrap();
    running.until_it_says(&format!("waits until {copied} exists")).await;
    assert_eq!(
        pair.subscriber.text("select pad from t where id = 0").await,
        "of the file"
    );
    p.run("select pgq.set_queue_config('q', 'ticker_paused', 'false')")
        .await;
    running
        .until_it_says("to be copied again, as the file was executed during its copy")
        .await;
    std::fs::write(&copied, "").unwrap();
    until_states(&pair, "small ok, t ok").await;
    pair.assert_equal("t").await;
    running.stop().await;
    pair.drop().await;
}

/// Conflicts on both sides of a file, answered in one batch; and a file for a table that is parked, which has to fit when it
/// comes back.
#[tokio::test]
async fn beside_conflicts_and_a_parked_table() {
    let pair = pair().await;
    let (p, s) = (&pair.provider, &pair.subscriber);
    p.run(
        "create table t (id int primary key, v text); insert into t select i, 'a' from generate_series(1, 30) i;
         create table parked (id int primary key, v text); insert into parked values (1, 'a')",
    )
    .await;
    pair.catch_up(&["--table", "t", "--table", "parked", "--create"]).await;
    s.run("delete from parked; delete from t where id in (1, 2)").await;
    p.run("update parked set v = 'b'").await;
    pair.catch_up(&["--on-error", "park"]).await;
    let states = s.text(STATES).await;
    assert!(states.starts_with("parked broken, t "), "{states}");

    p.run("update t set v = 'b' where id = 1").await;
    let both = file(
        &pair,
        "both.sql",
        "alter table t add column w int not null default 7; alter table parked add column w int not null default 7",
    );
    let parked = file(
        &pair,
        "parked.sql",
        "--*-- Local-Table: parked\nalter table @parked@ alter column w set default 8",
    );
    executed(&pair, &[&both, &parked]);
    p.run("update t set w = 1 where id = 2; insert into parked values (2, 'b')")
        .await;
    let output = pair
        .catch_up(&[&ROLE[..], &["--on-conflict", "overwrite"]].concat())
        .await;
    assert!(output.stderr.contains("conflicts=2"), "{}", output.stderr);
    assert_eq!(
        s.text("select string_agg(row_key || ' ' || outcome, ', ' order by ev_id) from pgcascade_replay.conflict")
            .await,
        "(id)=(1) inserted, (id)=(2) inserted"
    );
    pair.assert_equal("t").await;
    assert_eq!(
        s.text("select count(*) from pgcascade_replay.executed").await,
        "2",
        "{}",
        output.stderr
    );
    done(&pair, &["resync", "parked"]);
    pair.catch_up(&[]).await;
    pair.assert_equal("parked").await;
    pair.drop().await;
}

/// The events of a statement that are stored as one row are not applied as one: what another transaction and a file do in the middle of
/// them comes there.
#[tokio::test]
async fn between_events_that_are_packed_together() {
    let pair = pair().await;
    let (p, s) = (&pair.provider, &pair.subscriber);
    for end in [p, s] {
        end.run("create table t (id int primary key); create table u (id int); create table seen (nr serial, id int)")
            .await;
    }
    s.run(
        "create function see() returns trigger language plpgsql as
            $$ begin insert into public.seen (id) values (new.id); return null; end $$;
         create trigger see after insert on t for each row execute function see();
         alter table t enable always trigger see",
    )
    .await;
    pair.catch_up(&["--table", "t", "--table", "u"]).await;
    // Behind the capture trigger of the second row.
    p.run(
        "create function waits() returns trigger language plpgsql as
            $$ begin if new.id = 2 then perform pg_advisory_xact_lock(7); end if; return null; end $$;
         create trigger zz_waits after insert on t for each row execute function waits()",
    )
    .await;
    pause_ticks(p).await;
    p.run("select pg_advisory_lock(7)").await;
    let first = pair.provider_cluster.connect(&pair.database).await;
    let first = tokio::spawn(async move { first.run("insert into t values (1), (2), (3), (4)").await });
    let waits = "select count(*) from pg_locks where locktype = 'advisory' and not granted
                    and database = (select oid from pg_database where datname = current_database())";
    eventually("the first two rows are captured", async || p.text(waits).await == "1").await;
    p.run("insert into t values (11), (12), (13)").await;
    let sql = "--*-- Local-Table: public.u\ncreate table public.seen_then as select array_agg(id order by nr) as ids from public.seen";
    let mark = file(&pair, "mark.sql", sql);
    executed(&pair, &[&mark]);
    p.run("insert into t values (21), (22)").await;
    p.run("select pg_advisory_unlock(7)").await;
    first.await.unwrap();
    let packs = "select string_agg((-ev_retry)::text, ' ' order by ev_id) from pgq.event_template where ev_retry < 0";
    assert_eq!(p.text(packs).await, "4 3 2");
    p.run("update pgq.queue set queue_ticker_paused = false").await;
    pair.catch_up(&ROLE).await;
    let order = s.text("select array_agg(id order by nr) from seen").await;
    assert_eq!(order, "{1,2,11,12,13,21,22,3,4}");
    let then = s.text("select ids from seen_then").await;
    assert_eq!(then, "{1,2,11,12,13}");
}
