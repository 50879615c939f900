//! `consumer compare`, the real binary: what it names, what it must not name, and how little it reads for that.
#![allow(missing_docs, unreachable_pub, dead_code, reason = "a test binary has no interface")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod cluster;

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cluster::{Cluster, Pair, pair};
use serde_json::{Value, json};

/// Runs it and returns exit code, stdout and stderr.
async fn run(verb: &str, provider: &str, subscriber: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_consumer"));
    command
        .args(verb.split(' '))
        .args(["-q", "--provider", provider, "--subscriber", subscriber])
        .args(arguments)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
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

    async fn compare(&self, code: i32, arguments: &[&str]) -> Value {
        let (exit, text, stderr) = run(
            "compare",
            &self.provider,
            &self.subscriber,
            &[&["--json"], arguments].concat(),
        )
        .await;
        assert_eq!(exit, Some(code), "{text}{stderr}");
        assert_eq!(text.lines().count(), 1, "{text}");
        let report: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(report["equal"], code == 0, "{text}");
        report
    }

    /// The same for a repair.
    async fn repair(&self, code: i32, arguments: &[&str]) -> Value {
        let (exit, text, stderr) = self.run_repair(arguments).await;
        assert_eq!(exit, Some(code), "{text}{stderr}");
        serde_json::from_str(&text).unwrap()
    }

    async fn repair_any(&self, arguments: &[&str]) -> Value {
        let (_, text, stderr) = self.run_repair(arguments).await;
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{stderr}"))
    }

    async fn run_repair(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        run(
            "repair",
            &self.provider,
            &self.subscriber,
            &[&["--json"], arguments].concat(),
        )
        .await
    }

    async fn text(&self, code: i32, arguments: &[&str]) -> String {
        let (exit, text, stderr) = run("compare", &self.provider, &self.subscriber, arguments).await;
        assert_eq!(exit, Some(code), "{text}{stderr}");
        text + &stderr
    }
}

/// The report of one table.
fn table<'a>(report: &'a Value, name: &str) -> &'a Value {
    let tables = report["tables"].as_array().unwrap();
    tables
        .iter()
        .find(|table| table["table"] == name)
        .unwrap_or_else(|| panic!("no {name}: {report}"))
}

/// Kind, key and columns of every difference of a table, sorted.
fn differences(report: &Value, name: &str) -> Vec<String> {
    let table = table(report, name);
    assert_eq!(table["truncated"], false, "{table}");
    let mut lines: Vec<String> = table["differences"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            let key: Vec<&str> = match row["key"].as_object() {
                Some(key) => key.values().map(|value| value.as_str().unwrap()).collect(),
                None => vec![row["row"].as_str().unwrap()],
            };
            let columns: Vec<&str> = row["columns"]
                .as_array()
                .unwrap()
                .iter()
                .map(|column| column.as_str().unwrap())
                .collect();
            format!(
                "{} {} {}",
                row["kind"].as_str().unwrap(),
                key.join("/"),
                columns.join(",")
            )
            .trim_end()
            .to_owned()
        })
        .collect();
    lines.sort();
    lines
}

const TABLES: &str = r#"
create table plain (id int primary key, v text, f float8, n numeric, b bytea, j jsonb, a int[], at timestamptz);
create table empty (id int primary key);
create table many (id int primary key, v text);
create schema "Odd.S""x";
create table "Odd.S""x"."T,é 'y" ("K.1" int, "k""2" text, "v=&" text, primary key ("k""2", "K.1"));
create table words (w text collate "POSIX" primary key, v int);
create table numbers (n numeric primary key, v text);
create table keyless (a int, b text);
create table made (id int primary key, v int, twice int generated always as (v * 2) stored);
create table typed (id int primary key, c char(3), n numeric, v varchar(9), j json, t timestamp);
create table floats (f float8 primary key, v int);
"#;

const ROWS: &str = r#"
insert into plain select g, 'v' || g, g / 3.0, g, decode(md5(g::text), 'hex'), jsonb_build_object('g', g), array[g, null], now() + g * interval '1 s'
  from generate_series(1, 300) g;
insert into many select g, md5(g::text) from generate_series(1, 5000) g;
insert into "Odd.S""x"."T,é 'y" select g, 'k''\ "ü' || g, '=&%' || g from generate_series(1, 50) g;
insert into words select md5(g::text), g from generate_series(1, 3000) g;
insert into numbers select g + 0.50, 'x' from generate_series(1, 20) g;
insert into keyless select g % 5, 'b' from generate_series(1, 25) g;
insert into made select g, g from generate_series(1, 9) g;
insert into typed values (1, 'a', 1.5, 'x', '{"b": 1, "a": 2}', '2026-01-01 01:02:03.456'), (2, null, 'NaN', '', null, 'infinity');
insert into floats values (0, 1), (1.5, 2), ('NaN', 3), ('-infinity', 4);
"#;

#[tokio::test]
async fn damage_of_every_kind_is_named_and_nothing_else() {
    let pair = pair().await;
    let ends = Ends::of(&pair);
    pair.provider.run(TABLES).await;
    pair.provider.run(ROWS).await;
    // The subscriber sorts words in another order, as far as names can tell, and has a column of its own.
    pair.subscriber
        .run(
            "create table words (w text collate \"C\" primary key, v int, own text default 'mine');
             create table typed (id bigint primary key, c char(7), n numeric(9, 3), v text, j jsonb, t timestamp(1))",
        )
        .await;
    let all = ["--table", "*", "--table", "\"Odd.S\"\"x\".*", "--create"];
    pair.catch_up(&all).await;
    // Once by events, too.
    pair.provider
        .run("update plain set v = v || 'x' where id % 3 = 0; update words set v = v + 1 where v % 2 = 0; insert into keyless values (9, null)")
        .await;
    pair.catch_up(&all).await;
    let report = ends.compare(0, &[]).await;
    assert_eq!(report["tables"].as_array().unwrap().len(), 10, "{report}");
    assert_eq!(table(&report, "public.many")["rows"], 5000);
    assert_eq!(table(&report, "public.many")["rows_read"], 0);
    assert_eq!(table(&report, "public.keyless")["rows"], 26);
    assert_eq!(
        table(&report, "public.words")["columns_left_out"],
        json!([{"column": "own", "reason": "only on the subscriber"}])
    );
    assert_eq!(
        table(&report, "public.made")["columns_left_out"],
        json!([{"column": "twice", "reason": "generated"}])
    );

    pair.subscriber
        .run(
            r#"
            update plain set v = '' where id = 1; update plain set v = null where id = 2;
            update plain set f = '-0' where id = 4; update plain set n = 5.0 where id = 5;
            update plain set a = '{6}', j = '{"g": 6.0}' where id = 6; update plain set at = at + interval '1 us' where id = 7;
            delete from plain where id = 8; insert into plain (id) values (-1), (301);
            insert into empty values (7);
            delete from many where id between 2001 and 4000; update many set v = 'x' where id = 4444;
            update "Odd.S""x"."T,é 'y" set "v=&" = '' where "K.1" = 7; delete from "Odd.S""x"."T,é 'y" where "K.1" = 8;
            delete from words where v = 1; update words set v = -1 where w = md5('3'); insert into words values ('zz', 1);
            update words set own = 'other';
            update numbers set n = 1.5 where n = 1.50; update numbers set v = null where n = 2.5;
            delete from keyless where ctid = any (array(select ctid from keyless where a = 3 limit 2)); insert into keyless values (9, ''), (9, '');
            update floats set f = '-0' where f = 0; update floats set v = 9 where f = 'NaN';
            update made set v = 0 where id = 1;
            update typed set c = 'b', n = 1.501, v = 'y', j = '{"a": 2}', t = t + interval '0.1 s' where id = 1;
            "#,
        )
        .await;
    pair.provider.run("update plain set f = 0 where id = 4").await;
    pair.catch_up(&all).await;
    pair.subscriber.run("update plain set f = '-0' where id = 4").await;
    let report = ends.compare(1, &["--rows", "3000", "--jobs", "3"]).await;
    assert_eq!(
        differences(&report, "public.plain"),
        [
            "changed 1 v",
            "changed 2 v",
            "changed 4 f",
            "changed 5 n",
            "changed 6 j,a",
            "changed 7 at",
            "extra -1",
            "extra 301",
            "missing 8"
        ]
    );
    assert_eq!(differences(&report, "public.empty"), ["extra 7"]);
    let many = table(&report, "public.many");
    assert_eq!(
        (&many["missing"], &many["changed"], &many["extra"]),
        (&json!(2000), &json!(1), &json!(0))
    );
    let rows: u64 = many["ranges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|range| range["rows"].as_u64().unwrap())
        .sum();
    assert_eq!(rows, 2001, "{}", many["ranges"]);
    assert_eq!(
        differences(&report, "\"Odd.S\"\"x\".\"T,é 'y\""),
        ["changed k'\\ \"ü7/7 v=&", "missing k'\\ \"ü8/8"]
    );
    let one = pair.provider.text("select md5('1')").await;
    let three = pair.provider.text("select md5('3')").await;
    let mut words = vec![
        format!("missing {one}"),
        format!("changed {three} v"),
        "extra zz".to_owned(),
    ];
    words.sort();
    assert_eq!(differences(&report, "public.words"), words);
    assert_eq!(
        differences(&report, "public.numbers"),
        ["changed 1.5 n", "changed 2.5 v"]
    );
    assert_eq!(
        differences(&report, "public.keyless"),
        ["extra (9,\"\")", "missing (3,b)"]
    );
    let keyless = table(&report, "public.keyless");
    assert_eq!(
        (&keyless["missing"], &keyless["extra"]),
        (&json!(2), &json!(2)),
        "{keyless}"
    );
    assert_eq!(differences(&report, "public.floats"), ["changed 0 f", "changed NaN v"]);
    assert_eq!(differences(&report, "public.made"), ["changed 1 v"]);
    assert_eq!(differences(&report, "public.typed"), ["changed 1 c,n,v,j,t"]);

    let text = ends
        .text(1, &["--table", "plain", "--table", "empty", "--rows", "4"])
        .await;
    for part in [
        "public.plain: DIFFERENT, 300 rows: 6 changed, 1 missing on the subscriber, 2 extra there",
        "extra id=7",
        "--rows N shows more",
        "2 tables: 0 equal, 2 different, 0 unsettled, 0 failed",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    pair.drop().await;
}

#[tokio::test]
async fn a_big_table_is_read_in_detail_only_where_it_is_damaged() {
    let pair = pair().await;
    let ends = Ends::of(&pair);
    pair.provider
        .run(
            "create table big (a int, b int, v text, primary key (a, b));
             insert into big select g % 20, g, repeat('x', 20) || g from generate_series(1, 200000) g; analyze big",
        )
        .await;
    pair.catch_up(&["--table", "big", "--create"]).await;
    let report = ends.compare(0, &[]).await;
    let big = table(&report, "public.big");
    assert_eq!((&big["rows"], &big["rows_read"]), (&json!(200_000), &json!(0)));
    pair.subscriber
        .run(
            "update big set v = 'y' where b = 77777; delete from big where b = 123456;
             insert into big values (3, -5, ''); insert into big select 99, g, '' from generate_series(1, 5000) g",
        )
        .await;
    let report = ends.compare(1, &["--rows", "6000"]).await;
    let big = table(&report, "public.big");
    assert_eq!(
        (&big["rows"], &big["changed"], &big["missing"], &big["extra"]),
        (&json!(200_000), &json!(1), &json!(1), &json!(5001))
    );
    let named = differences(&report, "public.big");
    for wanted in ["changed 17/77777 v", "missing 16/123456", "extra 3/-5", "extra 99/5000"] {
        assert!(named.iter().any(|line| line == wanted), "{wanted}");
    }
    // The 5001 extra ones twice (suspected, looked up), and four ranges' worth of the others.
    let read = big["rows_read"].as_u64().unwrap();
    assert!(read < 20_000, "{read} rows read in detail");
    assert!(big["ranges"].as_array().unwrap().len() < 30, "{}", big["ranges"]);
    pair.drop().await;
}

/// Writes until told to stop, every kind of change, mostly to few rows.
async fn write(cluster: &Cluster, database: &str, seed: u64, stop: Arc<AtomicBool>) -> u64 {
    let db = cluster.connect(database).await;
    let mut state = seed;
    let mut done = 0;
    while !stop.load(Ordering::Relaxed) {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let id = (state >> 33) % 400;
        let hot = (state >> 40) % 3;
        let sql = match (state >> 50) % 8 {
            0 | 1 => format!("insert into busy values ({id}, {done}) on conflict (id) do update set v = excluded.v"),
            2 => format!("delete from busy where id = {id}"),
            3 => format!(
                "begin; update busy set v = -v where id = {id}; update busy set id = id + 1000 where id = {hot}; rollback"
            ),
            4 => format!(
                "insert into busy_words values ('w' || {id}, {done}) on conflict (w) do update set v = excluded.v"
            ),
            5 => format!("insert into busy_log values ({done}, 'x')"),
            6 => format!(
                "update busy set id = id + 10000 where id = {id} and not exists (select from busy where id = {id} + 10000)"
            ),
            _ => format!("update busy set v = v + 1 where id = {hot}"),
        };
        // A row of the other writer's may be in the way.
        let _ = db.client.batch_execute(&sql).await;
        done += 1;
    }
    done
}

#[tokio::test]
async fn writers_and_replay_are_no_difference_and_hide_none() {
    let pair = pair().await;
    let ends = Ends::of(&pair);
    pair.provider
        .run(
            "create table busy (id int primary key, v int) partition by range (id);
             create table busy_low partition of busy for values from (minvalue) to (200);
             create table busy_high partition of busy for values from (200) to (10000) partition by hash (id);
             create table busy_h0 partition of busy_high for values with (modulus 2, remainder 0);
             create table busy_h1 partition of busy_high for values with (modulus 2, remainder 1);
             create table busy_rest partition of busy default;
             insert into busy select g, g from generate_series(0, 3000) g;
             create table busy_words (w text collate \"POSIX\" primary key, v int); insert into busy_words select 'w' || g, g from generate_series(0, 2000) g;
             create table busy_log (n int, v text)",
        )
        .await;
    pair.subscriber
        .run("create table busy_words (w text collate \"C\" primary key, v int)")
        .await;
    let tables = ["--table", "busy*", "--create"];
    pair.catch_up(&tables).await;
    let replay = pair.replay().args(&tables).spawn();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (1..=2)
        .map(|seed| {
            let (cluster, database, stop) = (
                Arc::clone(&pair.provider_cluster),
                pair.database.clone(),
                Arc::clone(&stop),
            );
            tokio::spawn(async move { write(&cluster, &database, seed, stop).await })
        })
        .collect();
    // Whether hot rows settle while they are written is a matter of luck; that none is called different is not.
    for round in 0..5 {
        // The first events of a partition that nobody has heard of.
        let from = 100_000 + 1000 * round;
        pair.provider
            .run(&format!(
                "create table busy_{from} partition of busy for values from ({from}) to ({from} + 1000);
                 insert into busy select g, g from generate_series({from}, {from} + 50) g;
                 update busy set id = id - 50000 where id in ({from} + 1, {from} + 2)"
            ))
            .await;
        let (_, text, stderr) = run(
            "compare",
            &ends.provider,
            &ends.subscriber,
            &["--json", "--wait", "1", "--jobs", "2"],
        )
        .await;
        let report: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{stderr}"));
        for table in report["tables"].as_array().unwrap() {
            assert!(
                ["equal", "unsettled"].contains(&table["result"].as_str().unwrap()),
                "{table}"
            );
        }
    }
    // Rows that nobody writes to.
    pair.subscriber
        .run("update busy set v = -1 where id = 2500; delete from busy where id = 2600; insert into busy values (9999, 1); update busy_words set v = 0 where w = 'w1999'")
        .await;
    let report = ends.compare(1, &["--wait", "1"]).await;
    assert_eq!(
        differences(&report, "public.busy"),
        ["changed 2500 v", "extra 9999", "missing 2600"]
    );
    assert_eq!(differences(&report, "public.busy_words"), ["changed w1999 v"]);
    stop.store(true, Ordering::Relaxed);
    let mut written = 0;
    for writer in writers {
        written += writer.await.unwrap();
    }
    assert!(written > 100, "the writers wrote {written} times");
    // What is left is what was damaged, and everything settles: replay is running.
    let report = ends.compare(1, &[]).await;
    for table in report["tables"].as_array().unwrap() {
        assert_eq!(table["unsettled"], 0, "{table}");
    }
    assert_eq!(
        differences(&report, "public.busy"),
        ["changed 2500 v", "extra 9999", "missing 2600"]
    );
    assert_eq!(table(&report, "public.busy_log")["result"], "equal");
    replay.stop().await;
    pair.drop().await;
}

#[tokio::test]
async fn without_replay_only_rows_without_events_are_judged() {
    let pair = pair().await;
    let ends = Ends::of(&pair);
    pair.provider
        .run("create table t (id int primary key, v text); insert into t select g, 'a' from generate_series(1, 50) g")
        .await;
    // While a transaction is open that is older than the copy, the table cannot be told to have caught up with it.
    let older = pair.provider_cluster.connect(&pair.database).await;
    older.run("begin; select pg_current_xact_id()").await;
    pair.catch_up(&["--table", "t", "--create"]).await;
    let state = "select state from pgcascade_replay.table_state";
    assert_eq!(pair.subscriber.text(state).await, "catching-up");
    pair.provider
        .run("update t set v = 'b' where id <= 3; delete from t where id = 4; insert into t values (51, 'c')")
        .await;
    pair.subscriber
        .run("update t set v = 'damage' where id in (2, 40)")
        .await;
    let report = ends.compare(1, &["--wait", "0"]).await;
    assert_eq!(differences(&report, "public.t"), ["changed 40 v"]);
    assert_eq!(table(&report, "public.t")["unsettled"], 5);
    pair.subscriber.run("update t set v = 'a' where id = 40").await;
    let text = ends.text(1, &["--wait", "0"]).await;
    assert!(
        text.contains("UNSETTLED") && text.contains("5 rows could not be compared"),
        "{text}"
    );
    older.run("rollback").await;
    pair.catch_up(&["--table", "t"]).await;
    ends.compare(0, &["--wait", "0"]).await;
    // A change of the key, and TRUNCATE.
    pair.provider.run("update t set id = 100 where id = 10").await;
    let report = ends.compare(1, &["--wait", "0"]).await;
    assert_eq!(table(&report, "public.t")["unsettled"], 2);
    pair.provider.run("truncate t").await;
    let report = ends.compare(1, &["--wait", "0"]).await;
    assert_eq!(differences(&report, "public.t"), [""; 0]);
    assert_eq!(table(&report, "public.t")["result"], "unsettled");
    pair.catch_up(&["--table", "t"]).await;
    ends.compare(0, &["--wait", "0"]).await;
    pair.drop().await;
}

#[tokio::test]
async fn events_of_partitions_are_the_tables() {
    let pair = pair().await;
    let ends = Ends::of(&pair);
    pair.provider
        .run(
            "create schema \"Odd.S\"; create table t (id int primary key, v text) partition by range (id);
             create table \"Odd.S\".\"a, b\" partition of t for values from (0) to (100);
             create table t_2 partition of t for values from (100) to (200) partition by list (id);
             create table t_100 partition of t_2 for values in (100); create table t_rest partition of t_2 default;
             create table t_gone partition of t for values from (200) to (300);
             insert into t select g, 'a' from generate_series(1, 250) g",
        )
        .await;
    pair.subscriber.run("create table t (id int primary key, v text)").await;
    pair.catch_up(&["--table", "t"]).await;
    pair.provider
        .run(
            "update t set v = 'b' where id in (1, 100, 101); update t set id = 0 where id = 102; delete from t where id = 2;
             create table t_new partition of t for values from (300) to (400); insert into t values (300, 'c');
             alter table t_rest rename to \"renamed, too\"; insert into t values (199, 'd') on conflict (id) do update set v = 'd';
             delete from t where id >= 200 and id < 300; drop table t_gone",
        )
        .await;
    pair.subscriber
        .run("update t set v = 'damage' where id in (1, 40)")
        .await;
    let report = ends.compare(1, &["--wait", "0"]).await;
    assert_eq!(differences(&report, "public.t"), ["changed 40 v"]);
    assert_eq!(table(&report, "public.t")["unsettled"], 8 + 51);
    let (exit, _, stderr) = run(
        "repair",
        &ends.provider,
        &ends.subscriber,
        &["--apply", "--wait", "0", "--json"],
    )
    .await;
    assert_eq!(exit, Some(1), "rows are on their way: {stderr}");
    pair.catch_up(&[]).await;
    ends.compare(0, &["--wait", "0"]).await;
    pair.provider.run("truncate t_100").await;
    let report = ends.compare(1, &["--wait", "0"]).await;
    assert_eq!(differences(&report, "public.t"), [""; 0]);
    assert_eq!(table(&report, "public.t")["result"], "unsettled");
    pair.catch_up(&[]).await;
    ends.compare(0, &["--wait", "0"]).await;
    pair.drop().await;
}

#[tokio::test]
async fn what_cannot_be_compared_is_said() {
    let pair = pair().await;
    let ends = Ends::of(&pair);
    let text = ends.text(1, &[]).await;
    assert!(text.contains("nothing is replayed into the subscriber"), "{text}");
    pair.provider
        .run("create table t (id int primary key); create table u (id int primary key); create table w (id int primary key)")
        .await;
    pair.catch_up(&["--table", "t", "--table", "u", "--table", "w", "--create"])
        .await;
    let text = ends.text(2, &["--table", "nonsense"]).await;
    assert!(
        text.contains("no table that is replayed matches \"nonsense\""),
        "{text}"
    );
    let text = ends.text(2, &["--jobs", "0"]).await;
    assert!(text.contains("--jobs"), "{text}");
    let text = ends.text(1, &["--consumer", "other"]).await;
    assert!(text.contains("the subscriber has no such consumer"), "{text}");
    pair.subscriber
        .run("drop table t; update pgcascade_replay.table_state set state = 'in-copy' where provider_table = 'u'")
        .await;
    let report = ends.compare(1, &[]).await;
    assert_eq!(
        table(&report, "public.t")["error"],
        "table public.t does not exist on the subscriber"
    );
    assert_eq!(table(&report, "public.u")["result"], "failed");
    assert!(
        table(&report, "public.u")["error"]
            .as_str()
            .unwrap()
            .contains("in-copy"),
        "{report}"
    );
    assert_eq!(table(&report, "public.w")["result"], "equal");
    let text = ends.text(1, &[]).await;
    assert!(
        text.contains("3 tables: 1 equal, 0 different, 0 unsettled, 2 failed"),
        "{text}"
    );
    // The other way round.
    let (code, _, stderr) = run("compare", &ends.subscriber, &ends.subscriber, &[]).await;
    assert_eq!(code, Some(1), "{stderr}");
    assert!(
        stderr.contains("look up queue \\\"q\\\"") || stderr.contains("queue \"q\""),
        "{stderr}"
    );
    // A transaction that did not come to begin is not ended.
    for log in [pair.provider_cluster.log(), pair.subscriber_cluster.log()] {
        let ours = |line: &&str| line.contains(&format!(" {} WARNING", pair.database));
        assert_eq!(log.lines().find(ours), None);
    }
    pair.drop().await;
}

const DAMAGE: &str = r#"
update plain set v = '' where id = 1; update plain set v = null, f = '-0', a = '{}', b = '\x00' where id = 2; delete from plain where id = 8;
insert into plain (id) values (-1);
insert into empty select generate_series(1, 250);
delete from many where id between 2001 and 2600; update many set v = 'x' where id = 4444;
update "Odd.S""x"."T,é 'y" set "v=&" = '' where "K.1" = 7; delete from "Odd.S""x"."T,é 'y" where "K.1" = 8;
delete from words where v = 1; update words set v = -1 where v = 3; insert into words values ('zz', 1, 'x');
update numbers set n = 1.5 where n = 1.50; update numbers set v = null where n = 2.5;
delete from keyless where ctid = any (array(select ctid from keyless where a = 3 limit 2)); insert into keyless values (9, ''), (9, ''), (1, 'b');
update floats set f = '-0' where f = 0; update floats set v = 9 where f = 'NaN';
update made set v = 0 where id = 1;
-- Two rows that hold each other's value of a unique column.
update swapped set u = -id; update swapped set u = case id when 1 then 20 when 2 then 10 else id * 10 end;
update own set id = -id; update always set v = 0; delete from always where id = 2;
"#;

#[tokio::test]
async fn repair_mends_what_is_damaged_and_nothing_else() {
    let pair = pair().await;
    let ends = Ends::of(&pair);
    pair.provider.run(TABLES).await;
    pair.provider.run(ROWS).await;
    pair.provider
        .run(
            "create table swapped (id int primary key, u int unique); insert into swapped select g, g * 10 from generate_series(1, 4) g;
             create table own (id int primary key, v text); insert into own select g, 'v' from generate_series(1, 4) g;
             create table always (id int primary key, n int generated always as identity, v int); insert into always (id, v) values (1, 1), (2, 2), (3, 3)",
        )
        .await;
    pair.subscriber
        .run("create table words (w text collate \"C\" primary key, v int, own text default 'mine')")
        .await;
    let all = ["--table", "*", "--table", "\"Odd.S\"\"x\".*", "--create"];
    pair.catch_up(&all).await;
    // Neither triggers nor foreign keys of the subscriber's act on a repair.
    pair.subscriber
        .run(
            "create function no() returns trigger language plpgsql as $$ begin raise exception 'fired'; end $$;
             create table child (id int references many); insert into child values (2500);
             update words set own = 'kept'",
        )
        .await;
    pair.subscriber.run("set session_replication_role = replica").await;
    pair.subscriber.run(DAMAGE).await;
    pair.subscriber
        .run("create trigger no before insert or update or delete on many for each row execute function no()")
        .await;
    let file = pair.subscriber_cluster.file(&format!("{}.sql", pair.database));
    let before = pair
        .subscriber
        .text("select md5(string_agg(m::text, ',' order by id)) from many m")
        .await;

    // Written down, nothing is changed; what somebody else changes until it is run, stays.
    let report = ends.repair(0, &["--output", &file]).await;
    assert_eq!(report["equal"], false);
    assert_eq!(
        table(&report, "public.many")["repair"],
        json!({"inserted": 600, "updated": 1, "deleted": 0})
    );
    assert_eq!(
        before,
        pair.subscriber
            .text("select md5(string_agg(m::text, ',' order by id)) from many m")
            .await
    );
    pair.subscriber.run("update plain set v = 'newer' where id = 1").await;
    pair.subscriber_cluster
        .shell(&format!("$PGBIN/psql -X -q -d {} -f {file} > /dev/null", pair.database));
    let report = ends.compare(1, &[]).await;
    assert_eq!(differences(&report, "public.plain"), ["changed 1 v"]);
    for one in report["tables"].as_array().unwrap() {
        assert!(one["table"] == "public.plain" || one["result"] == "equal", "{one}");
    }

    // Damaged and applied, twice.
    pair.subscriber.run(DAMAGE).await;
    let report = ends.repair(0, &["--apply"]).await;
    assert_eq!(
        table(&report, "public.many")["repair"],
        json!({"inserted": 600, "updated": 1, "deleted": 0})
    );
    assert_eq!(
        table(&report, "public.plain")["repair"],
        json!({"inserted": 1, "updated": 2, "deleted": 1})
    );
    assert_eq!(
        table(&report, "public.empty")["repair"],
        json!({"inserted": 0, "updated": 0, "deleted": 250})
    );
    assert_eq!(
        table(&report, "public.keyless")["repair"],
        json!({"inserted": 2, "updated": 0, "deleted": 3})
    );
    assert_eq!(table(&report, "public.swapped")["result"], "repaired");
    ends.compare(0, &[]).await;
    for name in [
        "plain",
        "many",
        "numbers",
        "keyless",
        "floats",
        "swapped",
        "own",
        "always",
        "\"Odd.S\"\"x\".\"T,é 'y\"",
    ] {
        pair.assert_equal(name).await;
    }
    assert_eq!(
        pair.subscriber
            .text("select count(*) from words where own <> 'kept'")
            .await,
        "1"
    );
    let rows = "select string_agg(xmin::text || ctid::text, ',' order by id) from many";
    let before = pair.subscriber.text(rows).await;
    let report = ends.repair(0, &["--apply"]).await;
    assert_eq!(report["equal"], true);
    assert_eq!(before, pair.subscriber.text(rows).await);
    // Both are also verbs of what is about tables.
    for (verb, wanted) in [("repair", 2), ("table repair", 2), ("table compare", 0)] {
        let (code, _, stderr) = run(verb, &ends.provider, &ends.subscriber, &[]).await;
        assert_eq!(code, Some(wanted), "{verb}: {stderr}");
    }
    pair.drop().await;
}

#[tokio::test]
async fn repair_makes_way_for_a_replay_that_stopped() {
    let pair = pair().await;
    let ends = Ends::of(&pair);
    pair.provider
        .run(
            "create table t (id int primary key, v text not null, n int default 7); insert into t select g, 'a' from generate_series(1, 9) g;
             create table shifted (id int primary key deferrable); insert into shifted select generate_series(1, 9)",
        )
        .await;
    let tables = ["--table", "t", "--table", "shifted"];
    pair.catch_up(&[&tables[..], &["--create"]].concat()).await;
    pair.subscriber
        .run("delete from t where id = 1; insert into t values (20, 'x', null)")
        .await;
    pair.provider
        .run(
            "update t set v = 'b' where id in (1, 5); delete from t where id = 6; insert into t values (20, 'y');
             update t set v = 'c' where id = 1; update t set id = 30 where id = 3",
        )
        .await;
    let stopped = pair.replay().args(&tables).arg("--until-caught-up").output().await;
    assert_eq!(stopped.code(), Some(1), "{}", stopped.stderr);
    // For a while two rows have one key, so that the first event of a row says nothing of what was there.
    pair.provider.run("update shifted set id = id + 1").await;
    let report = ends.compare(1, &["--wait", "0"]).await;
    assert_eq!(differences(&report, "public.t"), ["extra 20", "missing 1"]);
    assert_eq!(table(&report, "public.t")["unsettled"], 4, "3, 5, 6 and 30");
    assert_eq!(table(&report, "public.shifted")["result"], "unsettled");
    let report = ends.repair_any(&["--apply", "--wait", "0", "--table", "t"]).await;
    assert_eq!(
        table(&report, "public.t")["repair"],
        json!({"inserted": 1, "updated": 0, "deleted": 1})
    );
    // Whether replay gets over that one is not the matter here.
    pair.catch_up(&["--table", "t"]).await;
    ends.compare(0, &["--table", "t"]).await;
    pair.assert_equal("t").await;
    pair.drop().await;
}

#[tokio::test]
async fn repair_under_writes_leaves_replay_what_it_expects() {
    let pair = pair().await;
    let ends = Ends::of(&pair);
    pair.provider
        .run("create table busy (id int primary key, v int); insert into busy select g, g from generate_series(0, 3000) g;
              create table busy_words (w text primary key, v int); create table busy_log (n int, v text)")
        .await;
    let tables = ["--table", "busy*", "--create"];
    pair.catch_up(&tables).await;
    let replay = pair.replay().args(&tables).spawn();
    let stop = Arc::new(AtomicBool::new(false));
    let (cluster, database, writing) = (
        Arc::clone(&pair.provider_cluster),
        pair.database.clone(),
        Arc::clone(&stop),
    );
    let writer = tokio::spawn(async move { write(&cluster, &database, 7, writing).await });
    for round in 0..3 {
        // Values only, where it is written: replay stops at a row that is not there. Where each has a row that the other wants, replay is who
        // looks for a deadlock first, and tries again.
        let low = 100 * round;
        pair.subscriber
            .run(&format!(
                "set deadlock_timeout = '1h'; update busy set v = -7 where id between {low} and {low} + 99;
                 delete from busy where id between 2000 + {low} and 2050 + {low}; insert into busy values (-1 - {round}, 0)"
            ))
            .await;
        let report = ends.repair_any(&["--apply", "--wait", "20"]).await;
        for one in report["tables"].as_array().unwrap() {
            assert_ne!(one["result"], "failed", "{one}");
        }
    }
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    ends.repair(0, &["--apply"]).await;
    ends.compare(0, &[]).await;
    replay.stop().await;
    pair.catch_up(&tables).await;
    pair.assert_equal("busy").await;
    pair.assert_equal("busy_words").await;
    pair.drop().await;
}
