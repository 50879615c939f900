-- Drops the oldest batches of a journal, so that what is left has not more than so many bytes; the newest one stays, however large it is, since
-- without it the journal would give nothing. Returns the last tick that was dropped.
-- $1: queue, $2: bytes
with size as (
    select j.tick, (select coalesce(sum(pg_catalog.octet_length(p.content)), 0) from pgcascade_replay.journal_part p
                     where p.queue = j.queue and p.tick = j.tick)
                   + 256 + pg_catalog.octet_length(j.ticks::text) as bytes
      from pgcascade_replay.journal j
     where j.queue = $1
), kept as (
    select tick, sum(bytes) over (order by tick desc) as bytes, max(tick) over () as newest from size
), dropped as (
    delete from pgcascade_replay.journal where queue = $1 and tick <= (select max(tick) from kept where bytes > $2::int8 and tick < newest)
    returning tick
), parts as (
    delete from pgcascade_replay.journal_part p using dropped d where p.queue = $1 and p.tick = d.tick
)
select max(tick) from dropped
