-- The names of tables and which capture triggers they have of their own, in short. Takes no locks on them. Of any queue: it
-- is looked at again then.
-- $1: oids of the tables
select pg_catalog.md5(pg_catalog.string_agg(pg_catalog.concat_ws(' ', c.oid, n.nspname, c.relname, t.triggers), ',' order by c.oid))
  from pg_catalog.unnest($1::oid[]) wanted(oid)
  join pg_catalog.pg_class c on c.oid = wanted.oid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 cross join lateral (
       select pg_catalog.string_agg(pg_catalog.concat_ws(' ', t.oid, t.tgenabled), ' ' order by t.oid) as triggers
         from pg_catalog.pg_trigger t
         join pg_catalog.pg_proc p on p.oid = t.tgfoid
        where t.tgrelid = c.oid and not t.tgisinternal and p.proname = 'logutriga') t
