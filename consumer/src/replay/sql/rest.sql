-- What the provider's tables have beside what --create makes: the statements that make it on the subscriber, in an order in which they can
-- run; or why there is none. With search_path ''.
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
         join pg_catalog.pg_namespace n on n.oid = s.relnamespace
       union
       -- One that a default draws from and that belongs to no column has its own name.
       select w.oid, pg_catalog.format('sequence %I.%I', n.nspname, s.relname), null, s.relacl, s.relowner
         from wanted w
         join pg_catalog.pg_attrdef f on f.adrelid = w.oid
         join pg_catalog.pg_depend d on d.objid = f.oid and d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass
          and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
         join pg_catalog.pg_class s on s.oid = d.refobjid and s.relkind = 'S'
         join pg_catalog.pg_namespace n on n.oid = s.relnamespace
        where not exists (select from pg_catalog.pg_depend o
                           where o.objid = s.oid and o.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and o.deptype in ('a', 'i'))),
     states(enabled, word) as (values ('O', 'enable'), ('D', 'disable'), ('R', 'enable replica'), ('A', 'enable always')),
     rest(oid, step, what, "column", statement, reason) as (
       select w.oid, 1, pg_catalog.format('the storage parameter %s%s', o.prefix, pg_catalog.split_part(o.text, '=', 1)), null,
              pg_catalog.format('alter table only %s set (%s%I = %L)', w.here, o.prefix, pg_catalog.split_part(o.text, '=', 1),
                                pg_catalog.substr(o.text, pg_catalog.strpos(o.text, '=') + 1)), null
         from wanted w
         left join pg_catalog.pg_class t on t.oid = w.reltoastrelid
        cross join lateral (select '' as prefix, pg_catalog.unnest(w.reloptions) as text
                            union all
                            select 'toast.', pg_catalog.unnest(t.reloptions)) o
       union all
       select c.attrelid, 2, 'the storage of column ' || pg_catalog.quote_ident(c.attname), c.attname,
              pg_catalog.format('alter table only %s alter column %I set storage %s', c.here, c.attname,
                                case c.attstorage when 'p' then 'plain' when 'e' then 'external' when 'm' then 'main' else 'extended' end), null
         from columns c where c.attstorage <> c.typstorage
       union all
       select c.attrelid, 2, 'the compression of column ' || pg_catalog.quote_ident(c.attname), c.attname,
              pg_catalog.format('alter table only %s alter column %I set compression %s', c.here, c.attname,
                                case c.attcompression when 'p' then 'pglz' else 'lz4' end), null
         from columns c where c.attcompression <> ''
       union all
       select c.attrelid, 2, 'the statistics target of column ' || pg_catalog.quote_ident(c.attname), c.attname,
              pg_catalog.format('alter table only %s alter column %I set statistics %s', c.here, c.attname, c.attstattarget), null
         from columns c where c.attstattarget >= 0
       union all
       select c.attrelid, 2, 'the options of column ' || pg_catalog.quote_ident(c.attname), c.attname,
              pg_catalog.format('alter table only %s alter column %I set (%s)', c.here, c.attname, pg_catalog.array_to_string(c.attoptions, ', ')), null
         from columns c where c.attoptions is not null
       union all
       select w.oid, 3, pg_catalog.format('the statistics %I', s.stxname), null,
              case when w.has_its_name then pg_catalog.pg_get_statisticsobjdef(s.oid)
                || case when s.stxstattarget >= 0
                        then pg_catalog.format('; alter statistics %I.%I set statistics %s', n.nspname, s.stxname, s.stxstattarget) else '' end end,
              'its definition has the table''s name on the provider'
         from wanted w
         join pg_catalog.pg_statistic_ext s on s.stxrelid = w.oid
         join pg_catalog.pg_namespace n on n.oid = s.stxnamespace
       union all
       select w.oid, 4, 'the replica identity', null,
              case when not w.relispartition or i.name is null then
                pg_catalog.format('alter table only %s replica identity %s', w.here,
                                  case w.relreplident when 'f' then 'full' when 'n' then 'nothing'
                                    else 'using index ' || pg_catalog.quote_ident(i.name) end) end,
              'its index has another name here'
         from wanted w
         left join lateral (
              select c.relname as name from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indexrelid
               where i.indrelid = w.oid and i.indisreplident and w.relreplident = 'i') i on true
        where w.relreplident in ('f', 'n') or i.name is not null
       union all
       -- Also where it is disabled.
       select w.oid, 5, pg_catalog.format('the rule %I', r.rulename), null, null,
              'replay''s INSERT ... ON CONFLICT does not work on a table that has one for UPDATE, and INSERT is up to what the rule does'
         from wanted w join pg_catalog.pg_rewrite r on r.ev_class = w.oid
       union all
       -- Ours are the consumer's to make; those of a partition come from the table above.
       select w.oid, 6, pg_catalog.format('the trigger %I', t.tgname), null,
              case when w.has_its_name and n.nspname <> 'pgq' then pg_catalog.pg_get_triggerdef(t.oid) ||
                case t.tgenabled when 'O' then '' else pg_catalog.format('; alter table %s %s trigger %I', w.here, e.word, t.tgname) end end,
              case n.nspname when 'pgq' then 'it is of a queue' else 'its definition has the table''s name on the provider' end
         from wanted w
         join pg_catalog.pg_trigger t on t.tgrelid = w.oid and not t.tgisinternal and t.tgparentid = 0
         join pg_catalog.pg_proc p on p.oid = t.tgfoid
         join pg_catalog.pg_namespace n on n.oid = p.pronamespace
         join states e on e.enabled = t.tgenabled::text
        where n.nspname <> 'pgq' or not pg_catalog.starts_with(t.tgname, 'pgcascade_capture_')
       union all
       select w.oid, 6, pg_catalog.format('the state of trigger %I', t.tgname), null,
              pg_catalog.format('alter table only %s %s trigger %I', w.here, e.word, t.tgname), null
         from wanted w
         join pg_catalog.pg_trigger t on t.tgrelid = w.oid
         join pg_catalog.pg_trigger u on u.oid = t.tgparentid and u.tgenabled <> t.tgenabled
         join states e on e.enabled = t.tgenabled::text
         join pg_catalog.pg_proc p on p.oid = t.tgfoid
         join pg_catalog.pg_namespace n on n.oid = p.pronamespace and n.nspname <> 'pgq'
       union all
       select w.oid, 7, pg_catalog.format('the policy %I', p.polname), null,
              case when w.has_its_name or concat(x."using", x.checks) !~* '\mselect\M' then
                pg_catalog.format('create policy %I on %s as %s for %s to %s', p.polname, w.here,
                                  case when p.polpermissive then 'permissive' else 'restrictive' end,
                                  case p.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete' else 'all' end,
                                  (select pg_catalog.string_agg(case r.oid when 0 then 'public' else pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(r.oid)) end, ', ')
                                     from pg_catalog.unnest(p.polroles) r(oid)))
                  || coalesce(' using (' || x."using" || ')', '') || coalesce(' with check (' || x.checks || ')', '') end,
              'it has a query, which may be about the table of that name'
         from wanted w
         join pg_catalog.pg_policy p on p.polrelid = w.oid
        cross join lateral (select pg_catalog.pg_get_expr(p.polqual, p.polrelid), pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid)) x("using", checks)
       union all
       select w.oid, 8, 'its row security', null, pg_catalog.format('alter table only %s enable row level security', w.here), null
         from wanted w where w.relrowsecurity
       union all
       select g.oid, 9, pg_catalog.format('the grant of %s to %s', lower(a.privilege_type), r.name), g."column",
              pg_catalog.format('grant %s%s on %s to %s%s', lower(a.privilege_type), coalesce(' (' || pg_catalog.quote_ident(g."column") || ')', ''),
                                g.about, r.name, case when a.is_grantable then ' with grant option' else '' end), null
         from grants g
        cross join lateral pg_catalog.aclexplode(g.acl) a
        cross join lateral (select case a.grantee when 0 then 'public' else pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) end) r(name)
        where a.grantee <> g.owner
       union all
       select w.oid, 10, 'the comment', null, pg_catalog.format('comment on table %s is %L', w.here, d.description), null
         from wanted w
         join pg_catalog.pg_description d on d.objoid = w.oid and d.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objsubid = 0
       union all
       select c.attrelid, 10, 'the comment on column ' || pg_catalog.quote_ident(c.attname), c.attname,
              pg_catalog.format('comment on column %s.%I is %L', c.here, c.attname, d.description), null
         from columns c
         join pg_catalog.pg_description d on d.objoid = c.attrelid and d.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objsubid = c.attnum)
select rest.oid, what, "column"::text, statement, reason from rest order by step, rest.oid, what, statement
