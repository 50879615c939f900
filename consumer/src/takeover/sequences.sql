-- The sequences that belong to columns of captured tables, where they stand (null: nothing was drawn from it), and whether the column
-- is an integer.
-- $1: queue
select distinct n.nspname::text, c.relname::text, a.attname::text, pg_catalog.pg_sequence_last_value(s.oid::regclass),
       a.atttypid in ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)
  from pg_catalog.pg_trigger g
  join pg_catalog.pg_proc p on p.oid = g.tgfoid
  join pg_catalog.pg_namespace pn on pn.oid = p.pronamespace
  join pg_catalog.pg_class c on c.oid = g.tgrelid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  join pg_catalog.pg_depend d on d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid = c.oid
                             and d.classid = 'pg_catalog.pg_class'::regclass and d.deptype in ('a', 'i')
  join pg_catalog.pg_class s on s.oid = d.objid and s.relkind = 'S'
  join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = d.refobjsubid
 where not g.tgisinternal and pn.nspname = 'pgq' and p.proname in ('logutriga', 'sqltriga', 'jsontriga')
   and position(pg_catalog.convert_to($1, pg_catalog.getdatabaseencoding()) || '\x00'::bytea in g.tgargs) = 1
 order by 1, 2, 3
