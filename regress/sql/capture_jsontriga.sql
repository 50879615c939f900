--
-- pgq.jsontriga: the row as a JSON object, and what happened to it as another.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
set timezone = 'Asia/Kolkata';
\pset format unaligned
\pset tuples_only on
\pset null (null)
create schema capture_jsontriga;
set search_path = capture_jsontriga;
select pgq.create_queue('capture_jsontriga');
select queue_data_pfx as events from pgq.queue where queue_name = 'capture_jsontriga' \gset
\set show 'select ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4 from :events order by ev_id; delete from :events;'

create table line (pos int, purchase text, note text, price numeric, primary key (purchase, pos));
create trigger capture after insert or update or delete on line
    for each row execute function pgq.jsontriga('capture_jsontriga');
create trigger capture_truncate after truncate on line
    for each statement execute function pgq.jsontriga('capture_jsontriga');
insert into line values (1, 'a', null, 1.50), (2, 'b', '', null);
:show
update line set note = 'x y' where pos = 1;
update line set note = null, price = 2.00 where pos = 1;
update line set note = note;
delete from line where pos = 1;
truncate line;
:show

-- what is native JSON and what is a string
create domain small as int check (value < 100);
create domain flag as bool;
create domain moment as timestamptz;
create table native (
    id int8 primary key, yes bool, no bool, i2 int2, i4 int4, o oid, f4 float4, f8 float8, n numeric,
    ts timestamp, tz timestamptz, d date, t time, tt timetz, j json, jb jsonb, a int[], ab bool[], small small, flag flag, moment moment);
create trigger capture after insert or update or delete on native
    for each row execute function pgq.jsontriga('capture_jsontriga');
insert into native values (
    9007199254740993, true, false, -3, 2147483647, 42, 0.5, 1e300, 1.10,
    '2024-03-04 05:06:07.089', '2024-03-04 05:06:07+00', '2024-03-04', '05:06:07', '05:06:07+02',
    '{"a" : [1, "x"]}', '{"a" : 1}', '{1,null}', '{t,f}', 7, true, '2024-03-04 05:06:07+00');
insert into native (id, f4, f8, n, ts, tz, d) values (-1, 'NaN', '-Infinity', 'Infinity', 'infinity', '-infinity', 'infinity');
insert into native (id, f8, ts, tz, d) values (0, '-0', '0044-03-15 12:00 BC', '0044-03-15 12:00+00 BC', '0044-03-15 BC');
:show

-- strings: all of ASCII, and some beyond; every one of them valid JSON
select string_agg(chr(i), '' order by i) as ascii from generate_series(1, 127) as i \gset
insert into line values (1, 'chars', :'ascii');
insert into line values (2, 'chars', 'naïve ' || U&'\20AC\+01F600\2028');
select ev_data::json ->> 'note' in (:'ascii', 'naïve ' || U&'\20AC\+01F600\2028') as same from :events order by ev_id;
:show

-- names are strings, too
create table "a.""b\c" ("id ""x""" int primary key, "tab	" int);
create trigger capture after insert or update or delete on "a.""b\c"
    for each row execute function pgq.jsontriga('capture_jsontriga');
insert into "a.""b\c" values (1, 2);
select ev_type::json #>> '{table,1}', ev_type::json #>> '{pkey,0}', ev_data::json ->> 'tab	' from :events;
:show

-- no key; no columns
create table keyless (a int unique, b text);
create trigger capture after insert or update or delete on keyless
    for each row execute function pgq.jsontriga('capture_jsontriga');
insert into keyless values (1, 'x');
update keyless set b = 'y';
delete from keyless;
create table empty ();
create trigger capture after insert on empty for each row execute function pgq.jsontriga('capture_jsontriga');
insert into empty default values;
:show

select pgq.drop_queue('capture_jsontriga', true);
drop schema capture_jsontriga cascade;
