-- Moves the sequence of a column beyond the values that stand in its table, in the direction in which it goes, and never back.
-- $1: schema, $2: table, $3: column, $4: the highest value, $5: the lowest one; null: there is no row
select pg_catalog.setval(s.oid::regclass, v.value)
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attname = $3
  join pg_catalog.pg_depend d on d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid = c.oid
                             and d.refobjsubid = a.attnum
                             and d.classid = 'pg_catalog.pg_class'::regclass and d.deptype in ('a', 'i')
  join pg_catalog.pg_class s on s.oid = d.objid and s.relkind = 'S'
  join pg_catalog.pg_sequence q on q.seqrelid = s.oid
 cross join lateral (select case when q.seqincrement > 0 then $4::int8 else $5::int8 end as value) v
 where n.nspname = $1 and c.relname = $2 and v.value between q.seqmin and q.seqmax
   and coalesce(case when q.seqincrement > 0 then pg_catalog.pg_sequence_last_value(s.oid::regclass) < v.value
                     else pg_catalog.pg_sequence_last_value(s.oid::regclass) > v.value end, true)
