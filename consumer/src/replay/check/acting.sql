-- Triggers and rules of tables that act in replica mode, too.
-- $1: oids of the tables
select t.tgrelid as table, 'trigger' as kind, t.tgname::text as name
  from pg_catalog.pg_trigger t
 where t.tgrelid = any ($1::oid[]) and not t.tgisinternal and t.tgenabled in ('A', 'R')
union all
select r.ev_class, 'rule', r.rulename::text
  from pg_catalog.pg_rewrite r
 where r.ev_class = any ($1::oid[]) and r.ev_type <> '1' and r.ev_enabled in ('A', 'R')
 order by 1, 2, 3
