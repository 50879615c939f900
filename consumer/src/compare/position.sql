-- Where the subscriber is, and what one table is there.
-- $1: queue, $2: consumer, $3, $4: the table's schema and name on the provider
select p.tick, p.provider_identity, t.state, t.copy_snapshot, t.copy_end_snapshot
  from pgcascade_replay.position p
  join pgcascade_replay.table_state t on t.queue = p.queue and t.consumer = p.consumer
 where p.queue = $1 and p.consumer = $2 and t.provider_schema = $3 and t.provider_table = $4
