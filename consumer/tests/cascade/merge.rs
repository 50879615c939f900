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
        while db.text(CONTENT).await != wanted {
            if Instant::now() >= deadline {
                let said: Vec<String> = replays.iter().map(Running::stderr).collect();
                panic!("rows are missing, or too many: {}", said.join("\n---\n"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn takeover(tree: &Tree, new: &str, more: &[&str], code: i32) -> Output {
    let at = tree.conninfo(new);
    let output = Replay::command(&["takeover", new, "--queue", "q", "--db", &at, "--timeout", "120"])
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
