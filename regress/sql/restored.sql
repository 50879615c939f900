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
