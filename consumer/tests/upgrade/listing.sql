-- Everything the extension installs, a line per fact, so that two installations can be compared line by line.
with member as (
    select d.classid, d.objid
      from pg_depend d join pg_extension e on e.oid = d.refobjid
     where d.refclassid = 'pg_extension'::regclass and d.deptype = 'e' and e.extname = 'pgcascade'
), relation as (
    select c.* from pg_class c join member m on m.classid = 'pg_class'::regclass and m.objid = c.oid
), fact (object, fact) as (
    select pg_describe_object(classid, objid, 0), 'member' from member
    union all
    select pg_describe_object(m.classid, m.objid, s.objsubid), 'comment ' || s.description
      from member m join pg_description s on s.classoid = m.classid and s.objoid = m.objid
    union all
    select p.oid::regprocedure::text, pg_get_functiondef(p.oid) || ' owner ' || p.proowner::regrole::text
      from pg_proc p join member m on m.classid = 'pg_proc'::regclass and m.objid = p.oid where p.prokind <> 'a'
    union all
    select p.oid::regprocedure::text, 'grant ' || a
      from pg_proc p join member m on m.classid = 'pg_proc'::regclass and m.objid = p.oid
     cross join unnest(coalesce(p.proacl, acldefault('f', p.proowner))) a
    union all
    select n.nspname, 'grant ' || a
      from pg_namespace n join member m on m.classid = 'pg_namespace'::regclass and m.objid = n.oid
     cross join unnest(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
    union all
    select r.oid::regclass::text, concat_ws(' ', 'kind', r.relkind, r.relpersistence, 'owner', r.relowner::regrole, r.reloptions::text,
               case when r.relkind = 'v' then pg_get_viewdef(r.oid) end) from relation r
    union all
    select r.oid::regclass::text, 'grant ' || a
      from relation r
     cross join unnest(coalesce(r.relacl, acldefault(case r.relkind when 'S' then 's' else 'r' end::"char", r.relowner))) a
    union all
    select r.oid::regclass::text || '.' || a.attname, concat_ws(' ', 'column', a.attnum, format_type(a.atttypid, a.atttypmod),
               case when a.attnotnull then 'not null' end, a.attidentity, a.attgenerated, a.attstorage, a.attcollation::regcollation,
               pg_get_expr(d.adbin, d.adrelid), a.attacl::text)
      from relation r join pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
      left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    union all
    select r.oid::regclass::text, concat_ws(' ', 'constraint', c.conname, pg_get_constraintdef(c.oid), c.convalidated)
      from relation r join pg_constraint c on c.conrelid = r.oid
    union all
    select r.oid::regclass::text, 'index ' || pg_get_indexdef(i.indexrelid) from relation r join pg_index i on i.indrelid = r.oid
    union all
    select r.oid::regclass::text, concat_ws(' ', 'trigger', pg_get_triggerdef(t.oid), t.tgenabled)
      from relation r join pg_trigger t on t.tgrelid = r.oid and not t.tgisinternal
    union all
    select r.oid::regclass::text, concat_ws(' ', 'rule', pg_get_ruledef(w.oid)) from relation r join pg_rewrite w on w.ev_class = r.oid
    union all
    select r.oid::regclass::text, concat_ws(' ', 'inherits', i.inhparent::regclass) from relation r join pg_inherits i on i.inhrelid = r.oid
    union all
    select r.oid::regclass::text, concat_ws(' ', 'sequence', s.seqtypid::regtype, s.seqstart, s.seqincrement, s.seqmax, s.seqmin, s.seqcache,
               s.seqcycle)
      from relation r join pg_sequence s on s.seqrelid = r.oid
    union all
    select t.oid::regtype::text, concat_ws(' ', 'type', t.typtype, format_type(t.typbasetype, t.typtypmod), t.typnotnull, t.typdefault)
      from pg_type t join member m on m.classid = 'pg_type'::regclass and m.objid = t.oid
    union all
    select 'pg_dump', concat_ws(' ', c.object::regclass, c.condition)
      from pg_extension e cross join unnest(e.extconfig, e.extcondition) c (object, condition) where e.extname = 'pgcascade'
    union all
    select 'extension', concat_ws(' ', extversion, extrelocatable, extnamespace::regnamespace) from pg_extension where extname = 'pgcascade'
)
select object || ': ' || replace(fact, E'\n', '\n') from fact order by object collate "C", fact collate "C"
