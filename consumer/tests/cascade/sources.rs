//! Several roots in one database: a leaf of each cascade, and tables that get rows from all of them.

use crate::cluster::{Db, Output, Replay, eventually};
use crate::tree::{Tree, write};

/// The replay of the leaf in the cascade of queue p.
fn replay(tree: &Tree, more: &[&str]) -> Replay {
    let all = tree.conninfo("all");
    let arguments = [
        "replay",
        "--subscriber",
        &*all,
        "--queue",
        "p",
        "--table",
        "*",
        "--retry-max",
        "1",
    ];
    Replay::command(&arguments).args(more)
}

async fn node(arguments: &[&str]) -> Output {
    let output = Replay::command(&["node"]).args(arguments).output().await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    output
}

/// The leaf has the rows of both, each once.
async fn same(all: &Db, roots: [&Db; 2]) {
    for table in ["t", "journal", "two_keys", "parted", "flat"] {
        let query = format!("select x::text from {table} x");
        let mut wanted = String::new();
        for root in roots {
            wanted += &root.text(&query).await;
            wanted.push('\n');
        }
        let mut wanted: Vec<&str> = wanted.lines().collect();
        wanted.sort_unstable();
        eventually(&format!("{table} has the rows of both"), async || {
            let there = all.text(&query).await;
            let mut there: Vec<&str> = there.lines().collect();
            there.sort_unstable();
            there == wanted
        })
        .await;
    }
}

#[tokio::test]
async fn several_roots_fill_one_table() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let other = tree.database("other", true).await;
    other
        .run(
            "create table t (id int primary key, n int); create table journal (uid int, what text);
             insert into t select i, 0 from generate_series(100001, 100500) i;
             insert into journal select i, 'other' from generate_series(1, 8000) i",
        )
        .await;
    // The rows of the one would be removed where those of the other collide with them in the second key.
    for (db, from) in [(&root, 1), (&other, 10_001)] {
        db.run(&format!(
            "create table two_keys (id int primary key, u int unique); insert into two_keys select i, i from generate_series({from}, {from} + 4999) i;
             analyze two_keys"
        ))
        .await;
    }
    // Partitions that have rows of both; here the one is partitioned, too, the other is not.
    for (db, from) in [(&root, 1), (&other, 11)] {
        for table in ["parted", "flat"] {
            db.run(&format!(
                "create table {table} (id int primary key) partition by range (id);
                 create table {table}_low partition of {table} for values from (0) to (100);
                 create table {table}_high partition of {table} for values from (100) to (200);
                 insert into {table} select generate_series({from}, {from} + 9)"
            ))
            .await;
        }
    }
    let (other_at, all_at) = (tree.conninfo("other"), tree.conninfo("all"));
    node(&["create-root", "other", "--queue", "p", "--db", &other_at]).await;
    let all = tree.add("leaf", "all", "root").await;
    node(&[
        "create-leaf",
        "all",
        "--queue",
        "p",
        "--db",
        &all_at,
        "--provider",
        &other_at,
    ])
    .await;
    all.run("create table flat (id int primary key)").await;
    tree.catch_up("all").await;

    let refused = replay(&tree, &["--until-caught-up"]).output().await;
    assert_eq!(refused.code(), Some(1), "{}", refused.stderr);
    for text in [
        "table public.t on the subscriber has rows of another source",
        "table public.journal on the subscriber has rows of another source",
        "of queue \"q\"",
        "--merge",
    ] {
        assert!(refused.stderr.contains(text), "{text}: {}", refused.stderr);
    }
    let refused = replay(&tree, &["--until-caught-up", "--truncate"]).output().await;
    assert!(refused.stderr.contains("which would be removed"), "{}", refused.stderr);
    // Killed in the copy, and once it is recorded there is nothing more to say.
    let killed = replay(&tree, &["--merge"]).failpoints("in_copy=kill:2").output().await;
    assert_eq!(killed.code(), None, "{}", killed.stderr);
    let small = ["--copy-chunk-bytes", "65536"];
    let replays = [tree.replay("all").spawn(), replay(&tree, &small).spawn()];
    for from in [100, 200, 300] {
        write(&root, from).await;
        write(&other, 200_000 + from).await;
    }
    same(&all, [&root, &other]).await;

    // What is about all rows is not done for one source.
    let resync = Replay::command(&["table", "resync", "t", "--subscriber", &all_at, "--queue", "p"]);
    let refused = resync.output().await;
    assert_eq!(refused.code(), Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("cannot be copied again"), "{}", refused.stderr);
    other
        .run("truncate journal; insert into journal values (7, 'anew')")
        .await;
    let [of_root, of_other] = replays;
    let stopped = of_other.wait().await;
    for table in ["two_keys", "journal"] {
        let cut = format!("cut into chunks table=public.{table}");
        assert!(!stopped.stderr.contains(&cut), "{cut}: {}", stopped.stderr);
    }
    assert_eq!(stopped.code(), Some(1), "{}", stopped.stderr);
    assert!(
        stopped
            .stderr
            .contains("truncates table public.journal at its provider, and it has rows of 2 sources"),
        "{}",
        stopped.stderr
    );
    write(&root, 400).await;
    all.run("delete from journal where what = 'other' or uid >= 200000 or uid <= -200000")
        .await;
    let skips = [
        "--on-conflict",
        "journal=skip",
        "--on-conflict",
        "parted=skip",
        "--on-conflict",
        "flat=skip",
    ];
    let mut of_other = replay(&tree, &skips[..2]).spawn();
    same(&all, [&root, &other]).await;
    let recorded =
        "select string_agg(concat_ws(' ', provider_table, kind, policy, outcome, row_key, ev_type), ',' order by id)
                      from pgcascade_replay.conflict where queue = 'p'";
    let mut wanted = "journal truncate_shared skip skipped  R".to_owned();
    assert_eq!(all.text(recorded).await, wanted);
    // A partition is a part of the table: of its rows, too, some are the other source's.
    for (table, skips) in [("parted", &skips[..4]), ("flat", &skips)] {
        other
            .run(&format!("truncate {table}_low; insert into {table} values (11)"))
            .await;
        let stopped = of_other.wait().await;
        assert_eq!(stopped.code(), Some(1), "{}", stopped.stderr);
        let why = format!("truncates table public.{table} at its provider, and it has rows of 2 sources");
        assert!(stopped.stderr.contains(&why), "{}", stopped.stderr);
        all.run(&format!("delete from {table} where id > 10")).await;
        of_other = replay(&tree, skips).spawn();
        same(&all, [&root, &other]).await;
        wanted += &format!(",{table} truncate_shared skip skipped  R");
        assert_eq!(all.text(recorded).await, wanted);
    }
    for replay in [of_root, of_other] {
        replay.stop().await;
    }
    drop((root, other, all));
    tree.drop(&["all", "other", "root"]).await;
}
