-- Each event of the batch at hand goes to the first of its ticks that sees it; donated_unseen.sql has refused one that none sees.
-- $1: queue, $2: the tick before the batch, $3: its last one
with taken as (delete from pg_temp.donated returning *)
insert into pgcascade_replay.donated_event
    (queue, tick, ev_id, ev_txid, ev_time, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4)
select $1, (select t.tick from pgcascade_replay.donated_tick t
             where t.queue = $1 and t.tick > $2 and t.tick <= $3 and pg_catalog.txid_visible_in_snapshot(e.ev_txid, t.snapshot)
             order by t.tick limit 1),
       ev_id, ev_txid, ev_time,
       pg_catalog.convert_from(ev_type, pg_catalog.getdatabaseencoding()),
       pg_catalog.convert_from(ev_data, pg_catalog.getdatabaseencoding()),
       pg_catalog.convert_from(ev_extra1, pg_catalog.getdatabaseencoding()),
       pg_catalog.convert_from(ev_extra2, pg_catalog.getdatabaseencoding()),
       pg_catalog.convert_from(ev_extra3, pg_catalog.getdatabaseencoding()),
       pg_catalog.convert_from(ev_extra4, pg_catalog.getdatabaseencoding())
  from taken e
