//! Servers that hang, and locks that nobody gives up: whatever the command asks of a node ends. What hangs is a stopped process, which goes
//! on later, with what it had been asked.

use std::path::Path;
use std::process::Command;

use crate::cluster::{Db, Output, Replay, Running};
use crate::dead::JOURNAL;
use crate::planned::{command, state};
use crate::tree::{Tree, stop, until, write};

/// Each hanging answer takes as long; nothing else may take longer.
const TIMEOUT: [&str; 2] = ["--timeout", "15"];

fn signal(name: &str, pids: &str) {
    for pid in pids.lines() {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(pid).status();
        // A session that was given up just then may end meanwhile.
        let is_gone = || !Path::new("/proc").join(pid).exists();
        assert!(sent.expect("kill can be run").success() || is_gone());
    }
}

fn impatient(tree: &Tree) -> Replay {
    let at = tree.conninfo("branch");
    Replay::command(&["takeover", "branch", "--queue", "q", "--db", &at]).args(&TIMEOUT)
}

/// A run of the command that waits at a place until it is told to go on.
pub(crate) struct Paused {
    running: Running,
    file: String,
}

impl Paused {
    pub(crate) async fn at(tree: &Tree, point: &str, more: &[&str]) -> Self {
        Self::of(tree, point, impatient(tree).args(more)).await
    }

    pub(crate) async fn of(tree: &Tree, point: &str, command: Replay) -> Self {
        let file = tree
            .cluster("root")
            .file(&format!("{}-{point}", tree.database_name("go")));
        let running = command.failpoints(&format!("takeover_{point}=pause:{file}")).spawn();
        running.until_it_says(&format!("{point} waits until")).await;
        Self { running, file }
    }

    /// Told to stop; it hears that when it goes on.
    async fn told_to_stop(&self) {
        self.running.signal("TERM");
        self.running.until_it_says("stopping after the work at hand").await;
    }

    /// Told to go on, and not waited for yet.
    pub(crate) fn release(&self) {
        std::fs::write(&self.file, "").unwrap();
    }

    pub(crate) async fn go_on(self, code: i32) -> Output {
        self.release();
        let output = self.running.wait().await;
        std::fs::remove_file(&self.file).unwrap();
        assert_eq!(output.code(), Some(code), "{}", output.stderr);
        output
    }
}

/// Stops what the command has there, and returns it.
async fn hang(node: &Db) -> String {
    let pids = node
        .text("select pid from pg_stat_activity where application_name = 'consumer node' and datname = current_database()")
        .await;
    assert!(!pids.is_empty());
    signal("STOP", &pids);
    pids
}

/// Has the command ask for something, and stops that on its way: it waits for a lock on the nodes, which it gets while it is stopped, as
/// anybody else does.
async fn hang_in(tree: &Tree, run: &Paused, function: &str) -> String {
    let (node, holder) = (tree.connect("root").await, tree.connect("root").await);
    holder.run("begin; lock pgq_node.node_info").await;
    run.release();
    let waits = format!(
        "select pid from pg_stat_activity
          where datname = current_database() and query like '%pgcascade.{function}%' and wait_event = 'relation' and pid <> pg_backend_pid()"
    );
    until(&node, &format!("select count(*) from ({waits}) w"), "1").await;
    let pids = node.text(&waits).await;
    signal("STOP", &pids);
    holder.run("commit").await;
    pids
}

/// It goes on, and does what it had been asked.
async fn wake(node: &Db, pids: &str) {
    signal("CONT", pids);
    let list = pids.replace('\n', ",");
    until(
        node,
        &format!("select count(*) from pg_stat_activity where pid in ({list})"),
        "0",
    )
    .await;
}

fn assert_says(output: &Output, wanted: &[&str]) {
    for wanted in wanted {
        assert!(output.stderr.contains(wanted), "{wanted}: {}", output.stderr);
    }
}

/// One session hangs, on the old root or on the new one: the takeover is given up, and what the session does when it goes on changes nothing.
#[tokio::test]
async fn a_hanging_session_is_given_up_and_comes_too_late() {
    let tree = Tree::apart().await.elsewhere(&["branch"]);
    let root = tree.connect("root").await;
    let [branch] = tree.below_root([("branch", "branch")]).await;
    let replays = tree.replays(&["root", "branch"]);
    let given_up = ["was given up, and the old root is open", "gave no answer within"];
    for (point, on, what) in [
        (
            "promising_old",
            &root,
            "have node \"root\" of queue \"q\" promise epoch 2",
        ),
        ("promised_old", &root, "could not close node \"root\""),
        ("fenced_old", &branch, "could not enter in the journal"),
        ("after_drained", &branch, "could not "),
    ] {
        let run = Paused::at(&tree, point, &[]).await;
        let pids = match point {
            "promised_old" => hang_in(&tree, &run, "fence_root").await,
            _ => hang(on).await,
        };
        let output = run.go_on(1).await;
        assert_says(&output, &given_up);
        assert_says(&output, &[what]);
        assert_eq!(state(&root).await, "root|t|1|t", "{point}");
        root.run("insert into journal values (-1, 'while it hangs')").await;
        wake(on, &pids).await;
        assert_eq!(state(&root).await, "root|t|1|t", "{point}");
        assert_eq!(state(&branch).await, "branch|f|1|t", "{point}");
    }
    let done = command(&tree, "branch", "branch").output().await;
    assert_eq!(done.code(), Some(0), "{}", done.stderr);
    write(&branch, 100).await;
    stop(replays).await;
    tree.catch_up("root").await;
    tree.assert_same_rows(&branch, &root).await;
}

/// A whole server hangs: it accepts connections, and says nothing. The old root does so after the new one was promoted, a leaf at all times.
#[tokio::test]
async fn a_hanging_server_is_passed_over_or_named() {
    let tree = Tree::apart().await.elsewhere(&["leaf"]);
    let root = tree.connect("root").await;
    let [branch, leaf] = tree.below_root([("branch", "branch"), ("leaf", "leaf")]).await;
    let replays = tree.replays(&["root", "branch"]);
    let server = |signal: &str, name: &str| {
        let cluster = tree.cluster(name);
        cluster.shell(&format!("kill -{signal} $(head -n 1 \"$PGDATA/postmaster.pid\")"));
    };
    server("STOP", "leaf");
    let refused = impatient(&tree).arg("--plan").output().await;
    assert_eq!(refused.code(), Some(1), "{}", refused.stderr);
    let unreached = "node \"leaf\" cannot be reached, so it could not be told";
    assert_says(&refused, &[unreached, "no answer within"]);
    assert_eq!(branch.text("select count(*) from pgcascade.takeover").await, "0");
    server("CONT", "leaf");

    let run = Paused::at(&tree, "after_promoted", &[]).await;
    server("STOP", "root");
    let output = run.go_on(1).await;
    let promoted = "stopped after it promoted, and goes on with --resume: node \"root\": could not connect";
    assert_says(&output, &[promoted, "no answer within"]);
    server("CONT", "root");
    let run = Paused::at(&tree, "after_demoted", &["--resume"]).await;
    server("STOP", "leaf");
    let output = run.go_on(0).await;
    assert_says(
        &output,
        &["node \"leaf\": could not connect", "consumer node change-provider leaf"],
    );
    assert_eq!(state(&branch).await, "root|t|2|t");
    assert_eq!(state(&root).await, "branch|f|2|t");
    server("CONT", "leaf");
    let moved = tree
        .node_command(
            "change-provider leaf --provider branch",
            &["--db", &tree.conninfo("branch")],
        )
        .spawn();
    let replay = tree.replay("leaf").spawn();
    assert_eq!(moved.wait().await.code(), Some(0));
    write(&branch, 100).await;
    until(&leaf, JOURNAL, &branch.text(JOURNAL).await).await;
    stop(replays).await;
    replay.stop().await;
    drop(branch);
    tree.drop(&["branch"]).await;
}

/// Somebody has a lock and keeps it.
#[tokio::test]
async fn a_lock_that_is_kept_is_not_waited_for() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let [branch] = tree.below_root([("branch", "branch")]).await;
    let replays = tree.replays(&["root", "branch"]);
    let late = "canceling statement due to lock timeout";
    // The root's own row, which also whoever gives it up needs; it has promised nothing, and is open all the time.
    let run = Paused::at(&tree, "promising_old", &[]).await;
    let holder = tree.connect("root").await;
    holder.run("begin; select from pgq_node.node_info for update").await;
    let output = run.go_on(1).await;
    assert_says(
        &output,
        &[
            "was given up",
            "have node \"root\" of queue \"q\" promise epoch 2",
            late,
        ],
    );
    assert_eq!(state(&root).await, "root|t|1|t");
    holder.run("commit").await;
    // The journal: nobody can say now that it is given up.
    let run = Paused::at(&tree, "fenced_old", &[]).await;
    let holder = tree.connect("branch").await;
    holder.run("begin; lock pgcascade.takeover").await;
    let output = run.go_on(1).await;
    assert_says(
        &output,
        &["stopped, and could not be given up", "--resume", "--abort", late],
    );
    assert_eq!(state(&root).await, "root|f|1|f");
    holder.run("commit").await;
    let aborted = command(&tree, "branch", "branch").arg("--abort").output().await;
    assert_eq!(aborted.code(), Some(0), "{}", aborted.stderr);
    assert_eq!(state(&root).await, "root|t|1|t");
    // Before anything is changed: a sequence is being altered.
    root.run("create table s (id serial primary key)").await;
    root.run("create trigger capture after insert on s for each row execute function pgq.logutriga('q')")
        .await;
    let holder = tree.connect("root").await;
    holder.run("begin; alter sequence s_id_seq cache 5").await;
    let output = impatient(&tree).output().await;
    assert_eq!(output.code(), Some(1), "{}", output.stderr);
    assert_says(&output, &["read the sequences of node \"root\"", late]);
    holder.run("rollback").await;
    stop(replays).await;
    drop((root, branch, holder));
    tree.drop(&["branch", "root"]).await;
}

/// Told to stop while it is being entered in the journal, it is entered, and given up.
#[tokio::test]
async fn a_signal_while_it_begins_leaves_nothing() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    let [branch] = tree.below_root([("branch", "branch")]).await;
    let replays = tree.replays(&["root", "branch"]);
    let run = Paused::of(&tree, "looked", command(&tree, "branch", "branch")).await;
    let holder = tree.connect("branch").await;
    holder.run("begin; select from pgq_node.node_info for update").await;
    run.release();
    let waits = "select count(*) from pg_stat_activity
                  where datname = current_database() and query like '%takeover_begin%' and wait_event_type = 'Lock'";
    until(&branch, waits, "1").await;
    run.told_to_stop().await;
    holder.run("commit").await;
    let output = run.go_on(1).await;
    assert_says(
        &output,
        &["was given up, and the old root is open: stopped before the takeover was done"],
    );
    assert_eq!(branch.text("select step from pgcascade.takeover").await, "aborted");
    assert_eq!(state(&branch).await, "branch|f|1|t");
    stop(replays).await;
    drop((root, branch, holder));
    tree.drop(&["branch", "root"]).await;
}

/// Told to stop while it asks for a promise that is given only when it has been given up. No replay runs that would ask what became of that.
#[tokio::test]
async fn a_promise_that_comes_after_the_release_is_refused() {
    let tree = Tree::apart().await;
    let root = tree.connect("root").await;
    let [branch] = tree.below_root([("branch", "branch")]).await;
    let replay = tree.replay("branch").spawn();
    for again in [false, true] {
        let patient = command(&tree, "branch", "branch");
        let run = Paused::of(&tree, "promising_old", patient).await;
        let pids = hang_in(&tree, &run, "promise_epoch").await;
        run.told_to_stop().await;
        let output = run.go_on(1).await;
        assert_says(
            &output,
            &["was given up, and the old root is open: stopped before the takeover was done"],
        );
        wake(&root, &pids).await;
        assert_eq!(state(&root).await, "root|t|1|t", "{again}");
        let log = tree.cluster("root").log();
        assert!(
            log.contains("cannot promise epoch 2 to takeover") && log.contains("which was given up"),
            "{log}"
        );
    }
    let done = command(&tree, "branch", "branch").output().await;
    assert_eq!(done.code(), Some(0), "{}", done.stderr);
    assert_eq!(root.text("select count(*) from pgcascade.node_release").await, "0");
    replay.stop().await;
    drop((root, branch));
    tree.drop(&["branch"]).await;
}

/// The command hangs before it asks a leaf for its promise, and another run gives the takeover up meanwhile. No replay of the leaf runs that would
/// ask what became of that.
#[tokio::test]
async fn a_promise_of_a_leaf_that_comes_after_the_release_is_refused() {
    let tree = Tree::apart().await;
    let [branch, other, leaf] = tree
        .below_root([("branch", "branch"), ("branch", "other"), ("leaf", "leaf")])
        .await;
    tree.kill_root();
    let dead = command(&tree, "branch", "branch").args(&["--dead", "root"]);
    let run = Paused::of(&tree, "promised_one", dead).await;
    let aborted = command(&tree, "branch", "branch").arg("--abort").output().await;
    assert_eq!(aborted.code(), Some(0), "{}", aborted.stderr);
    let output = run.go_on(1).await;
    assert_says(
        &output,
        &[
            "node \"leaf\" of queue \"q\" cannot promise epoch 2",
            "which was given up",
        ],
    );
    let promises = "select promises, epoch, cardinality(released) from pgcascade_replay.node";
    assert_eq!(leaf.text(promises).await, "{}|1|1");
    let replays = tree.replays(&["branch", "other", "leaf"]);
    let done = command(&tree, "branch", "branch")
        .args(&["--dead", "root"])
        .output()
        .await;
    assert_eq!(done.code(), Some(0), "{}", done.stderr);
    assert_eq!(leaf.text(promises).await, "{}|2|0");
    stop(replays).await;
    drop((branch, other, leaf));
    tree.drop(&["leaf", "other", "branch"]).await;
}

/// To look for the furthest value of a column takes longer than the command may wait, as in a large table without an index; here somebody ends it, which is
/// the same to the command. The sequence is moved on without it.
#[tokio::test]
async fn a_sequence_is_moved_on_also_where_the_rows_are_too_many() {
    let tree = Tree::apart().await;
    let root = tree.connect("root").await;
    root.run(
        "create table big (id bigint generated by default as identity, what text);
         create table small (id int primary key generated by default as identity (increment by -1))",
    )
    .await;
    let [new, other, leaf] = tree
        .below_root([("branch", "new"), ("branch", "other"), ("leaf", "leaf")])
        .await;
    root.run("insert into big (what) select 'only the leaf has it' from generate_series(1, 4000)")
        .await;
    root.run("insert into small select from generate_series(1, 2000)").await;
    write(&root, 100).await;
    tree.catch_up("leaf").await;
    drop(root);
    tree.kill_root();
    let replays = tree.replays(&["new", "other", "leaf"]);
    let dead = command(&tree, "new", "new").args(&["--dead", "root"]);
    let run = Paused::of(&tree, "fetched", dead).await;
    let holder = tree.connect("new").await;
    holder.run("begin; lock table big in access exclusive mode").await;
    run.release();
    let waits = "from pg_stat_activity
                  where datname = current_database() and query like '%max(%big%' and wait_event = 'relation' and pid <> pg_backend_pid()";
    until(&new, &format!("select count(pg_cancel_backend(pid)) {waits}"), "1").await;
    until(&new, &format!("select count(*) {waits}"), "0").await;
    holder.run("commit").await;
    let output = run.go_on(0).await;
    assert_says(
        &output,
        &[
            "sequence public.big_id_seq was moved on by ",
            "column id of table public.big",
        ],
    );
    let ahead = "select (select last_value from big_id_seq) >= max(id), max(id) from big";
    assert_eq!(new.text(ahead).await, "t|4000");
    assert_eq!(
        new.text("select last_value, (select min(id) from small) from small_id_seq")
            .await,
        "-2000|-2000"
    );
    stop(replays).await;
    drop((new, other, leaf, holder));
    tree.drop(&["leaf", "other", "new"]).await;
}
