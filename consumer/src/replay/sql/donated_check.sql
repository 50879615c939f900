-- What is wrong with the ticks that were fetched: they go on from the branch's tick without a gap, up to the last one that is wanted. Null:
-- nothing. What the branch has already is passed over.
-- $1: queue, $2: the branch's tick, $3: the last one
select case
           when max(t.tick) is distinct from $3 then pg_catalog.format('it ends at tick %s, and not at %s', max(t.tick), $3)
           when max(t.previous) filter (where t.tick = t.first) is distinct from $2
               then pg_catalog.format('it begins after tick %s, and not after %s', max(t.previous) filter (where t.tick = t.first), $2)
           when pg_catalog.bool_or(t.previous is distinct from t.before and t.tick <> t.first)
               then pg_catalog.format('ticks are missing before tick %s', min(t.tick) filter (where t.previous is distinct from t.before and t.tick <> t.first))
       end
  from (select d.tick, d.previous, pg_catalog.lag(d.tick) over (order by d.tick) as before, min(d.tick) over () as first
          from pgcascade_replay.donated_tick d
         where d.queue = $1 and d.tick > $2) t
