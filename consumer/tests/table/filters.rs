//! `--only`, `--except` and `--where`: in the copy, and in the stream.

use crate::cluster::{eventually, pair};
use crate::{done, refused, refused_to, table_of};

#[tokio::test]
async fn parts_of_tables() {
    let pair = pair().await;
    let p = &pair.provider;
    p.run(
        r#"create table t (id int primary key, region text, "Odd,Col" text, secret text, extra int);
           insert into t select i, case i % 3 when 0 then 'eu' when 1 then 'us' end, 'o', 's', i from generate_series(1, 90) i;
           create unique index t_secret on t (id, lower(secret));
           create table only_some (id int primary key, v text, w text); insert into only_some values (1, 'a', 'b');
           create table keyless (v text)"#,
    )
    .await;
    for (arguments, texts) in [
        (
            &["t", "--only", "id,nope"][..],
            "table public.t of the provider has no column \"nope\"",
        ),
        (
            &["t", "--only", "region"],
            "column \"id\" of table public.t cannot be left out",
        ),
        (
            &["t", "--except", "id"],
            "column \"id\" of table public.t cannot be left out",
        ),
        (&["t", "--where", "regio = 'eu'"], "column \"regio\" does not exist"),
        (
            &["t", "--where", "region = "],
            "the condition of --where cannot be used for table public.t",
        ),
        (
            &["t", "--except", "region", "--where", "region = 'eu'"],
            "column \"region\" does not exist",
        ),
        (
            &["keyless", "--where", "v = 'x'"],
            "table public.keyless has no primary key, which --where needs",
        ),
    ] {
        refused(&pair, &[&["add"], arguments, &["--create"]].concat(), &[texts]);
    }
    refused(&pair, &["remove", "t"], &["the subscriber has no consumer \"c\""]);
    let filter = [
        "--except",
        "secret,\"Odd,Col\"",
        "--where",
        "region = 'eu' -- with a remark",
    ];
    done(&pair, &[&["add", "t", "--create"], &filter[..]].concat());
    done(&pair, &["add", "only_some", "--create", "--only", "ID,v"]);
    assert_eq!(
        done(&pair, &["list"]),
        "public.only_some  in-copy      only id, v\n\
         public.t          in-copy      except secret, Odd,Col  where region = 'eu' -- with a remark\n"
    );
    // What comes before the copy, and a table that has got its filter's triggers only.
    p.run("insert into t values (91, 'eu', 'o', 's', 1); delete from t where id = 3")
        .await;
    let running = pair.replay().spawn();
    let ours = "select string_agg(t::text, ' ' order by id) from t";
    let theirs = "select string_agg((id, region, extra)::text, ' ' order by id) from t where region = 'eu'";
    let equal = async || {
        eventually("the rows are those of the filter", async || {
            pair.tick().await;
            pair.subscriber.try_text(ours).await.ok() == Some(p.text(theirs).await)
        })
        .await;
    };
    equal().await;
    assert_eq!(
        pair.subscriber.text("select string_agg(attname, ',' order by attnum) from pg_attribute where attrelid in ('t'::regclass, 'only_some'::regclass) and attnum > 0 group by attrelid order by 1").await,
        "id,region,extra\nid,v"
    );
    // Into the filter and out of it, by all ways; a NULL is no error for whoever writes.
    for seed in 1..=6 {
        p.run(&format!(
            "do $$
             declare i int; pick int; regions text[] := '{{eu,us,eu,null}}';
             begin
               perform setseed(0.{seed});
               for i in 1..120 loop
                 pick := 1 + floor(random() * 100)::int;
                 case floor(random() * 6)::int
                   when 0 then insert into t values (pick, regions[1 + floor(random() * 4)::int], 'o', 's', i) on conflict do nothing;
                   when 1 then delete from t where id = pick;
                   when 2 then update t set secret = 'other' || i where id = pick;
                   when 3 then update t set id = 101 - id, region = regions[1 + floor(random() * 4)::int]
                                where id = pick and not exists (select from t x where x.id = 101 - pick);
                   else update t set region = regions[1 + floor(random() * 4)::int], extra = i where id = pick;
                 end case;
                 if i % 40 = 0 then commit; end if;
               end loop;
             end $$"
        ))
        .await;
    }
    p.run("insert into only_some values (2, 'c', 'd'); update only_some set w = 'unseen'; alter table only_some add z int default 5; update only_some set v = v || z")
        .await;
    equal().await;
    assert!(
        pair.subscriber.text("select count(*) > 5 from t").await == "t",
        "there was something to compare"
    );
    eventually("the columns are those of the filter", async || {
        pair.subscriber.text("select * from only_some order by id").await == "1|a5\n2|c5"
    })
    .await;
    // An update of what is left out made no event.
    assert_eq!(
        p.text("select count(*) from pgq.event_template where ev_data like '%unseen%' or ev_data like '%secret%'")
            .await,
        "0"
    );
    running.stop().await;

    // Copied in chunks, with changes that cross the border between the chunks' snapshots and their end.
    p.run("insert into t select i, case i % 2 when 0 then 'eu' end, repeat('o', 400), 's', i from generate_series(1000, 2500) i").await;
    pair.catch_up(&[]).await;
    done(&pair, &["resync", "t"]);
    let chunks = ["--copy-chunk-bytes", "65536", "--jobs", "1"];
    let killed = pair
        .replay()
        .args(&chunks)
        .failpoints("after_chunk_commit=kill:3")
        .output()
        .await;
    assert_eq!(killed.code(), None, "{}", killed.stderr);
    p.run("update t set region = case when region = 'eu' then 'us' else 'eu' end where id % 7 = 0; delete from t where id % 11 = 0")
        .await;
    pair.catch_up(&chunks).await;
    assert_eq!(pair.subscriber.text(ours).await, p.text(theirs).await);
    pair.catch_up(&["--table", "t"]).await;

    // The triggers are the queue's. (The subscriber's tables are the same: another name for each.)
    let other = |arguments: &'static [&'static str], text: &'static str| {
        refused_to(
            &pair,
            "d",
            &[&["add", "--create", "--rename", "d.*"], arguments].concat(),
            &[text],
        );
    };
    other(
        &["t"],
        "trigger \"pgcascade_capture_q\" captures table public.t of the provider into the queue with other arguments \
         (ignore=\"Odd,Col\",secret, when=((region = 'eu' -- with a remark\n) is true)) than wanted (none)",
    );
    other(
        &["t", "--except", "secret", "--where", "region = 'eu' -- with a remark"],
        "with other arguments",
    );
    other(
        &["only_some", "--only", "id,w"],
        "drop trigger \"pgcascade_capture_q\" on \"public\".\"only_some\"",
    );
    // Less than what the trigger captures is possible.
    let said = table_of(
        &pair,
        "d",
        &["add", "only_some", "--create", "--rename", "d.*", "--only", "id"],
    );
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    pair.drop().await;
}

/// Updates that a filter turns into inserts and deletes are no conflicts, whatever rows they meet; what remains one is.
#[tokio::test]
async fn filters_and_conflicts() {
    for policy in ["skip", "overwrite"] {
        let pair = pair().await;
        pair.provider
            .run(
                "create table t (id int primary key, region text, v text);
                 create table other (id int primary key, n int);
                 insert into t select i, case i % 2 when 0 then 'eu' else 'us' end, 'v' || i
                   from generate_series(1, 40) i;
                 insert into other values (1, 0)",
            )
            .await;
        done(&pair, &["add", "t", "--create", "--where", "region = 'eu'"]);
        done(&pair, &["add", "other", "--create"]);
        pair.catch_up(&[]).await;
        let (p, s) = (&pair.provider, &pair.subscriber);
        // The conflict of another table has all of it applied row by row.
        s.run("delete from other").await;
        p.run(
            "begin; update other set n = 1; update t set region = 'eu' where id in (1, 3);
             update t set v = 'x' where id in (5, 8); update t set region = 'us' where id = 10;
             delete from t where id in (7, 12); insert into t values (50, 'eu', 'new');
             update t set region = 'us' where id = 1; update t set region = 'eu' where id in (1, 9); commit",
        )
        .await;
        let arguments = ["--on-conflict", policy];
        let recorded = "select string_agg(concat_ws(' ', provider_table, kind, outcome, row_key), ', ' order by ev_id)
                          from pgcascade_replay.conflict";
        pair.catch_up(&arguments).await;
        let outcome = if policy == "skip" { "skipped" } else { "inserted" };
        assert_eq!(
            s.text(recorded).await,
            format!("other update_missing {outcome} (id)=(1)")
        );
        let theirs = "select string_agg(t::text, ' ' order by id) from t where region = 'eu'";
        let ours = "select string_agg(t::text, ' ' order by id) from t";
        assert_eq!(s.text(ours).await, p.text(theirs).await);

        // A row that is there already, one that is gone, and a value that is taken when a row comes into the filter.
        s.run("truncate pgcascade_replay.conflict; create unique index on t (v)")
            .await;
        s.run(
            "insert into t values (60, 'eu', 'mine'); delete from t where id = 14;
             insert into t values (-1, 'eu', 'v11')",
        )
        .await;
        p.run("insert into t values (60, 'eu', 'theirs'); delete from t where id = 14")
            .await;
        pair.catch_up(&arguments).await;
        p.run("update t set region = 'eu' where id = 11").await;
        let output = pair
            .replay()
            .args(&["--on-conflict", policy, "--until-caught-up"])
            .output()
            .await;
        let exists = if policy == "skip" { "skipped" } else { "updated" };
        let mut expected = format!("t insert_exists {exists} (id)=(60), t delete_missing skipped (id)=(14)");
        if policy == "skip" {
            assert_eq!(output.code(), Some(0), "{}", output.stderr);
            expected.push_str(", t update_exists skipped (id)=(11)");
        } else {
            assert_eq!(output.code(), Some(1), "{}", output.stderr);
            assert!(
                output.stderr.contains("something else is in the way"),
                "{}",
                output.stderr
            );
        }
        assert_eq!(s.text(recorded).await, expected);
        pair.drop().await;
    }
}

#[tokio::test]
async fn sequences_of_the_part_that_is_replayed() {
    let pair = pair().await;
    let table = "(id serial primary key, n int generated by default as identity, v text)";
    pair.provider.run(&format!("create table t {table}")).await;
    pair.subscriber
        .run(&format!("create schema other; create table other.u {table}"))
        .await;
    done(
        &pair,
        &["add", "t", "--except", "n", "--where", "v = 'x'", "--rename", "other.u"],
    );
    // What is filtered out was given out all the same.
    pair.provider.run("insert into t (v) values ('x'), ('y'), ('y')").await;
    pair.catch_up(&[]).await;
    assert_eq!(
        pair.subscriber
            .text("select (select last_value from other.u_id_seq), (select last_value from other.u_n_seq), id, n from other.u")
            .await,
        "1003|1|1|1",
        "that of the column that is left out is the subscriber's own"
    );
    pair.drop().await;
}
