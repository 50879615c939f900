//! Partitioned tables, on either side or on both, replayed as one table or partition by partition.

use crate::cluster::{Pair, eventually, pair};

/// A table with two levels of partitions, one of them in another schema, and a default.
fn partitioned(name: &str) -> String {
    format!(
        "create table {name} (id int, at int, v text default 'v', primary key (id, at)) partition by range (at);
         create table {name}_low partition of {name} for values from (minvalue) to (100);
         create table \"Odd.S\".\"{name}.mid\" partition of {name} for values from (100) to (200) partition by list (id);
         create table {name}_odd partition of \"Odd.S\".\"{name}.mid\" for values in (1, 3, 5, 7, 9);
         create table {name}_even partition of \"Odd.S\".\"{name}.mid\" default;
         create table {name}_rest partition of {name} default;
         create index {name}_v on {name} (v);"
    )
}

async fn assert_all_equal(pair: &Pair, tables: &[&str]) {
    for table in tables {
        pair.assert_equal(table).await;
    }
}

#[tokio::test]
async fn a_partitioned_table_is_one_table() {
    let pair = pair().await;
    pair.provider.run("create schema \"Odd.S\"").await;
    for name in ["plain", "same", "other"] {
        pair.provider.run(&partitioned(name)).await;
        pair.provider
            .run(&format!(
                "insert into {name} select i, j * 50 from generate_series(1, 10) i, generate_series(0, 5) j"
            ))
            .await;
    }
    pair.subscriber
        .run(
            "create table plain (id int, at int, v text, primary key (id, at));
             create table other (id int, at int, v text, primary key (id, at)) partition by hash (id);
             create table other_0 partition of other for values with (modulus 2, remainder 0);
             create table other_1 partition of other for values with (modulus 2, remainder 1)",
        )
        .await;
    let tables = ["plain", "same", "other"];
    pair.catch_up(&["--table", "public.*", "--create"]).await;
    let arguments = ["--table", "plain", "--table", "same", "--table", "other", "--create"];
    assert_all_equal(&pair, &tables).await;
    let below = "select relid::text, isleaf, level from pg_partition_tree('same') order by 1";
    assert_eq!(
        pair.subscriber.text(below).await,
        pair.provider.text(below).await,
        "made like the provider's"
    );
    assert_eq!(
        pair.subscriber
            .text("select indisvalid from pg_index where indexrelid = 'same_v'::regclass")
            .await,
        "t"
    );
    assert_eq!(
        pair.subscriber
            .text("select count(*) from pgcascade_replay.table_state")
            .await,
        "3"
    );

    let running = pair.replay().args(&arguments).spawn();
    for name in tables {
        pair.provider
            .run(&format!(
                "insert into {name} values (11, 0), (12, 120), (13, 1000); insert into {name}_odd values (1, 111);
                 update {name} set at = at + 75, v = 'moved' where id <= 3; update {name}_low set v = 'low' where id = 5;
                 delete from {name} where id = 6"
            ))
            .await;
        // One that nobody has seen, and events of it at once; then of one that is gone when they are read.
        pair.provider
            .run(&format!(
                "begin; insert into {name} values (77, 777); delete from {name} where at >= 500;
                 create table {name}_new partition of {name} for values from (500) to (600);
                 insert into {name} select i, 500 + i from generate_series(1, 50) i; commit;
                 create table {name}_gone partition of {name} for values from (600) to (700);
                 insert into {name} values (1, 650); delete from {name} where at = 650; drop table {name}_gone"
            ))
            .await;
    }
    let caught_up = async |what: &str| {
        pair.provider.run("insert into plain values (1000, 0)").await;
        eventually(what, async || {
            pair.subscriber
                .text("select exists (select from plain where id = 1000)")
                .await
                == "t"
        })
        .await;
        pair.provider.run("delete from plain where id = 1000").await;
        eventually(what, async || {
            pair.subscriber
                .text("select exists (select from plain where id = 1000)")
                .await
                == "f"
        })
        .await;
    };
    caught_up("new partitions are replayed").await;
    assert_all_equal(&pair, &tables).await;
    assert_eq!(
        pair.subscriber.text("select count(*) from same_new").await,
        "50",
        "made on the way"
    );

    // One partition emptied, and rows in it again: of a range, of the default, of a list in a list, of the new one.
    for name in tables {
        pair.provider
            .run(&format!(
                "truncate {name}_low; insert into {name} values (1, 1); truncate {name}_rest, {name}_odd;
                 begin; insert into {name} values (2, 501) on conflict do nothing; truncate {name}_new;
                 insert into {name} values (2, 502); commit"
            ))
            .await;
    }
    caught_up("partitions are emptied").await;
    assert_all_equal(&pair, &tables).await;
    // All of it; attached and detached.
    for name in tables {
        pair.provider
            .run(&format!(
                "truncate {name}; insert into {name} select i, i * 30 from generate_series(1, 10) i;
                 create table {name}_later (like {name} including all);
                 alter table {name} attach partition {name}_later for values from (700) to (800);
                 insert into {name} values (1, 700), (2, 701); update {name} set at = 10 where at = 701;
                 delete from {name}_new; alter table {name} detach partition {name}_new; insert into {name}_new values (1, 500)"
            ))
            .await;
    }
    caught_up("attached and detached").await;
    assert_all_equal(&pair, &tables).await;
    let stopped = running.stop().await;
    assert_eq!(stopped.code(), Some(0), "{}", stopped.stderr);
    pair.catch_up(&arguments).await;
    assert_all_equal(&pair, &tables).await;
    pair.drop().await;
}

#[tokio::test]
async fn partitions_by_themselves_and_a_plain_table_into_partitions() {
    let pair = pair().await;
    pair.provider.run("create schema \"Odd.S\"").await;
    pair.provider.run(&partitioned("t")).await;
    pair.provider.run("create table plain (id int, at int, v text, primary key (id, at)); insert into plain values (1, 1), (2, 150)").await;
    pair.subscriber.run("create schema \"Odd.S\"").await;
    pair.subscriber.run(&partitioned("plain")).await;
    let arguments = ["--table", "t_low", "--table", "t_odd", "--table", "plain", "--create"];
    pair.catch_up(&arguments).await;
    pair.provider
        .run(
            "insert into t values (1, 1), (1, 101), (2, 101), (1, 1000); update t set at = 2 where id = 1 and at = 101;
             update plain set at = 151 where id = 1; update plain set v = 'w' where id = 2; insert into plain values (3, 1000);
             delete from plain where id = 3",
        )
        .await;
    pair.catch_up(&arguments).await;
    assert_all_equal(&pair, &["t_low", "t_odd", "plain"]).await;
    assert_eq!(
        pair.subscriber
            .text("select to_regclass('t'), to_regclass('t_even')")
            .await,
        "<null>|<null>"
    );
    assert_eq!(
        pair.subscriber.text("select count(*) from plain_odd").await,
        "1",
        "moved to its partition"
    );
    pair.drop().await;
}
