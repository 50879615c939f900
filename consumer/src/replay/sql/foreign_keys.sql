-- The foreign keys of tables, and those that only something below them has. With search_path ''.
-- $1: oids of the tables
select r.top, rn.nspname::text as relation_schema, rt.relname::text as relation_table, c.conname::text as name,
       k.columns, pn.nspname::text as parent_schema, pt.relname::text as parent_table, k.parent_columns,
       d.referring,
       pg_catalog.regexp_replace(pg_catalog.substr(d.definition, pg_catalog.length(
         d.referring || ' REFERENCES ' || pg_catalog.format('%I.%I', pn.nspname, pt.relname)) + 1), ' NOT VALID$', '') as referred,
       c.convalidated as is_valid
  from (select top, top as oid from pg_catalog.unnest($1::oid[]) top
         union
        select top, below.relid from pg_catalog.unnest($1::oid[]) top cross join lateral pg_catalog.pg_partition_tree(top) below) r
  join pg_catalog.pg_constraint c on c.conrelid = r.oid and c.contype = 'f'
  join pg_catalog.pg_class rt on rt.oid = c.conrelid
  join pg_catalog.pg_namespace rn on rn.oid = rt.relnamespace
  join pg_catalog.pg_class pt on pt.oid = c.confrelid
  join pg_catalog.pg_namespace pn on pn.oid = pt.relnamespace
  left join pg_catalog.pg_constraint above on above.oid = c.conparentid
 cross join lateral (
       select pg_catalog.array_agg(a.attname::text order by a.attname) as columns,
              pg_catalog.array_agg(b.attname::text order by a.attname) as parent_columns
         from rows from (pg_catalog.unnest(c.conkey), pg_catalog.unnest(c.confkey)) u(own, other)
         join pg_catalog.pg_attribute a on a.attrelid = c.conrelid and a.attnum = u.own
         join pg_catalog.pg_attribute b on b.attrelid = c.confrelid and b.attnum = u.other) k
 cross join lateral (
       select definition, pg_catalog."left"(definition, pg_catalog.strpos(definition, ') REFERENCES ')) as referring
         from pg_catalog.pg_get_constraintdef(c.oid) definition) d
    -- A partitioned table that is referred to has a row for each of its partitions; these are the table's own.
 where above.conrelid is distinct from c.conrelid and (r.oid = r.top or c.conparentid = 0)
 order by 2, 3, 4
