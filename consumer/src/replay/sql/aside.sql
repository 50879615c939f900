-- The indexes of a table that only readers need, and that a statement makes again just as they are; if they are the role's. Those with
-- a mark on them (replica identity, CLUSTER, statistics targets, a tablespace), and those that something depends on, are not.
-- $1: oid of the table
select n.nspname::text as schema, x.relname::text as name,
       pg_catalog.pg_get_indexdef(x.oid)
         || coalesce(pg_catalog.format('; comment on index %I.%I is %L', n.nspname, x.relname,
                                       pg_catalog.obj_description(x.oid, 'pg_class')), '') as definition
  from pg_catalog.pg_index i
  join pg_catalog.pg_class x on x.oid = i.indexrelid
  join pg_catalog.pg_namespace n on n.oid = x.relnamespace
  join pg_catalog.pg_class c on c.oid = i.indrelid
 where i.indrelid = $1 and c.relkind = 'r' and not c.relispartition and pg_catalog.pg_has_role(c.relowner, 'usage')
   and not i.indisunique and not i.indisexclusion and not i.indisreplident and not i.indisclustered
   and i.indisvalid and i.indisready and x.reltablespace = 0
   and not exists (select from pg_catalog.pg_attribute a where a.attrelid = x.oid and a.attstattarget >= 0)
   and not exists (select from pg_catalog.pg_depend d
                    where d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid = x.oid
                       or d.classid = 'pg_catalog.pg_class'::regclass and d.objid = x.oid and d.deptype in ('e', 'x'))
 order by 1, 2
