-- The partitions of partitioned tables of the set.
-- $1: consumer, $2: queue
select s.subscriber_schema, s.subscriber_table, n.nspname::text, p.relname::text
  from pgcascade_replay.table_state s
  join pg_catalog.pg_namespace sn on sn.nspname = s.subscriber_schema
  join pg_catalog.pg_class c on c.relnamespace = sn.oid and c.relname = s.subscriber_table and c.relkind = 'p'
 cross join lateral pg_catalog.pg_partition_tree(c.oid) t
  join pg_catalog.pg_class p on p.oid = t.relid and p.oid <> c.oid
  join pg_catalog.pg_namespace n on n.oid = p.relnamespace
 where s.consumer = $1 and s.queue = $2
