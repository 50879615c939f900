//! Tables without a key are copied in chunks of blocks: which rows a copy has is known by where they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::cluster::{Db, Output, Pair, Replay, Running, eventually, own_pair, pair, pause_ticks};
use crate::copies::table;

/// With [`fill`], about 500 rows in a chunk.
const CHUNKS: [&str; 5] = ["--create", "--copy-chunk-bytes", "65536", "--batch-events", "200"];

/// Of table t alone, with more.
fn of_t<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["--table", "t"], more, &CHUNKS].concat()
}

/// Runs a replay that kills itself there.
async fn killed(pair: &Pair, arguments: &[&str], points: &str) {
    let output = pair.replay().args(arguments).failpoints(points).output().await;
    assert_eq!(output.code(), None, "{points} was not reached: {}", output.stderr);
}

/// The copy went on where it was.
fn went_on(output: &Output, what: &str) {
    let begins_again = ["begins again", "copied again"].map(|text| output.stderr.contains(text));
    assert_eq!(begins_again, [false; 2], "{what}: {}", output.stderr);
}

/// Table t in two halves.
async fn halves() -> Pair {
    halves_of("n int not null").await
}

async fn halves_of(column: &str) -> Pair {
    let pair = pair().await;
    pair.provider
        .run(&format!(
            "create table t ({column}, pad text) partition by range (n);
             create table t_0 partition of t for values from (minvalue) to (6000);
             create table t_1 partition of t for values from (6000) to (20000)"
        ))
        .await;
    fill(&pair, &["t"]).await;
    pair
}

async fn fill(pair: &Pair, tables: &[&str]) {
    for table in tables {
        let rows = "select i, repeat('x', 90) from generate_series(1, 12000) i";
        pair.provider
            .run(&format!("insert into {table} {rows}; analyze {table}"))
            .await;
    }
}

/// Rows come in transactions of every kind, into new blocks and into the room that rolled back ones left, while the copy is killed and goes on.
#[tokio::test]
async fn rows_come_during_the_copy() {
    // Of its own: a transaction is left open over the whole copy.
    let pair = own_pair().await;
    pair.provider
        .run(
            "create table t (n int, pad text);
             create table parted (n int, pad text) partition by hash (n);
             create table parted_0 partition of parted for values with (modulus 2, remainder 0);
             create table parted_1 partition of parted for values with (modulus 2, remainder 1)",
        )
        .await;
    fill(&pair, &["t", "parted"]).await;
    let arguments = of_t(&["--table", "parted", "--jobs", "3"]);
    // Capture has to be there for the transaction that is open before the first snapshot and after the last.
    killed(&pair, &arguments, "before_plan_commit=kill").await;
    let long = pair.provider_cluster.connect(&pair.database).await;
    long.run(
        "begin; insert into t select -i, 'long' from generate_series(1, 700) i;
         savepoint a; insert into t select -i, 'long, inner' from generate_series(1, 700) i; release a;
         insert into parted select -i, 'long' from generate_series(1, 700) i",
    )
    .await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writing = Vec::new();
    for number in 0..3 {
        let writer = pair.provider_cluster.connect(&pair.database).await;
        let stopped = Arc::clone(&stop);
        writing.push(tokio::spawn(async move {
            let mut n = 0;
            while !stopped.load(Ordering::Relaxed) {
                n += 1;
                writer
                    .run(&format!(
                        "begin; insert into t select {n}, 'taken back ' || repeat('y', 80) from generate_series(1, 50) i; rollback;
                         begin; insert into t values ({n}, 'of {number}'); insert into parted values ({n}, 'of {number}');
                         savepoint a; insert into t values ({n}, 'no'); insert into parted values ({n}, 'no'); rollback to a;
                         savepoint b; insert into t values ({n}, 'inner of {number}'); insert into parted values ({n}, 'inner of {number}'); release b;
                         commit"
                    ))
                    .await;
                if n % 10 == number {
                    writer.run("vacuum t").await;
                }
            }
            n
        }));
    }
    for points in [
        "in_copy=kill:3",
        "after_chunk_commit=kill:4",
        "after_chunk_commit=kill:9",
        "in_copy=kill:12",
        "after_copy_commit=kill",
    ] {
        killed(&pair, &arguments, points).await;
    }
    let chunks = "select count(*) from pgcascade_replay.copy_chunk where place is not null and snapshot is not null";
    assert_ne!(pair.subscriber.text(chunks).await, "0");
    let running = pair.replay().args(&arguments).spawn();
    pair.until_past_copies(2).await;
    long.run("insert into t values (-1, 'long, behind'); commit").await;
    stop.store(true, Ordering::Relaxed);
    let mut transactions = 0;
    for writing in writing {
        transactions += writing.await.unwrap();
    }
    running.stop().await;
    pair.catch_up(&arguments).await;
    for table in ["t", "parted"] {
        pair.assert_equal(table).await;
    }
    println!("{transactions} transactions were written meanwhile");
    let left = "select count(*) from pgcascade_replay.copy_chunk";
    assert_eq!(pair.subscriber.text(left).await, "0");
    pair.drop().await;
}

/// After some chunks of table t: what is done to it, at which the copy begins again.
#[tokio::test]
async fn rows_that_move_are_copied_again() {
    let pair = pair().await;
    pair.provider.run("create table t (n int, pad text)").await;
    fill(&pair, &["t"]).await;
    let arguments = of_t(&[]);
    for (n, change) in [
        "vacuum full t",
        "truncate t; insert into t select i, repeat('z', 90) from generate_series(1, 12000) i",
    ]
    .iter()
    .enumerate()
    {
        for killed in [true, false] {
            let release = pair.subscriber_cluster.file(&format!("release-{n}-{killed}"));
            let points = if killed {
                "after_chunk_commit=kill:5".to_owned()
            } else {
                format!("after_chunk_commit=pause:5:{release}")
            };
            let running = pair.replay().args(&arguments).failpoints(&points).spawn();
            let output = if killed {
                running.wait().await;
                pair.provider.run(change).await;
                pair.catch_up(&arguments).await
            } else {
                let chunks = "select count(*) from pgcascade_replay.copy_chunk where copied_rows is not null";
                eventually("some chunks are there", async || {
                    running.stderr().contains("cut into chunks")
                        && pair.subscriber.text(chunks).await.parse::<u32>().unwrap() > 4
                })
                .await;
                pair.provider.run(change).await;
                std::fs::write(&release, "").unwrap();
                pair.until_past_copies(1).await;
                running.stop().await
            };
            assert!(
                output
                    .stderr
                    .contains("begins again, whole, as its rows were moved or removed on the provider meanwhile"),
                "{change}, {killed}: {}",
                output.stderr
            );
            pair.catch_up(&arguments).await;
            pair.assert_equal("t").await;
            table(&pair, &["resync", "t"]);
        }
    }
    pair.drop().await;
}

/// What is done to the partitions when all of one is copied and some of the next; and whether the copy goes on from there.
#[tokio::test]
async fn partitions_change_in_between() {
    let pair = halves().await;
    let arguments = of_t(&["--jobs", "1"]);
    for (change, again) in [
        ("alter table t_0 rename to t_00", ""),
        ("vacuum full t_00", ""),
        ("create table t_2 partition of t for values from (20000) to (30000); insert into t values (20001, 'new')", ""),
        (
            "create table t_3 (n int not null, pad text); insert into t_3 values (30001, 'there');
             alter table t attach partition t_3 for values from (30000) to (40000); insert into t values (30002, 'behind')",
            "",
        ),
        // Of what was read before it the copy has rows, and of what is read behind it, too.
        (
            "truncate t_00; insert into t select i, repeat('z', 90) from generate_series(1, 5999) i",
            "so the table is copied again, whole",
        ),
        ("alter table t_1 rename to t_11", ""),
        ("cluster t_11 using t_11_n", "begins again, whole, as its rows were moved"),
    ] {
        killed(&pair, &arguments, "after_chunk_commit=kill:14").await;
        if change.starts_with("cluster") {
            pair.provider.run("create index t_11_n on t_11 (n)").await;
        }
        pair.provider.run(change).await;
        let output = pair.catch_up(&arguments).await;
        if again.is_empty() {
            went_on(&output, change);
        }
        assert!(output.stderr.contains(again), "{change}: {}", output.stderr);
        pair.assert_equal("t").await;
        table(&pair, &["resync", "t"]);
    }
    pair.drop().await;
}

/// With a key, too, a chunk is of a partition and not of a name.
#[tokio::test]
async fn partitions_with_a_key_are_renamed_in_between() {
    let pair = halves_of("n int primary key").await;
    let arguments = of_t(&["--jobs", "1"]);
    for (point, change) in [
        (1, "alter table t_1 rename to t_11"),
        // All of the first one is copied.
        (
            14,
            "alter table t_0 rename to t_00; insert into t values (-1, 'new'); update t set pad = 'y' where n in (7, 11990)",
        ),
        (
            14,
            "alter table t_00 rename to t_0; alter table t_11 rename to t_1; create table t_2 partition of t for values from (20000) to (30000)",
        ),
    ] {
        killed(&pair, &arguments, &format!("after_chunk_commit=kill:{point}")).await;
        let copied = "select count(*) from pgcascade_replay.copy_chunk where partition_place is null";
        assert_eq!(pair.subscriber.text(copied).await, "0");
        pair.provider.run(change).await;
        let output = pair.catch_up(&arguments).await;
        went_on(&output, change);
        pair.assert_equal("t").await;
        table(&pair, &["resync", "t"]);
    }
    pair.drop().await;
}

/// Partitions exchange their names while the replay runs, and while it does not.
#[tokio::test]
async fn partitions_exchange_their_names() {
    for column in ["n int not null", "n int primary key"] {
        let pair = halves_of(column).await;
        exchanged(&pair).await;
        pair.drop().await;
    }
}

async fn exchanged(pair: &Pair) {
    let arguments = of_t(&["--jobs", "1"]);
    let exchange = "begin; alter table t_0 rename to x; alter table t_1 rename to t_0; alter table x rename to t_1;
                    insert into t select min(n) - 1, 'behind' from t union all select max(n) + 1, 'behind' from t; commit";
    let release = pair.subscriber_cluster.file(&format!("release-{}", pair.database));
    for points in [
        format!("after_chunk_commit=pause:3:{release}"),
        "after_chunk_commit=kill:3".to_owned(),
    ] {
        let running = pair.replay().args(&arguments).failpoints(&points).spawn();
        if points.contains("kill") {
            assert_eq!(running.wait().await.code(), None);
            pair.provider.run(exchange).await;
        } else {
            running.until_it_says("cut into chunks").await;
            let chunks = "select count(*) > 2 from pgcascade_replay.copy_chunk where copied_rows is not null";
            until(&pair.subscriber, chunks).await;
            pair.provider.run(exchange).await;
            std::fs::write(&release, "").unwrap();
            pair.until_past_copies(1).await;
            running.stop().await;
        }
        pair.catch_up(&arguments).await;
        pair.assert_equal("t").await;
        table(pair, &["resync", "t"]);
    }
}

async fn until(db: &Db, condition: &str) {
    eventually(condition, async || db.text(condition).await == "t").await;
}

/// A TRUNCATE behind the last chunk, and before that is noted: the copy has nothing from behind it, and it is applied.
#[tokio::test]
async fn emptied_behind_the_last_chunk() {
    let pair = pair().await;
    pair.provider.run("create table t (n int, pad text)").await;
    fill(&pair, &["t"]).await;
    let arguments = of_t(&["--jobs", "1"]);
    killed(&pair, &arguments, "after_chunk_commit=kill").await;
    let left = "select count(*) from pgcascade_replay.copy_chunk where copied_rows is null";
    let points = format!("after_chunk_commit=kill:{}", pair.subscriber.text(left).await);
    pair.provider
        .run("insert into t select i, 'before' from generate_series(1, 500) i")
        .await;
    killed(&pair, &arguments, &points).await;
    assert_eq!(pair.subscriber.text(left).await, "0");
    pair.provider
        .run(
            "insert into t values (1, 'to be emptied');
             begin; truncate t; insert into t select i, 'behind' from generate_series(1, 3000) i; commit; insert into t values (1, 'last')",
        )
        .await;
    let output = pair.catch_up(&arguments).await;
    went_on(&output, "truncated");
    pair.assert_equal("t").await;
    pair.drop().await;
}

/// A key that comes during the copy, and one that goes.
#[tokio::test]
async fn keys_come_and_go() {
    let pair = pair().await;
    pair.provider.run("create table t (n int not null, pad text)").await;
    fill(&pair, &["t"]).await;
    let arguments = of_t(&[]);
    for change in [
        "alter table t add primary key (n)",
        "alter table t drop constraint t_pkey",
    ] {
        killed(&pair, &arguments, "after_chunk_commit=kill:5").await;
        for end in [&pair.provider, &pair.subscriber] {
            end.run(change).await;
        }
        let output = pair.catch_up(&arguments).await;
        let text = "the copy of table public.t begins again, as it got another key on the provider, or lost it";
        assert!(output.stderr.contains(text), "{change}: {}", output.stderr);
        pair.assert_equal("t").await;
        table(&pair, &["resync", "t"]);
    }
    pair.drop().await;
}

/// Table t is copied, but for what its events bring, and among these is one that does not tell where its row is. Nobody ticks.
async fn with_an_event_that_does_not_tell(arguments: &[&str]) -> (Pair, Running) {
    let pair = pair().await;
    pair.provider
        .run(
            "create table t (n int, pad text);
             select pgq.create_queue('q'); update pgq.queue set queue_ticker_max_lag = '0'",
        )
        .await;
    pause_ticks(&pair.provider).await;
    fill(&pair, &["t"]).await;
    let release = pair.subscriber_cluster.file(&format!("release-{}", pair.database));
    let points = format!("after_chunk_commit=pause:5:{release}");
    let running = pair.replay().args(arguments).failpoints(&points).spawn();
    running.until_it_says("cut into chunks").await;
    pair.provider
        .run(
            "begin; set local session_replication_role = replica; insert into t values (-1, 'by hand');
             select pgq.insert_event('q', 'I:', 'n=-1&pad=by+hand', 'public.t', null, null, null); commit;
             insert into t values (-2, 'behind it')",
        )
        .await;
    std::fs::write(&release, "").unwrap();
    pair.until_past_copies(1).await;
    (pair, running)
}

/// From now on there are ticks, and one that has all.
async fn tick(pair: &Pair) {
    pair.provider
        .run("update pgq.queue set queue_ticker_paused = false")
        .await;
    pair.tick().await;
}

const AGAIN: &str = "so the table is copied again, whole";

/// Then the copy is of no use, and a whole one takes its place; that is not over before.
#[tokio::test]
async fn an_event_that_does_not_tell() {
    let (pair, running) = with_an_event_that_does_not_tell(&of_t(&["--until-caught-up"])).await;
    tick(&pair).await;
    let output = running.wait().await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    assert!(output.stderr.contains(AGAIN), "{}", output.stderr);
    assert_eq!(output.stderr.matches("cut into chunks").count(), 1, "{}", output.stderr);
    let state = "select state from pgcascade_replay.table_state";
    assert_ne!(pair.subscriber.text(state).await, "in-copy");
    pair.assert_equal("t").await;
    pair.drop().await;
}

/// The same, with a file to be executed behind it in the same batch.
#[tokio::test]
async fn a_file_behind_an_event_that_does_not_tell() {
    // All in one batch.
    let arguments = ["--table", "t", "--execute-as", "postgres", "--batch-events", "2000"];
    let arguments = [&arguments, &CHUNKS[..3]].concat();
    let (pair, running) = with_an_event_that_does_not_tell(&arguments).await;
    let file = pair.subscriber_cluster.file(&format!("{}.sql", pair.database));
    std::fs::write(&file, "create table harmless (id int)").unwrap();
    let executed = Replay::command(&["execute", &file, "--queue", "q"])
        .args(&["--provider", &pair.provider_cluster.conninfo(&pair.database)])
        .output()
        .await;
    assert_eq!(executed.code(), Some(0), "{}", executed.stderr);
    pair.provider.run("insert into t values (-3, 'behind the file')").await;
    tick(&pair).await;
    running.until_it_says(AGAIN).await;
    pair.until_past_copies(1).await;
    running.stop().await;
    pair.catch_up(&["--table", "t"]).await;
    pair.assert_equal("t").await;
    pair.drop().await;
}

/// Triggers of before, or of one's own, which do not tell; and a partition whose rows can change.
#[tokio::test]
async fn copied_whole_where_nothing_tells() {
    let pair = pair().await;
    pair.provider
        .run(
            "select pgq.create_queue('q');
             create table silent (n int, pad text);
             create trigger mine after insert or update or delete on silent for each row execute function pgq.logutriga('q');
             create table keyed (n int, pad text);
             create trigger mine after insert or update or delete on keyed for each row execute function pgq.logutriga('q', 'place', 'pkey=n');
             create table replaced (n int, pad text);
             create trigger mine after insert or update or delete on replaced
                for each row execute function pgq.logutriga('q', 'place', 'ev_extra4=n');
             create table parted (n int, pad text) partition by hash (n);
             create table parted_0 partition of parted for values with (modulus 2, remainder 0);
             create table parted_1 partition of parted for values with (modulus 2, remainder 1);
             alter table parted_1 add primary key (n)",
        )
        .await;
    let tables = ["silent", "keyed", "replaced", "parted"];
    fill(&pair, &tables).await;
    let mut arguments = CHUNKS.to_vec();
    for table in tables {
        arguments.extend(["--table", table]);
    }
    let output = pair.catch_up(&arguments).await;
    assert!(!output.stderr.contains("cut into chunks"), "{}", output.stderr);
    for table in tables {
        pair.assert_equal(table).await;
    }
    pair.drop().await;
}
