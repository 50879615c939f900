//! Where nodes are: for programs, for administrators, from a service file, from a query.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::cluster::{Db, Replay, eventually};
use crate::status::{node, status};
use crate::tree::{Tree, until, write};

/// Lets another role in, and returns how it reaches a node.
async fn way(tree: &Tree, db: &Db, role: &str, name: &str) -> String {
    let file = tree.cluster(name).file(&format!("{role}.pgpass"));
    std::fs::write(&file, format!("*:*:*:{role}:secret\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    db.run(&format!("create role {role} superuser login password 'secret'"))
        .await;
    let port = tree.cluster(name).port();
    let database = tree.database_name(name);
    format!("host=127.0.0.1 port={port} user={role} dbname={database} passfile={file}")
}

/// Who is connected to a database as a node's replay.
async fn replaying_as(db: &Db, role: &str) {
    let query = format!(
        "select count(*) > 0 and bool_and(usename = '{role}') from pg_stat_activity
          where datname = current_database() and application_name like 'pgcascade replay q leaf_worker'"
    );
    until(db, &query, "t").await;
}

const ADDRESSES: &str =
    "select string_agg(node_name || ': ' || location, ', ' order by node_name) from pgcascade.node_admin_location";

#[tokio::test]
async fn administrators_and_programs_have_ways_of_their_own() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let for_programs = way(&tree, &root, "a_program", "branch").await;
    let for_boss = way(&tree, &root, "a_boss", "branch").await;
    let branch = tree.database("branch", true).await;
    let (db, provider) = (tree.conninfo("branch"), tree.conninfo("root"));
    let create = async |code: i32, location: &str, admin: &str| {
        let more = [
            "--db",
            &*db,
            "--provider",
            &*provider,
            "--location",
            location,
            "--admin-location",
            admin,
        ];
        tree.node(code, "create-branch branch", &more).await.stderr
    };
    let said = create(2, &for_programs, &format!("{for_boss} password=hunter2")).await;
    assert!(
        said.contains("--admin-location holds a password") && said.contains(".pgpass"),
        "{said}"
    );
    assert!(!said.contains("hunter2"), "{said}");
    let said = create(2, &for_programs, &provider).await;
    assert!(said.contains("leads to another database than --db"), "{said}");
    create(0, &for_programs, &for_boss).await;
    tree.catch_up("branch").await;
    let leaf = tree.add("leaf", "leaf", "branch").await;
    let replays: Vec<_> = ["branch", "leaf"].map(|name| tree.replay(name).spawn()).into();
    tree.wait("leaf").await;
    let stored = format!("branch: {for_boss}");
    for db in [&root, &branch] {
        until(db, ADDRESSES, &stored).await;
    }
    let of_leaf = "select admin_location from pgcascade_replay.node_location where node = 'branch'";
    assert_eq!(leaf.text(of_leaf).await, for_boss);
    replaying_as(&branch, "a_program").await;

    // Each goes its own way.
    root.run("alter role a_program nologin").await;
    tree.manage(0, "wait branch").await;
    let (_, text) = status(&tree, "root", &["--json"]);
    let found: Value = serde_json::from_str(&text).unwrap();
    let shown = node(&found, "branch");
    assert_eq!(shown["reachable"], json!(true), "{text}");
    assert!(shown["location"].as_str().unwrap().contains("user=a_program"), "{text}");
    assert!(
        shown["admin_location"].as_str().unwrap().contains("user=a_boss"),
        "{text}"
    );
    let (_, text) = status(&tree, "root", &[]);
    assert!(text.contains("for administrators at host=127.0.0.1"), "{text}");
    root.run("alter role a_program login; alter role a_boss nologin").await;
    let refused = tree.manage(1, "wait branch").await;
    assert!(refused.stderr.contains("node \"branch\""), "{}", refused.stderr);
    write(&root, 100).await;
    until(&leaf, "select count(*) from journal where what = 'alone'", "1").await;
    root.run("alter role a_boss login").await;

    // Another one, told to all; nothing of it that leads elsewhere.
    let chief = way(&tree, &root, "a_chief", "branch").await;
    for (code, name, more, wanted) in [
        (2, "branch", vec![], "there is nothing to change"),
        (2, "nobody", vec!["--admin-location", &*chief], "has no node \"nobody\""),
        (
            2,
            "branch",
            vec!["--admin-location", &*provider],
            "leads to node \"root\"",
        ),
        (2, "branch", vec!["--location", &*provider], "leads to node \"root\""),
        (
            2,
            "branch",
            vec!["--location", "dbname=a password=hunter2"],
            "--location holds a password",
        ),
    ] {
        let mut arguments = vec!["--db", &*provider];
        arguments.extend(more);
        let said = tree
            .node(code, &format!("change-location {name}"), &arguments)
            .await
            .stderr;
        assert!(said.contains(wanted) && !said.contains("hunter2"), "{wanted}: {said}");
    }
    for n in 1..=3 {
        let killed = tree
            .node_command(
                "change-location branch",
                &["--db", &provider, "--admin-location", &chief],
            )
            .failpoints(&format!("node_told=kill:{n}"))
            .output()
            .await;
        assert_eq!(killed.code(), None, "{}", killed.stderr);
    }
    tree.node(
        0,
        "change-location branch",
        &["--db", &provider, "--admin-location", &chief],
    )
    .await;
    let stored = format!("branch: {chief}");
    for db in [&root, &branch] {
        until(db, ADDRESSES, &stored).await;
    }
    until(&leaf, of_leaf, &chief).await;
    // A new way for programs leaves that for administrators, as it still leads there. The leaf follows at once.
    let other = for_programs.replace("a_program", "a_chief");
    tree.node(0, "change-location branch", &["--db", &provider, "--location", &other])
        .await;
    replaying_as(&branch, "a_chief").await;
    until(&root, ADDRESSES, &stored).await;
    // A node learns it from the root's event alone.
    root.run(&format!(
        "select pgcascade.set_admin_location('q', 'branch', '{for_boss}')"
    ))
    .await;
    until(&leaf, of_leaf, &for_boss).await;
    tree.manage(0, "rename branch spare").await;
    until(&leaf, &of_leaf.replace("'branch'", "'spare'"), &for_boss).await;
    until(&branch, ADDRESSES, &format!("spare: {for_boss}")).await;
    tree.node(0, "change-location spare", &["--db", &provider, "--no-admin-location"])
        .await;
    until(
        &leaf,
        "select count(admin_location) from pgcascade_replay.node_location",
        "0",
    )
    .await;
    until(&branch, ADDRESSES, "<null>").await;
    for replay in replays {
        replay.stop().await;
    }
    root.run("drop role a_program; drop role a_boss; drop role a_chief")
        .await;
    drop((root, branch, leaf));
    tree.drop(&["leaf", "branch", "root"]).await;
}

/// The database is called something else: what reads from it, and what it reads from, finds it again.
#[tokio::test]
async fn a_node_moves() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    tree.add("branch", "branch", "root").await;
    tree.catch_up("branch").await;
    let leaf = tree.add("leaf", "leaf", "branch").await;
    tree.catch_up("leaf").await;
    tree.copy("branch", "copy").await;
    let at = tree.conninfo("root");
    let copy = tree.conninfo("copy");
    let refused = tree
        .node(1, "change-location branch", &["--db", &at, "--location", &copy])
        .await;
    assert!(
        refused.stderr.contains("one of the two is a copy"),
        "{}",
        refused.stderr
    );
    let (old, new) = (tree.database_name("branch"), tree.database_name("moved"));
    // Its ticker may be connected.
    eventually("the database is renamed", async || {
        root.run(&format!(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = '{old}'"
        ))
        .await;
        root.try_text(&format!("alter database {old} rename to {new}"))
            .await
            .is_ok()
    })
    .await;
    write(&root, 100).await;
    let lost = tree.replay("leaf").arg("--until-caught-up").output().await;
    assert_ne!(lost.code(), Some(0), "{}", lost.stderr);
    let moved = tree.conninfo("moved");
    for n in 1..=2 {
        let killed = tree
            .node_command("change-location branch", &["--db", &at, "--location", &moved])
            .failpoints(&format!("node_told=kill:{n}"))
            .output()
            .await;
        assert_eq!(killed.code(), None, "{}", killed.stderr);
    }
    tree.node(0, "change-location branch", &["--db", &at, "--location", &moved])
        .await;
    let replays: Vec<_> = ["moved", "leaf"].map(|name| tree.replay(name).spawn()).into();
    write(&root, 200).await;
    for name in ["branch", "leaf"] {
        tree.wait(name).await;
    }
    tree.assert_same_rows(&leaf, &root).await;
    for replay in replays {
        replay.stop().await;
    }
    drop((root, leaf));
    tree.drop(&["leaf", "moved", "copy", "root"]).await;
}

#[tokio::test]
async fn a_service_file_says_where_nodes_are() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let file = tree.cluster("root").file("services.conf");
    let section = |name: &str, at: &str| format!("[{name}]\n{}\n", at.replace(' ', "\n"));
    let known = section("top", &tree.conninfo("root")) + &section("spare", &tree.conninfo("branch"));
    std::fs::write(&file, &known).unwrap();
    let branch = tree.database("branch", true).await;
    let create = |file: &str| {
        tree.node_command(
            "create-branch branch",
            &["--db", "service=spare", "--provider", "service=top"],
        )
        .env("PGSERVICEFILE", file)
        .output()
    };
    let output = create(&file).await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    let leaf = tree.database("leaf", false).await;
    let at = tree.conninfo("leaf");
    let output = tree
        .node_command("create-leaf leaf", &["--db", &at, "--provider", "service=spare"])
        .env("PGSERVICEFILE", &file)
        .output()
        .await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    assert_eq!(
        leaf.text("select location from pgcascade_replay.node_location where node = 'branch'")
            .await,
        "service=spare"
    );
    let replay = |name: &str| tree.replay(name).env("PGSERVICEFILE", &file);
    let caught_up = replay("branch").arg("--until-caught-up").output().await;
    assert_eq!(caught_up.code(), Some(0), "{}", caught_up.stderr);
    let replays: Vec<_> = ["branch", "leaf"].map(|name| replay(name).spawn()).into();
    write(&root, 100).await;
    let wait = tree
        .node_command("wait leaf", &["--db", "service=top"])
        .env("PGSERVICEFILE", &file)
        .output()
        .await;
    assert_eq!(wait.code(), Some(0), "{}", wait.stderr);
    tree.assert_same_rows(&leaf, &root).await;
    for replay in replays {
        replay.stop().await;
    }
    // Whoever has no such service is told which file to look at.
    std::fs::write(&file, section("top", &tree.conninfo("root"))).unwrap();
    let lost = tree.replay("leaf").env("PGSERVICEFILE", &file).output().await;
    assert_eq!(lost.code(), Some(2), "{}", lost.stderr);
    for text in [
        "the location of node \"branch\"",
        "service \"spare\" is not in",
        "services.conf",
    ] {
        assert!(lost.stderr.contains(text), "{text}: {}", lost.stderr);
    }
    // One that leads to another node is found out.
    std::fs::write(&file, section("spare", &tree.conninfo("root"))).unwrap();
    let wrong = tree.replay("leaf").env("PGSERVICEFILE", &file).output().await;
    assert_eq!(wrong.code(), Some(1), "{}", wrong.stderr);
    assert!(
        wrong
            .stderr
            .contains("the location of node \"branch\" leads to node \"root\""),
        "{}",
        wrong.stderr
    );
    drop((root, branch, leaf));
    tree.drop(&["leaf", "branch", "root"]).await;
}

/// One row changes, and replay follows.
#[tokio::test]
async fn a_query_says_where_nodes_are() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let branch = tree.add("branch", "branch", "root").await;
    tree.catch_up("branch").await;
    let leaf = tree.add("leaf", "leaf", "branch").await;
    tree.catch_up("leaf").await;
    let one = way(&tree, &root, "a_one", "branch").await;
    let two = way(&tree, &root, "a_two", "branch").await;
    leaf.run("create schema net; create table net.host (node text, queue text, address text)")
        .await;
    let query = "select address from net.host where node = $1 and queue = $2";
    let asking = |query: &str| tree.replay("leaf").args(&["--address-query", query]);

    let caught_up = asking(query).arg("--until-caught-up").output().await;
    assert_eq!(caught_up.code(), Some(0), "no row: {}", caught_up.stderr);
    leaf.run(&format!("insert into net.host values ('branch', 'q', '{one}')"))
        .await;
    let file = tree.cluster("leaf").file("leaf.toml");
    std::fs::write(
        &file,
        format!(
            "subscriber = '{}'\nqueue = 'q'\naddress-query = '{query}'\n",
            tree.conninfo("leaf")
        ),
    )
    .unwrap();
    let streaming = Replay::command(&["replay", "--config", &file, "--retry-max", "1"]).spawn();
    replaying_as(&branch, "a_one").await;
    leaf.run(&format!("update net.host set address = '{two}'")).await;
    replaying_as(&branch, "a_two").await;
    // Also while it cannot reach where it was.
    root.run("alter role a_two nologin").await;
    root.run("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'a_two'")
        .await;
    leaf.run(&format!("update net.host set address = '{one}'")).await;
    replaying_as(&branch, "a_one").await;
    write(&root, 100).await;
    tree.catch_up("branch").await;
    until(&leaf, "select count(*) from journal where what = 'alone'", "1").await;
    streaming.stop().await;
    let checked = std::process::Command::new(env!("CARGO_BIN_EXE_consumer"))
        .args(["table", "missing", "--config", &file])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));

    for (address, wanted) in [
        (format!("{one} password=hunter2"), "holds a password"),
        (
            "host".to_owned(),
            "the address that --address-query gives for node \"branch\"",
        ),
        (tree.conninfo("root"), "leads to node \"root\""),
        (
            tree.conninfo("leaf"),
            "the provider and the subscriber are the same database",
        ),
    ] {
        leaf.run(&format!("update net.host set address = '{address}'")).await;
        let output = asking(query).output().await;
        assert!(matches!(output.code(), Some(1 | 2)), "{wanted}: {}", output.stderr);
        assert!(
            output.stderr.contains(wanted) && !output.stderr.contains("hunter2"),
            "{wanted}: {}",
            output.stderr
        );
    }
    for (query, wanted) in [
        (
            "select address from host where node = $1",
            "relation \"host\" does not exist",
        ),
        ("select address from net.host", "does not have the parameter $1"),
        (
            "select address, queue from net.host where node = $1",
            "does not give one column",
        ),
        ("select 1 where $1 <> ''", "gives something else than text"),
        (
            "select a::text from generate_series(1, 2) a where $1 <> ''",
            "gives more than one row",
        ),
    ] {
        let output = asking(query).output().await;
        assert_eq!(output.code(), Some(1), "{query}: {}", output.stderr);
        assert!(output.stderr.contains(wanted), "{wanted}: {}", output.stderr);
    }
    eventually("a null is no answer", async || {
        leaf.run("update net.host set address = null").await;
        asking(query).arg("--until-caught-up").output().await.code() == Some(0)
    })
    .await;
    let output = asking(query).args(&["--provider", &one]).output().await;
    assert_eq!(output.code(), Some(2), "{}", output.stderr);
    root.run("drop role a_one; drop role a_two").await;
    drop((root, branch, leaf));
    tree.drop(&["leaf", "branch", "root"]).await;
}

/// The query is somebody else's: it is asked between batches, in a transaction of its own, and given up when it takes too long.
#[tokio::test]
async fn a_query_is_asked_between_batches_and_not_for_long() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let leaf = tree.add("leaf", "leaf", "root").await;
    tree.catch_up("leaf").await;
    leaf.run(
        "create schema net; create table net.asked (node text, in_batch bool);
         create function net.ask(node text) returns text language sql as $$
             insert into net.asked
             select node, exists (select from pg_locks where pid = pg_backend_pid() and mode = 'RowShareLock'
                                                         and relation = 'pgcascade_replay.position'::regclass)
             returning null::text $$",
    )
    .await;
    let asking = |query: &str| tree.replay("leaf").args(&["--address-query", query]);
    let replay = asking("select net.ask($1)").spawn();
    for n in 1..=5 {
        root.run(&format!("insert into journal values (-{n}, 'one')")).await;
        until(&leaf, &format!("select count(*) from journal where uid = -{n}"), "1").await;
    }
    replay.stop().await;
    // Where it reads from at each batch; where it is itself, at its start, as it could be a copy.
    let asked = "select string_agg(distinct node, ' '), count(*) > 5, bool_or(in_batch) from net.asked";
    assert_eq!(leaf.text(asked).await, "leaf root|t|f");

    let slow = asking("select 'x' from pg_sleep(300) where $1 <> ''").spawn();
    slow.until_it_says(
        "could not ask --address-query where node \"root\" of queue \"q\" is: canceling statement due to statement timeout",
    )
    .await;
    let output = slow.wait().await;
    assert_eq!(output.code(), Some(1), "{}", output.stderr);
    assert!(output.stderr.contains("It is given 5 seconds"), "{}", output.stderr);
    drop((root, leaf));
    tree.drop(&["leaf", "root"]).await;
}
