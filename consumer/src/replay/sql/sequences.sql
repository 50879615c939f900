-- The sequences that belong to columns of tables: identity columns' own, and those that are OWNED BY a column.
-- $1: oids of the tables
select d.refobjid as table, a.attname::text as column, c.oid, n.nspname::text as schema, c.relname::text as name,
       pg_catalog.has_sequence_privilege(c.oid, 'select') as may_read,
       pg_catalog.has_sequence_privilege(c.oid, 'update') as may_set,
       pg_catalog.has_schema_privilege(n.oid, 'usage') as schema_usage,
       pg_catalog.format('increment by %s minvalue %s maxvalue %s start with %s cache %s %s', s.seqincrement, s.seqmin,
                         s.seqmax, s.seqstart, s.seqcache, case when s.seqcycle then 'cycle' else 'no cycle' end) as options,
       pg_catalog.format_type(s.seqtypid, null) as type, c.relnamespace = t.relnamespace as beside,
       s.seqincrement as increment, s.seqmin as least, s.seqmax as most, s.seqcycle as cycles
  from pg_catalog.pg_depend d
  join pg_catalog.pg_class c on c.oid = d.objid and c.relkind = 'S'
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  join pg_catalog.pg_sequence s on s.seqrelid = c.oid
  join pg_catalog.pg_class t on t.oid = d.refobjid
  join pg_catalog.pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
 where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
   and d.deptype in ('a', 'i') and d.refobjsubid > 0
   and d.refobjid = any ($1::oid[])
 order by 1, 2, 3
