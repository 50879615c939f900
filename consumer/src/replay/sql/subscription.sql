-- Where the provider thinks that the consumer is. No row: not registered.
-- $1: queue, $2: consumer
select s.sub_last_tick as last_tick, s.sub_next_tick as next_tick
  from pgq.queue q
  join pgq.subscription s on s.sub_queue = q.queue_id
  join pgq.consumer c on c.co_id = s.sub_consumer
 where q.queue_name = $1 and c.co_name = $2
