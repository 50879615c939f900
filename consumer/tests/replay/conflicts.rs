//! Conflicts: each kind with each policy, as one event among few and as one of a set, killed in the middle; what is
//! done and what is recorded.

use crate::beside;
use crate::cluster::{Output, Pair, pair};

/// Rows of the provider's table from the start.
const ROWS: i32 = 600;

const TABLES: [&str; 6] = ["--table", "t", "--table", "u", "--table", "other"];

/// Tables that are equal, replayed.
async fn replayed() -> Pair {
    let pair = pair().await;
    pair.provider
        .run(&format!(
            "create table t (id int primary key, v text, w int);
             create table u (id int primary key, v text, w int unique);
             create table other (id int primary key, n int);
             insert into t select i, 'v', i from generate_series(1, {ROWS}) i; insert into other values (1, 0)"
        ))
        .await;
    pair.catch_up(&[&TABLES[..], &["--create"]].concat()).await;
    pair
}

/// The conflicts that were recorded, without what differs from run to run.
async fn recorded(pair: &Pair) -> String {
    pair.subscriber
        .text(
            "select provider_table, kind, policy, outcome, row_key, count(*) from pgcascade_replay.conflict
              group by 1, 2, 3, 4, 5 order by 1, 2, 3, 4, 5",
        )
        .await
}

async fn run(pair: &Pair, arguments: &[&str]) -> Output {
    pair.replay()
        .args(&TABLES)
        .args(arguments)
        .arg("--until-caught-up")
        .output()
        .await
}

/// What happened on the subscriber alone, what then happens on the provider, and what overwrite makes of the kind.
struct Case {
    table: &'static str,
    kind: &'static str,
    key: &'static str,
    spoil: &'static str,
    change: &'static str,
    overwritten: Option<&'static str>,
}

/// One row at fault, and among so many that they are applied as a set.
const CASES: [Case; 5] = [
    Case {
        table: "t",
        kind: "insert_exists",
        key: "(id)=(1005)",
        spoil: "insert into t values (1005, 'mine', -1005)",
        change: "insert into t select i, 'theirs', i from generate_series({from}, {to}) i where i % 1000 > 0",
        overwritten: Some("updated"),
    },
    Case {
        table: "t",
        kind: "update_missing",
        key: "(id)=(5)",
        spoil: "delete from t where id = 5",
        change: "update t set v = 'theirs' where id % 1000 between {from} % 1000 and {to} % 1000",
        overwritten: Some("inserted"),
    },
    Case {
        table: "t",
        kind: "delete_missing",
        key: "(id)=(5)",
        spoil: "delete from t where id = 5",
        change: "delete from t where id % 1000 between {from} % 1000 and {to} % 1000",
        overwritten: Some("skipped"),
    },
    Case {
        table: "u",
        kind: "update_exists",
        key: "(id)=(5)",
        spoil: "insert into u values (-1, 'mine', 100005)",
        change: "update u set w = w + 100000 where id % 1000 between {from} % 1000 and {to} % 1000",
        overwritten: None,
    },
    // Not its key, so there is no row to be overwritten.
    Case {
        table: "u",
        kind: "insert_exists",
        key: "(id)=(1005)",
        spoil: "insert into u values (-1, 'mine', 1005)",
        change: "insert into u select i, 'theirs', i from generate_series({from}, {to}) i where i % 1000 > 0",
        overwritten: None,
    },
];

#[tokio::test]
async fn each_kind_with_each_policy() {
    let pair = replayed().await;
    for case in &CASES {
        let table = case.table;
        let everything = format!("select count(*) || md5(string_agg(r::text, ' ' order by id)) from {table} r");
        for set in [false, true] {
            let (from, to) = if set { ("1001", "1400") } else { ("1005", "1006") };
            pair.provider
                .run(&format!(
                    "truncate {table}; insert into {table} select i, 'v', i from generate_series(1, {ROWS}) i"
                ))
                .await;
            pair.catch_up(&TABLES).await;
            pair.subscriber
                .run(&format!("truncate pgcascade_replay.conflict; {}", case.spoil))
                .await;
            let before = pair.subscriber.text(&everything).await;
            let change = case.change.replace("{from}", from).replace("{to}", to);
            pair.provider
                .run(&format!(
                    "begin; update other set n = n + 1; {change}; update other set n = n + 1; commit"
                ))
                .await;
            let what = format!(
                "{}, {} {}",
                case.kind,
                case.spoil,
                if set { "in a set" } else { "alone" }
            );

            // Stop, which is the default, whatever the policy of another table, and where a table's own goes before
            // that of all.
            let policies = match case.kind {
                "update_missing" => vec!["--on-conflict", "other=skip"],
                "delete_missing" => vec!["--on-conflict", "t=stop", "--on-conflict", "skip"],
                _ => vec![],
            };
            let output = run(&pair, &policies).await;
            assert_eq!(output.code(), Some(1), "{what}: {}", output.stderr);
            assert!(
                output.stderr.contains(&format!("row {}", case.key)),
                "{what}: {}",
                output.stderr
            );
            assert_eq!(
                pair.subscriber.text(&everything).await,
                before,
                "{what}: nothing was applied"
            );
            assert_eq!(recorded(&pair).await, "", "{what}");

            // Overwrite, killed after the conflict is recorded and before the commit.
            let policy = format!("{table}=overwrite");
            let overwrite = ["--on-conflict", &policy];
            if let Some(outcome) = case.overwritten {
                let point = if set { "after_conflict" } else { "before_commit" };
                let output = pair
                    .replay()
                    .args(&TABLES)
                    .args(&overwrite)
                    .failpoints(&format!("{point}=kill"))
                    .output()
                    .await;
                assert_eq!(output.code(), None, "{what}, {point}: {}", output.stderr);
                assert_eq!(recorded(&pair).await, "", "{what}, {point}");
                let output = run(&pair, &overwrite).await;
                assert_eq!(output.code(), Some(0), "{what}: {}", output.stderr);
                assert_eq!(
                    recorded(&pair).await,
                    format!("{table}|{}|overwrite|{outcome}|{}|1", case.kind, case.key),
                    "{what}"
                );
                assert!(output.stderr.contains("conflicts=1"), "{what}: {}", output.stderr);
                pair.assert_equal(table).await;
                pair.assert_equal("other").await;
                continue;
            }
            let output = run(&pair, &overwrite).await;
            assert_eq!(output.code(), Some(1), "{what}: {}", output.stderr);
            assert!(
                output.stderr.contains("something else is in the way"),
                "{what}: {}",
                output.stderr
            );
            assert_eq!(recorded(&pair).await, "", "{what}");

            // Killed after the commit: the batch is not applied again, and the conflict is there once.
            let output = pair
                .replay()
                .args(&TABLES)
                .args(&["--on-conflict", "skip"])
                .failpoints("after_commit=kill")
                .output()
                .await;
            assert_eq!(output.code(), None, "{what}: {}", output.stderr);
            let output = run(&pair, &["--on-conflict", "skip"]).await;
            assert_eq!(output.code(), Some(0), "{what}: {}", output.stderr);
            assert!(
                output.stderr.contains("batch applied already"),
                "{what}: {}",
                output.stderr
            );
            assert_eq!(
                recorded(&pair).await,
                format!("{table}|{}|skip|skipped|{}|1", case.kind, case.key),
                "{what}"
            );
            pair.assert_equal("other").await;
            let others = format!("{everything} where id not in (-1, 5, 1005)");
            assert_eq!(
                pair.provider.text(&others).await,
                pair.subscriber.text(&others).await,
                "{what}"
            );
        }
    }
    pair.drop().await;
}

/// The three kinds that overwrite has an answer to, with skip; several of each, on the border of groups, with what
/// follows on the same row in the same batch.
#[tokio::test]
async fn what_follows_a_conflict_sees_its_outcome() {
    let pair = replayed().await;
    let spoil = "delete from t where id in (3, 130, 131, 300); insert into t values (700, 'mine', 700)";
    let change = "begin; update t set v = 'a' where id < 500; update t set v = 'b' where id in (3, 300);
                  delete from t where id = 131;
                  insert into t values (700, 'theirs', 701); update t set v = 'c' where id = 700; commit";
    for policy in ["skip", "overwrite"] {
        pair.provider
            .run(&format!(
                "truncate t; insert into t select i, 'v', i from generate_series(1, {ROWS}) i"
            ))
            .await;
        pair.catch_up(&TABLES).await;
        pair.subscriber.run("truncate pgcascade_replay.conflict").await;
        pair.subscriber.run(spoil).await;
        pair.provider.run(change).await;
        let output = run(&pair, &["--on-conflict", policy]).await;
        assert_eq!(output.code(), Some(0), "{}", output.stderr);
        let found = recorded(&pair).await;
        if policy == "overwrite" {
            // A row that was inserted is there for what follows.
            assert_eq!(
                found,
                "t|insert_exists|overwrite|updated|(id)=(700)|1\nt|update_missing|overwrite|inserted|(id)=(130)|1\n\
                 t|update_missing|overwrite|inserted|(id)=(131)|1\nt|update_missing|overwrite|inserted|(id)=(3)|1\n\
                 t|update_missing|overwrite|inserted|(id)=(300)|1"
            );
            pair.assert_equal("t").await;
        } else {
            assert_eq!(
                found,
                "t|delete_missing|skip|skipped|(id)=(131)|1\nt|insert_exists|skip|skipped|(id)=(700)|1\n\
                 t|update_missing|skip|skipped|(id)=(130)|1\nt|update_missing|skip|skipped|(id)=(131)|1\n\
                 t|update_missing|skip|skipped|(id)=(3)|2\nt|update_missing|skip|skipped|(id)=(300)|2"
            );
            assert_eq!(
                pair.subscriber.text("select v, w from t where id = 700").await,
                "c|701",
                "an update applies to the row that was there"
            );
        }
    }
    // What is recorded is enough to see what happened, and status counts it.
    assert_eq!(
        pair.subscriber
            .text(
                "select bool_and(consumer = 'c' and queue = 'q' and ev_id > 0 and x.tick <= p.tick
                                 and noticed > now() - interval '1 hour'),
                        min(ev_type) filter (where row_key = '(id)=(700)'),
                        min(ev_data) filter (where row_key = '(id)=(700)'),
                        count(*) filter (where reason like '%duplicate key%23505%') from pgcascade_replay.conflict x
                   join pgcascade_replay.position p using (consumer, queue)"
            )
            .await,
        "t|I:id|id=700&v=theirs&w=701|1"
    );
    pair.drop().await;
}

/// Foreign keys do nothing during replay, unless somebody says that they shall.
#[tokio::test]
async fn foreign_keys_that_are_enforced() {
    let pair = pair().await;
    pair.provider
        .run(
            "create table parent (id int primary key);
             create table child (id int primary key, parent int references parent);
             insert into parent select generate_series(1, 100);
             insert into child select i, 1 from generate_series(1, 5) i",
        )
        .await;
    let tables = ["--table", "parent", "--table", "child"];
    pair.catch_up(&["--table", "parent", "--table", "child", "--create"])
        .await;
    pair.subscriber
        .run(
            "alter table child add constraint child_fk foreign key (parent) references parent;
             do $$ declare t record; begin
                 for t in select tgrelid::regclass as r, tgname from pg_trigger where tgisinternal loop
                     execute format('alter table %s enable always trigger %I', t.r, t.tgname);
                 end loop; end $$",
        )
        .await;
    // The order of parents and children is kept: no conflict.
    pair.provider
        .run(
            "begin; insert into parent select generate_series(101, 200);
             insert into child select i, i from generate_series(101, 200) i;
             delete from child where id > 150; delete from parent where id > 150; commit",
        )
        .await;
    let output = pair.catch_up(&tables).await;
    assert!(!output.stderr.contains("row by row"), "{}", output.stderr);
    pair.assert_equal("child").await;
    // A parent that is not there, one that another child needs.
    pair.subscriber
        .run("delete from parent where id = 7; insert into child values (-8, 8)")
        .await;
    pair.provider
        .run(
            "begin; update child set parent = 9 where id = 1;
             insert into child select i, i from generate_series(6, 60) i where i <> 8;
             update child set parent = 7 where id = 2; delete from parent where id = 8; commit",
        )
        .await;
    let run = async |policy: &str| {
        let arguments = ["--on-conflict", policy, "--until-caught-up"];
        pair.replay().args(&tables).args(&arguments).output().await
    };
    for policy in ["stop", "overwrite", "child=overwrite", "parent=skip"] {
        let output = run(policy).await;
        assert_eq!(output.code(), Some(1), "{}", output.stderr);
        assert!(
            output.stderr.contains("inserts row (id)=(7) of table public.child") && output.stderr.contains("23503"),
            "{}",
            output.stderr
        );
    }
    let output = run("skip").await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    assert_eq!(
        recorded(&pair).await,
        "child|missing_parent|skip|skipped|(id)=(2)|1\nchild|missing_parent|skip|skipped|(id)=(7)|1\n\
         parent|still_referenced|skip|skipped|(id)=(8)|1"
    );
    assert_eq!(
        pair.subscriber
            .text("select count(*), sum(parent) from child where id between 1 and 60")
            .await,
        // Of 1 to 60: not 8, which nobody has, nor 7; 1 has parent 9, 2 to 5 have 1.
        format!("58|{}", 9 + 4 + (6..=60).sum::<i32>() - 7 - 8)
    );
    pair.drop().await;
}

/// The events that were kept while a table was copied find a row too many and one too few; killed on either side of the
/// commit.
#[tokio::test]
async fn among_the_events_that_came_during_a_copy() {
    for (policy, outcomes) in [("skip", ["skipped", "skipped"]), ("overwrite", ["updated", "inserted"])] {
        let pair = pair().await;
        let (running, go_on) = beside::begun(&pair, ";after_copy_commit=kill").await;
        beside::change(&pair).await;
        std::fs::write(go_on, "").unwrap();
        let output = running.wait().await;
        assert_eq!(output.code(), None, "{}", output.stderr);
        pair.subscriber
            .run("insert into big values (1002, 'mine'); delete from big where id = 12")
            .await;
        let replay = || {
            let tables = ["--table", "small", "--table", "big", "--until-caught-up"];
            pair.replay().args(&tables)
        };
        let output = replay().output().await;
        assert_eq!(output.code(), Some(1), "{}", output.stderr);
        assert!(output.stderr.contains("row (id)=(1002)"), "{}", output.stderr);
        for point in ["before_held_commit", "after_held_commit"] {
            let arguments = ["--on-conflict", policy];
            let output = replay()
                .args(&arguments)
                .failpoints(&format!("{point}=kill"))
                .output()
                .await;
            assert_eq!(output.code(), None, "{}", output.stderr);
            let found = recorded(&pair).await;
            assert_eq!(found.is_empty(), point == "before_held_commit", "{point}: {found}");
        }
        let output = replay().output().await;
        assert_eq!(output.code(), Some(0), "{}", output.stderr);
        let [exists, missing] = outcomes;
        assert_eq!(
            recorded(&pair).await,
            format!(
                "big|insert_exists|{policy}|{exists}|(id)=(1002)|1\nbig|update_missing|{policy}|{missing}|(id)=(12)|1"
            )
        );
        if policy == "overwrite" {
            pair.assert_equal("big").await;
        } else {
            let others = "select md5(string_agg(b::text, ' ' order by id)) from big b where id <> 12";
            assert_eq!(pair.provider.text(others).await, pair.subscriber.text(others).await);
        }
        pair.drop().await;
    }
}

#[tokio::test]
async fn policies_that_mean_nothing() {
    let pair = replayed().await;
    for (policy, code, text) in [
        ("ignore", 2, "none of stop, skip and overwrite"),
        ("t=", 2, "none of stop, skip and overwrite"),
        ("=skip", 2, "--on-conflict is empty"),
        ("a.b.c=skip", 2, "\"a.b.c\""),
        (
            "absent=skip",
            1,
            "no table that is replayed matches \"absent\" of --on-conflict",
        ),
    ] {
        let output = run(&pair, &["--on-conflict", policy]).await;
        assert_eq!(output.code(), Some(code), "{policy}: {}", output.stderr);
        assert!(output.stderr.contains(text), "{policy}: {}", output.stderr);
    }
    pair.drop().await;
}
