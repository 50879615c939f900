//! Starts that must fail, before anything is changed, with a sentence that names the object and says what to do.

use crate::cluster::{Pair, Replay, eventually, own_pair, pair};

/// Runs to the end and asserts exit code and text.
async fn refused(replay: Replay, code: i32, texts: &[&str]) {
    let output = replay.output().await;
    assert_eq!(output.code(), Some(code), "{}", output.stderr);
    for text in texts {
        assert!(output.stderr.contains(text), "\"{text}\" is not in: {}", output.stderr);
    }
}

async fn nothing_was_made(pair: &Pair) {
    assert_eq!(pair.provider.text("select count(*) from pgq.queue").await, "0");
    assert_eq!(
        pair.provider
            .text(
                "select count(*) from pg_trigger t join pg_class c on c.oid = t.tgrelid where c.relname in ('t', 'u')"
            )
            .await,
        "0"
    );
    assert_eq!(
        pair.subscriber.text("select to_regnamespace('pgcascade_replay')").await,
        "<null>"
    );
}

#[tokio::test]
async fn wrong_password() {
    let pair = pair().await;
    let replay = Replay::new(
        &pair.provider_cluster.conninfo_as(&pair.database, "postgres", "wrong"),
        &pair.subscriber_cluster.conninfo(&pair.database),
    );
    refused(
        replay.args(&["--table", "t"]),
        1,
        &["provider", "password authentication failed", "28P01"],
    )
    .await;
    pair.drop().await;
}

#[tokio::test]
async fn no_server() {
    let pair = pair().await;
    let replay = Replay::new(
        "host=127.0.0.1 port=1 user=postgres dbname=x password=x",
        &pair.subscriber_cluster.conninfo(&pair.database),
    );
    refused(
        replay.args(&["--table", "t"]),
        1,
        &["could not connect to the provider", "refused"],
    )
    .await;
    pair.drop().await;
}

#[tokio::test]
async fn patterns_that_mean_nothing() {
    let pair = pair().await;
    pair.provider.run("create view v as select 1; create table parted (id int) partition by range (id); create table t (id int primary key)").await;
    refused(pair.replay().args(&["--table", "a.b.c"]), 2, &["a.b.c"]).await;
    refused(
        pair.replay().args(&["--table", "absent"]),
        1,
        &["no table on the provider matches \"absent\"", "schema public"],
    )
    .await;
    refused(
        pair.replay().args(&["--table", "app.*"]),
        1,
        &["no table on the provider matches \"app.*\""],
    )
    .await;
    refused(
        pair.replay().args(&["--table", "v"]),
        1,
        &["public.v on the provider is a view"],
    )
    .await;
    refused(
        pair.replay().args(&["--table", "parted"]),
        1,
        &["public.parted on the provider is a partitioned table"],
    )
    .await;
    nothing_was_made(&pair).await;
    // In a pattern they are passed over.
    pair.catch_up(&["--table", "public.*", "--create"]).await;
    assert_eq!(
        pair.subscriber
            .text("select count(*) from pgcascade_replay.table_state")
            .await,
        "1"
    );
    pair.drop().await;
}

#[tokio::test]
async fn all_findings_at_once() {
    let pair = pair().await;
    pair.provider
        .run("create table t (id int primary key, v text, w int); create table u (id int primary key); create table g (id int primary key, g int generated always as (id) stored)")
        .await;
    pair.subscriber
        .run("create table t (id int, v text, extra int not null); create view g as select 1 as id")
        .await;
    refused(
        pair.replay().args(&["--table", "public.*"]),
        1,
        &[
            "table public.u does not exist on the subscriber",
            "--create",
            "column \"w\" of table public.t is missing on the subscriber",
            "add column \"w\" integer",
            "no unique key over (id)",
            "column \"extra\" of table public.t on the subscriber is NOT NULL without a default",
            "public.g on the subscriber is a view",
        ],
    )
    .await;
    nothing_was_made(&pair).await;
    pair.drop().await;
}

#[tokio::test]
async fn missing_rights() {
    let pair = pair().await;
    let name = format!("clerk_{}", pair.database);
    for db in [&pair.provider, &pair.subscriber] {
        db.run(&format!(
            "create role {name} login password 'secret'; create table t (id int primary key)"
        ))
        .await;
    }
    let replay = || {
        Replay::new(
            &pair.provider_cluster.conninfo_as(&pair.database, &name, "secret"),
            &pair.subscriber_cluster.conninfo_as(&pair.database, &name, "secret"),
        )
        .args(&["--table", "t", "--until-caught-up"])
    };
    refused(
        replay(),
        1,
        &[
            "queue \"q\" does not exist on the provider",
            "may not make it",
            "may not read queues on the provider",
            "may not read table public.t of the provider",
            "may not make triggers on table public.t of the provider",
            "may not use the capture function",
            "may not set session_replication_role on the subscriber",
            "may not make the schema pgcascade_replay",
            "lacks select, insert, update, delete, truncate on table public.t of the subscriber",
        ],
    )
    .await;
    nothing_was_made(&pair).await;
    // The remedies are enough.
    pair.provider
        .run(&format!(
            "grant pgq_admin to {name}; grant select, trigger on t to {name}"
        ))
        .await;
    pair.subscriber
        .run(&format!(
            "grant set on parameter session_replication_role to {name}; grant create on database {} to {name};
             grant select, insert, update, delete, truncate on t to {name}",
            pair.database
        ))
        .await;
    pair.provider.run("insert into t select generate_series(1, 100)").await;
    let output = replay().output().await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    pair.provider.run("insert into t select generate_series(101, 200); delete from t where id < 5; update t set id = -id where id = 7").await;
    let output = replay().output().await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    pair.assert_equal("t").await;
    // The queue is there: reading it is all that the role needs from now on.
    pair.provider.run(&format!("revoke pgq_admin from {name}; grant pgq_reader to {name}; revoke select, trigger on t from {name}; insert into t values (1000)")).await;
    let output = replay().output().await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    pair.assert_equal("t").await;
    let owned = [&pair.provider, &pair.subscriber];
    for db in owned {
        db.run(&format!("drop owned by {name} cascade; drop role {name}")).await;
    }
    pair.drop().await;
}

#[tokio::test]
async fn extension_absent_or_too_old() {
    let pair = pair().await;
    pair.provider.run("create table t (id int primary key)").await;
    pair.provider
        .run("update pg_extension set extversion = '0.0.9' where extname = 'pgcascade'")
        .await;
    refused(
        pair.replay().args(&["--table", "t"]),
        1,
        &[
            "has pgcascade 0.0.9",
            "needs 0.1 or later",
            "alter extension pgcascade update",
        ],
    )
    .await;
    pair.provider.run("drop extension pgcascade cascade").await;
    refused(
        pair.replay().args(&["--table", "t"]),
        1,
        &[
            &pair.database,
            "does not have the extension pgcascade",
            "create extension pgcascade",
        ],
    )
    .await;
    pair.drop().await;
}

#[tokio::test]
async fn the_same_database_at_both_ends() {
    let pair = pair().await;
    let conninfo = pair.provider_cluster.conninfo(&pair.database);
    refused(
        Replay::new(&conninfo, &conninfo).args(&["--table", "t"]),
        1,
        &["are the same database"],
    )
    .await;
    pair.drop().await;
}

#[tokio::test]
async fn a_second_replay_of_the_same_consumer() {
    let pair = pair().await;
    pair.provider.run("create table t (id int primary key)").await;
    let running = pair.replay().args(&["--table", "t", "--create"]).spawn();
    running.until_it_says("streaming").await;
    refused(
        pair.replay().args(&["--table", "t"]),
        1,
        &["consumer \"c\" of queue \"q\" is in use already", "127.0.0.1"],
    )
    .await;
    pair.provider.run("insert into t values (1)").await;
    eventually("the first one goes on", async || {
        pair.subscriber.text("select count(*) from t").await == "1"
    })
    .await;
    running.stop().await;
    pair.drop().await;
}

#[tokio::test]
async fn a_registration_that_is_somebody_elses() {
    let pair = pair().await;
    pair.provider
        .run(
            "create table t (id int primary key); select pgq.create_queue('q'); select pgq.register_consumer('q', 'c')",
        )
        .await;
    pair.subscriber.run("create table t (id int primary key)").await;
    refused(
        pair.replay().args(&["--table", "t"]),
        1,
        &[
            "this subscriber has no position",
            "another --consumer name",
            "unregister_consumer",
        ],
    )
    .await;
    pair.drop().await;
}

#[tokio::test]
async fn positions_that_are_lost() {
    let pair = pair().await;
    pair.provider
        .run("create table t (id int primary key); insert into t values (1)")
        .await;
    pair.catch_up(&["--table", "t", "--create"]).await;

    // The provider is ahead: somebody else consumed.
    pair.provider
        .run("insert into t values (2); select pgq.force_tick('q'); select pgq.ticker('q')")
        .await;
    pair.provider
        .run("select pgq.finish_batch(pgq.next_batch('q', 'c'))")
        .await;
    refused(
        pair.replay().args(&["--table", "t"]),
        1,
        &[
            "lost position of consumer \"c\"",
            "the provider has the consumer at tick",
            "--truncate",
        ],
    )
    .await;
    assert_eq!(pair.subscriber.text("select count(*) from t").await, "1");

    // The provider does not know the consumer.
    pair.provider.run("select pgq.unregister_consumer('q', 'c')").await;
    refused(
        pair.replay().args(&["--table", "t"]),
        1,
        &["lost position", "not registered"],
    )
    .await;
    pair.provider.run("select pgq.register_consumer('q', 'c')").await;
    refused(
        pair.replay().args(&["--table", "t"]),
        1,
        &["lost position", "the provider has the consumer at tick"],
    )
    .await;

    // Nor the queue.
    pair.provider.run("select pgq.drop_queue('q', true)").await;
    refused(
        pair.replay().args(&["--table", "t"]),
        1,
        &["lost position", "does not have the queue any more"],
    )
    .await;

    // A queue that is another one.
    pair.provider
        .run("select pgq.create_queue('q'); select pgq.register_consumer('q', 'c')")
        .await;
    refused(
        pair.replay().args(&["--table", "t"]),
        1,
        &["lost position", "another database or queue"],
    )
    .await;

    // Another extension.
    pair.provider
        .run("drop extension pgcascade cascade; create extension pgcascade")
        .await;
    refused(pair.replay().args(&["--table", "t"]), 1, &["lost position"]).await;

    // Another database of the same name.
    assert_eq!(
        pair.subscriber.text("select count(*) from t").await,
        "1",
        "nothing was applied in all this"
    );

    // What the hint says works.
    pair.subscriber
        .run("delete from pgcascade_replay.position where consumer = 'c' and queue = 'q'")
        .await;
    pair.catch_up(&["--table", "t", "--truncate"]).await;
    pair.assert_equal("t").await;
    pair.drop().await;
}

#[tokio::test]
async fn triggers_that_were_lost() {
    let pair = pair().await;
    pair.provider
        .run("create table t (id int primary key); create table u (id int primary key); insert into t values (1)")
        .await;
    pair.catch_up(&["--table", "*", "--create"]).await;
    // The same name, another table: its first rows were not captured.
    pair.provider
        .run("drop table t; create table t (id int primary key); insert into t values (2), (3)")
        .await;
    let texts = [
        "table public.t of the provider has lost its capture triggers",
        "consumer table resync '\"public\".\"t\"'",
    ];
    refused(pair.replay().args(&["--table", "*"]), 1, &texts).await;
    pair.provider
        .run("alter table u disable trigger pgcascade_capture_q_truncate")
        .await;
    refused(
        pair.replay().args(&["--table", "u"]),
        1,
        &["table public.u of the provider has lost"],
    )
    .await;
    pair.provider
        .run("alter table u enable trigger pgcascade_capture_q_truncate")
        .await;
    pair.subscriber
        .run("delete from pgcascade_replay.table_state where provider_table = 't'")
        .await;
    pair.catch_up(&["--table", "*", "--truncate"]).await;
    pair.assert_equal("t").await;
    pair.drop().await;
}

#[tokio::test]
async fn a_standby_at_either_end() {
    let pair = own_pair().await;
    pair.provider.run("create table t (id int primary key)").await;
    pair.subscriber.run("create table t (id int primary key)").await;
    for (end, cluster) in [
        ("provider", &pair.provider_cluster),
        ("subscriber", &pair.subscriber_cluster),
    ] {
        let standby = cluster.standby("standby");
        let (provider, subscriber) = if end == "provider" {
            (
                standby.conninfo(&pair.database),
                pair.subscriber_cluster.conninfo(&pair.database),
            )
        } else {
            (
                pair.provider_cluster.conninfo(&pair.database),
                standby.conninfo(&pair.database),
            )
        };
        let sentence = format!("the {end} (database \"{}\") is a standby", pair.database);
        refused(
            Replay::new(&provider, &subscriber).args(&["--table", "t"]),
            1,
            &[&sentence, "name its primary"],
        )
        .await;
    }
}
