-- The partitions of tables whose changes are captured into a queue here, which replay knows, then: by their names, as their triggers
-- will be those of another database.
-- $1: queue, $2: worker
insert into pgcascade_replay.partition
  (consumer, queue, provider_schema, provider_table, partition_schema, partition_table, partition_rows)
select s.consumer, s.queue, s.provider_schema, s.provider_table, n.nspname, c.relname,
       case when pg_catalog.pg_get_partition_constraintdef(c.oid) not like '%satisfies\_hash\_partition(%'
            then pg_catalog.pg_get_partition_constraintdef(c.oid) end
  from pgcascade_replay.table_state s
  join pg_catalog.pg_namespace rn on rn.nspname = s.provider_schema
  join pg_catalog.pg_class r on r.relnamespace = rn.oid and r.relname = s.provider_table and r.relkind = 'p'
 cross join lateral pg_catalog.pg_partition_tree(r.oid) t
  join pg_catalog.pg_class c on c.oid = t.relid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where s.queue = $1 and s.consumer = $2 and t.isleaf and t.level > 0
on conflict do nothing
