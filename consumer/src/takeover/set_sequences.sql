-- Sets the sequences of columns to where they stand on the old root. Replay kept them ahead of that; nothing has drawn from them for a
-- row, as the tables were closed here until now. In one go: nobody can write meanwhile.
-- For each of them $1: schema, $2: table, $3: column, $4: value
select pg_catalog.setval(s.oid::regclass, wanted.value)
  from rows from (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[]), pg_catalog.unnest($4::int8[]))
       as wanted (schema, "table", "column", value)
  join pg_catalog.pg_namespace n on n.nspname = wanted.schema
  join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = wanted."table"
  join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attname = wanted."column"
  join pg_catalog.pg_depend d on d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid = c.oid
                             and d.refobjsubid = a.attnum
                             and d.classid = 'pg_catalog.pg_class'::regclass and d.deptype in ('a', 'i')
  join pg_catalog.pg_class s on s.oid = d.objid and s.relkind = 'S'
 where pg_catalog.pg_sequence_last_value(s.oid::regclass) is distinct from wanted.value
