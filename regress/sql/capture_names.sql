--
-- Names that are not plain words, and names that change. Upstream joins names as they are; here a name with a dot, a comma, a
-- quote or a colon is quoted, so that no two tables and no two keys look alike.
--
set client_min_messages = warning;
set client_encoding = 'UTF8';
\set SHOW_CONTEXT never
\pset format unaligned
\pset tuples_only on
\pset null (null)
create schema capture_names;
set search_path = capture_names;
select pgq.create_queue('capture_names');
select queue_data_pfx as events from pgq.queue where queue_name = 'capture_names' \gset
\set show 'select ev_type, ev_data, ev_extra1 from :events order by ev_id; delete from :events;'

create procedure trigger_on(tab text, args text default '') language plpgsql as $$
declare
    kind text;
begin
    foreach kind in array '{1_logu,2_sql,3_json}'::text[] loop
        execute format('drop trigger if exists %I on %s', kind, tab);
        execute format('create trigger %I after insert or update or delete on %s for each row execute function pgq.%striga(''capture_names''%s)',
            kind, tab, substr(kind, 3), args);
    end loop;
end $$;

-- two tables that must not be taken for one
create schema "capture_names.a";
create table "capture_names.a".b (id int primary key);
create table "a.b" (id int primary key);
call trigger_on('"capture_names.a".b');
call trigger_on('"a.b"');
insert into "capture_names.a".b values (1);
insert into "a.b" values (1);
select distinct ev_extra1 from :events order by 1;
:show

-- one column of each kind, all of them in the key but one
create schema "capture_names É";
create table "capture_names É"."T,a:b""l e%=&" (
    "Id" int, "x,y" text, "a.b" text, "q""q" text, "c:c" text, "e=&%+ f" text, "Ünï" text, "back\sl'ash" text, "select" text, "x" text, "y" text,
    primary key ("x,y", "q""q", "Ünï", "c:c", "a.b", "Id", "e=&%+ f", "back\sl'ash", "x", "y"));
\set odd '"capture_names É"."T,a:b""l e%=&"'
call trigger_on(:'odd');
insert into :odd values (1, '2', '3', '4', '5', '6', '7', '8', '9', '10', '11');
update :odd set "select" = null;
delete from :odd;
:show
-- all of the key's columns can be told apart again
create table single ("""" int, "," int, "."  int, ":" int, """,""" int, " " int, primary key ("""", ",", ".", ":", """,""", " "));
call trigger_on('single');
insert into single values (1, 2, 3, 4, 5, 6);
:show

-- in pkey= and ignore= they are written as in an event type
call trigger_on(:'odd', $$, 'pkey="x,y",Id,"a.b"', 'ignore="c:c",select,"q""q"'$$);
insert into :odd values (1, '2', '3', '4', '5', '6', '7', '8', '9', '10', '11');
update :odd set "e=&%+ f" = 'six';
delete from :odd;
:show
-- and, where that is clear, plainly
call trigger_on(:'odd', $$, 'pkey=a.b,Ünï', 'ignore=c:c,e=&%+ f'$$);
insert into :odd values (1, '2', '3', '4', '5', '6', '7', '8', '9', '10', '11');
delete from :odd;
:show

-- 63 bytes are the longest name there is; 31 letters of two bytes each are 62
create table "sixty_three_bytes_0123456789_0123456789_0123456789_0123456789_1" (
    "sixty_three_bytes_0123456789_0123456789_0123456789_0123456789_2" int,
    "ééééééééééééééééééééééééééééééé" text,
    primary key ("sixty_three_bytes_0123456789_0123456789_0123456789_0123456789_2", "ééééééééééééééééééééééééééééééé"));
call trigger_on('"sixty_three_bytes_0123456789_0123456789_0123456789_0123456789_1"');
insert into "sixty_three_bytes_0123456789_0123456789_0123456789_0123456789_1" values (63, 'x');
:show
-- 63 quotes need two bytes each, and two more
select format('%I', repeat('"', 63)) as quotes \gset
create table :quotes (:quotes int primary key);
select format('%I', :'quotes') is not null as made;
create trigger capture after insert on :quotes for each row execute function pgq.logutriga('capture_names');
insert into :quotes values (1);
select length(ev_type), ev_type = 'I:"' || repeat('"', 126) || '"' as type,
    ev_extra1 = 'capture_names."' || repeat('"', 126) || '"' as tab, ev_data = repeat('%22', 63) || '=1' as data
from :events;
delete from :events;

-- a queue may have any name, too
select pgq.create_queue('capture_names "q''%s,.:é');
create table oddly_queued (id int primary key);
create trigger capture after insert on oddly_queued for each row execute function pgq.logutriga('capture_names "q''%s,.:é');
insert into oddly_queued values (1);
select ev_type, ev_data, ev_extra1 from pgq.event_template
where tableoid = pgq.current_event_table('capture_names "q''%s,.:é')::regclass;
create trigger refused after insert on oddly_queued for each row execute function pgq.logutriga('capture_names "q''%s,.:é', 'deny');
insert into oddly_queued values (2);
drop table oddly_queued;
select pgq.drop_queue('capture_names "q''%s,.:é', true);

-- a key column that is renamed keeps being the key, under its new name
create table renamed (k int primary key, v text);
call trigger_on('renamed');
insert into renamed values (1, 'a');
alter table renamed rename column k to "new.k";
insert into renamed values (2, 'a');
update renamed set v = 'b' where "new.k" = 2;
delete from renamed where "new.k" = 2;
:show
-- inside one transaction, and undone
begin;
alter table renamed rename column "new.k" to kk;
update renamed set v = 'c';
rollback;
update renamed set v = 'd';
:show
alter table renamed rename column "new.k" to k;
-- the table's own names
alter table renamed rename to moved;
alter table moved set schema "capture_names.a";
insert into "capture_names.a".moved values (3, 'a');
alter schema "capture_names.a" rename to "capture_names b";
insert into "capture_names b".moved values (4, 'a');
:show

-- a table that is altered between events
create table altered (id int primary key, a text, b text);
call trigger_on('altered');
insert into altered values (1, 'a', 'b');
alter table altered add column c int default 7;
update altered set a = 'aa';
alter table altered drop column a;
insert into altered values (2, 'bb', 8);
alter table altered alter column c type text using 'c' || c;
update altered set c = 'cc' where id = 2;
delete from altered where id = 1;
:show
begin;
alter table altered add column d text;
insert into altered values (3, 'b', 'c', 'd');
rollback;
insert into altered values (3, 'b', 'c');
begin;
alter table altered drop column b;
savepoint s;
alter table altered add column e int;
insert into altered values (4, 'c', 5);
rollback to s;
insert into altered values (5, 'c');
commit;
:show
-- the key goes, changes, comes back, and goes with its column
alter table altered drop constraint altered_pkey;
insert into altered values (6, 'c');
update altered set c = 'd';
alter table altered add primary key (c, id);
insert into altered values (7, 'd');
delete from altered where id = 7;
alter table altered drop column id;
insert into altered values ('e');
:show
-- a dropped column in front of the key, and none of the columns left but the key
create table shifted (gone int, id int primary key, v text);
alter table shifted drop column gone;
call trigger_on('shifted');
insert into shifted values (1, 'v');
alter table shifted drop column v;
insert into shifted values (2);
update shifted set id = id;
:show
-- columns that an argument names are looked up again as well
create table named (id int primary key, a text, b text);
call trigger_on('named', $$, 'ignore=a', 'ev_extra2=b'$$);
insert into named values (1, 'a', 'b');
alter table named rename column a to c;
alter table named rename column b to a;
\set VERBOSITY sqlstate
insert into named values (2, 'b', 'c');
\set VERBOSITY default
alter table named rename column a to b;
insert into named values (3, 'b', 'c');
select ev_type, ev_data, ev_extra2 from :events order by ev_id;
delete from :events;

-- a table that is dropped and made again
create table again (id int primary key, a text);
call trigger_on('again');
insert into again values (1, 'a');
drop table again;
create table again (b text primary key);
call trigger_on('again');
insert into again values ('b');
:show

-- a temporary table is a table
create temp table temporary (id int primary key);
create trigger capture after insert on temporary for each row execute function pgq.logutriga('capture_names');
insert into temporary values (1);
select ev_type, ev_data, ev_extra1 ~ '^pg_temp_[0-9]+\.temporary$' from :events;
drop table temporary;

select pgq.drop_queue('capture_names', true);
drop schema capture_names, "capture_names b", "capture_names É" cascade;
