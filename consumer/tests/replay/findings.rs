//! Differences that show only when an event is applied: replay stops at that event, says which, and has applied nothing
//! of the batch.

use crate::cluster::{Pair, pair};

/// A table that is replayed, with 100 rows.
async fn replayed() -> Pair {
    let pair = pair().await;
    pair.provider
        .run("create table t (id int primary key, v text); insert into t select i, 'v' from generate_series(1, 100) i")
        .await;
    pair.catch_up(&["--table", "t", "--create"]).await;
    pair
}

async fn stops(pair: &Pair, texts: &[&str]) {
    let before = pair
        .subscriber
        .text("select md5(string_agg(t::text, ',' order by t::text)) from t")
        .await;
    let output = pair
        .replay()
        .args(&["--table", "t", "--until-caught-up"])
        .output()
        .await;
    assert_eq!(output.code(), Some(1), "{}", output.stderr);
    for text in texts {
        assert!(output.stderr.contains(text), "\"{text}\" is not in: {}", output.stderr);
    }
    assert_eq!(
        pair.subscriber
            .text("select md5(string_agg(t::text, ',' order by t::text)) from t")
            .await,
        before,
        "nothing was applied"
    );
    let error = pair
        .subscriber
        .text("select error from pgcascade_replay.table_state")
        .await;
    assert!(error.contains("public.t"), "{error}");
}

#[tokio::test]
async fn an_update_of_a_row_that_is_not_there() {
    let pair = replayed().await;
    pair.subscriber.run("delete from t where id = 50").await;
    pair.provider.run("update t set v = 'w'").await;
    stops(
        &pair,
        &[
            "updates row (id)=(50) of table public.t, and the subscriber has no such row",
            "event ",
        ],
    )
    .await;
    pair.subscriber.run("insert into t values (50, 'v')").await;
    pair.catch_up(&["--table", "t"]).await;
    pair.assert_equal("t").await;
    assert_eq!(
        pair.subscriber
            .text("select error from pgcascade_replay.table_state")
            .await,
        "<null>"
    );
    pair.drop().await;
}

#[tokio::test]
async fn a_delete_of_a_row_that_is_not_there() {
    let pair = replayed().await;
    pair.subscriber.run("delete from t where id = 7").await;
    pair.provider.run("delete from t where id < 10").await;
    stops(
        &pair,
        &["deletes row (id)=(7) of table public.t, and the subscriber has no such row"],
    )
    .await;
    pair.drop().await;
}

#[tokio::test]
async fn an_insert_of_a_row_that_is_there() {
    let pair = replayed().await;
    pair.subscriber.run("insert into t values (150, 'mine')").await;
    pair.provider.run("insert into t values (150, 'yours')").await;
    stops(
        &pair,
        &["inserts row (id)=(150) of table public.t", "duplicate key", "23505"],
    )
    .await;
    pair.drop().await;
}

#[tokio::test]
async fn the_row_at_fault_in_a_copy_is_found() {
    let pair = replayed().await;
    pair.subscriber.run("insert into t values (5150, 'mine')").await;
    pair.provider
        .run("insert into t select i, 'yours' from generate_series(101, 9000) i")
        .await;
    stops(
        &pair,
        &[
            "row by row",
            "inserts row (id)=(5150) of table public.t",
            "duplicate key",
            "23505",
        ],
    )
    .await;
    pair.subscriber.run("delete from t where id = 5150").await;
    pair.catch_up(&["--table", "t"]).await;
    pair.assert_equal("t").await;
    pair.drop().await;
}

#[tokio::test]
async fn a_column_that_came_later() {
    let pair = replayed().await;
    pair.provider
        .run("alter table t add column w int; insert into t values (200, 'x', 5)")
        .await;
    let output = pair
        .replay()
        .args(&["--table", "t", "--until-caught-up"])
        .output()
        .await;
    assert_eq!(output.code(), Some(1));
    assert!(
        output
            .stderr
            .contains("column \"w\" of table public.t is missing on the subscriber"),
        "{}",
        output.stderr
    );
    pair.subscriber.run("alter table t add column w int").await;
    pair.catch_up(&["--table", "t"]).await;
    pair.assert_equal("t").await;

    // The same while it streams.
    let running = pair.replay().args(&["--table", "t"]).spawn();
    running.until_it_says("streaming").await;
    pair.provider
        .run("alter table t add column x int; insert into t values (201, 'x', 5, 6)")
        .await;
    let output = running.wait().await;
    assert_eq!(output.code(), Some(1));
    assert!(
        output
            .stderr
            .contains("table public.t on the subscriber has no column \"x\""),
        "{}",
        output.stderr
    );
    pair.subscriber.run("alter table t add column x int").await;
    pair.catch_up(&["--table", "t"]).await;
    pair.assert_equal("t").await;
    pair.drop().await;
}

#[tokio::test]
async fn a_value_that_the_subscriber_does_not_take() {
    let pair = replayed().await;
    pair.subscriber.run("alter table t add check (v <> 'bad')").await;
    pair.provider
        .run("insert into t values (300, 'good'), (301, 'bad'), (302, 'good')")
        .await;
    stops(&pair, &["inserts row (id)=(301)", "23514"]).await;
    pair.subscriber
        .run("alter table t alter column v type varchar(3); alter table t drop constraint t_v_check")
        .await;
    stops(
        &pair,
        &[
            "inserts row (id)=(300)",
            "22001",
            "consumer check shows where they differ",
        ],
    )
    .await;
    pair.drop().await;
}

#[tokio::test]
async fn events_that_are_not_a_tables() {
    let pair = replayed().await;
    pair.provider
        .run(
            "select pgq.insert_event('q', 'greeting', 'hello'); select pgq.insert_event('q', 'greeting', 'hello again');
             create table other (id int primary key); create trigger o after insert on other for each row execute function pgq.logutriga('q');
             insert into other values (1), (2); insert into t values (400, 'x')",
        )
        .await;
    let output = pair.catch_up(&["--table", "t"]).await;
    assert_eq!(output.stderr.matches("are ignored").count(), 2, "{}", output.stderr);
    assert!(output.stderr.contains("public.other"), "{}", output.stderr);
    pair.assert_equal("t").await;

    pair.provider
        .run("select pgq.insert_event('q', 'U:id', 'id=%zz', 'public.t', null, null, null)")
        .await;
    stops(&pair, &["of table public.t cannot be read", "percent sign"]).await;
    pair.drop().await;
}

/// R5: a BEFORE trigger would give events of one row in an order that did not happen (regress/specs/capture_order.spec).
#[tokio::test]
async fn capture_uses_after_triggers_only() {
    let pair = pair().await;
    pair.provider
        .run("create table a (id int primary key); create table b (k text primary key, v text)")
        .await;
    pair.catch_up(&["--table", "public.*", "--create"]).await;
    // Bit 2 of tgtype is BEFORE, bit 64 INSTEAD OF.
    let triggers = "select tgrelid::regclass, count(*), count(*) filter (where tgtype & (2 | 64) <> 0) from pg_trigger
                     where not tgisinternal and tgname like 'pgcascade_capture%' group by 1 order by 1";
    assert_eq!(pair.provider.text(triggers).await, "a|2|0\nb|2|0");
    pair.drop().await;
}
