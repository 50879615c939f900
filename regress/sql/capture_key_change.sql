--
-- An update that changes the key becomes a delete of the old row and an insert of the new one, in this order. (Upstream refuses
-- such an update.)
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset format unaligned
\pset tuples_only on
\pset null (null)
create schema capture_key_change;
set search_path = capture_key_change;
select pgq.create_queue('capture_key_change');
select queue_data_pfx as events from pgq.queue where queue_name = 'capture_key_change' \gset
\set show 'select ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4 from :events order by ev_id; delete from :events;'

create procedure trigger_on(tab text, args text default '', timing text default 'after') language plpgsql as $$
declare
    kind text;
begin
    foreach kind in array '{1_logu,2_sql,3_json}'::text[] loop
        execute format('drop trigger if exists %I on %s', kind, tab);
        execute format('create trigger %I %s insert or update or delete on %s for each row execute function pgq.%striga(''capture_key_change''%s)',
            kind, timing, tab, substr(kind, 3), args);
    end loop;
end $$;

create table t (id int primary key, v text, w text);
insert into t values (1, 'one', null), (2, 'two', '');
call trigger_on('t');
update t set id = 3 where id = 1;
:show
update t set id = 1, v = 'eins' where id = 3;
-- the same key again is an update
update t set id = 1, v = 'uno' where id = 1;
:show
-- several rows: each row's pair stays together
update t set id = id + 10;
:show
-- as part of another statement
insert into t values (11, 'x') on conflict (id) do update set id = 21;
merge into t using (values (12)) as s (i) on id = i when matched then update set id = 22;
:show

-- one column of several
create table line (pos int, purchase text, note text, primary key (purchase, pos));
insert into line values (1, 'a', 'n');
call trigger_on('line');
update line set pos = 2;
update line set purchase = 'b';
update line set purchase = 'c', pos = 3, note = null;
:show

-- a swap, which only a deferred key allows
create table swap (id int primary key deferrable initially deferred, v text);
insert into swap values (1, 'one'), (2, 'two');
create trigger capture after update on swap for each row execute function pgq.logutriga('capture_key_change');
update swap set id = 3 - id;
select * from swap order by id;
:show

-- a key that is equal but not the same is another one: the text by which it is looked for has changed
create table equal (id numeric, f float8, primary key (id, f));
insert into equal values (1, 0);
call trigger_on('equal');
update equal set id = 1.0, f = '-0';
update equal set id = 1.00;
:show
-- and so are these
create table unequal (id text primary key);
insert into unequal values ('a');
call trigger_on('unequal');
update unequal set id = 'A';
update unequal set id = 'A ';
:show

-- a key given by pkey=: that one counts, and the table's own does not
create table given (id int primary key, a text, j json);
insert into given values (1, 'x', '{}');
call trigger_on('given', $$, 'pkey=a'$$);
update given set id = 2;
update given set a = 'y';
:show
-- NULL is a key like any other here
update given set a = null;
update given set a = null;
update given set a = 'z';
:show
-- a type without equality can be a key as well
call trigger_on('given', $$, 'pkey=j'$$);
update given set j = '{}';
update given set j = '{ }';
:show

-- arguments: a backup is an update's, the pair needs none; expressions see the row of their event
call trigger_on('t', $$, 'backup'$$);
update t set id = 31 where id = 21;
:show
call trigger_on('t', $$, 'ev_extra2=v', 'ev_extra3=id', 'when=id < 40'$$);
update t set id = 32, v = 'new' where id = 31;
-- only the old row is wanted, then only the new one
update t set id = 41 where id = 32;
update t set id = 33 where id = 41;
:show
call trigger_on('t', $$, 'ignore=v,w'$$);
update t set id = 34, v = 'ignored' where id = 33;
:show
-- a change of ignored columns alone is no event, even if they are the key
call trigger_on('t', $$, 'ignore=id'$$);
update t set id = 35 where id = 34;
:show
call trigger_on('t', $$, 'deny'$$);
update t set id = 36 where id = 35;
call trigger_on('t', $$, 'SKIP'$$, 'before');
update t set id = 36 where id = 35;
select id from t where id > 30;
:show

-- a row that moves to another partition, with and without another key
create table parted (id int, day int, primary key (id, day)) partition by range (day);
create table parted_1 partition of parted for values from (0) to (10);
create table parted_2 partition of parted for values from (10) to (20);
insert into parted values (1, 1);
create trigger capture after insert or update or delete on parted
    for each row execute function pgq.logutriga('capture_key_change');
update parted set id = 2;
update parted set day = 11;
:show

-- a foreign key that follows
create table child (id int primary key references t on update cascade on delete cascade, v text);
insert into child values (35, 'c');
call trigger_on('t');
call trigger_on('child');
update t set id = 37 where id = 35;
:show

-- played back as they are, sqltriga's events lead to the same rows
create table source (id int primary key, v text);
create table copy (like source including all);
insert into source select i, 'v' || i from generate_series(1, 5) as i;
insert into copy select * from source;
create trigger capture after insert or update or delete on source
    for each row execute function pgq.sqltriga('capture_key_change');
update source set id = id + 100 where id > 3;
update source set id = 4, v = null where id = 104;
delete from source where id = 105;
update source set id = 5 where id = 3;
insert into source values (3, 'again');
do $$
declare
    event record;
begin
    for event in select ev_type, ev_data from pgq.event_template
        where tableoid = pgq.current_event_table('capture_key_change')::regclass order by ev_id
    loop
        execute case event.ev_type when 'I' then 'insert into copy ' when 'U' then 'update copy set ' else 'delete from copy where ' end
            || event.ev_data;
    end loop;
end $$;
select * from copy order by id;
select count(*) as differences from
    ((table source except table copy) union all (table copy except table source)) as difference;

select pgq.drop_queue('capture_key_change', true);
drop schema capture_key_change cascade;
