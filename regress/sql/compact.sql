--
-- Compaction of the positions. Versions of one transaction cannot be removed before it ends, so they stand for those that a
-- long transaction of somebody else holds back.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset null (null)
select pgq.create_queue('compact');
select queue_id as id from pgq.queue where queue_name = 'compact' \gset
select count(pgq.register_consumer('compact', 'reader ' || i)) from generate_series(1, 300) i;
select count(pgq.register_consumer('compact', 'idle')) \gset
update pgq.subscription set sub_active = '2020-01-01', sub_batch = nextval('pgq.batch_id_seq'), sub_next_tick = sub_last_tick
 where sub_queue = :id and sub_consumer % 2 = 0;
create temp table before as select * from pgq.subscription;
\set pages 'select pg_relation_size(''pgq.subscription'') / current_setting(''block_size'')::bigint <= 4 + 301 / 50 as small;'
\set same 'select count(*) > 300 as all, count(*) filter (where b is distinct from s) as differ from before b full join pgq.subscription s using (sub_queue, sub_consumer);'

-- Small: nothing to do, and no transaction id is used.
begin;
select pgcascade.compact_positions(), pgcascade.positions_bloated();
select txid_current_if_assigned() is null as no_xid;
commit;

-- Grown.
do $$ begin for i in 1..20 loop update pgq.subscription set sub_active = sub_active; end loop; end $$;
:pages
select pgcascade.positions_bloated();
select func_name, func_arg from pgq.maint_operations() where func_name like 'pgcascade.%';
-- Undone when it is rolled back.
begin;
select pgcascade.compact_positions();
:same
rollback;
:same
select pgcascade.positions_bloated();
-- Done: all rows as they were, found by each index, small; once is enough.
select pgcascade.compact_positions();
:same
:pages
select pgcascade.compact_positions();
set enable_seqscan = off;
select count(*) from before b join pgq.subscription s on s.sub_queue = b.sub_queue and s.sub_consumer = b.sub_consumer;
select count(*) from before b where exists (select from pgq.subscription s where s.sub_batch = b.sub_batch and s.sub_consumer = b.sub_consumer)
    or b.sub_batch is null;
reset enable_seqscan;
-- The constraints hold.
\set VERBOSITY sqlstate
insert into pgq.subscription (sub_queue, sub_consumer) select sub_queue, sub_consumer from pgq.subscription limit 1;
update pgq.subscription set sub_batch = (select max(sub_batch) from pgq.subscription) where sub_queue = :id;
insert into pgq.subscription (sub_queue, sub_consumer) values (-1, -1);

-- Not with an old snapshot; not for everybody; not with somebody else's trigger on the table.
begin isolation level repeatable read;
select pgcascade.compact_positions();
rollback;
create role compact_reader in role pgq_reader;
set role compact_reader;
select pgcascade.compact_positions();
reset role;
drop role compact_reader;
select pgcascade.put_frozen('pgq.subscription', s) from pgq.subscription s limit 1;
\set VERBOSITY default
do $$ begin for i in 1..20 loop update pgq.subscription set sub_active = sub_active; end loop; end $$;
create function pg_temp.note() returns trigger language plpgsql as 'begin return null; end';
create trigger note after truncate on pgq.subscription execute function pg_temp.note();
select pgcascade.compact_positions();
drop trigger note on pgq.subscription;
select pgcascade.compact_positions();

-- The same for what standbys have (gate_standby.sql). Both at once, and one alone.
insert into pgcascade.gate_standby (queue_id, standby_name, tick_id, knows, awaited_lsn, awaited_tick, awaited_knows)
values (:id, 'a', 7, '{1,2}', '1/A', 8, '{1}'), (:id, 'b', 0, '{}', null, null, null);
create temp table stood as select * from pgcascade.gate_standby;
\set standbys 'select count(*) as all, count(*) filter (where b is distinct from s) as differ from stood b full join pgcascade.gate_standby s using (standby_id);'
do $$ begin for i in 1..600 loop update pgcascade.gate_standby set tick_id = tick_id; end loop; end $$;
do $$ begin for i in 1..20 loop update pgq.subscription set sub_active = sub_active; end loop; end $$;
select pgcascade.position_bloat(), pgcascade.positions_bloated();
select pgcascade.compact_positions();
:standbys
select pgcascade.position_bloat(), pgcascade.compact_positions();
do $$ begin for i in 1..600 loop update pgcascade.gate_standby set tick_id = tick_id; end loop; end $$;
select pgcascade.compact_positions();
:standbys
\set VERBOSITY sqlstate
insert into pgcascade.gate_standby (queue_id, standby_name) values (:id, 'a');
\set VERBOSITY default
insert into pgcascade.gate_standby (queue_id, standby_name) values (:id, 'c') returning standby_id > (select max(standby_id) from stood) as new;

select pgq.drop_queue('compact', true);
delete from pgq.consumer where co_name like 'reader %' or co_name = 'idle';
