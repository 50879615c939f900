-- What the provider's tables have beside what --create makes: the statements that make it on the subscriber, in an order in which they can
-- run; without one where it cannot be made for a table of another name, as its text names the table. With search_path ''.
-- $1: oids of tables and partitions, $2, $3: their schemas and names on the subscriber
with wanted as (
       select c.*, n.nspname, w.schema, pg_catalog.format('%I.%I', w.schema, w.name) as here,
              (n.nspname, c.relname) = (w.schema, w.name) as has_its_name
         from unnest($1::oid[], $2::text[], $3::text[]) w(oid, schema, name)
         join pg_catalog.pg_class c on c.oid = w.oid
         join pg_catalog.pg_namespace n on n.oid = c.relnamespace),
     columns as (
       select w.here, a.*, t.typstorage, w.relowner
         from wanted w
         join pg_catalog.pg_attribute a on a.attrelid = w.oid and a.attnum > 0 and not a.attisdropped
         join pg_catalog.pg_type t on t.oid = a.atttypid),
     grants as (
       select w.oid, 'table ' || w.here as about, null as "column", w.relacl as acl, w.relowner as owner from wanted w
       union all
       select c.attrelid, 'table ' || c.here, c.attname, c.attacl, c.relowner from columns c
       union all
       select w.oid, pg_catalog.format('sequence %I.%I', case n.nspname when w.nspname then w.schema else n.nspname end, s.relname),
              null, s.relacl, s.relowner
         from wanted w
         join pg_catalog.pg_depend d on d.refobjid = w.oid and d.refobjsubid > 0 and d.deptype in ('a', 'i')
          and d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refclassid = d.classid
         join pg_catalog.pg_class s on s.oid = d.objid and s.relkind = 'S'
         join pg_catalog.pg_namespace n on n.oid = s.relnamespace),
     rest(oid, step, what, "column", statement) as (
       select w.oid, 1, 'the storage parameters', null, pg_catalog.format('alter table only %s set (%s)', w.here, o.list)
         from wanted w
         left join pg_catalog.pg_class t on t.oid = w.reltoastrelid
        cross join lateral (
              select pg_catalog.string_agg(pg_catalog.format('%s%I = %L', o.prefix, pg_catalog.split_part(o.text, '=', 1),
                                           pg_catalog.substr(o.text, pg_catalog.strpos(o.text, '=') + 1)), ', ') as list
                from (select '' as prefix, pg_catalog.unnest(w.reloptions) as text
                      union all
                      select 'toast.', pg_catalog.unnest(t.reloptions)) o) o
        where o.list is not null
       union all
       select c.attrelid, 2, 'the storage of column ' || pg_catalog.quote_ident(c.attname), c.attname,
              pg_catalog.format('alter table only %s alter column %I set storage %s', c.here, c.attname,
                                case c.attstorage when 'p' then 'plain' when 'e' then 'external' when 'm' then 'main' else 'extended' end)
         from columns c where c.attstorage <> c.typstorage
       union all
       select c.attrelid, 2, 'the compression of column ' || pg_catalog.quote_ident(c.attname), c.attname,
              pg_catalog.format('alter table only %s alter column %I set compression %s', c.here, c.attname,
                                case c.attcompression when 'p' then 'pglz' else 'lz4' end)
         from columns c where c.attcompression <> ''
       union all
       select c.attrelid, 2, 'the statistics target of column ' || pg_catalog.quote_ident(c.attname), c.attname,
              pg_catalog.format('alter table only %s alter column %I set statistics %s', c.here, c.attname, c.attstattarget)
         from columns c where c.attstattarget >= 0
       union all
       select c.attrelid, 2, 'the options of column ' || pg_catalog.quote_ident(c.attname), c.attname,
              pg_catalog.format('alter table only %s alter column %I set (%s)', c.here, c.attname, pg_catalog.array_to_string(c.attoptions, ', '))
         from columns c where c.attoptions is not null
       union all
       select w.oid, 3, pg_catalog.format('the statistics %I', s.stxname), null,
              case when w.has_its_name then pg_catalog.pg_get_statisticsobjdef(s.oid) end
         from wanted w join pg_catalog.pg_statistic_ext s on s.stxrelid = w.oid
       union all
       select w.oid, 4, 'the replica identity', null,
              pg_catalog.format('alter table only %s replica identity %s', w.here,
                                case w.relreplident when 'f' then 'full' when 'n' then 'nothing'
                                  else (select pg_catalog.format('using index %I', c.relname)
                                          from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indexrelid
                                         where i.indrelid = w.oid and i.indisreplident) end)
         from wanted w where w.relreplident <> 'd'
       union all
       select w.oid, 5, pg_catalog.format('the rule %I', r.rulename), null,
              case when w.has_its_name then pg_catalog.pg_get_ruledef(r.oid) ||
                case r.ev_enabled when 'O' then ''
                  else pg_catalog.format(' alter table %s %s rule %I', w.here,
                                         case r.ev_enabled when 'D' then 'disable' when 'R' then 'enable replica' else 'enable always' end, r.rulename)
                end end
         from wanted w join pg_catalog.pg_rewrite r on r.ev_class = w.oid
       union all
       -- Ours are the consumer's to make; those of a partition come from the table above.
       select w.oid, 6, pg_catalog.format('the trigger %I', t.tgname), null,
              case when w.has_its_name then pg_catalog.pg_get_triggerdef(t.oid) ||
                case t.tgenabled when 'O' then ''
                  else pg_catalog.format('; alter table %s %s trigger %I', w.here,
                                         case t.tgenabled when 'D' then 'disable' when 'R' then 'enable replica' else 'enable always' end, t.tgname)
                end end
         from wanted w
         join pg_catalog.pg_trigger t on t.tgrelid = w.oid and not t.tgisinternal and t.tgparentid = 0
         join pg_catalog.pg_proc p on p.oid = t.tgfoid
         join pg_catalog.pg_namespace n on n.oid = p.pronamespace and n.nspname <> 'pgq'
       union all
       select w.oid, 7, pg_catalog.format('the policy %I', p.polname), null,
              pg_catalog.format('create policy %I on %s as %s for %s to %s', p.polname, w.here,
                                case when p.polpermissive then 'permissive' else 'restrictive' end,
                                case p.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete' else 'all' end,
                                (select pg_catalog.string_agg(case r.oid when 0 then 'public' else pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(r.oid)) end, ', ')
                                   from pg_catalog.unnest(p.polroles) r(oid)))
                || coalesce(' using (' || pg_catalog.pg_get_expr(p.polqual, p.polrelid) || ')', '')
                || coalesce(' with check (' || pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid) || ')', '')
         from wanted w join pg_catalog.pg_policy p on p.polrelid = w.oid
       union all
       select w.oid, 8, 'its row security', null, pg_catalog.format('alter table only %s enable row level security', w.here)
         from wanted w where w.relrowsecurity
       union all
       select g.oid, 9, pg_catalog.format('the grants to %s', r.name), g."column",
              pg_catalog.format('grant %s on %s to %s%s',
                                pg_catalog.string_agg(lower(a.privilege_type) || coalesce(' (' || pg_catalog.quote_ident(g."column") || ')', ''), ', ' order by a.privilege_type),
                                g.about, r.name, case when a.is_grantable then ' with grant option' else '' end)
         from grants g
        cross join lateral pg_catalog.aclexplode(g.acl) a
        cross join lateral (select case a.grantee when 0 then 'public' else pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) end) r(name)
        where a.grantee <> g.owner
        group by g.oid, g.about, g."column", a.grantee, r.name, a.is_grantable
       union all
       select w.oid, 10, 'the comment', null, pg_catalog.format('comment on table %s is %L', w.here, d.description)
         from wanted w
         join pg_catalog.pg_description d on d.objoid = w.oid and d.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objsubid = 0
       union all
       select c.attrelid, 10, 'the comment on column ' || pg_catalog.quote_ident(c.attname), c.attname,
              pg_catalog.format('comment on column %s.%I is %L', c.here, c.attname, d.description)
         from columns c
         join pg_catalog.pg_description d on d.objoid = c.attrelid and d.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objsubid = c.attnum)
select rest.oid, what, "column"::text, statement from rest order by step, rest.oid, what, statement
