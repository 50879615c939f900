-- The age of the queue's last tick, and whether there were events after it.
-- $1: queue
select extract(epoch from pg_catalog.clock_timestamp() - t.tick_time)::float8,
       pgq.seq_getval(q.queue_event_seq) > t.tick_event_seq
  from pgq.queue q
 cross join lateral (select x.tick_time, x.tick_event_seq from pgq.tick x
                      where x.tick_queue = q.queue_id order by x.tick_id desc limit 1) t
 where q.queue_name = $1
