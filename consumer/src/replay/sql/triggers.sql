-- Which changes of the tables are captured into the queue already, by whatever trigger: bits of tgtype, 4 insert, 8
-- delete, 16 update, 32 truncate. A trigger counts if it is enabled, AFTER, without condition or list of columns, and
-- logutriga.
-- $1: oids of the tables, $2: the queue
select t.tgrelid as table,
       pg_catalog.bit_or(case when t.tgtype & 1 = 1 then t.tgtype & 28 else t.tgtype & 32 end)::int4 as captured
  from pg_catalog.pg_trigger t
  join pg_catalog.pg_proc p on p.oid = t.tgfoid
  join pg_catalog.pg_namespace n on n.oid = p.pronamespace
 where t.tgrelid = any ($1::oid[]) and not t.tgisinternal
   and n.nspname = 'pgq' and p.proname = 'logutriga'
   and t.tgenabled in ('O', 'A') and t.tgtype & 66 = 0 and t.tgqual is null and t.tgattr = ''::pg_catalog.int2vector
   and position(pg_catalog.convert_to($2, pg_catalog.getdatabaseencoding()) || '\x00'::bytea in t.tgargs) = 1
 group by 1
