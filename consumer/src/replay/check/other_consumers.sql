-- Tables that another consumer fills, too.
-- $1: consumer, $2: queue
select o.subscriber_schema, o.subscriber_table, o.consumer, o.queue
  from pgcascade_replay.table_state o
 where (o.consumer, o.queue) <> ($1, $2)
 order by 1, 2, 3, 4
