//! Partitioned tables, on either side or on both, replayed as one table or partition by partition.

use crate::cluster::{Pair, eventually, pair};
use crate::copies::table;

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

/// The rows of a new partition were in the default one before, on both ends; what became of them there is still to come.
#[tokio::test]
async fn a_partition_out_of_the_default_one() {
    let pair = pair().await;
    let (p, s) = (&pair.provider, &pair.subscriber);
    p.run(
        "create table t (id int, at int, v text, primary key (id, at)) partition by range (at);
         create table t_low partition of t for values from (minvalue) to (100); create table t_rest partition of t default;
         insert into t select i, i * 50, 'before' from generate_series(1, 12) i",
    )
    .await;
    pair.catch_up(&["--table", "t", "--create"]).await;
    let divided = "select tableoid::regclass, id, at, v from t order by 2, 3";
    // Emptied, then divided, on two levels; and rows on either side of that.
    p.run(
        "insert into t values (13, 260, 'late'); truncate t_rest; insert into t values (14, 900, 'after');
         create table t_200 partition of t for values from (200) to (300) partition by list (id);
         create table t_200_rest partition of t_200 default; insert into t values (15, 250, 'new'), (16, 910, 'after');
         truncate t_rest; insert into t values (17, 920, 'again');
         create table t_200_1 partition of t_200 for values in (1); insert into t values (1, 201, 'below'); delete from t_200_rest;
         insert into t values (18, 251, 'last')",
    )
    .await;
    pair.catch_up(&[]).await;
    assert_eq!(s.text(divided).await, p.text(divided).await);
    // Deleted one by one, or moved; and none that has an event.
    p.run(
        "insert into t select i, 400 + i, 'rest' from generate_series(1, 5) i; delete from t where at > 401 and at < 405;
         update t set at = at + 1000 where at between 400 and 500;
         create table t_400 partition of t for values from (400) to (500);
         create table t_500 partition of t for values from (500) to (600); insert into t select i, 500 from generate_series(1, 50) i",
    )
    .await;
    pair.catch_up(&[]).await;
    assert_eq!(s.text(divided).await, p.text(divided).await);
    let below = "select relid::regclass, level from pg_partition_tree('t') order by relid::regclass::text";
    assert_eq!(s.text(below).await, p.text(below).await);
    let running = pair.replay().spawn();
    p.run("create table t_600 partition of t for values from (600) to (700)")
        .await;
    eventually("made without an event of it", async || {
        s.text(below).await == p.text(below).await
    })
    .await;
    running.stop().await;
    pair.drop().await;
}

/// The chunks that are done, and the row versions that say so.
const DONE: &str = "select string_agg(chunk || '=' || xmin, ' ' order by chunk) from pgcascade_replay.copy_chunk where copied_rows > 0";

/// In chunks of its partitions: killed, it goes on; partitions come, also with rows, and go meanwhile, others write.
#[tokio::test]
async fn a_partitioned_table_is_copied_in_chunks() {
    let pair = pair().await;
    let (p, s) = (&pair.provider, &pair.subscriber);
    p.run(
        "create schema \"Odd.S\";
         create table t (id int, at int, pad text, primary key (at, id)) partition by range (at);
         create table t_1 partition of t for values from (0) to (100) partition by hash (id);
         create table t_1_0 partition of t_1 for values with (modulus 2, remainder 0);
         create table \"Odd.S\".\"t 1\" partition of t_1 for values with (modulus 2, remainder 1);
         create table t_2 partition of t for values from (100) to (200); create table t_3 partition of t for values from (200) to (300);
         create table t_4 partition of t for values from (300) to (400); create table none partition of t for values from (400) to (500);
         insert into t select i, i % 150, repeat('x', 100) from generate_series(1, 12000) i;
         insert into t select i, 200 + i, repeat('x', 100) from generate_series(1, 10) i; insert into t values (1, 300)",
    )
    .await;
    let arguments = [
        "--table",
        "t",
        "--create",
        "--jobs",
        "2",
        "--copy-chunk-bytes",
        "131072",
    ];
    let mut kept = String::new();
    for (round, change) in [
        "update t set pad = 'y' where id % 100 = 0; update t set at = (at + 37) % 150 where id % 50 = 1; delete from t where id % 50 = 2",
        "create table t_5 partition of t for values from (500) to (600); insert into t select 20000 + i, 500 + i % 100 from generate_series(1, 500) i;
         update t set at = at + 500 where id % 50 = 3 and at < 100",
        "create table t_6 (like t including all); insert into t_6 select i, 600 + i from generate_series(1, 50) i;
         alter table t attach partition t_6 for values from (600) to (700); insert into t values (51, 600); truncate t_3; insert into t values (9, 209)",
    ]
    .into_iter()
    .enumerate()
    {
        let output = pair
            .replay()
            .args(&arguments)
            .failpoints(&format!("after_chunk_commit=kill:{}", 2 + round))
            .output()
            .await;
        assert_eq!(output.code(), None, "not killed: {}", output.stderr);
        let now = s.text(DONE).await;
        for chunk in kept.split_whitespace() {
            assert!(now.split_whitespace().any(|other| other == chunk), "{chunk} was copied again: {now}");
        }
        kept = now;
        p.run(change).await;
    }
    assert!(kept.split_whitespace().count() >= 6, "{kept}");
    let parts = "select count(distinct partition_table) from pgcascade_replay.copy_chunk";
    assert!(
        s.text(parts).await.parse::<i32>().unwrap() >= 6,
        "one of each partition"
    );
    let output = pair.catch_up(&arguments).await;
    assert!(output.stderr.contains("going on with its copy"), "{}", output.stderr);
    let divided = "select count(*), md5(string_agg(x::text, ',' order by x::text collate \"C\")) from (select tableoid::regclass, id, at, pad from t) x";
    assert_eq!(s.text(divided).await, p.text(divided).await);
    p.run("update t set pad = 'streamed' where id < 100; truncate t_6")
        .await;
    pair.catch_up(&arguments).await;
    assert_eq!(s.text(divided).await, p.text(divided).await);

    // One that is not all copied goes: the copy begins again, without it.
    table(&pair, &["resync", "t"]);
    let output = pair
        .replay()
        .args(&arguments)
        .failpoints("after_chunk_commit=kill:3")
        .output()
        .await;
    assert_eq!(output.code(), None, "not killed: {}", output.stderr);
    p.run("drop table t_2").await;
    let output = pair.catch_up(&arguments).await;
    let text = "the copy of table public.t begins again, as its partitions changed on the provider meanwhile";
    assert!(output.stderr.contains(text), "{}", output.stderr);
    let rows = "select count(*), md5(string_agg(t::text, ',' order by t::text collate \"C\")) from t";
    assert_eq!(s.text(rows).await, p.text(rows).await);
    pair.drop().await;
}

/// A partition that is made out of the default one waits for the events that were kept during the table's copy, too: among them are
/// the deletes of what was in the default one.
#[tokio::test]
async fn a_partition_out_of_the_default_one_waits_for_kept_events() {
    let pair = pair().await;
    pair.provider
        .run(
            "create table d (id int, at int, primary key (id, at)) partition by range (at);
             create table d_low partition of d for values from (minvalue) to (100); create table d_rest partition of d default;
             insert into d select i, at from generate_series(1, 10) i, (values (50), (150), (500)) v (at)",
        )
        .await;
    let go_on = pair.subscriber_cluster.file(&format!("go-on-{}", pair.database));
    let running = pair
        .replay()
        .args(&["--table", "d", "--create"])
        .failpoints(&format!("in_copy=pause:{go_on};before_held_commit=kill"))
        .spawn();
    running.until_it_says("in_copy waits").await;
    // Several portions of kept events before those that matter.
    let kept = async |count: i32| {
        eventually("they are kept", async || {
            pair.subscriber
                .text("select count(*) from pgcascade_replay.held_event")
                .await
                == count.to_string()
        })
        .await;
    };
    for n in 1..=3 {
        pair.provider
            .run(&format!(
                "insert into d select {n} * 100000 + i, 50 from generate_series(1, 20000) i"
            ))
            .await;
        kept(n * 20_000).await;
    }
    pair.provider.run("delete from d where at = 150").await;
    kept(60_010).await;
    std::fs::write(go_on, "").unwrap();
    assert_eq!(running.wait().await.code(), None);
    pair.provider
        .run("create table d_new partition of d for values from (100) to (200)")
        .await;
    let output = pair.catch_up(&["--table", "d"]).await;
    assert_eq!(output.stderr.matches("are applied").count(), 4, "{}", output.stderr);
    assert!(!output.stderr.contains("could not"), "{}", output.stderr);
    pair.assert_equal("d").await;
    pair.assert_equal("d_new").await;
    pair.provider.run("insert into d values (1, 150)").await;
    pair.catch_up(&["--table", "d"]).await;
    pair.assert_equal("d_new").await;
    pair.drop().await;
}

/// Who drops a partition locks the table first and the partition then. Replay, which looks at both at that moment, is not what ends it.
#[tokio::test]
async fn a_look_is_no_deadlock_for_who_drops_a_partition() {
    let pair = pair().await;
    for db in [&pair.provider, &pair.subscriber] {
        db.run(
            "create table t (id int primary key) partition by range (id);
             create table t_1 partition of t for values from (0) to (10); create table t_2 partition of t for values from (10) to (20)",
        )
        .await;
    }
    pair.catch_up(&["--table", "t"]).await;
    let go_on = pair.subscriber_cluster.file(&format!("go-on-{}", pair.database));
    let running = pair
        .replay()
        .failpoints(&format!("before_partitions=pause:{go_on}"))
        .spawn();
    running.until_it_says(&format!("waits until {go_on} exists")).await;
    let dropping = pair.provider_cluster.connect(&pair.database).await;
    dropping.run("begin; lock table only t in access exclusive mode").await;
    std::fs::write(&go_on, "").unwrap();
    let waits = "select count(*) from pg_locks where not granted and database = (select oid from pg_database where datname = current_database())
                    and now() - waitstart > 1.5 * current_setting('deadlock_timeout')::interval";
    eventually(
        "replay has waited for the lock longer than for a deadlock",
        async || pair.provider.text(waits).await == "1",
    )
    .await;
    dropping.run("drop table t_2; insert into t values (1); commit").await;
    eventually("replay goes on", async || {
        pair.subscriber.text("select count(*) from t").await == "1"
    })
    .await;
    assert_eq!(running.stop().await.code(), Some(0));
    pair.drop().await;
}
