//! `consumer status` of a cascade.

use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Barrier};

use serde_json::{Value, json};

use crate::cluster::{Db, PATIENCE, Replay, eventually};
use crate::tree::{Tree, WORKERS_LOCK, until_not_replayed, write};

/// Every node is given the time that it takes, unless `more` says something else.
pub(crate) fn status(tree: &Tree, from: &str, more: &[&str]) -> (Option<i32>, String) {
    let patience = PATIENCE.as_secs().to_string();
    let wait = ["--timeout", &patience];
    let given = more.contains(&"--timeout");
    let output = asked(tree, from, &[more, if given { &[] } else { &wait }].concat());
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

fn asked(tree: &Tree, from: &str, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_consumer"))
        .args(["status", "--subscriber", &tree.conninfo(from), "--queue", "q"])
        .args(more)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

pub(crate) fn node<'a>(status: &'a Value, name: &str) -> &'a Value {
    let nodes = status["nodes"].as_array().unwrap();
    nodes.iter().find(|node| node["node"] == name).unwrap()
}

#[tokio::test]
async fn the_tree_from_any_node() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    tree.add("branch", "branch", "root").await;
    tree.catch_up("branch").await;
    tree.add("leaf", "leaf", "branch").await;
    tree.catch_up("leaf").await;
    let replays: Vec<_> = ["branch", "leaf"].map(|name| tree.replay(name).spawn()).into();
    for name in ["branch", "leaf"] {
        tree.until_ok(name).await;
    }
    for from in ["root", "branch", "leaf"] {
        let (code, text) = status(&tree, from, &["--json"]);
        let found: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((code, &found["healthy"]), (Some(0), &json!(true)), "{text}");
        assert_eq!(found["nodes"].as_array().unwrap().len(), 3, "{text}");
        let branch = node(&found, "branch");
        assert_eq!(
            (&branch["role"], &branch["provider"]),
            (&json!("branch"), &json!("root")),
            "{text}"
        );
        assert_eq!(branch["subscribers"], json!(["leaf"]), "{text}");
        assert_eq!(node(&found, "leaf")["tables"], json!({ "ok": 2 }), "{text}");
    }
    let (_, text) = status(&tree, "leaf", &[]);
    assert!(
        text.contains("root (root)")
            && text.contains("\n`-- branch (branch)")
            && text.contains("\n    `-- leaf (leaf)"),
        "{text}"
    );
    assert_eq!(status(&tree, "leaf", &["--quiet"]), (Some(0), String::new()));

    tree.manage(0, "pause leaf").await;
    write(&root, 1).await;
    tree.wait("branch").await;
    let (code, text) = status(&tree, "root", &["--json"]);
    let found: Value = serde_json::from_str(&text).unwrap();
    let leaf = node(&found, "leaf");
    assert_eq!((code, &leaf["paused"]), (Some(0), &json!(true)), "{text}");
    assert!(
        leaf["lag"]["ticks"].as_i64().unwrap() > 0 && leaf["lag"]["events"].as_i64().unwrap() > 0,
        "{text}"
    );
    assert!(leaf["lag"]["seconds"].as_f64().unwrap() > 0.0, "{text}");
    assert_eq!(
        status(&tree, "root", &["--quiet", "--max-lag", "0"]),
        (Some(1), String::new())
    );
    assert!(status(&tree, "root", &[]).1.contains("PAUSED"));
    tree.manage(0, "resume leaf").await;
    for replay in replays {
        replay.stop().await;
    }
    eventually("their servers have noticed that", async || {
        let (code, text) = status(&tree, "root", &[]);
        code == Some(1) && text.contains("WARNING is not being replayed")
    })
    .await;
    tree.drop(&["leaf", "branch", "root"]).await;
}

/// A replay that begins anew has no session for a moment: who looks just then looks again.
#[tokio::test]
async fn a_replay_that_begins_anew_runs() {
    let tree = Tree::new().await;
    let [branch] = tree.below_root([("branch", "branch")]).await;
    let replay = tree.replay("branch").spawn();
    replay.until_it_says("streaming").await;
    let key = branch.text(WORKERS_LOCK).await;
    replay.stop().await;
    until_not_replayed(&[&branch]).await;
    let at = tree.conninfo("branch");
    let looks = [
        &[
            "status",
            "--quiet",
            "--timeout",
            "300",
            "--subscriber",
            &at,
            "--queue",
            "q",
        ][..],
        &["takeover", "branch", "--plan", "--db", &at, "--queue", "q"],
    ];
    for look in looks {
        let file = tree.cluster("branch").file(&tree.database_name(look[0]));
        let looking = Replay::command(look)
            .failpoints(&format!("replay_awaited=pause:{file}"))
            .spawn();
        looking.until_it_says("replay_awaited waits").await;
        let replay = tree.connect("branch").await;
        replay.run(&format!("select pg_advisory_lock({key})")).await;
        std::fs::write(&file, "").unwrap();
        let looked = looking.wait().await;
        assert_eq!(looked.code(), Some(0), "{look:?}: {}", looked.stderr);
        replay.run("select pg_advisory_unlock_all()").await;
    }
    let (code, text) = status(&tree, "root", &[]);
    assert!(
        code == Some(1) && text.contains("WARNING is not being replayed"),
        "{text}"
    );
    drop(branch);
    tree.drop(&["branch", "root"]).await;
}

/// Nodes that do not answer are waited for together: here none of them is let go before all of them are asked.
#[tokio::test]
async fn all_nodes_are_asked_at_once() {
    const SILENT: usize = 6;
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    tree.add("leaf", "leaf", "root").await;
    let all_asked = Arc::new(Barrier::new(SILENT));
    for i in 0..SILENT {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        register(&root, &format!("silent{i}"), &listener).await;
        let all_asked = Arc::clone(&all_asked);
        std::thread::spawn(move || {
            let first = listener.accept();
            all_asked.wait();
            drop(first);
            // Whoever asks again is told at once.
            while listener.accept().is_ok() {}
        });
    }
    let (code, text) = status(&tree, "root", &["--json"]);
    let found: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(code, Some(1), "{text}");
    assert_eq!(found["nodes"].as_array().unwrap().len(), 2 + SILENT, "{text}");
    for i in 0..SILENT {
        let silent = node(&found, &format!("silent{i}"));
        let error = silent["error"].as_str().unwrap();
        assert!(silent["reachable"] == false && !error.contains("no answer"), "{text}");
    }
    for name in ["root", "leaf"] {
        assert_eq!(node(&found, name)["reachable"], true, "{text}");
    }

    // One that never answers, and one that was declared dead.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    register(&root, "mute", &mute).await;
    root.run("select pgq_node.register_location('q', 'gone', 'host=127.0.0.1 port=1 user=u dbname=d', true)")
        .await;
    // The root itself may take longer for once: then it is what is not reached.
    eventually("the mute one is shown beside the others", async || {
        let output = asked(&tree, "root", &["--timeout", "5"]);
        let text = String::from_utf8(output.stdout).unwrap();
        text.contains("mute  NOT REACHED")
            && text.contains("ERROR no answer within 5 seconds")
            && text.contains("gone  DEAD  NOT REACHED")
    })
    .await;

    // Nor does the one that is asked first.
    let port = mute.local_addr().unwrap().port();
    let at = format!("host=127.0.0.1 port={port} user=u dbname=d");
    let silent = Replay::command(&["status", "--subscriber", &at, "--queue", "q", "--timeout", "5"]);
    let silent = silent.output().await;
    assert_eq!(silent.code(), Some(1), "{}", silent.stderr);
    assert!(
        silent.stderr.contains("gave no answer within 5 seconds"),
        "{}",
        silent.stderr
    );
    drop(root);
    tree.drop(&["leaf", "root"]).await;
}

async fn register(root: &Db, name: &str, listener: &TcpListener) {
    let port = listener.local_addr().unwrap().port();
    root.run(&format!(
        "select pgq_node.register_location('q', '{name}', 'host=127.0.0.1 port={port} user=u dbname=d', false)"
    ))
    .await;
}

/// A takeover that stands still shows on every node that waits for it, and is gone when it has ended.
#[tokio::test]
async fn a_takeover_that_stopped_half_way_is_trouble() {
    let tree = Tree::apart().await;
    let root = tree.connect("root").await;
    let [_, _] = tree.below_root([("branch", "branch"), ("leaf", "leaf")]).await;
    let mut replays = tree.replays(&["root", "branch", "leaf"]);
    for name in ["branch", "leaf"] {
        tree.wait(name).await;
    }
    let at = tree.conninfo("branch");
    let takeover = |new: &str| Replay::command(&["takeover", new, "--queue", "q", "--db", &at]);
    let look = |code: i32| {
        let (found, text) = status(&tree, "branch", &["--json"]);
        assert_eq!(found, Some(code), "{text}");
        serde_json::from_str::<Value>(&text).unwrap()
    };
    let well = look(0);
    for name in ["root", "branch", "leaf"] {
        let node = node(&well, name);
        let nothing = [
            &node["epoch"],
            &node["fence_reason"],
            &node["promised_to"],
            &node["frozen"],
        ];
        assert_eq!(
            nothing,
            [&json!(1), &json!(null), &json!(null), &json!(false)],
            "{node}"
        );
    }
    assert_eq!(
        (&node(&well, "root")["open"], &node(&well, "branch")["open"]),
        (&json!(true), &json!(null))
    );

    // Between fence and open.
    for point in ["after_fenced", "after_promoted"] {
        let (more, words) = match point {
            "after_fenced" => (
                None,
                [
                    "root (root)  epoch 1  ",
                    "  CLOSED",
                    "WARNING is closed for writers: takeover ",
                ],
            ),
            _ => (
                Some("--resume"),
                [
                    "branch (root)  epoch 2  ",
                    "  CLOSED",
                    ": not confirmed yet; consumer takeover branch --plan",
                ],
            ),
        };
        let killed = takeover("branch")
            .args(more.as_slice())
            .failpoints(&format!("takeover_{point}=kill"));
        assert_eq!(killed.output().await.code(), None, "{point} was not reached");
        let old = look(1)["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .find(|node| node["node"] == "root")
            .unwrap()
            .clone();
        let op = root.text("select promised_op from pgcascade.node_state").await;
        let closed = [
            &old["open"],
            &old["fence_reason"],
            &old["promised_to"],
            &old["promised_epoch"],
        ];
        assert_eq!(
            closed,
            [&json!(false), &json!(format!("takeover {op}")), &json!(op), &json!(2)],
            "{old}"
        );
        let (_, text) = status(&tree, "leaf", &[]);
        let promise = format!("promised epoch 2 to takeover {op}\n");
        for wanted in words.into_iter().chain([promise.as_str()]) {
            assert!(text.contains(wanted), "{wanted}: {text}");
        }
        assert_eq!(status(&tree, "root", &["--quiet"]), (Some(1), String::new()));
    }
    assert_eq!(takeover("branch").arg("--resume").output().await.code(), Some(0));
    // Who joins now knows the epoch, too.
    tree.node(
        0,
        "create-leaf late",
        &[
            "--db",
            &{
                tree.database("late", false).await;
                tree.conninfo("late")
            },
            "--provider",
            &at,
        ],
    )
    .await;
    replays.push(tree.replay("late").spawn());
    tree.node(0, "wait late --timeout 300", &["--db", &at]).await;
    // The replays of the others begin anew, that of the old root as a branch's, and nobody has waited for that.
    let patience = PATIENCE.as_secs().to_string();
    for name in ["root", "leaf"] {
        tree.node(0, &format!("wait {name}"), &["--db", &at, "--timeout", &patience])
            .await;
    }
    let well = async || {
        eventually("all is well", async || {
            status(&tree, "branch", &["--quiet"]).0 == Some(0)
        })
        .await;
    };
    well().await;
    for name in ["root", "branch", "leaf", "late"] {
        assert_eq!(node(&look(0), name)["epoch"], 2, "{name}");
    }

    // A leaf that nobody told of a change of root.
    let leaf = tree.connect("leaf").await;
    leaf.run("update pgcascade_replay.node set epoch = 1").await;
    assert_eq!(
        node(&look(1), "leaf")["warnings"],
        json!(["is in epoch 1, and node branch in epoch 2: consumer node change-provider leaf --provider branch"])
    );
    tree.node(0, "change-provider leaf --provider branch", &["--db", &at])
        .await;
    well().await;

    // Everybody who is left waits for a takeover without the root.
    assert_eq!(takeover("root").output().await.code(), Some(0));
    drop(root);
    for replay in replays {
        replay.stop().await;
    }
    tree.kill_root();
    let dead = takeover("branch").args(&["--dead", "root", "--fenced-by", "killed"]);
    let killed = dead.failpoints("takeover_after_promised=kill").output().await;
    assert_eq!(killed.code(), None, "after_promised was not reached: {}", killed.stderr);
    for (wanted, code) in [(true, None), (false, Some(0))] {
        if code.is_some() {
            let aborted = takeover("branch").arg("--abort").output().await;
            assert_eq!(aborted.code(), code, "{}", aborted.stderr);
        }
        let found = look(1);
        for name in ["branch", "leaf", "late"] {
            let node = node(&found, name);
            let warned = node["warnings"]
                .to_string()
                .contains("takes no ticks, as it has promised epoch 4 to takeover ");
            assert_eq!((&node["frozen"], warned), (&json!(wanted), wanted), "{node}");
        }
        assert_eq!(
            status(&tree, "leaf", &[]).1.matches("  FROZEN").count(),
            if wanted { 3 } else { 0 }
        );
    }
    drop(leaf);
    tree.drop(&["late", "leaf", "branch"]).await;
}

/// Watching goes on while the node that is asked first is away.
#[tokio::test]
async fn it_watches_until_it_is_told_to_stop() {
    let tree = Tree::apart().await;
    tree.add("branch", "branch", "root").await;
    tree.catch_up("branch").await;
    let watch = |name: &str, more: &[&str]| {
        let file = tree.cluster("root").file(name);
        let at = tree.conninfo("root");
        let command = Replay::command(&["status", "--subscriber", &at, "--queue", "q", "--watch", "1"]);
        (command.args(more).stdout_to(&file).spawn(), file)
    };
    let watches = [watch("text", &[]), watch("json", &["--json"])];
    let mut printed = [0, 0];
    for (text, json) in [
        ("`-- branch (branch)", r#""error":null,"nodes":[{"#),
        (
            "ERROR could not connect",
            r#""healthy":false,"error":"could not connect"#,
        ),
        ("`-- branch (branch)", r#""error":null,"nodes":[{"#),
    ] {
        for (i, wanted) in [text, json].into_iter().enumerate() {
            let found = || {
                let all = std::fs::read_to_string(&watches[i].1).unwrap();
                all[printed[i]..].find(wanted).map(|at| printed[i] + at + wanted.len())
            };
            eventually(&format!("it prints {wanted}"), async || found().is_some()).await;
            printed[i] = found().unwrap();
        }
        if text.starts_with('E') {
            tree.start_root();
        } else {
            tree.kill_root();
        }
    }
    // It has just been killed again: whatever was last, a signal ends it with 0.
    for (watch, _) in watches {
        watch.stop().await;
    }
    // What cannot be shown even once is a wrong command.
    let (never, file) = watch("never", &[]);
    assert_eq!(never.wait().await.code(), Some(1));
    assert_eq!(std::fs::read_to_string(file).unwrap(), "");
    tree.drop(&["branch"]).await;
}
