-- The sequences that columns of tables draw from: identity columns' own, those that are OWNED BY a column, and of a column that has neither
-- the one that its default names.
-- $1: oids of the tables
with owned as (
select d.refobjid as tab, d.refobjsubid as num, d.objid as seq
  from pg_catalog.pg_depend d
 where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
   and d.deptype in ('a', 'i') and d.refobjsubid > 0 and d.objid in (select seqrelid from pg_catalog.pg_sequence)),
drawn as (
select e.adrelid as tab, e.adnum as num, d.refobjid as seq
  from pg_catalog.pg_attrdef e
  join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass and d.objid = e.oid
                             and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
 where e.adrelid = any ($1::oid[]) and d.refobjid in (select seqrelid from pg_catalog.pg_sequence)
   and not exists (select from owned o where o.tab = e.adrelid and o.num = e.adnum))
select u.tab as table, a.attname::text as column, c.oid, n.nspname::text as schema, c.relname::text as name,
       pg_catalog.has_sequence_privilege(c.oid, 'select') as may_read,
       pg_catalog.has_sequence_privilege(c.oid, 'update') as may_set,
       pg_catalog.has_schema_privilege(n.oid, 'usage') as schema_usage,
       pg_catalog.format('increment by %s minvalue %s maxvalue %s start with %s cache %s %s', s.seqincrement, s.seqmin,
                         s.seqmax, s.seqstart, s.seqcache, case when s.seqcycle then 'cycle' else 'no cycle' end) as options,
       pg_catalog.format_type(s.seqtypid, null) as type, c.relnamespace = t.relnamespace as beside,
       s.seqincrement as increment, s.seqmin as least, s.seqmax as most, s.seqcycle as cycles, u.is_owned,
       a.atttypid in ('pg_catalog.int2'::pg_catalog.regtype, 'pg_catalog.int4'::pg_catalog.regtype, 'pg_catalog.int8'::pg_catalog.regtype)
         as is_integer,
       -- The default is its next value and nothing else; and it is no other column's.
       coalesce(pg_catalog.pg_get_expr(e.adbin, e.adrelid) ~ '^nextval\(''([^'']|'''')*''::regclass\)$', a.attidentity <> '')
         and (u.is_owned or not exists (select from owned o where o.seq = u.seq)) as is_plain
  from (select tab, num, seq, true as is_owned from owned where tab = any ($1::oid[]) union select tab, num, seq, false from drawn) u
  join pg_catalog.pg_class c on c.oid = u.seq
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  join pg_catalog.pg_sequence s on s.seqrelid = c.oid
  join pg_catalog.pg_class t on t.oid = u.tab
  join pg_catalog.pg_attribute a on a.attrelid = u.tab and a.attnum = u.num
  left join pg_catalog.pg_attrdef e on e.adrelid = u.tab and e.adnum = u.num
 order by 1, 2, 3
