//! What a branch is: the root's queue, tick by tick, and its tables, in one transaction.

use crate::cluster::{Replay, eventually};
use crate::tree::{Tree, until, write};

#[tokio::test]
async fn a_cascade_of_branches_and_a_leaf() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let first = tree.add("branch", "first", "root").await;
    let second = tree.add("branch", "second", "first").await;
    let leaf = tree.add("leaf", "leaf", "first").await;
    write(&root, 1).await;
    tree.catch_up("first").await;

    // All at once, while the root is written to.
    let replays: Vec<_> = ["root", "first", "second", "leaf"]
        .map(|name| tree.replay(name).spawn())
        .into();
    for i in 1..15 {
        write(&root, 100 * i).await;
    }
    root.run("begin; truncate journal; insert into journal values (0, 'new'); commit")
        .await;
    root.run("select pgq.insert_event('q', 'other', 'ü &=', 'x1', null, '', 'x4')")
        .await;
    for name in ["second", "leaf"] {
        tree.wait(name).await;
    }
    for node in [&first, &second, &leaf] {
        tree.assert_same_rows(&root, node).await;
    }
    for node in [&first, &second] {
        tree.assert_same_queue(node, &root).await;
    }
    // The root of another cascade, whose queue has the same name.
    tree.database("other", true).await;
    tree.node(0, "create-root root", &["--db", &tree.conninfo("other")])
        .await;
    for (code, provider, subscriber) in [(0, "root", "second"), (0, "first", "leaf"), (1, "other", "leaf")] {
        let (provider_at, subscriber_at) = (tree.conninfo(provider), tree.conninfo(subscriber));
        let ends = ["compare", "--provider", &provider_at, "--subscriber", &subscriber_at];
        let compared = Replay::command(&ends).args(&["--queue", "q"]).output().await;
        assert_eq!(
            compared.code(),
            Some(code),
            "{provider} {subscriber}: {}",
            compared.stderr
        );
        assert!(code == 0 || compared.stderr.contains("tick"), "{}", compared.stderr);
    }

    // What each needs is known above, and what all need is known everywhere.
    write(&root, 5000).await;
    let last = root
        .text("select max(tick_id) from pgq.tick join pgq.queue on queue_id = tick_queue where queue_name = 'q'")
        .await;
    for node in [&root, &first, &second] {
        until(
            node,
            &format!("select global_watermark >= {last} from pgq_node.get_node_info('q')"),
            "t",
        )
        .await;
    }
    // The tables of a branch are not for writing, the root's triggers are there and wait.
    let refused = first.try_text("insert into t values (-1, 0)").await.unwrap_err();
    assert!(
        refused
            .as_db_error()
            .is_some_and(|error| error.message().contains("Insert into queue disallowed")),
        "{refused:?}"
    );
    for replay in replays {
        replay.stop().await;
    }
    assert_eq!(
        leaf.text("select count(*) from pg_extension where extname = 'pgcascade'")
            .await,
        "0"
    );
    tree.drop(&["other", "leaf", "second", "first", "root"]).await;
}

#[tokio::test]
async fn killed_at_each_failpoint_of_a_batch() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let branch = tree.add("branch", "branch", "root").await;
    tree.catch_up("branch").await;
    let at =
        "select array[(select tick from pgcascade_replay.position), (select last_tick_id from pgq_node.local_state),
                           (select max(tick_id) from pgq.tick)]";
    for (i, point) in ["after_read", "before_commit", "after_commit"].into_iter().enumerate() {
        write(&root, 10_000 * (i32::try_from(i).unwrap() + 1)).await;
        let before = branch.text(at).await;
        let killed = tree
            .replay("branch")
            .arg("--until-caught-up")
            .failpoints(&format!("{point}=kill"))
            .output()
            .await;
        assert_eq!(killed.code(), None, "{point} was not reached: {}", killed.stderr);
        let after = branch.text(at).await;
        assert_eq!(before == after, point != "after_commit", "{point}: {before} {after}");
        let ticks: Vec<&str> = after.trim_matches(['{', '}']).split(',').collect();
        assert!(ticks.iter().all(|tick| *tick == ticks[0]), "{after}");
        tree.catch_up("branch").await;
        tree.assert_same_rows(&root, &branch).await;
        tree.assert_same_queue(&branch, &root).await;
    }
    tree.drop(&["branch", "root"]).await;
}

#[tokio::test]
async fn the_next_tick_is_read_while_one_is_applied() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let branch = tree.add("branch", "branch", "root").await;
    tree.catch_up("branch").await;
    until(
        &branch,
        "select string_agg(distinct state, ',') from pgcascade_replay.table_state",
        "ok",
    )
    .await;
    for i in 0..10 {
        write(&root, 1_000 * i).await;
        root.run("select pgq.ticker('q')").await;
    }
    let [first, second] = ["first", "second"].map(|name| tree.cluster("branch").file(&tree.database_name(name)));
    let running = tree
        .replay("branch")
        .args(&["--until-caught-up", "-v"])
        .failpoints(&format!("after_commit=pause:{first};before_commit=pause:2:{second}"))
        .spawn();
    running.until_it_says("the session that reads ahead is there").await;
    running.until_it_says("after_commit waits").await;
    std::fs::write(&first, "").unwrap();
    running.until_it_says("before_commit waits").await;
    let reads = "select count(*) from pg_stat_activity where datname = current_database()
                    and application_name like 'pgcascade ahead %' and query like 'copy (select ev_id, ev_txid%'";
    eventually("the next tick is read", async || root.text(reads).await == "1").await;
    std::fs::write(&second, "").unwrap();
    let output = running.wait().await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    tree.assert_same_rows(&root, &branch).await;
    tree.assert_same_queue(&branch, &root).await;
    tree.drop(&["branch", "root"]).await;
}

/// Packs are handed on as they are to a branch that packs, and event by event to one that does not.
#[tokio::test]
async fn packs_are_handed_on() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let first = tree.add("branch", "first", "root").await;
    let second = tree.add("branch", "second", "first").await;
    second.run("select pgcascade.pack_events('q', false)").await;
    let packs = "select coalesce(sum(-ev_retry), 0) from pgq.event_template where ev_retry < 0";
    for name in ["first", "second"] {
        tree.catch_up(name).await;
    }
    let before = root.text(packs).await;
    root.run("insert into journal select i, 'packed' from generate_series(10001, 10300) i")
        .await;
    for name in ["first", "second"] {
        tree.catch_up(name).await;
    }
    for node in [&first, &second] {
        tree.assert_same_rows(&root, node).await;
        tree.assert_same_queue(node, &root).await;
    }
    let of = |text: String| text.parse::<u32>().unwrap();
    assert!(of(root.text(packs).await) >= of(before) + 300);
    assert!(of(first.text(packs).await) >= 300);
    assert_eq!(second.text(packs).await, "0");
    tree.drop(&["second", "first", "root"]).await;
}
