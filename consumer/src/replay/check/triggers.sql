-- All triggers of the tables, with what decides whether and how they capture.
-- $1: oids of the tables, $2: the queue
select t.tgrelid as table, t.tgname::text as name, t.tgenabled::text as enabled, t.tgtype::int4 as type,
       t.tgqual is not null as conditional, t.tgattr <> ''::pg_catalog.int2vector as of_columns,
       n.nspname || '.' || p.proname as function,
       position(pg_catalog.convert_to($2, pg_catalog.getdatabaseencoding()) || '\x00'::bytea in t.tgargs) = 1 as of_queue,
       t.tgargs as arguments
  from pg_catalog.pg_trigger t
  join pg_catalog.pg_proc p on p.oid = t.tgfoid
  join pg_catalog.pg_namespace n on n.oid = p.pronamespace
 where t.tgrelid = any ($1::oid[]) and not t.tgisinternal
 order by t.tgrelid, t.tgname
