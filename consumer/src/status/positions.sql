-- The positions on the subscriber.
-- $1: queue or null, $2: consumer or null
select p.queue, p.consumer, p.provider_identity, p.epoch, p.tick, pg_catalog.to_json(p.updated) #>> '{}' as updated
  from pgcascade_replay.position p
 where ($1::text is null or p.queue = $1) and ($2::text is null or p.consumer = $2)
 order by 1, 2
