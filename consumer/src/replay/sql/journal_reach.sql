-- From where to where a leaf's journal reaches, and whether it has a tick that was made then; null: it does not have it at all. No row: there
-- is none.
-- $1: queue, $2: tick, $3: when that was made
select min(j.from_tick) as first, max(j.tick) as last,
       (select pg_catalog.bool_and(k.time is not distinct from $3::text::timestamptz)
          from (select x.from_tick as tick, x.from_time as time from pgcascade_replay.journal x where x.queue = $1
                union all
                select t.tick, t.time
                  from pgcascade_replay.journal x
                 cross join lateral pg_catalog.jsonb_to_recordset(x.ticks) as t (tick int8, time timestamptz)
                 where x.queue = $1) k
         where k.tick = $2) as same
  from pgcascade_replay.journal j
 where j.queue = $1
having count(*) > 0
