-- What is below a partitioned table. Takes no locks.
-- $1: its oid
with recursive below as (
    select i.inhrelid from pg_catalog.pg_inherits i where i.inhparent = $1
     union all
    select i.inhrelid from below b join pg_catalog.pg_inherits i on i.inhparent = b.inhrelid
)
select n.nspname::text, c.relname::text
  from below b
  join pg_catalog.pg_class c on c.oid = b.inhrelid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
