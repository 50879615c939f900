//! `consumer table` with the configuration of a node's replay: the set of tables of a branch and of a leaf.

use crate::cluster::{Output, Replay};
use crate::tree::{Tree, until, write};

async fn table(tree: &Tree, name: &str, code: i32, arguments: &[&str]) -> Output {
    let output = tree.table(name, arguments).output().await;
    assert_eq!(output.code(), Some(code), "{name} {arguments:?}: {}", output.stderr);
    output
}

#[tokio::test]
async fn tables_are_added_to_nodes_while_they_run() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let branch = tree.add("branch", "branch", "root").await;
    tree.catch_up("branch").await;
    let leaf = tree.add("leaf", "leaf", "branch").await;
    tree.catch_up("leaf").await;
    let replays: Vec<_> = ["branch", "leaf"].map(|name| tree.replay(name).spawn()).into();
    for replay in &replays {
        replay.until_it_says("streaming").await;
    }
    root.run("create table late (id int primary key, v text, w text); insert into late select i, 'v', 'w' from generate_series(1, 50) i")
        .await;

    // A branch may be the root some day; and what the root's triggers capture is for all nodes.
    for (arguments, text) in [
        (&["--except", "w"][..], "cannot be replayed in part to node \"branch\""),
        (&["--where", "id > 7"], "cannot be replayed in part to node \"branch\""),
        (
            &["--rename", "other.late"],
            "cannot be replayed under another name to node \"branch\"",
        ),
    ] {
        let refused = table(&tree, "branch", 1, &[&["add", "late", "--create"], arguments].concat()).await;
        assert!(refused.stderr.contains(text), "{arguments:?}: {}", refused.stderr);
    }
    let is_root = table(&tree, "root", 2, &["list"]).await;
    assert!(
        is_root.stderr.contains("is the root, which replays no tables"),
        "{}",
        is_root.stderr
    );
    let root_at = tree.conninfo("root");
    let explicit = [
        "add",
        "late",
        "--create",
        "--provider",
        &root_at,
        "--consumer",
        "leaf_worker",
    ];
    let named = table(&tree, "leaf", 2, &explicit).await;
    assert!(
        named.stderr.contains("the subscriber is a node of queue \"q\""),
        "{}",
        named.stderr
    );

    table(&tree, "branch", 0, &["add", "late", "--create"]).await;
    until(&branch, "select count(*) from late", "50").await;
    let filtered = table(&tree, "leaf", 1, &["add", "late", "--create", "--where", "id > 7"]).await;
    assert!(
        filtered.stderr.contains("cannot be replayed with --where"),
        "{}",
        filtered.stderr
    );
    // The copy is made from the branch, which has to be done with its own; what makes it so is a tick.
    write(&root, 1).await;
    until(
        &branch,
        "select state from pgcascade_replay.table_state where provider_table = 'late'",
        "ok",
    )
    .await;
    table(
        &tree,
        "leaf",
        0,
        &["add", "late", "--create", "--only", "id,v", "--rename", "other.late"],
    )
    .await;
    root.run("update late set v = 'new', w = 'new' where id < 20; insert into late values (100, 'more', 'w')")
        .await;
    tree.wait("branch").await;
    tree.wait("leaf").await;
    let rows = "string_agg((id, v)::text, ';' order by id)";
    let there = root.text(&format!("select {rows} from late")).await;
    assert_eq!(leaf.text(&format!("select {rows} from other.late")).await, there);
    assert_eq!(
        leaf.text(
            "select string_agg(attname, ',') from pg_attribute where attrelid = 'other.late'::regclass and attnum > 0"
        )
        .await,
        "id,v"
    );
    let whole = "select string_agg((t)::text, ';' order by id) from late t";
    assert_eq!(branch.text(whole).await, root.text(whole).await);

    // Of a node nothing is dropped but its own.
    table(&tree, "leaf", 0, &["remove", "late"]).await;
    let triggers = "select count(*), min(tgnargs), max(tgnargs) from pg_trigger where tgrelid = 'late'::regclass";
    for db in [&root, &branch] {
        assert_eq!(db.text(triggers).await, "2|1|1");
    }
    for replay in replays {
        replay.stop().await;
    }
    tree.drop(&["leaf", "branch", "root"]).await;
}

/// `consumer execute`: once in each node, at its place, also where the node was away.
#[tokio::test]
async fn files_are_executed_in_all_nodes() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let branch = tree.add("branch", "branch", "root").await;
    let leaf = tree.add("leaf", "leaf", "branch").await;
    for name in ["branch", "leaf"] {
        tree.catch_up(name).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("add.sql");
    let file = file.to_str().unwrap();
    std::fs::write(
        file,
        "alter table t add column m int not null default 0; update t set m = m + id",
    )
    .unwrap();
    let execute = async |name: &str, code: i32| {
        let at = tree.conninfo(name);
        let output = Replay::command(&["execute", "--queue", "q", "--provider", &at, file])
            .output()
            .await;
        assert_eq!(output.code(), Some(code), "{name}: {}", output.stderr);
        output.stderr
    };
    let refused = execute("branch", 1).await;
    assert!(refused.contains("gets queue"), "{refused}");
    write(&root, 1).await;
    execute("root", 0).await;
    root.run("update t set m = m * 2 where id < 20").await;
    write(&root, 100).await;
    let replays: Vec<_> = ["branch", "leaf"]
        .map(|name| tree.replay(name).args(&["--execute-as", "postgres"]).spawn())
        .into();
    for name in ["branch", "leaf"] {
        tree.wait(name).await;
    }
    for node in [&branch, &leaf] {
        tree.assert_same_rows(&root, node).await;
        assert_eq!(
            node.text("select file from pgcascade_replay.executed where queue = 'q'")
                .await,
            "add.sql"
        );
    }
    assert_eq!(
        leaf.text("select m from t where id in (7, 21) order by id").await,
        "14\n21"
    );
    tree.assert_same_queue(&branch, &root).await;
    for replay in replays {
        replay.stop().await;
    }
    tree.drop(&["leaf", "branch", "root"]).await;
}

/// A table that breaks on a branch and on a leaf: the branch hands on its events nevertheless.
#[tokio::test]
async fn a_table_of_a_node_that_breaks() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let branch = tree.add("branch", "branch", "root").await;
    tree.catch_up("branch").await;
    let leaf = tree.add("leaf", "leaf", "branch").await;
    tree.catch_up("leaf").await;
    for node in [&branch, &leaf] {
        node.run("set session_replication_role = replica; delete from t where id = 7; reset session_replication_role")
            .await;
    }
    write(&root, 1).await;
    let states = "select string_agg(provider_table || ' ' || replace(state, 'catching-up', 'ok'), ', ' order by 1)
                    from pgcascade_replay.table_state";
    let failing = "select error like '%row (id)=(7) of table public.t%' and next_attempt is null
                     from pgcascade_replay.position";
    let copied = "select copied_rows is not null and state <> 'in-copy' from pgcascade_replay.table_state
                   where provider_table = 't'";
    let journal = "select count(*) from journal";
    for (name, db) in [("branch", &branch), ("leaf", &leaf)] {
        let stopped = tree.replay(name).arg("--until-caught-up").output().await;
        assert_eq!(stopped.code(), Some(1), "{name}: {}", stopped.stderr);
        assert_eq!(db.text(failing).await, "t", "{name}");
        let parked = tree
            .replay(name)
            .args(&["--on-error", "park", "--until-caught-up"])
            .output()
            .await;
        assert_eq!(parked.code(), Some(0), "{name}: {}", parked.stderr);
        assert_eq!(db.text(states).await, "journal ok, t broken", "{name}");
        assert_eq!(db.text(failing).await, "<null>", "{name}");
        assert_eq!(db.text(journal).await, root.text(journal).await, "{name}");
    }
    tree.assert_same_queue(&branch, &root).await;
    // It cannot become the root like that.
    let takeover = Replay::command(&["takeover", "branch", "--queue", "q", "--db", &tree.conninfo("root")]);
    let refused = takeover.output().await;
    assert_eq!(refused.code(), Some(1), "{}", refused.stderr);
    for text in ["table public.t is broken on ", "consumer table resync"] {
        assert!(refused.stderr.contains(text), "{text}: {}", refused.stderr);
    }

    let replays: Vec<_> = ["branch", "leaf"].map(|name| tree.replay(name).spawn()).into();
    for (name, db) in [("branch", &branch), ("leaf", &leaf)] {
        table(&tree, name, 0, &["resync", "t"]).await;
        until(db, copied, "t").await;
        // What makes it ok is a tick.
        write(&root, if name == "branch" { 100 } else { 200 }).await;
        until(
            db,
            "select state from pgcascade_replay.table_state where provider_table = 't'",
            "ok",
        )
        .await;
        tree.wait(name).await;
        tree.assert_same_rows(&root, db).await;
    }
    for replay in replays {
        replay.stop().await;
    }
    tree.drop(&["leaf", "branch", "root"]).await;
}
