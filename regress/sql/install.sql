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
                     'pgcascade'::regnamespace) and prosecdef and proconfig is null;
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
