//! A value of a second unique key goes from row to row while their table is copied in chunks of different moments.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::cluster::{Pair, Replay, Running, eventually, pair};
use crate::copies::table;

const CUT: [&str; 5] = ["--table", "t", "--create", "--copy-chunk-bytes", "65536"];

/// `t` on the provider, with rows whose `u` is their key, and `(a, "B ""b")` nearly so.
async fn with_table() -> Pair {
    let pair = pair().await;
    pair.provider
        .run(
            "create table t (id int, \"Key 2\" text, u numeric(12,2) unique, a varchar(20), \"B \"\"b\" date, v text, t int,
                             unique (a, \"B \"\"b\"), primary key (id, \"Key 2\"));
             create unique index \"Odd, Index\" on t (t);
             insert into t select i, 'k' || i % 3, i, 'a' || i % 100, date '2000-01-01' + i / 100, repeat('x', 40), i from generate_series(1, 10000) i;
             analyze t",
        )
        .await;
    pair
}

/// Replay stops when the first chunk is there, until the file is.
async fn after_first_chunk(pair: &Pair) -> (Running, String) {
    let go_on = pair.subscriber_cluster.file(&format!("go-on-{}", pair.database));
    let running = pair
        .replay()
        .args(&CUT)
        .args(&["--jobs", "1"])
        .failpoints(&format!("after_chunk_commit=pause:{go_on}"))
        .spawn();
    running.until_it_says("after_chunk_commit waits until").await;
    assert_eq!(
        pair.subscriber
            .text("select count(*) filter (where id = 1) || ' ' || count(*) filter (where id >= 9000) from t")
            .await,
        "1 0"
    );
    (running, go_on)
}

const DISPLACED: &str = "select count(*) from pgcascade_replay.displaced_row";

/// What is in the older chunk makes way when a younger one is stored; what is in a younger one, when an older event is applied.
#[tokio::test]
async fn older_and_younger_rows_make_way() {
    let pair = with_table().await;
    let (running, go_on) = after_first_chunk(&pair).await;
    pair.provider
        .run(
            "-- From the first chunk to the last.
             update t set u = -u where id = 1; update t set u = 1 where id = 10000;
             update t set a = null where id = 2; update t set a = 'a2', \"B \"\"b\" = '2000-01-01' where id = 9999;
             delete from t where id = 3; update t set t = 3 where id = 9998;
             -- Given to one of the first chunk in between.
             update t set u = 20001 where id = 4; update t set u = 20002 where id = 4; update t set u = 20001 where id = 9997;
             -- Rows of two chunks swap values, by way of NULL.
             update t set t = null where id = 5; update t set t = 5 where id = 9996; update t set t = 9996 where id = 5;
             -- The one that it went to is gone at the end, or is another row of that key.
             update t set u = 20003 where id = 6; update t set u = 6 where id = 9995; delete from t where id = 9995;
             update t set u = 20004 where id = 7; update t set u = 7 where id = 9994; delete from t where id = 9994;
             insert into t values (9994, 'k0', 7, 'again', null, 'again', null);
             -- In a circle over three.
             update t set u = 30000 where id = 8; update t set u = 8 where id = 9993; update t set u = 9993 where id = 9;
             update t set u = 9 where id = 8",
        )
        .await;
    std::fs::write(&go_on, "").unwrap();
    pair.until_past_copies(1).await;
    eventually("all is applied", async || {
        pair.subscriber.text("select u from t where id = 8").await == "9.00"
    })
    .await;
    let output = running.stop().await;
    assert!(output.stderr.contains("cut into chunks"), "{}", output.stderr);
    assert!(
        output.stderr.contains("rows of other chunks made way"),
        "{}",
        output.stderr
    );
    assert!(!output.stderr.contains("displaced_row"), "{}", output.stderr);
    pair.catch_up(&CUT).await;
    pair.assert_equal("t").await;
    assert_eq!(pair.subscriber.text(DISPLACED).await, "0");
    let unique = "select count(*) from pg_index where indrelid = 't'::regclass and indisunique";
    assert_eq!(pair.subscriber.text(unique).await, "4");
    pair.drop().await;
}

/// The same of indexes over expressions, and of some rows only.
#[tokio::test]
async fn rows_make_way_by_what_an_index_makes_of_them() {
    let pair = pair().await;
    let kind = "create type kind as enum ('a', 'b')";
    pair.subscriber.run(kind).await;
    pair.provider.run(kind).await;
    pair.provider
        .run(
            "create table t (id int primary key, mail text collate \"POSIX\", \"Gone, \"\"d\" bool not null, slot int, given int, v text,
                             kind kind, ip inet, lasts interval, meta jsonb);
             create unique index on t (lower(mail));
             create unique index \"Odd \"\"2\" on t ((slot + 1), (\"Gone, \"\"d\" is null)) where not \"Gone, \"\"d\";
             create unique index on t (given) where given > 0 and v is not null;
             create unique index on t (ip, kind) where meta is not null; create unique index on t (lasts);
             insert into t select i, 'Mail' || i, false, i, i, repeat('x', 60), 'b', '10.0.0.0'::inet + i, i * interval '1 minute', '{}'
               from generate_series(1, 10000) i;
             analyze t",
        )
        .await;
    let (running, go_on) = after_first_chunk(&pair).await;
    pair.provider
        .run(
            "update t set mail = 'new' where id = 1; update t set mail = 'MAIL1' where id = 10000;
             update t set \"Gone, \"\"d\" = true where id = 2; update t set slot = 2 where id = 9999;
             update t set v = null where id = 3; update t set given = 3 where id = 9998;
             delete from t where id = 4; update t set mail = 'mAIL4', slot = 4, given = 4 where id = 9997;
             update t set kind = 'a' where id = 7; update t set ip = '10.0.0.7' where id = 9993;
             update t set meta = null where id = 8; update t set ip = '10.0.0.8' where id = 9992;
             update t set lasts = null where id = 9; update t set lasts = '540 seconds' where id = 9991;
             -- Given to one of the first chunk in between, and back.
             update t set given = -1 where id = 5; update t set given = 5 where id = 9996; update t set given = -5 where id = 9996;
             update t set given = 5 where id = 5;
             -- Only one of the two is one that the index is about.
             update t set slot = 9995, \"Gone, \"\"d\" = true where id = 6; update t set given = -7, v = null where id = 9994",
        )
        .await;
    std::fs::write(&go_on, "").unwrap();
    pair.until_past_copies(1).await;
    let output = running.stop().await;
    for text in ["cut into chunks", "rows of other chunks made way"] {
        assert!(output.stderr.contains(text), "{text}: {}", output.stderr);
    }
    for text in ["displaced_row", "copied again"] {
        assert!(!output.stderr.contains(text), "{text}: {}", output.stderr);
    }
    pair.catch_up(&CUT).await;
    pair.assert_equal("t").await;
    assert_eq!(pair.subscriber.text(DISPLACED).await, "0");
    let unique = "select count(*) from pg_index where indrelid = 't'::regclass and indisunique";
    assert_eq!(pair.subscriber.text(unique).await, "6");
    pair.drop().await;
}

/// The same of keys that are no plain unique ones: exclusion constraints, deferrable ones, NULLS NOT DISTINCT, and of types whose equality is
/// that of others, or an extension's.
#[tokio::test]
async fn rows_make_way_by_keys_of_all_kinds() {
    let pair = pair().await;
    let made = "create schema \"odd.S\"; create extension citext schema \"odd.S\"; create extension btree_gist schema \"odd.S\";
                create type pair as (a int, b text);
                create function twice(int) returns int language sql immutable as 'select 2 * $1'";
    pair.subscriber.run(made).await;
    pair.provider.run(made).await;
    pair.provider
        .run(
            "create table t (id int primary key, room int, during int4range, box box, d int unique deferrable, n int, m int, list int[],
                             span tsrange, \"Odd pair\" pair, mail \"odd.S\".citext, name text, f int, ends int, v text,
                             constraint \"Not, \"\"twice\" exclude using gist (room with operator(pg_catalog.=), during with &&) where (v is not null),
                             exclude using gist (box with &&) deferrable initially deferred,
                             exclude using gist (int4range(f, ends) with &&),
                             unique nulls not distinct (n, m));
             create unique index on t (list); create unique index on t (span); create unique index on t (\"Odd pair\") nulls not distinct;
             create unique index on t (mail); create unique index on t (name collate \"C\"); create unique index on t (public.twice(f)) where f > 0.5;
             insert into t select i, i % 100, int4range(i * 10, i * 10 + 10), box(point(i, 0), point(i + 0.5, 1)), i, i, i, array[i, null],
                                  tsrange('2000-01-01'::timestamp + i * interval '1 day', '2000-01-01'::timestamp + (i + 1) * interval '1 day'),
                                  row(i, null)::pair, 'Mail' || i, 'n' || i, i * 2, i * 2 + 2, repeat('x', 40)
               from generate_series(1, 10000) i;
             analyze t",
        )
        .await;
    let (running, go_on) = after_first_chunk(&pair).await;
    pair.provider
        .run(
            "-- The rooms 1 and 2 swap, and 3 goes to two others.
             update t set v = null where id = 1; update t set room = 1, during = '[12,15)' where id = 9999;
             delete from t where id = 3; update t set room = 3, during = '[30,34)' where id = 9998; update t set room = 3, during = '[34,99)' where id = 9997;
             -- At once, as far as that is possible.
             update t set d = case id when 4 then 9996 else 4 end, box = box(point(10000 - id, 0), point(10000 - id + 0.5, 1)) where id in (4, 9996);
             -- NULL is equal to NULL.
             update t set n = null, m = 5 where id = 5; update t set n = 5 where id = 5; update t set n = null, m = 5 where id = 9995;
             update t set m = null, n = null where id = 6; update t set n = 0 where id = 6; update t set m = null, n = null where id = 9994;
             update t set \"Odd pair\" = null where id = 7; update t set \"Odd pair\" = row(null, null) where id = 8;
             update t set \"Odd pair\" = row(7, null) where id = 9993;
             update t set list = '{}' where id = 9; update t set list = '{9,null}' where id = 9992;
             update t set span = 'empty' where id = 10; update t set span = '[2000-01-11,2000-01-12)' where id = 9991;
             update t set mail = null where id = 11; update t set mail = 'mAIL11' where id = 9990;
             update t set name = 'N12' where id = 12; update t set name = 'n12' where id = 9989;
             update t set f = -1, ends = 0 where id = 13; update t set f = 26, ends = 27 where id = 9988;
             update t set f = 14 * 2 + 1 where id = 14; update t set f = 28, ends = 29 where id = 9987;
             -- Given to one of the first chunk in between, and back.
             update t set d = -1, n = -1, list = '{-1}' where id = 15; update t set d = 15, n = 15, list = '{15,null}' where id = 9986;
             update t set d = -15, n = -15, list = '{-15}' where id = 9986; update t set d = 15, n = 15, list = '{15,null}' where id = 15",
        )
        .await;
    std::fs::write(&go_on, "").unwrap();
    pair.until_past_copies(1).await;
    let output = running.stop().await;
    for text in ["cut into chunks", "rows of other chunks made way"] {
        assert!(output.stderr.contains(text), "{text}: {}", output.stderr);
    }
    for text in ["displaced_row", "copied again"] {
        assert!(!output.stderr.contains(text), "{text}: {}", output.stderr);
    }
    pair.catch_up(&CUT).await;
    pair.assert_equal("t").await;
    assert_eq!(pair.subscriber.text(DISPLACED).await, "0");
    let unique = "select count(*) from pg_index where indrelid = 't'::regclass and (indisunique or indisexclusion)";
    assert_eq!(pair.subscriber.text(unique).await, "12");
    pair.drop().await;
}

/// Within one transaction of the provider a row had a value that another one keeps: that one is not to make way, as it would not come back.
#[tokio::test]
async fn a_deferrable_key_that_two_rows_had_for_a_moment() {
    let pair = pair().await;
    pair.provider
        .run(
            "create table t (id int primary key, u int unique deferrable initially deferred, v text);
             insert into t select i, i, repeat('x', 60) from generate_series(1, 10000) i; analyze t",
        )
        .await;
    let (running, go_on) = after_first_chunk(&pair).await;
    pair.provider
        .run(
            "begin; update t set u = 10000 where id = 1; update t set u = -1 where id = 1; commit;
             update t set u = -2 where id = 2; update t set u = 2 where id = 9999",
        )
        .await;
    std::fs::write(&go_on, "").unwrap();
    pair.until_past_copies(1).await;
    let output = running.stop().await;
    assert!(output.stderr.contains("cut into chunks"), "{}", output.stderr);
    for text in ["made way", "copied again"] {
        assert!(!output.stderr.contains(text), "{text}: {}", output.stderr);
    }
    pair.catch_up(&CUT).await;
    pair.assert_equal("t").await;
    pair.drop().await;
}

/// The databases do not agree on what the expression is: nothing is taken for the subscriber's own, and the copy fails once and for all.
#[tokio::test]
async fn an_expression_that_is_another_one_here() {
    let pair = pair().await;
    let database = format!("{}_utf8", pair.database);
    let maintenance = pair.subscriber_cluster.connect("postgres").await;
    maintenance
        .run(&format!(
            "create database {database} locale 'C.UTF-8' template template0"
        ))
        .await;
    pair.provider
        .run(
            "create table t (id int primary key, mail text, v text); create unique index by_mail on t (lower(mail));
             insert into t select i, 'Ä' || i, repeat('x', 60) from generate_series(1, 10000) i;
             update t set mail = 'ä1' where id = 10000; analyze t",
        )
        .await;
    let subscriber = pair.subscriber_cluster.conninfo(&database);
    let output = Replay::new(&pair.provider_cluster.conninfo(&pair.database), &subscriber)
        .args(&CUT)
        .output()
        .await;
    assert_eq!(output.code(), Some(1), "{}", output.stderr);
    assert_eq!(
        output.stderr.matches("the table is copied again").count(),
        1,
        "{}",
        output.stderr
    );
    assert_eq!(output.stderr.matches("cut into chunks").count(), 1, "{}", output.stderr);
    assert!(output.stderr.contains("by_mail"), "{}", output.stderr);
    pair.subscriber_cluster.drop_database(&database).await;
    pair.drop().await;
}

/// A row that was never the provider's is removed, too: it is kept, and told of.
#[tokio::test]
async fn rows_of_the_subscribers_own_are_kept_and_told_of() {
    let pair = with_table().await;
    let (running, go_on) = after_first_chunk(&pair).await;
    pair.subscriber
        .run("insert into t values (-1, 'ours', 10000, null, null, 'local', null), (-2, 'ours', 20000, null, null, 'local', null)")
        .await;
    // One is in the way of a chunk, and one of an event.
    pair.provider.run("update t set u = 20000 where id = 1").await;
    std::fs::write(&go_on, "").unwrap();
    // It is told when the table is ok, which takes a tick from after the end of all that was open on the server.
    eventually("the table is ok", async || {
        pair.tick().await;
        pair.subscriber
            .text("select state from pgcascade_replay.table_state")
            .await
            == "ok"
    })
    .await;
    let before = running.stop().await.stderr;
    let after = pair.catch_up(&CUT).await.stderr;
    let told = |stderr: &str| {
        let told = |line: &&str| line.contains("pgcascade_replay.displaced_row") && line.contains("rows=2");
        stderr.lines().filter(told).count()
    };
    assert_eq!((told(&before), told(&after)), (1, 0), "{before}{after}");
    pair.assert_equal("t").await;
    assert_eq!(
        pair.subscriber
            .text("select string_agg(table_schema || '.' || table_name || ' ' || key::text || ' ' || row, ' ' order by key desc) from pgcascade_replay.displaced_row where told")
            .await,
        "public.t {-2,ours} (-2,ours,20000.00,,,local,) public.t {-1,ours} (-1,ours,10000.00,,,local,)"
    );
    pair.drop().await;
}

const COLUMNS: &str = "create unique index on t (a, b, g)";

/// Values go round among all rows while the copy is killed again and again.
async fn values_go_round(partitioned: bool, condition: Option<&str>, indexes: &str) {
    let pair = pair().await;
    let below = if partitioned {
        "partition by list (g); create table even partition of t for values in (0); create table odd partition of t for values in (1)"
    } else {
        ""
    };
    pair.provider
        .run(&format!(
            "create table t (id int, g int, u int, a text, b int, v text, primary key (id, g), unique (u, g)) {below};
             {indexes};
             insert into t select i, i % 2, i, 'a' || i % 100, i / 100, repeat('x', 80) from generate_series(1, 10000) i; analyze t"
        ))
        .await;
    if let Some(condition) = condition {
        table(&pair, &["add", "t", "--create", "--where", condition]);
    }
    let writer = pair.provider_cluster.connect(&pair.database).await;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let writing = tokio::spawn(async move {
        let mut n: u32 = 0;
        while !stopped.load(Ordering::Relaxed) {
            n += 1;
            let one = n.wrapping_mul(7919) % 10_000;
            let other = (one + n.wrapping_mul(104_729) % 5_000 * 2) % 10_000;
            let again = one % 97;
            writer
                .run(&format!(
                    "begin;
                     create temp table was on commit drop as select * from t where id in ({one}, {other});
                     update t set u = null, a = null where id in ({one}, {other});
                     update t set u = w.u, a = w.a, b = w.b, v = case when {n} % 5 = 0 then 'hidden' else '{n}' end from was w
                      where t.id in ({one}, {other}) and w.id <> t.id;
                     commit;
                     begin; delete from t where id = {again};
                     insert into t select {again}, {again} % 2, -{again}, 'again', {again}, '{n}'
                      where not exists (select from t where id = {again} or u = -{again} or (a, b) = ('again', {again})); commit"
                ))
                .await;
            if n.is_multiple_of(300) {
                writer
                    .run("begin; create temp table was on commit drop as table t; truncate t; insert into t table was; commit")
                    .await;
            }
        }
        n
    });
    let mut arguments = vec!["--copy-chunk-bytes", "65536", "--jobs", "3"];
    if condition.is_none() {
        arguments.extend(["--table", "t", "--create"]);
    }
    let replay = |points: &str| pair.replay().args(&arguments).failpoints(points).spawn();
    let killed = async |points: &str, running: Running| {
        let output = running.wait().await;
        assert_eq!(output.code(), None, "{points} was not reached: {}", output.stderr);
    };
    for points in [
        "after_chunk_commit=kill:2",
        "in_copy=kill:5",
        "after_chunk_commit=kill:5",
    ] {
        killed(points, replay(points)).await;
    }
    // Not before there is something to apply when the copy is there.
    let go_on = pair.subscriber_cluster.file(&format!("go-on-{}", pair.database));
    let points = format!("in_copy=pause:{go_on};after_copy_commit=kill");
    let running = replay(&points);
    eventually("events are kept", async || {
        let kept = "select exists (select from pgcascade_replay.held_event)";
        pair.subscriber.text(kept).await == "t"
    })
    .await;
    std::fs::write(&go_on, "").unwrap();
    killed(&points, running).await;
    for points in ["before_held_commit=kill", "after_held_commit=kill"] {
        killed(points, replay(points)).await;
    }
    let running = pair.replay().args(&arguments).spawn();
    pair.until_past_copies(1).await;
    stop.store(true, Ordering::Relaxed);
    let transactions = writing.await.unwrap();
    running.stop().await;
    pair.catch_up(&arguments).await;
    let rows = format!(
        "select string_agg(t::text, e'\\n' order by id) from t where {}",
        condition.unwrap_or("true")
    );
    assert!(pair.provider.text(&rows).await == pair.subscriber.text(&rows).await);
    let rows = "select count(*) from t";
    assert!(condition.is_none() || pair.provider.text(rows).await != pair.subscriber.text(rows).await);
    assert_eq!(pair.subscriber.text(DISPLACED).await, "0");
    println!("{transactions} exchanges were made meanwhile");
    pair.drop().await;
}

#[tokio::test]
async fn values_go_round_while_it_is_killed() {
    values_go_round(false, None, COLUMNS).await;
}

#[tokio::test]
async fn values_of_expressions_go_round_while_it_is_killed() {
    let indexes =
        "create unique index on t (lower(a), (b + 0), g) where u is not null; create unique index on t ((u * 2), g)";
    values_go_round(false, None, indexes).await;
}

#[tokio::test]
async fn values_of_constraints_go_round_while_it_is_killed() {
    let constraints =
        "alter table t add unique (u) deferrable initially deferred, add unique nulls not distinct (u, a, id),
                       add exclude using gist (int4range(u, u, '[]') with &&) where (u is not null)";
    values_go_round(false, None, constraints).await;
}

#[tokio::test]
async fn values_go_round_in_a_partitioned_table() {
    values_go_round(true, None, COLUMNS).await;
}

#[tokio::test]
async fn values_go_round_between_rows_that_come_and_go() {
    values_go_round(false, Some("v <> 'hidden'"), COLUMNS).await;
}

/// The keys are changed between the chunks and the last of their events: what was removed comes back all the same.
#[tokio::test]
async fn keys_that_change_during_the_copy() {
    for change in [
        "drop index \"Odd, Index\"; alter table t drop constraint t_u_key",
        "create unique index on t ((id + 1))",
        "create function quiet() returns trigger language plpgsql as 'begin return new; end';
         create trigger watch before insert or update on t for each row execute function quiet(); alter table t enable always trigger watch",
    ] {
        let pair = with_table().await;
        let (running, go_on) = after_first_chunk(&pair).await;
        pair.provider
            .run(
                "update t set u = -1, v = 'new' where id = 1; update t set u = 1 where id = 10000; delete from t where id = 2;
                 update t set t = 2 where id = 9999",
            )
            .await;
        running.kill().await;
        let output = pair.replay().args(&CUT).failpoints("after_copy_commit=kill").output().await;
        assert!(output.stderr.contains("made way"), "{}", output.stderr);
        assert_eq!(pair.subscriber.text(DISPLACED).await, "2");
        pair.subscriber.run(change).await;
        pair.catch_up(&CUT).await;
        pair.assert_equal("t").await;
        assert_eq!(pair.subscriber.text(DISPLACED).await, "0", "{change}");
        drop(go_on);
        pair.drop().await;
    }
}

/// The provider has a key no more, and two rows with one value: that is found out, and nothing is taken for the subscriber's own.
#[tokio::test]
async fn a_key_that_the_provider_drops_during_the_copy() {
    let pair = with_table().await;
    let (running, go_on) = after_first_chunk(&pair).await;
    pair.provider
        .run("alter table t drop constraint t_u_key; update t set u = 1 where id = 10000")
        .await;
    std::fs::write(&go_on, "").unwrap();
    let output = running.wait().await;
    assert_eq!(output.code(), Some(1), "{}", output.stderr);
    for text in ["the table is copied again", "t_u_key"] {
        assert!(output.stderr.contains(text), "{text}: {}", output.stderr);
    }
    pair.subscriber.run("alter table t drop constraint t_u_key").await;
    pair.catch_up(&CUT).await;
    pair.assert_equal("t").await;
    assert_eq!(pair.subscriber.text(DISPLACED).await, "0");
    pair.drop().await;
}

/// The provider lets two rows have the value that the subscriber does not: nothing is removed, and the copy fails.
#[tokio::test]
async fn a_key_that_only_the_subscriber_has_is_none_to_make_way_by() {
    let pair = pair().await;
    pair.provider
        .run("create table t (id int primary key, u int); insert into t select i, i % 9999 from generate_series(1, 10000) i; analyze t")
        .await;
    pair.subscriber
        .run("create table t (id int primary key, u int unique)")
        .await;
    let output = pair
        .replay()
        .args(&["--table", "t", "--copy-chunk-bytes", "65536", "--until-caught-up"])
        .output()
        .await;
    assert_eq!(output.code(), Some(1), "{}", output.stderr);
    assert!(output.stderr.contains("t_u_key"), "{}", output.stderr);
    assert!(!output.stderr.contains("cut into chunks"), "{}", output.stderr);
    assert_eq!(pair.subscriber.text("select count(*) from t").await, "0");
    pair.drop().await;
}

/// A role that may make no temporary table could not bring a chunk past the rows that are in its way.
#[tokio::test]
async fn who_may_make_no_temporary_table_copies_it_whole() {
    for may in [false, true] {
        let pair = with_table().await;
        let role = format!("clerk_{}", pair.database);
        let database = &pair.database;
        pair.subscriber
            .run(&format!(
                "create role {role} login password 'secret'; grant create on database {database} to {role}; grant create on schema public to {role};
                 grant set on parameter session_replication_role to {role}; revoke temporary on database {database} from public"
            ))
            .await;
        if may {
            pair.subscriber
                .run(&format!("grant temporary on database {database} to {role}"))
                .await;
        }
        let output = Replay::new(
            &pair.provider_cluster.conninfo(database),
            &pair.subscriber_cluster.conninfo_as(database, &role, "secret"),
        )
        .args(&CUT)
        .arg("--until-caught-up")
        .output()
        .await;
        assert_eq!(output.code(), Some(0), "{}", output.stderr);
        assert_eq!(output.stderr.contains("cut into chunks"), may, "{}", output.stderr);
        pair.assert_equal("t").await;
        pair.subscriber
            .run(&format!(
                "drop owned by {role}; revoke all on parameter session_replication_role from {role}; drop role {role}"
            ))
            .await;
        pair.drop().await;
    }
}
