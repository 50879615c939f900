//! A takeover is given up while servers are gone that have a part in it: whoever is there is released, and who comes back, is later.

use crate::cluster::Db;
use crate::dead::{JOURNAL, STATE, assert_follow, killed, takeover};
use crate::tree::{Tree, stop, until, write};

const DEAD: [&str; 2] = ["--dead", "root"];
const FREE: &str = "branch|f|1|t|f";
const PROMISED: &str = "branch|f|1|f|t";

async fn promises(leaf: &Db) -> String {
    leaf.text("select (select count(*) from jsonb_object_keys(promises)), provider from pgcascade_replay.node")
        .await
}

/// All of them have what the root has, and go on getting it.
async fn goes_on(tree: &Tree, from: i32, names: &[&str]) {
    let root = tree.connect("root").await;
    write(&root, from).await;
    let last = root.text(JOURNAL).await;
    for name in names {
        let node = tree.connect(name).await;
        until(&node, JOURNAL, &last).await;
        tree.assert_same_rows(&root, &node).await;
    }
}

/// A branch or a leaf that has promised is gone when the takeover is given up. The command is killed between two nodes, too. The branch is
/// released by the command, typed again when it is back; then both of them find out by themselves.
#[tokio::test]
async fn who_is_gone_is_released_when_it_is_back() {
    let tree = Tree::apart().await.elsewhere(&["gone", "leaf"]);
    let new = tree.add("branch", "new", "root").await;
    let near = tree.add("branch", "near", "root").await;
    tree.add("branch", "gone", "root").await;
    tree.add("leaf", "leaf", "root").await;
    tree.catch_up_all(&["new", "near", "gone", "leaf"]).await;
    tree.kill_root();

    killed(&tree, "new", &DEAD, "after_promised").await;
    let leaf = tree.connect("leaf").await;
    assert_eq!(promises(&leaf).await, "1|root");
    tree.cluster("gone").kill();
    // In the order of their names: one that is gone does not keep the next from being released.
    killed(&tree, "new", &["--abort"], "released_one").await;
    assert_eq!(new.text(STATE).await, FREE);
    assert_eq!(promises(&leaf).await, "0|root");
    assert_eq!(near.text(STATE).await, PROMISED);
    let said = takeover(&tree, "new", &["--abort"], 0).await.stderr;
    assert!(
        said.contains("node \"gone\"") && said.contains("if it had promised, it takes no ticks until"),
        "{said}"
    );
    assert!(!said.contains("\"near\"") && !said.contains("\"leaf\""), "{said}");
    assert_eq!(near.text(STATE).await, FREE);
    tree.cluster("gone").start_again();
    let gone = tree.connect("gone").await;
    assert_eq!(gone.text(STATE).await, PROMISED);
    let said = takeover(&tree, "new", &["--abort"], 0).await.stderr;
    assert!(!said.contains("gone"), "{said}");
    assert_eq!(gone.text(STATE).await, FREE);

    // Both are gone, one of them with a replay that goes on trying.
    let replay = tree.replay("leaf").spawn();
    killed(&tree, "new", &DEAD, "after_promised").await;
    replay.until_it_says("promised to a takeover").await;
    drop((gone, leaf));
    for name in ["gone", "leaf"] {
        tree.cluster(name).kill();
    }
    let said = takeover(&tree, "new", &["--abort"], 0).await.stderr;
    assert!(
        said.contains("node \"gone\"") && said.contains("node \"leaf\""),
        "{said}"
    );
    for node in [&new, &near] {
        assert_eq!(node.text(STATE).await, FREE);
    }
    tree.start_root();
    let mut replays: Vec<_> = ["new", "near"].map(|name| tree.replay(name).spawn()).into();
    goes_on(&tree, 100, &["new", "near"]).await;
    for name in ["gone", "leaf"] {
        tree.cluster(name).start_again();
    }
    let (gone, leaf) = (tree.connect("gone").await, tree.connect("leaf").await);
    assert_eq!(gone.text(STATE).await, PROMISED);
    replays.push(tree.replay("gone").spawn());
    until(&gone, STATE, FREE).await;
    replay.until_it_says("was given up: it goes on as before").await;
    replays.push(replay);
    goes_on(&tree, 200, &["new", "near", "gone", "leaf"]).await;
    assert_eq!(promises(&leaf).await, "0|root");

    // Nothing is left of it that the next takeover would meet.
    tree.kill_root();
    takeover(&tree, "new", &DEAD, 0).await;
    write(&new, 300).await;
    assert_follow(&tree, &new, &[&near, &gone, &leaf]).await;
    stop(replays).await;
    drop((new, near, gone, leaf));
    tree.drop(&["near", "new"]).await;
}

/// What a branch keeps for the one that was to fetch from it, it does not keep when that is given up.
#[tokio::test]
async fn the_donor_keeps_nothing_for_who_gave_up() {
    let tree = Tree::apart().await;
    let [new, donor] = tree.below_root([("branch", "new"), ("branch", "donor")]).await;
    write(&tree.connect("root").await, 100).await;
    tree.catch_up("donor").await;
    tree.kill_root();
    let keeps = "select count(*) from pgq_node.subscriber_info";
    for point in ["subscribed_new", "fetching"] {
        killed(&tree, "new", &DEAD, point).await;
        assert_eq!(donor.text(keeps).await, "1", "{point}");
        takeover(&tree, "new", &["--abort"], 0).await;
        assert_eq!(donor.text(keeps).await, "0", "{point}");
        let provider = "select provider_node from pgq_node.local_state";
        assert_eq!(new.text(provider).await, "root", "{point}");
    }
    drop((new, donor));
    tree.drop(&["donor", "new"]).await;
}

/// The old root is gone when a planned takeover is given up, closed as it was. When it is back its replay opens it; but not where another
/// takeover has made a new root meanwhile.
#[tokio::test]
async fn the_old_root_that_is_gone_opens_when_it_is_back() {
    let tree = Tree::apart().await;
    let branch = tree.add("branch", "branch", "root").await;
    let other = tree.add("branch", "other", "root").await;
    let state = "select role, open, epoch from pgcascade.node_state";
    tree.catch_up_all(&["branch", "other"]).await;
    let close = async || {
        let replays = tree.replays(&["branch", "other"]);
        killed(&tree, "branch", &[], "after_drained").await;
        until(
            &other,
            "select max(tick_id) from pgq.tick",
            &branch.text("select max(tick_id) from pgq.tick").await,
        )
        .await;
        for replay in replays {
            replay.stop().await;
        }
        assert_eq!(tree.connect("root").await.text(state).await, "root|f|1");
        tree.kill_root();
        let said = takeover(&tree, "branch", &["--abort"], 1).await.stderr;
        assert!(
            said.contains("node \"root\"") && said.contains("their replays ask \"branch\" when they run"),
            "{said}"
        );
    };
    close().await;
    tree.start_root();
    let root = tree.connect("root").await;
    assert_eq!(root.text(state).await, "root|f|1");
    let replay = tree.replay("root").spawn();
    until(&root, state, "root|t|1").await;
    replay.stop().await;
    write(&root, 100).await;
    for name in ["branch", "other"] {
        tree.catch_up(name).await;
        tree.assert_same_rows(&root, &tree.connect(name).await).await;
    }
    drop(root);

    close().await;
    let replays = tree.replays(&["branch", "other"]);
    takeover(&tree, "other", &DEAD, 0).await;
    // Of the same number as the one that was given up.
    assert_eq!(other.text(state).await, "root|t|2");
    tree.start_root();
    let root = tree.connect("root").await;
    assert_eq!(root.text("select promised_epoch from pgcascade.node_state").await, "2");
    let said = takeover(&tree, "branch", &["--abort"], 1).await.stderr;
    assert!(
        said.contains("is not opened again: \"branch\" knows another root, of epoch 2"),
        "{said}"
    );
    assert_eq!(root.text(state).await, "root|f|1");
    let replay = tree.replay("root").spawn();
    until(
        &root,
        "select role, epoch, promised_op is null from pgcascade.node_state",
        "root|2|t",
    )
    .await;
    assert_eq!(root.text(state).await, "root|f|2");
    replay.stop().await;
    stop(replays).await;
    drop((root, branch, other));
    tree.drop(&["other", "branch"]).await;
}

/// Who was given up with `--lost` for a takeover that is given up is asked again by the next one.
#[tokio::test]
async fn the_lost_are_not_dead_any_more() {
    let tree = Tree::apart().await.elsewhere(&["gone"]);
    let new = tree.add("branch", "new", "root").await;
    let near = tree.add("branch", "near", "root").await;
    tree.add("branch", "gone", "root").await;
    tree.catch_up_all(&["new", "near", "gone"]).await;
    new.run("select pgq_node.register_location('q', 'buried', 'dbname=nowhere', true)")
        .await;
    tree.kill_root();
    tree.cluster("gone").kill();
    let lost = ["--dead", "root", "--lost", "gone", "--lost", "buried"];
    let dead = "select string_agg(node_name, ',' order by node_name) from pgq_node.node_location where dead";
    for point in ["after_prepared", "after_elected"] {
        killed(&tree, "new", &lost, point).await;
        assert_eq!(new.text(dead).await, "buried,gone,root", "{point}");
        takeover(&tree, "new", &["--abort"], 0).await;
        assert_eq!(new.text(dead).await, "buried", "{point}");
    }
    // It lives, and takes part.
    tree.cluster("gone").start_again();
    let replays = tree.replays(&["new", "near", "gone"]);
    takeover(&tree, "new", &DEAD, 0).await;
    let gone = tree.connect("gone").await;
    assert_eq!(
        gone.text("select provider_node, epoch from pgq_node.local_state, pgcascade.node_state")
            .await,
        new.text("select 'new', epoch from pgcascade.node_state").await
    );
    stop(replays).await;
    drop((new, near, gone));
    tree.drop(&["near", "new"]).await;
}
