//! The root is gone while nodes copy tables from it: they copy them anew from the new root.

use super::dead::{JOURNAL, takeover};
use super::planned;
use crate::tree::{Tree, stop, until, write};

/// One is in the middle of its copies, one has all and waits for what its copies left to the events.
#[tokio::test]
async fn what_was_copied_from_a_dead_root_is_copied_from_the_new_one() {
    let tree = Tree::apart().await;
    let root = tree.connect("root").await;
    write(&root, 1).await;
    let near = tree.add("branch", "near", "root").await;
    tree.catch_up("near").await;
    let far = tree.add("branch", "far", "root").await;
    let leaf = tree.add("leaf", "leaf", "root").await;

    // One after the other: a second session could commit its copy at that moment.
    let one_by_one = tree.replay("far").args(&["--jobs", "1"]);
    let in_the_middle = one_by_one.failpoints("in_copy=kill").output().await;
    assert_eq!(in_the_middle.code(), None, "{}", in_the_middle.stderr);
    // The copies see that it is open, having seen a younger one: they cannot be known to be complete before it ends.
    let open = tree.connect("root").await;
    open.run("begin; insert into journal values (-7, 'not committed')")
        .await;
    write(&root, 50).await;
    let replay = tree.replay("leaf").spawn();
    let states = "select string_agg(distinct state, ' ') from pgcascade_replay.table_state";
    until(&leaf, states, "catching-up").await;
    write(&root, 100).await;
    until(
        &leaf,
        JOURNAL,
        &root.text("select count(*) from journal where uid <> -7").await,
    )
    .await;
    replay.stop().await;
    tree.catch_up("near").await;
    drop((root, open));
    tree.kill_root();
    assert_eq!(far.text(states).await, "in-copy");
    assert_eq!(leaf.text(states).await, "catching-up");

    let replays = ["near", "far", "leaf"].map(|name| tree.replay(name).spawn());
    takeover(&tree, "near", &["--dead", "root"], 0).await;
    let left = "select count(*) from pgcascade_replay.table_state where state = 'in-copy' or copied_from <> 'near'";
    for node in [&far, &leaf] {
        until(node, left, "0").await;
    }
    // Its tick is after the copies.
    write(&near, 200).await;
    for (node, name) in [(&far, "far"), (&leaf, "leaf")] {
        until(node, states, "ok").await;
        until(node, JOURNAL, &near.text(JOURNAL).await).await;
        tree.assert_same_rows(&near, node).await;
        assert_eq!(
            node.text("select string_agg(distinct copied_from, ' ') from pgcascade_replay.table_state")
                .await,
            "near",
            "{name}"
        );
    }
    tree.assert_same_queue(&far, &near).await;
    for replay in replays {
        let said = replay.stop().await.stderr;
        assert!(!said.contains("lost position"), "{said}");
    }
    drop((near, far, leaf));
    tree.drop(&["leaf", "far", "near"]).await;
}

/// A root hands over while a leaf copies a table without a key, block by block. Rows have other places at the new one.
#[tokio::test]
async fn the_root_hands_over_during_a_copy_of_blocks() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    root.run("insert into journal select i, repeat('x', 90) from generate_series(1000, 13000) i; analyze journal")
        .await;
    let branch = tree.add("branch", "branch", "root").await;
    let small = ["--copy-chunk-bytes", "65536"];
    let copied = tree
        .replay("branch")
        .args(&small)
        .arg("--until-caught-up")
        .output()
        .await;
    let is_cut = |said: &str| {
        said.lines()
            .any(|line| line.contains("cut into chunks") && line.contains("journal"))
    };
    assert!(is_cut(&copied.stderr), "{}", copied.stderr);
    tree.assert_same_rows(&root, &branch).await;
    let replays = tree.replays(&["root", "branch"]);

    // What a branch passes on does not tell its places, so a copy from there is whole.
    let below = tree.add("leaf", "below", "branch").await;
    tree.until_ok("branch").await;
    let copied = tree
        .replay("below")
        .args(&small)
        .arg("--until-caught-up")
        .output()
        .await;
    assert_eq!(copied.code(), Some(0), "{}", copied.stderr);
    assert!(!is_cut(&copied.stderr), "{}", copied.stderr);
    tree.assert_same_rows(&root, &below).await;

    let leaf = tree.add("leaf", "leaf", "root").await;
    let release = tree
        .cluster("leaf")
        .file(&format!("release-{}", tree.database_name("leaf")));
    let points = format!("after_chunk_commit=pause:5:{release}");
    let copying = tree.replay("leaf").args(&small).failpoints(&points).spawn();
    copying.until_it_says("cut into chunks").await;
    let chunks = "select count(*) > 4 from pgcascade_replay.copy_chunk where snapshot is not null";
    until(&leaf, chunks, "t").await;
    planned::takeover(&tree, "branch", "branch", &["--from", "root"], 0).await;
    write(&branch, 20_000).await;
    std::fs::write(&release, "").unwrap();
    until(&leaf, JOURNAL, &branch.text(JOURNAL).await).await;
    let left = "select count(*) from pgcascade_replay.table_state where state = 'in-copy'";
    until(&leaf, left, "0").await;
    write(&branch, 30_000).await;
    tree.until_ok("leaf").await;
    for node in [&leaf, &root] {
        until(node, JOURNAL, &branch.text(JOURNAL).await).await;
        tree.assert_same_rows(&branch, node).await;
    }
    stop(replays).await;
    copying.stop().await;
    drop((root, branch, leaf, below));
    tree.drop(&["leaf", "below", "branch", "root"]).await;
}
