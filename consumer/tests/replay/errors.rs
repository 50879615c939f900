//! Errors of every class, made for real: what is tried again and shown meanwhile, what parks a table, what stops.

use crate::cluster::pair;

/// Schema pgcascade_replay of an older version: everything stays, what is new is added, once.
#[tokio::test]
async fn an_older_state_is_brought_up_to_date() {
    let pair = pair().await;
    let first = concat!(env!("CARGO_MANIFEST_DIR"), "/src/replay/sql/state.sql");
    pair.subscriber.run(&std::fs::read_to_string(first).unwrap()).await;
    pair.subscriber
        .run(
            "insert into pgcascade_replay.position (consumer, queue, provider_identity) values ('older', 'q', '1:2:3')",
        )
        .await;
    pair.provider
        .run("create table t (id int primary key); insert into t values (1); create table u (id int primary key); select pgq.create_queue('q')")
        .await;
    let version = "select substring(obj_description('pgcascade_replay'::regnamespace, 'pg_namespace') from 'version (\\d+)')::int";
    assert_eq!(pair.subscriber.text(version).await, "1");
    // Two consumers at once: one of them takes the steps.
    let (provider, subscriber) = (
        pair.provider_cluster.conninfo(&pair.database),
        pair.subscriber_cluster.conninfo(&pair.database),
    );
    let mut other = std::process::Command::new(env!("CARGO_BIN_EXE_consumer"))
        .args(["replay", "-q", "--provider", &provider, "--subscriber", &subscriber])
        .args([
            "--queue",
            "q",
            "--consumer",
            "d",
            "--table",
            "u",
            "--create",
            "--until-caught-up",
        ])
        .spawn()
        .unwrap();
    pair.catch_up(&["--table", "t", "--create"]).await;
    assert!(other.wait().unwrap().success());
    pair.assert_equal("t").await;
    assert_ne!(pair.subscriber.text(version).await, "1");
    assert_eq!(
        pair.subscriber
            .text("select consumer, tick is null from pgcascade_replay.position order by 1")
            .await,
        "c|f\nd|f\nolder|t"
    );
    // And one of a version that is not known yet.
    pair.subscriber
        .run("comment on schema pgcascade_replay is 'of the future (version 1000)'")
        .await;
    let output = pair
        .replay()
        .args(&["--table", "t", "--until-caught-up"])
        .output()
        .await;
    assert_eq!(output.code(), Some(1), "{}", output.stderr);
    assert!(
        output.stderr.contains("is of version 1000") && output.stderr.contains("install that version"),
        "{}",
        output.stderr
    );
    pair.drop().await;
}
