-- CHECK constraints of tables.
-- $1: oids of the tables
select c.conrelid as table, c.conname::text as name, pg_catalog.pg_get_constraintdef(c.oid) as definition
  from pg_catalog.pg_constraint c
 where c.conrelid = any ($1::oid[]) and c.contype = 'c'
 order by 1, 2
