//! What stands against a takeover after it was begun: it is looked at again before the old root is closed, and as long as it can be given up.

use crate::cluster::{Db, Output, Replay};
use crate::planned::{command, state, takeover};
use crate::tree::{Tree, until, until_not_replayed};

const OPEN: &str = "root|t|1|t";
const GIVEN_UP: &str = "was given up, and the old root is open";

/// A captured table that the branch does not replay.
const LATE: &str = "create table late (id int);
    create trigger capture after insert or update or delete on late for each row execute function pgq.logutriga('q')";

/// Replay of the tables that are there from the beginning, and of no other.
fn replay(tree: &Tree, name: &str) -> Replay {
    let at = tree.conninfo(name);
    Replay::command(&[
        "replay",
        "--subscriber",
        &at,
        "--queue",
        "q",
        "--watermark-interval",
        "1",
        "--retry-max",
        "1",
    ])
}

async fn killed(tree: &Tree, new: &str, more: &[&str], point: &str) {
    let points = format!("takeover_{point}=kill");
    let killed = command(tree, "root", new).args(more).failpoints(&points).output().await;
    assert_eq!(killed.code(), None, "{point} was not reached: {}", killed.stderr);
}

/// It was given up, and for that reason.
async fn assert_given_up(output: &Output, why: &str, root: &Db) {
    assert_eq!(output.code(), Some(1), "{}", output.stderr);
    assert!(
        output.stderr.contains(why) && output.stderr.contains(GIVEN_UP),
        "{why}: {}",
        output.stderr
    );
    assert_eq!(state(root).await, OPEN);
}

#[tokio::test]
async fn a_table_that_comes_later_is_not_left_behind() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let branch = tree.add("branch", "branch", "root").await;
    tree.catch_up("branch").await;
    let replay = replay(&tree, "branch").spawn();
    let lacks = "table public.late is not replayed to \"branch\"";

    // Between two runs.
    killed(&tree, "branch", &[], "after_prepared").await;
    root.run(LATE).await;
    let resumed = takeover(&tree, "root", "branch", &["--resume"], 1).await;
    assert_given_up(&resumed, lacks, &root).await;
    assert!(!resumed.stderr.contains("drained"), "{}", resumed.stderr);

    // After the last look before the root is closed.
    root.run("drop table late").await;
    let file = std::env::temp_dir().join(format!("takeover-late-{}", std::process::id()));
    let points = format!("takeover_promised_old=pause:{}", file.display());
    let paused = command(&tree, "root", "branch").failpoints(&points).spawn();
    paused.until_it_says("takeover_promised_old waits").await;
    root.run(LATE).await;
    std::fs::write(&file, "").unwrap();
    assert_given_up(&paused.wait().await, lacks, &root).await;
    std::fs::remove_file(&file).unwrap();

    // It has lost a table while nobody went on with it.
    root.run("drop table late").await;
    for point in ["after_fenced", "after_drained"] {
        killed(&tree, "branch", &[], point).await;
        branch
            .run("update pgcascade_replay.table_state set state = 'broken' where provider_table = 't'")
            .await;
        let resumed = takeover(&tree, "root", "branch", &["--resume"], 1).await;
        assert_given_up(&resumed, "table public.t is broken on \"branch\"", &root).await;
        branch.run("update pgcascade_replay.table_state set state = 'ok'").await;
    }

    // Left behind on purpose, which has to be said again.
    root.run(LATE).await;
    let ignore = ["--ignore-table", "public.late"];
    killed(&tree, "branch", &ignore, "after_prepared").await;
    takeover(&tree, "root", "branch", &["--resume", ignore[0], ignore[1]], 0).await;
    assert_eq!(state(&branch).await, "root|t|2|t");
    replay.stop().await;
    drop((root, branch));
    tree.drop(&["branch", "root"]).await;
}

/// Who would not get the closing tick is not waited for with the root closed.
#[tokio::test]
async fn who_does_not_replay_closes_nothing() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let branch = tree.add("branch", "branch", "root").await;
    tree.catch_up("branch").await;
    let below = tree.add("branch", "below", "branch").await;
    tree.catch_up("below").await;
    let short = |new: &str| {
        let at = tree.conninfo("root");
        Replay::command(&["takeover", new, "--queue", "q", "--db", &at, "--timeout", "10"])
    };
    until_not_replayed(&[&branch, &below]).await;
    let stands = "no replay of node \"branch\" of queue \"q\" runs";
    for refused in [command(&tree, "root", "branch").arg("--plan"), short("branch")] {
        let refused = refused.output().await;
        assert_eq!(refused.code(), Some(1), "{}", refused.stderr);
        assert!(
            refused.stderr.contains(stands) && refused.stderr.contains("start it: consumer replay"),
            "{}",
            refused.stderr
        );
    }
    assert_eq!(branch.text("select count(*) from pgcascade.takeover").await, "0");

    let fenced = |output: &Output| output.stderr.contains(" fenced");
    for new in ["branch", "below"] {
        let replays = [replay(&tree, "branch").spawn(), replay(&tree, "below").spawn()];
        // They are there, and have nothing to do.
        for name in ["branch", "below"] {
            tree.until_ok(name).await;
        }
        killed(&tree, new, &[], "after_prepared").await;
        tree.manage(0, "pause branch").await;
        let paused = command(&tree, "root", new).arg("--resume").output().await;
        assert_given_up(&paused, "node \"branch\" of queue \"q\" is paused", &root).await;
        assert!(!fenced(&paused), "{}", paused.stderr);
        let refused = takeover(&tree, "root", new, &[], 1).await;
        assert!(
            refused
                .stderr
                .contains("is paused (let it go on: consumer node resume branch)"),
            "{}",
            refused.stderr
        );
        tree.manage(0, "resume branch").await;

        killed(&tree, new, &[], "after_prepared").await;
        for replay in replays {
            replay.stop().await;
        }
        until_not_replayed(&[&branch, &below]).await;
        let below = (new == "below").then(|| replay(&tree, "below").spawn());
        let stopped = short(new).arg("--resume").output().await;
        assert_given_up(&stopped, stands, &root).await;
        assert!(!fenced(&stopped), "{}", stopped.stderr);
        if let Some(below) = below {
            below.stop().await;
        }
    }
    drop((root, branch, below));
    tree.drop(&["below", "branch", "root"]).await;
}

/// Two takeovers to different branches. The one that loses leaves nothing behind.
#[tokio::test]
async fn of_two_the_one_that_loses_leaves_nothing_behind() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let [x, y] = tree.below_root([("branch", "x"), ("branch", "y")]).await;
    let replays = tree.replays(&["x", "y"]);
    killed(&tree, "y", &[], "after_prepared").await;
    let refused = takeover(&tree, "root", "x", &[], 1).await;
    let op = y.text("select op_id from pgcascade.takeover").await;
    assert!(
        refused
            .stderr
            .contains(&format!("node \"y\" is promised to takeover {op}"))
            && refused.stderr.contains("consumer takeover y with --resume or --abort"),
        "{}",
        refused.stderr
    );
    takeover(&tree, "root", "y", &["--abort"], 0).await;

    // Both have looked, and neither has begun.
    let files: Vec<_> = ["y", "y-fence", "x"]
        .map(|name| std::env::temp_dir().join(format!("takeover-rivals-{name}-{}", std::process::id())))
        .into();
    let [looked_y, fence_y, looked_x] = &files[..] else {
        unreachable!()
    };
    let points = format!(
        "takeover_looked=pause:{};takeover_before_fenced=pause:{}",
        looked_y.display(),
        fence_y.display()
    );
    let late = command(&tree, "root", "y").failpoints(&points).spawn();
    let points = format!("takeover_looked=pause:{}", looked_x.display());
    let first = command(&tree, "root", "x").failpoints(&points).spawn();
    for running in [&late, &first] {
        running.until_it_says("takeover_looked waits").await;
    }
    std::fs::write(looked_y, "").unwrap();
    late.until_it_says("takeover_before_fenced waits").await;
    std::fs::write(looked_x, "").unwrap();
    let first = first.wait().await;
    assert_eq!(first.code(), Some(0), "{}", first.stderr);
    assert!(
        first.stderr.contains("is promised to takeover") && first.stderr.contains("change-provider y --provider x"),
        "{}",
        first.stderr
    );
    let keeps = "select string_agg(subscriber_node, ',') from pgq_node.subscriber_info";
    assert_eq!(x.text(keeps).await, "root", "nothing is kept for who does not follow");
    std::fs::write(fence_y, "").unwrap();
    let lost = late.wait().await;
    assert_eq!(lost.code(), Some(1), "{}", lost.stderr);
    assert!(lost.stderr.contains("came second and was given up"), "{}", lost.stderr);
    assert_eq!(state(&y).await, "branch|f|1|t");
    assert_eq!(
        y.text("select string_agg(step, ',') from pgcascade.takeover").await,
        "aborted,aborted"
    );
    // Nothing is in the way of what the warning said.
    tree.manage(0, "change-provider y --provider x").await;
    x.run("insert into journal values (900, 'after')").await;
    until(&y, "select count(*) from journal where uid = 900", "1").await;
    for file in &files {
        std::fs::remove_file(file).unwrap();
    }
    for replay in replays {
        replay.stop().await;
    }
    drop((root, x, y));
    tree.drop(&["x", "y", "root"]).await;
}

/// SIGTERM is a failure like any other: before the promotion the old root opens again.
#[tokio::test]
async fn told_to_stop_it_gives_up() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let branch = tree.add("branch", "branch", "root").await;
    tree.catch_up("branch").await;
    let replay = tree.replay("branch").spawn();
    let file = std::env::temp_dir().join(format!("takeover-stopped-{}", std::process::id()));
    let stopped = async |point: &str| {
        let points = format!("takeover_{point}=pause:{}", file.display());
        let running = command(&tree, "root", "branch").failpoints(&points).spawn();
        running.until_it_says(&format!("takeover_{point} waits")).await;
        running.signal("TERM");
        running.until_it_says("stopping after the work at hand").await;
        std::fs::write(&file, "").unwrap();
        let output = running.wait().await;
        std::fs::remove_file(&file).unwrap();
        output
    };
    for point in [
        "after_prepared",
        "promised_old",
        "fenced_old",
        "after_fenced",
        "after_drained",
    ] {
        let output = stopped(point).await;
        assert_given_up(&output, "stopped before the takeover was done", &root).await;
    }
    // While it waits for a transaction that writes.
    let writer = tree.connect("root").await;
    writer.run("begin; insert into journal values (5, 'open')").await;
    let waiting = command(&tree, "root", "branch").spawn();
    let waits = "select count(*) from pg_stat_activity
                  where datname = current_database() and query like '%pgcascade.fence_root(%' and wait_event = 'relation'
                    and pid <> pg_backend_pid()";
    until(&root, waits, "1").await;
    waiting.signal("TERM");
    waiting.until_it_says("stopping after the work at hand").await;
    writer.run("commit").await;
    assert_given_up(&waiting.wait().await, "stopped before the takeover was done", &root).await;

    let output = stopped("after_promoted").await;
    assert_eq!(output.code(), Some(1), "{}", output.stderr);
    assert!(
        output.stderr.contains("stopped before the takeover was done") && output.stderr.contains("--resume"),
        "{}",
        output.stderr
    );
    assert_eq!(state(&root).await, "root|f|1|f");
    takeover(&tree, "root", "branch", &["--resume"], 0).await;
    assert_eq!(state(&branch).await, "root|t|2|t");
    replay.stop().await;
    drop((root, branch, writer));
    tree.drop(&["branch", "root"]).await;
}
