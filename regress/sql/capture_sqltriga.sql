--
-- pgq.sqltriga: the part of a statement that follows its verb and its table.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset format unaligned
\pset tuples_only on
\pset null (null)
create schema capture_sqltriga;
set search_path = capture_sqltriga;
select pgq.create_queue('capture_sqltriga');
select queue_data_pfx as events from pgq.queue where queue_name = 'capture_sqltriga' \gset
\set show 'select ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4 from :events order by ev_id; delete from :events;'

create table line (pos int, purchase text, note text, price numeric, primary key (purchase, pos));
create trigger capture after insert or update or delete on line
    for each row execute function pgq.sqltriga('capture_sqltriga');
create trigger capture_truncate after truncate on line
    for each statement execute function pgq.sqltriga('capture_sqltriga');
insert into line values (1, 'a', null, 1.50), (2, 'b', '', null);
:show
-- only what changed is set
update line set note = 'x y' where pos = 1;
update line set note = null, price = 2 where pos = 1;
update line set note = '' where pos = 1;
-- a change that the type's own equality does not see
update line set price = 2.00 where pos = 1;
-- nothing changed: the first column of the key stands in
update line set note = note;
:show
delete from line where pos = 1;
truncate line;
:show

-- quotes and backslashes, and a session that reads them differently
insert into line values (1, 'it''s', E'C:\\dir\\''q''', null);
update line set note = E'\\' where pos = 1;
update line set note = E'tab\tnewline\nbell\a' where pos = 1;
set standard_conforming_strings = off;
update line set note = 'it''s' where pos = 1;
set standard_conforming_strings = on;
delete from line;
:show

-- types without equality are compared as text; so is everything whose text can differ between equal values
create table odd (id int primary key, j json, jb jsonb, p point, f float8, b bytea, n numeric);
create trigger capture after insert or update or delete on odd
    for each row execute function pgq.sqltriga('capture_sqltriga');
insert into odd values (1, '{"a":1}', '{"a":1}', '(1,1)', 0, '\x00', 1.0);
update odd set j = '{"a": 1}', jb = '{"a": 1}', p = '(1,1)', f = 0, b = '\x00', n = 1.0;
update odd set j = '{"a": 2}', p = '(1,2)', f = '-0', n = 1.00;
update odd set f = 'NaN', b = '\xff';
update odd set f = 'NaN', b = '\xff';
:show

-- a value that is stored out of line is compared, and sent, as what it is
create table wide (id int primary key, body text, note text);
alter table wide alter body set storage external;
create trigger capture after insert or update or delete on wide
    for each row execute function pgq.sqltriga('capture_sqltriga');
insert into wide select 1, repeat('0123456789', 20000);
update wide set note = 'touched';
update wide set body = repeat('0123456789', 20000);
update wide set body = repeat('0123456789', 19999) || 'x123456789';
select ev_type, length(ev_data), left(ev_data, 40) from :events order by ev_id;
delete from :events;

-- no key
create table keyless (a int unique, b text);
create trigger capture after insert or update or delete on keyless
    for each row execute function pgq.sqltriga('capture_sqltriga');
insert into keyless values (1, 'x');
update keyless set b = 'y';
delete from keyless;
:show

-- no columns at all, or none that count
create table empty ();
create trigger capture after insert on empty for each row execute function pgq.sqltriga('capture_sqltriga');
insert into empty default values;
create trigger capture_2 after insert or update or delete on keyless
    for each row execute function pgq.sqltriga('capture_sqltriga', 'ignore=a,b', 'pkey=a');
drop trigger capture on keyless;
insert into keyless values (2, 'x');
update keyless set b = 'z';
delete from keyless;
:show

-- dropped columns leave no trace
alter table line drop column note;
alter table line add column extra bool default true;
insert into line values (5, 'e', 5);
update line set extra = false;
delete from line;
:show

-- executed as they are, the events make a copy
create table source (id int primary key, "Mixed Case" text, "select" text, n numeric);
create table copy (like source including all);
create trigger capture after insert or update or delete on source
    for each row execute function pgq.sqltriga('capture_sqltriga');
insert into source select i, E'\\' || i, repeat('''', i), i::numeric / 3 from generate_series(1, 6) as i;
update source set "Mixed Case" = null, n = 1.0 where id % 2 = 0;
update source set "select" = '"' where id > 4;
update source set id = id + 100 where id = 2;
delete from source where id = 3;
do $$
declare
    event record;
begin
    for event in select ev_type, ev_data from pgq.event_template
        where tableoid = pgq.current_event_table('capture_sqltriga')::regclass order by ev_id
    loop
        execute case event.ev_type when 'I' then 'insert into copy ' when 'U' then 'update copy set ' else 'delete from copy where ' end
            || event.ev_data;
    end loop;
end $$;
select * from copy order by id;
select count(*) as differences from
    ((table source except table copy) union all (table copy except table source)) as difference;

select pgq.drop_queue('capture_sqltriga', true);
drop schema capture_sqltriga cascade;
