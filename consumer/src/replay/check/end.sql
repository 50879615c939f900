-- A whole end: its version, its encoding, and whether one may write there.
select pg_catalog.current_setting('server_version_num')::int4 as server,
       pg_catalog.current_setting('server_version') as version,
       pg_catalog.getdatabaseencoding()::text as encoding,
       (select s.reset_val = 'on' from pg_catalog.pg_settings s where s.name = 'default_transaction_read_only') as read_only,
       current_user::text as role,
       pg_catalog.current_database()::text as database,
       e.installed_version, e.default_version
  from (values (1)) one(row)
  left join pg_catalog.pg_available_extensions e on e.name = 'pgcascade'
