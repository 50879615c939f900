--
-- The arguments of the capture triggers, all three formats side by side, and what each misuse is told.
--
set client_min_messages = warning;
set client_encoding = 'UTF8';
\set SHOW_CONTEXT never
\pset format unaligned
\pset tuples_only on
\pset null (null)
create schema capture_args;
set search_path = capture_args;
select pgq.create_queue('capture_args');
select queue_data_pfx as events from pgq.queue where queue_name = 'capture_args' \gset
\set show 'select ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4 from :events order by ev_id; delete from :events;'

create table t (id int primary key, a text, b text);

-- Replaces the triggers of a table by one of each format (1_logu, 2_sql, 3_json: they fire in the order of their names).
create procedure trigger_on(args text, timing text default 'after', tab text default 't') language plpgsql as $$
declare
    kind text;
begin
    foreach kind in array '{1_logu,2_sql,3_json}'::text[] loop
        execute format('drop trigger if exists %I on %s', kind, tab);
        execute format('create trigger %I %s insert or update or delete on %s for each row execute function pgq.%striga(''capture_args''%s)',
            kind, timing, tab, substr(kind, 3), ', ' || args);
    end loop;
end $$;

-- Runs a command, says how it went, and undoes it.
create function try(command text) returns text language plpgsql as $$
declare
    state text;
    message text;
begin
    begin
        execute command;
        raise exception using errcode = 'UNDO0';
    exception when others then
        get stacked diagnostics state = returned_sqlstate, message = message_text;
    end;
    return case state when 'UNDO0' then 'ok' else state || ': ' || message end;
end $$;

-- For one trigger made by `definition`, what `command` is told. Nothing stays of either.
create function told(definition text, command text default 'insert into t values (0)') returns text language plpgsql as $$
declare
    answer text;
begin
    execute 'create trigger told ' || definition;
    answer = try(command);
    drop trigger told on t;
    return answer;
end $$;

-- ignore=: columns left out; an update of nothing else is no event, but one that changes nothing at all is
call trigger_on($$'ignore=b'$$);
insert into t values (1, 'x', 'y');
update t set b = 'z';
:show
update t set a = 'w', b = 'zz';
update t set b = b;
delete from t;
:show
-- several columns; the last list counts; names that the table does not have, and none at all
call trigger_on($$'ignore=a,b'$$);
insert into t values (2, 'x', 'y');
update t set a = 'aa', b = 'bb';
call trigger_on($$'ignore=a', 'ignore=b'$$);
insert into t values (3, 'x', 'y');
call trigger_on($$'ignore=nosuch,b'$$);
insert into t values (4, 'x', 'y');
call trigger_on($$'ignore='$$);
insert into t values (5, 'x', 'y');
call trigger_on($$'ignore=A'$$);
insert into t values (6, 'x', 'y');
:show
-- the key may be left out of the data
call trigger_on($$'ignore=id'$$);
update t set a = 'u' where id = 6;
delete from t;
:show

-- pkey=: another key, in the order given
call trigger_on($$'pkey=a'$$);
insert into t values (1, 'x', 'y');
update t set b = 'n';
update t set id = 11;
delete from t;
:show
call trigger_on($$'pkey=b,a'$$);
insert into t values (1, 'x', 'y');
update t set id = 11;
delete from t;
:show
-- the last list counts
call trigger_on($$'pkey=id', 'pkey=a'$$);
insert into t values (1, 'x', 'y');
delete from t;
:show
-- an empty list is no key
call trigger_on($$'pkey='$$);
insert into t values (1, 'x', 'y');
:show
select try('update t set a = 1');
select try('delete from t');
-- a table without a key gets one
create table keyless (a int, b text);
call trigger_on($$'pkey=a'$$, tab => 'keyless');
insert into keyless values (1, 'x'), (2, null);
update keyless set b = 'n' where a = 1;
delete from keyless where a = 1;
:show
-- a key must be there
select told($$after insert or update or delete on t for each row execute function pgq.logutriga('capture_args', 'pkey=nosuch')$$);
select told($$after insert or update or delete on t for each row execute function pgq.sqltriga('capture_args', 'pkey=id,nosuch')$$);
select told($$after insert or update or delete on t for each row execute function pgq.jsontriga('capture_args', 'pkey=ID')$$);

-- backup: an update has the old row in ev_extra2
delete from :events;
call trigger_on($$'backup'$$);
truncate t;
insert into t values (1, 'x', null);
update t set b = 'n';
update t set b = b;
delete from t;
:show
call trigger_on($$'backup', 'ignore=b'$$);
insert into t values (1, 'x', null);
update t set a = 'n', b = 'o';
update t set b = 'oo';
:show
-- an expression for ev_extra2 is asked for by name, so it wins
call trigger_on($$'ev_extra2=a', 'backup'$$);
update t set a = 'nn';
call trigger_on($$'backup', 'ev_extra2=a'$$);
update t set a = 'nnn';
:show

-- deny: before anything else, whatever the rest says
call trigger_on($$'deny', 'ignore=b', 'when=false'$$);
select try('insert into t values (2)');
select try('update t set b = 1');
select try('update t set b = b');
select try('delete from t');
select told($$after insert on t for each row execute function pgq.sqltriga('capture_args', 'deny')$$);
call trigger_on($$'when=false'$$);
select told($$before insert or delete on t for each row execute function pgq.sqltriga('capture_args', 'deny')$$);
select told($$before insert or delete on t for each row execute function pgq.jsontriga('capture_args', 'deny')$$, 'delete from t');
select told($$before truncate on t for each statement execute function pgq.logutriga('capture_args', 'deny')$$, 'truncate t');
select told($$after truncate on t for each statement execute function pgq.jsontriga('capture_args', 'deny')$$, 'truncate t');
-- no queue is needed to refuse
select told($$after insert on t for each row execute function pgq.logutriga('no such queue', 'deny')$$);
:show
select * from t;

-- SKIP: the event instead of the row
call trigger_on($$'when=false'$$);
drop trigger "2_sql" on t;
drop trigger "3_json" on t;
create or replace trigger "1_logu" before insert or update or delete on t
    for each row execute function pgq.logutriga('capture_args', 'SKIP');
insert into t values (2, 'x', 'y');
update t set a = 'skipped';
delete from t;
create or replace trigger "1_logu" before insert or update or delete on t
    for each row execute function pgq.jsontriga('capture_args', 'SKIP');
update t set a = 'skipped';
-- no event, and no row either
create or replace trigger "1_logu" before insert or update or delete on t
    for each row execute function pgq.sqltriga('capture_args', 'SKIP', 'when=a is null');
insert into t values (2, 'x', 'y'), (3, null, null);
:show
select * from t;
-- without it the row is stored
create or replace trigger "1_logu" before insert or update or delete on t
    for each row execute function pgq.logutriga('capture_args');
insert into t values (2, 'x', 'y');
update t set a = 'v' where id = 2;
:show
select * from t;
drop trigger "1_logu" on t;
-- a truncate cannot be skipped, nor can anything be after the fact
create trigger skip before truncate on t for each statement execute function pgq.logutriga('capture_args', 'SKIP');
truncate t;
drop trigger skip on t;
:show
select count(*) from t;
select told($$after insert on t for each row execute function pgq.logutriga('capture_args', 'SKIP')$$);
select told($$after insert on t for each row execute function pgq.sqltriga('capture_args', 'SKIP')$$);
select told($$after insert on t for each row execute function pgq.jsontriga('capture_args', 'SKIP')$$);
select told($$after truncate on t for each statement execute function pgq.jsontriga('capture_args', 'SKIP')$$, 'truncate t');

-- expressions for each field, over the new row; over the old one for a delete
call trigger_on($$'ev_type=''T'' || a', 'ev_data=b', 'ev_extra1=id', 'ev_extra2=a || b', 'ev_extra3=null', 'ev_extra4=''four'''$$);
insert into t values (1, 'x', null), (2, 'x', 'y');
update t set a = 'u' where id = 2;
delete from t;
:show
-- any field may become NULL
call trigger_on($$'ev_type=null', 'ev_data=null', 'ev_extra1=null'$$);
insert into t values (5, 'x', 'y');
:show
-- what an expression may be; all three formats read it with the same code
call trigger_on($$'when=false'$$);
drop trigger "2_sql" on t;
drop trigger "3_json" on t;
truncate t;
create table words (id int primary key, a text, "Up" text, lower text, "order" text, "x,y" text, "say ""hi""" text, "naïve" text);
create function value_of(expression text) returns text language plpgsql as $$
declare
    result text;
begin
    execute format('create trigger value after insert on words for each row execute function pgq.logutriga(%L, %L)',
        'capture_args', 'ev_extra4=' || expression);
    result = try('insert into words values (1, ''Aa'', ''Up'', ''low'', ''sel'', ''x&y'', ''hi'', ''nv'')');
    if result = 'ok' then
        insert into words values (1, 'Aa', 'Up', 'low', 'sel', 'x&y', 'hi', 'nv');
        select quote_nullable(ev_extra4) into result from pgq.event_template
            where tableoid = pgq.current_event_table('capture_args')::regclass order by ev_id desc limit 1;
        delete from words;
    end if;
    drop trigger value on words;
    return result;
end $$;
select expression, value_of(expression) from unnest(array['id', 'id::text || a', 'cast(id as text)', ' a ', 'Up', 'order', 'lower',
    'case when id > 0 then a end', 'id+1.5e3', 'array[a, lower]', 'row(id, a)', 'id::int8::text', 'a=a', 'date ''2024-03-04''', 'id > 0', '@ -5', '',
    $$'id a ' || a$$, $$'it''s id' || a$$, $$E'it\'s id' || a$$, '$x$id a$x$ || a', 'a /* id a */', 'a -- id a', 'a || chr(10) || a',
    'pg_catalog.upper(a)', 'upper(a)', '(select a where id = 1)', 'pgq.current_event_table(''capture_args'') is not null']) as expression;
-- quoted names, functions that have the name of a column, names beyond ASCII, aliases
select expression, value_of(expression) from unnest(array['"Up"', '"a"', '"x,y" || a', '"say ""hi"""', '"naïve"', 'naïve', 'lower(a)', 'lower (a)',
    'a collate "C"', '"order"', '(select a from (values (1)) as "v" ("w"))', '(select count(*) from pg_catalog.pg_database where datname = ''template1'')',
    '(select words.a from words)', '(select v.oid from pg_catalog.pg_class v limit 0)']) as expression;
delete from :events;
-- what goes wrong
-- (without the rest of the statement around an expression, which an open quote swallows)
create function wrong(argument text) returns text language sql as $$
    select regexp_replace(told(format('after insert on t for each row execute function pgq.logutriga(%L, %L)', 'capture_args', argument)),
        '(at or near "''unterminated).*', '\1');
$$;
select argument, wrong(argument) from unnest(array['ev_extra4=nosuch', 'ev_extra4=A', 'ev_extra4=id ||', 'ev_extra4=new.id', 'ev_extra4=t.id',
    'ev_extra4=tableoid', 'ev_extra4=$1', 'ev_extra4=id; select 1', 'ev_extra4=''unterminated', 'ev_extra4="unterminated',
    'ev_extra4=generate_series(1,2)', 'ev_extra4=1 where false', 'ev_extra4=1/0', 'ev_extra4=id, a']) as argument;

-- when=: only rows for which it is true
call trigger_on($$'when=id > 20'$$);
truncate t;
insert into t values (20, 'x', 'y'), (21, 'x', 'y');
update t set a = 'n';
delete from t;
:show
-- an update is judged by its new row
call trigger_on($$'when=a is null', 'ignore=b'$$);
insert into t values (1, 'x', 'y');
update t set a = null;
update t set a = 'x';
:show
drop trigger "1_logu" on t;
drop trigger "2_sql" on t;
drop trigger "3_json" on t;
select argument, wrong(argument) from unnest(array['when=null::bool', 'when=id', 'when=a', 'when=', 'when=nosuch', 'when=true where false']) as argument;

-- arguments that do not exist: case and spaces count
select quote_literal(argument), wrong(argument) from unnest(array['', 'bogus', 'bogus=1', 'skip', 'Backup', 'DENY', 'ev_id=1', 'ev_extra5=1', 'EV_EXTRA4=a',
    ' ev_extra4=a', 'ev_extra4 =a', 'when = true', 'ignore', 'pkey']) as argument;
-- no queue, and a queue that is not
select told('after insert on t for each row execute function pgq.logutriga()');
select told('after insert on t for each row execute function pgq.sqltriga()');
select told('after insert on t for each row execute function pgq.jsontriga()');
select told($$after insert on t for each row execute function pgq.logutriga('')$$);
select told($$after insert on t for each row execute function pgq.jsontriga('no such queue')$$);
-- wrong level; no trigger at all
select told($$after insert on t for each statement execute function pgq.logutriga('capture_args')$$);
select told($$after insert on t for each statement execute function pgq.sqltriga('capture_args')$$);
select told($$after insert on t for each statement execute function pgq.jsontriga('capture_args')$$);
select try('select pgq.logutriga()') ~ 'called as trigger';
select try('select pgq.sqltriga()') ~ 'called as trigger';
select try('select pgq.jsontriga()') ~ 'called as trigger';
-- a truncate has no rows
select argument, told(format('after truncate on t for each statement execute function pgq.logutriga(''capture_args'', %L)', argument), 'truncate t')
from unnest(array['ignore=a', 'pkey=a', 'backup', 'when=true', 'ev_type=''x''', 'ev_data=''x''', 'ev_extra3=''x''', 'bogus']) as argument;

-- magic columns: hidden, and each sets its field, even to NULL
create table magic (id int primary key, _pgq_ev_type text, a text, _pgq_ev_extra1 text, _pgq_ev_extra2 text, _pgq_ev_extra3 int, _pgq_ev_extra4 date);
call trigger_on($$'when=true'$$, tab => 'magic');
delete from :events;
insert into magic values (1, 'my type', 'x', 'e1', 'e2', 3, '2024-03-04');
insert into magic values (2);
update magic set a = 'u' where id = 1;
update magic set _pgq_ev_extra1 = 'changed' where id = 1;
delete from magic where id = 1;
:show
-- an argument wins over them, they win over backup, and ignore= does not unset them
call trigger_on($$'backup', 'ev_extra1=''argument''', 'ev_extra3=id', 'ignore=_pgq_ev_type'$$, tab => 'magic');
insert into magic values (3, 'my type', 'x', 'e1', 'e2', 3, '2024-03-04');
update magic set a = 'u' where id = 3;
:show
-- all the prefix's columns are hidden; the prefix is lower case
create table magic_2 ("_PGQ_ev_type" text, id int primary key, _pgq_other int, _pgq_ev_data text);
call trigger_on($$'when=true'$$, tab => 'magic_2');
insert into magic_2 values ('ordinary', 1, 42, 'data');
:show

-- place: where an insert has put its row, by server, database, table and block; about one row to a block here
create table placed (a int, b text) with (fillfactor = 10);
call trigger_on($$'place'$$, tab => 'placed');
insert into placed select n, repeat('x', 700) from generate_series(1, 5) n;
select count(*) as events, count(distinct e.ev_extra4) > 3 as blocks, count(*) filter (where e.ev_extra4 = concat_ws(':',
           (select system_identifier from pg_control_system()), (select oid from pg_database where datname = current_database()),
           'placed'::regclass::oid, (p.ctid::text::point)[0])) as right_ones
  from (select * from :events) e join placed p on e.ev_data ~ ('^(a=|\{"a":|\(a,b\) values \(.)' || p.a || '\D');
delete from :events;
-- of the partition that the row went into
create table placed_parted (a int) partition by list (a);
create table placed_one partition of placed_parted for values in (1);
call trigger_on($$'place'$$, tab => 'placed_parted');
insert into placed_parted values (1);
select count(*), count(*) filter (where split_part(ev_extra4, ':', 3) = 'placed_one'::regclass::oid::text) as of_partition from :events;
delete from :events;
-- of nothing else: an update, one of the key, a row that is nowhere yet; and an expression wins
delete from t;
call trigger_on($$'place'$$);
insert into t values (71, 'x', 'y');
delete from :events;
update t set a = 'z';
update t set id = 72;
delete from t;
:show
call trigger_on($$'place'$$, 'before');
insert into t values (73, 'x', 'y');
:show
call trigger_on($$'ev_extra4=b', 'place'$$);
insert into t values (74, 'x', 'y');
:show
select told($$after truncate on t for each statement execute function pgq.logutriga('capture_args', 'place')$$, 'truncate t');

select pgq.drop_queue('capture_args', true);
drop schema capture_args cascade;
