//! Combined queues: what two roots write is merged into a queue of a third database, whose own root moves meanwhile.

use std::time::{Duration, Instant};

use crate::cluster::{Db, Output, PATIENCE, Replay, Running, eventually};
use crate::tree::{Tree, until};

/// The databases of the combined queue, and the parts that are merged into it.
const PARTS: [&str; 2] = ["north", "south"];

async fn node(code: i32, words: &str, more: &[&str]) -> Output {
    let words: Vec<&str> = words.split(' ').collect();
    let output = Replay::command(&["node"]).args(&words).args(more).output().await;
    assert_eq!(output.code(), Some(code), "{words:?}: {}", output.stderr);
    output
}

fn replay(tree: &Tree, name: &str, queue: &str, more: &[&str]) -> Replay {
    let at = tree.conninfo(name);
    let table = if queue == "q" { "list" } else { "public.list" };
    Replay::command(&["replay", "--subscriber", &at, "--queue", queue, "--table", table])
        .args(&["--watermark-interval", "1", "--retry-max", "1"])
        .args(more)
}

/// A part: a root of its own, with numbers that no other has.
async fn part(tree: &Tree, name: &str) -> Db {
    let db = tree.database(name, true).await;
    db.run(&format!(
        "create table list (part text, n int, primary key (part, n)); insert into list select '{name}', i from generate_series(1, 300) i"
    ))
    .await;
    node(0, "create-root", &[name, "--queue", name, "--db", &tree.conninfo(name)]).await;
    db
}

async fn leaf(tree: &Tree, name: &str, part: &str, code: i32) -> Output {
    let (at, provider) = (tree.conninfo(name), tree.conninfo(part));
    let more = [
        name,
        "--queue",
        part,
        "--db",
        &*at,
        "--provider",
        &*provider,
        "--merge",
        "q",
    ];
    node(code, "create-leaf", &more).await
}

const CONTENT: &str = "select string_agg(part || n, ',' order by part, n) from list";

struct Parts {
    parts: Vec<Db>,
    next: i32,
}

impl Parts {
    /// Each writes, changes and takes back rows.
    async fn write(&mut self) {
        for _ in 0..5 {
            self.next += 1;
            let n = self.next;
            for (db, part) in self.parts.iter().zip(PARTS) {
                db.run(&format!(
                    "begin; insert into list values ('{part}', {n} + 1000), ('{part}', {n} + 5000);
                     delete from list where n = {n}; commit; update list set n = {n} + 9000 where n = {n} + 5000"
                ))
                .await;
            }
        }
    }

    /// Both parts' rows are there, each once, and every replay goes on.
    async fn until_in(&self, db: &Db, replays: &[Running]) {
        let mut wanted = Vec::new();
        for part in &self.parts {
            wanted.push(part.text(CONTENT).await);
        }
        let wanted = wanted.join(",");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let there = db.text(CONTENT).await;
            if there == wanted {
                break;
            }
            if Instant::now() >= deadline {
                let said: Vec<String> = replays.iter().map(Running::stderr).collect();
                let but = |these: &str, those: &str| {
                    let those: Vec<&str> = those.split(',').collect();
                    let only = these.split(',').filter(|row| !those.contains(row)).take(12);
                    only.collect::<Vec<_>>().join(" ")
                };
                panic!(
                    "missing: {}; too many: {}\n{}",
                    but(&wanted, &there),
                    but(&there, &wanted),
                    said.join("\n---\n")
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn takeover(tree: &Tree, new: &str, more: &[&str], code: i32) -> Output {
    let at = tree.conninfo(new);
    let output = Replay::command(&["takeover", new, "--queue", "q", "--db", &at, "--timeout", "300"])
        .args(more)
        .output()
        .await;
    assert_eq!(output.code(), Some(code), "takeover {new} {more:?}: {}", output.stderr);
    output
}

#[tokio::test]
async fn what_two_roots_write_goes_on_through_a_third_whose_root_moves() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    root.run("create table list (part text, n int, primary key (part, n))")
        .await;
    let mut parts = Parts {
        parts: vec![part(&tree, PARTS[0]).await, part(&tree, PARTS[1]).await],
        next: 0,
    };
    let not_there = tree.database("plain", true).await;
    let refused = leaf(&tree, "plain", "north", 1).await;
    assert!(
        refused.stderr.contains("is neither root nor branch of queue \"q\""),
        "{}",
        refused.stderr
    );
    drop(not_there);
    for name in PARTS {
        leaf(&tree, "root", name, 0).await;
    }
    // Killed with a batch of which nothing is committed, and with one of which all is.
    for point in ["before_commit", "after_commit"] {
        let running = replay(&tree, "root", "north", &["--merge"])
            .failpoints(&format!("{point}=kill"))
            .spawn();
        running.until_it_says("streaming").await;
        parts.write().await;
        assert_eq!(running.wait().await.code(), None, "{point}");
    }
    let mut replays: Vec<Running> = vec![replay(&tree, "root", "q", &[]).spawn()];
    for name in PARTS {
        replays.push(replay(&tree, "root", name, &["--merge"]).spawn());
    }
    parts.until_in(&root, &replays).await;
    eventually("all of both is there", async || {
        root.text("select count(*) from pgcascade_replay.table_state where state = 'ok'")
            .await
            == "2"
    })
    .await;

    // The nodes below.
    let spare = tree.add("branch", "spare", "root").await;
    replays.push(replay(&tree, "spare", "q", &["--create"]).spawn());
    until(
        &spare,
        "select state from pgcascade_replay.table_state where queue = 'q'",
        "ok",
    )
    .await;
    parts.write().await;
    for db in [&root, &spare] {
        parts.until_in(db, &replays).await;
    }
    let refused = takeover(&tree, "spare", &["--plan"], 1).await;
    assert!(
        refused
            .stderr
            .contains("queue \"north\" is merged into this one on the root, and not on \"spare\""),
        "{}",
        refused.stderr
    );
    for name in PARTS {
        leaf(&tree, "spare", name, 0).await;
        replays.push(replay(&tree, "spare", name, &["--merge"]).spawn());
    }
    parts.write().await;
    until(
        &spare,
        "select bool_and(position_known) from pgcascade_replay.node",
        "t",
    )
    .await;

    for (new, db) in [("spare", &spare), ("root", &root)] {
        parts.write().await;
        takeover(&tree, new, &[], 0).await;
        parts.write().await;
        for db in [&root, &spare] {
            parts.until_in(db, &replays).await;
        }
        assert_eq!(db.text("select role from pgcascade.node_state").await, "root");
    }
    for replay in replays {
        let output = replay.stop().await;
        assert_eq!(output.code(), Some(0), "{}", output.stderr);
    }
    drop((root, spare, parts));
    tree.drop(&["plain", "spare", "south", "north", "root"]).await;
}

/// What is merged is read from a branch of a part, then from its root, and from the branch again, which is behind then.
#[tokio::test]
async fn a_part_is_read_from_its_branch() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    root.run("create table list (part text, n int, primary key (part, n))")
        .await;
    let mut parts = Parts {
        parts: vec![part(&tree, "north").await],
        next: 0,
    };
    let (of_north, of_middle) = (tree.conninfo("north"), tree.conninfo("middle"));
    let middle = tree.database("middle", true).await;
    let below = [
        "middle",
        "--queue",
        "north",
        "--db",
        &of_middle,
        "--provider",
        &of_north,
    ];
    node(0, "create-branch", &below).await;
    let feeding = replay(&tree, "middle", "north", &["--create"]).spawn();
    until(&middle, "select state from pgcascade_replay.table_state", "ok").await;
    let at = tree.conninfo("root");
    let merge = [
        "root",
        "--queue",
        "north",
        "--db",
        &at,
        "--provider",
        &of_middle,
        "--merge",
        "q",
    ];
    node(0, "create-leaf", &merge).await;
    let replays = [replay(&tree, "root", "north", &["--merge"]).spawn()];
    parts.write().await;
    parts.until_in(&root, &replays).await;

    until(
        &root,
        "select state from pgcascade_replay.table_state where queue = 'north'",
        "ok",
    )
    .await;

    // It does not go back to one that is behind before that has what it has.
    feeding.stop().await;
    let change = async |provider: &str, more: &[&str], code: i32| {
        let words = ["root", "--provider", provider, "--queue", "north", "--db", &at];
        node(code, "change-provider", &[&words[..], more].concat()).await
    };
    change("north", &[], 0).await;
    parts.write().await;
    parts.until_in(&root, &replays).await;
    change("middle", &["--timeout", "1"], 1).await;
    let feeding = replay(&tree, "middle", "north", &[]).spawn();
    change("middle", &[], 0).await;
    let read = "select string_agg(subscriber_node, ',') from pgq_node.subscriber_info where subscriber_node = 'root'";
    assert_eq!(middle.text(read).await, "root");
    parts.write().await;
    parts.until_in(&root, &replays).await;

    for replay in replays.into_iter().chain([feeding]) {
        replay.stop().await;
    }
    drop((root, middle, parts));
    tree.drop(&["root", "middle", "north"]).await;
}

/// The root is gone with merged rows that no branch has: the new one merges them again from their roots.
#[tokio::test]
async fn what_only_a_dead_root_had_merged_is_merged_again() {
    let tree = Tree::apart().await;
    let root = tree.connect("root").await;
    root.run("create table list (part text, n int, primary key (part, n))")
        .await;
    let mut parts = Parts {
        parts: vec![part(&tree, PARTS[0]).await, part(&tree, PARTS[1]).await],
        next: 0,
    };
    let mut of_root = Vec::new();
    for name in PARTS {
        leaf(&tree, "root", name, 0).await;
        of_root.push(replay(&tree, "root", name, &["--merge"]).spawn());
    }
    parts.until_in(&root, &of_root).await;
    let spare = tree.add("branch", "spare", "root").await;
    let of_spare = replay(&tree, "spare", "q", &["--create"]).spawn();
    until(&spare, "select to_regclass('list') is not null", "t").await;
    let mut behind = Vec::new();
    for name in PARTS {
        leaf(&tree, "spare", name, 0).await;
        behind.push(replay(&tree, "spare", name, &["--merge"]).spawn());
    }
    parts.write().await;
    parts.until_in(&spare, &of_root).await;
    until(
        &spare,
        "select bool_and(position_known) from pgcascade_replay.node",
        "t",
    )
    .await;
    until(
        &spare,
        "select state from pgcascade_replay.table_state where queue = 'q'",
        "ok",
    )
    .await;
    of_spare.stop().await;
    parts.write().await;
    parts.until_in(&root, &of_root).await;
    let had = spare.text(CONTENT).await;
    assert_ne!(had, root.text(CONTENT).await);
    drop(root);
    tree.kill_root();
    for replay in of_root {
        replay.kill().await;
    }
    behind.push(replay(&tree, "spare", "q", &[]).spawn());
    assert_eq!(spare.text(CONTENT).await, had);
    takeover(&tree, "spare", &["--dead", "root", "--fenced-by", "killed"], 0).await;
    parts.write().await;
    parts.until_in(&spare, &behind).await;
    for replay in behind {
        replay.stop().await;
    }
    drop((spare, parts));
    tree.drop(&["spare", "south", "north"]).await;
}

/// The combined queue's branches may copy a table from the tick on that makes it whole, so that is the one which says that it is:
/// without a later one a leaf behind would not know its tables.
#[tokio::test]
async fn the_tick_that_makes_a_table_whole_says_so() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    root.run("create table list (part text, n int, primary key (part, n))")
        .await;
    let north = part(&tree, "north").await;
    // Ticks come of events only.
    north
        .run("select pgq.set_queue_config('north', 'ticker_idle_period', '1 day')")
        .await;
    leaf(&tree, "root", "north", 0).await;
    let running = Replay::command(&["replay", "--subscriber", &tree.conninfo("root"), "--queue", "north"])
        .args(&["--table", "public.list", "--merge", "--watermark-interval", "3600"])
        .spawn();
    until(&root, "select count(*) from list", "300").await;
    let state = "select state from pgcascade_replay.table_state";
    for n in 1001.. {
        north.run(&format!("insert into list values ('north', {n})")).await;
        until(&root, &format!("select count(*) from list where n = {n}"), "1").await;
        if root.text(state).await == "ok" {
            break;
        }
    }
    // There is no other tick behind it, unless one was made while an event had its id and was not committed: that says so, too.
    let said = "select string_agg(distinct ev_extra3, ' ') from pgq.event_template where ev_type = 'pgq.tick-id' and ev_extra3 <> '[]'";
    assert_eq!(root.text(said).await, r#"[["public","list"]]"#);
    running.stop().await;
    drop((root, north));
    tree.drop(&["north", "root"]).await;
}

/// A leaf that stands behind is moved although it has promised a takeover of its own queue to take no ticks: no further than the leaf at the
/// combined root is, which has promised, too, and gives what it alone has.
#[tokio::test]
async fn a_leaf_behind_is_moved_no_further_than_was_promised() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    root.run("create table list (part text, n int, primary key (part, n))")
        .await;
    let north = part(&tree, "north").await;
    let next = tree.database("next", true).await;
    let (at, provider) = (tree.conninfo("next"), tree.conninfo("north"));
    let below = ["next", "--queue", "north", "--db", &at, "--provider", &provider];
    node(0, "create-branch", &below).await;
    leaf(&tree, "root", "north", 0).await;
    let of_root = replay(&tree, "root", "north", &["--merge"]).spawn();
    let whole = "select state from pgcascade_replay.table_state";
    until(&root, whole, "ok").await;
    let spare = tree.add("branch", "spare", "root").await;
    leaf(&tree, "spare", "north", 0).await;
    let behind = replay(&tree, "spare", "north", &["--merge"]).spawn();
    let of_spare = replay(&tree, "spare", "q", &["--create"]).spawn();
    until(
        &spare,
        "select state from pgcascade_replay.table_state where queue = 'q'",
        "ok",
    )
    .await;
    let has = |n: i32| format!("select count(*) from list where n = {n}");
    north.run("insert into list values ('north', 1001)").await;
    until(&spare, &has(1001), "1").await;
    until(&spare, "select position_known from pgcascade_replay.node", "t").await;
    let caught_up = replay(&tree, "next", "north", &["--create", "--until-caught-up"])
        .output()
        .await;
    assert_eq!(caught_up.code(), Some(0), "{}", caught_up.stderr);
    of_spare.stop().await;
    north.run("insert into list values ('north', 1002)").await;
    until(&root, &has(1002), "1").await;
    for replay in [of_root, behind] {
        replay.stop().await;
    }
    drop(north);
    tree.remove("north").await;

    let takeover = |more: &[&str], failpoints: &str| {
        Replay::command(&["takeover", "next", "--queue", "north", "--db", &at, "--timeout", "300"])
            .args(more)
            .failpoints(failpoints)
            .output()
    };
    let dead = ["--dead", "north", "--fenced-by", "removed"];
    let killed = takeover(&dead, "takeover_after_promised=kill").await;
    assert_eq!(killed.code(), None, "{}", killed.stderr);
    let of_root = replay(&tree, "root", "north", &["--merge"]).spawn();
    let behind = replay(&tree, "spare", "north", &["--merge"]).spawn();
    for replay in [&of_root, &behind] {
        replay.until_it_says("promised to a takeover").await;
    }
    let position = "select tick from pgcascade_replay.position where queue = 'north'";
    let promised = "select promises <> '{}' from pgcascade_replay.node";
    let ahead = root.text(position).await;
    assert_ne!(spare.text(position).await, ahead);
    let of_spare = replay(&tree, "spare", "q", &[]).spawn();
    until(&spare, position, &ahead).await;
    assert_eq!(spare.text(promised).await, "t");
    let of_next = replay(&tree, "next", "north", &[]).spawn();
    let resumed = takeover(&["--resume"], "").await;
    assert_eq!(resumed.code(), Some(0), "{}", resumed.stderr);
    let fork = "select donor, fork_tick from pgcascade.takeover where step = 'done'";
    assert_eq!(next.text(fork).await, format!("root|{ahead}"));
    next.run("insert into list values ('north', 1003)").await;
    for db in [&root, &spare] {
        until(db, &has(1003), "1").await;
        assert_eq!(db.text(CONTENT).await, next.text(CONTENT).await);
    }
    for replay in [of_root, of_spare, of_next, behind] {
        let output = replay.stop().await;
        assert_eq!(output.code(), Some(0), "{}", output.stderr);
    }
    drop((root, spare, next));
    tree.drop(&["next", "spare", "root"]).await;
}

/// What would not arrive below as it is at its root is not merged, and not copied.
#[tokio::test]
async fn what_would_not_arrive_below_is_refused() {
    let tree = Tree::new().await;
    let tables = "create table parted (n int primary key) partition by range (n);
        create table parted_1 partition of parted for values from (0) to (1000); create table wide (n int primary key, a int)";
    let root = tree.connect("root").await;
    root.run(tables).await;
    root.run(
        "create table list (part text, n int, primary key (part, n)); create table other (like list including all)",
    )
    .await;
    let north = part(&tree, "north").await;
    north.run(tables).await;
    leaf(&tree, "root", "north", 0).await;
    let table = async |name: &str, code: i32, arguments: &[&str], wanted: &str| {
        let at = tree.conninfo(name);
        let output = Replay::command(&["table"])
            .args(arguments)
            .args(&["--subscriber", &at, "--queue", "north"])
            .output()
            .await;
        assert_eq!(output.code(), Some(code), "{arguments:?}: {}", output.stderr);
        assert!(output.stderr.contains(wanted), "{wanted}: {}", output.stderr);
    };
    for (arguments, wanted) in [
        (
            &["add", "list", "--rename", "public.other"][..],
            "has another name here",
        ),
        (&["add", "parted"], "is partitioned"),
        (&["add", "wide", "--except", "a"], "is replayed in part"),
    ] {
        table("root", 1, arguments, wanted).await;
    }
    let running = replay(&tree, "root", "north", &["--merge"]).spawn();
    until(&root, "select state from pgcascade_replay.table_state", "ok").await;

    // Events of other tables do not go on; nothing does while the combined root is closed, and the leaf waits.
    root.run("update pgq.queue set queue_disable_insert = true where queue_name = 'q'")
        .await;
    north
        .run("select pgq.insert_event('north', 'I', 'n=1', 'public.nowhere', null, null, null); insert into list values ('north', 1001)")
        .await;
    running.until_it_says("Writing to queue disabled").await;
    let has = "select count(*) from list where n = 1001";
    assert_eq!(root.text(has).await, "0");
    root.run("update pgq.queue set queue_disable_insert = false where queue_name = 'q'")
        .await;
    until(&root, has, "1").await;
    running.stop().await;
    let passed = "select count(*) filter (where ev_extra1 = 'public.nowhere'), count(*) filter (where ev_extra1 = 'public.list') > 0
                    from pgq.event_template";
    assert_eq!(root.text(passed).await, "0|t");

    // A node below does not copy what is not whole here.
    let state =
        |state: &str| format!("update pgcascade_replay.table_state set state = '{state}' where queue = 'north'");
    root.run(&state("in-copy")).await;
    let spare = tree.add("branch", "spare", "root").await;
    let of_spare = replay(&tree, "spare", "q", &["--create"]).spawn();
    of_spare
        .until_it_says("does not have all rows of queue \"north\" yet, which is merged into \"q\"")
        .await;
    root.run(&state("ok")).await;
    until(
        &spare,
        "select state from pgcascade_replay.table_state where queue = 'q'",
        "ok",
    )
    .await;
    assert_eq!(spare.text(has).await, "1");
    // Nor is copied here what goes on from here already.
    table("root", 0, &["remove", "list"], "").await;
    table(
        "root",
        1,
        &["add", "list", "--replace"],
        "is to be copied, and is captured into queue \"q\" already",
    )
    .await;
    table("root", 0, &["add", "list", "--no-copy"], "").await;
    // The tables of a leaf behind are those of the combined queue.
    leaf(&tree, "spare", "north", 0).await;
    let wanted = "stands behind queue \"q\", whose branch the database is";
    table("spare", 1, &["add", "wide", "--create"], wanted).await;
    root.run("update pgcascade_replay.node set position_known = false")
        .await;
    let refused = replay(&tree, "root", "north", &["--merge"]).spawn();
    refused
        .until_it_says("does not know how far it is: queue \"q\" has become the root here before it told")
        .await;
    assert_eq!(refused.wait().await.code(), Some(1));
    of_spare.stop().await;
    drop((root, north, spare));
    tree.drop(&["spare", "north", "root"]).await;
}
