-- The same as journal_ticks.sql on a node of PgQ's own, all of whose ticks are of one epoch.
-- $1: queue, $2: the tick before, $3: the last one
select (select b.tick_time::text from pgq.tick b where b.tick_queue = q.queue_id and b.tick_id = $2) as from_time,
       pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
           'tick', t.tick_id, 'time', t.tick_time, 'event_seq', t.tick_event_seq, 'snapshot', t.tick_snapshot::text,
           'epoch', 1) order by t.tick_id)::text as ticks
  from pgq.queue q
  join pgq.tick t on t.tick_queue = q.queue_id and t.tick_id > $2 and t.tick_id <= $3
 where q.queue_name = $1
 group by q.queue_id
