//! Pausing nodes, moving them to other providers, dropping them; also when the command is killed in between.

use crate::cluster::eventually;
use crate::tree::{self, Tree, WORKERS_LOCK, until, write};

#[tokio::test]
async fn another_provider_while_it_streams() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let branch = tree.add("branch", "branch", "root").await;
    let leaf = tree.add("leaf", "leaf", "root").await;
    let second = tree.add("branch", "second", "root").await;
    for name in ["branch", "second", "leaf"] {
        tree.catch_up(name).await;
    }
    let replays: Vec<_> = ["branch", "second", "leaf"]
        .map(|name| tree.replay(name).spawn())
        .into();
    let mut from = 1;
    for (node, provider) in [
        ("leaf", "branch"),
        ("second", "branch"),
        ("leaf", "second"),
        ("second", "root"),
        ("leaf", "root"),
    ] {
        for _ in 0..5 {
            from += 100;
            write(&root, from).await;
        }
        let change = format!("change-provider {node} --provider {provider}");
        if provider == "second" {
            for point in ["node_subscribed", "node_changed", "node_seen"] {
                let killed = tree
                    .node_command(&change, &["--db", &tree.conninfo("root")])
                    .failpoints(&format!("{point}=kill"))
                    .output()
                    .await;
                assert_eq!(killed.code(), None, "{point}: {}", killed.stderr);
                from += 100;
                write(&root, from).await;
            }
        }
        tree.manage(0, &change).await;
        let subscribed = "select array_agg(subscriber_node order by subscriber_node) from pgq_node.subscriber_info where subscriber_node = '";
        for (name, db) in [("root", &root), ("branch", &branch), ("second", &second)] {
            let wanted = if name == provider {
                format!("{{{node}}}")
            } else {
                "<null>".to_owned()
            };
            assert_eq!(
                db.text(&format!("{subscribed}{node}'")).await,
                wanted,
                "{change}: {name}"
            );
        }
    }
    write(&root, from + 100).await;
    for (name, db) in [("branch", &branch), ("second", &second), ("leaf", &leaf)] {
        tree.wait(name).await;
        tree.assert_same_rows(&root, db).await;
    }
    tree.assert_same_queue(&second, &root).await;
    for replay in replays {
        replay.stop().await;
    }
    let below = tree.manage(2, "change-provider branch --provider leaf").await;
    assert!(
        below.stderr.contains("is a leaf, which has no queue"),
        "{}",
        below.stderr
    );
    tree.drop(&["leaf", "second", "branch", "root"]).await;
}

/// The provider dies in the middle of a copy: another one can be given, and the copy starts over from that. Not while it answers.
#[tokio::test]
async fn another_provider_in_the_middle_of_a_copy() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    write(&root, 1).await;
    tree.add("branch", "branch", "root").await;
    tree.catch_up("branch").await;
    let leaf = tree.add("leaf", "leaf", "branch").await;
    let killed = tree.replay("leaf").failpoints("in_copy=kill").output().await;
    assert_eq!(killed.code(), None, "{}", killed.stderr);
    let change = "change-provider leaf --provider root";
    let refused = tree.manage(1, change).await;
    assert!(
        refused.stderr.contains("is copying tables from its provider"),
        "{}",
        refused.stderr
    );
    // Killed and started, it goes on where it was.
    let again = tree.replay("leaf").failpoints("in_copy=kill").output().await;
    assert!(!again.stderr.contains("starts over"), "{}", again.stderr);
    tree.remove("branch").await;
    let changed = tree.manage(0, change).await;
    assert!(changed.stderr.contains("are copied anew"), "{}", changed.stderr);
    write(&root, 100).await;
    let copied = tree.catch_up("leaf").await;
    assert!(
        copied
            .stderr
            .contains("the copy was begun from node \"branch\", and starts over from node \"root\""),
        "{}",
        copied.stderr
    );
    tree.assert_same_rows(&root, &leaf).await;
    tree.manage(0, "drop branch --dead").await;
    drop((root, leaf));
    tree.drop(&["leaf", "root"]).await;
}

#[tokio::test]
async fn paused_nodes_stand_still() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let branch = tree.add("branch", "branch", "root").await;
    let leaf = tree.add("leaf", "leaf", "root").await;
    let journal = "select count(*) from journal where uid < 0";
    for (name, db, from) in [("branch", &branch, 100), ("leaf", &leaf, 200)] {
        tree.catch_up(name).await;
        let start = db.text(journal).await.parse::<i32>().unwrap();
        let replay = tree.replay(name).spawn();
        replay.until_it_says("streaming").await;
        tree.manage(0, &format!("pause {name}")).await;
        let position = db.text("select tick from pgcascade_replay.position").await;
        write(&root, from).await;
        let waited = tree.manage(1, &format!("wait {name} --timeout 1")).await;
        assert!(waited.stderr.contains("did not reach tick"), "{}", waited.stderr);
        assert_eq!(db.text("select tick from pgcascade_replay.position").await, position);
        tree.manage(0, &format!("resume {name}")).await;
        tree.wait(name).await;
        assert_eq!(db.text(journal).await, (start + 1).to_string());
        replay.stop().await;
        // With nobody there to answer.
        tree.manage(0, &format!("pause {name}")).await;
        tree.manage(0, &format!("resume {name}")).await;
    }
    // As Londiste's administrator does it.
    let replay = tree.replay("branch").spawn();
    replay.until_it_says("streaming").await;
    branch
        .run("select pgq_node.set_consumer_paused('q', 'branch_worker', true)")
        .await;
    until(
        &branch,
        "select worker_paused and worker_uptodate from pgq_node.get_node_info('q')",
        "t",
    )
    .await;
    branch
        .run("select pgq_node.set_consumer_paused('q', 'branch_worker', false)")
        .await;
    until(
        &branch,
        "select not worker_paused and worker_uptodate from pgq_node.get_node_info('q')",
        "t",
    )
    .await;
    tree.wait("branch").await;
    replay.stop().await;
    tree.drop(&["leaf", "branch", "root"]).await;
}

#[tokio::test]
async fn dropped_nodes_leave_nothing() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let branch = tree.add("branch", "branch", "root").await;
    tree.catch_up("branch").await;
    let leaf = tree.add("leaf", "leaf", "branch").await;
    tree.catch_up("leaf").await;
    let refused = tree.manage(1, "drop branch").await;
    assert!(
        refused.stderr.contains("others read from it: leaf"),
        "{}",
        refused.stderr
    );
    let replay = tree.replay("leaf").spawn();
    replay.until_it_says("streaming").await;
    let refused = tree.manage(1, "drop leaf").await;
    assert!(refused.stderr.contains("is being replayed"), "{}", refused.stderr);
    let key = leaf.text(WORKERS_LOCK).await;
    replay.stop().await;
    // Who has ended a moment ago may have a session yet.
    let ended = tree.connect("leaf").await;
    ended.run(&format!("select pg_advisory_lock({key})")).await;
    let look_again = tree
        .cluster("leaf")
        .file(&format!("look-again-{}", tree.database_name("leaf")));
    let dropping = tree
        .node_command("drop leaf", &["--db", &tree.conninfo("leaf")])
        .failpoints(&format!("lock_awaited=pause:{look_again};node_left=kill"))
        .spawn();
    dropping.until_it_says("lock_awaited waits").await;
    ended.run(&format!("select pg_advisory_unlock({key})")).await;
    std::fs::write(look_again, "").unwrap();
    let killed = dropping.wait().await;
    assert_eq!(killed.code(), None, "{}", killed.stderr);

    for point in ["node_left", "node_forgotten"] {
        let killed = tree
            .node_command("drop leaf", &["--db", &tree.conninfo("leaf")])
            .failpoints(&format!("{point}=kill"))
            .output()
            .await;
        assert_eq!(killed.code(), None, "{}", killed.stderr);
    }
    tree.node(0, "drop leaf", &["--db", &tree.conninfo("leaf")]).await;
    assert_eq!(
        leaf.text(
            "select (select count(*) from pgcascade_replay.node), (select count(*) from pgcascade_replay.position)"
        )
        .await,
        "0|0"
    );
    write(&root, 1).await;
    tree.catch_up("branch").await;
    // The root told the branch.
    assert_eq!(
        branch
            .text("select string_agg(node_name, ',' order by node_name) from pgq_node.node_location")
            .await,
        "branch,root"
    );
    tree.manage(0, "drop branch").await;
    assert_eq!(
        root.text("select string_agg(node_name, ',') from pgq_node.node_location")
            .await,
        "root"
    );
    assert_eq!(
        root.text("select count(*) from pgq.get_consumer_info('q') where consumer_name <> '.global_watermark'")
            .await,
        "0"
    );
    // An ordinary table again.
    branch.run("insert into t values (-5, 0)").await;
    tree.drop(&["leaf", "branch", "root"]).await;
}

/// By hand, as the two steps of PgQ's own: nothing else writes meanwhile, and both replays run.
#[tokio::test]
async fn the_root_and_a_branch_change_places() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let branch = tree.add("branch", "branch", "root").await;
    tree.catch_up("branch").await;
    let leaf = tree.add("leaf", "leaf", "branch").await;
    tree.catch_up("leaf").await;
    let replays: Vec<_> = ["root", "branch", "leaf"].map(|name| tree.replay(name).spawn()).into();
    write(&root, 1).await;
    for step in ["1, null", "2, null"] {
        root.run(&format!("select pgq_node.demote_root('q', {step})")).await;
    }
    let last = root.text("select max(tick_id) from pgq.tick").await;
    until(
        &branch,
        &format!("select worker_last_tick = {last} from pgq_node.get_node_info('q')"),
        "t",
    )
    .await;
    tree.manage(0, "pause branch").await;
    branch.run("select pgq_node.promote_branch('q')").await;
    branch
        .run(&format!(
            "select pgq_node.register_subscriber('q', 'root', 'root_worker', {last})"
        ))
        .await;
    root.run("select pgq_node.unregister_subscriber('q', 'branch'); select pgq_node.demote_root('q', 3, 'branch')")
        .await;
    tree.manage(0, "resume branch").await;
    write(&branch, 2000).await;
    for (name, db) in [("root", &root), ("leaf", &leaf)] {
        tree.wait(name).await;
        tree.assert_same_rows(&branch, db).await;
    }
    tree.assert_same_queue(&root, &branch).await;
    for replay in replays {
        replay.stop().await;
    }
    tree.drop(&["leaf", "branch", "root"]).await;
}

/// Every node keeps what any node still needs, so that whoever was away can be fed by any of them. What nobody needs goes.
#[tokio::test]
async fn who_was_away_is_fed_by_a_node_that_it_never_read_from() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let [one, two] = tree.below_root([("branch", "one"), ("branch", "two")]).await;
    let leaf = tree.add("leaf", "leaf", "one").await;
    let mut replays = tree.replays(&["root", "one", "two"]);
    let away = tree.replay("leaf").spawn();
    let states = "select string_agg(state, ' ') from pgcascade_replay.table_state";
    until(&leaf, states, "ok ok").await;
    away.stop().await;
    for from in [100, 200, 300] {
        write(&root, from).await;
    }
    for node in [&root, &one, &two] {
        tree::rotate(node).await;
    }
    for name in ["one", "two"] {
        tree.wait(name).await;
    }
    tree.manage(0, "change-provider leaf --provider two").await;
    tree.catch_up("leaf").await;
    tree.assert_same_rows(&root, &leaf).await;

    replays.push(tree.replay("leaf").spawn());
    let events = "select count(*) from pgq.event_1 where ev_data like 'uid=300&%'";
    for node in [&root, &one, &two] {
        eventually("the events are gone, as nobody needs them", async || {
            // An idle cascade is not told what only the telling moved.
            root.run("update t set n = n + 1 where id = 1").await;
            node.run("select pgq.maint_rotate_tables_step1('q')").await;
            node.run("select pgq.maint_rotate_tables_step2()").await;
            node.text(events).await == "0"
        })
        .await;
    }
    tree::stop(replays).await;
    drop((root, one, two, leaf));
    tree.drop(&["leaf", "two", "one", "root"]).await;
}
