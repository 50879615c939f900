-- The statements that drop the capture triggers of a queue.
-- $1: queue
select pg_catalog.format('drop trigger %I on %I.%I', t.tgname, n.nspname, c.relname)
  from pg_catalog.pg_trigger t
  join pg_catalog.pg_proc p on p.oid = t.tgfoid
  join pg_catalog.pg_namespace pn on pn.oid = p.pronamespace
  join pg_catalog.pg_class c on c.oid = t.tgrelid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where not t.tgisinternal and t.tgparentid = 0 and pn.nspname = 'pgq' and p.proname in ('logutriga', 'sqltriga', 'jsontriga')
   and position(pg_catalog.convert_to($1, pg_catalog.getdatabaseencoding()) || '\x00'::bytea in t.tgargs) = 1
 order by 1
