-- The queue, and whether anybody makes ticks. One row; the queue's columns are null while there is none.
-- $1: the queue, $2: the consumer
select q.queue_ticker_paused as paused, q.queue_disable_insert as closed, q.queue_external_ticker as external,
       -- Of this queue, else of any: whatever makes ticks of one will make those of the next.
       extract(epoch from pg_catalog.clock_timestamp() - (
         select max(t.tick_time) from pgq.tick t where t.tick_queue = q.queue_id or q.queue_id is null))::float8 as tick_age,
       extract(epoch from coalesce(q.queue_ticker_idle_period, '1 minute'))::float8 as idle_period,
       -- The lock that a ticker holds everybody may see, unlike what kind of process it is.
       exists (select from pg_catalog.pg_locks l join pg_catalog.pg_database d on d.oid = l.database
                where d.datname = pg_catalog.current_database() and l.locktype = 'object' and l.granted
                  and l.classid = 'pg_catalog.pg_extension'::pg_catalog.regclass and l.objid = 0) as ticker,
       -- Null to those who may not see it.
       (select s.setting like '%pgcascade%' from pg_catalog.pg_settings s where s.name = 'shared_preload_libraries') as preloaded,
       coalesce(pg_catalog.has_function_privilege(
         pg_catalog.to_regprocedure('pgcascade.check_consumer(integer,integer)')::oid, 'execute'), false) as may_ask,
       s.sub_queue, s.sub_consumer
  from (values (1)) one(row)
  left join pgq.queue q on q.queue_name = $1
  left join (pgq.subscription s join pgq.consumer c on c.co_id = s.sub_consumer and c.co_name = $2) on s.sub_queue = q.queue_id
