-- The batch behind a tick that next_batch.sql will open there, if that is known already: no tick to come changes it while there are more
-- than twice the wanted events. Moves nobody, and needs no right but to read.
-- $1: queue, $2: consumer, $3: wanted number of events, $4: tick
select pgcascade.tick_row_sql(q.queue_id, p.tick_id, n.next_tick_id, s.sub_id) as rows,
       n.next_tick_seq - p.tick_event_seq as events_about
  from pgq.queue q
  join pgq.consumer c on c.co_name = $2
  join pgq.subscription s on s.sub_queue = q.queue_id and s.sub_consumer = c.co_id
  join pgq.tick p on p.tick_queue = q.queue_id and p.tick_id = $4
 cross join lateral (select pgcascade.released_tick($1, $2) as tick offset 0) released
 cross join lateral (select t.tick_id, t.tick_event_seq from pgq.tick t
                      where t.tick_queue = q.queue_id and (released.tick is null or t.tick_id <= released.tick)
                      order by t.tick_id desc limit 1) l
 cross join lateral pgq.find_tick_helper(q.queue_id, p.tick_id, p.tick_time, p.tick_event_seq, $3::int4, null) n
 where q.queue_name = $1 and l.tick_event_seq - p.tick_event_seq > 2 * $3::int4 and n.next_tick_id <= l.tick_id
