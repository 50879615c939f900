//! Many changes at once: what a batch comes to is applied as sets, and the result is that of every change in turn.
//! (That values of all types survive it is in basics.rs, what is said of a row at fault in findings.rs.)

use crate::cluster::{Pair, eventually, pair};

/// How many entries of the key's index the sessions that have ended looked at on the subscriber.
async fn entries_read(pair: &Pair, table: &str) -> u64 {
    pair.until_sessions_are_gone().await;
    let read = format!("select idx_tup_read from pg_stat_user_indexes where relname = '{table}'");
    pair.subscriber.text(&read).await.parse().expect("a number")
}

/// Types whose cast from text does not do what their input function does.
#[tokio::test]
async fn casts_that_would_change_a_value() {
    let pair = pair().await;
    for end in [&pair.provider, &pair.subscriber] {
        end.run(
            "create type odd;
             create function odd_in(cstring) returns odd language internal immutable strict as 'textin';
             create function odd_out(odd) returns cstring language internal immutable strict as 'textout';
             create type odd (input = odd_in, output = odd_out, like = text);
             create function odd_from(text) returns odd language internal immutable strict as 'upper';
             create cast (text as odd) with function odd_from(text);
             create domain four as varchar(4);
             create domain nested as four;
             create table casts (id int primary key, o odd);
             create table cuts (id int primary key, f four, n nested, b1 bit, b5 bit(5), c1 char, c5 char(5), rc regclass, ch \"char\", na name)",
        )
        .await;
    }
    pair.provider
        .run("insert into casts select i from generate_series(1, 100) i; insert into cuts select i from generate_series(1, 100) i")
        .await;
    pair.catch_up(&["--table", "casts", "--table", "cuts"]).await;
    pair.provider
        .run(
            "update casts set o = 'mixed Case';
             update cuts set f = 'abcd', n = 'wxyz', b1 = B'1', b5 = B'10101', c1 = 'x', c5 = 'xyz', rc = '-', ch = '-', na = 'name'",
        )
        .await;
    pair.catch_up(&["--table", "casts", "--table", "cuts"]).await;
    for table in ["casts", "cuts"] {
        let rows = format!("select string_agg(t::text, ' ' order by id) from {table} t");
        assert_eq!(pair.provider.text(&rows).await, pair.subscriber.text(&rows).await);
    }
    // A value that does not fit must not be cut: replay stops and names the event.
    pair.subscriber.run("alter table cuts alter na type varchar(5)").await;
    pair.provider.run("update cuts set na = 'longer'").await;
    let output = pair
        .replay()
        .args(&["--table", "casts", "--table", "cuts", "--until-caught-up"])
        .output()
        .await;
    assert_eq!(output.code(), Some(1), "{}", output.stderr);
    assert!(
        output.stderr.contains("updates row (id)=(1) of table public.cuts"),
        "{}",
        output.stderr
    );
    pair.drop().await;
}

/// Keys of several columns, of types with several texts for one value, in another order than the columns; rows that come,
/// go and come again; columns that the subscriber has alone or generates; rows that move between
/// the subscriber's partitions.
#[tokio::test]
async fn the_net_effect_is_that_of_every_change() {
    let pair = pair().await;
    let keys = "create table keys (n numeric, v text, t text collate \"C\", primary key (t, n))";
    let parts = "create table parts (id int, part int, v int, primary key (id, part))";
    pair.provider.run(&format!("{keys}; {parts}")).await;
    pair.subscriber
        .run(&format!(
            "{keys}; {parts} partition by list (part);
             create table part1 partition of parts for values in (1); create table part2 partition of parts default"
        ))
        .await;
    pair.subscriber
        .run("alter table keys add here int default 7, add length int generated always as (length(v)) stored")
        .await;
    pair.provider
        .run(
            "insert into keys select g * 1.0, 'first', 'k' || g from generate_series(1, 500) g;
              insert into parts select g, 1, 0 from generate_series(1, 500) g",
        )
        .await;
    let tables = ["--table", "keys", "--table", "parts"];
    pair.catch_up(&tables).await;
    pair.provider.run("select setseed(0.5)").await;
    for round in 0..6 {
        let step = 1000 << round; // no two sums of these are equal
        pair.provider
            .run(&format!(
                "begin;
                 update keys set v = 'u{round}' where random() < 0.5;
                 delete from keys where random() < 0.3;
                 insert into keys select g * 1.0, 'i{round}', 'k' || g from generate_series(1, 500) g on conflict do nothing;
                 update keys set n = n * 1.00 where random() < 0.2;
                 update keys set n = n + {step} where random() < 0.1;
                 delete from keys where v = 'i{round}' and random() < 0.5;
                 update keys set v = v || '!' where random() < 0.5;
                 update parts set v = v + 1 where random() < 0.5;
                 update parts set part = part + {step} where random() < 0.2;
                 delete from parts where random() < 0.1;
                 insert into parts select g, 1, {round} from generate_series(1, 500) g on conflict do nothing;
                 commit"
            ))
            .await;
        if round == 3 {
            pair.provider.run("truncate keys; insert into keys select g, 'after', 'k' || g from generate_series(1, 300) g; update keys set v = 'x' where n > 100").await;
        }
        pair.catch_up(&tables).await;
        let rows = "select count(*) || md5(string_agg(n || ',' || v || ',' || t, ' ' order by t, n)) from keys";
        assert_eq!(
            pair.provider.text(rows).await,
            pair.subscriber.text(rows).await,
            "round {round}"
        );
        pair.assert_equal("parts").await;
    }
    assert_eq!(
        pair.subscriber
            .text("select count(*) from keys where here is distinct from 7 or length <> length(v)")
            .await,
        "0"
    );
    pair.drop().await;
}

/// Tables where somebody looks, or whose rows stand in each other's way: in their order, one by one.
#[tokio::test]
async fn triggers_on_the_subscriber_see_every_change_in_its_order() {
    let pair = pair().await;
    pair.provider
        .run(
            "create table watched (id int primary key, v int); create table other (id int primary key, v int);
              insert into watched values (1, 0); insert into other values (1, 0)",
        )
        .await;
    let tables = ["--table", "watched", "--table", "other"];
    pair.catch_up(&["--table", "watched", "--table", "other", "--create"])
        .await;
    pair.subscriber
        .run(
            "create table seen (n serial, watched text, other int);
              create function see() returns trigger language plpgsql as $$ begin
                  insert into public.seen (watched, other) values (tg_op || new.v, (select v from public.other)); return null; end $$;
              create trigger see after insert or update on watched for each row execute function see();
              alter table watched enable always trigger see",
        )
        .await;
    pair.provider
        .run("do $$ begin for i in 1..40 loop update other set v = i; update watched set v = i; update other set v = i + 100; end loop; end $$")
        .await;
    pair.catch_up(&tables).await;
    assert_eq!(
        pair.subscriber
            .text("select string_agg(watched || ':' || other, ' ' order by n) from seen")
            .await,
        (1..=40).map(|i| format!("UPDATE{i}:{i}")).collect::<Vec<_>>().join(" ")
    );
    pair.assert_equal("other").await;
    pair.drop().await;
}

/// Also of inserts, of which many together or large ones would go by COPY.
#[tokio::test]
async fn triggers_on_the_subscriber_see_every_insert_by_itself() {
    let pair = pair().await;
    let tables = ["--table", "always", "--table", "replica"];
    for table in ["always", "replica"] {
        pair.provider
            .run(&format!("create table {table} (id int primary key, v text)"))
            .await;
    }
    pair.catch_up(&["--table", "always", "--table", "replica", "--create"])
        .await;
    pair.subscriber
        .run("create table seen (n serial, name text, level text, rows bigint)")
        .await;
    for table in ["always", "replica"] {
        pair.subscriber
            .run(&format!(
                "create function {table}() returns trigger language plpgsql as $$ begin
                     insert into public.seen (name, level, rows) select tg_table_name, tg_level, count(*) from public.{table}; return null; end $$;
                 create trigger row after insert on {table} for each row execute function {table}();
                 create trigger statement after insert on {table} execute function {table}();
                 alter table {table} enable {table} trigger row; alter table {table} enable {table} trigger statement"
            ))
            .await;
        for insert in [
            "select i, 'small' from generate_series(1, 40) i",
            "select i, repeat('l', 300000) from generate_series(41, 43) i",
        ] {
            pair.provider.run(&format!("insert into {table} {insert}")).await;
        }
    }
    pair.catch_up(&tables).await;
    for table in ["always", "replica"] {
        for level in ["ROW", "STATEMENT"] {
            assert_eq!(
                pair.subscriber
                    .text(&format!(
                        "select string_agg(rows::text, ' ' order by n) from seen where name = '{table}' and level = '{level}'"
                    ))
                    .await,
                (1..=43).map(|i| i.to_string()).collect::<Vec<_>>().join(" "),
                "{table} {level}"
            );
        }
        pair.assert_equal(table).await;
    }
    // One that swallows the row.
    pair.subscriber
        .run(
            "create function never() returns trigger language plpgsql as 'begin return null; end';
             create trigger never before insert on replica for each row execute function never();
             alter table replica enable replica trigger never",
        )
        .await;
    pair.provider.run("insert into replica values (44, '')").await;
    let output = pair.replay().args(&tables).arg("--until-caught-up").output().await;
    assert_eq!(output.code(), Some(1), "{}", output.stderr);
    assert!(
        output
            .stderr
            .contains("inserts row (id)=(44) of table public.replica, and the subscriber did not store it"),
        "{}",
        output.stderr
    );
    pair.drop().await;
}

/// A plan that is kept from when the table was small has to do when it is large.
#[tokio::test]
async fn a_table_that_grows_is_not_read_from_end_to_end() {
    let pair = pair().await;
    let table = "create table grows (id int primary key, v int)";
    pair.provider
        .run(&format!("{table}; insert into grows values (1, 0)"))
        .await;
    pair.subscriber
        .run(&format!(
            "{table} with (autovacuum_enabled = off);
             set enable_indexscan = off; set enable_indexonlyscan = off; set enable_bitmapscan = off"
        ))
        .await;
    pair.catch_up(&["--table", "grows"]).await;
    pair.subscriber.run("analyze grows").await;
    let running = pair.replay().args(&["--table", "grows"]).spawn();
    running.until_it_says("streaming").await;
    for (change, sum) in [
        ("insert into grows select i, 0 from generate_series(2, 20) i", "20 0"),
        ("update grows set v = 1", "20 20"),
        (
            "insert into grows select i, 0 from generate_series(21, 50000) i",
            "50000 20",
        ),
        ("update grows set v = 2 where id <= 20", "50000 40"),
        ("delete from grows where id between 101 and 120", "49980 40"),
    ] {
        pair.provider.run(change).await;
        eventually(change, async || {
            pair.subscriber
                .text("select count(*) || ' ' || sum(v) from grows")
                .await
                == sum
        })
        .await;
    }
    running.stop().await;
    let read = entries_read(&pair, "grows").await;
    assert!(
        (60..10_000).contains(&read),
        "{read} entries of the key's index were read"
    );
    pair.drop().await;
}

/// As autovacuum does behind a batch that was rolled back and is applied again: the table is said to have no rows then.
#[tokio::test]
async fn a_table_that_was_vacuumed_before_its_rows_were_committed() {
    let pair = pair().await;
    let table = "create table filled (id int primary key, v int)";
    pair.provider.run(table).await;
    pair.subscriber
        .run(&format!("{table} with (autovacuum_enabled = off)"))
        .await;
    pair.catch_up(&["--table", "filled"]).await;
    pair.provider
        .run("insert into filled select i, 0 from generate_series(1, 50000) i")
        .await;
    let go_on = pair.subscriber_cluster.file(&format!("go-on-{}", pair.database));
    let running = pair
        .replay()
        .args(&["--table", "filled", "--until-caught-up"])
        .failpoints(&format!("after_chunk=pause:{go_on}"))
        .spawn();
    eventually("the rows are there, for their own transaction", async || {
        pair.subscriber.text("select pg_relation_size('filled') > 100000").await == "t"
    })
    .await;
    pair.subscriber.run("vacuum filled").await;
    std::fs::write(&go_on, "").expect("a file that can be written");
    assert_eq!(running.wait().await.code(), Some(0));
    let thought = "select reltuples = 0 and relpages > 0 from pg_class where relname = 'filled'";
    assert_eq!(pair.subscriber.text(thought).await, "t");

    let before = entries_read(&pair, "filled").await;
    pair.provider.run("update filled set v = 1 where id <= 20").await;
    pair.catch_up(&["--table", "filled"]).await;
    assert_eq!(pair.subscriber.text("select sum(v) from filled").await, "20");
    let after = entries_read(&pair, "filled").await;
    assert!(
        (20..10_000).contains(&(after - before)),
        "{before} and then {after} entries of the key's index were read"
    );
    pair.drop().await;
}

/// A key of any type that has an order.
#[tokio::test]
async fn rows_are_found_by_keys_of_all_kinds() {
    const KINDS: [(&str, &str); 20] = [
        ("int[]", "array[i, 2]"),
        ("int[]", "array[[i, 2], [3, 4]]"),
        ("ints", "array[i, 1]"),
        ("oidvector", "(i::text)::oidvector"),
        ("pairs", "row(i, 'x,\"y')::pairs"),
        ("pairs[]", "array[row(i, 'x')::pairs]"),
        ("words", "'w ' || i"),
        ("varchar(5)", "'v' || i"),
        ("char(6)", "'c' || i"),
        ("name", "'n' || i"),
        ("text collate \"C\"", "'t' || i"),
        ("bytea", "convert_to('\\' || i, 'UTF8')"),
        ("int4range", "int4range(i, i + 1)"),
        ("int4multirange", "int4multirange(int4range(i, i + 1))"),
        ("jsonb", "to_jsonb(i)"),
        ("numeric", "i * 1.50"),
        ("money", "i::numeric::money"),
        ("inet", "'10.0.0.0'::inet + i"),
        ("bit varying", "i::bit(9)::bit varying"),
        (
            "timestamptz",
            "'infinity'::timestamptz where i = 1 union all select '2000-01-01'::timestamptz + i * interval '1 s'",
        ),
    ];
    let pair = pair().await;
    let tables: String = (KINDS.iter().enumerate())
        .map(|(n, (kind, _))| format!("create table kind{n} (k {kind}, n int, v int, primary key (k, n)); "))
        .collect();
    for end in [&pair.provider, &pair.subscriber] {
        end.run(&format!(
            "create domain ints as int[]; create domain words as text check (value <> '');
             create type pairs as (i int, t text); {tables}"
        ))
        .await;
    }
    pair.catch_up(&["--table", "public.*"]).await;
    for (n, (_, value)) in KINDS.iter().enumerate() {
        let rows = format!("select x.k, 0, 0 from generate_series(1, 100) i, lateral (select {value}) x (k)");
        pair.provider
            .run(&format!("insert into kind{n} {rows} on conflict do nothing"))
            .await;
    }
    pair.catch_up(&["--table", "public.*"]).await;
    for n in 0..KINDS.len() {
        pair.provider
            .run(&format!(
                "update kind{n} set v = v + 1; delete from kind{n} where ctid in (select ctid from kind{n} limit 30)"
            ))
            .await;
    }
    let output = pair.catch_up(&["--table", "public.*"]).await;
    assert!(!output.stderr.contains("again"), "{}", output.stderr);
    for n in 0..KINDS.len() {
        pair.assert_equal(&format!("kind{n}")).await;
    }
    pair.drop().await;
}
