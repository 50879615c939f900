//! Foreign keys of tables that `--create` made: made when both tables are complete, whatever comes first and whatever is killed, and
//! without anybody waiting for long.

use crate::cluster::{Db, Output, Pair, Replay, eventually, pair};

/// Each is as the provider has it, with the tables' names on the subscriber.
const KEYS: &str =
    "select string_agg(concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid)), e'\\n' order by conrelid::regclass::text, conname)
       from pg_constraint where contype = 'f' and conparentid = 0 and connamespace::regnamespace::text !~ '^pg'";

const TO_MAKE: &str =
    "select string_agg(concat_ws(' ', name, made), ',' order by name collate \"C\") from pgcascade_replay.foreign_key";

async fn keys(db: &Db) -> String {
    db.text(KEYS).await
}

async fn until(pair: &Pair, what: &str, wanted: &str) {
    eventually(what, async || {
        pair.tick().await;
        keys(&pair.subscriber).await == wanted
    })
    .await;
}

/// Nothing is left to make. Tables are complete at a tick from after their copies.
async fn all_made(pair: &Pair) {
    eventually("nothing is left to be made", async || {
        pair.tick().await;
        pair.subscriber.text(TO_MAKE).await == "<null>"
    })
    .await;
}

async fn table(pair: &Pair, arguments: &[&str]) -> Output {
    let output = Replay::command(&["table"])
        .args(arguments)
        .args(&["--provider", &pair.provider_cluster.conninfo(&pair.database)])
        .args(&["--subscriber", &pair.subscriber_cluster.conninfo(&pair.database)])
        .args(&["--queue", "q", "--consumer", "c"])
        .output()
        .await;
    assert_eq!(output.code(), Some(0), "{arguments:?}: {}", output.stderr);
    output
}

/// What `consumer check` says of them.
fn checked(pair: &Pair) -> String {
    let out = Replay::command(&["check"])
        .args(&["--provider", &pair.provider_cluster.conninfo(&pair.database)])
        .args(&["--subscriber", &pair.subscriber_cluster.conninfo(&pair.database)])
        .args(&["--queue", "q", "--consumer", "c"])
        .stdout();
    // Each with its remedy, on the line below.
    let lines: Vec<&str> = out.lines().collect();
    let found = lines.windows(2).filter(|two| two[0].contains("foreign-key-missing"));
    found.map(|two| two.join(" ")).collect::<Vec<_>>().join("\n")
}

/// One of each kind.
const TABLES: &str = r#"
    create table parent (id int primary key, code text not null, x int not null, "Odd ""y" text not null, unique (x, "Odd ""y"));
    create unique index parent_code on parent (code);
    create table child (id int primary key, p int references parent on delete cascade on update restrict deferrable initially deferred,
      code text, x int, "Odd ""y" text, up int,
      constraint "by ""index" foreign key (code) references parent (code) on delete set default,
      constraint pair foreign key (x, "Odd ""y") references parent (x, "Odd ""y") match full on update cascade on delete set null (x, "Odd ""y"),
      constraint self foreign key (up) references child deferrable);
    create table parted (id int primary key, v text) partition by range (id);
    create table parted_low partition of parted for values from (0) to (100);
    create table parted_high partition of parted for values from (100) to (200);
    create table to_parted (id int primary key, p int references parted);
    create table from_parted (id int, p int, q int, constraint f_parent foreign key (p) references parent on delete cascade,
      constraint f_parted foreign key (q) references parted, primary key (id, p)) partition by range (id);
    create table from_low partition of from_parted for values from (0) to (100);
    create table from_high partition of from_parted for values from (100) to (200) partition by list (p);
    create table from_higher partition of from_high default;
    alter table from_low add constraint only_here foreign key (id) references parent;
    create table bad (id int primary key, p int);
    insert into parent select i, 'c' || i, i, 'y' || i from generate_series(1, 20) i;
    insert into child select i, i, 'c' || i, i, 'y' || i, i from generate_series(1, 20) i;
    insert into parted select i, 'v' from generate_series(1, 199) i; insert into to_parted select i, i from generate_series(1, 199) i;
    insert into from_parted values (1, 1, 150), (150, 2, 1); insert into bad values (1, 1), (2, 77);
    alter table bad add constraint bad_not_valid foreign key (p) references parent not valid"#;

#[tokio::test]
async fn made_when_both_tables_are_complete() {
    let pair = pair().await;
    let (p, s) = (&pair.provider, &pair.subscriber);
    p.run(TABLES).await;
    let there = keys(p).await;
    assert_eq!(there.lines().count(), 9, "{there}");
    // Children before parents, in several steps.
    let first = table(&pair, &["add", "child", "from_parted", "bad", "--create"]).await;
    let left_out = "is not made on the subscriber, as it refers to table public.parent, which is not replayed; it is made when that one is \
                    added, too: consumer table add 'public.parent'";
    for name in [
        "foreign key \"child_p_fkey\" of table public.child",
        "foreign key \"f_parent\" of table public.from_parted",
    ] {
        assert!(first.stderr.contains(&format!("{name} {left_out}")), "{}", first.stderr);
    }
    assert_eq!(first.stderr.matches("is not made").count(), 7, "{}", first.stderr);
    let running = pair.replay().spawn();
    let only = |names: &[&str]| {
        let lines = there
            .lines()
            .filter(|line| names.iter().any(|name| line.contains(&format!(" {name} "))));
        lines.collect::<Vec<_>>().join("\n")
    };
    until(&pair, "the key to the table itself", &only(&["self"])).await;
    assert_eq!(checked(&pair).lines().count(), 7, "{}", checked(&pair));
    table(&pair, &["add", "parent", "--create"]).await;
    let most = [
        "self",
        "child_p_fkey",
        "by \"index",
        "pair",
        "f_parent",
        "only_here",
        "bad_not_valid",
    ];
    until(&pair, "the keys to parent", &only(&most)).await;
    table(&pair, &["add", "parted", "to_parted", "--create"]).await;
    until(&pair, "all keys", &there).await;
    all_made(&pair).await;
    assert_eq!(checked(&pair), "");
    // Those below are the one above.
    let below = "select count(*) from pg_constraint where contype = 'f' and conparentid <> 0 and conname in ('f_parent', 'f_parted')
                    and conrelid in ('from_low'::regclass, 'from_high'::regclass, 'from_higher'::regclass) and convalidated";
    assert_eq!(
        (s.text(below).await, p.text(below).await),
        ("6".to_owned(), "6".to_owned())
    );

    // They hold for whoever writes here, and replay goes on as if they were not there.
    let refused = s
        .try_text("insert into child (id, p) values (100, 100)")
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("db error"), "{refused}");
    p.run("begin; set constraints all deferred; insert into child (id, p) values (100, 100); insert into parent values (100, 'n', 100, 'n'); commit;
           delete from parent where id = 5; truncate parted, to_parted, from_parted; update parent set x = 300 where id = 7")
        .await;
    eventually("the changes", async || {
        s.text("select count(*) from child where id = 5 or x = 300").await == "1"
            && s.text("select count(*) from parted").await == "0"
    })
    .await;
    for name in ["parent", "child", "parted", "to_parted", "from_parted", "bad"] {
        pair.assert_equal(name).await;
    }
    let told = |stderr: &str| stderr.matches("is on the subscriber").count();
    eventually("all are told of", async || told(&running.stderr()) >= 9).await;
    let output = running.stop().await;
    assert_eq!(told(&output.stderr), 9, "{}", output.stderr);
    // One that is dropped stays away.
    s.run("alter table child drop constraint self").await;
    table(&pair, &["resync", "child"]).await;
    let running = pair.replay().spawn();
    eventually("the copy", async || {
        pair.tick().await;
        s.text("select state from pgcascade_replay.table_state where provider_table = 'child'")
            .await
            == "ok"
    })
    .await;
    running.stop().await;
    assert!(!keys(s).await.contains(" self "));
    pair.drop().await;
}

/// Whatever is there already is not made again, and what was begun is ended.
#[tokio::test]
async fn killed_in_between_and_there_already() {
    let pair = pair().await;
    let (p, s) = (&pair.provider, &pair.subscriber);
    let tables = "create table parent (id int primary key); create table child (id int primary key, p int, q int);
                  create table parted (id int primary key, p int) partition by range (id);
                  create table parted_1 partition of parted for values from (0) to (10);
                  create table parted_2 partition of parted for values from (10) to (20);
                  create schema app";
    p.run(tables).await;
    p.run("alter table child add constraint a foreign key (p) references parent, add constraint b foreign key (q) references parent;
           alter table parted add constraint c foreign key (p) references parent; insert into parent values (1);
           insert into child values (1, 1, 1); insert into parted values (1, 1), (11, 1)")
        .await;
    s.run("create schema app; create table app.parent (id int primary key); create table app.child (id int primary key, p int, q int);
           alter table app.child add constraint other foreign key (p) references app.parent on delete cascade")
        .await;
    table(
        &pair,
        &["add", "parent", "child", "parted", "--create", "--rename", "app.*"],
    )
    .await;
    p.run("select pgq.set_queue_config('q', 'ticker_idle_period', '1')")
        .await;
    // b of child, then two partitions; none is made twice, and each run ends one more.
    for (round, left) in [(1, "b t,c f"), (2, "c t"), (3, "c t")] {
        let ended = pair.replay().failpoints("after_foreign_key=kill").output().await;
        assert_eq!(ended.code(), None, "{round}: {}", ended.stderr);
        let now = s.text(TO_MAKE).await;
        assert!(now.ends_with(left), "{round}: {now}");
    }
    let running = pair.replay().spawn();
    all_made(&pair).await;
    running.stop().await;
    let found = "select string_agg(concat_ws(' ', conrelid::regclass, conname, convalidated), ',' order by conrelid::regclass::text, conname)
                   from pg_constraint where contype = 'f' and connamespace = 'app'::regnamespace";
    assert_eq!(
        s.text(found).await,
        "app.child b t,app.child other t,app.parted c t,app.parted_1 c t,app.parted_2 c t"
    );
    let below = "select count(*) from pg_constraint where conname = 'c' and conparentid <> 0";
    assert_eq!(s.text(below).await, "2");
    pair.drop().await;
}

/// A row without its parent is told of, and nothing else suffers.
#[tokio::test]
async fn rows_without_their_parents() {
    let pair = pair().await;
    let (p, s) = (&pair.provider, &pair.subscriber);
    p.run(
        "create table parent (id int primary key); create table child (id int primary key, p int references parent);
           insert into parent values (1); insert into child values (1, 1)",
    )
    .await;
    s.run("create table parent (id int primary key); create table child (id int primary key, p int); insert into child values (1, 1)")
        .await;
    // The subscriber does not have what it is said to have.
    table(&pair, &["add", "parent", "child", "--create", "--no-copy"]).await;
    let running = pair.replay().spawn();
    let sentence = "could not validate foreign key \"child_p_fkey\" of table public.child on the subscriber: insert or update on table \"child\" \
                    violates foreign key constraint \"child_p_fkey\"";
    let remedy = "alter table \"public\".\"child\" validate constraint \"child_p_fkey\" on the subscriber";
    eventually("it is told of", async || running.stderr().contains(sentence)).await;
    let said = running.stderr();
    assert!(
        said.contains("Key (p)=(1) is not present in table \"parent\"") && said.contains(remedy),
        "{said}"
    );
    p.run("insert into parent values (2); insert into child values (2, 2)")
        .await;
    eventually("replay goes on", async || {
        s.text("select count(*) from child").await == "2"
    })
    .await;
    assert!(
        checked(&pair).contains(sentence) && checked(&pair).contains(remedy),
        "{}",
        checked(&pair)
    );
    // What the remedy says; nothing is left to be told then, nor to be made.
    s.run("insert into parent values (1); alter table child validate constraint child_p_fkey")
        .await;
    assert_eq!(checked(&pair), "");
    assert_eq!(running.stop().await.stderr.matches(sentence).count(), 1);
    let running = pair.replay().spawn();
    all_made(&pair).await;
    running.stop().await;
    pair.drop().await;
}

/// What was refused is made when the reason is gone, by the replay that runs; and each reason is told once.
#[tokio::test]
async fn refused_and_put_right_meanwhile() {
    let pair = pair().await;
    let (p, s) = (&pair.provider, &pair.subscriber);
    p.run(
        "select pgq.create_queue('q');
         create table parent (id int primary key); create table child (id int primary key, p int references parent);
         create table other (id int primary key, p int references child); insert into other values (1, null)",
    )
    .await;
    let keeper = format!("keeper_{}", pair.database);
    s.run(&format!(
        "create table parent (id int primary key);
         create role {keeper} login password 'secret'; grant create on schema public to {keeper};
         grant create on database {} to {keeper}; grant set on parameter session_replication_role to {keeper};
         grant select, insert, update, delete, truncate on parent to {keeper}",
        pair.database
    ))
    .await;
    let ends = [
        pair.provider_cluster.conninfo(&pair.database),
        pair.subscriber_cluster.conninfo_as(&pair.database, &keeper, "secret"),
    ];
    let running = Replay::new(&ends[0], &ends[1])
        .args(&["--table", "parent", "--table", "child", "--table", "other", "--create"])
        .spawn();
    let denied = "could not make foreign key \"child_p_fkey\" of table public.child on the subscriber: permission denied for table parent";
    until(
        &pair,
        "the other key",
        &keys(p).await.lines().skip(1).collect::<Vec<_>>().join("\n"),
    )
    .await;
    running.until_it_says(denied).await;
    eventually("it is in consumer check", async || checked(&pair).contains(denied)).await;
    // Tried again, it is refused in another way.
    s.run("set session_replication_role = replica; insert into child values (1, 77)")
        .await;
    s.run(&format!("grant references on parent to {keeper}")).await;
    let violated = "Key (p)=(77) is not present in table \"parent\"";
    running.until_it_says(violated).await;
    s.run("delete from child").await;
    all_made(&pair).await;
    assert_eq!(keys(s).await, keys(p).await);
    assert_eq!(checked(&pair), "");
    let said = running.stop().await.stderr;
    assert_eq!(
        (said.matches(denied).count(), said.matches(violated).count()),
        (1, 1),
        "{said}"
    );
    s.run(&format!(
        "drop schema pgcascade_replay cascade; drop owned by {keeper} cascade; drop role {keeper}"
    ))
    .await;
    pair.drop().await;
}

/// Tables that are added without foreign keys have none, nor do their partitions that come later; nothing waits to be made.
#[tokio::test]
async fn tables_that_are_added_without_foreign_keys() {
    let pair = pair().await;
    let (p, s) = (&pair.provider, &pair.subscriber);
    p.run(
        "create table parent (id int primary key); create table child (id int primary key, p int references parent);
         create table parted (id int primary key, p int references parent) partition by range (id);
         create table parted_low partition of parted for values from (0) to (100);
         create table unreplayed (id int primary key); create table other (id int primary key, p int references unreplayed);
         create table late (id int primary key, p int references parent)",
    )
    .await;
    let added = table(
        &pair,
        &["add", "parent", "other", "parted", "--create", "--no-foreign-keys"],
    )
    .await;
    assert!(!added.stderr.contains("foreign key"), "{}", added.stderr);
    let file = pair.subscriber_cluster.file(&format!("{}.toml", pair.database));
    std::fs::write(&file, "no-foreign-keys = true\n").unwrap();
    let running = pair
        .replay()
        .args(&["--config", &file, "--table", "child", "--create"])
        .spawn();
    running.until_it_says("streaming").await;
    p.run("create table parted_high partition of parted for values from (100) to (200); insert into parted values (1, null), (150, null)")
        .await;
    eventually("the partition is there", async || {
        pair.tick().await;
        s.text("select count(*) from parted").await == "2"
    })
    .await;
    // The others get theirs.
    table(&pair, &["add", "late", "--create"]).await;
    let late = "late late_p_fkey FOREIGN KEY (p) REFERENCES parent(id)";
    until(&pair, "the key of another table", late).await;
    all_made(&pair).await;
    assert_eq!(keys(s).await, late);
    assert_eq!(checked(&pair), "");
    running.stop().await;
    pair.drop().await;
}

/// A key may refer to a partition, at any level, which has the same name here.
#[tokio::test]
async fn keys_to_partitions() {
    let pair = pair().await;
    let (p, s) = (&pair.provider, &pair.subscriber);
    p.run(
        "create schema app;
         create table app.parted (id int primary key, v text) partition by range (id);
         create table app.low partition of app.parted for values from (0) to (100);
         create table app.high partition of app.parted for values from (100) to (300) partition by range (id);
         create table app.higher partition of app.high for values from (200) to (300);
         create table plain (id int primary key) partition by range (id);
         create table plain_part partition of plain for values from (0) to (100);
         create table child (id int primary key, a int constraint to_low references app.low on delete cascade, b int constraint to_high references app.high,
                             c int constraint to_higher references app.higher, d int constraint to_plain references plain_part);
         insert into app.parted values (1, 'low'), (200, 'higher'); insert into child values (1, 1, 200, 200, null)",
    )
    .await;
    // What is a plain table here has no partitions to refer to.
    s.run("create table plain (id int primary key)").await;
    let added = table(&pair, &["add", "plain", "child", "--create"]).await;
    assert_eq!(
        added.stderr.matches("which is not replayed").count(),
        3,
        "{}",
        added.stderr
    );
    let sentence = "foreign key \"to_plain\" of table public.child is not made on the subscriber, as it refers to partition \
                    public.plain_part of table public.plain, which table public.plain on the subscriber does not have";
    let by_hand = "alter table \"public\".\"child\" add constraint \"to_plain\" FOREIGN KEY (d) references \"public\".\"plain\"(id)";
    let told = format!("{sentence}; let it refer to the whole table: {by_hand} on the subscriber");
    assert!(added.stderr.contains(&told), "{}", added.stderr);
    let running = pair.replay().spawn();
    let added = table(&pair, &["add", "app.parted", "--create", "--rename", "here.*"]).await;
    assert!(!added.stderr.contains("is not replayed"), "{}", added.stderr);
    let there = "child to_high FOREIGN KEY (b) REFERENCES here.high(id)\nchild to_higher FOREIGN KEY (c) REFERENCES here.higher(id)\n\
                 child to_low FOREIGN KEY (a) REFERENCES here.low(id) ON DELETE CASCADE";
    until(&pair, "the keys to partitions", there).await;
    eventually("one is left", async || s.text(TO_MAKE).await == "to_plain f").await;
    assert!(checked(&pair).contains(sentence), "{}", checked(&pair));
    assert!(checked(&pair).contains(by_hand), "{}", checked(&pair));
    assert_eq!(checked(&pair).lines().count(), 1);
    s.run(by_hand).await;
    assert_eq!(checked(&pair), "");
    s.run("alter table child drop constraint to_plain").await;
    // Also when they are made together, and by another name.
    p.run("create table later (id int primary key, a int references app.low)")
        .await;
    table(&pair, &["add", "later", "--create"]).await;
    let both = format!("{there}\nlater later_a_fkey FOREIGN KEY (a) REFERENCES here.low(id)");
    until(&pair, "the key of another table", &both).await;
    running.stop().await;
    table(&pair, &["remove", "*.*"]).await;
    s.run("drop schema here cascade; drop table child, later").await;
    let together = table(&pair, &["add", "child", "app.parted", "--create"]).await;
    assert_eq!(
        together.stderr.matches("which is not replayed").count(),
        1,
        "{}",
        together.stderr
    );
    let running = pair.replay().spawn();
    until(&pair, "the keys", &there.replace("here.", "app.")).await;
    running.stop().await;
    pair.drop().await;
}

/// What is not replayed whole is not referred to.
#[tokio::test]
async fn parts_of_tables() {
    let pair = pair().await;
    let (p, s) = (&pair.provider, &pair.subscriber);
    p.run("create table parts (id int primary key); create table narrow (id int primary key, u int unique, v int);
           create table child (id int primary key, a int constraint to_some references parts, b int constraint to_narrow references narrow (u),
                               c int constraint to_whole references narrow, d int constraint from_left_out references narrow)")
        .await;
    table(&pair, &["add", "parts", "--create", "--where", "id > 5"]).await;
    table(&pair, &["add", "narrow", "--create", "--except", "u"]).await;
    let said = table(&pair, &["add", "child", "--create", "--except", "d"])
        .await
        .stderr;
    for (name, why) in [
        (
            "to_some",
            "it refers to table public.parts, whose rows are not all replayed (--where)",
        ),
        (
            "to_narrow",
            "it refers to column \"u\" of table public.narrow, which is left out",
        ),
        ("from_left_out", "column \"d\" is left out"),
    ] {
        let sentence = format!("foreign key \"{name}\" of table public.child is not made on the subscriber, as {why}");
        assert!(said.contains(&sentence), "{sentence}: {said}");
    }
    let running = pair.replay().spawn();
    until(
        &pair,
        "the key that can be made",
        "child to_whole FOREIGN KEY (c) REFERENCES narrow(id)",
    )
    .await;
    // It is forgotten after it is there.
    eventually("the others are left", async || {
        s.text(TO_MAKE).await == "to_narrow f,to_some f"
    })
    .await;
    running.stop().await;
    table(&pair, &["remove", "child"]).await;
    assert_eq!(s.text(TO_MAKE).await, "<null>");
    pair.drop().await;
}

/// Somebody writes to the table in a transaction that does not end: the key waits, and nobody else does.
#[tokio::test]
async fn nobody_waits_behind_a_key() {
    let pair = pair().await;
    let (p, s) = (&pair.provider, &pair.subscriber);
    p.run("create table parent (id int primary key); create table child (id int primary key, p int references parent)")
        .await;
    table(&pair, &["add", "parent", "--create"]).await;
    table(&pair, &["add", "child", "--create"]).await;
    let writer = pair.subscriber_cluster.connect(&pair.database).await;
    writer.run("begin; lock table parent in row exclusive mode").await;
    let running = pair.replay().spawn();
    eventually("it was tried", async || {
        pair.tick().await;
        running.stderr().contains("foreign keys wait for locks")
    })
    .await;
    s.run("set statement_timeout = '60s'").await;
    for id in 1..=5 {
        // Here and on the provider.
        s.run(&format!(
            "begin; insert into child values ({}, null); rollback",
            100 + id
        ))
        .await;
        p.run(&format!(
            "insert into parent values ({id}); insert into child values ({id}, {id})"
        ))
        .await;
        let arrived = format!("select count(*) from child where id = {id}");
        eventually("the change", async || s.text(&arrived).await == "1").await;
    }
    assert_eq!(keys(s).await, "<null>");
    writer.run("commit").await;
    all_made(&pair).await;
    assert_eq!(keys(s).await, keys(p).await);
    running.stop().await;

    // A run that is to end does not wait for it, nor leaves it undone where it can be had.
    p.run("create table late (id int primary key, p int references parent)")
        .await;
    table(&pair, &["add", "late", "--create", "--no-copy"]).await;
    writer.run("begin; lock table parent in row exclusive mode").await;
    let output = pair.catch_up(&[]).await;
    assert!(
        output.stderr.contains("the next start of replay goes on"),
        "{}",
        output.stderr
    );
    writer.run("commit").await;
    pair.catch_up(&[]).await;
    assert_eq!(keys(s).await, keys(p).await);
    pair.drop().await;
}
