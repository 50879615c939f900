-- The triggers that capture changes of the tables into the queue, whatever their names: AFTER, without condition or list of
-- columns, and logutriga; and whether they fire for writers.
-- $1: oids of the tables, $2: the queue
select t.tgrelid as table, t.tgname::text as name,
       -- bits of tgtype, 4 insert, 8 delete, 16 update, 32 truncate
       case when t.tgtype & 1 = 1 then t.tgtype & 28 else t.tgtype & 32 end::int4 as events,
       t.tgenabled in ('O', 'A') as enabled, a.arguments[2:] as arguments
  from pg_catalog.pg_trigger t
  join pg_catalog.pg_proc p on p.oid = t.tgfoid
  join pg_catalog.pg_namespace n on n.oid = p.pronamespace
 cross join lateral (
       -- Each ends with a zero byte.
       select pg_catalog.array_agg(pg_catalog.convert_from(pg_catalog.decode(m.match[1], 'hex'), pg_catalog.getdatabaseencoding())
                                   order by m.n) as arguments
         from pg_catalog.regexp_matches(pg_catalog.encode(t.tgargs, 'hex'), '((?:(?!00)..)*)00', 'g') with ordinality m(match, n)) a
 where t.tgrelid = any ($1::oid[]) and not t.tgisinternal
   and n.nspname = 'pgq' and p.proname = 'logutriga'
   and t.tgtype & 66 = 0 and t.tgqual is null and t.tgattr = ''::pg_catalog.int2vector
   and a.arguments[1] = $2
 order by t.tgrelid, t.tgname
