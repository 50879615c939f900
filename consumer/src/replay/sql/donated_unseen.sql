-- An event of the batch at hand that none of its ticks sees, if there is one. A tick sees all that the one before sees, so the last one is asked.
-- $1: queue, $2: the batch's last tick
select min(e.ev_id)
  from pg_temp.donated e
 where not exists (select from pgcascade_replay.donated_tick t
                    where t.queue = $1 and t.tick = $2 and pg_catalog.txid_visible_in_snapshot(e.ev_txid, t.snapshot))
