-- What a leaf says of itself.
-- $1: queue, $2: key of the lock that its replay holds
select exists (select from pg_catalog.pg_locks l
                where l.locktype = 'advisory' and l.granted and l.objsubid = 1
                  and l.database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
                  and ((l.classid::int8 << 32) | l.objid::int8) = $2) as replaying,
       n.error, p.tick as local_watermark, null::int8 as global_watermark, '{}'::text[] as subscribers
  from pgcascade_replay.node n
  join pgcascade_replay.position p on p.consumer = n.worker and p.queue = n.queue
 where n.queue = $1
