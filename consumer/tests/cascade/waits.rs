//! A leaf is started before the branch that it reads from has anything.

use serde_json::{Value, json};

use crate::cluster::eventually;
use crate::status::{node, status};
use crate::tree::{Tree, until, write};

#[tokio::test]
async fn a_leaf_waits_until_its_branch_has_tables() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let branch = tree.add("branch", "branch", "root").await;
    let leaf = tree.add("leaf", "leaf", "branch").await;
    // Who wants to be done some day is told that this is not the way.
    let refused = tree.replay("leaf").arg("--until-caught-up").output().await;
    assert_eq!(refused.code(), Some(1), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("no table on the provider matches \"*\""),
        "{}",
        refused.stderr
    );

    // What nobody above has will never come.
    let misspelt = tree.replay("leaf").args(&["--table", "tt"]).spawn();
    let nowhere = "no table matches \"tt\": neither on the provider nor on the root, node \"root\" of queue \"q\"";
    misspelt.until_it_says(nowhere).await;
    assert_eq!(misspelt.wait().await.code(), Some(1));

    // What it waits for is written down as soon as that can be done.
    let busy = tree.connect("leaf").await;
    busy.run("begin; select from pgcascade_replay.position for update")
        .await;
    let of_leaf = tree.replay("leaf").arg("-v").spawn();
    let waits = "node \"leaf\" of queue \"q\" waits for its provider: no table on the provider matches \"*\"";
    of_leaf.until_it_says(waits).await;
    of_leaf.until_it_says("the reason could not be recorded").await;
    busy.run("rollback").await;
    let error = |name: &str| {
        let (code, text) = status(&tree, "root", &["--json"]);
        let found: Value = serde_json::from_str(&text).unwrap();
        (code, node(&found, name)["error"].clone())
    };
    eventually(
        "status shows why the leaf waits",
        async || matches!(error("leaf"), (Some(1), Value::String(why)) if why.contains(waits)),
    )
    .await;
    // A table that is there, and not replayed yet, is waited for, too: a branch makes tables before it has them.
    branch.run("create table t (id int primary key, n int)").await;
    of_leaf.until_it_says("does not replay table public.t").await;
    assert_eq!(
        of_leaf.stderr().matches("no table on the provider matches").count(),
        1,
        "{}",
        of_leaf.stderr()
    );
    branch.run("drop table t").await;
    let of_branch = tree.replay("branch").spawn();
    write(&root, 100).await;
    // The leaf has nothing to copy from before that.
    for name in ["branch", "leaf"] {
        tree.until_ok(name).await;
    }
    tree.assert_same_rows(&leaf, &root).await;
    eventually("nothing is wrong any more", async || {
        write(&root, 200).await;
        root.run("delete from t where id > 10000").await;
        error("leaf").1 == json!(null)
    })
    .await;
    let said = of_leaf.stop().await.stderr;
    assert_eq!(said.matches("no table on the provider matches").count(), 1, "{said}");
    of_branch.stop().await;
    // At the root nobody else makes tables: a pattern that means none is wrong.
    let second = tree.add("leaf", "second", "root").await;
    let nowhere = || tree.replay("second").args(&["--table", "nowhere.*"]);
    let refused = nowhere().output().await;
    assert_eq!(refused.code(), Some(1), "{}", refused.stderr);
    // Nobody says later why it ended, so that may take a while to write down.
    second
        .run("update pgcascade_replay.position set error = null; begin; select from pgcascade_replay.position for update")
        .await;
    let refused = nowhere().spawn();
    let waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
                    and query like '%set error%' and clock_timestamp() - query_start > interval '4 seconds'";
    until(&tree.connect("second").await, waits, "1").await;
    second.run("rollback").await;
    assert_eq!(refused.wait().await.code(), Some(1));
    assert_eq!(
        second
            .text("select error like 'no table%' from pgcascade_replay.position")
            .await,
        "t"
    );
    drop((root, branch, leaf, second, busy));
    tree.drop(&["second", "leaf", "branch", "root"]).await;
}

/// What the provider has is less than what the root has, while the provider is behind.
#[tokio::test]
async fn it_waits_for_what_the_provider_has() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    tree.add("branch", "branch", "root").await;
    tree.catch_up("branch").await;
    let leaf = tree.add("leaf", "leaf", "branch").await;
    tree.catch_up("leaf").await;
    let of_provider = "wait leaf --for-tick-of provider --timeout";
    write(&root, 100).await;
    let late = tree.manage(1, "wait leaf --timeout 1").await;
    assert!(late.stderr.contains("did not reach tick"), "{}", late.stderr);
    tree.manage(0, &format!("{of_provider} 60")).await;

    tree.catch_up("branch").await;
    let late = tree.manage(1, &format!("{of_provider} 1")).await;
    assert!(late.stderr.contains("did not reach tick"), "{}", late.stderr);
    let replay = tree.replay("leaf").spawn();
    tree.manage(0, &format!("{of_provider} 60")).await;
    tree.assert_same_rows(&root, &leaf).await;
    replay.stop().await;
    drop((root, leaf));
    tree.drop(&["leaf", "branch", "root"]).await;
}
