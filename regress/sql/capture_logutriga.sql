--
-- pgq.logutriga: full rows, url-encoded. What each kind of statement and each kind of table leaves in the queue.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset format unaligned
\pset tuples_only on
\pset null (null)
create schema capture_logutriga;
set search_path = capture_logutriga;
select pgq.create_queue('capture_logutriga');
select queue_data_pfx as events from pgq.queue where queue_name = 'capture_logutriga' \gset
\set show 'select ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4 from :events order by ev_id; delete from :events;'

-- the key's columns are listed in the order of the key, the row's in the order of the table
create table line (pos int, purchase text, note text, price numeric, primary key (purchase, pos));
create trigger capture after insert or update or delete on line
    for each row execute function pgq.logutriga('capture_logutriga');
create trigger capture_truncate after truncate on line
    for each statement execute function pgq.logutriga('capture_logutriga');
insert into line values (1, 'a', null, 1.50), (2, 'b', '', null);
:show
update line set note = 'x y' where pos = 1;
update line set note = null where pos = 1;
update line set price = 1.5 where pos = 1;
-- an update that changes nothing is an event all the same
update line set note = note;
update line set note = 'nobody' where false;
:show
delete from line where pos = 1;
truncate line;
:show

-- every way to write a row
merge into line using (values (1, 'merged'), (2, 'merged')) as source (pos, note) on line.pos = source.pos and purchase = 'm'
    when not matched then insert (pos, purchase, note) values (source.pos, 'm', source.note);
merge into line using (values (1, 'again'), (2, null)) as source (pos, note) on line.pos = source.pos and purchase = 'm'
    when matched and source.note is null then delete
    when matched then update set note = source.note;
insert into line values (1, 'm', 'first') on conflict do nothing;
insert into line values (1, 'm', 'second') on conflict (purchase, pos) do update set note = excluded.note || '!';
with gone as (delete from line where purchase = 'm' returning *)
insert into line select pos, 'n', note from gone;
copy line from stdin;
7	c	\N	\N
8	c		0.10
\.
:show
begin;
insert into line values (1, 'kept');
savepoint s;
insert into line values (2, 'rolled back');
rollback to s;
insert into line values (3, 'kept');
commit;
begin;
truncate line;
insert into line values (4, 'after truncate');
commit;
begin;
delete from line;
rollback;
:show

-- characters: all of ASCII, and some beyond
select string_agg(chr(i), '' order by i) as ascii from generate_series(1, 127) as i \gset
insert into line values (1, 'chars', :'ascii');
insert into line values (2, 'chars', 'naïve ' || U&'\20AC\+01F600');
:show

-- no key: rows are inserted, but cannot be named afterwards
create table keyless (a int not null unique, b text);
alter table keyless replica identity using index keyless_a_key;
create trigger capture after insert or update or delete on keyless
    for each row execute function pgq.logutriga('capture_logutriga');
insert into keyless values (1, 'x');
update keyless set b = 'y';
delete from keyless;
select * from keyless;
:show

-- no columns at all
create table empty ();
create trigger capture after insert on empty for each row execute function pgq.logutriga('capture_logutriga');
insert into empty default values;
:show

-- generated and identity columns are part of the row; BEFORE triggers have had their say
create table made (
    id int generated always as identity primary key,
    v text,
    twice text generated always as (v || v) stored);
create function shout() returns trigger language plpgsql as $$
begin
    new.v = upper(new.v);
    return new;
end $$;
create trigger a_shout before insert or update on made for each row execute function shout();
create trigger capture after insert or update or delete on made
    for each row execute function pgq.logutriga('capture_logutriga');
insert into made (v) values ('ab'), (null);
update made set v = 'cd' where id = 1;
:show

-- but a virtual one, which PostgreSQL 18 has, is not stored, so there is nothing to send
select case when current_setting('server_version_num')::int >= 180000
    then ', twice int generated always as (a * 2) virtual' else '' end as twice \gset
create table virtual (id int, a int :twice, b text, primary key (id));
create trigger capture after insert or update or delete on virtual
    for each row execute function pgq.logutriga('capture_logutriga');
insert into virtual (id, a, b) values (1, 2, 'b');
update virtual set a = 3;
delete from virtual;
:show

-- a value that is stored out of line is sent whole, also by an update that did not touch it
create table wide (id int primary key, body text, note text);
alter table wide alter body set storage external;
create trigger capture after insert or update or delete on wide
    for each row execute function pgq.logutriga('capture_logutriga');
insert into wide select 1, repeat('0123456789', 20000);
update wide set note = 'touched';
delete from wide;
select ev_type, length(ev_data), ev_data = 'id=1&body=' || repeat('0123456789', 20000)
    || case when ev_type like 'I%' then '&note' else '&note=touched' end as whole
from :events order by ev_id;
delete from :events;

-- partitions: the leaf that holds the row is named; a row that moves leaves one and enters another
create table parted (id int, day int, primary key (id, day)) partition by range (day);
create table parted_1 (dropped int, day int not null, id int not null);
alter table parted_1 drop dropped;
alter table parted attach partition parted_1 for values from (0) to (10);
create table parted_2 partition of parted for values from (10) to (20);
create trigger capture after insert or update or delete on parted
    for each row execute function pgq.logutriga('capture_logutriga');
insert into parted values (1, 1), (2, 11);
update parted set day = 12 where id = 1;
:show

-- an INSTEAD OF trigger of a view, whose key must be given
create view seen as select pos, note from line;
create trigger capture instead of insert or update or delete on seen
    for each row execute function pgq.logutriga('capture_logutriga', 'pkey=pos');
insert into seen values (77, 'through a view');
update seen set note = 'u' where note is not null;
delete from seen where note is not null;
:show

-- a deferred trigger fires at commit, with the rows as they were
create table late (id int primary key, v text);
create constraint trigger capture after insert or update or delete on late deferrable initially deferred
    for each row execute function pgq.logutriga('capture_logutriga');
begin;
insert into late values (1, 'a');
update late set v = 'b';
insert into line values (9, 'immediate');
commit;
:show

-- two triggers, two queues: each gets its own
select pgq.create_queue('capture_logutriga_2');
create trigger capture_2 after insert on late for each row execute function pgq.logutriga('capture_logutriga_2');
insert into late values (2, 'both');
:show
select ev_type, ev_data from pgq.event_template where tableoid = pgq.current_event_table('capture_logutriga_2')::regclass;
drop trigger capture_2 on late;
select pgq.drop_queue('capture_logutriga_2', true);

-- session_replication_role: 'local' captures nothing, 'replica' only what a trigger says it wants
create table roles (id int primary key);
create trigger capture after insert on roles for each row execute function pgq.logutriga('capture_logutriga');
set session_replication_role = local;
insert into roles values (1);
set session_replication_role = replica;
insert into roles values (2);
alter table roles enable always trigger capture;
insert into roles values (3);
set session_replication_role = local;
insert into roles values (4);
set session_replication_role = origin;
insert into roles values (5);
:show
-- a queue that takes no writes takes them from a replica
update pgq.queue set queue_disable_insert = true where queue_name = 'capture_logutriga';
insert into roles values (6);
set session_replication_role = replica;
insert into roles values (7);
set session_replication_role = origin;
update pgq.queue set queue_disable_insert = false where queue_name = 'capture_logutriga';
:show
-- a limit of events per transaction
update pgq.queue set queue_per_tx_limit = 2 where queue_name = 'capture_logutriga';
insert into roles values (8), (9);
insert into roles values (10), (11), (12);
update pgq.queue set queue_per_tx_limit = null where queue_name = 'capture_logutriga';
insert into roles values (10), (11), (12);
:show

-- a queue that is dropped and made again under the same name
select pgq.drop_queue('capture_logutriga', true);
insert into roles values (20);
select pgq.create_queue('capture_logutriga');
insert into roles values (20);
select queue_data_pfx as events from pgq.queue where queue_name = 'capture_logutriga' \gset
:show

select pgq.drop_queue('capture_logutriga', true);
drop schema capture_logutriga cascade;
