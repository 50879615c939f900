-- $1: queue
select max(t.tick_id) from pgq.tick t where t.tick_queue = (select q.queue_id from pgq.queue q where q.queue_name = $1)
