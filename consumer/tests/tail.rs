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

use cluster::{Pair, eventually, pair};
use serde_json::{Value, json};

fn tail(pair: &Pair, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_consumer"));
    command
        .args(["tail", "--provider", &pair.provider_cluster.conninfo(&pair.database)])
        .args(arguments);
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn run(pair: &Pair, arguments: &[&str]) -> Output {
    tail(pair, arguments).output().unwrap()
}

/// The events of a run that must have gone well.
#[track_caller]
fn events(pair: &Pair, arguments: &[&str]) -> Vec<Value> {
    let output = run(pair, arguments);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout)
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
    pair.provider
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
    let sql = "select coalesce(max(ev_txid), 0) < (select max(txid_snapshot_xmin(tick_snapshot)) from pgq.tick)
                 from pgq.event_1";
    eventually("the queue is ticked", async || pair.provider.text(sql).await == "t").await;
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
        let mut child = tail(pair, arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
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
