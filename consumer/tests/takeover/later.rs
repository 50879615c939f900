//! Events that are to come later: delayed ones, and those that a consumer of the old root has put back for itself.

use crate::cluster::Output;
use crate::planned::{command, hasty, state, takeover};
use crate::silent::Paused;
use crate::tree::{Tree, stop, until, write};

fn assert_says(output: &Output, wanted: &str) {
    assert!(output.stderr.contains(wanted), "{}", output.stderr);
}

/// A delayed event would stay on the old root. It comes after that was looked for: before the root is closed, or in a transaction that is
/// not finished then.
#[tokio::test]
async fn a_delayed_event_that_comes_late_has_it_given_up() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let [branch] = tree.below_root([("branch", "branch")]).await;
    let replays = tree.replays(&["root", "branch"]);
    let delay = "select pgcascade.insert_event_at('q', now() + '1 day', 't', 'd')";
    for point in ["after_prepared", "promising_old"] {
        let run = Paused::of(&tree, point, command(&tree, "branch", "branch")).await;
        root.run(delay).await;
        let output = run.go_on(1).await;
        assert_says(&output, "was given up, and the old root is open");
        assert_says(&output, "1 delayed events wait on \"root\", and stay there");
        assert_eq!(state(&root).await, "root|t|1|t", "{point}");
        root.run("delete from pgcascade.delayed_event").await;
    }
    let writer = tree.connect("root").await;
    let run = Paused::of(&tree, "promising_old", hasty(&tree, "branch", "branch", "100")).await;
    writer
        .run(&format!("begin isolation level repeatable read; {delay}"))
        .await;
    let output = run.go_on(1).await;
    assert_says(&output, "transactions that write to it did not end within 100 ms");
    // It has its snapshot, and writes when the root is closed.
    writer
        .run("rollback; begin isolation level repeatable read; select")
        .await;
    assert_eq!(writer.text("select count(*) from pgcascade.delayed_event").await, "0");
    let run = Paused::of(&tree, "fenced_old", command(&tree, "branch", "branch")).await;
    let refused = writer.try_text(delay).await.unwrap_err();
    assert!(
        refused.as_db_error().unwrap().message().contains("disabled"),
        "{refused:?}"
    );
    run.go_on(0).await;
    assert_eq!(root.text("select count(*) from pgcascade.delayed_event").await, "0");
    stop(replays).await;
    drop((root, branch, writer));
    tree.drop(&["branch", "root"]).await;
}

/// A plain consumer stays where it is, on the old root, and so does what it wants to have again: it comes there, once, and nobody else gets it.
#[tokio::test]
async fn what_a_consumer_wants_again_comes_on_a_branch_too() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let [branch] = tree.below_root([("branch", "branch")]).await;
    let replays = tree.replays(&["root", "branch"]);
    root.run("select pgq.register_consumer('q', 'plain')").await;
    write(&root, 100).await;
    let next = "select batch_id from pgq.next_batch_info('q', 'plain') where batch_id is not null";
    let events = loop {
        until(&root, &format!("select count(*) from ({next}) b"), "1").await;
        let batch = root.text(next).await;
        let events = root
            .text(&format!(
                "select pgq.event_retry({batch}, ev_id, 86400), ev_id from pgq.get_batch_events({batch}) order by ev_id limit 2"
            ))
            .await;
        root.run(&format!("select pgq.finish_batch({batch})")).await;
        // There may be ticks from before the first of them.
        if !events.is_empty() {
            break events;
        }
    };
    let ids: Vec<&str> = events.lines().filter_map(|line| line.strip_prefix("1|")).collect();
    assert_eq!(ids.len(), 2, "{events}");
    takeover(&tree, "root", "branch", &[], 0).await;

    let wait = async |wanted: &str| {
        root.run(
            "update pgq.retry_queue set ev_retry_after = now() where ev_id = (select min(ev_id) from pgq.retry_queue)",
        )
        .await;
        let mut from = 1000;
        loop {
            let batch = root.text(next).await;
            if batch.is_empty() {
                // The ticks are the new root's; one comes after the event was put back.
                from += 100;
                write(&branch, from).await;
                let last = branch.text("select pgq.force_tick('q')").await;
                until(&root, &format!("select max(tick_id) > {last} from pgq.tick"), "t").await;
                continue;
            }
            let again = root
                .text(&format!(
                    "select ev_id from pgq.get_batch_events({batch}) where ev_retry = 1"
                ))
                .await;
            root.run(&format!("select pgq.finish_batch({batch})")).await;
            if !again.is_empty() {
                assert_eq!(again, wanted);
                break;
            }
        }
    };
    wait(ids[0]).await;
    // The other one comes when the old root is about to be the root again, after the last tick that it has.
    let run = Paused::of(
        &tree,
        "after_drained",
        command(&tree, "root", "root").args(&["--from", "branch"]),
    )
    .await;
    root.run("update pgq.retry_queue set ev_retry_after = now()").await;
    until(&root, "select count(*) from pgq.retry_queue", "0").await;
    run.go_on(0).await;
    assert_eq!(state(&root).await, "root|t|3|t");
    let mut again = String::new();
    while again.is_empty() {
        until(&root, &format!("select count(*) from ({next}) b"), "1").await;
        let batch = root.text(next).await;
        again = root
            .text(&format!(
                "select ev_id from pgq.get_batch_events({batch}) where ev_retry = 1"
            ))
            .await;
        root.run(&format!("select pgq.finish_batch({batch})")).await;
    }
    assert_eq!(again, ids[1]);
    write(&root, 2000).await;
    tree.wait("branch").await;
    tree.assert_same_rows(&root, &branch).await;
    tree.assert_same_queue(&branch, &root).await;
    stop(replays).await;
    drop((root, branch));
    tree.drop(&["branch", "root"]).await;
}
