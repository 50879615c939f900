-- What is after each of these ticks: ticks, events (by their sequence, so rolled back ones count), and for how long it waits.
-- $1: queue, $2: ticks
select greatest(l.tick_id - w.tick_id, 0) as ticks, greatest(l.tick_event_seq - t.tick_event_seq, 0) as events,
       case when w.tick_id >= l.tick_id then 0
            else round(extract(epoch from pg_catalog.clock_timestamp() - n.tick_time)::numeric, 3)::float8
       end as seconds
  from pg_catalog.unnest($2::int8[]) with ordinality w(tick_id, position)
  join pgq.queue q on q.queue_name = $1
 cross join lateral (select x.tick_id, x.tick_event_seq from pgq.tick x
                      where x.tick_queue = q.queue_id order by x.tick_id desc limit 1) l
  left join pgq.tick t on t.tick_queue = q.queue_id and t.tick_id = w.tick_id
  left join lateral (select x.tick_time from pgq.tick x
                      where x.tick_queue = q.queue_id and x.tick_id > w.tick_id order by x.tick_id limit 1) n on true
 order by w.position
