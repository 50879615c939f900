-- A tick of a queue, when it was made, the last one, and where the queue has the worker.
-- $1: queue, $2: worker, $3: tick
select t.tick_time::text as tick_time, s.sub_last_tick as last_tick, s.sub_next_tick as next_tick,
       (select max(x.tick_id) from pgq.tick x where x.tick_queue = q.queue_id) as top
  from pgq.queue q
  left join pgq.tick t on t.tick_queue = q.queue_id and t.tick_id = $3
  left join (pgq.subscription s join pgq.consumer c on c.co_id = s.sub_consumer and c.co_name = $2) on s.sub_queue = q.queue_id
 where q.queue_name = $1
