-- For how many seconds the tables have been in the state that they are in.
-- $1: consumer, $2: queue
select s.provider_schema, s.provider_table, extract(epoch from pg_catalog.clock_timestamp() - s.updated)::float8 as age
  from pgcascade_replay.table_state s
 where s.consumer = $1 and s.queue = $2
