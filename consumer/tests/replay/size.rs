//! Bounded memory, whatever the size of a transaction, and values as large as PostgreSQL takes through a trigger: at most a few
//! times the largest, as docs/replay.md says.
//!
//! PGCASCADE_TEST_ROWS and PGCASCADE_TEST_LARGE_ROWS make the transactions larger or smaller than they are in every run.

use std::time::Instant;

use crate::beside::it_reads;
use crate::cluster::{Output, Pair, eventually, pair};

const MB: u64 = 1024;

/// Without large values.
const ORDINARY: u64 = 64 * MB;

const LIMIT: u64 = 128 * MB;

/// The number that a variable of the environment asks for.
fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// Fails if it took more, in kB.
fn took_less(what: &str, output: &Output, limit: u64) {
    println!(
        "{what}: peak resident memory {} MB, allowed {} MB",
        output.peak_kb / MB,
        limit / MB
    );
    assert!(
        output.peak_kb > 0 && output.peak_kb < limit,
        "{what}: {} kB of {limit}",
        output.peak_kb
    );
}

async fn same(pair: &Pair, query: &str) {
    assert_eq!(pair.provider.text(query).await, pair.subscriber.text(query).await);
}

#[tokio::test]
async fn a_transaction_of_two_million_rows() {
    const SUM: &str = "select count(*), sum(id::bigint), sum(hashtext(big::text)::bigint) from big";
    let rows = number("PGCASCADE_TEST_ROWS", 2_000_000);
    let pair = pair().await;
    pair.provider
        .run("create table big (id int primary key, a int, b text, c timestamptz, d numeric)")
        .await;
    pair.catch_up(&["--table", "big", "--create"]).await;
    pair.provider
        .run(&format!(
            "insert into big select i, i, 'some text ' || i, now(), i * 1.5 from generate_series(1, {rows}) i"
        ))
        .await;
    let began = Instant::now();
    let output = pair.catch_up(&["--table", "big"]).await;
    println!(
        "{rows} inserts in one transaction: {:.1} s",
        began.elapsed().as_secs_f64()
    );
    took_less("inserts", &output, ORDINARY);
    same(&pair, SUM).await;

    pair.provider
        .run(&format!(
            "begin; update big set a = a + 1 where id <= {0}; delete from big where id > {0}; insert into big (id) values (-1); commit",
            rows / 4 * 3
        ))
        .await;
    let output = pair.catch_up(&["--table", "big"]).await;
    took_less("updates and deletes", &output, ORDINARY);
    same(&pair, SUM).await;

    // And by copy.
    let output = copied_again(&pair, "big").await;
    took_less("copy", &output, ORDINARY);
    same(&pair, SUM).await;
    pair.drop().await;
}

/// As if the table were new on the subscriber.
async fn copied_again(pair: &Pair, table: &str) -> Output {
    pair.subscriber.run("delete from pgcascade_replay.position").await;
    pair.provider.run("select pgq.unregister_consumer('q', 'c')").await;
    pair.catch_up(&["--table", table, "--truncate"]).await
}

const LENGTHS: &str = "select id, length(t), md5(t), length(b), md5(b) from v order by id";

/// A table of large values.
async fn values() -> Pair {
    let pair = pair().await;
    pair.provider
        .run("create table v (id int primary key, t text, b bytea)")
        .await;
    pair.catch_up(&["--table", "v", "--create"]).await;
    pair
}

#[tokio::test]
async fn many_large_rows_in_one_transaction() {
    let rows = number("PGCASCADE_TEST_LARGE_ROWS", 100);
    let pair = values().await;
    pair.provider
        .run(&format!(
            "insert into v select i, repeat('0123456789', 5000000) from generate_series(1, {rows}) i"
        ))
        .await;
    let began = Instant::now();
    let output = pair.catch_up(&["--table", "v"]).await;
    println!("{rows} rows of 50 MB: {:.1} s", began.elapsed().as_secs_f64());
    took_less("large rows", &output, LIMIT + 50 * MB);
    same(&pair, LENGTHS).await;
    pair.drop().await;
}

#[tokio::test]
async fn a_value_of_two_hundred_megabytes() {
    let value = 200 * MB;
    let pair = values().await;
    pair.provider
        .run("insert into v values (1, repeat('0123456789', 20000000), null)")
        .await;
    let output = pair.catch_up(&["--table", "v"]).await;
    took_less("insert", &output, ORDINARY + 2 * value);
    same(&pair, LENGTHS).await;

    pair.provider
        .run("update v set t = repeat('abcdefghij', 20000000)")
        .await;
    let output = pair.catch_up(&["--table", "v"]).await;
    took_less("update", &output, ORDINARY + 3 * value);
    same(&pair, LENGTHS).await;

    let output = copied_again(&pair, "v").await;
    took_less("copy", &output, ORDINARY + 2 * value);
    same(&pair, LENGTHS).await;

    // Who goes on gives back what the value took.
    pair.provider
        .run("update v set t = repeat('jihgfedcba', 20000000)")
        .await;
    let running = pair.replay().args(&["--table", "v"]).spawn();
    let status = format!("/proc/{}/status", running.pid());
    eventually("it is replayed", async || {
        pair.subscriber.text("select left(t, 3) from v").await == "jih"
    })
    .await;
    eventually("the memory is given back", async || {
        let status = std::fs::read_to_string(&status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let resident: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        resident < ORDINARY
    })
    .await;
    pair.provider.run("insert into v values (2)").await;
    eventually("it goes on", async || {
        pair.subscriber.text("select count(*) from v").await == "2"
    })
    .await;
    running.stop().await;
    pair.drop().await;
}

/// What the queue has of a value is longer than the value, where bytes are escaped.
#[tokio::test]
async fn large_values_with_everything_escaped() {
    let pair = values().await;
    pair.provider
        .run(
            "insert into v values (1, repeat('0123456789', 12000000), null), (2, null, decode(repeat('00ff', 30000000), 'hex')),
                                  (3, 'a' || chr(92) || 'b' || chr(10) || repeat(chr(92) || chr(9) || '%' || chr(233), 100000), null);
             update v set t = repeat('% +&', 25000000) where id = 2",
        )
        .await;
    let largest: u64 = pair
        .provider
        .text("select max(octet_length(ev_data)) / 1024 from pgq.event_template")
        .await
        .parse()
        .unwrap();
    let output = pair.catch_up(&["--table", "v"]).await;
    took_less("escaped values", &output, ORDINARY + 3 * largest);
    same(&pair, LENGTHS).await;
    pair.drop().await;
}

/// A conflict with a large value is found, answered and recorded.
#[tokio::test]
async fn a_large_value_row_by_row() {
    let pair = values().await;
    pair.subscriber.run("insert into v values (1, 'there', null)").await;
    pair.provider
        .run("insert into v select i, repeat('0123456789', 3000000) from generate_series(1, 3) i")
        .await;
    let output = pair.catch_up(&["--table", "v", "--on-conflict", "overwrite"]).await;
    took_less("conflict", &output, ORDINARY + 4 * 30 * MB);
    same(&pair, LENGTHS).await;
    let recorded = "select kind, outcome, length(ev_data) >= 30000000 from pgcascade_replay.conflict";
    assert_eq!(pair.subscriber.text(recorded).await, "insert_exists|updated|t");
    pair.drop().await;
}

/// Large events of a table in copy are kept, and applied later.
#[tokio::test]
async fn large_events_are_kept() {
    let pair = pair().await;
    pair.provider
        .run("create table small (id int primary key); create table big (id int primary key, v text); insert into big values (0, 'x')")
        .await;
    pair.catch_up(&["--table", "small", "--create"]).await;
    let go_on = pair.subscriber_cluster.file(&format!("go-on-{}", pair.database));
    let running = pair
        .replay()
        .args(&["--table", "small", "--table", "big", "--create", "--until-caught-up"])
        .failpoints(&format!("in_copy=pause:{go_on}"))
        .spawn();
    it_reads(&running).await;
    pair.provider
        .run("insert into big select i, repeat('a %', 10000000) from generate_series(1, 2) i; insert into big values (3, 'small')")
        .await;
    eventually("the events are kept", async || {
        let kept = "select count(*) from pgcascade_replay.held_event";
        pair.subscriber.text(kept).await == "3"
    })
    .await;
    std::fs::write(go_on, "").unwrap();
    let output = running.wait().await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    // Encoded, 50 MB each.
    took_less("kept events", &output, ORDINARY + 3 * 50 * MB);
    same(&pair, "select id, length(v), md5(v) from big order by id").await;
    pair.drop().await;
}

#[tokio::test]
async fn a_table_of_1600_columns() {
    let pair = pair().await;
    let columns: Vec<String> = (1..1600).map(|i| format!("c{i} int")).collect();
    pair.provider
        .run(&format!(
            "create table wide (id int primary key, {})",
            columns.join(", ")
        ))
        .await;
    pair.catch_up(&["--table", "wide", "--create"]).await;
    pair.provider.run("insert into wide (id, c1, c1599) select i, i, i from generate_series(1, 100) i; update wide set c2 = 5 where id = 3").await;
    pair.catch_up(&["--table", "wide"]).await;
    pair.assert_equal("wide").await;
    pair.drop().await;
}
