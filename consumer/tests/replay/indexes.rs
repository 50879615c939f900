//! Indexes of a table that exists, and is empty, are put aside during its copy: whatever is killed when, they come back as they were.

use crate::cluster::{Db, Replay, eventually, pair};

/// Cut by its key: plain indexes of several kinds, and some that have to stay.
const CUT: &str = "
    create table cut (id int primary key, a int not null, b text, c int not null, d int);
    create index cut_a on cut (a); create index \"Odd \"\"Index\" on cut (b collate \"C\" desc nulls last, lower(b)) where a > 5;
    comment on index \"Odd \"\"Index\" is 'it''s odd'; create index cut_hash on cut using hash (a);
    create index cut_brin on cut using brin (id) with (pages_per_range = 4); create index cut_in on cut (a) include (b) with (fillfactor = 70);
    create index cut_clustered on cut (c); alter table cut cluster on cut_clustered;
    create index cut_stats on cut ((d + 1)); alter index cut_stats alter column 1 set statistics 500";

/// Copied whole: rows can stand in each other's way.
const WHOLE: &str = "
    create table whole (id int primary key, a int not null, b text, c int not null unique, d int);
    create index whole_a on whole (a); create index whole_b on whole (b); create unique index whole_odd on whole ((c + 1.0));
    alter table whole replica identity using index whole_c_key";

async fn indexes(db: &Db) -> String {
    db.text(
        "select string_agg(concat_ws(' ', i.indrelid::regclass, pg_get_indexdef(i.indexrelid), obj_description(i.indexrelid, 'pg_class'),
                                     i.indisclustered, i.indisreplident, i.indisvalid,
                                     (select string_agg(nullif(a.attstattarget, -1)::text, ',') from pg_attribute a where a.attrelid = i.indexrelid)),
                           e'\\n' order by i.indexrelid::regclass::text)
           from pg_index i where i.indrelid in (select oid from pg_class where relname in ('cut', 'whole', 'small', 'full'))",
    )
    .await
}

#[tokio::test]
async fn put_aside_and_back() {
    let pair = pair().await;
    let (p, s) = (&pair.provider, &pair.subscriber);
    for db in [p, s] {
        db.run(&format!(
            "{CUT};{WHOLE}; create table small (id int primary key, a int); create index on small (a);
                         create table \"full\" (id int primary key, a int); create index on \"full\" (a)"
        ))
        .await;
    }
    p.run(
        "insert into cut select i, i, 'b' || i, i, i from generate_series(1, 30000) i; insert into whole select * from cut;
         insert into \"full\" select i, i from generate_series(1, 20000) i; insert into small values (1, 1)",
    )
    .await;
    s.run("insert into \"full\" values (1, 1)").await;
    let before = indexes(s).await;
    assert_eq!(before.lines().count(), 17);
    let arguments = ["--jobs", "3", "--copy-chunk-bytes", "65536"];
    let tables = ["--table", "cut", "--table", "whole", "--table", "small"];
    let replay = |jobs| {
        let arguments = ["--jobs", jobs, "--copy-chunk-bytes", "65536"];
        pair.replay().args(&arguments).args(&tables)
    };
    let aside =
        "select string_agg(index_name, ',' order by index_name collate \"C\") from pgcascade_replay.index_aside";
    let all = "Odd \"Index,cut_a,cut_brin,cut_hash,cut_in,whole_a,whole_b";
    let never = pair.provider_cluster.file(&format!("never-{}", pair.database));
    // Only a table that is cut comes by there.
    let second = format!("before_plan_commit=pause:{never};after_aside=kill");
    // Before the copy of the first of the two, before that of the second, within, between indexes, at the end. The first is cut into
    // about twenty chunks, so that it has some left in each round, whatever of it and of the others was done by the way.
    for (jobs, point, left) in [
        ("1", "after_aside=kill", "Odd \"Index,cut_a,cut_brin,cut_hash,cut_in"),
        ("3", &second, all),
        ("3", "after_chunk_commit=kill:2", ""),
        ("3", "in_copy=kill:9", ""),
        ("3", "after_index=kill:2", ""),
        ("3", "after_copy_commit=kill", ""),
    ] {
        let output = replay(jobs).failpoints(point).output().await;
        assert_eq!(output.code(), None, "{point}: {}", output.stderr);
        // What it had asked for may still be done.
        pair.until_sessions_are_gone().await;
        let now = s.text(aside).await;
        assert!(left.is_empty() || now == left, "{point}: {now}");
        // Each is either there or written down.
        let there = indexes(s).await;
        let lines = before.lines().filter(|line| there.contains(line)).count();
        let written = s.text("select count(*) from pgcascade_replay.index_aside").await;
        assert_eq!(
            lines + written.parse::<usize>().unwrap(),
            before.lines().count(),
            "{point}"
        );
    }
    let output = replay("3").arg("--until-caught-up").output().await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    assert_eq!(indexes(s).await, before);
    assert_eq!(s.text(aside).await, "<null>");
    for table in ["cut", "whole", "small"] {
        pair.assert_equal(table).await;
    }

    // What has rows keeps its indexes, and what is copied again.
    let output = pair
        .replay()
        .args(&arguments)
        .args(&["--table", "full", "--truncate"])
        .failpoints("in_copy=kill")
        .output()
        .await;
    assert_eq!(output.code(), None, "{}", output.stderr);
    assert_eq!(indexes(s).await, before);

    // Taken out in the middle of its copy.
    let set = |arguments: &[&str]| {
        Replay::command(&["table"])
            .args(arguments)
            .args(&["--provider", &pair.provider_cluster.conninfo(&pair.database)])
            .args(&["--subscriber", &pair.subscriber_cluster.conninfo(&pair.database)])
            .args(&["--queue", "q", "--consumer", "c"])
    };
    for verb in [&["remove", "*"][..], &["add", "cut", "--replace"]] {
        let output = set(verb).output().await;
        assert_eq!(output.code(), Some(0), "{}", output.stderr);
    }
    s.run("truncate cut").await;
    let output = pair
        .replay()
        .args(&arguments)
        .failpoints("after_chunk_commit=kill")
        .output()
        .await;
    assert_eq!(output.code(), None, "{}", output.stderr);
    assert_ne!(indexes(s).await, before);
    let output = set(&["remove", "cut"]).output().await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    assert_eq!(indexes(s).await, before);

    // Somebody else's, and one that somebody reads.
    let output = set(&["add", "cut", "--replace"]).output().await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    s.run("truncate cut").await;
    s.run("begin; select from cut").await;
    let output = pair.replay().args(&arguments).arg("--until-caught-up").output().await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    assert!(
        output.stderr.contains("its indexes stay during the copy"),
        "{}",
        output.stderr
    );
    s.run("commit").await;
    assert_eq!(indexes(s).await, before);
    pair.assert_equal("cut").await;
    eventually("nothing is left", async || s.text(aside).await == "<null>").await;
    pair.drop().await;
}

/// A unique index with more in it than is known to be the same here (of what has a dot nobody asks) is made after the copy, and counts before.
#[tokio::test]
async fn unique_ones_that_are_yet_to_be_made() {
    let pair = pair().await;
    pair.provider
        .run(
            "create table large (id int primary key, u int not null, v text); create unique index large_u on large ((u + 0.0));
             insert into large select i, i, repeat('x', 20) from generate_series(1, 20000) i; analyze large",
        )
        .await;
    let go_on = pair.subscriber_cluster.file(&format!("go-on-{}", pair.database));
    let running = pair
        .replay()
        .args(&[
            "--table",
            "large",
            "--create",
            "--copy-chunk-bytes",
            "200000",
            "--jobs",
            "1",
        ])
        .failpoints(&format!("after_chunk_commit=pause:{go_on}"))
        .spawn();
    eventually("a chunk is there, or all", async || {
        pair.subscriber
            .text("select to_regclass('pgcascade_replay.copy_chunk') is not null and to_regclass('large') is not null")
            .await
            == "t"
            && pair.subscriber.text("select exists (select from large)").await == "t"
    })
    .await;
    // The value is in the first chunk, and in the last one too.
    pair.provider
        .run("update large set u = -u where id = 1; update large set u = 1 where id = 20000")
        .await;
    pair.subscriber_cluster.shell(&format!("touch '{go_on}'"));
    pair.until_past_copies(1).await;
    let unique = "select indisunique and indisvalid from pg_index where indexrelid = 'large_u'::regclass";
    assert_eq!(pair.subscriber.text(unique).await, "t");
    // Two rows swap values; nothing was begun anew since the copy.
    pair.provider
        .run(
            "begin; update large set u = 0 where id = 2; update large set u = 2 where id = 3; update large set u = 3 where id = 2; commit",
        )
        .await;
    eventually("they have swapped", async || {
        pair.subscriber.text("select u from large where id = 3").await == "2"
    })
    .await;
    let output = running.stop().await;
    assert_eq!(output.stderr.matches("streaming").count(), 1, "{}", output.stderr);
    pair.assert_equal("large").await;
    pair.drop().await;
}
