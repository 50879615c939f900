-- The named tables that exist, and what the role may do with them.
-- $1, $2: schemas and names, in pairs
select c.oid, n.nspname::text as schema, c.relname::text as name, c.relkind::text as kind, c.relhassubclass as has_children,
       c.reltuples::float8 as rows, pg_catalog.pg_relation_size(c.oid) as bytes,
       pg_catalog.row_security_active(c.oid) as row_security,
       -- Also those of foreign keys that somebody enforces during replay.
       exists (select from pg_catalog.pg_trigger t where t.tgrelid = c.oid and t.tgenabled in ('R', 'A')) as fires_triggers,
       array(select p.privilege
               from pg_catalog.unnest('{select,insert,update,delete,truncate,trigger}'::text[]) p(privilege)
              where pg_catalog.has_table_privilege(c.oid, p.privilege)) as privileges,
       pg_catalog.has_schema_privilege(n.oid, 'usage') as schema_usage
  from unnest($1::text[], $2::text[]) w(schema, name)
  join pg_catalog.pg_namespace n on n.nspname = w.schema
  join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = w.name
 where c.relkind in ('r', 'p', 'v', 'm', 'f')
