-- Foreign keys from or to the tables.
-- $1: oids of the tables
select c.conname::text as name, c.conrelid as child, c.confrelid as parent,
       cn.nspname::text as child_schema, ct.relname::text as child_table,
       pn.nspname::text as parent_schema, pt.relname::text as parent_table
  from pg_catalog.pg_constraint c
  join pg_catalog.pg_class ct on ct.oid = c.conrelid
  join pg_catalog.pg_namespace cn on cn.oid = ct.relnamespace
  join pg_catalog.pg_class pt on pt.oid = c.confrelid
  join pg_catalog.pg_namespace pn on pn.oid = pt.relnamespace
 where c.contype = 'f' and c.conparentid = 0 and (c.conrelid = any ($1::oid[]) or c.confrelid = any ($1::oid[]))
 order by 4, 5, 1
