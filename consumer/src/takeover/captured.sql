-- The tables whose changes are captured into a queue, and which: bits of tgtype, 4 insert, 8 delete, 16 update, 32 truncate.
-- $1: queue
select n.nspname::text, c.relname::text,
       pg_catalog.bit_or(case when g.tgtype & 1 = 1 then g.tgtype & 28 else g.tgtype & 32 end)::int4
  from pg_catalog.pg_trigger g
  join pg_catalog.pg_proc p on p.oid = g.tgfoid
  join pg_catalog.pg_namespace pn on pn.oid = p.pronamespace
  join pg_catalog.pg_class c on c.oid = g.tgrelid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where not g.tgisinternal and g.tgenabled in ('O', 'A')
   and pn.nspname = 'pgq' and p.proname in ('logutriga', 'sqltriga', 'jsontriga')
   and position(pg_catalog.convert_to($1, pg_catalog.getdatabaseencoding()) || '\x00'::bytea in g.tgargs) = 1
 group by 1, 2
