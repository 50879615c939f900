-- The tables whose changes are captured into a queue.
-- $1: queue
select distinct c.oid, n.nspname::text, c.relname::text
  from pg_catalog.pg_trigger g
  join pg_catalog.pg_proc p on p.oid = g.tgfoid
  join pg_catalog.pg_namespace pn on pn.oid = p.pronamespace
  join pg_catalog.pg_class c on c.oid = g.tgrelid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where not g.tgisinternal and pn.nspname = 'pgq' and p.proname in ('logutriga', 'sqltriga', 'jsontriga')
   and position(pg_catalog.convert_to($1, pg_catalog.getdatabaseencoding()) || '\x00'::bytea in g.tgargs) = 1
