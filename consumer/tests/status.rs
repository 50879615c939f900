//! `consumer status`, the real binary, while replay is at various places.
#![allow(missing_docs, unreachable_pub, dead_code, reason = "a test binary has no interface")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod cluster;

use std::process::{Command, Stdio};

use cluster::{Pair, eventually, pair};
use serde_json::{Value, json};

const NOWHERE: &str = "host=127.0.0.1 port=1 user=u dbname=d";

fn run(provider: &str, subscriber: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_consumer"))
        .args(["status", "--provider", provider, "--subscriber", subscriber])
        .args(arguments)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

struct Ends {
    provider: String,
    subscriber: String,
}

impl Ends {
    fn of(pair: &Pair) -> Self {
        Self {
            provider: pair.provider_cluster.conninfo(&pair.database),
            subscriber: pair.subscriber_cluster.conninfo(&pair.database),
        }
    }

    #[track_caller]
    fn json(&self, code: i32, arguments: &[&str]) -> Value {
        let (exit, text) = run(&self.provider, &self.subscriber, &[&["--json"], arguments].concat());
        assert_eq!(exit, Some(code), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        serde_json::from_str(&text).unwrap()
    }
}

/// When it is ok depends on other tests' transactions, too.
fn is_copied(table: &Value) -> bool {
    table["state"] == "ok" || table["state"] == "catching-up"
}

#[tokio::test]
async fn it_shows_position_lag_and_tables() {
    let pair = pair().await;
    let ends = Ends::of(&pair);
    let (code, text) = run(&ends.provider, &ends.subscriber, &[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("Nothing is replayed into this subscriber"), "{text}");
    assert!(!text.contains("password"), "{text}");

    pair.provider
        .run("create table a (id int primary key); create table \"B b\" (id int primary key)")
        .await;
    pair.provider.run("insert into a select generate_series(1, 7)").await;
    pair.catch_up(&["--table", "*", "--create"]).await;
    let status = ends.json(0, &[]);
    assert_eq!(
        (&status["provider"]["reachable"], &status["subscriber"]["reachable"]),
        (&json!(true), &json!(true))
    );
    let consumer = &status["consumers"][0];
    assert_eq!(
        (&consumer["queue"], &consumer["consumer"], &consumer["error"]),
        (&json!("q"), &json!("c"), &json!(null))
    );
    assert!(
        consumer["position"]["tick"].is_i64() && consumer["position"]["updated"].is_string(),
        "{consumer}"
    );
    assert_eq!(consumer["registration"]["last_tick"], consumer["position"]["tick"]);
    let tables = consumer["tables"].as_array().unwrap();
    assert_eq!(
        tables
            .iter()
            .map(|table| table["table"].as_str().unwrap())
            .collect::<Vec<_>>(),
        ["public.\"B b\"", "public.a"]
    );
    assert_eq!(tables[1]["copied_rows"], 7);

    pair.provider.run("insert into a select generate_series(11, 15)").await;
    eventually("the change is before a tick", async || {
        ends.json(0, &[])["consumers"][0]["lag"]["ticks"] != json!(0)
    })
    .await;
    let lag = ends.json(0, &[])["consumers"][0]["lag"].clone();
    // Counted by the sequence, which begins at 1 whether or not a first event was drawn.
    assert!([json!(4), json!(5)].contains(&lag["events"]), "{lag}");
    assert!(lag["seconds"].as_f64().unwrap() > 0.0, "{lag}");
    let (_, text) = run(&ends.provider, &ends.subscriber, &[]);
    for part in [
        "consumer c of queue q",
        "position  tick ",
        " events, ",
        "table     public.a ",
        "7 rows copied",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }

    pair.catch_up(&["--table", "*"]).await;
    let status = ends.json(0, &[]);
    let consumer = &status["consumers"][0];
    assert_eq!(consumer["lag"]["events"], 0, "{consumer}");
    assert!(
        consumer["tables"].as_array().unwrap().iter().all(is_copied),
        "{consumer}"
    );
    for (arguments, count) in [
        (["--queue", "q"], 1),
        (["--queue", "x"], 0),
        (["--consumer", "c"], 1),
        (["--consumer", "x"], 0),
    ] {
        assert_eq!(
            ends.json(0, &arguments)["consumers"].as_array().unwrap().len(),
            count,
            "{arguments:?}"
        );
    }
    pair.drop().await;
}

#[tokio::test]
async fn an_end_that_cannot_be_reached_is_told_and_the_other_shown() {
    let pair = pair().await;
    pair.provider.run("create table a (id int primary key)").await;
    pair.catch_up(&["--table", "a", "--create"]).await;
    let ends = Ends::of(&pair);

    let without = Ends {
        provider: NOWHERE.to_owned(),
        subscriber: ends.subscriber.clone(),
    };
    let status = without.json(1, &[]);
    assert_eq!(
        (&status["provider"]["reachable"], &status["subscriber"]["error"]),
        (&json!(false), &json!(null))
    );
    assert!(
        status["provider"]["error"]
            .as_str()
            .unwrap()
            .contains("127.0.0.1 port 1"),
        "{status}"
    );
    let consumer = &status["consumers"][0];
    assert_eq!(
        (&consumer["lag"], &consumer["registration"]),
        (&json!(null), &json!(null))
    );
    assert!(
        consumer["position"]["tick"].is_i64() && is_copied(&consumer["tables"][0]),
        "{consumer}"
    );

    let without = Ends {
        provider: ends.provider.clone(),
        subscriber: NOWHERE.to_owned(),
    };
    let status = without.json(1, &[]);
    assert_eq!(
        (&status["provider"]["error"], &status["subscriber"]["reachable"]),
        (&json!(null), &json!(false))
    );
    let consumer = &status["consumers"][0];
    assert_eq!(
        (&consumer["consumer"], &consumer["position"]),
        (&json!("c"), &json!(null))
    );
    assert!(
        consumer["lag"]["ticks"].is_i64() && consumer["registration"]["last_tick"].is_i64(),
        "{consumer}"
    );
    let (code, text) = run(&ends.provider, NOWHERE, &[]);
    assert_eq!(code, Some(1));
    assert!(
        text.contains("FAILED") && text.contains("consumer c of queue q"),
        "{text}"
    );

    // A database without the extension where the provider should be.
    let status = Ends {
        provider: ends.subscriber.clone(),
        subscriber: ends.subscriber.clone(),
    }
    .json(1, &[]);
    assert!(
        status["provider"]["hint"]
            .as_str()
            .unwrap()
            .contains("CREATE EXTENSION pgcascade"),
        "{status}"
    );
    pair.drop().await;
}

#[tokio::test]
async fn what_keeps_a_consumer_from_going_on_is_told() {
    let pair = pair().await;
    let ends = Ends::of(&pair);
    pair.provider.run("create table a (id int primary key)").await;
    pair.catch_up(&["--table", "a", "--create"]).await;

    pair.subscriber.run("insert into a values (1)").await;
    pair.provider.run("insert into a values (1)").await;
    let output = pair.replay().args(&["--table", "a"]).output().await;
    assert_eq!(output.code(), Some(1), "{}", output.stderr);
    let status = ends.json(0, &[]);
    let table = &status["consumers"][0]["tables"][0];
    assert!(table["error"].as_str().unwrap().contains("public.a"), "{table}");
    assert!(
        run(&ends.provider, &ends.subscriber, &[]).1.contains("ERROR: "),
        "{status}"
    );

    pair.provider.run("select pgq.unregister_consumer('q', 'c')").await;
    let status = ends.json(0, &[]);
    let consumer = &status["consumers"][0];
    assert_eq!(
        consumer["error"],
        "the consumer is not registered on the provider any more"
    );
    assert_eq!(consumer["lag"], json!(null));
    pair.provider.run("select pgq.drop_queue('q')").await;
    assert_eq!(
        ends.json(0, &[])["consumers"][0]["error"],
        "the provider has no queue \"q\""
    );
    pair.drop().await;
}
