//! The old root is gone: its server is killed, and does not come back.

use crate::cluster::{Db, Output, Replay, eventually};
use crate::planned;
use crate::tree::{Tree, stop, until, write};

pub(crate) async fn takeover(tree: &Tree, new: &str, more: &[&str], code: i32) -> Output {
    planned::takeover(tree, new, new, more, code).await
}

pub(crate) async fn killed(tree: &Tree, new: &str, more: &[&str], point: &str) {
    let output = planned::command(tree, new, new)
        .args(more)
        .failpoints(&format!("takeover_{point}=kill"))
        .output()
        .await;
    assert_eq!(output.code(), None, "{point} was not reached: {}", output.stderr);
}

/// The command is killed there, and given up: the branches are as before.
pub(crate) async fn given_up(tree: &Tree, new: &str, more: &[&str], point: &str, branches: [&Db; 2]) {
    killed(tree, new, more, point).await;
    takeover(tree, new, &["--abort"], 0).await;
    for node in branches {
        assert_eq!(node.text(STATE).await, "branch|f|1|t|f", "{point}");
    }
}

/// The command goes on and is killed at each of these places, and ends. It opens when it should.
pub(crate) async fn killed_all_the_way(tree: &Tree, (new, node): (&str, &Db), points: &[&str]) {
    for point in points {
        killed(tree, new, &["--resume"], point).await;
        let open = node.text("select open from pgcascade.node_state").await;
        assert_eq!(open == "t", *point == "after_opened", "{point}");
    }
    takeover(tree, new, &["--resume"], 0).await;
}

pub(crate) const STATE: &str = "select role, open, epoch, promised_op is null, frozen from pgcascade.node_state";
pub(crate) const JOURNAL: &str = "select count(*) from journal";

/// These nodes get what was written to the root, and have the same rows then.
pub(crate) async fn assert_follow(tree: &Tree, root: &Db, nodes: &[&Db]) {
    let last = root.text(JOURNAL).await;
    for node in nodes {
        until(node, JOURNAL, &last).await;
        tree.assert_same_rows(root, node).await;
    }
}

/// The chosen branch is behind its sibling, and fetches from that what it lacks. The command is killed all the way.
#[tokio::test]
async fn what_only_a_sibling_has_is_fetched_first() {
    let tree = Tree::apart().await;
    let root = tree.connect("root").await;
    let [behind, ahead, leaf] = tree
        .below_root([("branch", "behind"), ("branch", "ahead"), ("leaf", "leaf")])
        .await;
    let alive = takeover(&tree, "behind", &["--dead", "root"], 1).await;
    assert!(
        alive.stderr.contains("node \"root\" answers, and is not dead"),
        "{}",
        alive.stderr
    );
    // The leaf stands still and is behind both; each of them has a different tick.
    write(&root, 100).await;
    tree.catch_up("behind").await;
    for from in [200, 300] {
        write(&root, from).await;
        tree.catch_up("ahead").await;
    }
    let had = (behind.text(JOURNAL).await, ahead.text(JOURNAL).await);
    assert_ne!(had.0, had.1);
    // This one nobody else gets.
    root.run("insert into journal values (-1, 'lost')").await;
    drop(root);
    tree.kill_root();
    let replays = tree.replays(&["behind", "ahead", "leaf"]);

    let dead = ["--dead", "root"];
    for point in ["after_prepared", "promised_one", "after_promised", "after_elected"] {
        given_up(&tree, "behind", &dead, point, [&behind, &ahead]).await;
    }
    killed(&tree, "behind", &dead, "after_prepared").await;
    let refused = takeover(&tree, "behind", &dead, 1).await;
    assert!(refused.stderr.contains("is under way"), "{}", refused.stderr);
    takeover(&tree, "behind", &["--abort"], 0).await;
    // Another one of the survivors thinks that it should be.
    killed(&tree, "ahead", &dead, "after_promised").await;
    killed(&tree, "behind", &dead, "subscribed_new").await;
    let late = takeover(&tree, "ahead", &["--resume"], 1).await;
    assert!(late.stderr.contains("has promised epoch"), "{}", late.stderr);
    let points = [
        "fetching",
        "after_caught-up",
        "after_promoted",
        "told",
        "after_repointed",
        "confirmed_one",
        "after_opened",
    ];
    killed_all_the_way(&tree, ("behind", &behind), &points).await;

    let epoch = behind.text("select epoch from pgcascade.node_state").await;
    assert_eq!(behind.text(STATE).await, format!("root|t|{epoch}|t|f"));
    assert_eq!(ahead.text(STATE).await, format!("branch|f|{epoch}|t|f"));
    assert_eq!(
        behind
            .text("select donor, step from pgcascade.takeover where step <> 'aborted'")
            .await,
        "ahead|done"
    );
    assert_eq!(
        ahead.text("select count(*) from pgq_node.subscriber_info").await,
        "0",
        "the donor keeps nothing for the new root"
    );
    // All that any of them had, and nothing of what only the dead one had.
    assert_eq!(behind.text(JOURNAL).await, had.1);
    write(&behind, 400).await;
    assert_follow(&tree, &behind, &[&ahead, &leaf]).await;
    assert_eq!(behind.text("select count(*) from journal where uid = -1").await, "0");
    tree.assert_same_queue(&ahead, &behind).await;
    // The dead one is known as that to all of them, and nothing else is wrong.
    eventually("every node is well", async || {
        let at = tree.conninfo("leaf");
        let status = Replay::command(&["status", "--subscriber", &at, "--queue", "q", "--quiet"]);
        status.output().await.code() == Some(0)
    })
    .await;
    // It comes back, and knows of nothing: as soon as its replay runs, it is closed.
    tree.start_root();
    let root = tree.connect("root").await;
    assert_eq!(
        root.text("select role, open, epoch from pgcascade.node_state").await,
        "root|t|1"
    );
    let replay = tree.replay("root").spawn();
    until(
        &root,
        "select role, open, epoch from pgcascade.node_state",
        &format!("root|f|{epoch}"),
    )
    .await;
    assert_eq!(root.text("select count(*) from journal where uid = -1").await, "1");
    replay.stop().await;
    stop(replays).await;
    drop((root, behind, ahead, leaf));
    tree.drop(&["leaf", "ahead", "behind"]).await;
}

/// What may still have something, or take something, and a branch that would not capture what is written to it.
#[tokio::test]
async fn what_stands_against_doing_without_the_root() {
    let tree = Tree::new().await;
    let [new, given_up] = tree.below_root([("branch", "new"), ("branch", "given_up")]).await;
    new.run("drop trigger pgcascade_capture_q on t").await;
    new.run("drop trigger pgcascade_capture_q_truncate on t").await;
    let refuses_us = tree
        .cluster("root")
        .conninfo_as(&tree.database_name("root"), "nobody", "wrong");
    new.run(&format!(
        "select pgq_node.register_location('q', 'given_up', null, true), pgq_node.register_location('q', 'root', '{refuses_us}', false)"
    ))
    .await;
    let refused = takeover(&tree, "new", &["--dead", "root"], 1).await;
    for wanted in [
        "node \"given_up\" was declared dead and answers: it may have what no other has",
        "the server of node \"root\" answers: ",
        "table public.t has no triggers on \"new\"",
    ] {
        assert!(refused.stderr.contains(wanted), "{wanted}: {}", refused.stderr);
    }
    for node in [&new, &given_up] {
        assert_eq!(node.text(STATE).await, "branch|f|1|t|f");
    }
    assert_eq!(new.text("select count(*) from pgcascade.takeover").await, "0");
    drop((new, given_up));
    tree.drop(&["given_up", "new", "root"]).await;
}

/// A leaf whose replay runs, while those of the branches do not: it gets what one of them has, so the root can be lost.
#[tokio::test]
async fn behind_a_gate_no_leaf_is_ahead_of_the_branches() {
    let tree = Tree::apart().await;
    let root = tree.connect("root").await;
    let [behind, ahead, leaf] = tree
        .below_root([("branch", "behind"), ("branch", "ahead"), ("leaf", "leaf")])
        .await;
    root.run("select pgq.register_consumer('q', 'plain'), pgcascade.set_confirm_gate('q', 1)")
        .await;
    let replay = tree.replay("leaf").spawn();
    write(&root, 100).await;
    let had = leaf.text(JOURNAL).await;
    let held = "select released_tick < last_tick from pgcascade.gate_state";
    until(&root, held, "t").await;
    // As for any consumer that is no branch.
    assert_eq!(root.text("select pgq.next_batch('q', 'plain')").await, "<null>");
    assert_eq!(leaf.text(JOURNAL).await, had);
    tree.catch_up("ahead").await;
    let has = ahead.text(JOURNAL).await;
    until(&leaf, JOURNAL, &has).await;
    // Nobody gets this any more.
    write(&root, 200).await;
    until(&root, held, "t").await;
    drop(root);
    tree.kill_root();
    let replays = tree.replays(&["behind", "ahead"]);
    takeover(&tree, "behind", &["--dead", "root"], 0).await;
    write(&behind, 300).await;
    assert_follow(&tree, &behind, &[&ahead, &leaf]).await;
    // The new root has the gate, too; its last tick may not be confirmed yet.
    let released = "select candidates, released_tick = last_tick from pgcascade.gate_state";
    until(&behind, released, "1|t").await;
    replay.stop().await;
    stop(replays).await;
    drop((behind, ahead, leaf));
    tree.drop(&["leaf", "ahead", "behind"]).await;
}

/// Nobody is left who could confirm: the operator's word is needed.
#[tokio::test]
async fn the_last_branch_opens_on_the_operators_word() {
    let tree = Tree::apart().await;
    let branch = tree.add("branch", "branch", "root").await;
    tree.add("branch", "gone", "root").await;
    tree.add("leaf", "leaf", "root").await;
    tree.catch_up("branch").await;
    let leaf = tree.connect("leaf").await;
    write(&tree.connect("root").await, 1).await;
    let without = ["--journal-bytes", "0", "--until-caught-up"];
    let ahead = tree.replay("leaf").args(&without).output().await;
    assert_eq!(ahead.code(), Some(0), "{}", ahead.stderr);
    tree.kill_root();
    tree.remove("gone").await;
    let replay = tree.replay("branch").spawn();
    let refused = takeover(&tree, "branch", &["--dead", "root"], 1).await;
    for text in [
        "node \"gone\" cannot be reached, and may have what no other has",
        "no other branch is left that could confirm the new root",
        "it has changes that all others lack, and cannot give them: leaf \"leaf\" keeps no journal",
    ] {
        assert!(refused.stderr.contains(text), "{text}: {}", refused.stderr);
    }
    assert_eq!(branch.text(STATE).await, "branch|f|1|t|f");
    let given_up = [
        "--dead",
        "root",
        "--lost",
        "gone",
        "--lost",
        "leaf",
        "--fenced-by",
        "its server was killed",
    ];
    let answers = takeover(&tree, "branch", &given_up, 1).await;
    assert!(answers.stderr.contains("node \"leaf\" answers"), "{}", answers.stderr);
    drop(leaf);
    tree.remove("leaf").await;
    takeover(&tree, "branch", &given_up, 0).await;
    assert_eq!(branch.text(STATE).await, "root|t|2|t|f");
    assert_eq!(
        branch.text("select step, fenced_by from pgcascade.takeover").await,
        "done|its server was killed"
    );
    write(&branch, 500).await;
    replay.stop().await;
    drop(branch);
    tree.drop(&["branch"]).await;
}

/// The root captured more tables than the new one does, as a branch beside it shows.
#[tokio::test]
async fn a_table_that_only_a_sibling_has_is_not_left_behind() {
    let tree = Tree::apart().await;
    let root = tree.connect("root").await;
    let [new, sibling] = tree.below_root([("branch", "new"), ("branch", "sibling")]).await;
    let removed = tree.table("new", &["remove", "t"]).output().await;
    assert_eq!(removed.code(), Some(0), "{}", removed.stderr);
    new.run("update pgcascade_replay.table_state set state = 'broken'")
        .await;
    sibling
        .run(
            "create table extra (id int);
             create trigger capture after insert on extra for each row execute function pgq.logutriga('q')",
        )
        .await;
    drop(root);
    tree.kill_root();
    let broken = "table public.journal is broken on \"new\"";
    let lacks = [
        "table public.t is replayed to \"sibling\", and not to \"new\"",
        "table public.extra is captured on \"sibling\", and not, or less, on \"new\"",
    ];
    let lacks_all = |text: &str| lacks.iter().all(|lacks| text.contains(lacks));
    let refused = takeover(&tree, "new", &["--dead", "root"], 1).await.stderr;
    assert!(refused.contains(broken) && lacks_all(&refused), "{refused}");
    let ignored = ["--dead", "root", "--ignore-table", "public.journal"];
    let refused = takeover(&tree, "new", &ignored, 1).await.stderr;
    assert!(!refused.contains(broken) && lacks_all(&refused), "{refused}");
    let all = [
        &ignored[..],
        &["--ignore-table", "public.t", "--ignore-table", "public.extra"],
    ]
    .concat();
    given_up(&tree, "new", &all, "after_prepared", [&new, &sibling]).await;
    drop((new, sibling));
    tree.drop(&["sibling", "new"]).await;
}
