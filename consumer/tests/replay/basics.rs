//! What replay does when nothing goes wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::cluster::{Output, Replay, eventually, pair};

#[tokio::test]
async fn copies_and_then_streams() {
    let pair = pair().await;
    pair.provider
        .run(
            r#"
            create table plain (id int primary key, v text, n numeric(10,2) default 1.5);
            create table composite (a text, b int, v text, primary key (b, a));
            create schema "Odd.Schema";
            create table "Odd.Schema"."Ta,b:l""e" ("Ke y" int, "co.l,2" text, "q""" text, primary key ("Ke y", "co.l,2"));
            create table keyless (v text);
            create table only_key (id int primary key);
            create table generated (id int primary key, a int, twice int generated always as (a * 2) stored);
            create table identity (id int generated always as identity primary key, v text);
            create table identity_beside (k text primary key, id int generated always as identity, v text);
            insert into plain select i, 'v' || i from generate_series(1, 1000) i;
            insert into composite values ('x', 1, null), ('x', 2, '');
            insert into "Odd.Schema"."Ta,b:l""e" values (1, 'a', 'b');
            insert into keyless values (null), (''), ('x');
            insert into generated values (1, 5);
            insert into identity (v) values ('a'), ('b');
            insert into identity_beside (k, v) values ('a', 'b');
            "#,
        )
        .await;
    let tables = [
        "plain",
        "composite",
        r#""Odd.Schema"."Ta,b:l""e""#,
        "keyless",
        "only_key",
        "generated",
        "identity",
        "identity_beside",
    ];
    let arguments = ["--table", "public.*", "--table", r#""Odd.Schema".*"#, "--create"];
    let first = pair.catch_up(&arguments).await;
    assert!(first.stderr.contains("no primary key"), "{}", first.stderr);
    for table in tables {
        pair.assert_equal(table).await;
    }
    pair.provider
        .run(
            r#"
            update plain set v = v || E' \t\n\\ ü%+&=' where id <= 300;
            delete from plain where id between 301 and 400;
            insert into plain select i, null from generate_series(2001, 3000) i;
            begin; update plain set id = -id where id <= 10; insert into plain values (1, 'again'); delete from plain where id = -2; commit;
            update composite set b = 7 where b = 1;
            update composite set v = 'changed' where b = 2;
            insert into composite values ('', 0, '');
            update "Odd.Schema"."Ta,b:l""e" set "q""" = 'new';
            insert into "Odd.Schema"."Ta,b:l""e" values (2, '', null);
            insert into keyless values ('y'), (null);
            insert into only_key select generate_series(1, 50);
            update only_key set id = id where id < 10;
            delete from only_key where id > 40;
            update generated set a = 6; insert into generated values (2, null);
            update identity set v = 'c' where id = 1; insert into identity (v) values ('d'); delete from identity where id = 2;
            update identity_beside set v = 'c'; insert into identity_beside (k, v) values ('b', 'c');
            "#,
        )
        .await;
    pair.catch_up(&arguments).await;
    for table in tables {
        pair.assert_equal(table).await;
    }
    pair.provider
        .run(
            "begin; insert into plain values (9999, 'gone'); truncate plain, composite; insert into plain values (1, 'after'); commit;
             truncate keyless; insert into keyless values ('alone')",
        )
        .await;
    pair.catch_up(&arguments).await;
    for table in tables {
        pair.assert_equal(table).await;
    }
    assert_eq!(pair.subscriber.text("select count(*) from plain").await, "1");
    // At a tick from after the transactions of other tests.
    eventually("the tables are ok", async || {
        pair.catch_up(&arguments).await;
        let states = "select distinct state, copy_snapshot from pgcascade_replay.table_state";
        pair.subscriber.text(states).await == "ok|<null>"
    })
    .await;
    pair.drop().await;
}

/// All that is to be had of their rows is how many there are.
#[tokio::test]
async fn rows_without_a_column_to_store() {
    let pair = pair().await;
    pair.provider
        .run(
            "create table bare (); insert into bare select from generate_series(1, 3); create table parent (); create table child (v text) inherits (parent);
             create table computed (one int generated always as (1) stored); insert into computed select from generate_series(1, 5);
             insert into parent default values; insert into child values ('x')",
        )
        .await;
    pair.subscriber
        .run("create table bare (since text default 'copy')")
        .await;
    pair.catch_up(&["--table", "public.*", "--create"]).await;
    let bare = "select since, count(*) from bare group by 1 order by 1";
    assert_eq!(pair.subscriber.text(bare).await, "copy|3");
    for table in ["computed", "only parent", "child"] {
        pair.assert_equal(table).await;
    }
    pair.subscriber
        .run("alter table bare alter since set default 'event'")
        .await;
    pair.provider
        .run("insert into bare select from generate_series(1, 50); truncate computed; insert into computed default values")
        .await;
    pair.catch_up(&[]).await;
    assert_eq!(pair.subscriber.text(bare).await, "copy|3\nevent|50");
    pair.assert_equal("computed").await;
    let (provider, subscriber) = (
        pair.provider_cluster.conninfo(&pair.database),
        pair.subscriber_cluster.conninfo(&pair.database),
    );
    let ends = ["compare", "--provider", &provider, "--subscriber", &subscriber];
    let compare = || Replay::command(&ends).args(&["--queue", "q", "--consumer", "c"]);
    let output = compare().output().await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    pair.subscriber.run("insert into computed default values").await;
    assert_eq!(compare().output().await.code(), Some(1));
    pair.drop().await;
}

#[tokio::test]
async fn streams_until_told_to_stop() {
    let pair = pair().await;
    pair.provider
        .run("create table t (id int primary key, v text); insert into t values (1, 'a')")
        .await;
    let running = pair.replay().args(&["--table", "t", "--create"]).spawn();
    running.until_it_says("streaming").await;
    for id in 2..6 {
        pair.provider.run(&format!("insert into t values ({id}, 'x')")).await;
        eventually("the row arrives", async || {
            pair.subscriber
                .text(&format!("select count(*) from t where id = {id}"))
                .await
                == "1"
        })
        .await;
    }
    let output = running.stop().await;
    assert!(output.stderr.contains("stopped"), "{}", output.stderr);
    pair.provider.run("update t set v = 'while away'").await;
    pair.catch_up(&["--table", "t"]).await;
    pair.assert_equal("t").await;
    pair.drop().await;
}

#[tokio::test]
async fn a_table_can_come_later() {
    let pair = pair().await;
    pair.provider.run("create table a (id int primary key); create table b (id int primary key); insert into a values (1); insert into b values (1)").await;
    pair.catch_up(&["--table", "a", "--create"]).await;
    pair.provider
        .run("insert into a values (2); insert into b values (2)")
        .await;
    let second = pair.catch_up(&["--table", "a", "--table", "b", "--create"]).await;
    assert!(
        second.stderr.contains("copy done table=\"public.b\"")
            && !second.stderr.contains("copy done table=\"public.a\""),
        "{}",
        second.stderr
    );
    pair.assert_equal("a").await;
    pair.assert_equal("b").await;
    pair.provider
        .run("insert into a values (3); insert into b values (3)")
        .await;
    // --table adds: what it does not name any more goes on (consumer/tests/table.rs takes tables out).
    let third = pair.catch_up(&["--table", "a"]).await;
    assert!(!third.stderr.contains("copy done"), "{}", third.stderr);
    pair.assert_equal("a").await;
    pair.assert_equal("b").await;
    pair.drop().await;
}

#[tokio::test]
async fn rows_that_are_there_are_refused_emptied_or_taken() {
    let pair = pair().await;
    pair.provider
        .run("create table t (id int primary key, v text); insert into t values (1, 'a')")
        .await;
    pair.subscriber
        .run("create table t (id int primary key, v text); insert into t values (1, 'b')")
        .await;
    let refused = pair
        .replay()
        .args(&["--table", "t", "--until-caught-up"])
        .output()
        .await;
    assert_eq!(refused.code(), Some(1));
    assert!(
        refused.stderr.contains("has rows already") && refused.stderr.contains("--truncate"),
        "{}",
        refused.stderr
    );
    assert_eq!(
        pair.provider.text("select count(*) from pgq.queue").await,
        "0",
        "nothing was made"
    );
    assert_eq!(
        pair.subscriber.text("select to_regnamespace('pgcascade_replay')").await,
        "<null>"
    );
    pair.catch_up(&["--table", "t", "--no-copy"]).await;
    assert_eq!(pair.subscriber.text("select v from t").await, "b");
    pair.provider
        .run("update t set v = 'c'; insert into t values (2, 'd')")
        .await;
    pair.catch_up(&["--table", "t", "--no-copy"]).await;
    pair.assert_equal("t").await;
    pair.drop().await;

    let pair = self::pair().await;
    pair.provider
        .run("create table t (id int primary key, v text); insert into t values (1, 'a')")
        .await;
    pair.subscriber
        .run("create table t (id int primary key, v text); insert into t values (1, 'b'), (7, 'c')")
        .await;
    pair.catch_up(&["--table", "t", "--truncate"]).await;
    pair.assert_equal("t").await;
    pair.drop().await;
}

#[tokio::test]
async fn makes_tables_like_the_providers() {
    let pair = pair().await;
    // Types have to be there, and then what needs nothing but them is as good as what needs nothing.
    let types = "create schema app; create type app.\"Sta te\" as enum ('new', 'ol''d'); create domain app.mail as text check (value <> '')";
    pair.provider.run(types).await;
    pair.subscriber.run(types).await;
    pair.provider
        .run(
            r#"
            create function app.odd(bigint) returns boolean language sql immutable return $1 is not null;
            create table app.t (
                id serial primary key,
                code varchar(10) collate "C" not null default 'x',
                amount numeric(12,3) default 0,
                made timestamptz default now(),
                doubled numeric generated always as (amount * 2) stored,
                n bigint generated by default as identity (start with 1000 increment by 5),
                tags text[] default '{}',
                span int4range,
                state app."Sta te" not null default 'new',
                states app."Sta te"[] default array['new'::app."Sta te"],
                mail app.mail default 'a@b',
                constraint known check (state <> 'ol''d' or state = any (states)),
                constraint "no overlap" exclude using gist (span with &&) where (amount >= 0),
                constraint "t code" unique (code, n) deferrable,
                constraint "amount: ok" check (amount >= 0),
                constraint odd check (app.odd(n))
            );
            create index t_made on app.t (made desc);
            create index t_partial on app.t (code) where amount > 0;
            create unique index t_lower on app.t (lower(code), (n + 1)) include (made);
            create index t_odd on app.t (app.odd(n));
            insert into app.t (code, span) select 'c' || i, int4range(i, i + 1) from generate_series(1, 100) i;
            "#,
        )
        .await;
    let output = pair.catch_up(&["--table", "app.*", "--create"]).await;
    pair.assert_equal("app.t").await;
    // Its function is the provider's own.
    assert!(
        output.stderr.contains("could not make index app.t_odd"),
        "{}",
        output.stderr
    );
    let columns = "select attname, format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated, c.collname
                     from pg_attribute left join pg_collation c on c.oid = attcollation
                    where attrelid = 'app.t'::regclass and attnum > 0 order by attnum";
    assert_eq!(pair.provider.text(columns).await, pair.subscriber.text(columns).await);
    let keys = "select conname, pg_get_constraintdef(oid) from pg_constraint
                 where conrelid = 'app.t'::regclass and contype in ('p', 'u', 'c', 'x') and conname <> 'odd' order by 1";
    assert_eq!(pair.provider.text(keys).await, pair.subscriber.text(keys).await);
    let defaults = pair
        .subscriber
        .text("select pg_get_expr(adbin, adrelid) from pg_attrdef where adrelid = 'app.t'::regclass order by adnum")
        .await;
    assert_eq!(
        defaults,
        "nextval('app.t_id_seq'::regclass)\n'x'::character varying\n0\nnow()\n(amount * (2)::numeric)\n'{}'::text[]\n\
         'new'::app.\"Sta te\"\nARRAY['new'::app.\"Sta te\"]\n'a@b'::text"
    );
    let sequences = "select seqrelid::regclass, seqtypid::regtype, seqstart, seqincrement, seqmax, seqcycle,
                            pg_get_serial_sequence('app.t', 'id'), pg_get_serial_sequence('app.t', 'n')
                       from pg_sequence where seqrelid::regclass::text like 'app.t%' order by 1";
    assert_eq!(
        pair.provider.text(sequences).await,
        pair.subscriber.text(sequences).await
    );
    assert_eq!(
        pair.subscriber
            .text("select indexname from pg_indexes where schemaname = 'app' order by 1")
            .await,
        "no overlap\nt code\nt_lower\nt_made\nt_partial\nt_pkey"
    );
    let indexes = "select string_agg(indexdef, ' ' order by indexname) from pg_indexes where schemaname = 'app' and indexname <> 't_odd'";
    assert_eq!(pair.provider.text(indexes).await, pair.subscriber.text(indexes).await);
    pair.drop().await;
}

#[tokio::test]
async fn values_of_many_types_arrive_as_they_are() {
    let pair = pair().await;
    let types = r#"
        create type mood as enum ('sad', 'o k', 'hap"py');
        create domain positive as int check (value > 0);
        create type pair as (a int, "B b" text);"#;
    let table = r#"
        create table t (id int primary key, b bool, s smallint, l bigint, r real, d double precision, n numeric, m money, c char(5), v varchar(9),
            nm name, q "char", tx text, by bytea, dt date, ti time, tz timetz, ts timestamp, tt timestamptz, iv interval, u uuid, j json, jb jsonb, x xml,
            ip inet, ci cidr, mac macaddr, bt bit(4), vb bit varying, po point, bx box, ia int[], ta text[], i4 int4range, mr int4multirange, tv tsvector,
            tq tsquery, mo mood, mos mood[], po2 positive, pr pair, prs pair[], oi oid, rc regclass, ls pg_lsn, jp jsonpath)"#;
    let values = r#"
        (1, true, -32768, 9223372036854775807, 1.5e-40, 0.1 + 0.2, 'NaN', '-1234.56', 'ab', ' a''b', 'Na me', '\', E'\t\n\r\\N\\\b ü€😀', '\x00ff5c0a',
         'infinity', '23:59:59.999999', '01:02:03+05:30', '4713-01-01 BC', '294276-12-31 23:59:59+00', '-1 year 2 days -03:04:05.6',
         'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', ' {"a" : 1,  "a":"\u00e9"} ', '{"b": [1, null, "x\\y"]}', '<a b="c">&amp;</a>', '::1', '10.0.0.0/8',
         '08:00:2b:01:02:03', B'1010', B'', '(1,-2.5)', '(1,1),(0,0)', '{{1,NULL},{3,4}}', '{"a,b","c\"d",NULL,"NULL","","\\"}', '[1,5)', '{[1,3),[5,7)}',
         'a:1B ''q r'':2', '''a'' & !b', 'hap"py', '{"o k","hap\"py"}', 7, '(1,"x, ""y""")', '{"(1,\"a b\")",NULL}', 4294967295, 'pg_class', '16/B374D848', '$.a[*]?(@ > 1)'),
        (2, false, 0, 0, 'NaN', '-infinity', 'Infinity', 0, '', '', '', '', '', '', '-infinity', '24:00', '00:00-12', '-infinity', 'infinity', '0', null,
         'null', 'null', '', '10.1.2.3/24', '::/0', null, B'0000', B'1', '(NaN,0)', '(0,0),(0,0)', '{}', '{}', 'empty', '{}', '', '', 'sad', '{}', 1,
         '(,)', '{}', 0, '-', '0/0', 'strict $')"#;
    pair.provider.run(types).await;
    pair.subscriber.run(types).await;
    let (mut table, mut values) = (table.to_owned(), values.to_owned());
    if pair.provider.try_text("select xml '<a/>'").await.is_err() {
        // A server built without libxml has the type and takes no value of it.
        table = table.replace(" x xml", " x text");
        values = values.replace("<a b=\"c\">&amp;</a>", "no xml");
    }
    pair.provider.run(&table).await;
    pair.provider
        .run(&format!("insert into t values {values}; insert into t (id) values (3)"))
        .await;
    pair.catch_up(&["--table", "t", "--create"]).await;
    pair.assert_equal("t").await;
    // The same values as events: one by one, as a run that is long enough for COPY, and as a set of updates. The session's
    // formats must not matter.
    pair.provider
        .run(&format!(
            "truncate t;
             set DateStyle = 'SQL, DMY'; set IntervalStyle = 'iso_8601'; set TimeZone = 'Asia/Tokyo'; set extra_float_digits = 0; set bytea_output = 'escape';
             insert into t values {values}; update t set b = not b; insert into t (id) values (3);
             insert into t select 10 + i, b, s, l, r, d, n, m, c, v, nm, q, tx, by, dt, ti, tz, ts, tt, iv, u, j, jb, x, ip, ci, mac, bt, vb, po, bx, ia, ta,
                    i4, mr, tv, tq, mo, mos, po2, pr, prs, oi, rc, ls, jp from t, generate_series(1, 50) i where id = 1;
             reset all"
        ))
        .await;
    pair.catch_up(&["--table", "t"]).await;
    pair.assert_equal("t").await;
    pair.provider.run("update t set id = id; update t set b = not b").await;
    // What does not come with the events cannot be there afterwards.
    pair.subscriber.run("update t set l = 0, n = 0, v = null, tx = null, iv = null, j = null, ia = null, ta = null, prs = null, bt = null").await;
    pair.catch_up(&["--table", "t"]).await;
    pair.assert_equal("t").await;
    pair.drop().await;
}

#[tokio::test]
async fn keys_with_an_operator_elsewhere_and_deferred_constraints() {
    let pair = pair().await;
    let swap = "create table swap (id int primary key, n int unique deferrable initially immediate, k int, unique (k) deferrable initially deferred)";
    pair.provider.run(swap).await;
    pair.provider
        .run("insert into swap select i, i, i from generate_series(1, 100) i")
        .await;
    pair.catch_up(&["--table", "swap", "--create"]).await;
    pair.provider.run("begin; set constraints all deferred; update swap set n = 101 - n, k = 101 - k; commit; update swap set n = n + 0").await;
    pair.catch_up(&["--table", "swap"]).await;
    pair.assert_equal("swap").await;
    pair.drop().await;
}

#[tokio::test]
async fn nothing_is_lost_or_doubled_when_a_copy_meets_writers() {
    let pair = pair().await;
    pair.provider
        .run(
            "create table t (id int primary key, n int, pad text);
             insert into t select i, 0, repeat('x', 200) from generate_series(1, 20000) i;
             create table journal (uid text)",
        )
        .await;
    let writer = pair.provider_cluster.connect(&pair.database).await;
    let stop = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicU32::new(0));
    let (stopped, count) = (Arc::clone(&stop), Arc::clone(&written));
    let writing = tokio::spawn(async move {
        let mut n = 0;
        while !stopped.load(Ordering::Relaxed) {
            n += 1;
            count.store(n, Ordering::Relaxed);
            let id = (n * 7919) % 20000 + 1;
            let sql = format!(
                "begin; update t set n = n + 1 where id = {id}; insert into journal values ('{n}'); insert into t values ({}, 0, 'new'); delete from t where id = {}; commit",
                100_000 + n,
                100_000 + n - 5
            );
            writer.run(&sql).await;
            if n % 200 == 0 {
                writer.run("truncate journal").await;
            }
        }
        n
    });
    let running = pair
        .replay()
        .args(&["--table", "t", "--table", "journal", "--create"])
        .spawn();
    running.until_it_says("streaming").await;
    pair.until_past_copies(2).await;
    let then = written.load(Ordering::Relaxed);
    eventually("some more was written", async || {
        written.load(Ordering::Relaxed) > then + 50
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    assert!(writing.await.unwrap() > 0);
    running.stop().await;
    pair.catch_up(&["--table", "t", "--table", "journal"]).await;
    pair.assert_equal("t").await;
    pair.assert_equal("journal").await;
    pair.drop().await;
}

#[tokio::test]
async fn many_small_ticks_are_merged() {
    let pair = pair().await;
    pair.provider.run("create table t (id int primary key)").await;
    pair.catch_up(&["--table", "t", "--create"]).await;
    for id in 0..200 {
        pair.provider.run(&format!("insert into t values ({id})")).await;
        pair.provider.run("select pgq.ticker('q')").await;
    }
    let output = pair.catch_up(&["--table", "t"]).await;
    pair.assert_equal("t").await;
    let batches = |output: &Output| {
        let summary = output.stderr.split("in all").nth(1);
        let number = summary
            .and_then(|line| line.split("batches=").nth(1))
            .and_then(|rest| rest.split(' ').next());
        number.expect("the summary").parse::<u32>().unwrap()
    };
    assert!(batches(&output) < 20, "{}", output.stderr);

    // Not more than is wished for.
    for id in 200..230 {
        pair.provider.run(&format!("insert into t values ({id})")).await;
        pair.provider.run("select pgq.ticker('q')").await;
    }
    let output = pair.catch_up(&["--table", "t", "--batch-events", "1"]).await;
    pair.assert_equal("t").await;
    assert!(batches(&output) > 20, "{}", output.stderr);
    pair.drop().await;
}

#[tokio::test]
async fn catches_up_without_a_background_ticker() {
    let pair = pair().await;
    let off = format!("alter database {} set pgcascade.ticker = off", pair.database);
    pair.provider.run(&off).await;
    pair.provider
        .run("create table t (id int primary key); insert into t values (1)")
        .await;
    eventually("the ticker is out", async || {
        pair.provider
            .text("select count(*) from pg_stat_activity where datname = current_database() and backend_type like 'pgcascade%'")
            .await
            == "0"
    })
    .await;
    pair.catch_up(&["--table", "t", "--create"]).await;
    for id in 2..5 {
        pair.provider.run(&format!("insert into t values ({id})")).await;
        pair.catch_up(&["--table", "t"]).await;
        pair.assert_equal("t").await;
    }
    pair.drop().await;
}

#[tokio::test]
async fn a_provider_in_another_encoding() {
    let pair = pair().await;
    let latin = format!("{}_latin", pair.database);
    pair.provider
        .run(&format!(
            "create database {latin} encoding 'LATIN1' template template0 locale 'C'"
        ))
        .await;
    let provider = pair.provider_cluster.connect(&latin).await;
    pair.provider_cluster.create_extension(&provider).await;
    provider
        .run("create table t (id int primary key, v text); insert into t values (1, 'é'), (2, 'ÿ%+&')")
        .await;
    let replay = || {
        let provider = pair.provider_cluster.conninfo(&latin);
        let subscriber = pair.subscriber_cluster.conninfo(&pair.database);
        Replay::new(&provider, &subscriber).args(&["--table", "t", "--create", "--until-caught-up"])
    };
    let output = replay().output().await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    provider
        .run("insert into t select i, 'ü' || i from generate_series(10, 100) i; update t set v = v || 'ß' where id < 20; insert into t values (3, 'ä')")
        .await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("größe.sql");
    let file = file.to_str().unwrap();
    std::fs::write(
        file,
        "alter table t add column size text default 'ß'; update t set v = 'Ärger' where id = 3",
    )
    .unwrap();
    let at = pair.provider_cluster.conninfo(&latin);
    let executed = Replay::command(&["execute", "--queue", "q", "--provider", &at, file]);
    let output = executed.output().await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    provider.run("insert into t values (4, 'ö', 'groß')").await;
    let output = replay().args(&["--execute-as", "postgres"]).output().await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    let rows = "select id, v, size from t order by id";
    assert_eq!(provider.text(rows).await, pair.subscriber.text(rows).await);
    drop(provider);
    pair.provider_cluster.drop_database(&latin).await;
    pair.drop().await;
}

/// The bytes of a provider that knows no encoding are taken as they are, where they mean something on the subscriber; a value that
/// does not, or that the subscriber's encoding has no letters for, is named.
#[tokio::test]
async fn a_provider_without_an_encoding_and_letters_that_a_subscriber_lacks() {
    const REMEDY: &str = "mend it there, go on with --on-error park";
    let pair = pair().await;
    let (ascii, latin) = (format!("{}_ascii", pair.database), format!("{}_latin", pair.database));
    let made = |name: &str, encoding: &str| {
        format!("create database {name} encoding '{encoding}' template template0 locale 'C'")
    };
    pair.provider.run(&made(&ascii, "SQL_ASCII")).await;
    pair.subscriber.run(&made(&latin, "LATIN1")).await;
    let provider = pair.provider_cluster.connect(&ascii).await;
    pair.provider_cluster.create_extension(&provider).await;
    provider
        .run("create table t (id int primary key, v text); insert into t values (1, 'é'), (2, convert_from('\\xe282ac', 'SQL_ASCII'))")
        .await;
    let replay = |database: &str| {
        let provider = pair.provider_cluster.conninfo(&ascii);
        let subscriber = pair.subscriber_cluster.conninfo(database);
        Replay::new(&provider, &subscriber).args(&["--table", "t", "--create", "--until-caught-up"])
    };
    let output = replay(&pair.database).output().await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    provider.run("insert into t values (3, 'ü')").await;
    let output = replay(&pair.database).output().await;
    assert_eq!(output.code(), Some(0), "{}", output.stderr);
    let rows = "select string_agg(id || v, ' ' order by id) from t";
    assert_eq!(pair.subscriber.text(rows).await, "1é 2€ 3ü");

    provider
        .run("insert into t values (4, 'before'), (5, convert_from('\\xff', 'SQL_ASCII')), (6, 'after')")
        .await;
    let output = replay(&pair.database).output().await;
    assert_eq!(output.code(), Some(1), "{}", output.stderr);
    for text in ["inserts row (id)=(5) of table public.t", "22021", REMEDY] {
        assert!(output.stderr.contains(text), "{text}: {}", output.stderr);
    }
    assert_eq!(pair.subscriber.text(rows).await, "1é 2€ 3ü");
    provider.run("select pgq.unregister_consumer('q', 'c')").await;
    let output = replay(&latin).output().await;
    assert_eq!(output.code(), Some(1), "{}", output.stderr);
    for text in ["copy table public.t", "22021", REMEDY] {
        assert!(output.stderr.contains(text), "{text}: {}", output.stderr);
    }
    provider.run("delete from t where id = 5").await;
    let output = replay(&latin).output().await;
    assert_eq!(output.code(), Some(1), "{}", output.stderr);
    for text in ["copy into table public.t", "22P05", REMEDY] {
        assert!(output.stderr.contains(text), "{text}: {}", output.stderr);
    }
    drop(provider);
    pair.provider_cluster.drop_database(&ascii).await;
    pair.subscriber_cluster.drop_database(&latin).await;
    pair.drop().await;
}

/// A row that every transaction updates: what one transaction of the subscriber has to do must not grow with the square
/// of them.
#[tokio::test]
async fn hot_rows_of_a_large_batch() {
    let pair = pair().await;
    let schema = "create table hot (id int primary key, n int, v text);
                  create table hot_unique (id int primary key, n int unique)";
    pair.provider.run(schema).await;
    pair.provider
        .run("insert into hot select i, 0, 'x' from generate_series(1, 10) i; insert into hot_unique values (1, 1), (2, 2)")
        .await;
    pair.catch_up(&["--table", "hot*", "--create"]).await;
    pair.provider
        .run(
            "do $$ begin
                for i in 1..60000 loop
                    update hot set n = n + 1, v = nullif(i % 3, 0) where id = 1 + i % 2;
                    if i % 10000 = 0 then delete from hot where id = 5; insert into hot values (5, i, 'again'); update hot set n = i + 1 where id = 5; end if;
                end loop;
                for i in 1..200 loop
                    update hot_unique set n = 3 where id = 1; update hot_unique set n = 1 where id = 2;
                    update hot_unique set n = 2 where id = 1; update hot_unique set n = 4 where id = 2;
                    update hot_unique set n = 1 where id = 1; update hot_unique set n = 2 where id = 2;
                end loop;
             end $$",
        )
        .await;
    let began = std::time::Instant::now();
    pair.catch_up(&["--table", "hot*"]).await;
    println!(
        "60,000 updates of two rows in one transaction: {:.1} s",
        began.elapsed().as_secs_f64()
    );
    pair.assert_equal("hot").await;
    pair.assert_equal("hot_unique").await;
    pair.drop().await;
}

/// However many ticks a queue keeps, and however little the planner knows of them: nobody has analyzed the table that has them.
#[tokio::test]
async fn what_a_batch_costs_does_not_grow_with_the_ticks_that_are_kept() {
    const TICKS: i64 = 400;
    let pair = pair().await;
    pair.provider.run("create table t (id int primary key)").await;
    let arguments = ["--table", "t", "--create", "--batch-events", "1"];
    pair.catch_up(&arguments).await;
    pair.provider.run("select pgq.register_consumer('q', 'behind')").await;
    pair.provider
        .run(&format!(
            "do $$ begin
                 for i in 1..{TICKS} loop
                     insert into t values (i);
                     commit;
                     perform pgq.force_tick('q'), pgq.ticker('q');
                     commit;
                 end loop;
             end $$"
        ))
        .await;
    // A session has said what it did when it is gone; this one says it when asked.
    let seen = async || {
        pair.provider.run("select pg_stat_force_next_flush()").await;
        eventually("no replay is connected", async || {
            pair.provider
                .text(
                    "select count(*) from pg_stat_activity
                      where datname = current_database() and application_name like 'pgcascade %' and backend_type = 'client backend'",
                )
                .await
                == "0"
        })
        .await;
        let row = pair
            .provider
            .text(
                "select s.n_tup_upd / 2, s.idx_tup_fetch, t.idx_tup_fetch
                   from pg_stat_user_tables s, pg_stat_user_tables t
                  where s.relid = 'pgq.subscription'::regclass and t.relid = 'pgq.tick'::regclass",
            )
            .await;
        let numbers: Vec<i64> = row.split('|').map(|number| number.parse().unwrap()).collect();
        (numbers[0], numbers[1], numbers[2])
    };
    let before = seen().await;
    pair.catch_up(&arguments).await;
    let after = seen().await;
    let batches = after.0 - before.0;
    assert!(batches >= TICKS / 4, "{batches} batches");
    let read = [after.1 - before.1, after.2 - before.2].map(|rows| rows / batches);
    assert!(
        read.iter().all(|&rows| rows < 40),
        "{read:?} rows of subscriptions and of ticks for each batch"
    );
    pair.assert_equal("t").await;
    pair.drop().await;
}
