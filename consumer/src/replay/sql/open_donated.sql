-- The next tick that was fetched from a leaf, in place of open_batch.sql.
-- $1: queue, $2: consumer, $3: whether the query for the events is wanted
select case when $3 then r.rows end as events, r.rows, t.snapshot::text as snapshot, t.tick_time::text as tick_time, t.event_seq, 0::int8 as events_about,
       extract(epoch from pg_catalog.clock_timestamp() - t.tick_time)::float8 as lag_seconds,
       l.tick - t.tick as lag_ticks, l.event_seq - t.event_seq as lag_events
  from pgcascade_replay.position p
 cross join lateral (select x.* from pgcascade_replay.donated_tick x
                      where x.queue = p.queue and x.tick > p.tick order by x.tick limit 1) t
 cross join lateral (select x.tick, x.event_seq from pgcascade_replay.donated_tick x
                      where x.queue = t.queue order by x.tick desc limit 1) l
 cross join lateral (
           select pg_catalog.format('select ev_id, ev_txid, ev_time, null::int4 as ev_retry, ev_type, ev_data, ev_extra1, ev_extra2,
                                            ev_extra3, ev_extra4
                                       from pgcascade_replay.donated_event where queue = %L and tick = %s', t.queue, t.tick) as rows) r
 where p.queue = $1 and p.consumer = $2
