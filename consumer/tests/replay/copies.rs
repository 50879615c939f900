//! Nothing waits for a copy that cannot go on, other tables least of all; and a copy goes on whatever else is changed.

use std::process::Command;

use serde_json::Value;

use crate::cluster::{Db, Pair, Replay, eventually, pair};

const CHUNKS: [&str; 2] = ["--copy-chunk-bytes", "65536"];

/// `consumer table`, which has to succeed; and what it says.
#[track_caller]
pub(crate) fn table(pair: &Pair, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_consumer"))
        .args(["table", arguments[0]])
        .args(["--provider", &pair.provider_cluster.conninfo(&pair.database)])
        .args(["--subscriber", &pair.subscriber_cluster.conninfo(&pair.database)])
        .args(["--queue", "q", "--consumer", "c"])
        .args(&arguments[1..])
        .env_remove("PGCASCADE_FAILPOINTS")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {said}");
    said
}

/// `big`, which is large enough to be cut, and `small`, both replayed.
async fn replayed() -> Pair {
    let pair = pair().await;
    pair.provider
        .run(
            "create table big (id int primary key, v text); insert into big select i, repeat('x', 100) from generate_series(1, 3000) i;
             create table small (id int primary key); insert into small values (1); analyze",
        )
        .await;
    pair.catch_up(&["--table", "big", "--table", "small", "--create"]).await;
    pair
}

/// A session of the subscriber that lets others read the table, but not write to it.
async fn locked(pair: &Pair, table: &str) -> Db {
    let holder = pair.subscriber_cluster.connect(&pair.database).await;
    holder.run(&format!("begin; lock table {table} in share mode")).await;
    holder
}

/// So many sessions of copies wait on the subscriber for a lock.
async fn wait_for_locks(pair: &Pair, sessions: usize) {
    eventually("copies wait for a lock", async || {
        pair.subscriber
            .text(
                "select count(*) from pg_stat_activity where datname = current_database()
                    and wait_event_type = 'Lock' and application_name like 'pgcascade %'",
            )
            .await
            == sessions.to_string()
    })
    .await;
}

async fn goes_on(pair: &Pair, id: u32) {
    pair.provider.run(&format!("insert into small values ({id})")).await;
    eventually("the other table goes on", async || {
        pair.subscriber
            .text(&format!("select count(*) from small where id = {id}"))
            .await
            == "1"
    })
    .await;
}

async fn until_copied(pair: &Pair, tables: &[&str]) {
    eventually("the kept events are applied", async || {
        pair.subscriber
            .text(
                "select (select count(*) from pgcascade_replay.held_event)
                        + (select count(*) from pgcascade_replay.table_state where state = 'in-copy')",
            )
            .await
            == "0"
    })
    .await;
    for table in tables {
        pair.assert_equal(table).await;
    }
}

/// Somebody has the table locked that is to be emptied for its copy: the stream does not wait for that, nor does it when it begins
/// anew meanwhile.
#[tokio::test]
async fn a_copy_that_cannot_begin_holds_up_no_other_table() {
    for (chunks, whole) in [(&CHUNKS[..], false), (&[], true)] {
        let pair = replayed().await;
        pair.subscriber.run("delete from big where id < 100").await;
        let running = pair.replay().args(chunks).spawn();
        goes_on(&pair, 2).await;
        let holder = locked(&pair, "big").await;
        table(&pair, &["resync", "big"]);
        wait_for_locks(&pair, 1).await;
        pair.provider
            .run("update big set v = 'changed' where id % 10 = 0; delete from big where id % 10 = 1; insert into big values (0, 'new')")
            .await;
        goes_on(&pair, 3).await;
        assert_eq!(
            pair.subscriber
                .text("select state from pgcascade_replay.table_state where provider_table = 'big'")
                .await,
            "in-copy"
        );
        holder.run("commit").await;
        until_copied(&pair, &["big", "small"]).await;
        let output = running.stop().await;
        assert!(whole || output.stderr.contains("cut into chunks"), "{}", output.stderr);
        pair.drop().await;
    }
}

/// Killed on the way from the order to the first row, on either side of the commit: until that, readers have the old rows.
#[tokio::test]
async fn killed_while_a_copy_is_planned() {
    let pair = replayed().await;
    let chunks = "select count(*) from pgcascade_replay.copy_chunk";
    for (round, (point, planned)) in [
        ("before_copy", false),
        ("before_plan_commit", false),
        ("after_plan_commit", true),
    ]
    .into_iter()
    .enumerate()
    {
        pair.subscriber
            .run("delete from big where id < 100; update big set v = 'old'")
            .await;
        let before = pair.subscriber.text("select count(*), min(v), max(v) from big").await;
        table(&pair, &["resync", "big"]);
        for _ in 0..if planned { 1 } else { 2 } {
            let killed = pair
                .replay()
                .args(&CHUNKS)
                .failpoints(&format!("{point}=kill"))
                .output()
                .await;
            assert_eq!(killed.code(), None, "{point} was not reached: {}", killed.stderr);
            assert_eq!(pair.subscriber.text(chunks).await != "0", planned, "{point}");
            let now = pair.subscriber.text("select count(*), min(v), max(v) from big").await;
            assert_eq!(
                now,
                if planned { "0|<null>|<null>" } else { before.as_str() },
                "{point}"
            );
            pair.provider
                .run(&format!("update big set v = 'round {round}' where id % 7 = {round}; delete from big where id % 100 = 50 + {round}"))
                .await;
        }
        let borders = "select string_agg(chunk || ' ' || xmin, ' ' order by chunk) from pgcascade_replay.copy_chunk";
        let written = pair.subscriber.text(borders).await;
        if planned {
            // What was planned holds: the next start only copies.
            let killed = pair.replay().args(&CHUNKS).failpoints("in_copy=kill").output().await;
            assert_eq!(killed.code(), None, "{}", killed.stderr);
            assert_eq!(pair.subscriber.text(borders).await, written);
        }
        pair.catch_up(&CHUNKS).await;
        pair.assert_equal("big").await;
        assert_eq!(pair.subscriber.text(chunks).await, "0");
    }
    pair.drop().await;
}

/// A lock that cannot be had in time puts that one table's copy off, and interrupts nothing else.
#[tokio::test]
async fn a_copy_that_waits_too_long_is_put_off() {
    let pair = replayed().await;
    pair.provider
        .run("create table keyless (n int); insert into keyless select generate_series(1, 1000)")
        .await;
    pair.catch_up(&["--table", "keyless", "--create"]).await;
    let holder = locked(&pair, "big").await;
    table(&pair, &["resync", "big"]);
    table(&pair, &["resync", "keyless"]);
    let go_on = pair.subscriber_cluster.file(&format!("go-on-{}", pair.database));
    let subscriber = format!(
        "{} options='-c lock_timeout=1s'",
        pair.subscriber_cluster.conninfo(&pair.database)
    );
    let running = Replay::new(&pair.provider_cluster.conninfo(&pair.database), &subscriber)
        .args(&CHUNKS)
        .failpoints(&format!("in_copy=pause:{go_on}"))
        .spawn();
    eventually("it was put off three times", async || {
        running.stderr().matches("its copy tries again").count() >= 3
    })
    .await;
    goes_on(&pair, 2).await;
    std::fs::write(&go_on, "").unwrap();
    eventually("the other table is copied", async || {
        pair.subscriber
            .text("select count(*) from pgcascade_replay.table_state where state = 'in-copy'")
            .await
            == "1"
    })
    .await;
    pair.assert_equal("keyless").await;
    holder.run("commit").await;
    until_copied(&pair, &["big", "small", "keyless"]).await;
    let output = running.stop().await;
    assert_eq!(output.stderr.matches("streaming").count(), 1, "{}", output.stderr);
    pair.drop().await;
}

/// Told to stop while its copy waits for somebody who has the table locked, at either end: it does not wait for him, its servers know at
/// once, and nothing of the copy stays.
#[tokio::test]
async fn told_to_stop_while_a_copy_waits() {
    for (at_provider, chunks) in [(false, &CHUNKS[..]), (false, &[]), (true, &CHUNKS), (true, &[])] {
        let pair = replayed().await;
        pair.subscriber.run("delete from big where id < 100").await;
        let options = " options='-c lock_timeout=1h'";
        let running = Replay::new(
            &(pair.provider_cluster.conninfo(&pair.database) + options),
            &(pair.subscriber_cluster.conninfo(&pair.database) + options),
        )
        .args(chunks)
        .spawn();
        goes_on(&pair, 2).await;
        let here = locked(&pair, "big").await;
        table(&pair, &["resync", "big"]);
        wait_for_locks(&pair, 1).await;
        let (cluster, db) = if at_provider {
            (&pair.provider_cluster, &pair.provider)
        } else {
            (&pair.subscriber_cluster, &pair.subscriber)
        };
        let there = pair.provider_cluster.connect(&pair.database).await;
        if at_provider {
            there.run("begin; lock table big in access exclusive mode").await;
            here.run("commit").await;
        }
        let waiting = "select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
                          and application_name like 'pgcascade copy %' order by pid limit 1";
        eventually("its copy waits", async || !db.text(waiting).await.is_empty()).await;
        let pid = db.text(waiting).await;
        running.signal("TERM");
        let output = running.wait().await;
        assert_eq!(output.code(), Some(0), "{}", output.stderr);
        assert!(
            output
                .stderr
                .contains("copy stopped; what was on its way is rolled back"),
            "{}",
            output.stderr
        );
        pair.until_sessions_are_gone().await;
        let log = cluster.log();
        let mut of_it = log.lines().filter(|line| line.contains(&format!("[{pid}]")));
        assert!(
            of_it.any(|line| line.ends_with("ERROR:  canceling statement due to user request")),
            "{pid}"
        );
        let left = pair
            .subscriber
            .text(
                "select (select count(*) from big), (select count(*) from pgcascade_replay.copy_chunk where copied_rows is not null),
                        (select string_agg(state, ' ') from pgcascade_replay.table_state where provider_table = 'big')",
            )
            .await;
        // The plan, which empties the table, is committed when the first chunk waits.
        let rows = if at_provider && !chunks.is_empty() { "0" } else { "2901" };
        assert_eq!(left, format!("{rows}|0|in-copy"));
        there.run("rollback").await;
        here.run("rollback").await;
        pair.catch_up(chunks).await;
        pair.assert_equal("big").await;
        pair.drop().await;
    }
}

/// What `consumer status`, `table list` and `table missing` say of table `big`, as text and as JSON.
fn shown(pair: &Pair) -> ([String; 3], [Value; 3]) {
    let (provider, subscriber) = (
        pair.provider_cluster.conninfo(&pair.database),
        pair.subscriber_cluster.conninfo(&pair.database),
    );
    let say = |command: &[&str]| {
        let ends = [
            "--provider",
            &provider,
            "--subscriber",
            &subscriber,
            "--queue",
            "q",
            "--consumer",
            "c",
        ];
        Replay::command(command).args(&ends).stdout()
    };
    let line = |text: String| {
        text.lines()
            .find(|line| line.contains("public.big"))
            .unwrap_or_default()
            .to_owned()
    };
    let commands = [&["status"][..], &["table", "list"], &["table", "missing"]];
    let texts = commands.map(|command| line(say(command)));
    let json = commands.map(|command| {
        let json = line(say(&[command, &["--json"]].concat()));
        serde_json::from_str(&json).unwrap_or_default()
    });
    let [mut status, list, missing]: [Value; 3] = json;
    let tables = status["consumers"][0]["tables"].as_array().cloned().unwrap_or_default();
    status = tables
        .into_iter()
        .find(|table| table["table"] == "public.big")
        .unwrap_or_default();
    (texts, [status, list, missing])
}

/// What a copy waits for stands in the table's state, since when it does, until it goes on; also when the replay that wrote it was killed.
#[tokio::test]
async fn what_a_copy_waits_for_is_shown_until_it_goes_on() {
    for (chunks, what) in [(&CHUNKS[..], "chunks"), (&[], "whole")] {
        let pair = replayed().await;
        let mut holder = locked(&pair, "big").await;
        table(&pair, &["resync", "big"]);
        let go_on = pair.subscriber_cluster.file(&format!("go-on-{}", pair.database));
        let subscriber = format!(
            "{} options='-c lock_timeout=1s'",
            pair.subscriber_cluster.conninfo(&pair.database)
        );
        let replay = || {
            Replay::new(&pair.provider_cluster.conninfo(&pair.database), &subscriber)
                .args(chunks)
                .failpoints(&format!("in_copy=pause:{go_on}"))
                .spawn()
        };
        let waits = async || {
            eventually("all show what it waits for", async || {
                let (texts, json) = shown(&pair);
                let since = json[0]["waits_since"].as_str().unwrap_or("?");
                let reason = json[0]["waits_for"].as_str().unwrap_or("?");
                let end = format!("  WAITING since {since}: {reason}");
                // Of one that is emptied already, the first chunk waits.
                let [
                    "could not remove the rows of table public.big on the subscriber"
                    | "could not copy into table public.big of the subscriber",
                    "canceling statement due to lock timeout (SQLSTATE 55P03)",
                ] = reason.split(": ").collect::<Vec<_>>()[..]
                else {
                    return false;
                };
                texts.iter().all(|text| text.ends_with(&end))
                    && json.iter().all(|table| {
                        table["state"] == "in-copy" && table["waits_for"] == reason && table["waits_since"] == since
                    })
            })
            .await;
            shown(&pair).1[0]["waits_since"].as_str().unwrap().to_owned()
        };
        let goes_on = async || {
            eventually("it goes on, and nothing is said of locks", async || {
                let (texts, json) = shown(&pair);
                !texts.iter().any(|text| text.contains("WAITING"))
                    && json.iter().all(|table| {
                        table["state"] == "in-copy" && table["waits_for"].is_null() && table["waits_since"].is_null()
                    })
            })
            .await;
        };
        let running = replay();
        let since = waits().await;
        let before = running.stderr().matches("its copy tries again").count();
        eventually("it was put off again", async || {
            running.stderr().matches("its copy tries again").count() > before + 1
        })
        .await;
        assert_eq!(waits().await, since, "{what}");
        holder.run("commit").await;
        goes_on().await;
        running.kill().await;

        holder = locked(&pair, "big").await;
        table(&pair, &["remove", "big", "--keep-triggers"]);
        table(&pair, &["add", "big", "--replace"]);
        let running = replay();
        waits().await;
        running.kill().await;
        waits().await;
        holder.run("commit").await;
        let running = replay();
        goes_on().await;
        std::fs::write(&go_on, "").unwrap();
        until_copied(&pair, &["big"]).await;
        running.stop().await;
        pair.drop().await;
    }
}

/// `--jobs` tables, and no more, are copied at once; and what is done is told.
#[tokio::test]
async fn as_many_copies_at_once_as_were_asked_for() {
    for jobs in [1, 2, 3] {
        let pair = pair().await;
        for name in ["a", "b", "c"] {
            let sql = format!("create table {name} (n int); insert into {name} select generate_series(1, 1000)");
            pair.provider.run(&sql).await;
        }
        let all = ["--table", "a", "--table", "b", "--table", "c"];
        pair.catch_up(&[&all[..], &["--create"]].concat()).await;
        let holder = locked(&pair, "a, b, c").await;
        table(&pair, &["resync", "a", "b", "c"]);
        let running = pair.replay().args(&["--jobs", &jobs.to_string()]).spawn();
        wait_for_locks(&pair, jobs).await;
        for end in [&pair.provider, &pair.subscriber] {
            // Those of the first copies may not have noticed yet that their replay has ended.
            eventually("there are sessions for each, and no more", async || {
                end.text("select count(*) from pg_stat_activity where datname = current_database() and application_name like 'pgcascade copy %'")
                    .await
                    == jobs.to_string()
            })
            .await;
        }
        holder.run("commit").await;
        until_copied(&pair, &["a", "b", "c"]).await;
        for name in ["a", "b", "c"] {
            for text in [
                format!("copy starts table=\"public.{name}\""),
                format!("copy done table=\"public.{name}\" rows=1000"),
            ] {
                running.until_it_says(&text).await;
            }
        }
        running.stop().await;
        pair.drop().await;
    }
}

/// The transaction that a copy of a whole table is in; empty when there is none.
async fn transaction(pair: &Pair, table: &str) -> String {
    pair.subscriber
        .text(&format!(
            "select coalesce(string_agg(pid || ' since ' || xact_start, ', '), '') from pg_stat_activity
              where datname = current_database() and application_name like 'pgcascade copy %' and query like 'copy \"public\".\"{table}\"%'"
        ))
        .await
}

/// The copy of a table that cannot be cut is not begun again when the set of tables is changed, nor when the stream meets a conflict, a
/// lock or a broken table.
#[tokio::test]
async fn a_copy_goes_on_whatever_happens_to_other_tables() {
    let pair = replayed().await;
    pair.provider
        .run(
            "create table keyless (n int, v text); insert into keyless select i, 'there' from generate_series(1, 1000) i;
             create table two_keys (id int primary key, u int unique, v text); insert into two_keys select i, i, 'there' from generate_series(1, 1000) i;
             create table other (id int primary key, v text); insert into other values (1, 'there')",
        )
        .await;
    let go_on = pair.subscriber_cluster.file(&format!("go-on-{}", pair.database));
    let subscriber = format!(
        "{} options='-c lock_timeout=1s'",
        pair.subscriber_cluster.conninfo(&pair.database)
    );
    let running = Replay::new(&pair.provider_cluster.conninfo(&pair.database), &subscriber)
        .args(&["--jobs", "3", "--on-conflict", "small=skip", "--on-error", "park"])
        .failpoints(&format!("in_copy=pause:{go_on}"))
        .spawn();
    goes_on(&pair, 2).await;
    let whole = ["keyless", "two_keys"];
    table(&pair, &["add", "keyless", "two_keys", "--create"]);
    let mut begun = Vec::new();
    for name in whole {
        eventually("it is being copied", async || {
            !transaction(&pair, name).await.is_empty()
        })
        .await;
        begun.push(transaction(&pair, name).await);
    }
    let go_on_there = async |id: u32, after: &str| {
        pair.provider
            .run(&format!(
                "insert into keyless values ({id}, '{after}'); update two_keys set u = -id, v = '{after}' where id = {id};
                 delete from two_keys where id = 100 + {id}"
            ))
            .await;
        goes_on(&pair, id).await;
        for (name, begun) in whole.iter().zip(&begun) {
            assert_eq!(&transaction(&pair, name).await, begun, "{name}, {after}");
        }
    };
    go_on_there(3, "nothing").await;
    table(&pair, &["add", "other", "--create", "--no-copy"]);
    go_on_there(4, "a table was added").await;
    table(&pair, &["remove", "other"]);
    go_on_there(5, "it was removed").await;
    table(&pair, &["add", "other", "--replace"]);
    eventually("it is being copied, too", async || {
        !transaction(&pair, "other").await.is_empty()
    })
    .await;
    go_on_there(6, "a copy was begun").await;
    table(&pair, &["remove", "other", "--keep-triggers"]);
    go_on_there(7, "it was given up").await;
    pair.subscriber.run("insert into small values (8)").await;
    goes_on(&pair, 8).await;
    go_on_there(9, "a conflict").await;
    eventually("it is recorded", async || {
        pair.subscriber
            .text("select count(*) from pgcascade_replay.conflict")
            .await
            == "1"
    })
    .await;
    let holder = locked(&pair, "small").await;
    pair.provider.run("insert into small values (100)").await;
    eventually("the stream ran into a lock, and again", async || {
        running.stderr().matches("due to lock timeout").count() >= 2
    })
    .await;
    holder.run("commit").await;
    go_on_there(11, "a lock").await;
    pair.subscriber.run("alter table big add check (v <> 'no')").await;
    pair.provider.run("update big set v = 'no' where id = 1").await;
    go_on_there(10, "a table was parked").await;
    let states = "select string_agg(provider_table || ' ' || state, ', ' order by provider_table) from pgcascade_replay.table_state";
    assert!(pair.subscriber.text(states).await.contains("big broken"));
    std::fs::write(&go_on, "").unwrap();
    until_copied(&pair, &whole).await;
    streams(&pair, 12).await;
    let output = running.stop().await;
    for name in whole {
        let starts = format!("copy starts table=\"public.{name}\"");
        assert_eq!(output.stderr.matches(&starts).count(), 1, "{}", output.stderr);
    }
    assert!(output.stderr.matches("streaming").count() >= 7, "{}", output.stderr);
    pair.catch_up(&["--on-error", "park"]).await;
    for name in whole {
        pair.assert_equal(name).await;
    }
    pair.drop().await;
}

/// What comes after the copies is applied at once.
async fn streams(pair: &Pair, id: u32) {
    pair.provider
        .run(&format!(
            "insert into keyless values ({id}, 'after'); delete from two_keys where id = {id}"
        ))
        .await;
    goes_on(pair, id).await;
    pair.assert_equal("keyless").await;
    pair.assert_equal("two_keys").await;
}

/// The copy that goes on is complete at the worst of times: when the stream, which begins anew, has read that it is not, or had read
/// that it is before the copy could say so.
#[tokio::test]
async fn a_copy_that_goes_on_ends_while_the_stream_begins_anew() {
    for at_the_look in [true, false] {
        let pair = replayed().await;
        pair.provider
            .run(
                "create table keyless (n int, v text); insert into keyless select i, 'there' from generate_series(1, 1000) i;
                 create table two_keys (id int primary key, u int unique, v text); insert into two_keys select i, i, 'there' from generate_series(1, 1000) i;
                 create table other (id int primary key)",
            )
            .await;
        let file = |name: &str| pair.subscriber_cluster.file(&format!("{name}-{}", pair.database));
        let (look, copied) = (file("look"), file("copied"));
        std::fs::write(&look, "").unwrap();
        let point = if at_the_look { "in_copy" } else { "after_copy_commit" };
        let running = pair
            .replay()
            .failpoints(&format!("after_states=pause:{look};{point}=pause:{copied}"))
            .spawn();
        goes_on(&pair, 2).await;
        table(&pair, &["add", "keyless", "two_keys", "--create"]);
        eventually("both wait", async || {
            running.stderr().matches(&format!("{point} waits until")).count() == 2
        })
        .await;
        streams_to_be(&pair, 3).await;
        std::fs::remove_file(&look).unwrap();
        let looks = || running.stderr().matches("after_states waits until").count();
        let before = looks();
        table(&pair, &["add", "other", "--create", "--no-copy"]);
        eventually("it looks at the set again", async || looks() > before).await;
        let states = "select count(*) from pgcascade_replay.table_state where state = 'in-copy'";
        assert_eq!(pair.subscriber.text(states).await == "0", !at_the_look);
        if at_the_look {
            std::fs::write(&copied, "").unwrap();
            eventually("the copies are there", async || {
                pair.subscriber.text(states).await == "0"
            })
            .await;
        }
        std::fs::write(&look, "").unwrap();
        streams_to_be(&pair, 4).await;
        std::fs::write(&copied, "").unwrap();
        until_copied(&pair, &["keyless", "two_keys"]).await;
        streams(&pair, 5).await;
        let output = running.stop().await;
        for name in ["keyless", "two_keys"] {
            for text in [
                format!("copy starts table=\"public.{name}\""),
                format!("copy done table=\"public.{name}\""),
            ] {
                assert_eq!(output.stderr.matches(&text).count(), 1, "{}", output.stderr);
            }
        }
        pair.catch_up(&[]).await;
        pair.assert_equal("two_keys").await;
        pair.drop().await;
    }
}

/// Events of tables whose copies may not be there yet.
async fn streams_to_be(pair: &Pair, id: u32) {
    pair.provider
        .run(&format!(
            "insert into keyless values ({id}, 'meanwhile'); update two_keys set u = -id, v = 'meanwhile' where id = {id};
             delete from two_keys where id = 100 + {id}"
        ))
        .await;
    goes_on(pair, id).await;
}

/// That of a partitioned table makes way, as partitions may have to be made; what is committed of it is not copied again, and
/// nothing is copied twice.
#[tokio::test]
async fn the_copy_of_a_partitioned_table_makes_way() {
    let pair = replayed().await;
    pair.provider
        .run(
            "create table parted (id int primary key, v text) partition by range (id);
             create table parted_1 partition of parted for values from (0) to (2250); create table parted_2 partition of parted for values from (2250) to (10000);
             insert into parted select i, 'x' from generate_series(1, 4499) i; create table other (id int primary key); analyze",
        )
        .await;
    let go_on = pair.subscriber_cluster.file(&format!("go-on-{}", pair.database));
    let running = pair
        .replay()
        .args(&["--jobs", "3", "--copy-chunk-bytes", "65536"])
        .failpoints(&format!("in_copy=pause:{go_on}"))
        .spawn();
    goes_on(&pair, 2).await;
    table(&pair, &["add", "parted", "--create"]);
    // Each is at its end, and will be committed.
    eventually("all chunks wait, and a worker is free", async || {
        running.stderr().contains("table=public.parted chunks=2")
            && running.stderr().matches("in_copy waits until").count() == 2
    })
    .await;
    pair.provider
        .run("update parted set v = 'changed' where id % 7 = 0; delete from parted where id % 11 = 0")
        .await;
    table(&pair, &["add", "other", "--create", "--no-copy"]);
    goes_on(&pair, 3).await;
    std::fs::write(&go_on, "").unwrap();
    until_copied(&pair, &["parted", "small"]).await;
    running.stop().await;
    pair.drop().await;
}
