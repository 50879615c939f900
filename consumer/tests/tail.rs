//! `consumer tail`, the real binary, against a real queue that the real ticker ticks.
#![allow(missing_docs, unreachable_pub, dead_code, reason = "a test binary has no interface")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod cluster;

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicI64, Ordering};

use cluster::{Cluster, Db, Pair, Replay, eventually, pair, pause_ticks};
use serde_json::{Value, json};

fn tail(pair: &Pair, arguments: &[&str]) -> Command {
    tail_of(&pair.provider_cluster.conninfo(&pair.database), arguments)
}

fn tail_of(conninfo: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_consumer"));
    command.args(["tail", "--provider", conninfo]).args(arguments);
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn run(pair: &Pair, arguments: &[&str]) -> Output {
    tail(pair, arguments).output().unwrap()
}

/// The events of a run that must have gone well.
#[track_caller]
fn events(pair: &Pair, arguments: &[&str]) -> Vec<Value> {
    lines(&run(pair, arguments))
}

#[track_caller]
fn lines(output: &Output) -> Vec<Value> {
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    std::str::from_utf8(&output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// stderr of a run that must have failed with this code.
#[track_caller]
fn refusal(pair: &Pair, arguments: &[&str], code: i32) -> String {
    let output = run(pair, arguments);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stderr).unwrap()
}

fn ids(events: &[Value]) -> Vec<i64> {
    events.iter().map(|event| event["ev_id"].as_i64().unwrap()).collect()
}

/// A queue that is ticked as soon as there is something, and a table that is captured into it.
async fn queue(pair: &Pair) {
    queue_in(&pair.provider).await;
}

async fn queue_in(provider: &Db) {
    provider
        .run(
            "select pgq.create_queue('q'), pgq.set_queue_config('q', 'ticker_max_lag', '0');
             create table t (id int primary key, \"Odd Name\" text);
             create trigger capture after insert or update or delete on t
                 for each row execute function pgq.logutriga('q')",
        )
        .await;
}

/// Until everything that was written is before a tick.
async fn ticked(pair: &Pair) {
    ticked_in(&pair.provider).await;
}

async fn ticked_in(provider: &Db) {
    let sql = "select coalesce(max(ev_txid), 0) < (select max(txid_snapshot_xmin(tick_snapshot)) from pgq.tick)
                 from pgq.event_1";
    eventually("the queue is ticked", async || provider.text(sql).await == "t").await;
}

#[tokio::test]
async fn the_last_events_are_printed_decoded() {
    let pair = pair().await;
    queue(&pair).await;
    assert_eq!(events(&pair, &["q"]), Vec::<Value>::new());
    pair.provider
        .run("insert into t select i, 'a&b ' || i from generate_series(1, 25) i")
        .await;
    pair.provider.run("update t set \"Odd Name\" = null where id = 1").await;
    pair.provider.run("delete from t where id = 2").await;
    pair.provider
        .run("select pgq.insert_event('q', 'order', '{\"a\": 1}', 'x', null, '', 'größe')")
        .await;
    ticked(&pair).await;
    assert_eq!(ids(&events(&pair, &["q"])), (19..=28).collect::<Vec<i64>>());
    assert_eq!(ids(&events(&pair, &["q", "-n", "100"])), (1..=28).collect::<Vec<i64>>());
    assert_eq!(events(&pair, &["q", "-n", "0"]), Vec::<Value>::new());
    let last = events(&pair, &["q", "-n", "4"]);
    let [insert, update, delete, order] = last.as_slice() else {
        panic!("{last:?}")
    };
    assert_eq!(
        (&insert["operation"], &insert["columns"]),
        (&json!("insert"), &json!({"id": "25", "Odd Name": "a&b 25"}))
    );
    assert_eq!((&insert["table"], &insert["key"]), (&json!("public.t"), &json!(["id"])));
    assert_eq!(
        (&update["operation"], &update["columns"]),
        (&json!("update"), &json!({"id": "1", "Odd Name": null}))
    );
    assert_eq!(
        (&delete["operation"], &delete["columns"]["id"]),
        (&json!("delete"), &json!("2"))
    );
    assert_eq!(
        (&order["ev_type"], &order["ev_data"]),
        (&json!("order"), &json!("{\"a\": 1}"))
    );
    let extra: Vec<&Value> = (1..=4).map(|number| &order[format!("ev_extra{number}")]).collect();
    assert_eq!(extra, [&json!("x"), &json!(null), &json!(""), &json!("größe")]);
    assert!(
        order["ev_time"].as_str().unwrap().ends_with("+00:00") && order["ev_txid"].is_i64() && order["tick"].is_i64()
    );
    // Gaps of the sequence: what was rolled back is not counted as an event.
    pair.provider
        .run("begin; insert into t select i from generate_series(1000, 1200) i; rollback")
        .await;
    pair.provider.run("select pgq.insert_event('q', 'end', null)").await;
    ticked(&pair).await;
    assert_eq!(events(&pair, &["q", "-n", "29"]).len(), 29);
    assert_eq!(pair.provider.text("select count(*) from pgq.consumer").await, "0");
    pair.drop().await;
}

#[tokio::test]
async fn from_begins_after_a_tick_and_n_ends_it() {
    let pair = pair().await;
    queue(&pair).await;
    for number in 1..=3 {
        pair.provider.run(&format!("insert into t values ({number})")).await;
        ticked(&pair).await;
    }
    assert_eq!(ids(&events(&pair, &["q", "--from", "oldest"])), [1, 2, 3]);
    assert_eq!(ids(&events(&pair, &["q", "--from", "oldest", "-n", "2"])), [1, 2]);
    let all = events(&pair, &["q", "--from", "oldest"]);
    let tick = all[0]["tick"].to_string();
    assert_eq!(ids(&events(&pair, &["q", "--from", &tick])), [2, 3]);
    let newest = pair.provider.text("select max(tick_id) from pgq.tick").await;
    assert_eq!(events(&pair, &["q", "--from", &newest]), Vec::<Value>::new());
    let oldest = pair.provider.text("select min(tick_id) from pgq.tick").await;
    let refused = refusal(&pair, &["q", "--from", "1000000"], 1);
    assert!(
        refused.starts_with("consumer: error: queue \"q\" has no tick 1000000\nHINT: It has ticks from"),
        "{refused}"
    );
    assert!(
        refused.contains(&format!("from {oldest} (--from oldest) to ")),
        "{refused}"
    );
    assert!(
        refusal(&pair, &["Q"], 1).starts_with("consumer: error: queue \"Q\" does not exist on the provider\nHINT: ")
    );
    assert!(refusal(&pair, &["q", "--from", "now"], 2).contains("--from"));
    let elsewhere = pair.subscriber_cluster.conninfo(&pair.database);
    let output = Command::new(env!("CARGO_BIN_EXE_consumer"))
        .args(["tail", "q", "--provider", &elsewhere])
        .output()
        .unwrap();
    let refused = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{refused}");
    assert!(
        refused.contains("SQLSTATE 42P01") && refused.contains("CREATE EXTENSION pgcascade"),
        "{refused}"
    );
    pair.drop().await;
}

/// A run that goes on, and its lines.
struct Following {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Following {
    fn start(pair: &Pair, arguments: &[&str]) -> Self {
        Self::spawn(&mut tail(pair, arguments))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// Waits for the next event; the test's own time limit is that of the runner.
    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?} {}", self.stderr()))
    }

    fn signal(&self, name: &str) {
        assert!(
            Command::new("kill")
                .args([&format!("-{name}"), &self.child.id().to_string()])
                .status()
                .unwrap()
                .success()
        );
    }

    fn stderr(&mut self) -> String {
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn follow_prints_what_comes_until_it_is_told_to_stop() {
    let pair = pair().await;
    queue(&pair).await;
    pair.provider.run("insert into t values (1)").await;
    ticked(&pair).await;
    let mut following = Following::start(&pair, &["q", "-f"]);
    assert_eq!(following.next()["ev_id"], 1);
    for number in 2..=4 {
        pair.provider.run(&format!("insert into t values ({number})")).await;
        assert_eq!(following.next()["columns"]["id"], number.to_string());
    }
    following.signal("TERM");
    assert_eq!(following.child.wait().unwrap().code(), Some(0));
    let mut limited = Following::start(&pair, &["q", "--from", "oldest", "-f", "-n", "5"]);
    for number in 1..=4 {
        assert_eq!(limited.next()["ev_id"], number);
    }
    pair.provider.run("insert into t values (5)").await;
    assert_eq!(limited.next()["ev_id"], 5);
    assert_eq!(limited.child.wait().unwrap().code(), Some(0));
    pair.drop().await;
}

#[tokio::test]
async fn a_closed_pipe_ends_it_quietly() {
    let pair = pair().await;
    queue(&pair).await;
    pair.provider
        .run("insert into t select i, repeat('x', 1000) from generate_series(1, 2000) i")
        .await;
    ticked(&pair).await;
    for arguments in [
        &["q", "--from", "oldest"][..],
        &["q", "--from", "oldest", "-f"],
        &["q", "-n", "2000"],
    ] {
        let mut child = tail(&pair, arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        drop(lines);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
    }
    pair.drop().await;
}

#[tokio::test]
async fn a_position_that_is_rotated_away_stops_it_and_is_told() {
    let pair = pair().await;
    queue(&pair).await;
    pair.provider.run("insert into t values (1)").await;
    ticked(&pair).await;
    let mut following = Following::start(&pair, &["q", "--from", "oldest", "-f"]);
    assert_eq!(following.next()["ev_id"], 1);
    // It sleeps while the queue goes round once.
    following.signal("STOP");
    pair.provider
        .run("update pgq.queue set queue_rotation_period = '0'")
        .await;
    let start = pair.provider.text("select max(tick_id) from pgq.tick").await;
    let mut number = 1;
    while pair
        .provider
        .text(&format!(
            "select exists (select from pgq.tick where tick_id <= {start})"
        ))
        .await
        == "t"
    {
        number += 1;
        assert!(number < 1000, "rotation does not forget ticks");
        pair.provider.run(&format!("insert into t values ({number})")).await;
        ticked(&pair).await;
        pair.provider.run("select pgq.maint_rotate_tables_step1('q')").await;
        pair.provider.run("select pgq.maint_rotate_tables_step2()").await;
    }
    following.signal("CONT");
    assert_eq!(following.child.wait().unwrap().code(), Some(1));
    let told = following.stderr();
    assert!(
        told.starts_with("consumer: error: tick ") && told.contains("is gone: rotation removed"),
        "{told}"
    );
    assert!(told.contains("HINT: --from oldest"), "{told}");
    pair.drop().await;
}

/// Rotation comes between the look at the ticks and the events.
#[tokio::test]
async fn what_is_left_is_printed_however_much_is_rotated_away() {
    let pair = pair().await;
    queue(&pair).await;
    pair.provider
        .run("update pgq.queue set queue_rotation_period = '0'")
        .await;
    for (number, arguments) in [&["q", "-n", "100"][..], &["q", "--from", "oldest"]]
        .into_iter()
        .enumerate()
    {
        let go_on = format!("go-on-{}-{number}", pair.database);
        let go_on = pair.provider_cluster.file(&go_on);
        let printed = pair.provider_cluster.file(&format!("printed-{}", pair.database));
        pair.provider
            .run(&format!(
                "insert into t values ({})",
                -1 - i64::try_from(number).unwrap()
            ))
            .await;
        ticked(&pair).await;
        let start = pair.provider.text("select max(tick_id) from pgq.tick").await;
        let provider = pair.provider_cluster.conninfo(&pair.database);
        let tail = Replay::command(&["tail", "--provider", &provider])
            .args(arguments)
            .failpoints(&format!("before_window=pause:{go_on}"))
            .stdout_to(&printed)
            .spawn();
        tail.until_it_says("before_window waits").await;
        let (gone, id) = (
            format!("select not exists (select from pgq.tick where tick_id <= {start})"),
            AtomicI64::new(0),
        );
        eventually("the ticks are forgotten", async || {
            let id = 1000 * i64::try_from(number).unwrap() + id.fetch_add(1, Ordering::Relaxed);
            pair.provider.run(&format!("insert into t values ({id})")).await;
            ticked(&pair).await;
            pair.provider.run("select pgq.maint_rotate_tables_step1('q')").await;
            pair.provider.run("select pgq.maint_rotate_tables_step2()").await;
            pair.provider.text(&gone).await == "t"
        })
        .await;
        pair.provider.run("select pgq.insert_event('q', 'last', null)").await;
        ticked(&pair).await;
        std::fs::write(&go_on, "").unwrap();
        let output = tail.wait().await;
        assert_eq!(output.code(), Some(0), "{arguments:?}: {}", output.stderr);
        let printed = std::fs::read_to_string(&printed).unwrap();
        let last: Value = serde_json::from_str(printed.lines().last().unwrap()).unwrap();
        assert_eq!(last["ev_type"], "last", "{arguments:?}");
    }
    pair.drop().await;
}

#[tokio::test]
async fn every_line_is_a_place_to_go_on_from() {
    let pair = pair().await;
    queue(&pair).await;
    pair.provider
        .run(
            "create schema \"S.x\"; create table \"S.x\".\"T\" (id int primary key);
             create trigger capture after insert on \"S.x\".\"T\" for each row execute function pgq.logutriga('q')",
        )
        .await;
    for number in 0..3 {
        let (from, to) = (number * 4 + 1, number * 4 + 4);
        pair.provider
            .run(&format!(
                "begin; insert into t select generate_series({from}, {to}); insert into \"S.x\".\"T\" values ({from});
                 select pgq.insert_event('q', 'order', '{{}}'); commit"
            ))
            .await;
        ticked(&pair).await;
    }
    let all = ids(&events(&pair, &["q", "--from", "oldest"]));
    assert_eq!(all, (1..=18).collect::<Vec<i64>>());
    for (arguments, count) in [
        (&[][..], 18),
        (&["--table", "t"], 12),
        (&["--table", "\"S.x\".*", "--table", "nothing"], 3),
        (&["--table", "*.*"], 15),
        (&["--format", "debezium", "--table", "t"], 12),
    ] {
        let id = |event: &Value| {
            [&event["ev_id"], &event["source"]["eventId"]]
                .into_iter()
                .find_map(Value::as_i64)
        };
        let cursor = |event: &Value| {
            let cursor = event.get("cursor").unwrap_or(&event["source"]["cursor"]);
            cursor.as_str().unwrap().to_owned()
        };
        let part = events(&pair, &[&["q", "--from", "oldest"], arguments].concat());
        assert_eq!(part.len(), count, "{arguments:?}");
        for at in (0..count).step_by(count / 3) {
            let rest = events(&pair, &[&["q", "--from", &cursor(&part[at])], arguments].concat());
            let (wanted, found): (Vec<_>, Vec<_>) =
                (part[at + 1..].iter().map(id).collect(), rest.iter().map(id).collect());
            assert_eq!(found, wanted, "{arguments:?} after {}", part[at]);
        }
    }
    assert_eq!(
        ids(&events(&pair, &["q", "--table", "t", "-n", "5"])),
        [10, 13, 14, 15, 16]
    );
    let oldest = pair.provider.text("select min(tick_id) from pgq.tick").await;
    assert!(
        refusal(&pair, &["q", "--from", &format!("{oldest}/1")], 1)
            .contains("may have lost events up to its oldest tick")
    );
    assert!(refusal(&pair, &["q", "--from", "1000000/1"], 1).contains("queue \"q\" has no tick 1000000"));
    assert!(refusal(&pair, &["q", "--table", "a.b.c"], 2).contains("more than two parts"));
    pair.drop().await;
}

#[tokio::test]
async fn debezium_lines_are_typed_by_the_columns() {
    let pair = pair().await;
    queue(&pair).await;
    pair.provider
        .run(
            "create domain yes as bool; create domain \"deep Yes\" as yes; create type mood as enum ('sad', 'ok');
             create table typed (id int8 primary key, small int2, flag \"deep Yes\", real4 float4, real8 float8, exact numeric,
                 raw bytea, doc jsonb, day date, at timestamptz, many int[], feeling mood, \"Odd Name\" text, gone text);
             create trigger capture after insert or update or delete on typed
                 for each row execute function pgq.logutriga('q', 'backup');
             create trigger capture_truncate after truncate on typed
                 for each statement execute function pgq.logutriga('q');
             begin;
             insert into typed values (9007199254740992, -7, true, 0.1, 'NaN', 0.10, '\\x00ff41', '{\"a\": 1.0}', '2024-02-29',
                 '2024-02-29 12:00:00.5+02', '{1,null}', 'ok', 'größe', 'x');
             insert into t values (1, null);
             update typed set id = 9007199254740993, real8 = 1e300, raw = null;
             update typed set flag = false, gone = '';
             commit",
        )
        .await;
    pair.provider
        .run("delete from typed; truncate typed; select pgq.insert_event('q', 'order', 'ü', 'x', null, '', null)")
        .await;
    ticked(&pair).await;
    // What the table is now decides: text in a column that was made something else stays text.
    pair.provider
        .run("alter table typed drop column gone; alter table typed alter \"Odd Name\" type int using 0")
        .await;
    let before: u128 = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis();
    let all = events(&pair, &["q", "--from", "oldest", "--format", "debezium"]);
    let [insert, other, key_from, key_to, update, delete, truncate, message] = all.as_slice() else {
        panic!("{all:#?}")
    };
    let ops: Vec<&str> = all.iter().map(|event| event["op"].as_str().unwrap()).collect();
    assert_eq!(ops, ["c", "c", "d", "c", "u", "d", "t", "m"]);
    let first = json!({
        "id": 9_007_199_254_740_992_i64, "small": -7, "flag": true, "real4": 0.1, "real8": "NaN", "exact": "0.10",
        "raw": "AP9B", "doc": "{\"a\": 1.0}", "day": "2024-02-29", "at": "2024-02-29 10:00:00.5+00", "many": "{1,NULL}",
        "feeling": "ok", "Odd Name": "größe", "gone": "x"
    });
    assert_eq!((&insert["before"], &insert["after"]), (&Value::Null, &first));
    assert_eq!((&key_from["before"], &key_from["after"]), (&first, &Value::Null));
    let second = &key_to["after"];
    assert_eq!(
        [&second["id"], &second["real8"], &second["raw"]],
        [&json!("9007199254740993"), &json!(1e300), &Value::Null]
    );
    assert_eq!(&update["before"], second, "kept by backup");
    assert_eq!(
        [&update["after"]["flag"], &update["after"]["gone"]],
        [&json!(false), &json!("")]
    );
    assert_eq!((&delete["before"], &delete["after"]), (&update["after"], &Value::Null));
    assert_eq!((&truncate["before"], &truncate["after"]), (&Value::Null, &Value::Null));
    assert_eq!(
        message["message"],
        json!({"prefix": "order", "content": "w7w=", "extra": ["x", null, "", null]})
    );
    let source = &update["source"];
    assert_eq!(
        [
            &source["db"],
            &source["schema"],
            &source["table"],
            &source["key"],
            &source["name"],
            &source["eventId"]
        ],
        [
            &json!(pair.database),
            &json!("public"),
            &json!("typed"),
            &json!(["id"]),
            &json!("q"),
            &json!(5)
        ]
    );
    assert_eq!(
        (&source["cursor"], &source["sequence"]),
        (
            &json!(format!("{}/5", source["tick"])),
            &json!(format!("[\"{}\",\"5\"]", source["tick"]))
        )
    );
    let sql = "select ev_txid, floor(extract(epoch from ev_time) * 1000) from pgq.event_1 where ev_id = 5";
    assert_eq!(
        pair.provider.text(sql).await,
        format!("{}|{}", source["txId"], source["ts_ms"])
    );
    assert!(u128::from(update["ts_ms"].as_u64().unwrap()) >= before);
    let places: Vec<(u64, u64)> = all
        .iter()
        .map(|event| &event["transaction"])
        .map(|place| {
            (
                place["total_order"].as_u64().unwrap(),
                place["data_collection_order"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(places, [(1, 1), (2, 1), (3, 2), (4, 3), (5, 4), (1, 1), (2, 2), (3, 1)]);
    assert_eq!(update["transaction"]["id"], source["txId"].to_string());
    assert_eq!(other["after"], json!({"id": 1, "Odd Name": null}));
    // A place within a transaction is the same wherever one begins.
    let cursor = key_to["source"]["cursor"].as_str().unwrap();
    let rest = events(
        &pair,
        &["q", "--from", cursor, "--format", "debezium", "--table", "typed"],
    );
    assert_eq!(rest[0]["transaction"], update["transaction"]);
    pair.drop().await;
}

#[tokio::test]
async fn a_database_that_is_not_utf8_prints_its_characters() {
    let pair = pair().await;
    let cluster = &pair.provider_cluster;
    let database = format!("{}_latin1", pair.database);
    pair.provider
        .run(&format!(
            "create database {database} encoding latin1 locale 'C' template template0"
        ))
        .await;
    let provider = cluster.connect(&database).await;
    cluster.create_extension(&provider).await;
    queue_in(&provider).await;
    // The bytes of the second one are a character of UTF-8, too.
    provider
        .run("insert into t values (1, 'größe'), (2, 'Ã¼'), (3, null)")
        .await;
    ticked_in(&provider).await;
    for (format, part) in [("json", "columns"), ("debezium", "after")] {
        let output = tail_of(&cluster.conninfo(&database), &["q", "--format", format])
            .output()
            .unwrap();
        let names: Vec<Value> = lines(&output)
            .iter()
            .map(|event| event[part]["Odd Name"].clone())
            .collect();
        assert_eq!(names, [json!("größe"), json!("Ã¼"), Value::Null], "{format}");
    }
    drop(provider);
    cluster.drop_database(&database).await;
    pair.drop().await;
}

/// Reads as many lines and asserts that their ids are the next ones.
#[track_caller]
fn expect(following: &mut Following, ids: std::ops::RangeInclusive<i64>) {
    for id in ids {
        let event = following.next();
        assert_eq!(event.pointer("/source/eventId"), Some(&json!(id)), "{event}");
    }
}

#[tokio::test]
async fn follow_survives_lost_connections_and_restarts() {
    let cluster = Cluster::start("tail", &[]);
    let provider = cluster.connect("postgres").await;
    cluster.create_extension(&provider).await;
    queue_in(&provider).await;
    let arguments = ["q", "--from", "oldest", "-f", "--format", "debezium"];
    let mut following = Following::spawn(&mut tail_of(&cluster.conninfo("postgres"), &arguments));
    // More than the pipe holds, so that it is in the middle of the answer when the connection goes.
    provider
        .run("insert into t select i, repeat('x', 100) from generate_series(1, 20000) i")
        .await;
    expect(&mut following, 1..=1);
    let sessions = "from pg_stat_activity where application_name like 'consumer tail%'";
    let end = async || {
        eventually("it has its two sessions, and none of before", async || {
            provider.text(&format!("select count(*) {sessions}")).await == "2"
        })
        .await;
        let ended = format!("select count(pg_terminate_backend(pid)) {sessions}");
        assert_eq!(provider.text(&ended).await, "2");
    };
    end().await;
    expect(&mut following, 2..=20_000);
    // While it waits.
    provider.run("insert into t values (20001)").await;
    expect(&mut following, 20_001..=20_001);
    end().await;
    provider.run("insert into t values (20002)").await;
    expect(&mut following, 20_002..=20_002);
    drop(provider);
    cluster.restart("fast");
    let provider = cluster.connect("postgres").await;
    provider.run("insert into t select generate_series(20003, 20010)").await;
    let highest = provider.text("select max(ev_id) from pgq.event_1").await;
    assert_eq!(highest, "20010", "ids without a gap");
    expect(&mut following, 20_003..=20_010);
    drop(provider);
    cluster.kill();
    cluster.start_again();
    let provider = cluster.connect("postgres").await;
    provider.run("insert into t values (30000)").await;
    // A crash may skip ids.
    let after = following.next();
    assert_eq!(after["after"]["id"], 30_000, "{after}");
    following.signal("TERM");
    assert_eq!(following.child.wait().unwrap().code(), Some(0));
    let told = following.stderr();
    assert!(told.contains("retry_in_ms"), "{told}");
}

/// What `pgq.subscription` says of consumer w.
async fn position(pair: &Pair) -> String {
    pair.provider
        .text(
            "select sub_last_tick from pgq.subscription join pgq.consumer on co_id = sub_consumer where co_name = 'w'",
        )
        .await
}

#[tokio::test]
async fn a_consumer_holds_rotation_and_keeps_its_position() {
    let pair = pair().await;
    queue(&pair).await;
    pair.provider.run("insert into t select generate_series(1, 3)").await;
    ticked(&pair).await;
    let newest = pair.provider.text("select max(tick_id) from pgq.tick").await;
    assert_eq!(
        events(&pair, &["q", "--consumer", "w"]),
        Vec::<Value>::new(),
        "a new one begins now"
    );
    let number = |tick: String| tick.parse::<i64>().unwrap();
    assert!(number(position(&pair).await) >= number(newest));
    pair.provider.run("select pgq.unregister_consumer('q', 'w')").await;
    // One event of a batch is not the batch.
    let oldest = ["q", "--consumer", "w", "--from", "oldest"];
    assert_eq!(ids(&events(&pair, &[&oldest[..], &["-n", "1"]].concat())), [1]);
    assert_eq!(ids(&events(&pair, &oldest)), [1, 2, 3]);
    assert_eq!(
        events(&pair, &oldest),
        Vec::<Value>::new(),
        "the position is later than --from"
    );
    // While it sleeps the queue would go round many times.
    let mut following = Following::start(&pair, &[&oldest[..], &["-f"]].concat());
    pair.provider.run("insert into t values (4)").await;
    assert_eq!(following.next()["ev_id"], 4);
    let refused = refusal(&pair, &oldest, 1);
    assert!(
        refused.contains("consumer \"w\" of queue \"q\" is in use already"),
        "{refused}"
    );
    following.signal("STOP");
    // Not before: where nobody is registered, the maintenance in the background would rotate at any time.
    pair.provider
        .run("update pgq.queue set queue_rotation_period = '0'")
        .await;
    let sessions = "from pg_stat_activity where application_name = 'consumer tail' and datname = current_database()";
    eventually("the one that was refused has gone", async || {
        pair.provider.text(&format!("select count(*) {sessions}")).await == "1"
    })
    .await;
    for number in 5..=12 {
        pair.provider.run(&format!("insert into t values ({number})")).await;
        ticked(&pair).await;
        pair.provider.run("select pgq.maint_rotate_tables_step1('q')").await;
        pair.provider.run("select pgq.maint_rotate_tables_step2()").await;
    }
    let ended = format!("select count(pg_terminate_backend(pid)) {sessions}");
    assert_eq!(pair.provider.text(&ended).await, "1");
    following.signal("CONT");
    for number in 5..=12 {
        assert_eq!(following.next()["ev_id"], number);
    }
    following.signal("TERM");
    assert_eq!(following.child.wait().unwrap().code(), Some(0));
    // A tick while they are written would have the next batch without them.
    pause_ticks(&pair.provider).await;
    assert_eq!(events(&pair, &oldest), Vec::<Value>::new());
    // Killed between the flush and the position: the lines are there, and come again.
    pair.provider
        .run("insert into t values (13), (14); update pgq.queue set queue_ticker_paused = false")
        .await;
    ticked(&pair).await;
    let was = position(&pair).await;
    let killed = tail(&pair, &oldest)
        .env("PGCASCADE_FAILPOINTS", "after_flush=kill")
        .output()
        .unwrap();
    assert_eq!(killed.status.code(), None);
    let printed: Vec<Value> = std::str::from_utf8(&killed.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(ids(&printed), [13, 14]);
    assert_eq!(position(&pair).await, was);
    assert_eq!(ids(&events(&pair, &["q", "--consumer", "w", "-n", "1"])), [13]);
    // Whoever knows the last line goes on after it.
    let cursor = printed[0]["cursor"].as_str().unwrap();
    assert_eq!(ids(&events(&pair, &["q", "--consumer", "w", "--from", cursor])), [14]);
    pair.drop().await;
}
