-- This database as a leaf without the extension.
-- $1: queue
select 'leaf' as node_type, n.node as node_name, n.worker as worker_name, n.provider as provider_node,
       l.location as provider_location, p.tick as last_tick, n.tick_time::text as tick_time, n.paused, n.uptodate,
       -- Versions before 12 have no such column.
       pg_catalog.to_jsonb(n) ->> 'combined_queue' as combined_queue,
       coalesce((pg_catalog.to_jsonb(n) ->> 'position_known')::bool, true) as position_known,
       -- Nor versions before 14.
       coalesce(pg_catalog.to_jsonb(n) -> 'promises' <> '{}', false) as frozen
  from pgcascade_replay.node n
  join pgcascade_replay.position p on p.consumer = n.worker and p.queue = n.queue and p.tick is not null
  left join pgcascade_replay.node_location l on l.queue = n.queue and l.node = n.provider
 where n.queue = $1
