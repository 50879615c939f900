-- The partitioned tables among those that captured_tables.sql has recorded, as far as their schemas may be used.
-- $1: queue, $2: worker
select n.nspname::text, r.relname::text
  from pgcascade_replay.table_state s
  join pg_catalog.pg_namespace n on n.nspname = s.provider_schema
  join pg_catalog.pg_class r on r.relnamespace = n.oid and r.relname = s.provider_table and r.relkind = 'p'
 where s.queue = $1 and s.consumer = $2 and pg_catalog.has_schema_privilege(n.oid, 'usage')
 order by r.oid
