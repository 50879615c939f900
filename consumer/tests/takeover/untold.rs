//! A change of root that a node was not told of: it was away, or nobody who was left knew it. `consumer node change-provider` has it follow.

use crate::dead::{STATE, assert_follow, killed, takeover};
use crate::planned;
use crate::tree::{Tree, stop, until, write};

const DEAD: [&str; 2] = ["--dead", "root"];

/// A branch and a leaf have promised, and are gone when they are to be told. They take no ticks until somebody tells them. Nobody has heard of
/// the new root, which was made last.
#[tokio::test]
async fn who_was_away_is_told_later() {
    let tree = Tree::apart().await.elsewhere(&["away", "leaf"]);
    let [near, ..] = tree
        .below_root([("branch", "near"), ("branch", "away"), ("leaf", "leaf")])
        .await;
    let [new] = tree.below_root([("branch", "new")]).await;
    write(&tree.connect("root").await, 100).await;
    tree.catch_up("new").await;
    tree.kill_root();
    killed(&tree, "new", &DEAD, "after_promoted").await;
    for name in ["away", "leaf"] {
        tree.cluster(name).kill();
    }
    let replays = tree.replays(&["new", "near"]);
    killed(&tree, "new", &["--resume"], "after_repointed").await;
    // One who is behind and one who cannot be asked keep the root closed no longer than it takes another one to confirm it.
    tree.cluster("away").start_again();
    takeover(&tree, "new", &["--resume"], 0).await;
    tree.cluster("leaf").start_again();
    write(&new, 200).await;
    let away = tree.connect("away").await;
    let leaf = tree.connect("leaf").await;
    assert_eq!(away.text(STATE).await, "branch|f|1|f|t");
    let at = tree.conninfo("new");
    for name in ["away", "leaf"] {
        tree.node(0, &format!("change-provider {name} --provider new"), &["--db", &at])
            .await;
    }
    assert_eq!(away.text(STATE).await, "branch|f|2|t|f");
    let followed = tree.replays(&["away", "leaf"]);
    assert_follow(&tree, &new, &[&near, &away, &leaf]).await;
    tree.assert_same_queue(&away, &new).await;
    stop(replays).await;
    stop(followed).await;
    drop((new, near, away, leaf));
    tree.drop(&["near", "new"]).await;
}

/// Copies of a branch and of a leaf were made nodes when nobody else got any more ticks; another copy got some.
#[tokio::test]
async fn whom_nobody_has_heard_of_joins_if_it_went_the_same_way() {
    let tree = Tree::apart().await;
    let root = tree.connect("root").await;
    let [one, two, _] = tree
        .below_root([("branch", "one"), ("branch", "two"), ("leaf", "leaf")])
        .await;
    write(&root, 100).await;
    tree.catch_up_all(&["leaf", "one", "two"]).await;
    for (name, original, database) in [
        ("third", "two", "same"),
        ("fourth", "two", "beyond"),
        ("late", "leaf", "late"),
    ] {
        tree.copy(original, database).await;
        let (at, provider) = (tree.conninfo(database), tree.conninfo("root"));
        tree.node(0, &format!("adopt {name}"), &["--db", &at, "--provider", &provider])
            .await;
    }
    write(&root, 200).await;
    tree.catch_up("beyond").await;
    drop(root);
    tree.kill_root();
    let mut replays = tree.replays(&["one", "two"]);
    killed(&tree, "one", &DEAD, "after_repointed").await;
    let change = async |name: &str, database: &str, provider: &str, code: i32| {
        let command = format!("change-provider {name} --provider {provider}");
        tree.node(code, &command, &["--db", &tree.conninfo(database)])
            .await
            .stderr
    };
    let refused = change("third", "same", "one", 1).await;
    assert!(refused.contains("is not open yet"), "{refused}");
    takeover(&tree, "one", &["--resume"], 0).await;
    let known = "select count(*) from pgq_node.node_location where node_name in ('third', 'late') and not dead";
    assert_eq!(one.text(known).await, "0");
    write(&one, 300).await;

    let late = tree.connect("late").await;
    let [same, beyond] = [tree.connect("same").await, tree.connect("beyond").await];
    let untouched =
        "select md5(string_agg(ctid::text || xmin::text, ',' order by uid)) from journal where what = 'before'";
    let before = same.text(untouched).await;
    for point in ["node_known", "node_subscribed", "node_changed", "node_seen"] {
        let at = tree.conninfo("same");
        let command = tree.node_command("change-provider third --provider one", &["--db", &at]);
        let output = command.failpoints(&format!("{point}=kill")).output().await;
        assert_eq!(output.code(), None, "{point}: {}", output.stderr);
    }
    change("third", "same", "one", 0).await;
    assert_eq!(same.text(STATE).await, "branch|f|2|t|f");
    // Its provider is not the root, which is told.
    change("late", "late", "two", 0).await;
    replays.extend(tree.replays(&["same", "late"]));
    until(&two, known, "2").await;
    let refused = change("fourth", "beyond", "one", 1).await;
    assert!(
        refused.contains("went on behind a root that was given up") && refused.contains("Nothing was changed"),
        "{refused}"
    );
    assert_eq!(beyond.text(STATE).await, "branch|f|1|t|f");

    assert_follow(&tree, &one, &[&two, &same, &late]).await;
    tree.assert_same_queue(&same, &one).await;
    assert_eq!(same.text(untouched).await, before, "rows were copied again");
    // It can be the root like any branch.
    planned::takeover(&tree, "one", "third", &[], 0).await;
    write(&same, 400).await;
    assert_follow(&tree, &same, &[&one, &two, &late]).await;
    stop(replays).await;
    drop((one, two, late, same, beyond));
    tree.drop(&["leaf", "late", "beyond", "same", "two", "one"]).await;
}
