-- The indexes of tables: which of them are keys, over which columns, and with which operator a row is found by them. With search_path ''.
-- $1: oids of the tables
select i.indrelid as table, x.relname::text as name, i.indisprimary as is_primary,
       i.indisunique and i.indisvalid and i.indpred is null and i.indexprs is null as is_key,
       i.indisunique or i.indisexclusion as constrains,
       i.indimmediate as is_immediate,
       k.columns, k.operators, k.terms, k.collations,
       coalesce((pg_catalog.to_jsonb(i)->>'indnullsnotdistinct')::bool, false) as nulls_equal,
       pg_catalog.pg_get_expr(i.indpred, i.indrelid) as predicate,
       (i.indisunique or i.indisexclusion) and i.indisvalid as is_whole,
       -- The columns that it needs. That of a constraint depends on those of its expressions only.
       array(select pg_catalog.unnest(k.columns)
             union
             select a.attname::text
               from pg_catalog.pg_depend d
               join pg_catalog.pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
              where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objid = i.indexrelid
                and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refobjid = i.indrelid) as needed,
       c.conname::text as constraint_name, pg_catalog.pg_get_constraintdef(c.oid) as constraint_definition,
       i.indisunique as is_unique,
       -- What follows the table's name in CREATE INDEX; it is another one elsewhere.
       pg_catalog.substr(pg_catalog.pg_get_indexdef(i.indexrelid), pg_catalog.length(pg_catalog.format('CREATE %sINDEX %I ON %s%I.%I ',
         case when i.indisunique then 'UNIQUE ' else '' end, x.relname, case when x.relkind = 'I' then 'ONLY ' else '' end, n.nspname, t.relname)) + 1)
         as definition
  from pg_catalog.pg_index i
  join pg_catalog.pg_class x on x.oid = i.indexrelid
  join pg_catalog.pg_class t on t.oid = i.indrelid
  join pg_catalog.pg_namespace n on n.oid = t.relnamespace
  left join pg_catalog.pg_constraint c on c.conindid = i.indexrelid and c.conrelid = i.indrelid and c.contype in ('p', 'u', 'x')
 cross join lateral (
       select pg_catalog.array_agg(a.attname::text order by u.position) filter (where a.attnum is not null) as columns,
              -- Strategy 3 of a btree is equality. An operator outside pg_catalog (citext's, say) is not found by `=`
              -- alone. An exclusion constraint has operators of its own.
              pg_catalog.array_agg(coalesce((select pg_catalog.quote_ident(n.nspname) || '.' || o.oprname
                                      from pg_catalog.pg_operator o
                                      join pg_catalog.pg_namespace n on n.oid = o.oprnamespace
                                     where o.oid = c.conexclop[u.position]),
                                    (select pg_catalog.quote_ident(n.nspname) || '.' || o.oprname
                                      from pg_catalog.pg_opclass p
                                      join pg_catalog.pg_amop m on m.amopfamily = p.opcfamily and m.amopstrategy = 3
                                                               and m.amoplefttype = p.opcintype and m.amoprighttype = p.opcintype
                                      join pg_catalog.pg_operator o on o.oid = m.amopopr
                                      join pg_catalog.pg_namespace n on n.oid = o.oprnamespace
                                     where p.oid = i.indclass[u.position - 1])) order by u.position) as operators,
              -- A column or an expression.
              pg_catalog.array_agg(pg_catalog.pg_get_indexdef(i.indexrelid, u.position::int4, false) order by u.position) as terms,
              -- By which its values are compared.
              pg_catalog.array_agg((select pg_catalog.format('%I.%I', n.nspname, o.collname)
                                      from pg_catalog.pg_collation o
                                      join pg_catalog.pg_namespace n on n.oid = o.collnamespace
                                     where o.oid = i.indcollation[u.position - 1]) order by u.position) as collations
         from pg_catalog.unnest(i.indkey::int2[]) with ordinality u(attnum, position)
         left join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = u.attnum and u.attnum <> 0
        where u.position <= i.indnkeyatts) k
 where i.indrelid = any ($1::oid[])
 order by i.indrelid, i.indisprimary desc, x.relname
