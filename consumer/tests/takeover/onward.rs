//! The old root of a planned takeover is lost after it has handed over, and before it was a branch.

use crate::dead::{STATE, assert_follow, killed, killed_all_the_way, takeover};
use crate::standby::{LOCAL, PROMOTED, Standby};
use crate::tree::{Tree, stop, until, write};

const WITHOUT: [&str; 3] = ["--resume", "--dead", "root"];

/// Nobody but the operator knows that it does not come back. What it had is there: another branch, which was behind, confirms instead.
#[tokio::test]
async fn an_old_root_that_is_lost_after_the_promotion_is_done_without() {
    for point in ["after_promoted", "confirmed_old", "after_opened", "subscribed_old"] {
        let tree = Tree::apart().await;
        let root = tree.connect("root").await;
        let [near, far, leaf] = tree
            .below_root([("branch", "near"), ("branch", "far"), ("leaf", "leaf")])
            .await;
        let replay = tree.replay("near").spawn();
        write(&root, 100).await;
        killed(&tree, "near", &[], "after_prepared").await;
        let early = takeover(&tree, "near", &WITHOUT, 1).await;
        assert!(
            early.stderr.contains("is prepared, and cannot go on without \"root\""),
            "{}",
            early.stderr
        );
        killed(&tree, "near", &["--resume"], point).await;
        let alive = takeover(&tree, "near", &WITHOUT, 1).await;
        assert!(
            alive.stderr.contains("node \"root\" answers, and is not dead"),
            "{}",
            alive.stderr
        );
        let is_open = ["after_opened", "subscribed_old"].contains(&point);
        let rejoins = tree.node(1, "rejoin root", &["--db", &tree.conninfo("near")]).await;
        assert!(
            rejoins.stderr.contains(if is_open {
                ", which is opened"
            } else {
                "is not open yet"
            }),
            "{}",
            rejoins.stderr
        );
        drop(root);
        tree.kill_root();
        let was = near.text(STATE).await;
        assert_eq!(was, format!("root|{}|2|{0}|f", if is_open { "t" } else { "f" }));
        let stopped = takeover(&tree, "near", &["--resume"], 1).await;
        assert!(
            stopped.stderr.contains("consumer takeover near --resume --dead root"),
            "{}",
            stopped.stderr
        );
        assert_eq!(near.text(STATE).await, was);

        let replays = tree.replays(&["far", "leaf"]);
        killed(&tree, "near", &WITHOUT, "without_old").await;
        // It is one without the old root from now on.
        if is_open {
            takeover(&tree, "near", &["--resume"], 0).await;
        } else {
            let points = ["gravestone", "after_repointed", "confirmed_one", "after_opened"];
            killed_all_the_way(&tree, ("near", &near), &points).await;
        }
        let done = takeover(&tree, "near", &WITHOUT, 0).await;
        assert!(done.stderr.contains("done already"), "{}", done.stderr);
        assert_eq!(near.text(STATE).await, "root|t|2|t|f");
        assert_eq!(far.text(STATE).await, "branch|f|2|t|f");
        write(&near, 200).await;
        assert_follow(&tree, &near, &[&far, &leaf]).await;

        // It comes back all the same, closed, and has nothing that the others lack.
        tree.start_root();
        let root = tree.connect("root").await;
        assert!(root.text(STATE).await.starts_with("root|f|"), "{point}");
        tree.node(0, "rejoin root", &["--db", &tree.conninfo("near")]).await;
        let back = tree.replay("root").spawn();
        until(&root, STATE, "branch|f|2|t|f").await;
        assert_follow(&tree, &near, &[&root]).await;
        let gravestone = "select count(*) from pgq.consumer where co_name like '%gravestone'";
        assert_eq!(near.text(gravestone).await, "0", "{point}");
        back.stop().await;
        replay.stop().await;
        stop(replays).await;
        drop((root, near, far, leaf));
        tree.drop(&["leaf", "far", "near"]).await;
    }
}

/// Nobody is left who could confirm: the operator's word is needed.
#[tokio::test]
async fn the_only_branch_goes_on_by_the_operators_word() {
    let tree = Tree::apart().await;
    let [near] = tree.below_root([("branch", "near")]).await;
    let replay = tree.replay("near").spawn();
    killed(&tree, "near", &[], "after_promoted").await;
    tree.kill_root();
    let refused = takeover(&tree, "near", &WITHOUT, 1).await;
    assert!(
        refused
            .stderr
            .contains("no other branch is left that could confirm the new root"),
        "{}",
        refused.stderr
    );
    assert_eq!(near.text(STATE).await, "root|f|2|f|f");
    takeover(
        &tree,
        "near",
        &[&WITHOUT[..], &["--fenced-by", "its server burnt"]].concat(),
        0,
    )
    .await;
    assert_eq!(near.text(STATE).await, "root|t|2|t|f");
    assert_eq!(
        near.text("select kind, step, fenced_by, old_node, (select dead from pgq_node.node_location where node_name = 'root') from pgcascade.takeover")
            .await,
        "dead|done|its server burnt|root|t"
    );
    replay.stop().await;
    drop(near);
    tree.drop(&["near"]).await;
}

/// A standby of the old root, which lacks the closing tick, is promoted: it has no place beside the new root. Where it became the root because the
/// new one was given up, that one does not open any more.
#[tokio::test]
async fn a_standby_without_the_closing_tick_is_no_second_root() {
    for is_first in [false, true] {
        let standby = Standby::of(Tree::apart_with(LOCAL).await, [("branch", "far"), ("branch", "near")]).await;
        let tree = &standby.tree;
        let root = tree.connect("root").await;
        standby.synchronous(&root).await;
        standby.sever().await;
        let replays = tree.replays(&["far", "near"]);
        write(&root, 100).await;
        killed(tree, "near", &[], "after_promoted").await;
        drop(root);
        let (far, near) = (tree.connect("far").await, tree.connect("near").await);
        let here = standby.promote().await;
        let refused = standby.takeover(PROMOTED, 1).await;
        assert!(
            refused.stderr.contains("consumer takeover near --resume --dead root"),
            "{}",
            refused.stderr
        );
        if is_first {
            standby.takeover(&[PROMOTED, &["--lost", "near"]].concat(), 0).await;
            let late = takeover(tree, "near", &WITHOUT, 1).await;
            assert!(
                late.stderr.contains("branch \"far\" follows root \"root\" of epoch 2"),
                "{}",
                late.stderr
            );
            assert_eq!(near.text(STATE).await, "root|f|2|f|f");
            assert_eq!(here.text(STATE).await, "root|t|2|t|f");
        } else {
            takeover(tree, "near", &WITHOUT, 0).await;
            assert_eq!(near.text(STATE).await, "root|t|2|t|f");
            standby.takeover(&[PROMOTED, &["--lost", "near"]].concat(), 1).await;
            assert_eq!(here.text(STATE).await, "root|f|1|t|f");
            write(&near, 400).await;
            assert_follow(tree, &near, &[&far]).await;
        }
        stop(replays).await;
        drop((here, far, near));
        standby.tree.drop(&["far", "near"]).await;
    }
}
