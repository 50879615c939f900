-- The same where every tick is a batch, as next_tick.sql has it.
-- $1: queue, $2: consumer, $3: not used, $4: tick
select pgcascade.tick_row_sql(q.queue_id, p.tick_id, n.tick_id, s.sub_id) as rows,
       n.tick_event_seq - p.tick_event_seq as events_about
  from pgq.queue q
  join pgq.consumer c on c.co_name = $2
  join pgq.subscription s on s.sub_queue = q.queue_id and s.sub_consumer = c.co_id
  join pgq.tick p on p.tick_queue = q.queue_id and p.tick_id = $4
 cross join lateral (select t.tick_id, t.tick_event_seq from pgq.tick t
                      where t.tick_queue = q.queue_id and t.tick_id > p.tick_id
                      order by t.tick_id limit 1) n
 where q.queue_name = $1 and $3::int4 is not null
