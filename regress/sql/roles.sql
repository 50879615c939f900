--
-- Who may do what: the three roles, everybody, and that definers' functions cannot be fooled by the caller's objects.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset null (null)
-- Every function, and who may execute it beside the owner; of the plain version's helpers those that somebody may.
select p.oid::regprocedure as function,
       case when has_function_privilege('pgq_reader', p.oid, 'execute') then 'reader ' else '' end
       || case when has_function_privilege('pgq_writer', p.oid, 'execute') then 'writer ' else '' end
       || case when has_function_privilege('pgq_admin', p.oid, 'execute') then 'admin ' else '' end
       || case when exists (select from aclexplode(p.proacl) a where a.grantee = 0) then 'public' else '' end as may_execute
  from pg_proc p
 where p.pronamespace in ('pgq'::regnamespace, 'pgq_coop'::regnamespace, 'pgq_ext'::regnamespace, 'pgq_node'::regnamespace,
                     'pgcascade'::regnamespace)
   and not (starts_with(p.proname, 'plain_') and p.proacl = array[makeaclitem(p.proowner, p.proowner, 'execute', false)])
 order by p.oid::regprocedure::text collate "C";
-- Tables.
select c.relname, coalesce(nullif(a.grantee::regrole::text, '-'), 'public') as grantee,
       string_agg(a.privilege_type, ' ' order by a.privilege_type) as privileges
  from pg_class c cross join lateral aclexplode(c.relacl) a
 where c.relnamespace in ('pgq'::regnamespace, 'pgq_coop'::regnamespace, 'pgq_ext'::regnamespace, 'pgq_node'::regnamespace)
   and c.relname !~ '\d' and a.grantee <> c.relowner
 group by 1, 2 order by c.relname collate "C", 2;
select r.rolname, r.rolcanlogin, r.rolsuper, r.rolcreaterole, r.rolcreatedb,
       array(select m.roleid::regrole::text from pg_auth_members m where m.member = r.oid order by 1) as member_of
  from pg_roles r where r.rolname in ('pgq_reader', 'pgq_writer', 'pgq_admin') order by 1;

-- Each role does its work and nothing else.
create role roles_nobody;
create role roles_reader in role pgq_reader;
create role roles_writer in role pgq_writer;
create role roles_admin in role pgq_admin;
set role roles_admin;
select pgq.create_queue('roles');
select pgq.set_queue_config('roles', 'ticker_max_lag', '0');
reset role;
set role roles_writer;
select pgq.insert_event('roles', 't', 'd');
select pgq.create_queue('roles two');
select pgq.register_consumer('roles', 'roles_c');
select pgq.insert_event_raw('roles', null, null, null, null, 't', 'd', null, null, null, null);
select pgq.ticker();
reset role;
set role roles_reader;
select pgq.register_consumer('roles', 'roles_c');
select pgq.insert_event('roles', 't', 'd');
select pgq.set_queue_config('roles', 'ticker_max_lag', '0');
select pgq.force_tick('roles');
reset role;
set role roles_admin;
select pgq.insert_event('roles', 't', 'by admin') > 0 as inserted;
select pgq.ticker('roles');
reset role;
set role roles_reader;
select pgq.next_batch('roles', 'roles_c') as batch \gset
select ev_type from pgq.get_batch_events(:batch) order by ev_id desc limit 1;
select count(*) > 0 as rows from pgq.get_batch_cursor(:batch, 'c', 10);
select count(*) from pgq.get_batch_info(:batch);
select pgq.batch_retry(:batch, 0) > 0 as retried;
select pgq.finish_batch(:batch);
reset role;
set role roles_admin;
select pgq.maint_retry_events() > 0 as moved;
update pgq.queue set queue_rotation_period = '0' where queue_name = 'roles';
select pgq.maint_rotate_tables_step1('roles'), pgq.maint_rotate_tables_step2();
select count(*) >= 0 as operations from pgq.maint_operations();
select queue_name is not null as due from pgcascade.queues_due() where queue_name = 'roles' limit 1;
select pgq.current_event_table('roles') as events \gset
insert into :events (ev_time, ev_type) values (now(), 'direct');
select pgq.unregister_consumer('roles', 'roles_c');
reset role;
-- Everybody else may look, and not more.
set role roles_nobody;
select count(*) from pgq.get_queue_info('roles');
select pgq.insert_event('roles', 't', 'd');
select pgq.next_batch('roles', 'roles_c');
select pgcascade.tick_event_sql(1, 1, 1, null);
update pgq.queue set queue_disable_insert = true;
select count(*) from pgq.retry_queue;
\set VERBOSITY sqlstate
select count(*) from :events;
\set VERBOSITY default
create table pgq.roles_table ();
reset role;

-- Functions and operators of the caller with the names of built-in ones are not called with the definer's rights.
create schema roles_evil;
create function roles_evil.evil() returns boolean language plpgsql as $$ begin raise exception 'called by %', current_user; end $$;
create function roles_evil.eq(text, text) returns boolean language sql as 'select roles_evil.evil()';
create function roles_evil.eq(bigint, bigint) returns boolean language sql as 'select roles_evil.evil()';
create function roles_evil.format(text, variadic text[]) returns text language sql as 'select roles_evil.evil()::text';
create function roles_evil.now() returns timestamptz language sql as 'select roles_evil.evil()::text::timestamptz';
create function roles_evil.nextval(text) returns bigint language sql as 'select roles_evil.evil()::int::bigint';
create function roles_evil.quote_ident(text) returns text language sql as 'select roles_evil.evil()::text';
create operator roles_evil.= (leftarg = text, rightarg = text, function = roles_evil.eq);
create operator roles_evil.= (leftarg = bigint, rightarg = bigint, function = roles_evil.eq);
grant usage on schema roles_evil to public;
set role roles_admin;
set search_path = roles_evil, pg_catalog;
select pgq.create_queue('roles evil');
select pgq.register_consumer('roles evil', 'roles_c');
select pgq.insert_event('roles evil', 't', 'd');
select pgq.force_tick('roles evil') > 0 as forced;
select pgq.ticker('roles evil');
select pgq.next_batch('roles evil', 'roles_c') as batch \gset
select pgq.event_retry(:batch, 1, 0);
select count(*) from pgq.get_consumer_info('roles evil');
select count(*) from pgq.get_queue_info('roles evil');
select pgq.finish_batch(:batch);
select pgq.unregister_consumer('roles evil', 'roles_c');
select pgq.drop_queue('roles evil');
reset search_path;
reset role;
drop schema roles_evil cascade;
select pgq.drop_queue('roles');
drop role roles_nobody, roles_reader, roles_writer, roles_admin;
