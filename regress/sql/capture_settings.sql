--
-- What a session has set must not change what an event says: another session reads it, with other settings. The setting
-- pgcascade.fixed_output (on) sees to that; off, events have the session's own text, as upstream's have.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset format unaligned
\pset tuples_only on
\pset null (null)
create schema capture_settings;
set search_path = capture_settings;
select pgq.create_queue('capture_settings');
select queue_data_pfx as events from pgq.queue where queue_name = 'capture_settings' \gset
\set show 'select ev_type, ev_data, ev_extra2, ev_extra3 from :events order by ev_id; delete from :events;'

create domain day as date;
create type visit as (at timestamptz, price money);
create table t (
    id int primary key, d date, ts timestamp, tz timestamptz, i interval, r float4, f float8, b bytea, m money,
    dd day, da date[], v visit, dr daterange, "from" text);
create trigger "1_logu" after insert or update or delete on t for each row execute function pgq.logutriga('capture_settings', 'backup', 'ev_extra3=d');
create trigger "2_sql" after insert or update or delete on t for each row execute function pgq.sqltriga('capture_settings', 'backup', 'ev_extra3=f::text');
create trigger "3_json" after insert or update or delete on t for each row execute function pgq.jsontriga('capture_settings', 'backup', 'ev_extra3=b');

create function write(i_id int) returns void language sql as $$
    insert into t values (i_id, make_date(2024, 4, 3), make_timestamp(2024, 4, 3, 5, 6, 7.089), timestamptz 'epoch', make_interval(1, 2, 0, 3, 4, 5, 6.7),
        float4 '0.1', float8 '0.30000000000000004', decode('00ff5c41', 'hex'), money(-1.5), make_date(2024, 4, 3), array[make_date(2024, 4, 3)],
        row(timestamptz 'epoch', money(1.5)), daterange(make_date(2024, 4, 3), null), E'\\');
    update t set d = d + 1 where id = i_id;
    delete from t where id = i_id;
$$;

-- the settings of R8 and two more that reach into events
create procedure odd_settings() language plpgsql as $$
begin
    set datestyle = 'SQL, DMY';
    set intervalstyle = 'iso_8601';
    set extra_float_digits = 0;
    set bytea_output = 'escape';
    set timezone = 'Asia/Tokyo';
    set quote_all_identifiers = on;
end $$;
create procedure other_settings() language plpgsql as $$
begin
    set datestyle = 'Postgres, MDY';
    set intervalstyle = 'sql_standard';
    set extra_float_digits = -5;
    set bytea_output = 'escape';
    set timezone = 'America/Caracas';
    set quote_all_identifiers = off;
end $$;

select name, setting from pg_settings where name = 'pgcascade.fixed_output';
call odd_settings();
select write(1);
:show
call other_settings();
select write(2);
:show
-- nothing of this is left behind in the session
select name, setting from pg_settings
where name in ('DateStyle', 'IntervalStyle', 'extra_float_digits', 'bytea_output', 'lc_monetary', 'TimeZone', 'quote_all_identifiers') order by lower(name);
-- not after an error either, caught or not
create trigger "4_fails" after insert on t for each row execute function pgq.logutriga('capture_settings', 'ev_extra4=1/(id - 3)');
select write(3);
do $$
begin
    perform write(3);
exception when division_by_zero then
    raise warning 'caught, with DateStyle %', current_setting('datestyle');
end $$;
select name, setting from pg_settings
where name in ('DateStyle', 'IntervalStyle', 'extra_float_digits', 'bytea_output') order by lower(name);
drop trigger "4_fails" on t;
-- a setting of this transaction only is still one
begin;
set local datestyle = 'German';
select write(4);
show datestyle;
savepoint s;
set local datestyle = 'ISO, YMD';
select write(5);
rollback to s;
show datestyle;
commit;
show datestyle;
select ev_type, ev_extra3 from :events where ev_type like 'I:%' order by ev_id;
delete from :events;
-- nor does a function that has settings of its own see others'
create function tidy(i_id int) returns text language plpgsql set datestyle = 'German' as $$
begin
    perform write(i_id);
    return current_setting('datestyle');
end $$;
select tidy(6);
show datestyle;
select ev_type, ev_extra3 from :events where ev_type like 'I:%' order by ev_id;
delete from :events;

-- with it off, upstream's text
set pgcascade.fixed_output = off;
call odd_settings();
select write(7);
:show
call other_settings();
select write(8);
:show
-- and on again
set pgcascade.fixed_output = on;
call odd_settings();
select write(9);
select ev_type, ev_extra3 from :events where ev_type like 'I:%' order by ev_id;
delete from :events;
reset pgcascade.fixed_output;

-- events written under any settings are read back the same under any other
create table copy (like t including all);
alter table t disable trigger "1_logu";
alter table t disable trigger "3_json";
call odd_settings();
insert into t select 10, make_date(2024, 4, 3), make_timestamp(2024, 4, 3, 5, 6, 7.089), timestamptz 'epoch', make_interval(1, 2, 0, 3, 4, 5, 6.7),
    float4 '0.1', float8 '0.30000000000000004', decode('00ff5c41', 'hex'), money(-1.5), make_date(2024, 4, 3), array[make_date(2024, 4, 3)],
    row(timestamptz 'epoch', money(1.5))::visit, daterange(make_date(2024, 4, 3), null), E'\\';
reset all;
set client_min_messages = warning;
set search_path = capture_settings;
do $$
declare
    event text;
begin
    for event in select ev_data from pgq.event_template
        where tableoid = pgq.current_event_table('capture_settings')::regclass order by ev_id
    loop
        execute 'insert into copy ' || event;
    end loop;
end $$;
select t::text = copy::text as same from t, copy;

-- names in values of the reg* types are read by a session with another search_path
create table named (id int primary key, c regclass, f regproc);
create function ours() returns int language sql as 'select 1';
create trigger capture after insert on named for each row execute function pgq.logutriga('capture_settings');
insert into named values (1, 'capture_settings.named', 'capture_settings.ours');
set search_path = '';
insert into capture_settings.named values (2, 'capture_settings.named', 'capture_settings.ours');
set search_path = capture_settings;
select ev_data from :events where ev_extra1 ~ 'named' order by ev_id;

select pgq.drop_queue('capture_settings', true);
drop schema capture_settings cascade;
