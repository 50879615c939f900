//! Commands that must not do anything, and say why; and those that may be typed again.

use crate::tree::Tree;

#[tokio::test]
async fn what_cannot_be_a_node_is_refused() {
    let tree = Tree::new().await;
    let plain = tree.database("plain", false).await;
    let other = tree.database("other", true).await;
    let (root_at, plain_at, other_at) = (tree.conninfo("root"), tree.conninfo("plain"), tree.conninfo("other"));
    let with_password = tree.with_password("other");
    let nowhere = "host=127.0.0.1 port=1 user=u dbname=d";
    for (code, command, more, wanted) in [
        (
            1,
            "create-branch b",
            ["--db", &*plain_at, "--provider", &*root_at],
            "does not have the extension",
        ),
        (
            2,
            "create-branch b",
            ["--db", &*with_password, "--provider", &*root_at],
            "--db holds a password",
        ),
        (
            1,
            "create-branch b",
            ["--db", &*other_at, "--provider", &*plain_at],
            "is no node of queue \"q\"",
        ),
        (
            1,
            "create-leaf root",
            ["--db", &*plain_at, "--provider", &*root_at],
            "has a node \"root\" already",
        ),
        (
            1,
            "create-branch b",
            ["--db", &*root_at, "--provider", &*root_at],
            "is a node of queue \"q\" already: root \"root\"",
        ),
        (
            1,
            "create-branch b",
            ["--db", &*other_at, "--provider", nowhere],
            "connect to the node",
        ),
        (
            2,
            "create-branch b",
            ["--db", &*other_at, "--location", &*plain_at],
            "--provider",
        ),
    ] {
        let output = tree.node(code, command, &more).await;
        assert!(output.stderr.contains(wanted), "{command}: {wanted}: {}", output.stderr);
        assert!(!output.stderr.contains("password=") || code == 2, "{}", output.stderr);
    }
    let elsewhere = tree
        .node(
            2,
            "create-branch b",
            &["--db", &other_at, "--provider", &root_at, "--location", &plain_at],
        )
        .await;
    assert!(
        elsewhere.stderr.contains("leads to another database"),
        "{}",
        elsewhere.stderr
    );
    let root = tree.connect("root").await;
    assert_eq!(
        root.text("select string_agg(node_name, ',') from pgq_node.node_location")
            .await,
        "root"
    );

    let unknown = tree.manage(2, "pause nobody").await;
    assert!(unknown.stderr.contains("has no node \"nobody\""), "{}", unknown.stderr);
    let not_one = tree.replay("plain").output().await;
    assert_eq!(not_one.code(), Some(2), "{}", not_one.stderr);
    assert!(
        not_one.stderr.contains("is no node of queue \"q\""),
        "{}",
        not_one.stderr
    );
    drop((plain, other, root));
    tree.drop(&["other", "plain", "root"]).await;
}

#[tokio::test]
async fn a_node_may_be_made_again() {
    let tree = Tree::new().await;
    let root_at = tree.conninfo("root");
    tree.node(0, "create-root root", &["--db", &root_at]).await;
    for (kind, name) in [("branch", "branch"), ("leaf", "leaf")] {
        let db = tree.database(name, kind == "branch").await;
        let (command, at) = (format!("create-{kind} {name}"), tree.conninfo(name));
        let arguments = ["--db", &*at, "--provider", &*root_at];
        for point in ["node_known", "node_subscribed"] {
            let killed = tree
                .node_command(&command, &arguments)
                .failpoints(&format!("{point}=kill"))
                .output()
                .await;
            assert_eq!(killed.code(), None, "{}", killed.stderr);
        }
        tree.node(0, &command, &arguments).await;
        let again = tree.node(0, &command, &arguments).await;
        assert!(again.stderr.contains("exists"), "{}", again.stderr);
        tree.catch_up(name).await;
        tree.assert_same_rows(&tree.connect("root").await, &db).await;
    }
    tree.drop(&["leaf", "branch", "root"]).await;
}
