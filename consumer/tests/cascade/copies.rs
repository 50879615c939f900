//! Copies of nodes: what they must not do as they are, and how they become nodes of their own.

use crate::tree::{Tree, until, write};

async fn adopt(tree: &Tree, code: i32, name: &str, copy: &str, more: &[&str]) -> String {
    let at = tree.conninfo(copy);
    let mut arguments = vec!["--db", &*at];
    arguments.extend_from_slice(more);
    tree.node(code, &format!("adopt {name}"), &arguments).await.stderr
}

const SUBSCRIBERS: &str =
    "select string_agg(subscriber_node, ',' order by subscriber_node) from pgq_node.subscriber_info";

/// A dump of a branch that others read from, loaded while all of it runs, and later while the branch is away.
#[tokio::test]
async fn the_copy_of_a_branch_becomes_a_branch() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let branch = tree.add("branch", "branch", "root").await;
    tree.catch_up("branch").await;
    let leaf = tree.add("leaf", "leaf", "branch").await;
    tree.catch_up("leaf").await;
    branch.run("select pgq.register_consumer('q', 'plain')").await;
    let replays: Vec<_> = ["branch", "leaf"].map(|name| tree.replay(name).spawn()).into();
    write(&root, 100).await;
    tree.wait("branch").await;
    tree.copy("branch", "second").await;
    write(&root, 200).await;

    // However long the one at the node's address takes to say that it is the node.
    let answer = tree.cluster("second").file(&tree.database_name("answer"));
    let asking = tree
        .replay("second")
        .failpoints(&format!("home_asked=pause:{answer}"))
        .spawn();
    asking.until_it_says("home_asked waits").await;
    let asked = root.text("select clock_timestamp()").await;
    let long = format!("select clock_timestamp() > '{asked}'::timestamptz + interval '6 seconds'");
    until(&root, &long, "t").await;
    std::fs::write(answer, "").unwrap();
    let refused = asking.wait().await;
    assert_eq!(refused.code(), Some(1), "{}", refused.stderr);
    assert!(
        refused
            .stderr
            .contains("the database is a copy of node \"branch\" of queue \"q\""),
        "{}",
        refused.stderr
    );
    for (code, name, copy, wanted) in [
        (1, "leaf", "second", "has a node \"leaf\" already"),
        (
            2,
            "other",
            "branch",
            "the database is node \"branch\" of queue \"q\" itself",
        ),
        (2, "other", "root", "--db leads to node \"root\" of queue \"q\" itself"),
    ] {
        let said = adopt(&tree, code, name, copy, &[]).await;
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    assert_eq!(root.text(SUBSCRIBERS).await, "branch");
    for (point, from) in [("node_known", 300), ("node_subscribed", 400), ("node_adopted", 500)] {
        let killed = tree
            .node_command("adopt second", &["--db", &tree.conninfo("second")])
            .failpoints(&format!("{point}=kill"))
            .output()
            .await;
        assert_eq!(killed.code(), None, "{point}: {}", killed.stderr);
        write(&root, from).await;
        if point != "node_adopted" {
            let refused = tree.replay("second").output().await;
            assert_eq!(refused.code(), Some(1), "{point}: {}", refused.stderr);
        }
    }
    let again = adopt(&tree, 0, "second", "second", &[]).await;
    assert!(again.contains("this branch exists"), "{again}");
    let second = tree.connect("second").await;
    assert_eq!(second.text("select count(*) from pgq_node.subscriber_info").await, "0");
    assert_eq!(root.text(SUBSCRIBERS).await, "branch,second");
    // Of the original's consumers those are left that are no node's.
    assert_eq!(
        second
            .text("select string_agg(consumer_name, ',' order by consumer_name) from pgq.get_consumer_info('q')")
            .await,
        ".global_watermark,plain"
    );
    let streaming = tree.replay("second").spawn();
    write(&root, 600).await;
    for name in ["branch", "second", "leaf"] {
        tree.wait(name).await;
    }
    for node in [&branch, &second, &leaf] {
        tree.assert_same_rows(&root, node).await;
    }
    tree.assert_same_queue(&second, &root).await;
    streaming.stop().await;
    // Nobody else lost their place.
    for replay in replays {
        assert!(!replay.stop().await.stderr.contains("lost position"));
    }
    drop((root, branch, leaf, second));
    tree.drop(&["leaf", "second", "branch", "root"]).await;
}

/// The original is gone, and its copy takes its place with what the cascade has kept for it.
#[tokio::test]
async fn a_copy_replaces_what_was_lost() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    for (kind, name, from) in [("branch", "branch", 0), ("leaf", "leaf", 1000)] {
        tree.add(kind, name, "root").await;
        tree.catch_up(name).await;
        write(&root, from + 100).await;
        tree.catch_up(name).await;
        let copy = format!("{name}_copy");
        tree.copy(name, &copy).await;
        write(&root, from + 200).await;
        tree.remove(name).await;
        let refused = tree.replay(&copy).output().await;
        assert_eq!(refused.code(), Some(1), "{}", refused.stderr);
        assert!(
            refused.stderr.contains("was replayed in another database"),
            "{}",
            refused.stderr
        );
        let refused = adopt(&tree, 1, "new", &copy, &[]).await;
        assert!(
            refused.contains(&format!("consumer node drop {name} --dead")),
            "{refused}"
        );
        tree.manage(0, &format!("drop {name} --dead")).await;
        // With a name of its own, or with the one that is free now.
        let new = if kind == "branch" { "new" } else { name };
        for point in ["node_subscribed", "node_adopted"] {
            let killed = tree
                .node_command(
                    &format!("adopt {new}"),
                    &["--db", &tree.conninfo(&copy), "--worker", "w"],
                )
                .failpoints(&format!("{point}=kill"))
                .output()
                .await;
            assert_eq!(killed.code(), None, "{point}: {}", killed.stderr);
        }
        let again = adopt(&tree, 0, new, &copy, &["--worker", "w"]).await;
        assert!(again.contains("exists"), "{again}");
        tree.catch_up(&copy).await;
        let db = tree.connect(&copy).await;
        tree.assert_same_rows(&root, &db).await;
        assert_eq!(root.text(SUBSCRIBERS).await, new);
        if kind == "branch" {
            tree.assert_same_queue(&db, &root).await;
        }
        tree.manage(0, &format!("drop {new}")).await;
    }
    drop(root);
    tree.drop(&["leaf_copy", "branch_copy", "root"]).await;
}

/// What the cascade does not have any more, or never had, no copy can go on from.
#[tokio::test]
async fn a_copy_without_a_common_tick_is_refused() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    tree.add("branch", "branch", "root").await;
    tree.catch_up("branch").await;
    tree.copy("branch", "second").await;
    write(&root, 100).await;
    tree.catch_up("branch").await;
    let second = tree.connect("second").await;
    let tick = second.text("select tick from pgcascade_replay.position").await;
    second
        .run(&format!(
            "update pgq.tick set tick_time = tick_time + interval '1 second' where tick_id = {tick}"
        ))
        .await;
    let other = adopt(&tree, 1, "second", "second", &[]).await;
    assert!(other.contains("do not have the same ticks"), "{other}");
    second
        .run(&format!(
            "update pgq.tick set tick_time = tick_time - interval '1 second' where tick_id = {tick}"
        ))
        .await;
    // As rotation does once nobody needs it.
    root.run(&format!(
        "select pgq.register_consumer_at('q', c, (select max(tick_id) from pgq.tick))
           from unnest(array['.global_watermark', '.branch.watermark']) c;
         delete from pgq.tick where tick_id <= {tick}"
    ))
    .await;
    let gone = adopt(&tree, 1, "second", "second", &[]).await;
    assert!(gone.contains("does not have any more"), "{gone}");
    assert_eq!(root.text(SUBSCRIBERS).await, "branch");
    assert_eq!(
        root.text("select count(*) from pgq_node.node_location where node_name = 'second'")
            .await,
        "0"
    );
    drop((root, second));
    tree.drop(&["second", "branch", "root"]).await;
}
