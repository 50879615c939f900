//! Rows that are captured while they are changed in all ways at once: statements of one row and of hundreds, upserts, CTEs, COPY,
//! cursors, cascades, triggers that write, deferred triggers, exceptions in the middle of a statement, savepoints, prepared
//! transactions; queues packed and not. Beside each capture trigger stand some in PL/pgSQL that write down the same, and both have
//! to agree on every transaction: an event is stored where its change is, with it, or not at all (pgext/src/insert/gathered.rs).

use bytes::Bytes;
use futures_util::SinkExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use crate::cluster::Db;
use crate::{SHARED, queue};

const TABLES: &str = "
    create table seen (tx int8 default txid_current(), tab text, op text, id int);
    create table parent (id int primary key, v text);
    create table child (id int primary key, p int references parent on delete cascade on update cascade,
                        v text unique deferrable initially deferred, n int check (n < 1000));
    create table other (id int primary key, v text);
    create function see() returns trigger language plpgsql as $$ begin
        if tg_op = 'INSERT' then
            insert into seen (tab, op, id) select tg_table_name, 'I', id from come;
        elsif tg_op = 'DELETE' then
            insert into seen (tab, op, id) select tg_table_name, 'D', id from gone;
        else
            -- A new key is a row that goes and one that comes.
            insert into seen (tab, op, id)
            select tg_table_name, case when c.id is null then 'D' when g.id is null then 'I' else 'U' end, coalesce(c.id, g.id)
              from come c full join gone g using (id);
        end if;
        return null;
    end $$;
    create function write_more() returns trigger language plpgsql as $$ begin
        if new.id % 37 = 0 then raise exception 'not this one'; end if;
        if new.id % 11 = 0 then
            begin
                insert into other values (new.id + 100000, 'nested');
                if new.id % 2 = 0 then raise exception 'inner'; end if;
            exception when others then
                insert into other values (-new.id, 'instead') on conflict do nothing;
            end;
        end if;
        return null;
    end $$;
    select pgq.create_queue('second')";

const TRIGGERS: [(&str, &str); 3] = [("parent", "q"), ("child", "q"), ("other", "second")];

const EVENT: &str = "ev_id, ev_txid, ev_type, ev_data, ev_extra1, ev_extra4";

/// Transactions in which what was captured is not what was seen, and events with an id that another one has.
fn differences([first, second]: &[String; 2]) -> String {
    format!(
        "with event as (select 1 as queue, {EVENT} from {first} f union all select 2, {EVENT} from {second} s),
              captured as (select ev_txid, split_part(ev_extra1, '.', 2) as tab, left(ev_type, 1) as op, count(*) as n,
                                  sum(substring(ev_data from '^id=(-?[0-9]+)')::int) as ids
                             from event where ev_extra4 is null and ev_extra1 is not null group by 1, 2, 3),
              seen as (select tx, tab, op, count(*) as n, sum(id) as ids from seen group by 1, 2, 3)
         (select c.*, s.* from captured c full join seen s on (c.ev_txid, c.tab, c.op) = (s.tx, s.tab, s.op)
           where (c.n, c.ids) is distinct from (s.n, s.ids) limit 10)
         union all
         select ev_id, null, null, count(*), null, null, null, null, null, null from event group by queue, ev_id having count(*) > 1"
    )
}

fn statement(random: &mut StdRng) -> String {
    let from = random.random_range(1..400);
    let upto = from + [1, 1, 2, 5, 40, 150, 300].choose(random).unwrap();
    let rows = format!("generate_series({from}, {upto}) i");
    let length = [1, 100, 3_000, 9_000].choose(random).unwrap();
    match random.random_range(0..12) {
        0 => format!("insert into parent select i, 'p' from {rows} on conflict do nothing"),
        1 => format!("insert into child select i, null, 'v' || i, i from {rows}"),
        2 => format!("insert into child select i, null, 'v' || i, 1 from {rows} on conflict do nothing"),
        3 => format!("update child set n = n + 1, p = (select min(id) from parent) where id between {from} and {upto}"),
        4 => format!("delete from parent where id between {from} and {upto}"),
        5 => format!("update parent set id = id + 1000 where id = {from}"),
        6 => format!("delete from child where id between {from} and {upto}"),
        7 => format!(
            "insert into other select i, repeat('x', {length}) from {rows} on conflict (id) do update set v = excluded.v || 'y'"
        ),
        8 => format!(
            "with gone as (delete from other where id < {from} returning id),
                  come as (insert into parent select -id, 'w' from gone on conflict do nothing returning id)
             select count(*) from come"
        ),
        9 => format!(
            "do $$ begin insert into child select i, null, 'v' || i, i from {rows};
             exception when others then insert into other values ({from} + 50000, 'e') on conflict do nothing; end $$"
        ),
        10 => format!(
            "do $$ declare c cursor for select id from child where id > {from} limit 20 for update; r record;
             begin for r in c loop
                 update child set n = 2 where current of c;
                 if r.id % 7 = 0 then
                     begin delete from child where id = r.id; raise exception 'x'; exception when others then null; end;
                 end if;
             end loop; end $$"
        ),
        _ => format!(
            "set constraints all {}",
            ["immediate", "deferred"].choose(random).unwrap()
        ),
    }
}

/// COPY, which may fail in the middle by a key that is there.
async fn copy(db: &Db, random: &mut StdRng) -> Result<u64, tokio_postgres::Error> {
    let from = random.random_range(1..400);
    let rows: String = (from..from + random.random_range(1..200))
        .map(|id| format!("{id}\tcopied\n"))
        .collect();
    let mut sink = Box::pin(db.client.copy_in("copy other from stdin").await?);
    sink.send(Bytes::from(rows)).await?;
    sink.as_mut().finish().await
}

/// A transaction, or statements that are one each. Errors are part of it.
async fn transaction(db: &Db, random: &mut StdRng) {
    let run = async |sql: &str| drop(db.client.batch_execute(sql).await);
    let explicit = random.random_bool(0.8);
    if explicit {
        run("begin").await;
    }
    for _ in 0..random.random_range(1..9) {
        match random.random_range(0..20) {
            0..4 if explicit => run("savepoint s").await,
            4..7 if explicit => run("rollback to s").await,
            7..9 if explicit => run("release s").await,
            9 => drop(copy(db, random).await),
            _ => run(&statement(random)).await,
        }
    }
    if explicit {
        match random.random_range(0..20) {
            0..3 => run("rollback").await,
            3..6 => {
                run("prepare transaction 'captured'").await;
                let end = ["commit", "rollback"].choose(random).unwrap();
                run(&format!("{end} prepared 'captured'")).await;
            }
            _ => run("commit").await,
        }
    }
}

#[tokio::test]
async fn every_change_is_captured_with_it_or_not_at_all() {
    let db = queue(&SHARED, "captured", &[]).await;
    db.run(TABLES).await;
    for (table, queue) in TRIGGERS {
        db.run(&format!(
            "create trigger a after insert or update or delete on {table} for each row execute function pgq.logutriga('{queue}');
             create trigger b after insert on {table} referencing new table as come execute function see();
             create trigger c after update on {table} referencing old table as gone new table as come execute function see();
             create trigger d after delete on {table} referencing old table as gone execute function see()"
        ))
        .await;
    }
    db.run(
        "create trigger e after insert on child for each row execute function write_more();
         create constraint trigger f after insert or update or delete on parent deferrable initially deferred
            for each row execute function pgq.logutriga('second', 'ev_extra4=''deferred''')",
    )
    .await;
    let seed = std::env::var("CAPTURE_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    let mut random = StdRng::seed_from_u64(seed);
    for round in 0..8 {
        // Most of the time packed, and every second round otherwise than the one before.
        for (queue, packs) in [("q", round % 2 == 1), ("second", round % 4 != 0)] {
            db.run(&format!("select pgcascade.pack_events('{queue}', {packs})"))
                .await;
        }
        for _ in 0..25 {
            transaction(&db, &mut random).await;
        }
        let source = async |queue: &str| {
            let of = format!("select pgcascade.event_source(queue_id) from pgq.queue where queue_name = '{queue}'");
            db.text(&of).await
        };
        let sources = [source("q").await, source("second").await];
        assert_eq!(db.text(&differences(&sources)).await, "", "CAPTURE_SEED={seed}");
    }
    let count = async |what: &str| {
        db.text(&format!("select {what} from pgq.event_template"))
            .await
            .parse::<u32>()
    };
    let (rows, packs) = (
        count("count(*)").await.unwrap(),
        count("count(*) filter (where ev_retry < 0)").await.unwrap(),
    );
    assert!(
        rows > 1_000 && packs > 50,
        "{rows} rows, {packs} packs, CAPTURE_SEED={seed}"
    );
}
