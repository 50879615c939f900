-- Settings of roles and of this database that keep changes from being captured, or from being captured as they should. The
-- role that asks is left out: what replay itself writes there is not to be captured.
select r.rolname::text as role, d.datname::text as database, s.name, s.value
  from pg_catalog.pg_db_role_setting o
  left join pg_catalog.pg_roles r on r.oid = o.setrole
  left join pg_catalog.pg_database d on d.oid = o.setdatabase
 cross join pg_catalog.unnest(o.setconfig) u(setting)
 cross join lateral (select split_part(u.setting, '=', 1), lower(split_part(u.setting, '=', 2))) s(name, value)
 where (o.setdatabase = 0 or d.datname = pg_catalog.current_database())
   and (o.setrole = 0 or r.rolname <> current_user)
   and (s.name = 'session_replication_role' and s.value in ('replica', 'local')
        or s.name = 'pgcascade.fixed_output' and s.value in ('off', 'false', 'no', '0', 'f', 'n'))
 order by 1 nulls first, 2 nulls first, 3
