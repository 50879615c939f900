-- The tick at which a new node begins: null is the watermark; a leaf's is the last one, unless it was registered already.
-- $1: queue, $2: worker, $3: is it a leaf?
select case when $3::bool and not exists (select from pgq.subscription s join pgq.consumer c on c.co_id = s.sub_consumer
                                           where s.sub_queue = q.queue_id and c.co_name = $2)
         then (select max(t.tick_id) from pgq.tick t where t.tick_queue = q.queue_id)
       end
  from pgq.queue q where q.queue_name = $1
