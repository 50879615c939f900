//! TRUNCATE where foreign keys of the subscriber refer to what is truncated.

use crate::cluster::pair;

/// Of tables that were truncated together, the events may be apart; and a table of the subscriber's own may refer to any of them.
#[tokio::test]
async fn of_tables_that_others_refer_to() {
    let pair = pair().await;
    let tables = "create table grand (id int primary key);
         create table parent (id int primary key, up int references grand);
         create table child (id int primary key, up int references parent);
         create table parts (id int primary key) partition by range (id);
         create table parts_1 partition of parts for values from (0) to (100);
         create table parts_2 partition of parts for values from (100) to (200);
         create table of_parts (id int primary key, up int references parts) partition by hash (id);
         create table of_parts_0 partition of of_parts for values with (modulus 1, remainder 0);
         create table itself (id int primary key, up int references itself);
         create table beside (n int primary key);";
    for end in [&pair.provider, &pair.subscriber] {
        end.run(tables).await;
    }
    let all = [
        "--table", "grand", "--table", "parent", "--table", "child", "--table", "parts", "--table", "of_parts",
        "--table", "itself", "--table", "beside",
    ];
    let fill = "insert into grand select generate_series(1, 100) on conflict do nothing;
         insert into parent select i, i from generate_series(1, 100) i on conflict do nothing;
         insert into child select i, i from generate_series(1, 100) i on conflict do nothing;
         insert into parts select generate_series(1, 199) on conflict do nothing;
         insert into of_parts select i, i from generate_series(1, 50) i on conflict do nothing;
         insert into itself select i, i from generate_series(1, 50) i on conflict do nothing";
    pair.provider.run(fill).await;
    pair.catch_up(&all).await;
    // Between the two events of one statement comes another table's.
    pair.provider
        .run(
            "create sequence n; create function apart() returns trigger language plpgsql as $$ begin
                 insert into public.beside values (nextval('public.n')); return null; end $$;
             create trigger z after truncate on grand execute function apart();
             create trigger z after truncate on parent execute function apart();
             create trigger z after truncate on parts execute function apart();
             create trigger z after truncate on parts_1 execute function apart()",
        )
        .await;
    for truncate in [
        "truncate grand, parent, child",
        "truncate grand cascade",
        "truncate parts, of_parts",
        "delete from of_parts; truncate parts_1, of_parts",
        "truncate itself",
    ] {
        pair.provider.run(truncate).await;
        pair.catch_up(&all).await;
        for table in ["grand", "parent", "child", "parts", "of_parts", "itself", "beside"] {
            pair.assert_equal(table).await;
        }
        pair.provider.run(fill).await;
        pair.catch_up(&all).await;
    }
    // In one statement, where the events are not apart; one that refers to one that is not truncated then, is not, either.
    pair.provider
        .run("drop trigger z on grand; drop trigger z on parent; drop trigger z on parts; drop trigger z on parts_1")
        .await;
    pair.subscriber
        .run(
            "create table done (n serial, what text);
             create function done() returns trigger language plpgsql as $$ begin
                 insert into public.done (what) values (tg_op || ' ' || tg_table_name); return null; end $$;
             do $$ declare t text; begin foreach t in array '{grand,parent,child,parts_2}'::text[] loop
                 execute format('create trigger done_t after truncate on %1$I execute function done()', t);
                 execute format('create trigger done_d after delete on %1$I execute function done()', t);
                 execute format('alter table %1$I enable always trigger done_t', t);
                 execute format('alter table %1$I enable always trigger done_d', t);
             end loop; end $$",
        )
        .await;
    let done = "select string_agg(what, ', ' order by what) from done";
    pair.provider.run("truncate grand, parent, child").await;
    pair.catch_up(&all).await;
    assert_eq!(
        pair.subscriber.text(done).await,
        "TRUNCATE child, TRUNCATE grand, TRUNCATE parent"
    );
    pair.provider.run(fill).await;
    pair.catch_up(&all).await;
    pair.subscriber
        .run("truncate done; create table own (id int references parent); insert into own values (7)")
        .await;
    pair.provider.run("truncate grand, parent, child").await;
    pair.catch_up(&all).await;
    assert_eq!(
        pair.subscriber.text(done).await,
        "DELETE grand, DELETE parent, TRUNCATE child"
    );
    assert_eq!(pair.subscriber.text("select count(*) from own").await, "1");
    for table in ["grand", "parent", "child"] {
        pair.assert_equal(table).await;
    }
    pair.drop().await;
}
