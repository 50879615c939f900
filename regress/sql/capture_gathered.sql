--
-- Rows of events are gathered and stored many at a time: they are there when their statement ends, they are rolled back with the
-- subtransaction that made them and with no other, and none is lost at the end of a transaction.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset format unaligned
\pset tuples_only on
create schema capture_gathered;
set search_path = capture_gathered;
select pgq.create_queue('capture_gathered');
select pgq.create_queue('capture_gathered_too');
select queue_data_pfx as events from pgq.queue where queue_name = 'capture_gathered' \gset
select queue_data_pfx as others from pgq.queue where queue_name = 'capture_gathered_too' \gset
create table t (id int primary key, v text);
create trigger capture after insert or update or delete on t for each row execute function pgq.logutriga('capture_gathered');
\set show 'select ev_type, left(ev_data, 20), length(ev_data) from :events order by ev_id; delete from :events;'

-- each statement's rows, in its transaction; also those of COPY, and of a function's statements for the next one
begin;
insert into t select i, 'a' from generate_series(1, 300) i;
select count(*), count(distinct ev_id), min(ev_data), max(ev_data) from :events;
copy t from stdin;
1001	copied
1002	copied
\.
select count(*) from :events;
create function counts(events regclass, out before bigint, out after bigint) language plpgsql as $$
begin
    execute format('select count(*) from %s', events) into before;
    insert into t values (1003, 'x'), (1004, 'x');
    execute format('select count(*) from %s', events) into after;
end $$;
select * from counts(:'events');
with made as (insert into t values (1005, 'y') returning id) select id from made;
select count(*) from :events;
rollback;
select count(*) from :events;

-- small rows and large ones, compressible or not; more than are stored at a time
insert into t select i, case when i % 3 = 0 then repeat('x', 10000) when i % 3 = 1 then 'small'
    else (select string_agg(md5(i::text || j), '') from generate_series(1, 100) j) end from generate_series(1, 400) i;
select count(*), sum(length(ev_data)), count(*) filter (where ev_data = 'id=' || t.id || '&v=' || t.v)
  from :events e, t where split_part(split_part(ev_data, '&', 1), '=', 2)::int = t.id;
-- found by the index, too
set enable_seqscan = off;
select count(*) from :events where ev_txid = (select max(ev_txid) from :events);
reset enable_seqscan;
delete from :events;
delete from t;
delete from :events;

-- savepoints
begin;
insert into t values (1, 'kept');
savepoint a;
insert into t values (2, 'gone');
savepoint b;
insert into t values (3, 'gone');
release b;
rollback to a;
insert into t values (4, 'kept');
savepoint c;
insert into t values (5, 'kept');
release c;
commit;
:show

-- Triggers around ours that make and give up subtransactions while rows are gathered for the statement, and another queue
create table nested (id int primary key, from_id int);
create trigger capture after insert on nested for each row execute function pgq.logutriga('capture_gathered');
create trigger capture_too after insert on nested for each row execute function pgq.logutriga('capture_gathered_too');
create function nest() returns trigger language plpgsql as $$
begin
    for n in 1..3 loop
        begin
            insert into nested values (new.id * 100 + n * 10 + tg_argv[0]::int, new.id);
            if (new.id + n) % 3 = 0 then
                begin
                    insert into nested values (-(new.id * 100 + n * 10 + tg_argv[0]::int), new.id);
                    raise exception 'given up';
                exception when raise_exception then
                    null;
                end;
            end if;
            if (new.id * n) % 4 = 0 then
                raise exception 'given up';
            end if;
        exception when raise_exception then
            null;
        end;
    end loop;
    return null;
end $$;
create trigger a_before after insert on t for each row execute function nest('1');
create trigger z_after after insert on t for each row execute function nest('2');
insert into t select i, 'n' from generate_series(11, 90) i;
select count(*), count(*) filter (where ev_extra1 like '%.nested') from :events;
select count(*) from :others;
with
    events as (select ev_extra1 as name, split_part(split_part(ev_data, '&', 1), '=', 2)::int as id from :events),
    rows as (select 'capture_gathered.t' as name, id from t where id > 10 union all select 'capture_gathered.nested', id from nested)
select (select count(*) from (table events except all table rows) x), (select count(*) from (table rows except all table events) x);
drop trigger a_before on t;
drop trigger z_after on t;
drop table nested;
delete from :events;
delete from :others;

-- no subtransaction leaves memory behind until the transaction ends
begin;
do $$
begin
    for i in 1..2000 loop
        begin
            insert into capture_gathered.t values (10000 + i, 'm');
        exception when unique_violation then
            raise;
        end;
    end loop;
end $$;
select count(*) < 100 from pg_backend_memory_contexts where name = 'CurTransactionContext';
rollback;

-- deferred to the commit, and to the first half of one in two phases
create constraint trigger late after insert on t deferrable initially deferred for each row execute function pgq.logutriga('capture_gathered');
begin;
insert into t values (101, 'twice'), (102, 'twice');
select count(*) from :events;
commit;
:show
begin;
insert into t values (103, 'prepared');
prepare transaction 'capture_gathered';
select count(*) from :events;
commit prepared 'capture_gathered';
:show
begin;
insert into t values (104, 'immediate');
set constraints late immediate;
:show
rollback;
drop trigger late on t;

-- row by row, where something else writes in between
create table log (id int);
create function notes() returns trigger language plpgsql as $$ begin insert into log values (new.id); return null; end $$;
create trigger notes after insert on t for each row execute function notes();
insert into t values (201, 'a'), (202, 'b'), (203, 'c');
:show
drop trigger notes on t;

-- an error after rows were gathered leaves nothing for the next statement
create function fails() returns trigger language plpgsql as $$ begin if new.id = 303 then raise exception 'no'; end if; return null; end $$;
create trigger fails after insert on t for each row execute function fails();
insert into t values (301, 'a'), (302, 'b'), (303, 'c');
insert into t values (304, 'd');
:show
drop trigger fails on t;

-- the limit of a transaction counts what is gathered
update pgq.queue set queue_per_tx_limit = 3 where queue_name = 'capture_gathered';
insert into t select i, 'l' from generate_series(401, 404) i;
insert into t select i, 'l' from generate_series(401, 403) i;
select count(*) from :events;
update pgq.queue set queue_per_tx_limit = null where queue_name = 'capture_gathered';
delete from :events;

-- a statement whose own triggers change the event table, or drop the queue
create function changes() returns trigger language plpgsql as $$
begin
    if new.id = 501 then
        execute format('create trigger odd before insert on %s_0 for each row execute function capture_gathered.odd()',
            (select queue_data_pfx from pgq.queue where queue_name = 'capture_gathered'));
    elsif new.id = 601 then
        perform pgq.drop_queue('capture_gathered', true);
    end if;
    return null;
end $$;
create function odd() returns trigger language plpgsql as $$ begin new.ev_extra4 := 'odd'; return new; end $$;
create trigger z_changes after insert on t for each row execute function changes();
insert into t values (500, 'before'), (501, 'changes'), (502, 'after');
select ev_data, ev_extra4 from :events order by ev_id;
insert into t values (503, 'after');
select ev_data, ev_extra4 from :events where ev_data like '%503%';
insert into t values (601, 'drops');
select count(*) from t where id = 601;
select count(*) from pgq.queue where queue_name = 'capture_gathered';

select pgq.drop_queue('capture_gathered_too', true);
drop schema capture_gathered cascade;
