//! The confirm gate, on a branch: who reads from it gets what enough of the root's branches have.

use serde_json::Value;

use crate::status::{node, status};
use crate::tree::{Tree, until, write};

const JOURNAL: &str = "select count(*) from journal";

#[tokio::test]
async fn a_leaf_below_a_branch_waits_for_the_other_branch() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    root.run("select pgcascade.set_confirm_gate('q', 2)").await;
    let near = tree.add("branch", "near", "root").await;
    let far = tree.add("branch", "far", "root").await;
    let leaf = tree.add("leaf", "leaf", "near").await;
    tree.catch_up("near").await;
    // The leaf's copy waits for a tick from after it, so it needs both branches.
    let replays: Vec<_> = ["near", "far", "leaf"].map(|name| tree.replay(name).spawn()).into();
    for name in ["near", "far", "leaf"] {
        tree.wait(name).await;
    }
    write(&root, 100).await;
    until(&leaf, JOURNAL, &root.text(JOURNAL).await).await;
    tree.manage(0, "pause far").await;
    // What both have may still come to who begins to read before that.
    let paused_at = far.text("select max(tick_id) from pgq.tick").await;
    until(&near, &format!("select max(tick_id) >= {paused_at} from pgq.tick"), "t").await;
    let had = leaf.text(JOURNAL).await;
    near.run("select pgq.register_consumer('q', 'plain')").await;
    write(&root, 200).await;
    until(&near, JOURNAL, &root.text(JOURNAL).await).await;
    until(&near, "select released_tick < last_tick from pgcascade.gate_state", "t").await;
    // As for any consumer that is no branch.
    assert_eq!(near.text("select pgq.next_batch('q', 'plain')").await, "<null>");
    assert_eq!(leaf.text(JOURNAL).await, had);
    let (_, text) = status(&tree, "leaf", &["--json"]);
    let shown: Value = serde_json::from_str(&text).unwrap();
    let gate = &node(&shown, "root")["gate"];
    let released = root.text("select released_tick from pgcascade.gate_state").await;
    assert_eq!(gate["candidates"], 2);
    assert_eq!(gate["released_tick"].to_string(), released);
    tree.manage(0, "resume far").await;
    until(&leaf, JOURNAL, &root.text(JOURNAL).await).await;
    root.run("select pgcascade.set_confirm_gate('q', 3)").await;
    let (code, shown) = status(&tree, "leaf", &[]);
    assert_eq!(code, Some(1), "{shown}");
    for line in [
        "gate 3 at tick 0",
        "wants 3 branches and standbys to have each tick, and 2 read from it",
    ] {
        assert!(shown.contains(line), "{line}: {shown}");
    }

    // One is enough: the branch is one. None: nobody waits for anybody.
    for candidates in [1, 0] {
        root.run(&format!("select pgcascade.set_confirm_gate('q', {candidates})"))
            .await;
        tree.manage(0, "pause far").await;
        write(&root, 300 + 100 * candidates).await;
        until(&leaf, JOURNAL, &root.text(JOURNAL).await).await;
        tree.manage(0, "resume far").await;
    }
    until(&near, "select count(*) from pgcascade.gate_state", "0").await;
    for replay in replays {
        replay.stop().await;
    }
    drop((root, near, far, leaf));
    tree.drop(&["leaf", "far", "near", "root"]).await;
}
