-- Sets the sequence of a column to where it stands on the old root. Replay kept it ahead of that; nothing has drawn from it for a row,
-- as the tables were closed here until now.
-- $1: schema, $2: table, $3: column, $4: value
select pg_catalog.setval(s.oid::regclass, $4)
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attname = $3
  join pg_catalog.pg_depend d on d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid = c.oid
                             and d.refobjsubid = a.attnum
                             and d.classid = 'pg_catalog.pg_class'::regclass and d.deptype in ('a', 'i')
  join pg_catalog.pg_class s on s.oid = d.objid and s.relkind = 'S'
 where n.nspname = $1 and c.relname = $2
   and pg_catalog.pg_sequence_last_value(s.oid::regclass) is distinct from $4
