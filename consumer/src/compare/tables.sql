-- The tables that are replayed, each with its name on both ends, and which part of it if it is not all. By way of JSON, as a
-- schema that an older replay made does not have all of these columns.
-- $1: queue, $2: consumer
select t.provider_schema, t.provider_table, t.subscriber_schema, t.subscriber_table,
       j.t ->> 'row_filter' as row_filter,
       array(select pg_catalog.jsonb_array_elements_text(nullif(j.t -> 'only_columns', 'null'))) as only_columns,
       array(select pg_catalog.jsonb_array_elements_text(nullif(j.t -> 'except_columns', 'null'))) as except_columns
  from pgcascade_replay.table_state t
 cross join lateral (select pg_catalog.to_jsonb(t) as t) j
 where t.queue = $1 and t.consumer = $2
 order by 1, 2
