-- Who and what the provider is. One row, whatever is installed there.
select s.system_identifier::text || ':' || d.oid::text as identity,
       pg_catalog.pg_is_in_recovery() as standby,
       (select s.reset_val = 'on' from pg_catalog.pg_settings s where s.name = 'default_transaction_read_only') as read_only,
       pg_catalog.getdatabaseencoding()::text as encoding,
       current_user::text as role,
       d.datname::text as database,
       (select e.extversion from pg_catalog.pg_extension e where e.extname = 'pgcascade') as version,
       pg_catalog.to_regclass('pgq_node.node_info') is not null as pgq,
       coalesce(pg_catalog.has_function_privilege(
         pg_catalog.to_regprocedure('pgq.register_consumer(text,text)')::oid, 'execute'), false) as may_read
  from pg_catalog.pg_control_system() s, pg_catalog.pg_database d
 where d.datname = pg_catalog.current_database()
