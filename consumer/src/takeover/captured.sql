-- The tables whose changes are captured into a queue, and which: bits of tgtype, 4 insert, 8 delete, 16 update, 32 truncate. Of a
-- partition that is captured as part of another table, that one, too.
-- $1: queue
select n.nspname::text, c.relname::text,
       pg_catalog.bit_or(case when g.tgtype & 1 = 1 then g.tgtype & 28 else g.tgtype & 32 end)::int4,
       case when pg_catalog.bool_or(g.tgparentid <> 0) then an.nspname::text end,
       case when pg_catalog.bool_or(g.tgparentid <> 0) then ac.relname::text end
  from pg_catalog.pg_trigger g
  join pg_catalog.pg_proc p on p.oid = g.tgfoid
  join pg_catalog.pg_namespace pn on pn.oid = p.pronamespace
  join pg_catalog.pg_class c on c.oid = g.tgrelid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  left join pg_catalog.pg_class ac on ac.oid = pg_catalog.pg_partition_root(c.oid)
  left join pg_catalog.pg_namespace an on an.oid = ac.relnamespace
 where g.tgenabled in ('O', 'A')
   and pn.nspname = 'pgq' and p.proname in ('logutriga', 'sqltriga', 'jsontriga')
   and position(pg_catalog.convert_to($1, pg_catalog.getdatabaseencoding()) || '\x00'::bytea in g.tgargs) = 1
 group by n.nspname, c.relname, an.nspname, ac.relname
