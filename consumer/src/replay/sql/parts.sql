-- Where the rows of a partitioned table are, and whether the role sees them all by asking there. In the transaction that has the table
-- locked: what is empty then has no row that its snapshot sees.
-- $1: oid of the table
select c.oid, i.identity || ':' || c.oid as place, n.nspname::text as schema, c.relname::text as name,
       pg_catalog.pg_relation_size(c.oid) as bytes,
       pg_catalog.has_table_privilege(c.oid, 'select') and pg_catalog.has_schema_privilege(n.oid, 'usage')
         and not pg_catalog.row_security_active(c.oid) as readable,
       -- Of any of them.
       pg_catalog.bool_or(pg_catalog.pg_get_expr(a.relpartbound, a.oid) = 'DEFAULT') as in_default
  from pg_catalog.pg_partition_tree($1::oid::regclass) t
  join pg_catalog.pg_class c on c.oid = t.relid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 cross join (select s.system_identifier || ':' || d.oid from pg_catalog.pg_control_system() s, pg_catalog.pg_database d
              where d.datname = pg_catalog.current_database()) i(identity)
 cross join lateral pg_catalog.pg_partition_ancestors(c.oid) u(oid)
  join pg_catalog.pg_class a on a.oid = u.oid
 where t.isleaf and t.level > 0
 group by c.oid, n.oid, i.identity
 order by n.nspname, c.relname
