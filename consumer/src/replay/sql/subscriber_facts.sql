-- Who and what the subscriber is, and whether replay has been there before. One row.
select s.system_identifier::text || ':' || d.oid::text as identity,
       pg_catalog.pg_is_in_recovery() as standby,
       current_user::text as role,
       d.datname::text as database,
       pg_catalog.to_regclass('pgcascade_replay.position') is not null as installed,
       pg_catalog.to_regnamespace('pgcascade_replay') is not null as schema_exists,
       pg_catalog.has_database_privilege(d.oid, 'create') as may_create_schema
  from pg_catalog.pg_control_system() s, pg_catalog.pg_database d
 where d.datname = pg_catalog.current_database()
