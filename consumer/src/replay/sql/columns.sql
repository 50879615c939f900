-- The columns of tables, in order.
-- $1: oids of the tables
select a.attrelid as table, a.attname::text as name, pg_catalog.format_type(a.atttypid, a.atttypmod) as type,
       pg_catalog.format_type(a.atttypid, null) as bare_type,
       -- Qualified, as the plain names of some types mean a length of 1. A cast of text to it is its input function unless
       -- there is a cast function (the two built-in ones named here read the same), or it is a domain that cuts to a length.
       case when not exists (select from pg_catalog.pg_cast c
                              where c.castsource = 'pg_catalog.text'::pg_catalog.regtype
                                and c.casttarget in (t.oid, t.typbasetype) and c.castmethod = 'f'
                                and c.casttarget not in ('pg_catalog.name'::pg_catalog.regtype, 'pg_catalog.xml'::pg_catalog.regtype))
             and (t.typtype <> 'd' or t.typtypmod = -1
                  and (select b.typtype <> 'd' from pg_catalog.pg_type b where b.oid = t.typbasetype))
         then pg_catalog.quote_ident(tn.nspname) || '.' || pg_catalog.quote_ident(t.typname)
       end as cast_type,
       t.typcategory = 'A' as is_array,
       a.attnotnull as not_null, a.attidentity::text as identity, a.attgenerated::text as generated,
       pg_catalog.pg_get_expr(d.adbin, d.adrelid) as expression,
       -- A default that depends on nothing but what every server has, and the column's type. (What initdb made has no entries in pg_depend.)
       not exists (select from pg_catalog.pg_depend p
                    where p.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass and p.objid = d.oid
                      and not (p.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and p.refobjid = a.attrelid)
                      and not (p.refclassid = 'pg_catalog.pg_type'::pg_catalog.regclass and p.refobjid in (t.oid, t.typelem))) as portable,
       -- What the rows have that are older than the column and were not written since.
       case when a.atthasmissing then (a.attmissingval::text::text[])[1] end as missing_value,
       -- No column before it was dropped.
       a.attnum = pg_catalog.row_number() over (partition by a.attrelid order by a.attnum) as keeps_place,
       case when a.attcollation <> t.typcollation then
         (select pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.collname)
            from pg_catalog.pg_collation c join pg_catalog.pg_namespace n on n.oid = c.collnamespace
           where c.oid = a.attcollation)
       end as collation
  from pg_catalog.pg_attribute a
  join pg_catalog.pg_type t on t.oid = a.atttypid
  join pg_catalog.pg_namespace tn on tn.oid = t.typnamespace
  left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
 where a.attrelid = any ($1::oid[]) and a.attnum > 0 and not a.attisdropped
 order by a.attrelid, a.attnum
