-- Tables whose rows are not all what the position says: to be copied, copied a moment ago, or with events kept for later.
-- Versions before 15 have no copied_from.
-- $1: worker, $2: queue
select t.provider_schema, t.provider_table, pg_catalog.format('%I.%I', t.provider_schema, t.provider_table),
       pg_catalog.to_jsonb(t) ->> 'copied_from'
  from pgcascade_replay.table_state t
 where t.consumer = $1 and t.queue = $2
   and (t.state in ('in-copy', 'catching-up')
        or exists (select from pgcascade_replay.held_event h
                    where (h.consumer, h.queue, h.provider_schema, h.provider_table)
                        = (t.consumer, t.queue, t.provider_schema, t.provider_table)))
 order by 1, 2
