-- Every consumer of every queue on the provider; asked when the subscriber cannot say which ones are its own.
-- $1: queue or null, $2: consumer or null
select q.queue_name, c.co_name
  from pgq.subscription s
  join pgq.queue q on q.queue_id = s.sub_queue
  join pgq.consumer c on c.co_id = s.sub_consumer
 where ($1::text is null or q.queue_name = $1) and ($2::text is null or c.co_name = $2)
 order by 1, 2
