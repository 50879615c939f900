-- Where the subscriber is, and what one table is there. One with events that were kept while it was copied lags behind the
-- position.
-- $1: queue, $2: consumer, $3, $4: the table's schema and name on the provider
select p.tick, p.provider_identity,
       case when t.state = 'catching-up' and exists (
              select from pgcascade_replay.held_event h
               where h.queue = t.queue and h.consumer = t.consumer
                 and h.provider_schema = t.provider_schema and h.provider_table = t.provider_table)
         then 'catching up with the events of its copy' else t.state
       end as state,
       t.copy_snapshot, t.copy_end_snapshot
  from pgcascade_replay.position p
  join pgcascade_replay.table_state t on t.queue = p.queue and t.consumer = p.consumer
 where p.queue = $1 and p.consumer = $2 and t.provider_schema = $3 and t.provider_table = $4
