-- What a leaf knows of epochs. Versions before 14 have no such columns.
-- $1: queue
select coalesce((pg_catalog.to_jsonb(n) ->> 'epoch')::int8, 1) as epoch, null::bool as open, null::text as fence_reason,
       p.key as promised_to, p.value::int8 as promised_epoch, p.key is not null as frozen
  from pgcascade_replay.node n
  left join lateral (select x.key, x.value
                       from pg_catalog.jsonb_each_text(coalesce(pg_catalog.to_jsonb(n) -> 'promises', '{}')) x
                      order by x.value::int8 desc limit 1) p on true
 where n.queue = $1
