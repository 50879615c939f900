//! What stands against a takeover after it was begun: it is looked at again before the old root is closed, and as long as it can be given up.

use crate::cluster::{Db, Output, Replay};
use crate::planned::{command, state, takeover};
use crate::tree::{Tree, until};

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

/// A server looks every second whether a database has got the extension, and no takeover begins where no ticker runs.
async fn ticking(node: &Db) {
    let ticker = "select exists (select from pg_locks l join pg_database b on b.oid = l.database where b.datname = current_database()
                    and l.locktype = 'object' and l.granted and l.classid = 'pg_extension'::regclass and l.objid = 0)";
    until(node, ticker, "t").await;
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
    ticking(&branch).await;
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
