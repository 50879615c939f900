-- A whole end: its version and its encoding.
select pg_catalog.current_setting('server_version_num')::int4 as server,
       pg_catalog.current_setting('server_version') as version,
       pg_catalog.getdatabaseencoding()::text as encoding,
       pg_catalog.current_database()::text as database,
       e.installed_version, e.default_version
  from (values (1)) one(row)
  left join pg_catalog.pg_available_extensions e on e.name = 'pgcascade'
