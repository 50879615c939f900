-- Everything that a --table pattern could mean.
select n.nspname::text, c.relname::text, c.relkind::text
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('r', 'p', 'v', 'm', 'f')
   and c.relpersistence <> 't'
   and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast', 'pgq', 'pgq_coop', 'pgq_ext', 'pgq_node', 'pgcascade',
                         'pgcascade_replay')
 order by 1, 2
