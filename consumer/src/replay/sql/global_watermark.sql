-- Whether this root's nodes need less than they were told, and something else than that message came since.
-- $1: queue
select i.local_watermark > i.global_watermark
       and (select t.tick_event_seq from pgq.tick t where t.tick_queue = q.queue_id and t.tick_id = i.local_watermark)
         > 1 + (select t.tick_event_seq from pgq.tick t where t.tick_queue = q.queue_id and t.tick_id = i.global_watermark)
  from pgq.queue q
 cross join lateral pgq_node.get_node_info(q.queue_name) i
 where q.queue_name = $1 and i.node_type = 'root' and not q.queue_disable_insert
