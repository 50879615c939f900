--
-- A database restored from pg_dump has the rows of schema pgq, while the sequences of their ids begin again.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
select pgq.create_queue('restored one'), pgq.create_queue('restored two');
select pgq.register_consumer('restored one', 'restored_a'), pgq.register_consumer('restored one', 'restored_b'), pgq.register_consumer('restored two', 'restored_a');
-- As after a restore.
select setval('pgq.queue_queue_id_seq', 1, false), setval('pgq.consumer_co_id_seq', 1, false), setval('pgq.subscription_sub_id_seq', 1, false);
select pgq.create_queue('restored three'), pgq.create_queue('restored four');
select pgq.register_consumer('restored three', 'restored_c'), pgq.register_consumer('restored one', 'restored_c'), pgq.register_consumer('restored four', 'restored_d');
select count(*) as subscriptions, count(distinct sub_id) as sub_ids, count(distinct sub_queue) as queues, count(distinct sub_consumer) as consumers
  from pgq.subscription where sub_queue in (select queue_id from pgq.queue where queue_name like 'restored %');
select pgq.insert_event('restored one', 't', 'd'), pgq.insert_event('restored three', 't', 'd');
-- The data of the seven configuration objects is all that is needed; event tables are dumped as ordinary tables.
select count(*) from pg_class c
 where c.relname like 'event\_%' and c.relnamespace = 'pgq'::regnamespace and c.relkind in ('r', 'S') and c.relname <> 'event_template'
   and exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e');
select pgq.drop_queue('restored one', true), pgq.drop_queue('restored two', true), pgq.drop_queue('restored three', true), pgq.drop_queue('restored four', true);

-- A queue whose row comes after its tables is marked; settled, because its transaction ids are old.
select pgq.create_queue('restored five'), pgq.register_consumer('restored five', 'restored_e');
select queue_id as id, 'pgq.event_' || queue_id as events from pgq.queue where queue_name = 'restored five' \gset
select pgq.insert_event('restored five', 't', 'old');
create temp table saved_queue as select * from pgq.queue where queue_id = :id;
create temp table saved_tick as select * from pgq.tick where tick_queue = :id;
create temp table saved_subscription as select * from pgq.subscription where sub_queue = :id;
-- Loads the rows as a restore does.
\set remove 'delete from pgq.subscription where sub_queue = ' :id '; delete from pgq.tick where tick_queue = ' :id '; delete from pgq.queue where queue_id = ' :id ';'
:remove
insert into pgq.queue select * from saved_queue;
select count(*) from pgcascade.restored_queue where queue_id = :id;
\set VERBOSITY terse
select pgq.ticker('restored five');
select pgq.insert_event('restored five', 't', 'refused');
\set VERBOSITY default
select pgq.insert_event('restored five', 't', 'refused');
select pgcascade.mend_restored();
insert into pgq.tick select * from saved_tick;
insert into pgq.subscription select * from saved_subscription;
select pgq.ticker('restored five');
select count(*) from pgcascade.restored_queue where queue_id = :id;
select pgq.insert_event('restored five', 't', 'new');
select pgq.force_tick('restored five'), pgq.ticker('restored five');
select pgq.next_batch('restored five', 'restored_e') as batch \gset
select ev_data from pgq.get_batch_events(:batch);
select pgq.finish_batch(:batch);

-- Transaction ids that this cluster gives out again: nothing is written, ticked or rotated until they are mended.
:remove
update saved_queue set queue_switch_step2 = queue_switch_step2 + 1152921504606846976, queue_rotation_period = '0';
update saved_tick set tick_snapshot = '1152921504606847000:1152921504606847010:1152921504606847005';
\o /dev/null
update :events set ev_txid = case ev_data when 'old' then 1152921504606847004 else 1152921504606847005 end;
insert into saved_tick select :id, 2, now(), '1152921504606847005:1152921504606847010:1152921504606847005,1152921504606847007', 1;
insert into saved_tick select :id, 3, now(), '1152921504606847020:1152921504606847020:', 3;
\o
update saved_subscription set sub_last_tick = 2;
insert into pgq.queue select * from saved_queue;
insert into pgq.tick select * from saved_tick;
insert into pgq.subscription select * from saved_subscription;
\set VERBOSITY sqlstate
select pgq.ticker('restored five');
select pgq.maint_rotate_tables_step1('restored five');
select pgq.insert_event('restored five', 't', 'refused');
select pgq.current_event_table('restored five');
\set VERBOSITY default
select pgq.event_retry_raw('restored five', 'restored_e', now() - interval '1 hour', 1000, now(), 1, 't', 'retried', null, null, null, null);
select pgq.maint_retry_events();
update pgq.queue set queue_switch_step2 = null where queue_id = :id;
select pgq.maint_rotate_tables_step2();
select queue_switch_step2 is null as left_alone from pgq.queue where queue_id = :id;
begin isolation level repeatable read;
select pgcascade.mend_restored();
rollback;
select pgcascade.mend_restored(), pgcascade.mend_restored() as again;
-- Below every transaction in progress, and seen as before.
select bool_and(ev_txid < txid_snapshot_xmin(txid_current_snapshot())) as old from :events;
select t.tick_id, array_agg(e.ev_data order by e.ev_id) filter (where txid_visible_in_snapshot(e.ev_txid, t.tick_snapshot)) as seen
  from pgq.tick t cross join :events e where t.tick_queue = :id group by 1 order by 1;
select pgq.maint_retry_events(), pgq.insert_event('restored five', 't', 'newest') > 0 as inserted;
select pgq.force_tick('restored five') > 0 as forced;
select pgq.ticker('restored five') > 0 as ticked;
select pgq.next_batch('restored five', 'restored_e') as batch \gset
select ev_data from pgq.get_batch_events(:batch);
select pgq.finish_batch(:batch);
select pgq.next_batch('restored five', 'restored_e') as batch \gset
select ev_data from pgq.get_batch_events(:batch);
select pgq.finish_batch(:batch);
select pgq.drop_queue('restored five', true);

-- Each table of schema pgcascade is saved by pg_dump, or it is here with the reason why not.
select c.oid::regclass as neither_saved_nor_excepted
  from pg_class c, pg_extension x
 where x.extname = 'pgcascade' and c.relnamespace = 'pgcascade'::regnamespace and c.relkind in ('r', 'S', 'p')
   and c.oid <> all (x.extconfig)
   and c.oid::regclass::text <> all (array[
           'pgcascade.restored_queue',  -- about this cluster: a restore makes the rows itself
           'pgcascade.limit_warning',   -- what this cluster's log has been told
           'pgcascade.tick_error',      -- what this cluster's worker met last
           'pgcascade.gate_standby',    -- standbys of this server
           'pgcascade.gate_standby_standby_id_seq'
       ]);
