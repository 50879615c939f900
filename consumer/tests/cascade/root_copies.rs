//! Copies of the root become branches: a dump, a base backup that was started, one that was recovered to some place in the log. Each
//! has changes that no tick of its own shows, and that come once more with the ticks of the root.

use crate::cluster::{Cluster, Db, Replay, Running, pause_ticks};
use crate::tree::{Tree, tick, until, write};

/// A root whose tables are captured, with a branch.
async fn begin(tree: &Tree) -> (Db, Db) {
    let root = tree.connect("root").await;
    let branch = tree.add("branch", "branch", "root").await;
    tree.catch_up("branch").await;
    write(&root, 100).await;
    (root, branch)
}

/// Makes the root have changes that no tick shows: rows changed again and again, and a transaction that has not ended, which is returned.
async fn leave_a_tail(tree: &Tree, root: &Db) -> Db {
    tick(root).await;
    pause_ticks(root).await;
    write(root, 200).await;
    root.run(
        "begin; update t set n = n + 100 where id between 1 and 50; insert into journal values (1, 'tail'); commit;
         update t set n = n + 1 where id between 1 and 50; delete from t where id = 3; insert into t values (3, -3)",
    )
    .await;
    let open = tree.connect("root").await;
    open.run("begin; update t set n = -1000 where id between 60 and 70; insert into journal values (2, 'late')")
        .await;
    root.run("insert into journal values (3, 'tail')").await;
    open
}

/// The root goes on, on top of what it has left.
async fn go_on(root: &Db, open: Db) {
    open.run("commit").await;
    root.run(
        "update t set n = n * 2 + 1 where id between 1 and 70; delete from t where id = 5;
         select pgq.set_queue_config('q', 'ticker_paused', 'false')",
    )
    .await;
    tick(root).await;
    write(root, 300).await;
}

/// The copy at that place becomes the branch `second`, whatever is killed on the way, and gets what the root has.
async fn adopt_and_follow(tree: &Tree, root: &Db, copy: &Db, at: &str) -> Running {
    let before = copy.text("select count(*) from journal").await;
    for (point, from) in [("node_known", 400), ("node_subscribed", 500), ("node_adopted", 600)] {
        let killed = tree
            .node_command("adopt second", &["--db", at])
            .failpoints(&format!("{point}=kill"))
            .output()
            .await;
        assert_eq!(killed.code(), None, "{point}: {}", killed.stderr);
        write(root, from).await;
    }
    let again = tree.node(0, "adopt second", &["--db", at]).await;
    assert!(again.stderr.contains("this branch exists"), "{}", again.stderr);
    assert_eq!(
        copy.text("select count(*) from journal").await,
        before,
        "rows were touched"
    );
    let replay = || Replay::command(&["replay", "--subscriber", at, "--queue", "q", "--retry-max", "1"]);
    for point in ["before_commit", "after_commit"] {
        let killed = replay().failpoints(&format!("{point}=kill")).output().await;
        assert_eq!(killed.code(), None, "{point}: {}", killed.stderr);
    }
    let running = replay().spawn();
    write(root, 700).await;
    tree.wait("second").await;
    tree.assert_same_rows(copy, root).await;
    tree.assert_same_queue(copy, root).await;
    for left in ["adoption", "takeover_tail"] {
        until(copy, &format!("select count(*) from pgcascade.{left}"), "0").await;
    }
    running
}

#[tokio::test]
async fn a_dump_of_the_root_becomes_a_branch() {
    let tree = Tree::new().await;
    let (root, branch) = begin(&tree).await;
    let open = leave_a_tail(&tree, &root).await;
    tree.copy("root", "copy").await;
    go_on(&root, open).await;
    let copy = tree.connect("copy").await;
    let at = tree.conninfo("copy");
    let taken = tree.node(2, "adopt root", &["--db", &at]).await;
    assert!(taken.stderr.contains("cannot have that name, too"), "{}", taken.stderr);
    adopt_and_follow(&tree, &root, &copy, &at).await.stop().await;
    // And one of a root of which a tick shows everything, that reads from the branch.
    tick(&root).await;
    tree.copy("root", "whole").await;
    let replay = tree.replay("branch").spawn();
    write(&root, 800).await;
    tree.wait("branch").await;
    tree.node(
        0,
        "adopt whole",
        &["--db", &tree.conninfo("whole"), "--provider", &tree.conninfo("branch")],
    )
    .await;
    tree.catch_up("whole").await;
    let whole = tree.connect("whole").await;
    tree.assert_same_rows(&whole, &branch).await;
    tree.assert_same_queue(&whole, &root).await;
    // It can become the root like any branch.
    replay.stop().await;
    drop((root, branch, copy, whole));
    tree.drop(&["whole", "copy", "branch", "root"]).await;
}

/// A server of its own with what the root's had at this moment.
async fn base_backup(tree: &Tree, root: &Db) -> Cluster {
    let cluster = tree.apart_cluster().standby("base");
    let place = root.text("select pg_current_wal_insert_lsn()").await;
    root.run("select pg_switch_wal()").await;
    let here = cluster.connect(&tree.database_name("root")).await;
    until(
        &here,
        &format!("select pg_last_wal_replay_lsn() >= '{place}'::pg_lsn"),
        "t",
    )
    .await;
    here.run("alter system set primary_conninfo = ''").await;
    here.run("select pg_reload_conf()").await;
    until(&here, "select count(*) from pg_stat_wal_receiver", "0").await;
    cluster
}

/// It does not know that it is a copy: it is an open root, and its ticker shows the changes in ticks of its own.
#[tokio::test]
async fn a_base_backup_that_was_started_becomes_a_branch() {
    let tree = Tree::apart().await;
    let (root, branch) = begin(&tree).await;
    let open = leave_a_tail(&tree, &root).await;
    let cluster = base_backup(&tree, &root).await;
    cluster.stop();
    cluster.shell("rm \"$PGDATA/standby.signal\"");
    cluster.start_again();
    let copy = cluster.connect(&tree.database_name("root")).await;
    let at = cluster.conninfo(&tree.database_name("root"));
    assert_eq!(copy.text("select open from pgcascade.node_state").await, "t");
    go_on(&root, open).await;
    copy.run("select pgq.set_queue_config('q', 'ticker_paused', 'false'); select pgq_node.maint_watermark('q')")
        .await;
    for _ in 0..3 {
        tick(&copy).await;
    }
    adopt_and_follow(&tree, &root, &copy, &at).await.stop().await;
    assert_eq!(
        copy.text("select role, open from pgcascade.node_state").await,
        "branch|f"
    );
    drop((root, branch, copy));
    tree.drop(&["branch"]).await;
}

/// Recovered up to some place in the log, where a transaction was prepared: a new timeline, so it closes itself.
#[tokio::test]
async fn a_copy_up_to_a_place_in_the_log_becomes_a_branch() {
    let tree = Tree::apart_with(&["-o", "max_prepared_transactions=5"]).await;
    let (root, branch) = begin(&tree).await;
    let open = leave_a_tail(&tree, &root).await;
    root.run("begin; update t set n = 7777 where id between 85 and 90; prepare transaction 'p1'")
        .await;
    let cluster = base_backup(&tree, &root).await;
    let copy = cluster.connect(&tree.database_name("root")).await;
    copy.run("select pg_promote(true, 600)").await;
    let at = cluster.conninfo(&tree.database_name("root"));
    until(&copy, "select pg_is_in_recovery()", "f").await;
    go_on(&root, open).await;
    let refused = tree.node(1, "adopt second", &["--db", &at]).await;
    assert!(
        refused.stderr.contains("has prepared transactions: 'p1'"),
        "{}",
        refused.stderr
    );
    copy.run("rollback prepared 'p1'").await;
    root.run("commit prepared 'p1'").await;
    let running = adopt_and_follow(&tree, &root, &copy, &at).await;
    assert_eq!(copy.text("select count(*) from t where n = 7777").await, "6");
    running.stop().await;
    drop((root, branch, copy));
    tree.drop(&["branch"]).await;
}

/// What the cascade does not have cannot stay on a branch: that is found out, and named.
#[tokio::test]
async fn a_copy_that_took_writes_is_found_out() {
    let tree = Tree::apart().await;
    let (root, branch) = begin(&tree).await;
    for (name, collides, wanted) in [
        ("one", true, "is another one here than in tick"),
        (
            "two",
            false,
            "was here when the copy was adopted, and is in no tick up to",
        ),
    ] {
        tick(&root).await;
        pause_ticks(&root).await;
        let cluster = base_backup(&tree, &root).await;
        cluster.stop();
        cluster.shell("rm \"$PGDATA/standby.signal\"");
        cluster.start_again();
        let copy = cluster.connect(&tree.database_name("root")).await;
        let at = cluster.conninfo(&tree.database_name("root"));
        if !collides {
            // Ids that the root does not give out for long.
            copy.run("select setval(queue_event_seq::regclass, 1000000) from pgq.queue")
                .await;
        }
        copy.run("insert into journal values (99, 'only here')").await;
        root.run("select pgq.set_queue_config('q', 'ticker_paused', 'false')")
            .await;
        write(&root, if collides { 1000 } else { 2000 }).await;
        tree.node(0, &format!("adopt {name}"), &["--db", &at]).await;
        // Until that is settled it must not become the root, as others would never get what it has.
        let takeover = Replay::command(&["takeover", name, "--queue", "q", "--db", &at])
            .output()
            .await;
        assert_eq!(takeover.code(), Some(1), "{}", takeover.stderr);
        assert_eq!(root.text("select open from pgcascade.node_state").await, "t");
        let begin = "select pgcascade.takeover_begin('q', 'planned', 'root', 2, 'me', 1, null)";
        let refused = format!("{:?}", copy.try_text(begin).await.err());
        assert!(refused.contains("was adopted as a copy of the root"), "{refused}");
        let stopped = Replay::command(&["replay", "--subscriber", &at, "--queue", "q"])
            .output()
            .await;
        assert_eq!(stopped.code(), Some(1), "{}", stopped.stderr);
        assert!(stopped.stderr.contains(wanted), "{wanted}: {}", stopped.stderr);
        drop(copy);
        drop(cluster);
        tree.manage(0, &format!("drop {name} --dead")).await;
    }
    drop((root, branch));
    tree.drop(&["branch"]).await;
}
