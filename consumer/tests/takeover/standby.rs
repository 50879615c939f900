//! A standby of the root is promoted, and is to be the root: ahead of the branches, level with them, or behind.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::cluster::{Cluster, Db, Output, Replay, eventually, pause_ticks};
use crate::dead::{assert_follow, killed, takeover};
use crate::planned;
use crate::tree::{Tree, stop, until, write};

/// A cascade whose root has a streaming standby.
pub(crate) struct Standby {
    pub(crate) tree: Tree,
    pub(crate) cluster: Cluster,
    nodes: Vec<&'static str>,
}

/// What the root's server needs: a commit waits for a standby only where it is told to.
pub(crate) const LOCAL: &[&str] = &["-o", "synchronous_commit=local"];

/// What a cascade has below its root, unless a test says something else. When they have caught up one after the other, `near` has the last tick.
pub(crate) const BELOW: [(&str, &str); 3] = [("leaf", "leaf"), ("branch", "far"), ("branch", "near")];

const STATE: &str = "select role, open, epoch, promised_op is null, frozen from pgcascade.node_state";

impl Standby {
    /// With branches `far` and `near` and a leaf, all reading from the root.
    pub(crate) async fn new() -> Self {
        Self::of(Tree::apart_with(LOCAL).await, BELOW).await
    }

    /// The same with a root that is there, and these nodes.
    pub(crate) async fn of<const N: usize>(tree: Tree, below: [(&str, &'static str); N]) -> Self {
        tree.below_root(below).await;
        let cluster = tree.apart_cluster().standby("standby");
        let nodes = below.map(|(_, name)| name).into();
        Self { tree, cluster, nodes }
    }

    pub(crate) fn conninfo(&self) -> String {
        self.cluster.conninfo(&self.tree.database_name("root"))
    }

    pub(crate) async fn connect(&self) -> Db {
        self.cluster.connect(&self.tree.database_name("root")).await
    }

    /// It has all that the root has logged.
    pub(crate) async fn synchronous(&self, root: &Db) {
        let place = root.text("select pg_current_wal_insert_lsn()").await;
        let here = self.connect().await;
        // What was inserted last may not be flushed; this is.
        root.run("select pg_switch_wal()").await;
        until(
            &here,
            &format!("select pg_last_wal_replay_lsn() >= '{place}'::pg_lsn"),
            "t",
        )
        .await;
    }

    /// It gets no more of the log.
    pub(crate) async fn sever(&self) {
        let here = self.connect().await;
        here.run("alter system set primary_conninfo = ''").await;
        here.run("select pg_reload_conf()").await;
        until(&here, "select count(*) from pg_stat_wal_receiver", "0").await;
    }

    /// All nodes are level; then the standby gets a part of a batch and a commit that nobody sees, an extra if ticks are made now, and no more.
    /// No ticks are made any more.
    pub(crate) async fn left_behind(&self, root: &Db, extra: &str, seen: &str) {
        write(root, 100).await;
        self.tree.catch_up_all(&self.nodes).await;
        pause_ticks(root).await;
        root.run(
            "begin; update t set n = n + 1000 where id in (7, 8); insert into journal values (5000, 'part'); commit",
        )
        .await;
        commits_wait(&self.tree).await;
        let session = self.tree.connect("root").await;
        session.run("set synchronous_commit = on").await;
        let unseen = format!("update t set n = n + 5000 where id in (15, 16); insert into {extra}");
        tokio::spawn(async move {
            // Ends with the server.
            let _ = session.client.batch_execute(&unseen).await;
        });
        let seen = format!("select count(*) from {seen}");
        until(&self.connect().await, &seen, "1").await;
        assert_eq!(root.text(&seen).await, "0");
        self.synchronous(root).await;
        self.sever().await;
    }

    /// The root dies, and the standby is promoted; it is closed as soon as that is noticed.
    pub(crate) async fn promote(&self) -> Db {
        let here = self.promote_unnoticed().await;
        until(&here, "select open from pgcascade.node_state", "f").await;
        here
    }

    /// From the first moment on it takes no writes.
    pub(crate) async fn promote_unnoticed(&self) -> Db {
        self.tree.kill_root();
        let here = self.connect().await;
        here.run("select pg_promote(true, 600)").await;
        let refused = here.try_text("insert into journal values (-2, 'too early')").await;
        let said = format!("{:?}", refused.err());
        assert!(
            said.contains("promoted outside takeover") || said.contains("disallowed"),
            "{said}"
        );
        here
    }

    /// More of the batch that the standby was left behind in, which ends with it.
    pub(crate) async fn missing_from_its_batch(root: &Db) {
        root.run("begin; update t set n = n * 2 where id = 7; delete from t where id = 21; insert into journal values (6000, 'missing'); commit")
            .await;
        root.run("update pgq.queue set queue_ticker_paused = false").await;
    }

    pub(crate) fn command(&self, more: &[&str]) -> Replay {
        planned::at(&self.conninfo(), "root").args(more)
    }

    pub(crate) async fn takeover(&self, more: &[&str], code: i32) -> Output {
        let output = self.command(more).output().await;
        assert_eq!(output.code(), Some(code), "{more:?}: {}", output.stderr);
        output
    }

    async fn killed(&self, more: &[&str], point: &str) {
        let output = self.command(more).failpoints(&format!("{point}=kill")).output().await;
        assert_eq!(output.code(), None, "{point} was not reached: {}", output.stderr);
    }
}

const TOP: &str = "select max(tick_id) from pgq.tick";
pub(crate) const PROMOTED: &[&str] = &["--promoted-standby"];

/// From now on a commit on the root that waits for a standby waits for good: it is in the log, and nobody sees it.
pub(crate) async fn commits_wait(tree: &Tree) {
    let root = tree.connect("root").await;
    // Not before: what makes a database waits for it in any case.
    root.run("alter system set synchronous_standby_names = 'nobody'").await;
    root.run("select pg_reload_conf()").await;
    until(&root, "show synchronous_standby_names", "nobody").await;
    // From when the checkpointer has read it, too.
    const WAITS: &str = "from pg_stat_activity where wait_event = 'SyncRep'";
    eventually("a commit waits for a standby", async || {
        let probe = tree.connect("root").await;
        tokio::spawn(async move {
            let _ = probe
                .client
                .batch_execute("set synchronous_commit = on; select pg_logical_emit_message(true, 'probe', '')")
                .await;
        });
        root.text(&format!("select count(*) > 0 {WAITS}")).await == "t"
    })
    .await;
    until(&root, &format!("select count(pg_cancel_backend(pid)) {WAITS}"), "0").await;
}

/// The standby has a part of a batch and an event that no tick shows, and lacks that tick and two more. The command is killed all the way.
#[tokio::test]
async fn what_branches_have_is_merged_into_a_promoted_standby() {
    let standby = Standby::new().await;
    let tree = &standby.tree;
    let root = tree.connect("root").await;
    standby
        .left_behind(&root, "journal values (7000, 'extra')", "journal where uid = 7000")
        .await;
    Standby::missing_from_its_batch(&root).await;
    tree.catch_up("far").await;
    tree.catch_up("leaf").await;
    for from in [200, 300] {
        write(&root, from).await;
        tree.catch_up("far").await;
    }
    // This one nobody else gets.
    root.run("insert into journal values (-1, 'lost')").await;
    drop(root);
    let far = tree.connect("far").await;
    let near = tree.connect("near").await;
    let leaf = tree.connect("leaf").await;
    let here = standby.promote().await;
    let (top, furthest) = (here.text(TOP).await, far.text(TOP).await);
    assert!(top.parse::<i64>().unwrap() + 2 < furthest.parse::<i64>().unwrap());
    assert_eq!(near.text(TOP).await, top);
    assert_eq!(here.text("select count(*) from journal where uid = 6000").await, "0");
    let replays = tree.replays(&["far", "near", "leaf"]);

    let planned = standby.command(PROMOTED).arg("--plan").stdout();
    for line in [
        "queue q: root \"root\" -> \"root\", epoch 2;".to_owned(),
        format!("  branch \"far\" is at tick {furthest}, and the promoted standby at tick {top}"),
        format!("  branch \"near\" is at tick {top}, as the promoted standby"),
    ] {
        assert!(
            planned.contains(&line) && !planned.contains("AGAINST"),
            "{line}: {planned}"
        );
    }
    let closed = "root|f|1|t|f";
    assert_eq!(here.text(STATE).await, closed);
    for point in [
        "takeover_after_prepared",
        "takeover_promised_one",
        "takeover_after_promised",
        "takeover_after_elected",
        "takeover_set_aside",
        // The replay in it, in the first tick that is fetched, and behind it.
        "before_commit",
        "after_commit",
    ] {
        standby.killed(PROMOTED, point).await;
        standby.takeover(&["--abort"], 0).await;
        assert_eq!(here.text(STATE).await, closed, "{point}");
        for node in [&far, &near] {
            assert_eq!(node.text(STATE).await, "branch|f|1|t|f", "{point}");
        }
        let extra = "select count(*) from pgq.event_1 where ev_data like 'uid=7000%'";
        assert_eq!(here.text(extra).await, "1", "{point}");
    }
    // How the others reach it is said when it begins.
    let place = format!("{} connect_timeout=290", standby.conninfo());
    standby
        .killed(&["--promoted-standby", "--location", &place], "takeover_after_promised")
        .await;
    for point in [
        "takeover_set_aside",
        "after_commit",
        "takeover_after_caught-up",
        "takeover_after_promoted",
        "takeover_located",
        "takeover_told",
        "takeover_after_repointed",
        "takeover_confirmed_one",
        "takeover_after_opened",
    ] {
        // Typed again, it goes on.
        standby.killed(PROMOTED, point).await;
        let open = here.text("select open from pgcascade.node_state").await;
        assert_eq!(open == "t", point == "takeover_after_opened", "{point}");
    }
    standby.takeover(PROMOTED, 0).await;
    let again = standby.takeover(PROMOTED, 0).await;
    assert!(again.stderr.contains("there is nothing to do"), "{}", again.stderr);

    let epoch = here.text("select epoch from pgcascade.node_state").await;
    assert_eq!(here.text(STATE).await, format!("root|t|{epoch}|t|f"));
    for node in [&far, &near] {
        until(node, STATE, &format!("branch|f|{epoch}|t|f")).await;
    }
    assert_eq!(
        here.text("select kind, donor, fork_tick, step from pgcascade.takeover where step <> 'aborted'")
            .await,
        format!("standby|far|{furthest}|done")
    );
    assert_eq!(here.text("select count(*) from pgcascade.takeover_tail").await, "0");
    assert_eq!(far.text("select count(*) from pgq_node.subscriber_info").await, "0");
    write(&here, 400).await;
    assert_follow(tree, &here, &[&far, &near, &leaf]).await;
    for (uid, times) in [(5000, 1), (6000, 1), (7000, 1), (-1, 0), (-2, 0)] {
        let there = format!("select count(*) from journal where uid = {uid}");
        assert_eq!(here.text(&there).await, times.to_string(), "{uid}");
    }
    for node in [&far, &near] {
        tree.assert_same_queue(node, &here).await;
    }
    // Everybody has been told where the root is now.
    for node in [&far, &near] {
        assert_eq!(
            node.text("select node_location, dead from pgq_node.node_location where node_name = 'root'")
                .await,
            format!("{place}|f")
        );
    }
    eventually("every node is well", async || {
        let at = tree.conninfo("leaf");
        let status = Replay::command(&["status", "--subscriber", &at, "--queue", "q", "--quiet"]);
        status.output().await.code() == Some(0)
    })
    .await;

    // The old primary comes back as it was; as soon as its replay runs, it is closed.
    tree.start_root();
    let root = tree.connect("root").await;
    let state = "select role, open, epoch from pgcascade.node_state";
    assert_eq!(root.text(state).await, "root|t|1");
    let replay = tree.replay("root").spawn();
    until(&root, state, &format!("root|f|{epoch}")).await;
    assert_eq!(root.text("select count(*) from journal where uid = -1").await, "1");
    replay.stop().await;
    stop(replays).await;
    drop((root, here, far, near, leaf));
    standby.tree.drop(&["leaf", "far", "near"]).await;
}

/// The root dies while it is closed for a planned takeover to `near`, whose command dies with it. The standby has all that the root had, or was
/// cut off before the root was closed; and is the root again, whatever the takeover still says on `near`.
#[tokio::test]
async fn a_root_that_is_lost_while_a_takeover_has_closed_it() {
    for (point, is_severed) in [("promised_old", false), ("fenced_old", false), ("after_drained", true)] {
        let standby = Standby::of(Tree::apart_with(LOCAL).await, [("branch", "far"), ("branch", "near")]).await;
        let tree = &standby.tree;
        let root = tree.connect("root").await;
        let replays = tree.replays(&["far", "near"]);
        if is_severed {
            standby.synchronous(&root).await;
            standby.sever().await;
        }
        write(&root, 100).await;
        killed(tree, "near", &[], point).await;
        if !is_severed {
            standby.synchronous(&root).await;
        }
        drop(root);
        let (far, near) = (tree.connect("far").await, tree.connect("near").await);
        let here = standby.promote().await;
        let planned = standby.command(PROMOTED).arg("--plan").stdout();
        assert!(!planned.contains("AGAINST"), "{point}: {planned}");
        if point == "fenced_old" {
            // Whether that one was given up does not matter.
            takeover(tree, "near", &["--abort"], 1).await;
            assert!(here.text(STATE).await.starts_with("root|f|1|"), "{point}");
        }
        standby.takeover(PROMOTED, 0).await;
        let epoch = here.text("select epoch from pgcascade.node_state").await;
        assert_eq!(here.text(STATE).await, format!("root|t|{epoch}|t|f"));
        for node in [&far, &near] {
            until(node, STATE, &format!("branch|f|{epoch}|t|f")).await;
        }
        write(&here, 400).await;
        assert_follow(tree, &here, &[&far, &near]).await;
        stop(replays).await;
        drop((here, far, near));
        standby.tree.drop(&["far", "near"]).await;
    }
}

/// A branch has confirmed, and the server of the promoted standby dies before it opens; another root is made. What was confirmed before does not count
/// when the command is typed again.
#[tokio::test]
async fn a_promoted_standby_that_was_given_up_does_not_open() {
    let standby = Standby::of(Tree::apart_with(LOCAL).await, [("branch", "far"), ("branch", "near")]).await;
    let tree = &standby.tree;
    let root = tree.connect("root").await;
    write(&root, 100).await;
    standby.synchronous(&root).await;
    drop(root);
    drop(standby.promote().await);
    let replays = tree.replays(&["far", "near"]);
    standby.killed(PROMOTED, "takeover_confirmed").await;
    standby.cluster.kill();
    takeover(tree, "near", &["--dead", "root"], 0).await;
    standby.cluster.start_again();
    let refused = standby.takeover(PROMOTED, 1).await;
    assert!(
        refused.stderr.contains("0 of 1 nodes have confirmed epoch 2"),
        "{}",
        refused.stderr
    );
    let open = "select open, epoch from pgcascade.node_state";
    assert_eq!(standby.connect().await.text(open).await, "f|2");
    let (near, far) = (tree.connect("near").await, tree.connect("far").await);
    assert_eq!(near.text(open).await, "t|3");
    write(&near, 400).await;
    assert_follow(tree, &near, &[&far]).await;
    stop(replays).await;
    drop((near, far));
    standby.tree.drop(&["far", "near"]).await;
}

/// The standby has all that the branches have, and nothing else; or lacks exactly their last tick, whole.
#[tokio::test]
async fn a_standby_that_is_level_or_a_tick_behind_is_the_root() {
    for lacks in [0, 1] {
        let standby = Standby::of(Tree::apart_with(LOCAL).await, [("branch", "far"), ("branch", "near")]).await;
        let tree = &standby.tree;
        let root = tree.connect("root").await;
        write(&root, 100).await;
        pause_ticks(&root).await;
        tree.catch_up_all(&["far", "near"]).await;
        standby.synchronous(&root).await;
        standby.sever().await;
        if lacks > 0 {
            let top = root.text(TOP).await;
            root.run("begin; delete from t where id = 21; insert into journal values (6000, 'missing'); commit")
                .await;
            root.run("update pgq.queue set queue_ticker_paused = false").await;
            until(&root, &format!("select max(tick_id) - {top} from pgq.tick"), "1").await;
            pause_ticks(&root).await;
            tree.catch_up("far").await;
        }
        drop(root);
        let far = tree.connect("far").await;
        let near = tree.connect("near").await;
        let here = standby.promote().await;
        let behind = format!("select {} - max(tick_id) from pgq.tick", far.text(TOP).await);
        assert_eq!(here.text(&behind).await, lacks.to_string());
        let replays = tree.replays(&["far", "near"]);
        standby.takeover(PROMOTED, 0).await;
        here.run("update pgq.queue set queue_ticker_paused = false").await;
        write(&here, 400).await;
        let count = "select count(*) from journal";
        let last = here.text(count).await;
        for node in [&far, &near] {
            until(node, count, &last).await;
            tree.assert_same_rows(&here, node).await;
            tree.assert_same_queue(node, &here).await;
        }
        let missing = "select count(*) from journal where uid = 6000";
        assert_eq!(here.text(missing).await, lacks.to_string());
        stop(replays).await;
        drop((here, far, near));
        standby.tree.drop(&["far", "near"]).await;
    }
}

/// The standby has a part of a batch and an event that no tick shows; it lacks that tick and three more, of which a branch has two, and a leaf
/// alone the last. The leaf's journal gives all of them. The command is killed all the way.
#[tokio::test]
async fn what_only_a_leaf_has_is_merged_into_a_promoted_standby() {
    let standby = Standby::new().await;
    let tree = &standby.tree;
    let root = tree.connect("root").await;
    standby
        .left_behind(&root, "journal values (7000, 'extra')", "journal where uid = 7000")
        .await;
    Standby::missing_from_its_batch(&root).await;
    tree.catch_up("far").await;
    write(&root, 200).await;
    tree.catch_up_all(&["far", "leaf"]).await;
    write(&root, 300).await;
    tree.catch_up("leaf").await;
    // This one nobody else gets.
    root.run("insert into journal values (-1, 'lost')").await;
    drop(root);
    let far = tree.connect("far").await;
    let near = tree.connect("near").await;
    let leaf = tree.connect("leaf").await;
    let here = standby.promote().await;
    let fork = leaf.text("select tick from pgcascade_replay.position").await;
    let had = leaf.text("select count(*) from journal").await;
    let tick = |text: String| text.parse::<i64>().unwrap();
    assert!(tick(here.text(TOP).await) < tick(far.text(TOP).await));
    assert!(tick(far.text(TOP).await) < tick(fork.clone()));
    let replays = tree.replays(&["far", "near", "leaf"]);

    let planned = standby.command(PROMOTED).arg("--plan").stdout();
    let line = format!("  leaf \"leaf\" is at tick {fork}, and gives what no branch has from its journal\n");
    assert!(planned.contains(&line) && !planned.contains("AGAINST"), "{planned}");
    let promises =
        "select (select count(*) from jsonb_object_keys(promises)), provider, epoch from pgcascade_replay.node";
    for point in [
        "takeover_promised_leaf",
        "takeover_after_elected",
        "takeover_set_aside",
        "donated_copied",
        "after_commit",
    ] {
        standby.killed(PROMOTED, point).await;
        assert_eq!(leaf.text(promises).await, "1|root|1", "{point}");
        standby.takeover(&["--abort"], 0).await;
        assert_eq!(here.text(STATE).await, "root|f|1|t|f", "{point}");
        assert_eq!(leaf.text(promises).await, "0|root|1", "{point}");
        for node in [&far, &near] {
            assert_eq!(node.text(STATE).await, "branch|f|1|t|f", "{point}");
        }
    }
    for point in [
        "takeover_after_promised",
        "donated_copied",
        "before_commit",
        "after_commit",
        "takeover_sequences_moved",
        "takeover_after_caught-up",
        "takeover_after_promoted",
        "takeover_told",
        "takeover_after_repointed",
        "takeover_after_opened",
    ] {
        standby.killed(PROMOTED, point).await;
    }
    standby.takeover(PROMOTED, 0).await;

    let epoch = here.text("select epoch from pgcascade.node_state").await;
    assert_eq!(here.text(STATE).await, format!("root|t|{epoch}|t|f"));
    assert_eq!(
        here.text("select kind, donor, fork_tick, step from pgcascade.takeover where step <> 'aborted'")
            .await,
        format!("standby|leaf|{fork}|done")
    );
    for left in [
        "pgcascade.takeover_tail",
        "pgcascade_replay.donated_tick",
        "pgcascade_replay.donated_event",
    ] {
        assert_eq!(here.text(&format!("select count(*) from {left}")).await, "0", "{left}");
    }
    // What the leaf had, and the extra.
    let count = "select count(*) from journal";
    assert_eq!(tick(here.text(count).await), tick(had) + 1);
    write(&here, 400).await;
    assert_follow(tree, &here, &[&far, &near, &leaf]).await;
    for (uid, times) in [(5000, 1), (6000, 1), (7000, 1), (-300, 1), (-1, 0), (-2, 0)] {
        let there = format!("select count(*) from journal where uid = {uid}");
        assert_eq!(here.text(&there).await, times.to_string(), "{uid}");
    }
    for node in [&far, &near] {
        tree.assert_same_queue(node, &here).await;
    }
    assert_eq!(leaf.text(promises).await, format!("0|root|{epoch}"));
    stop(replays).await;
    drop((here, far, near, leaf));
    standby.tree.drop(&["leaf", "far", "near"]).await;
}

/// `docs/on_role_change` as Patroni runs it, for this standby alone. Returns its exit code and what it logged.
fn hook(standby: &Standby, tree: &Tree, role: &str) -> (Option<i32>, String) {
    let conf = tree.apart_cluster().file("promoted.conf");
    let lines = format!(
        "# the queues whose root this may become\n\n  # q is one\n q\troot  {}\n",
        standby.conninfo()
    );
    std::fs::write(&conf, lines).unwrap();
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/on_role_change"))
        .args([conf.as_str(), "on_role_change", role, "shop-cluster"])
        .env("PGCASCADE_CONSUMER", env!("CARGO_BIN_EXE_consumer"))
        .env("PGCASCADE_TRIES", "2")
        .env("PGCASCADE_PAUSE", "0")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// The standby has more than any branch, a part of it not in a tick. Nothing has to be merged. What may not be promoted is
/// refused before; in the end the tool that promoted it has its hook do the rest.
#[tokio::test]
async fn a_standby_that_is_ahead_is_the_root_as_it_is() {
    let standby = Standby::new().await;
    let tree = &standby.tree;
    let root = tree.connect("root").await;
    write(&root, 100).await;
    tree.catch_up("far").await;
    write(&root, 200).await;
    pause_ticks(&root).await;
    root.run("insert into journal values (5000, 'in no tick')").await;
    standby.synchronous(&root).await;
    let at = standby.conninfo();
    let impatient = Replay::command(&["takeover", "root", "--queue", "q", "--db", &at, "--timeout", "15"]);
    let refused = impatient.args(PROMOTED).output().await;
    assert_eq!(refused.code(), Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("is still a standby"), "{}", refused.stderr);
    let wrong = Replay::command(&["takeover", "far", "--queue", "q", "--promoted-standby"])
        .args(&["--db", &standby.conninfo()])
        .output()
        .await;
    assert!(
        wrong.code() == Some(2) && wrong.stderr.contains("--db leads to node \"root\""),
        "{}",
        wrong.stderr
    );
    // Promoted beside the root.
    standby.sever().await;
    let here = standby.connect().await;
    here.run("select pg_promote(true, 600)").await;
    let refused = standby.takeover(PROMOTED, 1).await;
    assert!(
        refused
            .stderr
            .contains("the server that \"root\" was on answers, and is open"),
        "{}",
        refused.stderr
    );
    drop(root);
    tree.kill_root();
    // A transaction that was prepared on the root is nobody's to end but its maker's; a branch that is away may have what no other has.
    here.run("begin; create table beside (); prepare transaction 'of before'")
        .await;
    let refused = standby
        .takeover(&["--promoted-standby", "--location", &tree.with_password("far")], 2)
        .await;
    assert!(refused.stderr.contains("holds a password"), "{}", refused.stderr);
    let refused = standby
        .takeover(&["--promoted-standby", "--location", &tree.conninfo("far")], 1)
        .await;
    for text in [
        "--location leads to another server than --db",
        "transactions are prepared there, and not ended: 'of before'",
    ] {
        assert!(refused.stderr.contains(text), "{text}: {}", refused.stderr);
    }
    let (code, log) = hook(&standby, tree, "primary");
    assert!(
        code == Some(1)
            && log.matches("transactions are prepared there").count() == 2
            && log.ends_with("on_role_change: of cluster shop-cluster these queues are not open: q\n"),
        "{code:?} {log}"
    );
    here.run("rollback prepared 'of before'").await;
    for role in ["replica", "standby_leader", "demoted"] {
        assert_eq!(hook(&standby, tree, role), (Some(0), String::new()), "{role}");
    }
    // As soon as its ticker has noticed that it was promoted.
    until(&here, STATE, "root|f|1|t|f").await;

    let replays = tree.replays(&["far", "near", "leaf"]);
    let (code, log) = hook(&standby, tree, "promoted");
    assert!(code == Some(0) && log.contains("takeover begun"), "{code:?} {log}");
    assert_eq!(here.text(STATE).await, "root|t|2|t|f");
    for role in ["master", "primary"] {
        let (code, log) = hook(&standby, tree, role);
        assert!(
            code == Some(0) && log.contains("there is nothing to do"),
            "{code:?} {log}"
        );
    }
    assert_eq!(
        here.text("select kind, donor, step from pgcascade.takeover").await,
        "standby|root|done"
    );
    // As it was on the root.
    here.run("update pgq.queue set queue_ticker_paused = false").await;
    write(&here, 400).await;
    let last = here.text("select count(*) from journal").await;
    for name in ["far", "near", "leaf"] {
        let node = tree.connect(name).await;
        until(&node, "select count(*) from journal", &last).await;
        tree.assert_same_rows(&here, &node).await;
        assert_eq!(node.text("select count(*) from journal where uid = 5000").await, "1");
    }
    stop(replays).await;
    drop(here);
    standby.tree.drop(&["leaf", "far", "near"]).await;
}

/// What cannot be merged is not: the standby is closed as before, and a branch can be the root.
#[tokio::test]
async fn a_standby_that_went_another_way_is_refused() {
    let standby = Standby::new().await;
    let tree = &standby.tree;
    let root = tree.connect("root").await;
    pause_ticks(&root).await;
    root.run("insert into journal values (5000, 'part')").await;
    standby.synchronous(&root).await;
    standby.sever().await;
    root.run("update pgq.queue set queue_ticker_paused = false").await;
    write(&root, 100).await;
    tree.catch_up_all(&["far", "near"]).await;
    drop(root);
    let here = standby.promote().await;
    let replays = tree.replays(&["far", "near", "leaf"]);
    // As if it had taken writes after its promotion, under an id that the root gave out for something else.
    here.run("update pgq.event_1 set ev_data = 'uid=5001&what=else' where ev_data like 'uid=5000%'")
        .await;
    let refused = standby.takeover(PROMOTED, 1).await;
    assert!(
        refused.stderr.contains("is another one here than in tick"),
        "{}",
        refused.stderr
    );
    assert_eq!(here.text(STATE).await, "root|f|1|t|f");
    // As if it had other ticks.
    here.run("update pgq.tick set tick_time = tick_time + '1 s' where tick_id = (select max(tick_id) from pgq.tick)")
        .await;
    let refused = standby.takeover(PROMOTED, 1).await;
    assert!(
        refused.stderr.contains("do not have the same ticks"),
        "{}",
        refused.stderr
    );
    let far = tree.connect("far").await;
    assert_eq!(far.text(STATE).await, "branch|f|1|t|f");
    takeover(tree, "far", &["--dead", "root"], 0).await;
    assert_eq!(far.text("select count(*) from journal where uid = 5000").await, "1");
    // From then on the promoted standby has no place.
    let refused = standby.takeover(PROMOTED, 1).await;
    assert!(refused.stderr.contains("\"far\" is the root"), "{}", refused.stderr);
    stop(replays).await;
    drop((here, far));
    standby.tree.drop(&["leaf", "far", "near"]).await;
}
