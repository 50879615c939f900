-- The batch that is open: the query for its events, that for the rows in which they are stored, the snapshot that ends it, and how
-- far behind the provider's last tick that is. No row: none is.
-- $1: queue, $2: consumer, $3: whether the query for the events is wanted; that for the rows is, always
select case when $3 then pgq.batch_event_sql(s.sub_batch) end as events,
       pgcascade.tick_row_sql(q.queue_id, s.sub_last_tick, s.sub_next_tick, s.sub_id) as rows,
       t.tick_snapshot::text as snapshot, t.tick_time::text as tick_time,
       t.tick_event_seq as event_seq, coalesce(t.tick_event_seq - f.tick_event_seq, 0) as events_about,
       extract(epoch from pg_catalog.clock_timestamp() - t.tick_time)::float8 as lag_seconds,
       l.tick_id - t.tick_id as lag_ticks, l.tick_event_seq - t.tick_event_seq as lag_events
  from pgq.queue q
  join pgq.consumer c on c.co_name = $2
  join pgq.subscription s on s.sub_queue = q.queue_id and s.sub_consumer = c.co_id
  -- (`offset 0`: as in next_batch.sql.)
 cross join lateral (select x.* from pgq.tick x
                      where x.tick_queue = s.sub_queue and x.tick_id = s.sub_next_tick offset 0) t
  left join lateral (select x.tick_event_seq from pgq.tick x
                      where x.tick_queue = s.sub_queue and x.tick_id = s.sub_last_tick offset 0) f on true
 cross join lateral (select x.tick_id, x.tick_event_seq from pgq.tick x
                      where x.tick_queue = s.sub_queue order by x.tick_id desc limit 1) l
 where q.queue_name = $1 and s.sub_batch is not null
