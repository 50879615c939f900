//! `--copy-from` a branch: a leaf of the root gets its tables from there, at a tick, while everybody writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::cluster::eventually;
use crate::tree::{Tree, tick, until, write};

#[tokio::test]
async fn a_branch_is_read_instead_of_the_root() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    root.run(
        "create table large (id int primary key, n int, pad text);
         insert into large select i, 0, repeat('x', 100) from generate_series(1, 10000) i;
         create table parted (id int primary key, n int) partition by range (id);
         create table parted_1 partition of parted for values from (0) to (5000);
         create table parted_2 partition of parted for values from (5000) to (100000);
         insert into parted select i, 0 from generate_series(1, 10000) i",
    )
    .await;
    let branch = tree.add("branch", "branch", "root").await;
    tree.catch_up("branch").await;
    let leaf = tree.add("leaf", "leaf", "root").await;
    let name = branch.text("select current_database()").await;
    branch
        .run(&format!("alter database {name} set log_statement = 'all'"))
        .await;
    let running = tree.replay("branch").spawn();
    let writer = tree.connect("root").await;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let writing = tokio::spawn(async move {
        let mut n = 0;
        while !stopped.load(Ordering::Relaxed) {
            n += 1;
            write(&writer, 20_000 + n * 50).await;
            writer
                .run(&format!(
                    "begin; update large set n = n + 1 where id % 97 = {n} % 97; update large set id = id + 100000 where id = {n} * 3 + 1;
                     insert into large values (-{n}, {n}); delete from large where id = -{n} + 2;
                     update parted set n = n + 1 where id % 89 = {n} % 89; commit"
                ))
                .await;
        }
    });
    let replay = || {
        tree.replay("leaf")
            .args(&["--copy-chunk-bytes", "65536", "--copy-from", "branch"])
    };
    for point in ["after_chunk_commit=kill:3", "in_copy=kill:2", "after_copy_commit=kill"] {
        let output = replay().failpoints(point).output().await;
        assert_eq!(output.code(), None, "{point}: {}", output.stderr);
    }
    let output = replay().arg("--until-caught-up").output().await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    stop.store(true, Ordering::Relaxed);
    writing.await.unwrap();
    tree.catch_up("leaf").await;
    tree.assert_same_rows(&leaf, &root).await;
    for table in ["large", "parted"] {
        let rows =
            format!("select count(*), md5(string_agg(x::text, ' ' order by x::text collate \"C\")) from {table} x");
        assert_eq!(leaf.text(&rows).await, root.text(&rows).await, "{table}");
    }
    let log = tree.cluster("branch").log();
    let copies = log
        .lines()
        .filter(|line| line.contains(&format!("{name} LOG")) && line.contains("to stdout"));
    for table in ["large", "journal", "parted_1"] {
        let there = copies
            .clone()
            .any(|line| line.contains(&format!("\"public\".\"{table}\"")));
        assert!(there, "{table} was read on the branch");
    }
    running.stop().await;

    for (place, text) in [
        (
            "nobody",
            "--copy-from names node \"nobody\" of queue \"q\", which is not known here",
        ),
        ("root", "caught up"),
    ] {
        leaf.run(
            "update pgcascade_replay.table_state set state = 'in-copy', replace_rows = true where provider_table = 't'",
        )
        .await;
        let output = tree
            .replay("leaf")
            .args(&["--copy-from", place, "--until-caught-up"])
            .output()
            .await;
        assert!(output.stderr.contains(text), "{place}: {}", output.stderr);
    }
    let output = tree.table("branch", &["remove", "t"]).output().await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    leaf.run(
        "update pgcascade_replay.table_state set state = 'in-copy', replace_rows = true where provider_table = 't'",
    )
    .await;
    let output = tree.replay("leaf").args(&["--copy-from", "branch"]).output().await;
    let text = "node \"branch\" of queue \"q\", does not replay table public.t";
    assert!(output.stderr.contains(text), "{}", output.stderr);
    tree.drop(&["leaf", "branch", "root"]).await;
}

/// A branch that is behind is waited for, and the stream goes on: began it anew, it would be further ahead of the branch each time.
#[tokio::test]
async fn a_branch_that_is_behind_is_waited_for() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    tree.add("branch", "branch", "root").await;
    tree.catch_up("branch").await;
    write(&root, 1000).await;
    tick(&root).await;
    let leaf = tree.add("leaf", "leaf", "root").await;
    let running = tree
        .replay("leaf")
        .args(&["--copy-from", "branch", "--batch-events", "1"])
        .spawn();
    running
        .until_it_says("it has to catch up first; its copy tries again")
        .await;
    let position = "select tick from pgcascade_replay.position";
    for from in [2000, 3000] {
        let before: i64 = leaf.text(position).await.parse().unwrap();
        write(&root, from).await;
        eventually("the stream goes on", async || {
            leaf.text(position).await.parse::<i64>().unwrap() > before
        })
        .await;
    }
    let branch = tree.replay("branch").spawn();
    let copying = "select count(*) from pgcascade_replay.table_state where state = 'in-copy'";
    until(&leaf, copying, "0").await;
    let output = running.stop().await;
    assert_eq!(output.stderr.matches(" streaming ").count(), 1, "{}", output.stderr);
    branch.stop().await;
    tree.catch_up("leaf").await;
    tree.assert_same_rows(&leaf, &root).await;
    tree.drop(&["leaf", "branch", "root"]).await;
}

/// Blocks are those of the root: a copy that was begun there goes on there, and one that is read at a branch has none.
#[tokio::test]
async fn blocks_are_read_where_they_are() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    root.run("insert into journal select i, repeat('x', 90) from generate_series(1000, 13000) i; analyze journal")
        .await;
    tree.add("branch", "branch", "root").await;
    let branch = tree.replay("branch").spawn();
    tree.until_ok("branch").await;
    let from_branch = ["--copy-chunk-bytes", "65536", "--copy-from", "branch"];
    for (name, begun) in [("leaf", true), ("other", false)] {
        let leaf = tree.add("leaf", name, "root").await;
        if begun {
            let killed = tree
                .replay(name)
                .args(&from_branch[..2])
                .failpoints("after_chunk_commit=kill:5")
                .output()
                .await;
            assert_eq!(killed.code(), None, "{}", killed.stderr);
            write(&root, 20_000).await;
        }
        let output = tree
            .replay(name)
            .args(&from_branch)
            .arg("--until-caught-up")
            .output()
            .await;
        assert_eq!(output.code(), Some(0), "{}", output.stderr);
        for text in ["begins again", "cut into chunks"] {
            assert!(!output.stderr.contains(text), "{name}, {text}: {}", output.stderr);
        }
        tree.assert_same_rows(&leaf, &root).await;
    }
    branch.stop().await;
    drop(root);
    tree.drop(&["other", "leaf", "branch", "root"]).await;
}
