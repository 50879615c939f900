//! `consumer check`, the real binary: set-ups that are broken on purpose, each named and none missed, remedies that mend what
//! they are printed for, and nothing said of a set-up that is sound. docs/check.md names the test of each finding.
#![allow(missing_docs, unreachable_pub, dead_code, reason = "a test binary has no interface")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod cluster;

use std::process::{Command, Stdio};

use cluster::{Pair, Replay, Running, eventually, pair};
use serde_json::Value;

/// What one run of the check found: `kind object`, in the order of these texts.
struct Checked {
    code: i32,
    found: Vec<String>,
    report: Value,
}

impl Checked {
    fn findings(&self) -> &Vec<Value> {
        self.report["findings"].as_array().unwrap()
    }

    #[track_caller]
    fn is(&self, code: i32, expected: &[&str]) {
        let mut expected: Vec<String> = expected.iter().map(|&one| one.to_owned()).collect();
        expected.sort();
        let missed: Vec<_> = expected.iter().filter(|one| !self.found.contains(one)).collect();
        let wrong: Vec<_> = self.found.iter().filter(|one| !expected.contains(one)).collect();
        assert!(
            self.found == expected,
            "missed: {missed:?}, wrong: {wrong:?}\n{:#}",
            self.report
        );
        assert_eq!(self.code, code, "{:#}", self.report);
    }
}

struct Ends {
    provider: String,
    subscriber: String,
}

impl Ends {
    fn of(pair: &Pair) -> Self {
        Self {
            provider: pair.provider_cluster.conninfo(&pair.database),
            subscriber: pair.subscriber_cluster.conninfo(&pair.database),
        }
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_consumer"))
            .args(["check", "--provider", &self.provider, "--subscriber", &self.subscriber])
            .args(["--queue", "q", "--consumer", "c"])
            .args(arguments)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    /// A check that has come to that place, and goes on when the file is there.
    async fn paused(&self, place: &str, go_on: &str, arguments: &[&str]) -> Running {
        let checks = Replay::command(&["check", "--provider", &self.provider, "--subscriber", &self.subscriber])
            .args(&["--queue", "q", "--consumer", "c"])
            .args(arguments)
            .failpoints(&format!("{place}=pause:{go_on}"))
            .spawn();
        checks.until_it_says(&format!("{place} waits")).await;
        checks
    }

    fn check(&self, arguments: &[&str]) -> Checked {
        let (code, out, err) = self.run(&[&["--json"], arguments].concat());
        let quiet = err
            .lines()
            .all(|line| line.is_empty() || line.contains("password on the command line"));
        assert!(quiet && out.lines().count() == 1, "{out}{err}");
        let report: Value = serde_json::from_str(&out).unwrap();
        let mut found = Vec::new();
        for finding in report["findings"].as_array().unwrap() {
            let kind = finding["finding"].as_str().unwrap();
            found.push(format!("{kind} {}", finding["object"].as_str().unwrap()));
            for text in ["sentence", "remedy"] {
                assert!(!finding[text].as_str().unwrap().is_empty(), "{finding}");
            }
        }
        found.sort();
        Checked { code, found, report }
    }
}

/// Runs the statements that the findings have, each where it says. Returns how many there were.
async fn mend(pair: &Pair, checked: &Checked) -> usize {
    let mut count = 0;
    for finding in checked.findings() {
        if let Some(statement) = finding["statement"].as_str() {
            match finding["run_at"].as_str().unwrap() {
                "provider" => pair.provider.run(statement).await,
                _ => pair.subscriber.run(statement).await,
            }
            count += 1;
        }
    }
    count
}

const TICKERS: &str = "select count(*) from pg_stat_activity
                        where backend_type = 'pgcascade ticker' and datname = current_database()";

/// Tables with nothing wrong.
const SOUND: &str = "create schema sound;
    create type sound.mood as enum ('good', 'bad');
    create table sound.\"Odd name\" (\"a,b\" int primary key, v text not null default 'x', n numeric(10,2), m sound.mood);
    create table sound.parent (id bigint primary key);
    create table sound.child (id uuid, k text collate \"C\", parent bigint references sound.parent on delete cascade,
      d int generated always as (1 + 1) stored, primary key (id, k), unique (parent, k), check (k <> ''))";

/// The rows that are there, too: a new column's default and a new name make no events.
#[tokio::test]
async fn columns_that_came_later_get_what_they_have_on_the_provider() {
    let pair = pair().await;
    pair.provider
        .run("create table t (id int primary key, v text, m text); insert into t values (1, 'old', 'm')")
        .await;
    pair.catch_up(&["--table", "t", "--create"]).await;
    pair.provider
        .run(
            "alter table t rename v to \"V v\";
             alter table t add w int default 5, add d timestamptz default now(), add \"a'b\" int[] default '{1,null}';
             alter table t alter w set default 6, alter d drop default;
             insert into t values (2, 'new', 'm')",
        )
        .await;
    let ends = Ends::of(&pair);
    let checked = ends.check(&[]);
    checked.is(1, &["column-missing public.t"; 4]);
    assert_eq!(mend(&pair, &checked).await, 4);
    ends.check(&[]).is(0, &[]);
    pair.catch_up(&[]).await;
    pair.assert_equal("t").await;
    pair.subscriber.run("insert into t values (3)").await;
    assert_eq!(
        pair.subscriber.text("select w, d, \"a'b\" from t where id = 3").await,
        "6|<null>|{1,NULL}"
    );
    // Nobody knows what the rows got.
    pair.provider
        .run("alter table t add g uuid default gen_random_uuid()")
        .await;
    let remedy = ends.check(&[]).findings()[0]["remedy"].as_str().unwrap().to_owned();
    assert!(
        remedy.contains("then consumer table resync '\"public\".\"t\"'"),
        "{remedy}"
    );
    pair.drop().await;
}

#[tokio::test]
async fn rights_of_the_roles() {
    let pair = pair().await;
    let clerk = format!("clerk_{}", pair.database);
    let role = format!("\"{clerk}\"");
    for db in [&pair.provider, &pair.subscriber] {
        db.run(&format!("create role {clerk} login password 'secret'; {SOUND}"))
            .await;
        db.run("create schema own; create table own.t (id int generated by default as identity primary key)")
            .await;
        db.run(
            "alter table own.t enable row level security; create table own.p (id int primary key) partition by list (id);
             create table own.\"P 1\" partition of own.p for values in (1)",
        )
        .await;
    }
    let ends = Ends {
        provider: pair.provider_cluster.conninfo_as(&pair.database, &clerk, "secret"),
        subscriber: pair.subscriber_cluster.conninfo_as(&pair.database, &clerk, "secret"),
    };
    let (code, out, err) = ends.run(&["--table", "sound.*"]);
    assert!(
        code == 1 && err.contains("password on the command line") && out.contains("STOPS  reader-right: role "),
        "{out}{err}"
    );
    let tables = ["own.p", "own.t", "sound.\"Odd name\"", "sound.child", "sound.parent"];
    let mut expected: Vec<String> = Vec::new();
    for table in tables {
        expected.extend([format!("table-right {table}"), format!("table-right {table}")]);
        expected.push(format!("trigger-right {table}"));
    }
    for schema in ["own", "own", "sound", "sound"] {
        expected.push(format!("schema-right schema \"{schema}\""));
    }
    expected.push("trigger-right own.\"P 1\"".to_owned());
    for kind in ["row-security own.t", "sequence-right own.t_id_seq"] {
        expected.extend([kind.to_owned(), kind.to_owned()]);
    }
    for kind in [
        "queue-right",
        "reader-right",
        "capture-right",
        "replica-role",
        "state-right",
    ] {
        expected.push(format!("{kind} role {role}"));
    }
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    let all = ["--table", "sound.*", "--table", "own.*"];
    let checked = ends.check(&all);
    checked.is(1, &expected);
    assert_eq!(
        mend(&pair, &checked).await,
        expected.len(),
        "all of these have a statement"
    );
    ends.check(&all).is(0, &[]);

    // What replay then does it can go on with.
    let replay = || Replay::new(&ends.provider, &ends.subscriber).args(&all);
    let output = replay().arg("--until-caught-up").output().await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    ends.check(&all).is(0, &[]);
    pair.provider
        .run("create table own.p_2 partition of own.p for values in (2)")
        .await;
    let checked = ends.check(&all);
    checked.is(
        1,
        &[
            "table-right own.p_2",
            "trigger-right own.p_2",
            "partition-missing own.p_2",
        ],
    );
    assert_eq!(mend(&pair, &checked).await, 3);
    for (sql, there) in [("insert into own.p values (2)", "2"), ("truncate own.p_2", "")] {
        pair.provider.run(sql).await;
        let output = replay().arg("--until-caught-up").output().await;
        assert_eq!(output.code(), Some(0), "{}", output.stderr);
        assert_eq!(pair.subscriber.text("select id from own.p").await, there);
    }
    ends.check(&all).is(0, &[]);
    pair.subscriber
        .run("alter schema pgcascade_replay owner to postgres")
        .await;
    pair.subscriber
        .run(&format!("reassign owned by {clerk} to postgres"))
        .await;
    let checked = ends.check(&all);
    checked.is(1, &[&format!("state-right role {role}")]);
    mend(&pair, &checked).await;
    ends.check(&all).is(0, &[]);
    pair.provider
        .run(&format!(
            "revoke pgq_admin from {clerk}; select pgcascade.set_consumer_owner('q', 'c', 'postgres')"
        ))
        .await;
    let checked = ends.check(&all);
    checked.is(1, &["consumer-owner consumer c of queue q"]);
    mend(&pair, &checked).await;
    ends.check(&all).is(0, &[]);
    // What --create makes needs a right of its own.
    pair.provider
        .run(&format!(
            "create table own.made (id int primary key); create schema \"New\"; create table \"New\".t (id int primary key);
             grant usage on schema \"New\" to {clerk}; grant select, trigger on own.made, \"New\".t to {clerk}"
        ))
        .await;
    pair.subscriber
        .run(&format!("revoke create on database {} from {clerk}", pair.database))
        .await;
    let create = ["--create", "--table", "own.*", "--table", "\"New\".*"];
    let checked = ends.check(&create);
    checked.is(1, &["schema-right schema \"New\"", "schema-right schema \"own\""]);
    assert_eq!(mend(&pair, &checked).await, 2);
    ends.check(&create).is(0, &[]);
    let output = Replay::new(&ends.provider, &ends.subscriber)
        .args(&create)
        .arg("--until-caught-up")
        .output()
        .await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    for db in [&pair.provider, &pair.subscriber] {
        db.run(&format!("drop owned by {clerk} cascade; drop role {clerk}"))
            .await;
    }
    pair.drop().await;
}

#[tokio::test]
async fn ends_that_cannot_be_used() {
    let pair = pair().await;
    for db in [&pair.provider, &pair.subscriber] {
        db.run(SOUND).await;
    }
    let ends = Ends::of(&pair);
    let all = ["--table", "sound.*", "--create"];
    let database = format!("database \"{}\"", pair.database);
    let nowhere = Ends {
        provider: "host=127.0.0.1 port=1 user=u dbname=d".to_owned(),
        subscriber: pair.subscriber_cluster.conninfo("no_such_database"),
    };
    let checked = nowhere.check(&all);
    assert_eq!(checked.found.len(), 2, "{:#}", checked.report);
    assert!(
        checked.found.iter().all(|one| one.starts_with("unreachable ")),
        "{:#}",
        checked.report
    );
    let same = Ends {
        subscriber: ends.provider.clone(),
        ..Ends::of(&pair)
    };
    same.check(&all).is(1, &[&format!("same-database {database}")]);

    pair.provider
        .run("update pg_extension set extversion = '0.0.9' where extname = 'pgcascade'")
        .await;
    ends.check(&all).is(1, &[&format!("extension-old {database}")]);
    pair.provider.run("drop extension pgcascade").await;
    let checked = ends.check(&all);
    checked.is(1, &[&format!("extension-missing {database}")]);
    assert_eq!(mend(&pair, &checked).await, 1);
    ends.check(&all).is(0, &[]);

    pair.provider
        .run("update pg_extension set extversion = '0.1.0-old' where extname = 'pgcascade'")
        .await;
    ends.check(&all).is(0, &[&format!("extension-update {database}")]);
    pair.provider.run("drop extension pgcascade").await;
    pair.provider_cluster.create_extension(&pair.provider).await;

    pair.subscriber
        .run(&format!(
            "alter database {} set default_transaction_read_only = on",
            pair.database
        ))
        .await;
    let checked = ends.check(&all);
    checked.is(1, &[&format!("read-only {database}")]);
    mend(&pair, &checked).await;
    ends.check(&all).is(0, &[]);

    pair.provider
        .run(&format!("alter database {} set pgcascade.ticker = off", pair.database))
        .await;
    eventually("the ticker has gone", async || pair.provider.text(TICKERS).await == "0").await;
    let checked = ends.check(&all);
    checked.is(0, &["ticker-unseen queue q"]);
    mend(&pair, &checked).await;
    ends.check(&all).is(0, &[]);

    let loader = format!("loader_{}", pair.database);
    pair.provider
        .run(&format!(
            "create role {loader}; alter role {loader} in database {0} set session_replication_role = replica;
             alter database {0} set pgcascade.fixed_output = off",
            pair.database
        ))
        .await;
    let checked = ends.check(&all);
    checked.is(
        0,
        &[
            &format!("writers-uncaptured role \"{loader}\""),
            &format!("output-not-fixed {database}"),
        ],
    );
    mend(&pair, &checked).await;
    ends.check(&all).is(0, &[]);
    pair.provider.run(&format!("drop role {loader}")).await;

    // Encodings: a subscriber that lacks characters, and one that nobody can convert for.
    let postgres = pair.subscriber_cluster.connect("postgres").await;
    let other = |encoding: &str| format!("{}_{encoding}", pair.database);
    for encoding in ["latin1", "euc_cn"] {
        let name = other(encoding);
        postgres
            .run(&format!(
                "create database {name} encoding '{encoding}' locale 'C' template template0"
            ))
            .await;
        let ends = Ends {
            subscriber: pair.subscriber_cluster.conninfo(&name),
            ..Ends::of(&pair)
        };
        let db = pair.subscriber_cluster.connect(&name).await;
        db.run(SOUND).await;
        ends.check(&["--table", "sound.*"])
            .is(0, &[&format!("encoding encoding {}", encoding.to_uppercase())]);
    }
    let from_latin1 = pair.provider_cluster.connect("postgres").await;
    let name = other("latin1");
    from_latin1
        .run(&format!(
            "create database {name} encoding 'latin1' locale 'C' template template0"
        ))
        .await;
    let db = pair.provider_cluster.connect(&name).await;
    pair.provider_cluster.create_extension(&db).await;
    db.run(SOUND).await;
    let unreadable = Ends {
        provider: pair.provider_cluster.conninfo(&name),
        subscriber: pair.subscriber_cluster.conninfo(&other("euc_cn")),
    };
    unreadable
        .check(&["--table", "sound.*"])
        .is(1, &["encoding-unreadable encoding EUC_CN"]);
    let sound = Ends {
        subscriber: pair.subscriber_cluster.conninfo(&name),
        ..unreadable
    };
    sound.check(&["--table", "sound.*"]).is(0, &[]);
    // Its letters would arrive as others.
    let odd = pair.subscriber_cluster.connect(&other("latin1")).await;
    for db in [&db, &odd] {
        db.run("create table \"größe\" (id int primary key); create table inner_name (id int primary key, \"ä\" int)")
            .await;
    }
    sound.check(&["--table", "größe", "--table", "inner_name"]).is(
        1,
        &[
            "encoding-names column ä of table public.inner_name",
            "encoding-names table public.\"größe\"",
        ],
    );
    drop((db, odd));
    pair.provider_cluster.drop_database(&name).await;
    for encoding in ["latin1", "euc_cn"] {
        pair.subscriber_cluster.drop_database(&other(encoding)).await;
    }

    for (arguments, text) in [
        (&["--table", "a.b.c"][..], "a.b.c"),
        (&["--table", "t", "--no-copy", "--truncate"], "contradict"),
    ] {
        let (code, out, err) = ends.run(arguments);
        assert!(code == 2 && out.is_empty() && err.contains(text), "{code} {out}{err}");
    }
    pair.drop().await;
}

type Case = (&'static str, &'static str, &'static str, &'static [&'static str], bool);

/// Tables that each have one defect: on the provider, on the subscriber, what is found (`TABLE` is its name), and whether
/// running the remedy's statement is all it takes.
const BROKEN: &[Case] = &[
    (
        "missing",
        "create table TABLE (id int primary key, v text default 'x', n numeric(7,2) not null, s serial)",
        "",
        &["table-missing"],
        true,
    ),
    (
        "view",
        "create table TABLE (id int primary key)",
        "create view TABLE as select 1 as id",
        &["not-a-table"],
        false,
    ),
    (
        "filled",
        "create table TABLE (id int primary key)",
        "create table TABLE (id int primary key); insert into TABLE values (1)",
        &["table-not-empty"],
        true,
    ),
    (
        "keyless",
        "create table TABLE (id int)",
        "create table TABLE (id int)",
        &["no-key"],
        false,
    ),
    (
        "almost_keyless",
        "create table TABLE (\"I d\" int not null, b int not null, unique (b, \"I d\"))",
        "create table TABLE (\"I d\" int not null, b int not null, unique (b, \"I d\"))",
        &["no-key"],
        true,
    ),
    (
        "keyed_there_only",
        "create table TABLE (id int not null, a int not null unique)",
        "create table TABLE (id int primary key, a int not null unique)",
        &["no-key", "unique-extra"],
        true,
    ),
    (
        "no_column",
        "create table TABLE (id int primary key, \"W w\" varchar(3))",
        "create table TABLE (id int primary key)",
        &["column-missing"],
        true,
    ),
    (
        "more_columns",
        "create table TABLE (id int primary key)",
        "create table TABLE (id int primary key, a int, b int not null default 1, \"C\" int not null)",
        &["column-extra"],
        true,
    ),
    (
        "generated",
        "create table TABLE (id int primary key, g int generated always as (id * 2) stored)",
        "create table TABLE (id int primary key, g int)",
        &["column-generated"],
        true,
    ),
    (
        "no_unique",
        "create table TABLE (a int, b int, primary key (a, b))",
        "create table TABLE (a int, b int, unique (a))",
        &["key-missing", "unique-extra"],
        true,
    ),
    (
        "trigger_disabled",
        "create table TABLE (id int primary key, v text); create trigger pgcascade_capture_q after insert or update or delete on TABLE for each row execute function pgq.logutriga('q'); alter table TABLE disable trigger all",
        "create table TABLE (id int primary key, v text)",
        &["trigger-disabled"],
        true,
    ),
    (
        "trigger_in_replica_mode",
        "create table TABLE (id int primary key, v text); create trigger mine after insert or update or delete on TABLE for each row execute function pgq.logutriga('q'); alter table TABLE enable replica trigger mine",
        "create table TABLE (id int primary key, v text)",
        &["trigger-disabled"],
        true,
    ),
    (
        "trigger_of_another_queue",
        "create table TABLE (id int primary key, v text); create trigger pgcascade_capture_q after insert or update or delete on TABLE for each row execute function pgq.logutriga('qq')",
        "create table TABLE (id int primary key, v text)",
        &["trigger-foreign"],
        true,
    ),
    (
        "trigger_that_does_something_else",
        "create table TABLE (id int primary key, v text); create trigger pgcascade_capture_q_truncate before update on TABLE for each row execute function suppress_redundant_updates_trigger()",
        "create table TABLE (id int primary key, v text)",
        &["trigger-foreign"],
        true,
    ),
    (
        "trigger_before",
        "create table TABLE (id int primary key, v text); create trigger \"My trigger\" before insert or update or delete on TABLE for each row execute function pgq.logutriga('q')",
        "create table TABLE (id int primary key, v text)",
        &["trigger-before"],
        true,
    ),
    (
        "trigger_for_inserts_only",
        "create table TABLE (id int primary key, v text); create trigger a after insert on TABLE for each row execute function pgq.logutriga('q')",
        "create table TABLE (id int primary key, v text)",
        &[],
        true,
    ),
    (
        "trigger_twice",
        "create table TABLE (id int primary key, v text); create trigger a after insert or update or delete on TABLE for each row execute function pgq.logutriga('q'); create trigger b after update on TABLE for each row execute function pgq.logutriga('q')",
        "create table TABLE (id int primary key, v text)",
        &["trigger-twice"],
        true,
    ),
    (
        "trigger_on_a_condition",
        "create table TABLE (id int primary key, v text); create trigger a after insert on TABLE for each row when (new.id > 7) execute function pgq.logutriga('q')",
        "create table TABLE (id int primary key, v text)",
        &["trigger-twice"],
        true,
    ),
    (
        "trigger_on_columns",
        "create table TABLE (id int primary key, v text); create trigger a after update of v on TABLE for each row execute function pgq.logutriga('q')",
        "create table TABLE (id int primary key, v text)",
        &["trigger-twice"],
        true,
    ),
    (
        "trigger_in_json",
        "create table TABLE (id int primary key, v text); create trigger a after insert or update or delete on TABLE for each row execute function pgq.jsontriga('q')",
        "create table TABLE (id int primary key, v text)",
        &["trigger-format"],
        true,
    ),
    (
        "trigger_with_an_expression",
        "create table TABLE (id int primary key, v text); create trigger a after insert or update or delete on TABLE for each row execute function pgq.logutriga('q', 'backup', 'ev_data=id::text')",
        "create table TABLE (id int primary key, v text)",
        &["trigger-arguments"],
        true,
    ),
    (
        "trigger_with_another_key",
        "create table TABLE (id int primary key, v text); create trigger a after insert or update or delete on TABLE for each row execute function pgq.logutriga('q', 'pkey=v')",
        "create table TABLE (id int primary key, v text)",
        &["trigger-format"],
        true,
    ),
    (
        "trigger_that_leaves_out",
        "create table TABLE (id int primary key, v text); create trigger a after insert or update or delete on TABLE for each row execute function pgq.logutriga('q', 'ignore=v', 'when=id > 7')",
        "create table TABLE (id int primary key, v text)",
        &["trigger-arguments"],
        true,
    ),
    (
        "other_type",
        "create table TABLE (id int primary key, v text)",
        "create table TABLE (id int primary key, v int)",
        &["type-other"],
        true,
    ),
    (
        "narrower_type",
        "create table TABLE (id bigint primary key, v varchar(20))",
        "create table TABLE (id int primary key, v varchar(10))",
        &["type-narrower", "type-narrower"],
        true,
    ),
    (
        "label",
        "create type broken.e as enum ('a', 'b''b', 'c'); create table TABLE (id int primary key, e broken.e)",
        "create type broken.e as enum ('c', 'a'); create table TABLE (id int primary key, e broken.e)",
        &["enum-label"],
        true,
    ),
    (
        "generated_there",
        "create table TABLE (id int primary key, g int)",
        "create table TABLE (id int primary key, g int generated always as (id * 2) stored)",
        &["generated-there"],
        true,
    ),
    (
        "not_null",
        "create table TABLE (id int primary key, v text)",
        "create table TABLE (id int primary key, v text not null)",
        &["not-null"],
        true,
    ),
    (
        "check_of_its_own",
        "create table TABLE (id int primary key, v text)",
        "create table TABLE (id int primary key, v text check (v <> ''))",
        &["check-extra"],
        true,
    ),
    (
        "unique_of_its_own",
        "create table TABLE (id int primary key, v text)",
        "create table TABLE (id int primary key, v text unique); create unique index \"My index\" on TABLE (lower(v))",
        &["unique-extra", "unique-extra"],
        true,
    ),
    (
        "exclusion_of_its_own",
        "create table TABLE (id int primary key, v text)",
        "create table TABLE (id int primary key, v text, exclude using btree (v with =))",
        &["unique-extra"],
        true,
    ),
    (
        "unlogged",
        "create unlogged table TABLE (id int primary key)",
        "create unlogged table TABLE (id int primary key)",
        &["unlogged", "unlogged"],
        true,
    ),
    (
        "inherited",
        "create table TABLE (id int primary key, v text); create table elsewhere.heir () inherits (TABLE)",
        "create table TABLE (id int primary key, v text)",
        &["inheritance"],
        false,
    ),
    (
        "acts",
        "create table TABLE (id int primary key, v text)",
        "create table TABLE (id int primary key, v text); create trigger a before update on TABLE for each row execute function suppress_redundant_updates_trigger(); alter table TABLE enable always trigger a; create rule \"R r\" as on delete to TABLE do also notify x; alter table TABLE enable replica rule \"R r\"",
        &["acts-in-replica", "acts-in-replica"],
        true,
    ),
    (
        "parent",
        "create table TABLE (id int primary key)",
        "create table TABLE (id int primary key); create table elsewhere.child (id int references TABLE)",
        &["foreign-key"],
        true,
    ),
    (
        "child",
        "create table TABLE (id int primary key)",
        "create table elsewhere.parent (id int primary key); create table TABLE (id int primary key references elsewhere.parent)",
        &["foreign-key"],
        true,
    ),
];

#[tokio::test]
async fn broken_tables_are_named_and_mended() {
    let pair = pair().await;
    let ends = Ends::of(&pair);
    for db in [&pair.provider, &pair.subscriber] {
        db.run(SOUND).await;
        db.run("create schema broken; create schema elsewhere").await;
    }
    let mut expected = Vec::new();
    let mut left = Vec::new();
    for (name, provider, subscriber, kinds, mends) in BROKEN {
        let table = format!("broken.{name}");
        pair.provider.run(&provider.replace("TABLE", &table)).await;
        pair.subscriber.run(&subscriber.replace("TABLE", &table)).await;
        for kind in *kinds {
            expected.push(format!("{kind} {table}"));
            if !mends {
                left.push(format!("{kind} {table}"));
            }
        }
    }
    for db in [&pair.provider, &pair.subscriber] {
        db.run("create table broken.numbered (id int generated always as identity primary key, s bigserial)")
            .await;
    }
    // Replay keeps sequences ahead, but for one that ends before; without that these are behind, of which the subscriber never drew
    // from one.
    pair.provider
        .run(
            "insert into broken.numbered select from generate_series(1, 7);
             create table broken.short (id bigint generated by default as identity (start with 100) primary key);
             insert into broken.short default values",
        )
        .await;
    pair.subscriber
        .run(
            "select nextval('broken.numbered_s_seq');
             create table broken.short (id bigint generated by default as identity (maxvalue 50) primary key)",
        )
        .await;
    expected.push("sequence-behind broken.short_id_seq".to_owned());
    left.push("sequence-behind broken.short_id_seq".to_owned());
    let sequences = [
        "sequence-behind broken.numbered_id_seq",
        "sequence-behind broken.numbered_s_seq",
    ];
    ends.check(&["--table", "broken.numbered"]).is(0, &[]);
    let unkept = ["--table", "broken.numbered", "--no-sequences"];
    let checked = ends.check(&unkept);
    checked.is(0, &sequences);
    mend(&pair, &checked).await;
    ends.check(&unkept).is(0, &[]);
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    let left: Vec<&str> = left.iter().map(String::as_str).collect();
    ends.check(&["--table", "sound.*"]).is(0, &[]);
    // Settings of one end that change how names are shown.
    let quotes = format!("alter database {} set quote_all_identifiers = on", pair.database);
    pair.subscriber.run(&quotes).await;
    ends.check(&["--table", "sound.*"]).is(0, &[]);
    // What --create would make of a table, and what it would not.
    let tables = "create schema half; create table half.parent (id int primary key); create table half.child (id int references half.parent)";
    pair.provider.run(tables).await;
    let child = ["--table", "half.child", "--create"];
    ends.check(&child)
        .is(0, &["no-key half.child", "foreign-key-missing half.child"]);
    ends.check(&["--table", "half.*", "--create"])
        .is(0, &["no-key half.child"]);
    pair.subscriber.run(tables).await;
    ends.check(&child)
        .is(0, &["no-key half.child", "foreign-key half.child"]);
    let all = ["--table", "sound.*", "--table", "broken.*"];
    let checked = ends.check(&all);
    checked.is(1, &expected);
    let emptied = ["--table", "broken.parent", "--truncate"];
    ends.check(&emptied).is(1, &["truncate-referenced broken.parent"]);
    mend(&pair, &checked).await;
    ends.check(&all).is(1, &left);
    ends.check(&emptied).is(0, &[]);
    let (code, text, _) = ends.run(&all);
    assert!(
        code == 1 && text.contains("stop replication: 1; warnings: 3."),
        "{text}"
    );

    // What was mended can be replayed, and each change comes once.
    pair.subscriber
        .run("drop view broken.view; create table broken.view (id int primary key)")
        .await;
    for sql in [
        "insert into TABLE values (1, 'a'), (2, 'b')",
        "update TABLE set v = 'c' where id = 1",
        "delete from TABLE where id = 2",
    ] {
        pair.catch_up(&all).await;
        for (name, ..) in BROKEN.iter().filter(|case| case.0.starts_with("trigger_")) {
            pair.provider
                .run(&sql.replace("TABLE", &format!("broken.{name}")))
                .await;
        }
    }
    pair.catch_up(&all).await;
    assert_eq!(pair.subscriber.text("select * from broken.trigger_twice").await, "1|c");
    for (name, ..) in BROKEN {
        pair.assert_equal(&format!("broken.{name}")).await;
    }
    pair.drop().await;
}

#[tokio::test]
async fn partitions() {
    let pair = pair().await;
    let ends = Ends::of(&pair);
    let parted = |name: &str, parts: &[i32]| {
        let mut sql = format!("create table parts.{name} (id int primary key, v text) partition by range (id);");
        for part in parts {
            let to = part + 10;
            sql += &format!(
                "create table parts.{name}_{part} partition of parts.{name} for values from ({part}) to ({to});"
            );
        }
        sql
    };
    for db in [&pair.provider, &pair.subscriber] {
        db.run("create schema parts").await;
        db.run(&parted("sound", &[0, 10, 20])).await;
    }
    for name in [
        "otherwise",
        "with_default",
        "fewer",
        "own_trigger",
        "disabled",
        "unlogged",
        "acts",
        "elsewhere",
    ] {
        pair.provider.run(&parted(name, &[0, 10])).await;
    }
    let s = &pair.subscriber;
    s.run("create table parts.otherwise (id int primary key, v text) partition by hash (id)")
        .await;
    s.run(&parted("with_default", &[0])).await;
    s.run("create table parts.any partition of parts.with_default default")
        .await;
    s.run(&parted("fewer", &[10])).await;
    for name in ["own_trigger", "disabled", "unlogged", "acts", "elsewhere"] {
        s.run(&parted(name, &[0, 10])).await;
    }
    pair.provider
        .run(
            "create trigger mine after insert on parts.own_trigger_0 for each row execute function pgq.logutriga('q');
             create trigger pgcascade_capture_q after insert or update or delete on parts.disabled
               for each row execute function pgq.logutriga('q');
             alter table parts.disabled_10 disable trigger pgcascade_capture_q;
             alter table parts.unlogged_0 set unlogged;
             create foreign data wrapper nothing; create server nowhere foreign data wrapper nothing;
             alter table parts.elsewhere drop constraint elsewhere_pkey;
             create foreign table parts.elsewhere_20 partition of parts.elsewhere for values from (20) to (30) server nowhere",
        )
        .await;
    s.run(
        "alter table parts.unlogged_10 set unlogged;
         create trigger a before update on parts.acts_0 for each row execute function suppress_redundant_updates_trigger();
         alter table parts.acts_0 enable always trigger a",
    )
    .await;
    let all = ["--table", "parts.*"];
    let checked = ends.check(&all);
    checked.is(
        1,
        &[
            "partition-missing parts.fewer_0",
            "trigger-twice parts.own_trigger_0",
            "trigger-disabled parts.disabled_10",
            "unlogged parts.unlogged_0",
            "unlogged parts.unlogged_10",
            "acts-in-replica parts.acts_0",
            "not-a-table parts.elsewhere_20",
            "no-key parts.elsewhere",
            "unique-extra parts.elsewhere",
        ],
    );
    assert_eq!(mend(&pair, &checked).await, 7);
    ends.check(&all)
        .is(1, &["not-a-table parts.elsewhere_20", "no-key parts.elsewhere"]);
    pair.provider.run("drop server nowhere cascade").await;
    ends.check(&all).is(0, &["no-key parts.elsewhere"]);
    // What was mended can be replayed.
    pair.subscriber
        .run("create table parts.otherwise_0 partition of parts.otherwise for values with (modulus 1, remainder 0)")
        .await;
    pair.catch_up(&all).await;
    let mended = [
        "sound",
        "otherwise",
        "with_default",
        "fewer",
        "own_trigger",
        "disabled",
        "unlogged",
        "acts",
    ];
    for name in mended {
        pair.provider
            .run(&format!(
                "insert into parts.{name} values (1, 'a'), (11, 'b'); update parts.{name} set id = 12 where id = 1"
            ))
            .await;
    }
    pair.catch_up(&all).await;
    for name in mended {
        pair.assert_equal(&format!("parts.{name}")).await;
    }
    pair.drop().await;
}

/// What it registers, and the rows that it copies, are nobody else's.
#[tokio::test]
async fn beside_a_replay_that_begins() {
    let pair = pair().await;
    let ends = Ends::of(&pair);
    pair.provider
        .run(
            "create table t (id int primary key); insert into t values (1);
             create table added (id int primary key); insert into added values (1)",
        )
        .await;
    for tables in [
        &["--table", "t", "--create"][..],
        &["--table", "t", "--table", "added", "--create"],
    ] {
        let go_on = format!("go-on-{}-{}", pair.database, tables.len());
        let go_on = pair.subscriber_cluster.file(&go_on);
        let checks = ends.paused("after_states", &go_on, tables).await;
        pair.catch_up(tables).await;
        std::fs::write(&go_on, "").unwrap();
        let output = checks.wait().await;
        assert_eq!(output.code(), Some(0), "{}", output.stderr);
    }
    pair.drop().await;
}

#[tokio::test]
async fn what_was_lost_since_the_last_run() {
    let pair = pair().await;
    let ends = Ends::of(&pair);
    pair.provider.run(SOUND).await;
    pair.provider
        .run("create type odd as enum ('a'); create table typed (id int primary key, os odd[], o odd)")
        .await;
    ends.check(&["--table", "typed", "--create"])
        .is(1, &["type-missing type public.odd"]);
    ends.check(&["--table", "nothing*"]).is(1, &["no-table nothing*"]);
    ends.check(&[]).is(1, &["no-table queue q"]);

    pair.subscriber
        .run("create schema sound; create type sound.mood as enum ('good', 'bad')")
        .await;
    let all = ["--table", "sound.*"];
    pair.catch_up(&[&all[..], &["--create"]].concat()).await;
    ends.check(&all).is(0, &[]);
    // Beside a replay that runs.
    let running = pair.replay().args(&all).spawn();
    running.until_it_says("streaming").await;
    ends.check(&all).is(0, &[]);
    // It may go on between two looks of the check.
    let go_on = pair.subscriber_cluster.file(&format!("go-on-{}", pair.database));
    let checks = ends.paused("after_position", &go_on, &all).await;
    let known = "select sub_last_tick from pgq.subscription";
    let before = pair.provider.text(known).await;
    eventually("the provider knows of another tick", async || {
        pair.tick().await;
        pair.provider.text(known).await != before
    })
    .await;
    std::fs::write(&go_on, "").unwrap();
    let output = checks.wait().await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    running.stop().await;

    pair.provider.run("alter table sound.parent disable trigger all").await;
    let checked = ends.check(&all);
    let disabled = "trigger-disabled sound.parent";
    checked.is(1, &["capture-lost sound.parent", disabled, disabled]);
    mend(&pair, &checked).await;
    ends.check(&all).is(0, &[]);

    pair.catch_up(&[&all[..], &["--truncate"]].concat()).await;
    ends.check(&all).is(0, &[]);
    pair.provider.run("insert into sound.parent values (7)").await;
    pair.catch_up(&all).await;
    pair.subscriber.run("delete from sound.parent").await;
    pair.provider.run("delete from sound.parent").await;
    pair.catch_up(&[&all[..], &["--on-error", "park"]].concat()).await;
    let checked = ends.check(&all);
    checked.is(0, &["table-broken sound.parent"]);
    assert!(
        checked.findings()[0]["remedy"]
            .as_str()
            .unwrap()
            .contains("consumer table resync '\"sound\".\"parent\"'"),
        "{:#}",
        checked.report
    );
    let resync = Command::new(env!("CARGO_BIN_EXE_consumer"))
        .args([
            "table",
            "resync",
            "\"sound\".\"parent\"",
            "--queue",
            "q",
            "--consumer",
            "c",
        ])
        .args(["--subscriber", &ends.subscriber])
        .status()
        .unwrap();
    assert!(resync.success());
    ends.check(&all).is(0, &[]);
    ends.check(&[&all[..], &["--on-conflict", "nothing*=skip"]].concat())
        .is(1, &["no-table nothing*"]);
    // Other tests' transactions hold up the end of the catching-up.
    eventually("the tables are ok", async || {
        pair.catch_up(&all).await;
        let states = "select string_agg(distinct state, ' ') from pgcascade_replay.table_state";
        pair.subscriber.text(states).await == "ok"
    })
    .await;

    for (column, kind) in [("ticker_paused", "queue-paused"), ("disable_insert", "queue-closed")] {
        pair.provider
            .run(&format!("update pgq.queue set queue_{column} = true"))
            .await;
        let checked = ends.check(&all);
        checked.is(1, &[&format!("{kind} queue q")]);
        mend(&pair, &checked).await;
        ends.check(&all).is(0, &[]);
    }

    pair.subscriber
        .run(
            "insert into pgcascade_replay.position (consumer, queue, provider_identity) values ('d', 'q', 'x');
             insert into pgcascade_replay.table_state
               (consumer, queue, provider_schema, provider_table, subscriber_schema, subscriber_table, state)
             values ('d', 'q', 'a', 'b', 'sound', 'parent', 'ok')",
        )
        .await;
    ends.check(&all).is(0, &["two-consumers sound.parent"]);
    pair.subscriber
        .run("delete from pgcascade_replay.position where consumer = 'd'")
        .await;

    // Long ago: the counters are compared from a tick on that is older than a minute.
    pair.provider
        .run("update pgq.tick set tick_time = tick_time - interval '1 hour'")
        .await;
    pair.provider
        .run("analyze sound.parent, sound.child; insert into sound.parent values (1), (2); update sound.parent set id = id")
        .await;
    let count = async |least: i64| {
        eventually("the changes are counted", async || {
            let changes = "select pg_stat_force_next_flush();
                           select n_mod_since_analyze from pg_stat_user_tables where relid = 'sound.parent'::regclass";
            pair.provider.text(changes).await.trim().parse::<i64>().unwrap() >= least
        })
        .await;
    };
    count(4).await;
    ends.check(&all).is(0, &[]);
    pair.provider
        .run("set session_replication_role = replica; insert into sound.parent values (3); reset session_replication_role")
        .await;
    count(5).await;
    ends.check(&all).is(0, &["written-uncaptured sound.parent"]);

    // Nobody makes ticks.
    pair.provider
        .run(&format!("alter database {} set pgcascade.ticker = off", pair.database))
        .await;
    eventually("the ticker has gone", async || pair.provider.text(TICKERS).await == "0").await;
    pair.provider
        .run("update pgq.tick set tick_time = tick_time - interval '1 hour'; analyze sound.parent")
        .await;
    let checked = ends.check(&all);
    checked.is(1, &["ticker queue q"]);
    mend(&pair, &checked).await;
    pair.provider.run("select pg_reload_conf()").await; // has the launcher look at once
    // It shows before it has its lock.
    let young = "select max(tick_time) > now() - interval '1 minute' from pgq.tick";
    eventually("the ticker is back", async || pair.provider.text(young).await == "t").await;
    ends.check(&all).is(0, &[]);

    pair.provider.run("select pgq.unregister_consumer('q', 'c')").await;
    ends.check(&all).is(1, &["position consumer c of queue q"]);
    pair.drop().await;
}
