--
-- Capture on tables of several owners: who may bring expressions, whose rights they have, whose rows are seen.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
create role hostile_victim in role pgq_writer;
create role hostile_mallory in role pgq_writer;
create role hostile_writer in role pgq_writer;
create schema hostile;
grant all on schema hostile to public;
select pgq.create_queue('hostile');
select queue_data_pfx as events from pgq.queue where queue_name = 'hostile' \gset

set role hostile_victim;
create table hostile.secret (word text);
insert into hostile.secret values ('the secret');
create table hostile.open (id integer primary key, note text);
grant insert, update, trigger on hostile.open to public;
reset role;

-- The TRIGGER privilege is not enough for an expression: it would read the secret as the owner.
set role hostile_mallory;
create function hostile.leak() returns text language sql as 'select current_user || '': '' || (select word from hostile.secret)';
create trigger leak after insert on hostile.open
    for each row execute function pgq.logutriga('hostile', 'ev_extra2=hostile.leak()');
create trigger leak after insert on hostile.open
    for each row execute function pgq.sqltriga('hostile', 'SKIP', 'when=hostile.leak() is null');
create constraint trigger leak after insert on hostile.open
    for each row execute function pgq.jsontriga('hostile', 'ignore=note', 'ev_data=hostile.leak()');
-- Capture without is.
create trigger plain after insert on hostile.open
    for each row execute function pgq.logutriga('hostile', 'ignore=note');
insert into hostile.open values (1, 'x');
reset role;
select ev_extra1, ev_data from :events order by ev_id;
drop trigger plain on hostile.open;

-- The owner's expression has the owner's rights, whoever writes, superusers included; and not more: it cannot change who it is.
set role hostile_victim;
create function hostile.who() returns text language plpgsql as
    $$ begin return current_user || ' ' || (select word from hostile.secret); end $$;
create trigger own after insert or update on hostile.open
    for each row execute function pgq.logutriga('hostile', 'ev_extra2=hostile.who()', 'ev_extra3=current_user::text');
reset role;
set role hostile_writer;
insert into hostile.open values (2, 'x');
reset role;
insert into hostile.open values (3, 'x');
select ev_data, ev_extra2, ev_extra3 from :events where ev_extra2 is not null order by ev_id;
set role hostile_victim;
create or replace function hostile.who() returns text language plpgsql as
    $$ begin execute 'set role none'; return current_user; end $$;
reset role;
insert into hostile.open values (4, 'x');
set role hostile_victim;
create or replace function hostile.who() returns text language plpgsql as
    $$ begin perform set_config('search_path', 'hostile', false), set_config('session_replication_role', 'replica', false); return 1; end $$;
reset role;
insert into hostile.open values (5, 'x');
set role hostile_victim;
create or replace function hostile.who() returns text language plpgsql as
    $$ begin perform set_config('search_path', 'hostile', false); return 1; end $$;
reset role;
insert into hostile.open values (6, 'x');
show search_path;
drop trigger own on hostile.open;

-- Row security: what is captured is the row that was written, and no other; the trigger does not query the table.
set role hostile_victim;
alter table hostile.open enable row level security;
create policy own_rows on hostile.open for all using (id > 100) with check (true);
create trigger rows after insert on hostile.open for each row execute function pgq.logutriga('hostile', 'ev_extra2=''rls''');
reset role;
set role hostile_writer;
insert into hostile.open values (7, 'written');
reset role;
select ev_data from :events where ev_extra2 = 'rls' order by ev_id;

-- Who has no right to put events into queues can write to a captured table, and to no queue by himself.
create role hostile_nobody;
grant insert on hostile.open to hostile_nobody;
grant usage on schema hostile to hostile_nobody;
set role hostile_nobody;
insert into hostile.open values (8, 'nobody');
select pgq.insert_event('hostile', 't', 'd');
\set VERBOSITY sqlstate
insert into :events (ev_id, ev_time) values (1, now());
create trigger mine after insert on hostile.secret for each row execute function pgq.logutriga('hostile');
\set VERBOSITY default
create table pg_temp.mine (id integer primary key);
create trigger mine after insert on pg_temp.mine for each row execute function pgq.logutriga('hostile');
reset role;
drop table pg_temp.mine;

-- Maintenance that an administrator configures is one name, not SQL; the server's own ticker calls it as pgq_admin (test
-- functions_of_extra_maint_run_without_the_rights_of_the_superuser of consumer/tests/ticker.rs).
update pgq.queue set queue_extra_maint = array['hostile.evil(''); drop table x'] where queue_name = 'hostile';
select func_name, func_arg from pgq.maint_operations() where func_arg = 'hostile';

-- Sizes: a name that an index cannot hold is refused (for queues: case queue_names).
\set VERBOSITY sqlstate
select pgq.register_consumer('hostile', string_agg(md5(i::text), '')) from generate_series(1, 1000) i;
\set VERBOSITY default

set client_min_messages = error;
drop schema hostile cascade;
select pgq.drop_queue('hostile', true);
drop role hostile_victim, hostile_mallory, hostile_writer, hostile_nobody;
