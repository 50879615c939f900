-- Whether a file was executed on the provider behind a tick.
-- $1: queue, $2: tick
select exists (
       select from pgq.queue q
         join pgq.tick t on t.tick_queue = q.queue_id and t.tick_id = $2
         join pgcascade_replay.executed e on e.queue = q.queue_name
        where q.queue_name = $1 and e.txid is not null
          and not pg_catalog.pg_visible_in_snapshot(e.txid::text::pg_catalog.xid8, t.tick_snapshot::text::pg_catalog.pg_snapshot)
          -- Else it is of another cluster, from which this one was loaded.
          and pg_catalog.pg_visible_in_snapshot(e.txid::text::pg_catalog.xid8, pg_catalog.pg_current_snapshot()))
