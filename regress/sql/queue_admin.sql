--
-- Making, setting and dropping queues.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
select pgq.create_queue('queue_admin');
select pgq.create_queue('queue_admin');
select queue_id as id, queue_data_pfx as pfx from pgq.queue where queue_name = 'queue_admin' \gset

-- The row, with its defaults.
select queue_name, queue_ntables, queue_cur_table, queue_rotation_period,
       queue_switch_step1 = queue_switch_step2 as switched, queue_switch_time <= now() as switch_time,
       queue_external_ticker, queue_disable_insert, queue_ticker_paused
  from pgq.queue where queue_id = :id;
select queue_ticker_max_count, queue_ticker_max_lag, queue_ticker_idle_period, queue_per_tx_limit, queue_extra_maint,
       queue_data_pfx = 'pgq.event_' || queue_id as data_pfx,
       queue_event_seq = 'pgq.event_' || queue_id || '_id_seq' as event_seq,
       queue_tick_seq = 'pgq.event_' || queue_id || '_tick_seq' as tick_seq
  from pgq.queue where queue_id = :id;
select tick_id, tick_event_seq from pgq.tick where tick_queue = :id;

-- Its tables: one child per slot, appended to and truncated only. (The id of the queue is written as N.)
select replace(c.relname, 'event_' || :'id', 'event_N') as table, c.relpersistence, c.reloptions,
       (select t.reloptions from pg_class t where t.oid = c.reltoastrelid) as toast
  from pg_class c where c.oid = :'pfx'::regclass
    or c.oid in (select inhrelid from pg_inherits where inhparent = :'pfx'::regclass)
 order by 1;
select replace(pg_get_indexdef(indexrelid), 'event_' || :'id', 'event_N') as index
  from pg_index where indrelid in (select inhrelid from pg_inherits where inhparent = :'pfx'::regclass)
 order by 1;
select replace(pg_get_expr(adbin, adrelid), 'event_' || :'id', 'event_N') as default, count(*)
  from pg_attrdef where adrelid in (select inhrelid from pg_inherits where inhparent = :'pfx'::regclass)
 group by 1 order by 1;
select inhparent::regclass from pg_inherits where inhrelid = :'pfx'::regclass;

-- Their grants are those of pgq.event_template (without the owner's), and can be set again.
select distinct replace(c.relname, 'event_' || :'id', 'event_N') as relation, coalesce(nullif(a.grantee::regrole::text, '-'), 'public') as grantee,
       string_agg(a.privilege_type, ' ' order by a.privilege_type) as privileges
  from pg_class c cross join lateral aclexplode(c.relacl) a
 where c.relname like 'event\_' || :'id' || '%' and a.grantee <> c.relowner
 group by c.relname, a.grantee order by 1, 2;
revoke all on :pfx from pgq_reader;
select has_table_privilege('pgq_reader', :'pfx', 'select');
select pgq.grant_perms('queue_admin');
select has_table_privilege('pgq_reader', :'pfx', 'select');

-- Storage settings too.
select :'pfx' || '_0' as slot \gset
alter table :slot reset (fillfactor, autovacuum_enabled);
select pgq.tune_storage('queue_admin');
select reloptions from pg_class where oid = :'slot'::regclass;
select pgq.tune_storage('no such queue'), pgq.tune_storage(null);

-- Settings.
select pgq.set_queue_config('queue_admin', 'ticker_max_count', '10'),
       pgq.set_queue_config('queue_admin', 'ticker_max_lag', '4 seconds'),
       pgq.set_queue_config('queue_admin', 'ticker_idle_period', '5 minutes'),
       pgq.set_queue_config('queue_admin', 'rotation_period', '6 hours'),
       pgq.set_queue_config('queue_admin', 'ticker_paused', 'true'),
       pgq.set_queue_config('queue_admin', 'external_ticker', 'on');
select queue_ticker_max_count, queue_ticker_max_lag, queue_ticker_idle_period, queue_rotation_period,
       queue_ticker_paused, queue_external_ticker
  from pgq.queue where queue_id = :id;
select pgq.set_queue_config('queue_admin', 'ticker_max_count', '0');

-- Dropping takes everything with it. By name only what has no consumers.
select pgq.register_consumer('queue_admin', 'queue_admin_c');
select pgq.drop_queue('queue_admin');
select pgq.drop_queue('queue_admin', false);
select pgq.drop_queue('queue_admin', null);
select pgq.event_retry_raw('queue_admin', 'queue_admin_c', now(), null, now(), null, 't', 'd', null, null, null, null) > 0 as retried;
select pgq.drop_queue('queue_admin', true);
select count(*) from pg_class where relname like 'event\_' || :'id' || '%';
select (select count(*) from pgq.queue where queue_id = :id) as queue,
       (select count(*) from pgq.tick where tick_queue = :id) as tick,
       (select count(*) from pgq.subscription where sub_queue = :id) as subscription,
       (select count(*) from pgq.retry_queue where ev_queue = :id) as retry_queue;
select pgq.drop_queue('queue_admin');
select pgq.create_queue('queue_admin');
select pgq.drop_queue('queue_admin');

-- What users built on an event table is not dropped along with it.
select pgq.create_queue('queue_admin');
select queue_data_pfx as pfx from pgq.queue where queue_name = 'queue_admin' \gset
create view queue_admin_view as select ev_data from :pfx;
\set VERBOSITY sqlstate
select pgq.drop_queue('queue_admin');
\set VERBOSITY default
drop view queue_admin_view;
select pgq.drop_queue('queue_admin');

-- Kept for clients.
select pgq.upgrade_schema();
select pgq.version() = extversion as version from pg_extension where extname = 'pgcascade';
