-- Who and what the subscriber is, and whether replay has been there before. One row.
select s.system_identifier::text || ':' || d.oid::text as identity,
       pg_catalog.pg_is_in_recovery() as standby,
       (select s.reset_val = 'on' from pg_catalog.pg_settings s where s.name = 'default_transaction_read_only') as read_only,
       current_user::text as role,
       d.datname::text as database,
       pg_catalog.current_setting('server_version_num')::int4 as server,
       n.oid is not null as schema_exists,
       exists (select from pg_catalog.pg_class c where c.relnamespace = n.oid and c.relname = 'position') as installed,
       coalesce(pg_catalog.has_schema_privilege(n.oid, 'usage'), false)
         and exists (select from pg_catalog.pg_class c where c.relnamespace = n.oid and c.relname = 'position')
         and not exists (select from pg_catalog.pg_class c
                          cross join pg_catalog.unnest('{select,insert,update,delete}'::text[]) p(privilege)
                          where c.relnamespace = n.oid and c.relkind = 'r'
                            and not pg_catalog.has_table_privilege(c.oid, p.privilege)) as may_state,
       pg_catalog.has_database_privilege(d.oid, 'create') as may_create
  from pg_catalog.pg_control_system() s
 cross join pg_catalog.pg_database d
  left join pg_catalog.pg_namespace n on n.nspname = 'pgcascade_replay'
 where d.datname = pg_catalog.current_database()
