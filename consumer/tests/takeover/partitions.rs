//! The root of a cascade with a partitioned table moves, there and back, and partitions come and go on whichever is the root.

use crate::cluster::eventually;
use crate::dead::takeover;
use crate::planned::{self, command};
use crate::silent::Paused;
use crate::tree::{Tree, stop, until};

const ROWS: &str = "select string_agg(x::text, ' ' order by x::text collate \"C\")
                      from (select tableoid::regclass, p.* from parted p) x";

const CAPTURED: &str = "select string_agg(format('%s %s %s', tgrelid::regclass, tgname, tgenabled), ',' order by tgrelid::regclass::text, tgname)
                      from pg_trigger where tgname like 'pgcascade%' and tgrelid in (select relid from pg_partition_tree('parted'))";

#[tokio::test]
async fn a_partitioned_table_goes_along() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    root.run(
        "create table parted (id int, at int, v text, primary key (id, at)) partition by range (at);
         create table parted_1 partition of parted for values from (0) to (100);
         create table parted_2 partition of parted for values from (100) to (200) partition by list (id);
         create table parted_2_rest partition of parted_2 default; create table parted_rest partition of parted default;
         insert into parted select i, j * 50, 'before' from generate_series(1, 10) i, generate_series(0, 4) j",
    )
    .await;
    let branch = tree.add("branch", "branch", "root").await;
    // It had the table before it was a node, and its rows: they are older than any trigger.
    branch
        .run(
            "create table parted (id int, at int, v text, primary key (id, at)) partition by range (at);
             create table parted_1 partition of parted for values from (0) to (100);
             create table parted_2 partition of parted for values from (100) to (200) partition by list (id);
             create table parted_2_rest partition of parted_2 default; create table parted_rest partition of parted default;
             insert into parted select i, j * 50, 'before' from generate_series(1, 10) i, generate_series(0, 4) j",
        )
        .await;
    let add = tree
        .table("branch", &["add", "parted", "--no-copy", "--create"])
        .output()
        .await;
    assert_eq!(add.code(), Some(0), "{}", add.stderr);
    tree.catch_up("branch").await;
    let leaf = tree.add("leaf", "leaf", "root").await;
    let replays = tree.replays(&["root", "branch", "leaf"]);
    // Else its copies would start over from the new root, and some rows be gone for a while.
    tree.until_ok("leaf").await;
    let nodes = [&root, &branch, &leaf];
    let mut now = &root;
    for n in 1..=4 {
        let statements = format!(
            "create table parted_new_{n} partition of parted for values from ({n}000) to ({n}999);
             insert into parted select i, {n}000 + i, 'new' from generate_series(1, 20) i;
             update parted set at = at + 500 where at > {n}010 and at < {n}020; update parted set v = v || '.' where id = {n};
             create table parted_2_{n} partition of parted_2 for values in (100 + {n}); insert into parted values (100 + {n}, 111);
             truncate parted_rest; insert into parted values ({n}, 700), ({n}, 90 + {n}), ({n} + 20, 190); delete from parted where id = {n} + 5"
        );
        // One by one: each has its locks for a moment.
        for statement in statements.split(';') {
            now.run(statement).await;
        }
        if n > 1 {
            now.run(&format!(
                "truncate parted_new_{}; insert into parted values (0, {}001)",
                n - 1,
                n - 1
            ))
            .await;
        }
        let there = now.text(ROWS).await;
        for node in nodes {
            // It reads what replay truncates and divides, so it may be the one that a deadlock ends.
            eventually(&format!("the rows are {there}"), async || {
                node.try_text(ROWS).await.is_ok_and(|rows| rows == there)
            })
            .await;
        }
        eventually("the triggers are the same", async || {
            root.text(CAPTURED).await == branch.text(CAPTURED).await
        })
        .await;
        let new = if n % 2 == 1 { "branch" } else { "root" };
        planned::takeover(&tree, "leaf", new, &[], 0).await;
        now = if new == "branch" { &branch } else { &root };
        for node in nodes {
            assert_eq!(node.text(ROWS).await, there, "{new} took over");
        }
    }

    // A partition that the new one lacks is named.
    let mut replays = replays.into_iter();
    let of_root = replays.next().unwrap();
    replays.next().unwrap().kill().await;
    root.run("create table parted_last partition of parted for values from (10000) to (20000)")
        .await;
    let plan = command(&tree, "root", "branch").arg("--plan").output().await;
    let text =
        "partition public.parted_last of table public.parted is missing on \"branch\", or not captured as on \"root\"";
    assert!(plan.stderr.contains(text), "{}", plan.stderr);
    drop(of_root);
    stop(replays).await;
    tree.drop(&["leaf", "branch", "root"]).await;
}

/// The old root returns, and a partition that it has is gone on the new one: what became of its rows came before that.
#[tokio::test]
async fn a_partition_is_dropped_before_the_old_root_is_back() {
    let tree = Tree::apart().await;
    let root = tree.connect("root").await;
    root.run(
        "create table parted (id int primary key, v text) partition by range (id);
         create table parted_1 partition of parted for values from (0) to (100);
         create table parted_2 partition of parted for values from (100) to (200);
         create table parted_3 partition of parted for values from (200) to (300);
         insert into parted select i, 'before' from generate_series(1, 20) i",
    )
    .await;
    let [branch] = tree.below_root([("branch", "branch")]).await;
    drop(root);
    tree.kill_root();
    let replay = tree.replay("branch").spawn();
    takeover(&tree, "branch", &["--dead", "root", "--fenced-by", "kill"], 0).await;
    for statement in [
        "insert into parted values (30, 'new'), (130, 'new')",
        "update parted set id = id + 100 where id < 100 and id <> 30",
        "delete from parted where id = 30",
        "drop table parted_1",
        "create table parted_4 partition of parted for values from (300) to (400)",
        "insert into parted values (301, 'in a new one')",
    ] {
        branch.run(statement).await;
    }
    tree.start_root();
    let root = tree.connect("root").await;
    tree.node(0, "rejoin root", &["--db", &tree.conninfo("branch")]).await;
    tree.catch_up("root").await;
    assert_eq!(root.text(ROWS).await, branch.text(ROWS).await);
    replay.stop().await;
    drop((root, branch));
    tree.drop(&["branch"]).await;
}

/// A partition is made after the last look before the root is closed: the new one makes it when it gets the closing tick, and not before.
#[tokio::test]
async fn a_partition_that_comes_in_the_last_moment_is_waited_for() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    root.run(
        "create table parted (id int primary key) partition by range (id);
         create table parted_1 partition of parted for values from (0) to (100)",
    )
    .await;
    let branch = tree.add("branch", "branch", "root").await;
    tree.catch_up("branch").await;
    let replay = tree.replay("branch").spawn();
    replay.until_it_says("streaming").await;
    let run = Paused::of(&tree, "promised_old", command(&tree, "branch", "branch")).await;
    // It is there, and gets nothing done for a while, and has nothing locked.
    root.run("set lock_timeout = '1s'").await;
    let add =
        "create table parted_2 partition of parted for values from (100) to (200); insert into parted values (101)";
    let busy = "select count(*) from pg_stat_activity
                 where datname = current_database() and application_name like 'pgcascade %' and state <> 'idle'";
    eventually("a partition is made while the replay is stopped", async || {
        replay.signal("STOP");
        let made = branch.text(busy).await == "0" && root.try_text(add).await.is_ok();
        if !made {
            replay.signal("CONT");
        }
        made
    })
    .await;
    run.release();
    // The last thing that it asks of the root when it looks again, which is closed by then.
    let looked = "select count(*) > 0 from pg_stat_activity where datname = current_database() and application_name = 'consumer node'
                     and query like 'select e.extversion%' and state = 'idle'";
    until(&root, looked, "t").await;
    replay.signal("CONT");
    run.go_on(0).await;
    assert_eq!(branch.text("select tableoid::regclass from parted").await, "parted_2");
    replay.stop().await;
    drop((root, branch));
    tree.drop(&["branch", "root"]).await;
}

/// The old root becomes a branch while somebody drops a partition there, who has the table locked and then locks the partition. The command, which looks at
/// both at that moment, is not what ends that.
#[tokio::test]
async fn a_takeover_is_no_deadlock_for_who_drops_a_partition() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    root.run(
        "create table parted (id int primary key) partition by range (id);
         create table parted_1 partition of parted for values from (0) to (100);
         create table parted_2 partition of parted for values from (100) to (200)",
    )
    .await;
    let branch = tree.add("branch", "branch", "root").await;
    tree.catch_up("branch").await;
    let replay = tree.replay("branch").spawn();
    let run = Paused::of(&tree, "demoted_old", command(&tree, "branch", "branch")).await;
    let dropping = tree.connect("root").await;
    dropping
        .run("begin; lock table only parted in access exclusive mode")
        .await;
    run.release();
    // Beside it the replay may wait, which has not noticed yet that it reads from nobody.
    let waits = "select count(*) from pg_locks join pg_stat_activity using (pid)
                  where not granted and datname = current_database() and application_name = 'consumer node'
                    and now() - waitstart > 1.5 * current_setting('deadlock_timeout')::interval";
    eventually(
        "the command has waited for the lock longer than for a deadlock",
        async || root.text(waits).await == "1",
    )
    .await;
    dropping.run("drop table parted_2; commit").await;
    run.go_on(0).await;
    let known = "select string_agg(partition_table, ' ' order by partition_table) from pgcascade_replay.partition";
    assert_eq!(root.text(known).await, "parted_1");
    let replays = tree.replays(&["root"]);
    branch.run("drop table parted_2; insert into parted values (1)").await;
    until(&root, "select count(*) from parted", "1").await;
    stop(replays.into_iter().chain([replay])).await;
    drop((root, branch, dropping));
    tree.drop(&["branch", "root"]).await;
}
