//! `consumer check` with the configuration of a node's replay, which names no provider.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::cluster::{Replay, eventually};
use crate::tree::{Tree, write};

fn check(subscriber: &str) -> (Option<i32>, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_consumer"))
        .args(["check", "--json", "--queue", "q", "--table", "*", "--create"])
        .args(["--subscriber", subscriber])
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let report = serde_json::from_slice(&output.stdout);
    (
        output.status.code(),
        report.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr))),
    )
}

/// `kind object end`, in the order of these texts.
fn found(report: &Value) -> Vec<String> {
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    let findings = report["findings"].as_array().unwrap();
    let mut found: Vec<String> = findings
        .iter()
        .map(|one| format!("{} {} {}", text(one, "finding"), text(one, "object"), text(one, "end")))
        .collect();
    found.sort();
    found
}

#[tokio::test]
async fn nodes_are_checked_as_they_will_be_replayed() {
    let tree = Tree::new().await;
    let branch = tree.add("branch", "branch", "root").await;
    tree.catch_up("branch").await;
    let leaf = tree.add("leaf", "leaf", "branch").await;
    tree.catch_up("leaf").await;

    let (code, report) = check(&tree.conninfo("root"));
    assert_eq!((code, &report["provider"]), (Some(0), &json!(null)), "{report}");
    // A branch's queue is closed to everybody but its replay, and is ticked by nobody else.
    for name in ["branch", "leaf"] {
        let (code, report) = check(&tree.conninfo(name));
        assert_eq!(code, Some(0), "{name}: {report}");
        assert_eq!(found(&report), ["no-key public.journal provider"], "{name}: {report}");
    }

    // A tick of another cascade, or of a time that was restored away.
    leaf.run("update pgcascade_replay.node set tick_time = tick_time - interval '1 hour'")
        .await;
    let (code, report) = check(&tree.conninfo("leaf"));
    let position = "position consumer leaf_worker of queue q provider".to_owned();
    assert!(code == Some(1) && found(&report).contains(&position), "{report}");

    // The triggers that a branch needs on the day on which it is the root.
    let clerk = tree.role(&branch, "clerk", "branch").await;
    branch
        .run(
            "grant all on schema pgcascade_replay to clerk; grant all on all tables in schema pgcascade_replay to clerk;
             grant set on parameter session_replication_role to clerk; grant pgq_admin to clerk;
             grant select, insert, update, delete, truncate on t, journal to clerk;
             drop trigger pgcascade_capture_q on journal; drop trigger pgcascade_capture_q_truncate on t",
        )
        .await;
    let (code, report) = check(&clerk);
    let expected = [
        "no-key public.journal provider",
        "trigger-right public.journal subscriber",
        "trigger-right public.t subscriber",
    ];
    assert_eq!(
        (code, found(&report)),
        (Some(1), expected.map(str::to_owned).into()),
        "{report}"
    );
    for finding in report["findings"].as_array().unwrap() {
        if finding["run_at"] == "subscriber" {
            branch.run(finding["statement"].as_str().unwrap()).await;
        }
    }
    assert_eq!(check(&clerk).0, Some(0));
    branch
        .run("revoke pgq_admin from clerk; grant pgq_reader to clerk")
        .await;
    let (_, report) = check(&clerk);
    assert!(
        found(&report).contains(&"capture-right role \"clerk\" subscriber".to_owned()),
        "{report}"
    );
    branch.run("drop owned by clerk cascade").await;
    tree.drop(&["leaf", "branch", "root"]).await;
}

/// It moves the node's tick, its own position, and the last tick of a branch's queue; and rotation removes what is behind it.
#[tokio::test]
async fn beside_a_replay_that_goes_on() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let branch = tree.add("branch", "branch", "root").await;
    tree.catch_up("branch").await;
    let running = tree.replay("branch").spawn();
    let at = "select tick from pgcascade_replay.position";
    for (point, from) in [("after_node", 100), ("before_place", 200)] {
        let go_on = tree
            .cluster("branch")
            .file(&format!("{point}-{}", tree.database_name("branch")));
        let checks = Replay::command(&["check", "--queue", "q", "--table", "*", "--create"])
            .args(&["--subscriber", &tree.conninfo("branch")])
            .failpoints(&format!("{point}=pause:{go_on}"))
            .spawn();
        checks.until_it_says(&format!("{point} waits")).await;
        let before = branch.text(at).await;
        write(&root, from).await;
        eventually("the branch has another tick", async || branch.text(at).await != before).await;
        root.run(&format!("delete from pgq.tick where tick_id <= {before}"))
            .await;
        std::fs::write(&go_on, "").unwrap();
        let output = checks.wait().await;
        assert_eq!(output.code(), Some(0), "{point}: {}", output.stderr);
    }
    running.stop().await;
    drop((root, branch));
    tree.drop(&["branch", "root"]).await;
}
