//! Nodes that are renamed, while their replays run and go on by themselves.

use crate::cluster::Replay;
use crate::tree::{Tree, until, write};

const NODES: &str = "select string_agg(node_name, ',' order by node_name) from pgq_node.node_location";
const LEAF_NODES: &str = "select string_agg(node, ',' order by node) from pgcascade_replay.node_location";
const CONSUMERS: &str = "select string_agg(consumer_name, ',' order by consumer_name) from pgq.get_consumer_info('q')";

/// Each of them: a branch that others read from, a leaf, the root; with the command killed all the way.
#[tokio::test]
async fn nodes_are_renamed_while_everything_runs() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let branch = tree.add("branch", "branch", "root").await;
    tree.catch_up("branch").await;
    let leaf = tree.add("leaf", "leaf", "branch").await;
    tree.catch_up("leaf").await;
    let mut replays: Vec<_> = ["root", "branch", "leaf"].map(|name| tree.replay(name).spawn()).into();
    tree.until_ok("leaf").await;
    let mut from = 0;
    for (old, new, points) in [
        (
            "branch",
            "nearby",
            &[
                "node_known",
                "node_subscribed",
                "node_renamed",
                "node_told",
                "node_seen",
                "node_forgotten",
            ][..],
        ),
        ("leaf", "reports", &["node_subscribed", "node_renamed"]),
        ("root", "main", &["node_renamed", "node_forgotten"]),
    ] {
        for point in points {
            let killed = tree
                .node_command(&format!("rename {old} {new}"), &["--db", &tree.conninfo("leaf")])
                .failpoints(&format!("{point}=kill"))
                .output()
                .await;
            assert_eq!(killed.code(), None, "{old}, {point}: {}", killed.stderr);
            // It goes by both names now: a replay that begins finds its way.
            if *point == "node_renamed" {
                replays.pop().unwrap().stop().await;
                replays.push(tree.replay("leaf").spawn());
            }
            from += 100;
            write(&root, from).await;
            let rows = root.text("select count(*) from journal").await;
            for node in [&branch, &leaf] {
                until(node, "select count(*) from journal", &rows).await;
            }
        }
        tree.node(0, &format!("rename {old} {new}"), &["--db", &tree.conninfo("leaf")])
            .await;
        let again = tree
            .node(2, &format!("rename {old} {new}"), &["--db", &tree.conninfo("leaf")])
            .await;
        assert!(
            again.stderr.contains(&format!("has no node \"{old}\"")),
            "{}",
            again.stderr
        );
    }
    for db in [&root, &branch] {
        assert_eq!(db.text(NODES).await, "main,nearby,reports");
    }
    assert_eq!(leaf.text(LEAF_NODES).await, "main,nearby,reports");
    assert_eq!(
        root.text(CONSUMERS).await,
        ".global_watermark,.nearby.watermark,nearby_worker"
    );
    assert_eq!(
        branch.text(CONSUMERS).await,
        ".global_watermark,.reports.watermark,reports_worker"
    );
    assert_eq!(
        branch
            .text("select node_name, provider_node, worker_name from pgq_node.get_node_info('q')")
            .await,
        "nearby|main|nearby_worker"
    );
    assert_eq!(
        leaf.text("select node, worker, provider from pgcascade_replay.node")
            .await,
        "reports|reports_worker|nearby"
    );
    write(&root, from + 100).await;
    for name in ["nearby", "reports"] {
        tree.wait(name).await;
    }
    for node in [&branch, &leaf] {
        tree.assert_same_rows(&root, node).await;
    }
    tree.assert_same_queue(&branch, &root).await;
    let status = Replay::command(&[
        "status",
        "--subscriber",
        &tree.conninfo("leaf"),
        "--queue",
        "q",
        "--quiet",
        "--timeout",
        "300",
    ]);
    let status = status.output().await;
    assert_eq!(status.code(), Some(0), "{}", status.stderr);
    // None of them ended.
    for replay in replays {
        let output = replay.stop().await;
        assert_eq!(output.code(), Some(0), "{}", output.stderr);
        assert!(!output.stderr.contains("lost position"), "{}", output.stderr);
    }
    drop((root, branch, leaf));
    tree.drop(&["leaf", "branch", "root"]).await;
}

#[tokio::test]
async fn what_stands_against_a_new_name() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    for name in ["branch", "gone"] {
        tree.add("branch", name, "root").await;
        tree.catch_up(name).await;
    }
    for (code, command, wanted) in [
        (2, "rename nobody x", "has no node \"nobody\""),
        (2, "rename branch branch", "are the same"),
        (1, "rename branch gone", "knows a node \"gone\" already"),
    ] {
        let refused = tree.manage(code, command).await;
        assert!(refused.stderr.contains(wanted), "{wanted}: {}", refused.stderr);
    }
    let takeover = |more: &str| {
        Replay::command(&["takeover", "branch", "--queue", "q", "--db", &tree.conninfo("root")])
            .args(&more.split_whitespace().collect::<Vec<_>>())
    };
    let replay = tree.replay("branch").spawn();
    let killed = takeover("").failpoints("takeover_after_prepared=kill").output().await;
    assert_eq!(killed.code(), None, "{}", killed.stderr);
    replay.stop().await;
    tree.copy("branch", "copy").await;
    for (command, at) in [("rename gone x", "root"), ("rename branch x", "gone")] {
        let refused = tree.node(1, command, &["--db", &tree.conninfo(at)]).await;
        assert!(
            refused.stderr.contains("has a part in takeover"),
            "{command}: {}",
            refused.stderr
        );
    }
    assert_eq!(takeover("--abort").output().await.code(), Some(0));
    // A copy made meanwhile owes it nothing.
    tree.node(0, "adopt copy", &["--db", &tree.conninfo("copy")]).await;
    let copy = tree.connect("copy").await;
    assert_eq!(
        copy.text("select role, promised_op is null, frozen from pgcascade.node_state")
            .await,
        "branch|t|f"
    );
    write(&root, 100).await;
    tree.catch_up("copy").await;
    tree.assert_same_rows(&root, &copy).await;
    tree.manage(0, "drop copy").await;
    tree.remove("gone").await;
    let refused = tree.manage(1, "rename branch nearby").await;
    assert!(
        refused.stderr.contains("these cannot be asked: gone"),
        "{}",
        refused.stderr
    );
    assert_eq!(root.text(NODES).await, "branch,gone,root");
    tree.manage(0, "drop gone --dead").await;
    tree.manage(0, "rename branch nearby").await;
    assert_eq!(root.text(NODES).await, "nearby,root");
    drop((root, copy));
    tree.drop(&["copy", "branch", "root"]).await;
}
