--
-- The interface, word for word: functions with argument names and result columns, tables with types and defaults.
-- Clients read result columns by position and call arguments by name, so nothing here changes unless on purpose.
--
\pset format unaligned
\pset tuples_only on
select p.oid::regprocedure || ' (' || pg_get_function_arguments(p.oid) || ') returns ' || pg_get_function_result(p.oid)
       || case when p.prosecdef then ' secdef' else '' end
       || case when p.proisstrict then ' strict' else '' end
       || ' ' || p.provolatile::text
  from pg_proc p
 where p.pronamespace in ('pgq'::regnamespace, 'pgq_coop'::regnamespace, 'pgq_ext'::regnamespace, 'pgq_node'::regnamespace)
 order by p.oid::regprocedure::text collate "C";

select c.relname || '.' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
       || case when a.attnotnull then ' not null' else '' end
       || coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), '')
  from pg_class c
  join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
  left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
 where c.relnamespace in ('pgq'::regnamespace, 'pgq_coop'::regnamespace, 'pgq_ext'::regnamespace, 'pgq_node'::regnamespace)
   and c.relkind = 'r'
 order by c.relname collate "C", a.attnum;

-- PostgreSQL 18 lists NOT NULL here as well.
select conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid)
  from pg_constraint
 where connamespace in ('pgq'::regnamespace, 'pgq_coop'::regnamespace, 'pgq_ext'::regnamespace, 'pgq_node'::regnamespace)
   and contype <> 'n'
 order by conrelid::regclass::text collate "C", conname collate "C";

select pg_get_indexdef(indexrelid)
  from pg_index join pg_class c on c.oid = indexrelid
 where c.relnamespace in ('pgq'::regnamespace, 'pgq_coop'::regnamespace, 'pgq_ext'::regnamespace, 'pgq_node'::regnamespace)
 order by c.relname collate "C";

select sequencename, data_type, start_value, increment_by, cycle, cache_size
  from pg_sequences where schemaname = 'pgq' order by sequencename collate "C";
