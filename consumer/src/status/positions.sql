-- The positions on the subscriber.
-- $1: queue or null, $2: consumer or null
select p.queue, p.consumer, p.provider_identity, p.epoch, p.tick, pg_catalog.to_json(p.updated) #>> '{}' as updated,
       -- By way of jsonb, as an older version of the schema does not have them.
       j ->> 'error' as error, j ->> 'failing_since' as failing_since, (j ->> 'attempts')::int4 as attempts,
       j ->> 'next_attempt' as next_attempt,
       coalesce(pg_catalog.has_table_privilege(pg_catalog.to_regclass('pgcascade_replay.conflict'), 'select'), false) as has_conflicts
  from pgcascade_replay.position p
 cross join lateral pg_catalog.to_jsonb(p) j
 where ($1::text is null or p.queue = $1) and ($2::text is null or p.consumer = $2)
 order by 1, 2
