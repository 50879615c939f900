-- $1: queue
select max(t.tick_id) from pgq.queue q join pgq.tick t on t.tick_queue = q.queue_id where q.queue_name = $1
