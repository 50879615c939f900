--
-- Packed queues: many events of a statement in one row of an event table, which all readers get one by one.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset format unaligned
\pset tuples_only on
create schema packed;
set search_path = packed;
select pgq.create_queue('packed'), pgq.register_consumer('packed', 'c');
select queue_id as id, queue_data_pfx as tables from pgq.queue where queue_name = 'packed' \gset
create function events() returns setof pgq.event_template language plpgsql as $$ begin
    return query execute 'select ev_id, ev_time, ev_txid, ev_owner, ev_retry, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3,'
        ' ev_extra4 from ' || (select pgcascade.event_source(queue_id) from pgq.queue where queue_name = 'packed') || ' e';
end $$;
create table t (id int primary key, v text);
create trigger capture after insert or update or delete on t for each row execute function pgq.logutriga('packed');
create trigger emptied after truncate on t for each statement execute function pgq.logutriga('packed');
-- how many events the rows have, and what is in them
\set rows 'select ev_type, -ev_retry as events, ev_extra1, ev_extra2, left(ev_data, 20) from ' :tables ' order by ev_id;'
\set events 'select ev_type, count(*), count(distinct ev_id), max(ev_id) - min(ev_id), min(ev_data), max(length(ev_data)), count(ev_retry) from events() group by ev_type, ev_txid order by min(ev_id);'
\set forget 'delete from ' :tables ';'

-- Not unless that is wanted.
select pgcascade.event_source(:id) = (select queue_data_pfx from pgq.queue where queue_id = :id), pgcascade.event_source(-1) is null;
insert into t values (1, 'a'), (2, 'b');
:rows
:events
delete from t;
:forget
select pgcascade.pack_events('packed', true);
select packs from pgcascade.packed_queue where queue_id = :id;

-- Each statement's rows, with nothing between them that differs; within a quarter of a page. One row alone is as it was.
insert into t values (1, 'a'), (2, 'b'), (3, null);
insert into t values (4, 'one');
update t set v = id where id > 1;
update t set id = id + 10 where id = 4;
delete from t where id < 3;
truncate t;
:rows
:events
:forget
insert into t select i, 'v' || i from generate_series(1, 1000) i;
select count(*) between 10 and 30, sum(-ev_retry), max(pg_column_size(e)) < 2040, count(*) filter (where ev_retry > -100) <= 1 from :tables e;
:events
-- found by the index, as rows are
set enable_seqscan = off;
select count(*) from events() where ev_txid = (select max(ev_txid) from events());
reset enable_seqscan;
:forget
delete from t;
:forget

-- Rows that go into none: large ones, and others between them.
insert into t values (1, 'a'), (2, repeat('x', 1900)), (3, 'b'), (4, 'c'), (5, repeat('y', 100000)), (6, ''), (7, null);
:rows
select id, right(ev_data, 3), length(ev_data) from events() e, t where ev_data like 'id=' || id || '&%' order by 1;
delete from t;
:forget
create table other (id int primary key, v text, parity text generated always as ((id % 2)::text) stored);
create trigger capture after insert or update or delete on other for each row
    execute function pgq.logutriga('packed', 'ev_extra2=case when id < 3 then ''t'' when id < 6 then ''f'' end', 'backup');
insert into other values (1), (2), (3), (4), (5), (6), (7);
update other set v = 'u' where id < 3;
create rule too as on insert to t do also insert into other values (new.id + 100, new.v);
insert into t values (1, 'a'), (2, 'b');
drop rule too on t;
with a as (insert into t values (3, 'c'), (4, 'd') returning id), b as (delete from other where id < 8 returning id)
select count(*) from a, b;
:rows
:events
:forget
-- SQL may have newlines in its values; JSON and url-encoded text have none
create table sql (id int primary key, v text);
create trigger capture after insert on sql for each row execute function pgq.sqltriga('packed');
insert into sql values (1, 'a'), (2, E'b\tc'), (3, E'd\ne'), (4, 'f'), (5, 'g');
create table json (id int primary key, v text);
create trigger capture after insert on json for each row execute function pgq.jsontriga('packed');
insert into json values (1, E'a\nb\tc'), (2, 'é');
select ev_type, -ev_retry from :tables order by ev_id;
select ev_id - min(ev_id) over (), ev_data from events() order by ev_id;
:forget
delete from t;
:forget

-- An event of another kind in the middle of a statement has its own row and its place among the ids; so has what is rolled back.
create function tells() returns trigger language plpgsql as $$ begin
    if new.id % 10 = 5 then perform pgq.insert_event('packed', 'told', new.id::text); end if;
    if new.id % 10 = 8 then
        begin
            insert into other values (new.id + 1000, 'gone');
            raise exception 'no';
        exception when raise_exception then null;
        end;
    end if;
    return null;
end $$;
create trigger tells after insert on t for each row execute function tells();
insert into t select i from generate_series(1, 20) i;
select ev_type, count(*) from events() group by 1 order by 1;
select array_agg(coalesce(substring(ev_data from 'id=(\d+)'), 'told ' || ev_data) order by ev_id) from events();
drop trigger tells on t;
:forget
begin;
insert into t select i from generate_series(21, 30) i;
savepoint s;
insert into t select i from generate_series(31, 40) i;
rollback to s;
insert into t select i from generate_series(41, 50) i;
commit;
:events
delete from t;
:forget

-- A limit on events counts those in packs.
update pgq.queue set queue_per_tx_limit = 5 where queue_id = :id;
insert into t select i from generate_series(1, 5) i;
insert into t select i from generate_series(11, 16) i;
update pgq.queue set queue_per_tx_limit = null where queue_id = :id;
:rows
:forget

-- Everybody who reads a batch, whole, in parts or by a condition.
select pgq.set_queue_config('packed', 'ticker_max_lag', '0'), pgq.ticker('packed') is not null;
insert into t select i, 'v' || i from generate_series(101, 160) i;
insert into t values (200, 'alone');
select pgq.ticker('packed') is not null;
select pgq.next_batch('packed', 'c') is not null, pgq.finish_batch(pgq.next_batch('packed', 'c'));
select pgq.next_batch('packed', 'c') as batch \gset
select count(*), min(ev_data), max(ev_data), count(ev_retry), max(ev_id) - min(ev_id),
       bool_and(ev_id - before = 1) from (select *, lag(ev_id, 1, ev_id - 1) over () as before from pgq.get_batch_events(:batch)) e;
begin;
select ev_type, ev_data, ev_retry from pgq.get_batch_cursor(:batch, 'cur', 2, $$ev_data like '%=15_&%' or ev_extra1 is null$$);
select count(*) from pgq.get_batch_cursor(:batch, 'other', 1000);
rollback;
-- Operators of the caller are not looked up before the server's.
create schema packed_evil;
create function packed_evil.no(bigint, bigint) returns boolean language plpgsql as $$ begin raise exception 'called'; end $$;
create function packed_evil.none(bigint, bigint) returns bigint language plpgsql as $$ begin raise exception 'called'; end $$;
create function packed_evil.not_either(bigint, int) returns boolean language plpgsql as $$ begin raise exception 'called'; end $$;
create function packed_evil.nor(int, int) returns boolean language plpgsql as $$ begin raise exception 'called'; end $$;
create operator packed_evil.= (function = packed_evil.no, leftarg = bigint, rightarg = bigint);
create operator packed_evil.>= (function = packed_evil.not_either, leftarg = bigint, rightarg = int);
create operator packed_evil.< (function = packed_evil.not_either, leftarg = bigint, rightarg = int);
create operator packed_evil.+ (function = packed_evil.none, leftarg = bigint, rightarg = bigint);
create operator packed_evil.>= (function = packed_evil.nor, leftarg = int, rightarg = int);
create operator packed_evil.< (function = packed_evil.nor, leftarg = int, rightarg = int);
create operator packed_evil.= (function = packed_evil.nor, leftarg = int, rightarg = int);
begin;
set local search_path = packed_evil, pg_catalog;
select count(*) from pgq.get_batch_cursor(:batch, 'cur', 1000, null);
rollback;
drop schema packed_evil cascade;
select min(ev_id) as first from pgq.get_batch_events(:batch) \gset
select ev_id - :first, ev_data from pgcascade.get_batch_page(:batch, :first + 57, 2, null);
set pgcascade.max_batch_events = 60;
\set VERBOSITY sqlstate
select count(*) from pgq.get_batch_events(:batch);
\set VERBOSITY default
reset pgcascade.max_batch_events;

-- Single events of a pack are retried, and given up.
select pgq.event_retry(:batch, :first + 1, 0), pgq.event_retry(:batch, :first + 1, 0), pgq.event_retry(:batch, :first + 59, 0);
select pgq.event_retry(:batch, :first + 2, 0), pgq.event_retry(:batch, :first + 60, 0);
\set VERBOSITY sqlstate
select pgq.event_retry(:batch, :first + 61, 0);
\set VERBOSITY default
select pgcascade.fail_event(:batch, :first + 3, 'wrong');
select ev_id - :first, ev_retry, ev_type, ev_data from pgq.retry_queue order by 1;
select ev_id - :first, ev_data, reason from pgcascade.dead_letters('packed', 'c');
select pgq.batch_retry(:batch, 0);
select pgq.finish_batch(:batch);
select pgq.maint_retry_events(), pgq.maint_retry_events();
select pgq.ticker('packed') is not null;
select pgq.next_batch('packed', 'c') as batch \gset
select count(*), min(ev_retry), max(ev_retry), min(ev_data), max(ev_id) - :first from pgq.get_batch_events(:batch);
select pgq.finish_batch(:batch);

-- Not any more: what was packed is still read.
insert into t select i from generate_series(301, 310) i;
select pgcascade.pack_events('packed', false);
insert into t select i from generate_series(311, 320) i;
select pgq.ticker('packed') is not null;
select pgq.next_batch('packed', 'c') as batch \gset
select count(*), max(ev_id) - min(ev_id) from pgq.get_batch_events(:batch);
select pgq.finish_batch(:batch);

-- What is wrong.
select pgcascade.pack_events('no such queue', true);
select pgcascade.pack_events(null, true);
select pgcascade.pack_events('packed', null);
select pgq.insert_event_raw('packed', null, now(), null, -1, 'type', 'data', null, null, null, null);
select pgq.event_retry_raw('packed', 'c', now(), null, now(), -1, 'type', 'data', null, null, null, null);
\set VERBOSITY sqlstate
insert into pgq.retry_queue (ev_retry_after, ev_queue, ev_id, ev_time, ev_owner, ev_retry) values (now(), :id, 1, now(), 1, -1);
\set VERBOSITY default

-- Gone with its queue.
select pgq.drop_queue('packed', true);
select count(*) from pgcascade.packed_queue where queue_id = :id;
drop schema packed cascade;
