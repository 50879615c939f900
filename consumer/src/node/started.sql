-- The tick that the new node's worker stands at, and the queue's settings.
-- $1: queue, $2: worker
select t.tick_id, t.tick_time::text, t.tick_event_seq,
       array['ticker_max_count', q.queue_ticker_max_count::text, 'ticker_max_lag', q.queue_ticker_max_lag::text,
             'ticker_idle_period', q.queue_ticker_idle_period::text, 'rotation_period', q.queue_rotation_period::text]
  from pgq.queue q
  join pgq.subscription s on s.sub_queue = q.queue_id
  join pgq.consumer c on c.co_id = s.sub_consumer and c.co_name = $2
  join pgq.tick t on t.tick_queue = s.sub_queue and t.tick_id = s.sub_last_tick
 where q.queue_name = $1
