//! Random changes of tables with every odd type and shape, while replay is killed and started again: equal at the end.
//! docs/replay-torture.md lists what is in it, and which other tests take the rest.

use std::time::Duration;

use crate::cluster::pair;

/// The same tables at both ends.
const TABLES: &str = include_str!("torture.sql");
/// What makes the changes.
const STEP: &str = include_str!("torture_step.sql");

#[tokio::test]
async fn types_and_shapes_under_random_changes_and_kills() {
    let pair = pair().await;
    // A server built without libxml has the type and takes no value of it.
    let xml = pair.provider.try_text("select xml '<a/>'").await.is_ok();
    let without = |sql: &str| {
        if xml {
            sql.to_owned()
        } else {
            sql.replace(" x xml", " x text").replace("::xml", "")
        }
    };
    for db in [&pair.provider, &pair.subscriber] {
        db.run("create schema tort").await;
        db.run(&without(TABLES)).await;
    }
    pair.provider
        .run("create table tort.extra (id int primary key, v text)")
        .await;
    pair.subscriber
        .run(
            "create table tort.extra (note text default 'here', id int primary key, seen timestamptz not null default now(),
                                      v text default 'never', n int generated always as (id * 2) stored)",
        )
        .await;
    pair.provider.run(&without(STEP)).await;
    pair.provider.run("select setseed(0.4); select tort.fill(1, 200); insert into tort.parent select i, i from generate_series(1, 20) i").await;

    let arguments = ["--table", "tort.*", "--copy-chunk-bytes", "65536"];
    let mut random = 20_261_121_u64;
    for round in 0..8 {
        let running = pair.replay().args(&arguments).spawn();
        // The first ones are killed in the copy or wherever they are, the others in the stream.
        if round > 2 {
            running.until_it_says("streaming").await;
        }
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let steps = 10 + (random >> 33) % 30;
        for _ in 0..steps {
            pair.provider.run("select tort.step()").await;
        }
        tokio::time::sleep(Duration::from_millis((random >> 40) % 150)).await; // whenever that is
        let output = running.kill().await;
        assert_eq!(output.code(), None, "{}", output.stderr);
    }
    let output = pair.catch_up(&arguments).await;
    assert!(!output.stderr.contains("ERROR"), "{}", output.stderr);
    for table in ["kinds", "numbered", "parent", "child"] {
        let rows = pair.provider.text(&format!("select count(*) from tort.{table}")).await;
        assert_ne!(rows, "0", "{table}");
        pair.assert_equal(&format!("tort.{table}")).await;
    }
    let extra = "select id, v from tort.extra order by id";
    assert_eq!(pair.provider.text(extra).await, pair.subscriber.text(extra).await);
    let own = "select count(*) from tort.extra where note is distinct from 'here' or seen is null or n is distinct from id * 2";
    assert_eq!(pair.subscriber.text(own).await, "0");
    pair.drop().await;
}
