//! Foreign keys: what becomes the root has those that the root has. And the sequences that the keys of rows come from, which stand where they
//! stood.

use crate::cluster::eventually;
use crate::planned::{self, takeover};
use crate::tree::{Tree, stop, until};

const KEYS: &str =
    "select string_agg(concat_ws(' ', conname, convalidated, pg_get_constraintdef(oid)), ',' order by conname)
                      from pg_constraint where contype = 'f' and conrelid = any (array['parent', 'child']::regclass[])";

/// Even where they are not made yet: because somebody has a table locked, here for as long as it takes.
#[tokio::test]
async fn the_new_root_has_the_keys_of_the_old_one() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    root.run(
        "create table parent (id int primary key); create table child (id int primary key, p int references parent on delete cascade);
         insert into parent select generate_series(1, 9); insert into child select i, i from generate_series(1, 9) i",
    )
    .await;
    // Tables are complete at a tick from after their copies.
    root.run("select pgq.set_queue_config('q', 'ticker_idle_period', '1')")
        .await;
    let keys = root.text(KEYS).await;
    assert!(keys.starts_with("child_p_fkey t FOREIGN KEY"), "{keys}");
    let branch = tree.add("branch", "branch", "root").await;
    let go_on = tree.cluster("branch").file(&tree.database_name("go_on"));
    let running = tree
        .replay("branch")
        .failpoints(&format!("before_copy=pause:{go_on}"))
        .spawn();
    let added = "select count(*) = 4 from pgcascade_replay.table_state";
    eventually("the tables are added", async || {
        branch.try_text(added).await.is_ok_and(|all| all == "t")
    })
    .await;
    let holder = tree.connect("branch").await;
    holder.run("begin; lock table parent in row exclusive mode").await;
    tree.cluster("branch").shell(&format!("touch '{go_on}'"));
    running.until_it_says("foreign keys wait for locks").await;
    // Who reads from the branch has what that is still to get.
    let leaf = tree.add("leaf", "leaf", "branch").await;
    let replays = tree.replays(&["root", "leaf"]);
    tree.wait("leaf").await;
    until(&leaf, KEYS, &keys).await;
    assert_eq!(branch.text(KEYS).await, "<null>");
    // Unless it may not see what that is.
    let reader = format!("reader_{}", tree.database_name("branch"));
    let at = tree.role(&branch, &reader, "branch").await;
    branch
        .run(&format!(
            "grant pgq_admin, pgq_writer to {reader}; grant usage on schema pgcascade_replay to {reader};
             grant select on all tables in schema pgcascade_replay, public to {reader}; revoke all on pgcascade_replay.foreign_key from {reader}"
        ))
        .await;
    let blind = tree.database("blind", false).await;
    let ends = ["--db", &tree.conninfo("blind"), "--provider", &at];
    tree.node(0, "create-leaf blind", &ends).await;
    // The branch said where others reach it.
    blind
        .run(&format!(
            "update pgcascade_replay.node_location set location = '{at}' where node = 'branch'"
        ))
        .await;
    tree.catch_up("blind").await;
    assert_eq!(
        blind.text("select count(*) from pgcascade_replay.foreign_key").await,
        "0"
    );
    assert_eq!(blind.text(KEYS).await, "<null>");
    assert_eq!(blind.text("select count(*) from child").await, "9");
    tree.manage(0, "drop blind").await;
    tree.wait("leaf").await;
    // Which takes longer where another test has a transaction open.
    tree.until_ok("branch").await;
    drop(blind);
    branch.run(&format!("drop owned by {reader}; drop role {reader}")).await;

    takeover(&tree, "leaf", "branch", &[], 0).await;
    running.stop().await;
    let running = tree.replay("branch").spawn();
    running.until_it_says("foreign keys wait for locks").await;
    holder.run("commit").await;
    until(&branch, KEYS, &keys).await;
    branch.run("delete from parent where id = 1").await;
    for node in [&branch, &root, &leaf] {
        until(node, "select count(*) from child", "8").await;
    }
    assert!(branch.try_text("insert into child values (100, 100)").await.is_err());
    until(&branch, "select count(*) from pgcascade_replay.foreign_key", "0").await;
    stop(replays.into_iter().chain([running])).await;
    drop((root, branch, leaf, holder));
    tree.drop(&["blind", "leaf", "branch", "root"]).await;
}

/// Sequences that belong to no column: two tables share one, and there is one that is drawn from in an expression. Each value that is drawn on the
/// new root is the next one, there and back.
#[tokio::test]
async fn sequences_that_defaults_draw_from_stand_where_they_stood() {
    let tree = Tree::new().await;
    let root = tree.connect("root").await;
    root.run(
        "create sequence shared; create sequence down increment by -3;
         create table d (id bigint primary key default nextval('shared'), below bigint not null default nextval('down'));
         create table e (id bigint primary key default nextval('shared') * 10)",
    )
    .await;
    let branch = tree.add("branch", "branch", "root").await;
    tree.catch_up("branch").await;
    let replays = tree.replays(&["root", "branch"]);

    // What would leave rows without a key, or stop half way, is said before.
    branch.run("alter table e alter id drop default").await;
    let refused = takeover(&tree, "root", "branch", &["--plan"], 1).await;
    let lacks =
        "column id of table public.e draws from sequence public.shared on \"root\", and from none on \"branch\"";
    assert!(refused.stderr.contains(lacks), "{}", refused.stderr);
    branch
        .run("alter table e alter id set default nextval('shared') * 10")
        .await;
    let reader = format!("reader_{}", tree.database_name("branch"));
    let at = tree.role(&branch, &reader, "branch").await;
    branch
        .run(&format!(
            "grant pgq_admin, pg_read_all_data to {reader}; grant usage on schema pgcascade_replay to {reader}"
        ))
        .await;
    let refused = planned::at(&at, "branch").arg("--plan").output().await;
    for name in ["shared", "down"] {
        let may_not = format!("from sequence public.{name} on \"branch\", and this role may not set that");
        assert!(refused.stderr.contains(&may_not), "{may_not}: {}", refused.stderr);
    }
    branch.run(&format!("drop owned by {reader}; drop role {reader}")).await;

    const DRAW: &str = "with one as (insert into d default values returning id, below),
                             other as (insert into e default values returning id)
                        select one.id, other.id, below from one, other";
    assert_eq!(root.text(DRAW).await, "1|20|-1");
    for (new, old, drawn) in [(&branch, &root, "3|40|-4"), (&root, &branch, "5|60|-7")] {
        let name = new.text("select node_name from pgcascade.node_state").await;
        let last = "select last_value, is_called from shared union all select last_value, is_called from down";
        let stood = old.text(last).await;
        assert_ne!(new.text(last).await, stood);
        takeover(&tree, "root", &name, &[], 0).await;
        assert_eq!(new.text(last).await, stood);
        assert_eq!(new.text(DRAW).await, drawn);
    }
    until(&branch, "select string_agg(id::text, ' ' order by id) from d", "1 3 5").await;
    stop(replays).await;
    drop((root, branch));
    tree.drop(&["branch", "root"]).await;
}
