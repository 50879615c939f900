-- The tables of one position on the subscriber.
-- $1: queue, $2: consumer
select pg_catalog.format('%I.%I', t.provider_schema, t.provider_table) as provider_table,
       pg_catalog.format('%I.%I', t.subscriber_schema, t.subscriber_table) as subscriber_table,
       t.state, t.copied_rows, t.error, pg_catalog.to_json(t.updated) #>> '{}' as updated,
       -- Versions before 18 do not have them.
       j ->> 'waits_for' as waits_for, j ->> 'waits_since' as waits_since
  from pgcascade_replay.table_state t
 cross join lateral pg_catalog.to_jsonb(t) j
 where t.queue = $1 and t.consumer = $2
 order by 1
