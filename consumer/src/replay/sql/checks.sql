-- The CHECK constraints of tables that depend on nothing but what every server has and their columns' types, and that all rows fulfil.
-- $1: oids of the tables
select c.conrelid as table, c.conname::text as name, pg_catalog.pg_get_constraintdef(c.oid) as definition,
       array(select a.attname::text from pg_catalog.pg_attribute a
              where a.attrelid = c.conrelid and a.attnum = any (c.conkey)) as columns
  from pg_catalog.pg_constraint c
 where c.conrelid = any ($1::oid[]) and c.contype = 'c' and c.convalidated
   and not exists (select from pg_catalog.pg_depend p
                    where p.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass and p.objid = c.oid
                      and not (p.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and p.refobjid = c.conrelid)
                      and not (p.refclassid = 'pg_catalog.pg_type'::pg_catalog.regclass and exists (
                               select from pg_catalog.pg_attribute a join pg_catalog.pg_type t on t.oid = a.atttypid
                                where a.attrelid = c.conrelid and a.attnum = any (c.conkey) and p.refobjid in (t.oid, t.typelem))))
 order by c.conrelid, c.conname
