-- Tables whose copy was begun from another node than $3: their rows are not all what the position says (cascade/in_copy.sql).
-- $1: worker, $2: queue
select t.provider_schema, t.provider_table, t.copied_from
  from pgcascade_replay.table_state t
 where t.consumer = $1 and t.queue = $2 and t.copied_from <> $3
   and (t.state in ('in-copy', 'catching-up')
        or exists (select from pgcascade_replay.held_event h
                    where (h.consumer, h.queue, h.provider_schema, h.provider_table)
                        = (t.consumer, t.queue, t.provider_schema, t.provider_table)))
 order by 1, 2
