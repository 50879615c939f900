//! Partitioned tables on every level of a cascade: the same partitions by the same names, so that the events mean the same everywhere.

use crate::cluster::{Db, Replay, eventually};
use crate::tree::{NOT_OK, Tree, until, write};

/// Two levels, an odd schema, a hash, a default.
const PARTED: &str = "
    create schema \"Odd.S\";
    create table parted (id int, at int, v text, primary key (id, at)) partition by range (at);
    create table parted_low partition of parted for values from (minvalue) to (100);
    create table \"Odd.S\".\"parted.mid\" partition of parted for values from (100) to (200) partition by hash (id);
    create table parted_0 partition of \"Odd.S\".\"parted.mid\" for values with (modulus 2, remainder 0);
    create table \"Odd.S\".parted_1 partition of \"Odd.S\".\"parted.mid\" for values with (modulus 2, remainder 1);
    create table parted_rest partition of parted default;
    insert into parted select i, j * 50, 'before' from generate_series(1, 10) i, generate_series(0, 5) j";

/// Changes of every kind. Each call leaves other rows.
fn changes(n: u32) -> String {
    format!(
        "insert into parted values ({n}, 1000, 'new'), ({n}, 60 + {n}, 'new'), ({n}, 160 + {n}, 'new');
         update parted set at = at + 75, v = 'moved' where id = {n} and at < 200;
         update parted_low set v = v || '.' where id = {n} + 1; delete from parted where id = {n} + 2;
         truncate parted_rest; insert into parted_rest values ({n}, 2000, 'again'); truncate parted_0; insert into parted values ({n} + 20, 111, 'hash')"
    )
}

const ROWS: &str = "select string_agg(x::text, ' ' order by x::text collate \"C\")
                      from (select tableoid::regclass, p.* from parted p) x";

/// A node's replay that is not told to make anything.
fn replay(tree: &Tree, name: &str) -> Replay {
    Replay::command(&["replay", "--subscriber", &tree.conninfo(name), "--queue", "q"]).args(&[
        "--watermark-interval",
        "1",
        "--retry-max",
        "1",
    ])
}

/// Each level has its copy, and a tick from after it, with which it is ok, before the next one copies from it.
async fn settle(tree: &Tree, root: &Db, at: i32) {
    let names = ["branch", "below", "leaf"];
    for i in 0..names.len() {
        write(root, at + 10 * i32::try_from(i).unwrap()).await;
        let node = tree.connect(names[i]).await;
        eventually(&format!("the tables of {} are ok", names[i]), async || {
            // Each time the first of them makes a tick.
            tree.catch_up_all(&names[..=i]).await;
            node.text(NOT_OK).await == "0"
        })
        .await;
    }
}

async fn assert_equal(root: &Db, others: &[&Db]) {
    let there = root.text(ROWS).await;
    for other in others {
        // It reads what replay truncates and divides, so it may be the one that a deadlock ends.
        eventually(&format!("the rows are {there}"), async || {
            other.try_text(ROWS).await.is_ok_and(|rows| rows == there)
        })
        .await;
    }
}

#[tokio::test]
async fn a_partitioned_table_is_the_same_on_every_level() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    root.run(PARTED).await;
    let branch = tree.add("branch", "branch", "root").await;
    let below = tree.add("branch", "below", "branch").await;
    let leaf = tree.add("leaf", "leaf", "below").await;
    settle(&tree, &root, 0).await;
    assert_equal(&root, &[&branch, &below, &leaf]).await;
    // What a node below the branch, and the next root, need.
    let capture =
        "select t.tgrelid::regclass, t.tgname, t.tgparentid <> 0 from pg_trigger t where t.tgname like 'pgcascade%'
                    and t.tgrelid in (select relid from pg_partition_tree('parted')) order by t.tgrelid::regclass::text, 2";
    for node in [&branch, &below] {
        assert_eq!(node.text(capture).await, root.text(capture).await);
    }
    assert_eq!(
        root.text(&format!("select count(*) from ({capture}) x")).await,
        "11",
        "five leaves and levels with a row trigger, and TRUNCATE on leaves"
    );

    // The set on a branch says that partitions are to be made, whether or not its replay is told to.
    let mut replays: Vec<_> = ["branch", "below", "leaf"]
        .map(|name| (name, replay(&tree, name).spawn()))
        .into();
    root.run(&changes(1)).await;
    root.run(
        "create table parted_new partition of parted for values from (200) to (300);
         insert into parted select i, 200 + i, 'new partition' from generate_series(1, 20) i;
         begin; create table \"Odd.S\".newer partition of parted for values from (300) to (400) partition by list (id);
         create table newer_1 partition of \"Odd.S\".newer for values in (1);
         insert into parted values (1, 301, 'newer'); commit",
    )
    .await;
    assert_equal(&root, &[&branch, &below, &leaf]).await;
    root.run("truncate parted_new; insert into parted values (7, 207, 'after')")
        .await;
    assert_equal(&root, &[&branch, &below, &leaf]).await;
    for node in [&branch, &below] {
        assert_eq!(node.text(capture).await, root.text(capture).await);
    }

    // A node that reads from another one from now on takes no partition for a new one.
    tree.node(
        0,
        "change-provider leaf",
        &["--db", &tree.conninfo("root"), "--provider", "root"],
    )
    .await;
    root.run(&changes(2)).await;
    assert_equal(&root, &[&branch, &below, &leaf]).await;
    tree.node(
        0,
        "change-provider leaf",
        &["--db", &tree.conninfo("root"), "--provider", "branch"],
    )
    .await;
    root.run(&changes(3)).await;
    assert_equal(&root, &[&branch, &below, &leaf]).await;
    for (name, replay) in replays.drain(..) {
        assert_eq!(replay.stop().await.code(), Some(0), "{name}");
    }

    // By another name the events would mean nothing below.
    root.run("alter table parted_new rename to \"Renamed\"; insert into parted values (8, 208, 'renamed')")
        .await;
    let refused = tree.replay("branch").arg("--until-caught-up").output().await;
    assert_eq!(refused.code(), Some(1), "{}", refused.stderr);
    let text =
        "partition public.\"Renamed\" of the provider is called public.parted_new on the subscriber, which is a branch";
    assert!(refused.stderr.contains(text), "{}", refused.stderr);
    for node in [&branch, &below] {
        node.run("alter table public.parted_new rename to \"Renamed\"").await;
    }
    for name in ["branch", "below", "leaf"] {
        tree.catch_up(name).await;
    }
    let count = "select count(*) from parted where v = 'renamed'";
    for node in [&branch, &below, &leaf] {
        assert_eq!(node.text(count).await, "1");
    }

    // Attached with rows: seen on the branch, whose provider has the rows.
    root.run(
        "create table late (like parted including all); insert into late values (1, 450, 'late');
         alter table parted attach partition late for values from (400) to (500)",
    )
    .await;
    let refused = tree.replay("branch").arg("--until-caught-up").output().await;
    assert!(
        refused
            .stderr
            .contains("partition public.late of table public.parted of the provider was attached with rows"),
        "{}",
        refused.stderr
    );
    for name in ["branch", "below", "leaf"] {
        let resync = tree.table(name, &["resync", "parted"]).output().await;
        assert_eq!(resync.code(), Some(0), "{}", resync.stderr);
    }
    settle(&tree, &root, 100).await;
    let late = "select tableoid::regclass from parted where v = 'late'";
    for node in [&branch, &below, &leaf] {
        assert_eq!(node.text(late).await, "late");
    }
    for name in ["leaf", "below", "branch"] {
        tree.node(0, &format!("drop {name}"), &["--db", &tree.conninfo(name)])
            .await;
    }
    tree.manage(0, "drop root").await;
    let captured = "select count(*) from pg_trigger where tgname like 'pgcascade_capture%'";
    for node in [&root, &below] {
        assert_eq!(node.text(captured).await, "0");
    }
    tree.drop(&["leaf", "below", "branch", "root"]).await;
}

#[tokio::test]
async fn a_branch_is_divided_as_its_provider() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let branch = tree.add("branch", "branch", "root").await;
    tree.catch_up("branch").await;
    root.run(
        "create table a (id int primary key) partition by range (id); create table a_1 partition of a for values from (0) to (10);
         create table b (id int primary key); create table c (id int primary key) partition by range (id);
         create table c_1 partition of c for values from (0) to (10); create table c_2 partition of c for values from (10) to (20)",
    )
    .await;
    branch
        .run(
            "create table a (id int primary key); create table b (id int primary key) partition by range (id);
             create table c (id int primary key) partition by range (id); create table c_1 partition of c for values from (0) to (11)",
        )
        .await;
    let add = tree.table("branch", &["add", "a", "b", "c"]).output().await;
    assert_eq!(add.code(), Some(1));
    for text in [
        "table public.a of the subscriber, which is a branch, is not partitioned, and that of the provider is partitioned by RANGE (id)",
        "table public.b of the subscriber, which is a branch, is partitioned by RANGE (id), and that of the provider is not partitioned",
        "partition public.c_1 of the subscriber, which is a branch, has other bounds or parts than that of the provider",
        "partition public.c_2 of the provider is missing on the subscriber, which is a branch: let replay make partitions with --create, \
         or: create table \"public\".\"c_2\" partition of \"public\".\"c\" FOR VALUES FROM (10) TO (20) on the subscriber",
    ] {
        assert!(add.stderr.contains(text), "{text}: {}", add.stderr);
    }
    // It may have more; and what is missing can be made.
    branch
        .run("drop table c_1; create table c_1 partition of c for values from (0) to (10); create table c_9 partition of c for values from (90) to (99)")
        .await;
    let add = tree.table("branch", &["add", "c", "--create"]).output().await;
    assert_eq!(add.code(), Some(0), "{}", add.stderr);
    root.run("insert into c values (1), (11)").await;
    let replay = replay(&tree, "branch").spawn();
    until(
        &branch,
        "select string_agg(tableoid::regclass::text, ' ' order by id) from c",
        "c_1 c_2",
    )
    .await;
    replay.stop().await;
    tree.drop(&["branch", "root"]).await;
}
