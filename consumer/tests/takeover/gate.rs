//! Standbys that count for the confirm gate: what leaves and programs are given a standby has, so that nothing of it is lost when the
//! root is and that standby is promoted; and a takeover to who has less is refused.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use tokio::task::JoinHandle;

use crate::cluster::{Cluster, Db, PATIENCE, eventually, pause_ticks};
use crate::dead::takeover;
use crate::standby::Standby;
use crate::tree::{Tree, until, write};

/// A standby of the root's server by that name.
async fn named(tree: &Tree, standby: &Cluster, name: &str) {
    let here = standby.connect("postgres").await;
    let settings = here.text("show primary_conninfo").await.replace('\'', "''");
    here.run(&format!(
        "alter system set primary_conninfo = '{settings} application_name={name}'"
    ))
    .await;
    here.run("select pg_reload_conf()").await;
    let streams =
        format!("select bool_or(state = 'streaming') from pg_stat_replication where application_name = '{name}'");
    until(&tree.connect("root").await, &streams, "t").await;
}

/// Stops the process that receives the log, and returns it.
async fn stop_receiver(standby: &Cluster) -> String {
    let here = standby.connect("postgres").await;
    let pid = here.text("select pid from pg_stat_wal_receiver").await;
    signalled(&pid, "STOP");
    pid
}

fn signalled(pid: &str, signal: &str) {
    let sent = std::process::Command::new("kill").args(["-s", signal, pid]).status();
    assert!(sent.unwrap().success(), "kill -s {signal} {pid}");
}

/// Gets the log and never says what it has.
struct Silent(std::process::Child);

impl Silent {
    fn named(server: &Cluster, name: &str) -> Self {
        let program = std::process::Command::new("sh")
            .args([
                "-c",
                ". \"$1\" && mkdir \"$2\" && exec \"$PGBIN/pg_receivewal\" -D \"$2\" -s 0 -d \"$3\"",
                "sh",
            ])
            .args([server.file("env"), server.file("silent")])
            .arg(format!("{} application_name={name}", server.conninfo("postgres")))
            .spawn();
        Self(program.expect("sh can be run"))
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One standby has all that is in the log now, and no other one.
async fn until_one_has_all(root: &Db) {
    let end = root.text("select pg_current_wal_insert_lsn()").await;
    let have = format!("select count(*) from pg_stat_replication where flush_lsn >= '{end}'");
    until(root, &have, "1").await;
}

/// The tick that shows what was written before.
async fn tick(root: &Db) -> String {
    let before = root.text("select pgq.force_tick('q')").await;
    until(root, &format!("select max(tick_id) > {before} from pgq.tick"), "t").await;
    root.text("select max(tick_id) from pgq.tick").await
}

async fn event(root: &Db, uid: i32) {
    root.run(&format!("select pgq.insert_event('q', 't', 'uid={uid}&')"))
        .await;
}

/// The events of all batches there are for the consumer `plain`.
async fn drain(root: &Db) -> String {
    let mut events = String::new();
    loop {
        let batch = root.text(NEXT).await;
        if batch == "<null>" {
            return events;
        }
        events += &root
            .text(&format!("select ev_data from pgq.get_batch_events({batch})"))
            .await;
        root.text(&format!("select pgq.finish_batch({batch})")).await;
    }
}

const NEXT: &str = "select pgq.next_batch('q', 'plain')";
const RELEASED: &str = "select released_tick = last_tick from pgcascade.gate_state";
/// False: a standby that is there is waited for. Never an id of a transaction for that.
const LOOK: &str = "select pgcascade.confirm_standbys(), txid_current_if_assigned() is null";
const WAITS: &str = "f|t";
const NOTHING: &str = "<null>|t";

async fn wait_for_a_batch(tree: &Tree) -> JoinHandle<String> {
    let session = tree.connect("root").await;
    let pid = session.text("select pg_backend_pid()").await;
    let waiting = tokio::spawn(async move { session.text("call pgcascade.wait_batch('q', 'plain', '1 hour')").await });
    let sleeps = format!("select wait_event_type from pg_stat_activity where pid = {pid}");
    until(&tree.connect("root").await, &sleeps, "Extension").await;
    waiting
}

#[tokio::test]
async fn a_standby_that_has_not_flushed_a_tick_keeps_it_back() {
    // Nobody is asked to say what it has, nor given up because it says nothing: here some are stopped, and one never says anything.
    let options = ["synchronous_commit=local", "wal_level=logical", "wal_sender_timeout=0"];
    let tree = Tree::apart_with(&options.map(|option| ["-o", option]).concat()).await;
    let server = tree.apart_cluster();
    let root = tree.connect("root").await;
    root.run("select pgq.register_consumer('q', 'plain'), pgcascade.set_confirm_gate('q', 1), pgcascade.set_gate_standby('q', 's1')")
        .await;
    event(&root, 100).await;
    tick(&root).await;

    // Nobody of that name is there, and then two that are no standbys.
    assert_eq!(root.text(NEXT).await, "<null>");
    server.shell(
        "mkdir \"$PGDATA/../received\"
         PGAPPNAME=s1 \"$PGBIN/pg_receivewal\" -D \"$PGDATA/../received\" --synchronous --no-loop >/dev/null 2>&1 &",
    );
    root.run("create database subscriber").await;
    let published = server.connect("postgres").await;
    published.run("create publication p").await;
    published
        .run("select pg_create_logical_replication_slot('l', 'pgoutput')")
        .await;
    let subscriber = server.connect("subscriber").await;
    subscriber
        .run(&format!(
            "create subscription s1 connection '{}' publication p with (create_slot = false, slot_name = 'l')",
            server.conninfo("postgres")
        ))
        .await;
    const OTHERS: &str = "select count(*) from pg_stat_replication where state = 'streaming' and flush_lsn >= (select min(lsn) from here)";
    root.run("create temp table here as select pg_current_wal_insert_lsn() as lsn")
        .await;
    tick(&root).await;
    until(&root, OTHERS, "2").await;
    assert_eq!(root.text(LOOK).await, NOTHING);
    assert_eq!(root.text(NEXT).await, "<null>");
    subscriber
        .run("alter subscription s1 disable; alter subscription s1 set (slot_name = none)")
        .await;
    subscriber.run("drop subscription s1").await;
    root.run("select pg_terminate_backend(pid) from pg_stat_replication")
        .await;
    until(&root, "select count(*) from pg_stat_replication", "0").await;
    root.run("select pg_drop_replication_slot('l'); drop table here").await;

    let standby = server.standby("standby");
    named(&tree, &standby, "s1").await;
    until(&root, RELEASED, "t").await;
    let events = drain(&root).await;
    assert!(events.contains("uid=100&"), "{events}");

    // It does not get on: nothing is given out, nor is anything written meanwhile. Who waits is woken when it has the tick.
    let stopped = stop_receiver(&standby).await;
    event(&root, 200).await;
    tick(&root).await;
    until(&root, LOOK, WAITS).await;
    let noted = root.text("select xmin, awaited_tick from pgcascade.gate_standby").await;
    let events = drain(&root).await;
    assert!(!events.contains("uid=200&"), "{events}");
    event(&root, 300).await;
    tick(&root).await;
    until(&root, LOOK, WAITS).await;
    assert_eq!(
        root.text("select xmin, awaited_tick from pgcascade.gate_standby").await,
        noted
    );
    assert_eq!(root.text(RELEASED).await, "f");
    // No tick comes that would wake him.
    pause_ticks(&root).await;
    let waiting = wait_for_a_batch(&tree).await;
    signalled(&stopped, "CONT");
    let batch = tokio::time::timeout(PATIENCE, waiting)
        .await
        .expect("the wait ends")
        .unwrap();
    assert_ne!(batch, "<null>");
    until(&root, RELEASED, "t").await;
    root.run("update pgq.queue set queue_ticker_paused = false").await;
    let events = drain(&root).await;
    assert!(events.contains("uid=200&") && events.contains("uid=300&"), "{events}");

    // A tick of the transaction that looks is not in the log yet.
    root.run("begin").await;
    eventually("a tick is made here, and not by the worker just before", async || {
        root.run("select pgq.force_tick('q')").await;
        root.text("select pgq.ticker('q')").await != "<null>"
    })
    .await;
    assert_eq!(root.text(LOOK).await, "<null>|f");
    root.run("rollback").await;

    // The end of the log is the end of a file: what is waited for has to be beyond it, so that it is ever sent.
    root.run("begin; select pg_switch_wal(); commit").await;
    tick(&root).await;
    until(&root, RELEASED, "t").await;
    // And an open transaction has written something that nobody flushes.
    let idle = tree.connect("root").await;
    let last = tick(&root).await;
    idle.run("begin; create table beside (n int)").await;
    until(
        &root,
        &format!("select released_tick >= {last} from pgcascade.gate_state"),
        "t",
    )
    .await;
    drop(idle);

    // The root is killed and comes back while the standby is away.
    let stopped = stop_receiver(&standby).await;
    event(&root, 400).await;
    tick(&root).await;
    until(&root, LOOK, WAITS).await;
    drop(root);
    server.crash();
    let root = tree.connect("root").await;
    assert!(!drain(&root).await.contains("uid=400&"));
    signalled(&stopped, "CONT");
    until(&root, RELEASED, "t").await;
    assert!(drain(&root).await.contains("uid=400&"));

    // Two by one name: one candidate, that has what both have.
    let twin = server.standby("twin");
    named(&tree, &twin, "s1").await;
    until(
        &root,
        "select count(*) from pg_stat_replication where state = 'streaming' and flush_lsn is not null",
        "2",
    )
    .await;
    let stopped = stop_receiver(&twin).await;
    event(&root, 500).await;
    tick(&root).await;
    until(&root, LOOK, WAITS).await;
    until_one_has_all(&root).await;
    assert_eq!(root.text(LOOK).await, WAITS);
    assert!(!drain(&root).await.contains("uid=500&"));
    signalled(&stopped, "CONT");
    until(&root, RELEASED, "t").await;
    root.run("select pgcascade.set_confirm_gate('q', 2)").await;
    assert_eq!(root.text("select released_tick from pgcascade.gate_state").await, "0");
    twin.kill();

    // Not named any more, and named again.
    root.run("select pgcascade.set_confirm_gate('q', 1), pgcascade.set_gate_standby('q', 's1', false)")
        .await;
    assert_eq!(root.text("select released_tick from pgcascade.gate_state").await, "0");
    root.run("select pgcascade.set_gate_standby('q', 's1')").await;
    until(&root, RELEASED, "t").await;

    // Another one of that name begins to stream, and has not said yet what it has.
    let silent = Silent::named(server, "s1");
    until(
        &root,
        "select bool_or(write_lsn is null) from pg_stat_replication where state = 'streaming'",
        "t",
    )
    .await;
    event(&root, 600).await;
    tick(&root).await;
    until_one_has_all(&root).await;
    assert_eq!(root.text(LOOK).await, NOTHING);
    assert!(!drain(&root).await.contains("uid=600&"));
    drop(silent);
    until(&root, RELEASED, "t").await;
}

/// A gate of two: the branch and the standby have to have a tick, and the standby counts for nothing before the branch knows of it.
#[tokio::test]
async fn a_branch_and_a_standby_have_to_have_a_tick() {
    let tree = Tree::apart_with(&["-o", "synchronous_commit=local", "-o", "wal_sender_timeout=0"]).await;
    let root = tree.connect("root").await;
    let far = tree.add("branch", "far", "root").await;
    let leaf = tree.add("leaf", "leaf", "root").await;
    for name in ["far", "leaf"] {
        tree.catch_up(name).await;
    }
    let standby = tree.apart_cluster().standby("standby");
    named(&tree, &standby, "s1").await;
    root.run("select pgq.register_consumer('q', 'plain'), pgcascade.set_confirm_gate('q', 1), pgcascade.set_gate_standby('q', 's1')")
        .await;
    let leaf_replay = tree.replay("leaf").spawn();
    write(&root, 100).await;
    let last = tick(&root).await;
    const STANDBYS: &str = "select standby_name, tick_id >= (select max(tick_id) from pgq.tick), streams, unknown_to from pgcascade.gate_standbys()";
    until(&root, STANDBYS, "s1|t|t|{far}").await;
    assert_eq!(root.text(NEXT).await, "<null>");
    let shown = status(&tree, "root");
    for line in [
        "standby s1  has tick ",
        "standby s1 does not count for its confirm gate yet: not known to far",
    ] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    // Killed when it has stored it, and has not told the root.
    let killed = tree.replay("far").failpoints("gate_followed=kill").output().await;
    assert_eq!(killed.code(), None, "{}", killed.stderr);
    assert_eq!(
        far.text("select standby_name, until_tick from pgcascade.followed_standby")
            .await,
        "s1|<null>"
    );
    assert_eq!(root.text(NEXT).await, "<null>");
    let replay = tree.replay("far").spawn();
    until(&root, STANDBYS, "s1|t|t|{}").await;
    root.run("select pgcascade.set_confirm_gate('q', 2)").await;
    let released = |tick: &str| format!("select released_tick >= {tick} from pgcascade.gate_state");
    until(&root, &released(&last), "t").await;
    const JOURNAL: &str = "select count(*) from journal";
    until(&leaf, JOURNAL, &root.text(JOURNAL).await).await;
    drain(&root).await;

    // The branch alone.
    let had = leaf.text(JOURNAL).await;
    let stopped = stop_receiver(&standby).await;
    write(&root, 200).await;
    let last = tick(&root).await;
    until(&far, &format!("select max(tick_id) >= {last} from pgq.tick"), "t").await;
    until(&root, LOOK, WAITS).await;
    assert!(!drain(&root).await.contains("uid=200&"));
    assert_eq!(leaf.text(JOURNAL).await, had);
    signalled(&stopped, "CONT");
    until(&root, &released(&last), "t").await;
    until(&leaf, JOURNAL, &root.text(JOURNAL).await).await;
    drain(&root).await;

    // The standby alone.
    tree.manage(0, "pause far").await;
    let had = leaf.text(JOURNAL).await;
    write(&root, 300).await;
    tick(&root).await;
    until(&root, STANDBYS, "s1|t|t|{}").await;
    assert!(!drain(&root).await.contains("uid=300&"));
    assert_eq!(leaf.text(JOURNAL).await, had);

    // It is no candidate any more: the branch remembers it until it has all that it may have counted for.
    root.run("select pgcascade.set_confirm_gate('q', 1)").await;
    until(&leaf, JOURNAL, &root.text(JOURNAL).await).await;
    replay.stop().await;
    root.run("select pgcascade.set_gate_standby('q', 's1', false)").await;
    tree.manage(0, "resume far").await;
    let killed = tree.replay("far").failpoints("gate_followed=kill").output().await;
    assert_eq!(killed.code(), None, "{}", killed.stderr);
    let remembered = "select until_tick > (select max(tick_id) from pgq.tick) from pgcascade.followed_standby";
    assert_eq!(far.text(remembered).await, "t");
    let shown = status(&tree, "root");
    assert!(!shown.contains("standby s1"), "{shown}");
    let replay = tree.replay("far").spawn();
    tree.wait("far").await;
    tick(&root).await;
    until(&far, "select count(*) from pgcascade.followed_standby", "0").await;
    for replay in [replay, leaf_replay] {
        replay.stop().await;
    }
    drop((root, far, leaf));
    tree.drop(&["leaf", "far"]).await;
}

fn status(tree: &Tree, from: &str) -> String {
    said(&[
        "status",
        "--subscriber",
        &tree.conninfo(from),
        "--queue",
        "q",
        "--timeout",
        "300",
    ])
}

/// What the program prints, however it ends.
fn said(arguments: &[&str]) -> String {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_consumer"))
        .args(arguments)
        .env_remove("RUST_LOG")
        .output();
    String::from_utf8(output.unwrap().stdout).unwrap()
}

/// Applications write, a program and a leaf read behind the gate, and no branch gets on. The standby's receiver stops, and a while later the
/// root dies: whatever anybody was given the promoted standby has.
#[tokio::test]
async fn what_was_given_out_a_promoted_standby_has() {
    let standby = Standby::new().await;
    let tree = &standby.tree;
    let root = tree.connect("root").await;
    named(tree, &standby.cluster, "s1").await;
    // The second is as if it had been there once; the third never was.
    root.run(
        "select pgq.register_consumer('q', 'plain'), pgcascade.set_confirm_gate('q', 1),
                pgcascade.set_gate_standby('q', 's1'), pgcascade.set_gate_standby('q', 's2'), pgcascade.set_gate_standby('q', 's3')",
    )
    .await;
    until(
        &root,
        "select tick_id > 0 from pgcascade.gate_standby where standby_name = 's1'",
        "t",
    )
    .await;
    root.run("update pgcascade.gate_standby set tick_id = 1, knows = array(select standby_id from pgcascade.gate_standby) where standby_name = 's2'")
        .await;
    root.run("update pgq.queue set queue_ticker_max_lag = '10 ms', queue_ticker_max_count = 20")
        .await;
    for name in ["far", "near"] {
        tree.catch_up(name).await;
    }
    let leaf_replay = tree.replay("leaf").spawn();

    for writer in 1..=3 {
        let session = tree.connect("root").await;
        tokio::spawn(async move {
            // Ends with the server.
            for uid in 1_000_000 * writer.. {
                let insert = format!("insert into journal values ({uid}, 'load')");
                if session.client.batch_execute(&insert).await.is_err() {
                    return;
                }
            }
        });
    }
    let given = Arc::new(Mutex::new(BTreeSet::new()));
    let program = tree.connect("root").await;
    let seen = given.clone();
    tokio::spawn(async move {
        while let Ok(batch) = program.try_text("call pgcascade.wait_batch('q', 'plain', null)").await {
            let read = format!(
                "select substring(ev_data from 'uid=(\\d+)') from pgq.get_batch_events({batch}) where ev_data like '%load%'"
            );
            let Ok(events) = program.try_text(&read).await else {
                return;
            };
            seen.lock()
                .unwrap()
                .extend(events.lines().map(|uid| uid.parse::<i32>().unwrap()));
            if program
                .try_text(&format!("select pgq.finish_batch({batch})"))
                .await
                .is_err()
            {
                return;
            }
        }
    });
    let leaf = tree.connect("leaf").await;
    const LOAD: &str = "select count(*) from journal where what = 'load'";
    eventually("the program and the leaf are given something", async || {
        given.lock().unwrap().len() > 300 && leaf.text(LOAD).await.parse::<i32>().unwrap() > 100
    })
    .await;
    let stopped = stop_receiver(&standby.cluster).await;
    let written = root.text(LOAD).await.parse::<i32>().unwrap();
    until(
        &root,
        &format!("select count(*) > {} from journal where what = 'load'", written + 500),
        "t",
    )
    .await;
    drop(root);
    tree.kill_root();
    signalled(&stopped, "CONT");
    let here = standby.promote().await;
    let leaf_had = leaf.text("select tick from pgcascade_replay.position").await;
    let top = here.text("select max(tick_id) from pgq.tick").await;
    assert!(
        leaf_had.parse::<i64>().unwrap() <= top.parse().unwrap(),
        "the leaf is at {leaf_had}, the standby at {top}"
    );
    let there = here.text("select uid from journal where what = 'load'").await;
    let there: BTreeSet<i32> = there.lines().map(|uid| uid.parse().unwrap()).collect();
    let given = given.lock().unwrap().clone();
    let lost: Vec<_> = given.difference(&there).collect();
    assert!(
        lost.is_empty(),
        "{} of {} were given out and are lost: {lost:?}",
        lost.len(),
        given.len()
    );

    // To a branch, that would lose them. Nothing is changed; that nobody else has them is the operator's word.
    let dead = takeover(tree, "far", &["--dead", "root"], 1).await;
    for name in ["s1", "s2"] {
        let said = format!("standby \"{name}\" counted for the confirm gate, and may have what no other has");
        assert!(dead.stderr.contains(&said), "{said}: {}", dead.stderr);
    }
    let far = tree.connect("far").await;
    assert_eq!(far.text("select count(*) from pgcascade.takeover").await, "0");
    let at = tree.conninfo("far");
    let plan = said(&[
        "takeover",
        "far",
        "--queue",
        "q",
        "--db",
        &at,
        "--dead",
        "root",
        "--plan",
        "--lost-standby",
        "s1",
        "--lost-standby",
        "s2",
    ]);
    assert!(plan.contains("caught-up") && !plan.contains("standby \""), "{plan}");

    let replays: Vec<_> = ["far", "near"].map(|name| tree.replay(name).spawn()).into();
    let other = standby.takeover(&["--promoted-standby"], 1).await;
    assert!(
        other.stderr.contains("standby \"s2\" counted") && !other.stderr.contains("standby \"s1\" counted"),
        "{}",
        other.stderr
    );
    let wrong = standby
        .takeover(
            &["--promoted-standby", "--lost-standby", "s2", "--standby-name", "s9"],
            1,
        )
        .await;
    assert!(wrong.stderr.contains("standby \"s1\" counted"), "{}", wrong.stderr);
    standby
        .takeover(&["--promoted-standby", "--lost-standby", "s2"], 0)
        .await;
    // The new root knows of no standby that has anything.
    assert_eq!(
        here.text("select count(*), max(tick_id) from pgcascade.gate_standbys()")
            .await,
        "3|0"
    );
    write(&here, 400).await;
    let last = here.text("select count(*) from journal").await;
    for name in ["far", "near", "leaf"] {
        let node = tree.connect(name).await;
        until(&node, "select count(*) from journal", &last).await;
        tree.assert_same_rows(&here, &node).await;
    }
    leaf_replay.stop().await;
    for replay in replays {
        replay.stop().await;
    }
    drop((here, far, leaf));
    standby.tree.drop(&["leaf", "far", "near"]).await;
}
