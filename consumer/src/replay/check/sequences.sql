-- The sequences that columns of tables own, and where they stand. Null: not drawn from, or not for us to see.
-- $1: oids of the tables
select a.attrelid as table, a.attname::text as column, s.schemaname::text as schema, s.sequencename::text as name, s.last_value
  from pg_catalog.pg_depend d
  join pg_catalog.pg_class c on c.oid = d.objid and c.relkind = 'S'
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  join pg_catalog.pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
  join pg_catalog.pg_sequences s on s.schemaname = n.nspname and s.sequencename = c.relname and s.increment_by > 0
 where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
   and d.deptype in ('a', 'i') and d.refobjid = any ($1::oid[])
 order by 1, 2
