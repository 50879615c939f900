-- The next tick that was fetched from a leaf, in place of next_tick.sql.
-- $1: queue, $2: consumer, $3: not used
select t.tick as batch_id, t.previous as prev_tick_id, t.tick as cur_tick_id
  from pgcascade_replay.position p
  join pgcascade_replay.donated_tick t on t.queue = p.queue and t.tick > p.tick
 where p.queue = $1 and p.consumer = $2 and $3::int4 is not null
 order by t.tick limit 1
