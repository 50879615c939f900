-- Everything that a --table pattern could mean, and of a partition what it is part of.
select n.nspname::text, c.relname::text, c.relkind::text,
       a.schemas, a.names
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 cross join lateral (
       select coalesce(pg_catalog.array_agg(an.nspname::text), '{}') as schemas,
              coalesce(pg_catalog.array_agg(ac.relname::text), '{}') as names
         from pg_catalog.pg_partition_ancestors(case when c.relispartition then c.oid end) p(oid)
         join pg_catalog.pg_class ac on ac.oid = p.oid and ac.oid <> c.oid
         join pg_catalog.pg_namespace an on an.oid = ac.relnamespace) a
 where c.relkind in ('r', 'p', 'v', 'm', 'f')
   and c.relpersistence <> 't'
   and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast', 'pgq', 'pgq_coop', 'pgq_ext', 'pgq_node', 'pgcascade',
                         'pgcascade_replay')
 order by 1, 2
