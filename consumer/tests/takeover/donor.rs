//! A leaf that alone has the last ticks cannot give them to every branch, nor in every shape: what is refused, and what it takes.

use crate::cluster::{Db, Replay};
use crate::dead::{JOURNAL, STATE, killed, takeover};
use crate::tree::{Tree, stop, until, write};

const DEAD: [&str; 2] = ["--dead", "root"];

/// Two branches, and a leaf that is ahead of them by one batch; the root is gone.
async fn ahead(tree: &Tree, arguments: &[&str]) -> (Db, Db, Db) {
    let root = tree.connect("root").await;
    // The leaf's next batch begins before both.
    let [leaf, branch, other] = tree
        .below_root([("leaf", "leaf"), ("branch", "branch"), ("branch", "other")])
        .await;
    write(&root, 100).await;
    let output = tree
        .replay("leaf")
        .args(arguments)
        .arg("--until-caught-up")
        .output()
        .await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    tree.kill_root();
    (branch, other, leaf)
}

/// `consumer table` of the branch.
async fn table(tree: &Tree, arguments: &[&str]) {
    let output = tree.table("branch", arguments).output().await;
    assert_eq!(output.code(), Some(0), "{arguments:?}: {}", output.stderr);
}

/// Its rows were to come from the root; and what a copy holds is known by the transaction ids of whom it was made from.
#[tokio::test]
async fn a_branch_that_has_to_copy_a_table_takes_nothing_from_a_leaf() {
    let tree = Tree::apart().await;
    let (branch, other, leaf) = ahead(&tree, &[]).await;
    // After the command has looked, which refuses it, too.
    killed(&tree, "branch", &DEAD, "fetching").await;
    table(&tree, &["resync", "t"]).await;
    let wrong = "tables of it have to be copied first, and the root that had their rows is gone: public.t (in-copy)";
    let replay = tree.replay("branch").spawn();
    replay.until_it_says(wrong).await;
    let refused = takeover(&tree, "branch", &["--resume"], 1).await;
    assert!(
        refused.stderr.contains(wrong) && refused.stderr.contains("was given up"),
        "{}",
        refused.stderr
    );
    assert_eq!(branch.text(STATE).await, "branch|f|1|t|f");
    // What its hint says: the other one can, and has the rows that are to be copied.
    replay.stop().await;
    table(&tree, &["remove", "t"]).await;
    let at = tree.conninfo("branch");
    let replay = Replay::command(&["replay", "--subscriber", &at, "--queue", "q"])
        .args(&["--watermark-interval", "1", "--retry-max", "1"])
        .spawn();
    let of_other = tree.replay("other").spawn();
    let of_leaf = tree.replay("leaf").spawn();
    takeover(&tree, "other", &DEAD, 0).await;
    write(&other, 200).await;
    for node in [&branch, &leaf] {
        until(node, JOURNAL, &other.text(JOURNAL).await).await;
    }
    table(&tree, &["add", "t", "--replace"]).await;
    until(
        &branch,
        "select string_agg(state, ' ') from pgcascade_replay.table_state",
        "ok ok",
    )
    .await;
    tree.assert_same_rows(&other, &branch).await;
    for replay in [replay, of_other, of_leaf] {
        replay.stop().await;
    }
    drop((branch, other, leaf));
    tree.drop(&["leaf", "other", "branch"]).await;
}

/// The newest batch stays in the journal, however large it is.
#[tokio::test]
async fn a_batch_that_is_larger_than_the_journal_can_be_given() {
    let tree = Tree::apart().await;
    let (branch, other, leaf) = ahead(&tree, &["--journal-bytes", "1000"]).await;
    let kept = "select count(*), bool_and(octet_length(content) > 1000) from pgcascade_replay.journal_part";
    assert_eq!(leaf.text(kept).await, "1|t");
    let had = leaf.text(JOURNAL).await;
    let replays = tree.replays(&["branch", "other", "leaf"]);
    takeover(&tree, "branch", &DEAD, 0).await;
    assert_eq!(branch.text(JOURNAL).await, had);
    until(&other, JOURNAL, &had).await;
    tree.assert_same_rows(&branch, &other).await;
    stop(replays).await;
    drop((branch, other, leaf));
    tree.drop(&["leaf", "other", "branch"]).await;
}

/// However long the journal is, only a batch of it is in memory at once; and what does not fit together is refused in words.
#[tokio::test]
async fn a_journal_is_read_batch_by_batch_and_has_to_be_whole() {
    let tree = Tree::apart().await;
    let root = tree.connect("root").await;
    let [branch, leaf] = tree.below_root([("branch", "branch"), ("leaf", "leaf")]).await;
    let replay = tree.replay("leaf").spawn();
    for n in 1..=20 {
        root.run(&format!("insert into journal values (-{n}, 'one')")).await;
        until(&leaf, &format!("select count(*) from journal where uid = -{n}"), "1").await;
    }
    replay.stop().await;
    drop(root);
    tree.kill_root();
    // As of ticks with very many transactions in progress.
    leaf.run(
        "update pgcascade_replay.journal set ticks = jsonb_set(ticks, '{0,more}', to_jsonb(repeat('x', 10000000)))",
    )
    .await;
    let batches: i32 = leaf
        .text("select count(*) from pgcascade_replay.journal")
        .await
        .parse()
        .unwrap();
    assert!(batches >= 20, "{batches} batches");
    let dead = ["--dead", "root", "--fenced-by", "killed"];
    killed(&tree, "branch", &dead, "fetching").await;
    let fetched = tree.replay("branch").failpoints("donated_copied=kill").output().await;
    assert_eq!(fetched.code(), None, "{}", fetched.stderr);
    println!("{batches} batches: peak resident memory {} kB", fetched.peak_kb);
    assert!(
        fetched.peak_kb > 0 && fetched.peak_kb < 128 * 1024,
        "{} kB",
        fetched.peak_kb
    );

    // A batch whose ticks do not show one of its events, one without a tick's time, and one whose events are not what they were.
    leaf.run(
        "create table was as table pgcascade_replay.journal; create table parts as table pgcascade_replay.journal_part",
    )
    .await;
    for (forged, wrong) in [
        (
            "update pgcascade_replay.journal set ticks = jsonb_set(ticks - 'more', '{0,snapshot}', '\"1:1:\"')",
            "shows event",
        ),
        (
            "update pgcascade_replay.journal set ticks = ticks #- '{0,time}'",
            "could not store tick",
        ),
        (
            "update pgcascade_replay.journal_part set content = 'not a COPY'",
            "could not store tick",
        ),
    ] {
        // The last batch: where the branch stands, the journal may have a tick of its own, which is looked at first.
        leaf.run(&format!(
            "{forged} where tick = (select max(tick) from pgcascade_replay.journal)"
        ))
        .await;
        let replay = tree.replay("branch").spawn();
        replay
            .until_it_says("what leaf \"leaf\" gives to node \"branch\" of queue \"q\" is not whole: ")
            .await;
        let said = replay.stop().await.stderr;
        assert!(said.contains(wrong), "{forged}: {said}");
        leaf.run(
            "update pgcascade_replay.journal j set ticks = was.ticks from was where was.tick = j.tick;
             update pgcascade_replay.journal_part p set content = parts.content from parts
              where (parts.tick, parts.part) = (p.tick, p.part)",
        )
        .await;
    }
    assert_eq!(
        branch.text("select count(*) from pgcascade_replay.donated_tick").await,
        "0"
    );
    let replay = tree.replay("branch").spawn();
    takeover(&tree, "branch", &["--resume"], 0).await;
    assert_eq!(
        branch.text("select count(*) from journal where what = 'one'").await,
        "20"
    );
    replay.stop().await;
    drop((branch, leaf));
    tree.drop(&["leaf", "branch"]).await;
}

/// Who may write there can forge events (docs/security.md), so nobody is granted anything.
#[tokio::test]
async fn nobody_else_may_touch_the_journal() {
    let tree = Tree::new().await;
    let leaf = tree.add("leaf", "leaf", "root").await;
    tree.catch_up("leaf").await;
    leaf.run("create role stranger_to_the_journal").await;
    let granted = "select (select count(*) from pg_namespace n cross join aclexplode(n.nspacl) a
                            where n.nspname = 'pgcascade_replay' and a.grantee <> n.nspowner),
                          count(*) filter (where exists (select from aclexplode(c.relacl) a where a.grantee <> c.relowner)),
                          bool_or(has_table_privilege('stranger_to_the_journal', c.oid, 'select, insert, update, delete, truncate, trigger')),
                          has_schema_privilege('stranger_to_the_journal', 'pgcascade_replay', 'usage, create'),
                          bool_or(c.relname = 'journal_part')
                     from pg_class c where c.relnamespace = 'pgcascade_replay'::regnamespace and c.relkind in ('r', 'v', 'p')";
    let found = leaf.text(granted).await;
    leaf.run("drop role stranger_to_the_journal").await;
    assert_eq!(found, "0|0|f|f|t");
    drop(leaf);
    tree.drop(&["leaf", "root"]).await;
}
