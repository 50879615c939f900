//! A copy that takes long, and a stream that does not wait for it: other tables go on, the events of the table in copy are
//! kept (`pgcascade_replay.held_event`) and applied exactly once, whenever replay is killed.

use crate::cluster::{Pair, Running, eventually, pair};

const HELD: &str = "select count(*) from pgcascade_replay.held_event";
const STATE: &str = "select state from pgcascade_replay.table_state where provider_table = 'big'";

/// Every kind of change of `big`, in several transactions, keys that come again among them.
const CHANGES: [&str; 6] = [
    "insert into big values (1001, 'new'), (1002, 'new')",
    "update big set v = 'changed' where id between 10 and 40; delete from big where id between 30 and 35",
    "begin; insert into big values (30, 'again'); update big set id = 2000 where id = 1001; savepoint s; delete from big; rollback to s; commit",
    "insert into small values (2); insert into big values (1001, 'again')",
    "update big set v = v || '!' where id > 990",
    "delete from big where id = 1002; insert into big select i, 'many' from generate_series(3000, 3099) i",
];

/// `small` is replayed, and `big` is about to be: its copy stops at its rows, with its snapshot taken.
pub(crate) async fn begun(pair: &Pair, points: &str) -> (Running, String) {
    pair.provider
        .run("create table small (id int primary key); insert into small values (1)")
        .await;
    pair.catch_up(&["--table", "small", "--create"]).await;
    pair.provider
        .run("create table big (id int primary key, v text); insert into big select i, repeat('x', 100) from generate_series(1, 1000) i")
        .await;
    let go_on = pair.subscriber_cluster.file(&format!("go-on-{}", pair.database));
    let running = pair
        .replay()
        .args(&["--table", "small", "--table", "big", "--create"])
        .failpoints(&format!("in_copy=pause:{go_on}{points}"))
        .spawn();
    it_reads(&running).await;
    (running, go_on)
}

/// Waits until its copy has its snapshot, and stops at rows.
pub(crate) async fn it_reads(running: &Running) {
    running.until_it_says("in_copy waits").await;
}

pub(crate) async fn change(pair: &Pair) {
    for sql in CHANGES {
        pair.provider.run(sql).await;
    }
    eventually("the other table goes on", async || {
        pair.subscriber.text("select count(*) from small").await == "2"
    })
    .await;
    assert_eq!(pair.subscriber.text(STATE).await, "in-copy");
    eventually("the last event is kept", async || {
        pair.subscriber
            .text("select count(*) from pgcascade_replay.held_event where ev_data like '%id=3099&%'")
            .await
            == "1"
    })
    .await;
}

async fn catch_up_and_compare(pair: &Pair) {
    let output = pair.catch_up(&["--table", "small", "--table", "big"]).await;
    pair.assert_equal("small").await;
    pair.assert_equal("big").await;
    assert_eq!(pair.subscriber.text(HELD).await, "0", "{}", output.stderr);
    // What comes from now on is applied at once.
    pair.provider.run("update big set v = 'later' where id < 900").await;
    pair.catch_up(&["--table", "small", "--table", "big"]).await;
    pair.assert_equal("big").await;
    assert_eq!(pair.subscriber.text(HELD).await, "0");
}

#[tokio::test]
async fn other_tables_go_on_and_kept_events_are_applied_when_the_copy_is_there() {
    let pair = pair().await;
    let (running, go_on) = begun(&pair, "").await;
    change(&pair).await;
    std::fs::write(go_on, "").unwrap();
    running
        .until_it_says("events that came during its copy are applied")
        .await;
    eventually("the table is caught up with", async || {
        pair.subscriber.text("select count(*) from big where id >= 3000").await == "100"
    })
    .await;
    running.stop().await;
    catch_up_and_compare(&pair).await;
    pair.drop().await;
}

/// The kept events are applied in the transaction that forgets them: killed on either side of its commit.
#[tokio::test]
async fn killed_around_the_commit_of_kept_events() {
    for point in ["before_held_commit", "after_held_commit"] {
        let pair = pair().await;
        let (running, go_on) = begun(&pair, &format!(";{point}=kill")).await;
        change(&pair).await;
        std::fs::write(go_on, "").unwrap();
        let output = running.wait().await;
        assert_eq!(output.code(), None, "{}", output.stderr);
        let left = pair.subscriber.text(HELD).await;
        assert_eq!(left == "0", point == "after_held_commit", "{left} events are left");
        catch_up_and_compare(&pair).await;
        pair.drop().await;
    }
}

/// A copy that begins again has a younger snapshot, which holds some of the kept events already.
#[tokio::test]
async fn killed_in_the_copy_with_events_kept() {
    let pair = pair().await;
    let (running, _) = begun(&pair, "").await;
    change(&pair).await;
    running.kill().await;
    pair.provider
        .run("truncate big; insert into big values (1, 'after'), (2000, 'after')")
        .await;
    catch_up_and_compare(&pair).await;
    pair.drop().await;
}

/// A table that is not replayed any more takes its kept events along.
#[tokio::test]
async fn a_table_that_is_left_out_leaves_no_events() {
    let pair = pair().await;
    let (running, _) = begun(&pair, "").await;
    change(&pair).await;
    running.kill().await;
    pair.catch_up(&["--table", "small"]).await;
    assert_eq!(pair.subscriber.text(HELD).await, "0");
    pair.catch_up(&["--table", "small", "--table", "big"]).await;
    pair.assert_equal("big").await;
    pair.drop().await;
}

/// Told to stop when a part of the kept events is applied, with the rest still to come: nothing of it stays, and nothing comes twice
/// later. The table has no key, so a row that came twice would be there twice.
#[tokio::test]
async fn told_to_stop_among_kept_events() {
    let pair = pair().await;
    pair.provider
        .run("create table big (id int, v text); insert into big select i, 'copied' from generate_series(1, 1000) i")
        .await;
    let go_on = pair.subscriber_cluster.file(&format!("go-on-{}", pair.database));
    let arguments = ["--table", "big", "--create", "--max-memory", "8388608"];
    let running = pair
        .replay()
        .args(&arguments)
        .failpoints(&format!("in_copy=pause:{go_on};before_held_commit=kill"))
        .spawn();
    it_reads(&running).await;
    pair.provider
        .run("insert into big select i, repeat('k', 500) from generate_series(1, 20000) i")
        .await;
    eventually("they are kept", async || pair.subscriber.text(HELD).await == "20000").await;
    std::fs::write(&go_on, "").unwrap();
    assert_eq!(running.wait().await.code(), None);
    let stand = pair.subscriber_cluster.file(&format!("stand-{}", pair.database));
    let running = pair
        .replay()
        .args(&arguments)
        .arg("--until-caught-up")
        .failpoints(&format!("after_chunk=pause:{stand}"))
        .spawn();
    // A part of them is applied.
    running.until_it_says("after_chunk waits").await;
    running.signal("TERM");
    running.until_it_says("a second signal exits at once").await;
    std::fs::write(&stand, "").unwrap();
    let output = running.wait().await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    assert!(
        output.stderr.contains("the kept events at hand were rolled back"),
        "{}",
        output.stderr
    );
    assert_eq!(pair.subscriber.text(HELD).await, "20000");
    assert_eq!(pair.subscriber.text("select count(*) from big").await, "1000");
    pair.catch_up(&arguments).await;
    pair.assert_equal("big").await;
    pair.drop().await;
}
