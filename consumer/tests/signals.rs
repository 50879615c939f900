//! Stopping `consumer replay`: one signal asks, the second one ends the process at once; neither loses or doubles a
//! row.
#![allow(missing_docs, unreachable_pub, dead_code, reason = "a test binary has no interface")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod cluster;

use cluster::pair;

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        let pair = pair().await;
        pair.provider.run("create table a (id int primary key)").await;
        pair.catch_up(&["--table", "a", "--create"]).await;
        pair.provider.run("insert into a select generate_series(1, 100)").await;
        // It stands still in the middle of a batch, and a file that never comes would let it go on.
        let never = std::env::temp_dir().join(format!("never-{}", std::process::id()));
        let running = pair
            .replay()
            .args(&["--table", "a"])
            .failpoints(&format!("before_commit=pause:{}", never.display()))
            .spawn();
        running.until_it_says("before_commit waits").await;
        running.signal(signal);
        running.until_it_says("a second signal exits at once").await;
        running.signal(signal);
        let output = running.wait().await;
        assert_eq!(output.code(), Some(code), "{}", output.stderr);
        pair.catch_up(&["--table", "a"]).await;
        pair.assert_equal("a").await;
        pair.drop().await;
    }
}

#[tokio::test]
async fn one_signal_is_enough_while_nothing_happens() {
    let pair = pair().await;
    pair.provider.run("create table a (id int primary key)").await;
    let running = pair.replay().args(&["--table", "a", "--create"]).spawn();
    running.until_it_says("streaming").await;
    let output = running.stop().await;
    assert!(
        !output.stderr.contains("WARN") && !output.stderr.contains("ERROR"),
        "{}",
        output.stderr
    );
    pair.drop().await;
}
