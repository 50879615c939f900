-- What is below partitioned tables, in short. Takes no locks on them. The clones of triggers are part of it: a partition that
-- was taken out and put back has other ones.
-- $1: oids of the partitioned tables
with recursive below as (
    select i.inhrelid from pg_catalog.pg_inherits i where i.inhparent = any ($1::oid[])
     union all
    select i.inhrelid from below b join pg_catalog.pg_inherits i on i.inhparent = b.inhrelid
)
select pg_catalog.md5(pg_catalog.string_agg(pg_catalog.concat_ws(' ', c.oid, n.nspname, c.relname, t.clones), ',' order by c.oid))
  from below b
  join pg_catalog.pg_class c on c.oid = b.inhrelid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 cross join lateral (
       select pg_catalog.string_agg(t.oid::text, ' ' order by t.oid) as clones
         from pg_catalog.pg_trigger t where t.tgrelid = c.oid and t.tgparentid <> 0) t
