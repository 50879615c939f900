-- Tables whose changes are captured into a queue here are in step with it.
-- $1: queue, $2: worker
insert into pgcascade_replay.table_state
  (consumer, queue, provider_schema, provider_table, subscriber_schema, subscriber_table, state)
select distinct $2::text, $1::text, n.nspname, c.relname, n.nspname, c.relname, 'ok'
  from pg_catalog.pg_trigger t
  join pg_catalog.pg_proc p on p.oid = t.tgfoid
  join pg_catalog.pg_namespace pn on pn.oid = p.pronamespace
  join pg_catalog.pg_class c on c.oid = t.tgrelid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where not t.tgisinternal and t.tgparentid = 0 and pn.nspname = 'pgq' and p.proname = 'logutriga' and t.tgtype & 1 = 1
   and position(pg_catalog.convert_to($1, pg_catalog.getdatabaseencoding()) || '\x00'::bytea in t.tgargs) = 1
on conflict do nothing
