-- The named tables that exist, and what the role may do with them.
-- $1, $2: schemas and names, in pairs
select c.oid, n.nspname::text as schema, c.relname::text as name, c.relkind::text as kind,
       case when c.relkind = 'p' then pg_catalog.pg_get_partkeydef(c.oid) end as part_key,
       -- A column that a partitioned table's key uses depends on that table.
       array(select distinct a.attname::text
               from pg_catalog.pg_partition_tree(case when c.relkind = 'p' then c.oid end) p
               join pg_catalog.pg_depend d on d.objid = p.relid and d.refobjid = p.relid
                and d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refclassid = d.classid
                and d.objsubid > 0 and d.refobjsubid = 0 and d.deptype = 'i'
               join pg_catalog.pg_attribute a on a.attrelid = p.relid and a.attnum = d.objsubid) as part_columns,
       c.relhassubclass as has_children,
       c.reltuples::float8 as rows, case c.relkind
         when 'p' then (select coalesce(pg_catalog.sum(pg_catalog.pg_relation_size(p.relid)), 0)
                          from pg_catalog.pg_partition_tree(c.oid) p where p.isleaf)
         else pg_catalog.pg_relation_size(c.oid)
       end::int8 as bytes,
       pg_catalog.row_security_active(c.oid) as row_security,
       -- Also those of foreign keys that somebody enforces during replay.
       exists (select from pg_catalog.pg_trigger t
                where (t.tgrelid = c.oid or t.tgrelid in (select p.relid from pg_catalog.pg_partition_tree(c.oid) p))
                  and t.tgenabled in ('R', 'A')) as fires_triggers,
       -- A partition has a constraint between rows that the table above it does not have.
       exists (select from pg_catalog.pg_partition_tree(case when c.relkind = 'p' then c.oid end) p
                 join pg_catalog.pg_index i on i.indrelid = p.relid and (i.indisunique or i.indisexclusion)
                where p.level > 0
                  and not exists (select from pg_catalog.pg_inherits h where h.inhrelid = i.indexrelid)) as constrains_below,
       array(select p.privilege
               from pg_catalog.unnest('{select,insert,update,delete,truncate,trigger}'::text[]) p(privilege)
              where pg_catalog.has_table_privilege(c.oid, p.privilege)) as privileges,
       pg_catalog.has_schema_privilege(n.oid, 'usage') as schema_usage
  from unnest($1::text[], $2::text[]) w(schema, name)
  join pg_catalog.pg_namespace n on n.nspname = w.schema
  join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = w.name
 where c.relkind in ('r', 'p', 'v', 'm', 'f')
