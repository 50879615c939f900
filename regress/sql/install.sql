--
-- CREATE EXTENSION, and what it makes: members, configuration tables for pg_dump, nothing left open to everybody.
-- Runs first and leaves the extension in place for all other cases.
--
\set SHOW_CONTEXT never
-- Somebody else's objects under our names are not adopted.
create schema pgq;
create extension pgcascade;
drop schema pgq;
create schema pgcascade;
create extension pgcascade;
drop schema pgcascade;

create extension pgcascade;
select nspname, obj_description(oid, 'pg_namespace') from pg_namespace where nspname in ('pgq', 'pgq_coop', 'pgq_ext', 'pgq_node', 'pgcascade') order by 1;

-- What pg_dump has to save: seven objects of pgq, four of pgq_ext, four of pgq_node, those of pgcascade; all rows of each.
select unnest(extconfig)::regclass as object, unnest(extcondition) as condition
  from pg_extension where extname = 'pgcascade';

-- Every function has a fixed search_path, except those that run the caller's SQL or none.
select p.oid::regprocedure as function, p.prosecdef, l.lanname
  from pg_proc p join pg_language l on l.oid = p.prolang
 where pronamespace in ('pgq'::regnamespace, 'pgq_coop'::regnamespace, 'pgq_ext'::regnamespace, 'pgq_node'::regnamespace,
                     'pgcascade'::regnamespace)
   and not coalesce(p.proconfig @> array['search_path=pg_catalog, pg_temp'], false)
 order by p.oid::regprocedure::text collate "C";
-- No SECURITY DEFINER function without; none.
select p.oid::regprocedure from pg_proc p
 where pronamespace in ('pgq'::regnamespace, 'pgq_coop'::regnamespace, 'pgq_ext'::regnamespace, 'pgq_node'::regnamespace,
                     'pgcascade'::regnamespace) and prosecdef
   and not exists (select from unnest(p.proconfig) setting where setting like 'search_path=%');
-- Every function says what it is for; none is missing.
select p.oid::regprocedure from pg_proc p
 where pronamespace in ('pgq'::regnamespace, 'pgq_coop'::regnamespace, 'pgq_ext'::regnamespace, 'pgq_node'::regnamespace,
                     'pgcascade'::regnamespace)
   and obj_description(p.oid, 'pg_proc') is null;

-- All objects of the schemas belong to the extension; none is left out.
select c.oid::regclass from pg_class c
 where c.relnamespace in ('pgq'::regnamespace, 'pgq_coop'::regnamespace, 'pgq_ext'::regnamespace, 'pgq_node'::regnamespace,
                     'pgcascade'::regnamespace) and c.relkind in ('r', 'S', 'v')
   and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
   and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'a');

-- A queue holds data, so it keeps the extension.
select pgq.create_queue('install');
\set VERBOSITY terse
drop extension pgcascade;
\set VERBOSITY default
select pgq.drop_queue('install');
begin;
drop extension pgcascade;
select count(*) from pg_namespace where nspname in ('pgq', 'pgq_coop', 'pgq_ext', 'pgq_node', 'pgcascade');
rollback;

-- A role of ours that is a superuser is not used.
begin;
drop extension pgcascade;
alter role pgq_writer superuser;
create extension pgcascade;
rollback;
begin;
drop extension pgcascade;
alter role pgq_admin bypassrls;
create extension pgcascade;
rollback;
-- Nor is one that somebody used for something else.
begin;
drop extension pgcascade;
create table install_owned ();
alter table install_owned owner to pgq_reader;
create extension pgcascade;
rollback;

-- What somebody put into public is not called by the script, which runs as superuser: these would fit better than the
-- built-in ones. The script finds schema pg_catalog only.
begin;
drop extension pgcascade;
create table install_evil (what text);
create function public.evil(name, text) returns boolean language plpgsql as
    $$ begin insert into public.install_evil values ('operator as ' || current_user); return true; end $$;
create operator public.= (leftarg = name, rightarg = text, function = public.evil);
create function public.format(text, text) returns text language plpgsql as
    $$ begin insert into public.install_evil values ('format as ' || current_user); return 'select 1'; end $$;
create function public.now() returns timestamptz language plpgsql as
    $$ begin insert into public.install_evil values ('now as ' || current_user); return null; end $$;
create type public.txid_snapshot as (evil integer);
create table public.queue (); create table public.pg_roles ();
set local search_path = public, pg_catalog;
create extension pgcascade;
select pgq.create_queue('install_evil');
select pgq.register_consumer('install_evil', 'c');
select * from install_evil;
rollback;
-- Nor are tables, functions and types of these names taken over, in whichever of our schemas they wait.
begin; drop extension pgcascade; create schema pgq_coop; create extension pgcascade; rollback;
begin; drop extension pgcascade; create schema pgq_node; create extension pgcascade; rollback;
begin; drop extension pgcascade; create schema pgq_ext; create extension pgcascade; rollback;

-- The script itself replaces nothing, skips nothing that is there, and has nothing put into it.
select pg_read_file(c.setting || '/extension/pgcascade--' || e.extversion || '.sql') as script
  from pg_config c, pg_extension e where c.name = 'SHAREDIR' and e.extname = 'pgcascade' \gset
select length(:'script') > 100000 as read;
select line from regexp_split_to_table(regexp_replace(:'script', '--[^\n]*', '', 'g'), '\n') line
 where line ~* '\mor\s+replace\M' or line ~* '\m(create|add)\M.*\mif\s+not\s+exists' or line ~ '@';
