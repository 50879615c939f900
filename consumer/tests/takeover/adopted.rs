//! A copy of the root became a branch (`consumer node adopt`), and the root is lost before that has all that the copy was made with.

use crate::cluster::{Db, Replay};
use crate::dead::assert_follow;
use crate::planned;
use crate::standby::{LOCAL, Standby};
use crate::tree::{Tree, stop, until, write};

/// Nothing that is in the copy's queue, or that was set aside, is left there.
async fn assert_whole(copy: &Db) {
    for left in ["adoption", "takeover_tail"] {
        until(copy, &format!("select count(*) from pgcascade.{left}"), "0").await;
    }
}

/// The standby is promoted beside the root, and becomes the branch `second` behind that provider.
async fn adopt(standby: &Standby, provider: &str) -> Db {
    let tree = &standby.tree;
    let copy = standby.connect().await;
    copy.run("select pg_promote(true, 600)").await;
    until(&copy, "select pg_is_in_recovery()", "f").await;
    let (at, provider) = (standby.conninfo(), tree.conninfo(provider));
    tree.node(0, "adopt second", &["--db", &at, "--provider", &provider])
        .await;
    copy
}

async fn takeover(new: &str, at: &str, more: &[&str], code: i32) -> String {
    let output = planned::at(at, new).args(more).output().await;
    assert_eq!(output.code(), Some(code), "{}", output.stderr);
    output.stderr
}

fn replay(standby: &Standby) -> Replay {
    let at = standby.conninfo();
    Replay::command(&["replay", "--subscriber", &at, "--queue", "q", "--retry-max", "1"])
        .args(&["--watermark-interval", "1"])
}

/// A copy of the root becomes a branch, and the root is lost before that has anything of its own: of what the copy was made with one tick is on
/// a branch, and an event is in no tick at all. Behind another root it saves the event, and has that one's rows; it cannot be the root any more.
#[tokio::test]
async fn a_copy_that_was_adopted_just_before_gives_up_what_nobody_else_has() {
    let standby = Standby::new().await;
    let tree = &standby.tree;
    let root = tree.connect("root").await;
    standby
        .left_behind(&root, "t values (7000, 0)", "t where id = 7000")
        .await;
    root.run("update pgq.queue set queue_ticker_paused = false").await;
    write(&root, 200).await;
    tree.catch_up("far").await;
    // Its provider knows it, and does not have what shows that it has all.
    let copy = adopt(&standby, "far").await;
    let at = standby.conninfo();
    let refused = takeover("second", &at, &[], 1).await;
    assert!(
        refused.contains("\"second\" was adopted as a copy of the root, and does not have tick"),
        "{refused}"
    );
    write(&root, 300).await;
    drop(root);
    tree.kill_root();
    let far = tree.connect("far").await;
    let near = tree.connect("near").await;
    let leaf = tree.connect("leaf").await;
    let replays = tree.replays(&["far", "near", "leaf"]);
    takeover("far", &tree.conninfo("far"), &["--dead", "root"], 0).await;
    let refused = takeover("second", &at, &[], 1).await;
    assert!(refused.contains("epoch 2 began after tick"), "{refused}");

    let lost = "select count(*), count(tick), min(epoch) from pgcascade.lost_event";
    let killed = replay(&standby)
        .arg("--until-caught-up")
        .failpoints("adoption_lost=kill")
        .output()
        .await;
    assert_eq!(killed.code(), None, "{}", killed.stderr);
    assert_eq!(copy.text(lost).await, "0|0|<null>");
    let running = replay(&standby).spawn();
    running.until_it_says("with events that no other node has").await;
    assert_eq!(copy.text(lost).await, "3|0|1");
    assert_whole(&copy).await;
    write(&far, 400).await;
    let last = far.text("select count(*) from journal").await;
    until(
        &copy,
        "select count(*) from pgcascade_replay.table_state where state <> 'ok'",
        "0",
    )
    .await;
    for node in [&near, &leaf, &copy] {
        until(node, "select count(*) from journal", &last).await;
        tree.assert_same_rows(&far, node).await;
    }
    for node in [&near, &copy] {
        tree.assert_same_queue(node, &far).await;
    }
    assert_eq!(far.text("select count(*) from t where id = 7000").await, "0");
    assert_eq!(far.text("select count(*) from journal where uid = 5000").await, "1");
    running.stop().await;
    stop(replays).await;
    drop((far, near, leaf, copy));
    standby.tree.drop(&["leaf", "far", "near"]).await;
}

/// The same copy is to be the root: a branch has a tick that it lacks and a part of which it has, and nobody has the event that is in no tick.
/// It fetches the one, and gives the other. The command is killed all the way.
#[tokio::test]
async fn a_copy_that_was_adopted_just_before_can_be_the_root() {
    let standby = Standby::new().await;
    let tree = &standby.tree;
    let root = tree.connect("root").await;
    standby
        .left_behind(&root, "journal values (7000, 'extra')", "journal where uid = 7000")
        .await;
    Standby::missing_from_its_batch(&root).await;
    write(&root, 200).await;
    tree.catch_up("far").await;
    let copy = adopt(&standby, "far").await;
    write(&root, 300).await;
    drop(root);
    tree.kill_root();
    let [far, near, leaf] = [
        tree.connect("far").await,
        tree.connect("near").await,
        tree.connect("leaf").await,
    ];
    let at = standby.conninfo();
    let mut replays = tree.replays(&["far", "near", "leaf"]);
    let planned = planned::at(&at, "second").args(&["--dead", "root", "--plan"]).stdout();
    assert!(
        planned.contains("\"second\" was adopted as a copy of the root; of the 6 events")
            && !planned.contains("AGAINST"),
        "{planned}"
    );
    let killed = async |more: &[&str], point: &str| {
        let command = planned::at(&at, "second").args(more);
        let output = command.failpoints(&format!("takeover_{point}=kill")).output().await;
        assert_eq!(output.code(), None, "{point} was not reached: {}", output.stderr);
    };
    // Given up, it is the branch that it was, and has all that it was made with.
    for point in ["after_promised", "fetching"] {
        killed(&["--dead", "root"], point).await;
        takeover("second", &at, &["--abort"], 0).await;
        assert_eq!(
            copy.text("select count(*) from pgcascade.adoption").await,
            "1",
            "{point}"
        );
    }
    killed(&["--dead", "root"], "fetching").await;
    for point in ["before_commit", "after_commit"] {
        let died = replay(&standby).failpoints(&format!("{point}=kill")).output().await;
        assert_eq!(died.code(), None, "{point}: {}", died.stderr);
    }
    replays.push(replay(&standby).spawn());
    for point in ["fetched", "after_promoted", "after_repointed", "after_opened"] {
        killed(&["--resume"], point).await;
    }
    takeover("second", &at, &["--resume"], 0).await;
    assert_whole(&copy).await;
    write(&copy, 400).await;
    assert_follow(tree, &copy, &[&far, &near, &leaf]).await;
    for node in [&far, &near] {
        tree.assert_same_queue(node, &copy).await;
    }
    for (uid, times) in [(5000, 1), (6000, 1), (7000, 1), (-200, 1), (-300, 0)] {
        let there = format!("select count(*) from journal where uid = {uid}");
        assert_eq!(copy.text(&there).await, times.to_string(), "{uid}");
    }
    stop(replays).await;
    drop((far, near, leaf, copy));
    standby.tree.drop(&["leaf", "far", "near"]).await;
}

/// There is no other branch, and a leaf has a tick more.
#[tokio::test]
async fn a_copy_that_was_adopted_just_before_is_the_only_branch() {
    let standby = Standby::of(Tree::apart_with(LOCAL).await, [("leaf", "leaf")]).await;
    let tree = &standby.tree;
    let root = tree.connect("root").await;
    standby
        .left_behind(&root, "journal values (7000, 'extra')", "journal where uid = 7000")
        .await;
    root.run("insert into journal values (6000, 'missing'); update pgq.queue set queue_ticker_paused = false")
        .await;
    tree.catch_up("leaf").await;
    let copy = adopt(&standby, "root").await;
    write(&root, 300).await;
    drop(root);
    tree.kill_root();
    let leaf = tree.connect("leaf").await;
    let at = standby.conninfo();
    let replays = vec![tree.replay("leaf").spawn(), replay(&standby).spawn()];
    let dead = ["--dead", "root", "--fenced-by", "killed"];
    takeover("second", &at, &dead, 0).await;
    assert_eq!(
        copy.text("select donor, step from pgcascade.takeover").await,
        "leaf|done"
    );
    assert_whole(&copy).await;
    write(&copy, 400).await;
    until(
        &leaf,
        "select count(*) from journal",
        &copy.text("select count(*) from journal").await,
    )
    .await;
    tree.assert_same_rows(&copy, &leaf).await;
    for (uid, times) in [(5000, 1), (6000, 1), (7000, 1), (-300, 0)] {
        let there = format!("select count(*) from journal where uid = {uid}");
        assert_eq!(leaf.text(&there).await, times.to_string(), "{uid}");
    }
    stop(replays).await;
    drop((leaf, copy));
    standby.tree.drop(&["leaf"]).await;
}
