-- Of the columns of tables, what says whether a value of one end can be stored at the other.
-- $1: oids of the tables
select a.attrelid as table, a.attname::text as name, t.typcategory::text as category,
       pg_catalog.format_type(t.oid, null) as type,
       -- The labels of an enum.
       (select pg_catalog.array_agg(e.enumlabel::text order by e.enumsortorder) from pg_catalog.pg_enum e where e.enumtypid = t.oid)
         as labels
  from pg_catalog.pg_attribute a
  join pg_catalog.pg_type t on t.oid = a.atttypid
 where a.attrelid = any ($1::oid[]) and a.attnum > 0 and not a.attisdropped
