-- This database as a root or branch.
-- $1: queue
select n.node_type, n.node_name, n.worker_name, s.provider_node, l.node_location as provider_location,
       p.tick_id as last_tick, t.tick_time::text as tick_time, s.paused, s.uptodate,
       false as frozen
  from pgq_node.node_info n
  join pgq_node.local_state s on s.queue_name = n.queue_name and s.consumer_name = n.worker_name
  left join pgq_node.node_location l on l.queue_name = s.queue_name and l.node_name = s.provider_node
  left join pgq.queue q on q.queue_name = n.queue_name
 cross join lateral (
       select case n.node_type
                when 'root' then (select max(x.tick_id) from pgq.tick x where x.tick_queue = q.queue_id)
                else s.last_tick_id
              end as tick_id) p
  left join pgq.tick t on t.tick_queue = q.queue_id and t.tick_id = p.tick_id
 where n.queue_name = $1 and n.node_type in ('root', 'branch') and p.tick_id is not null
