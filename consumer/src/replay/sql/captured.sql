-- The tables that have triggers of their own which capture rows into a queue.
-- $1: the queue
select distinct c.oid, n.nspname::text, c.relname::text
  from pg_catalog.pg_trigger t
  join pg_catalog.pg_proc f on f.oid = t.tgfoid
  join pg_catalog.pg_namespace fn on fn.oid = f.pronamespace and fn.nspname = 'pgq'
  join pg_catalog.pg_class c on c.oid = t.tgrelid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where t.tgparentid = 0 and t.tgtype & 1 = 1
   and position(pg_catalog.convert_to($1, pg_catalog.getdatabaseencoding()) || '\x00'::bytea in t.tgargs) = 1
 order by 2, 3
