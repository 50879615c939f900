-- What is below partitioned tables, from the top down. Run on either end.
-- $1: oids of the partitioned tables, $2: the queue
select r.oid as root, c.oid, n.nspname::text as schema, c.relname::text as name, c.relkind::text as kind, t.isleaf as is_leaf,
       pn.nspname::text as parent_schema, p.relname::text as parent_name,
       pg_catalog.pg_get_expr(c.relpartbound, c.oid) as bound,
       case when c.relkind = 'p' then pg_catalog.pg_get_partkeydef(c.oid) end as part_key,
       -- The rows that belong into it, as a condition over the columns; it speaks of an oid where a hash decides.
       pg_catalog.pg_get_partition_constraintdef(c.oid) as rows,
       -- Where in the tree it is: the same text on two servers if the same rows belong into it.
       (select pg_catalog.string_agg(pg_catalog.pg_get_expr(a.relpartbound, a.oid) || ' by '
                                       || pg_catalog.pg_get_partkeydef(i.inhparent), ' in ' order by u.level)
          from pg_catalog.pg_partition_ancestors(c.oid) with ordinality u(oid, level)
          join pg_catalog.pg_class a on a.oid = u.oid
          join pg_catalog.pg_inherits i on i.inhrelid = a.oid
         where u.level <= t.level) as place,
       -- The trigger that came from the table above, the command that made it, and whether that transaction made the table, too.
       -- (The row of a system column is never changed.)
       (g.clones)[1] as clone, g.disabled as clone_disabled, g.made_by as clone_made_by, g.made_in as clone_made_in,
       g.made_by = y.xmin::text as born_here,
       -- A capture trigger that is its own: with the other's clone each change would be two events.
       o.own_trigger, coalesce(o.captures_truncate, false) as captures_truncate,
       -- TRUNCATE gives a table a new file.
       pg_catalog.pg_relation_filenode(c.oid) is distinct from c.oid as rewritten,
       pg_catalog.has_table_privilege(c.oid, 'select') and pg_catalog.has_schema_privilege(n.oid, 'usage') as may_read,
       pg_catalog.has_table_privilege(c.oid, 'trigger') and pg_catalog.has_schema_privilege(n.oid, 'usage') as may_trigger,
       pg_catalog.has_table_privilege(c.oid, 'truncate') and pg_catalog.has_schema_privilege(n.oid, 'usage') as may_truncate
  from pg_catalog.unnest($1::oid[]) r(oid)
 cross join lateral pg_catalog.pg_partition_tree(r.oid) t
  join pg_catalog.pg_class c on c.oid = t.relid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  join pg_catalog.pg_class p on p.oid = t.parentrelid
  join pg_catalog.pg_namespace pn on pn.oid = p.relnamespace
  join pg_catalog.pg_attribute y on y.attrelid = c.oid and y.attnum = -6
 cross join lateral (
       select pg_catalog.array_agg(x.oid order by x.oid desc) as clones,
              pg_catalog.min(x.tgname::text) filter (where x.tgenabled not in ('O', 'A')) as disabled,
              (pg_catalog.array_agg(x.xmin::text order by x.oid desc))[1] as made_by,
              (pg_catalog.array_agg(x.cmin::text::int8 order by x.oid desc))[1] as made_in
         from pg_catalog.pg_trigger x
         join pg_catalog.pg_proc f on f.oid = x.tgfoid and f.proname = 'logutriga'
         join pg_catalog.pg_namespace fn on fn.oid = f.pronamespace and fn.nspname = 'pgq'
        where x.tgrelid = c.oid and x.tgparentid <> 0
          and position(pg_catalog.convert_to($2, pg_catalog.getdatabaseencoding()) || '\x00'::bytea in x.tgargs) = 1) g
 cross join lateral (
       select pg_catalog.min(x.tgname::text) filter (where x.tgtype & 1 = 1) as own_trigger,
              pg_catalog.bool_or(x.tgtype & 33 = 32 and f.proname = 'logutriga') as captures_truncate
         from pg_catalog.pg_trigger x
         join pg_catalog.pg_proc f on f.oid = x.tgfoid and f.proname in ('logutriga', 'sqltriga', 'jsontriga')
         join pg_catalog.pg_namespace fn on fn.oid = f.pronamespace and fn.nspname = 'pgq'
        where x.tgrelid = c.oid and x.tgparentid = 0 and x.tgenabled in ('O', 'A')
          and position(pg_catalog.convert_to($2, pg_catalog.getdatabaseencoding()) || '\x00'::bytea in x.tgargs) = 1) o
 where t.level > 0
 order by r.oid, t.level, n.nspname, c.relname
