-- The ticks of a batch of a leaf's journal.
-- $1: queue, $2: the tick before it, $3: the ticks
insert into pgcascade_replay.donated_tick (queue, tick, previous, tick_time, event_seq, snapshot)
select $1, t.tick, pg_catalog.lag(t.tick, 1, $2) over (order by t.tick), t.time, t.event_seq, t.snapshot
  from pg_catalog.jsonb_to_recordset($3::text::jsonb)
       as t (tick int8, time timestamptz, event_seq int8, snapshot pg_catalog.txid_snapshot)
