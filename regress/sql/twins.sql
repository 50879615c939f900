--
-- The native triggers and those of this database, which are PL/pgSQL where the plain version is loaded (else this compares
-- the native ones with themselves): changes of random rows of many types give the same events, byte for byte.
--
set client_min_messages = warning;
set client_encoding = 'UTF8';
\set SHOW_CONTEXT never
\pset format unaligned
\pset tuples_only on
create schema twins;
set search_path = twins;
create function native_logutriga() returns trigger language c as '$libdir/pgcascade', 'logutriga_wrapper';
create function native_sqltriga() returns trigger language c as '$libdir/pgcascade', 'sqltriga_wrapper';
create function native_jsontriga() returns trigger language c as '$libdir/pgcascade', 'jsontriga_wrapper';
select pgq.create_queue('twins_native'), pgq.create_queue('twins_pgq');
select queue_data_pfx as native from pgq.queue where queue_name = 'twins_native' \gset
select queue_data_pfx as ours from pgq.queue where queue_name = 'twins_pgq' \gset

create type mood as enum ('sad', 'so so', '"fine"');
create type pair as (a int, b text);
create domain word as text;
create domain day as date;
create table t (
    id int primary key, i2 smallint, i8 bigint, n numeric, f4 real, f8 float8, m money, b bool, c char(4), "V" varchar(9), w word,
    "q""&=%" text, by bytea, d date, dd day, t time, tz timetz, ts timestamp, tsz timestamptz, i interval, u uuid, ip inet, bits bit varying,
    j json, jb jsonb, ia int[], ta text[], tsa timestamptz[], mo mood, p pair, pa pair[], r int4range, tr tstzrange, pt point, rc regclass,
    "select" "char", _pgq_ev_extra4 text, twice int generated always as (i2 * 2) stored);
create table sample (like t);

-- Letters that mean something somewhere.
create function words() returns text language sql volatile as $$
    select coalesce(string_agg(substr(E'ab =&%+\\''"\t\n\r\b\x7f/,.:;{}()<>-_~é漢😀Z09', 1 + (random() * 40)::int, 1), ''), '')
      from generate_series(1, (random() * 12)::int)
$$;
-- 200 rows; each value is null one time in six.
create function maybe(value anyelement) returns anyelement language sql volatile as 'select case when random() > 0.16 then value end';
select setseed(0.5) is not null as seeded;
insert into sample
select id, maybe((random() * 20000 - 10000)::smallint), maybe(((random() - 0.5) * 1.8e19)::bigint),
    maybe(round(((random() - 0.5) * 1e9)::numeric, (random() * 6)::int)), maybe(((random() - 0.5) * 10 ^ (random() * 30 - 15))::real),
    maybe((random() - 0.5) * 10 ^ (random() * 300 - 150)), maybe(((random() - 0.5) * 1e6)::numeric::money), maybe(random() > 0.5),
    maybe(left(words(), 4)), maybe(left(words(), 9)), maybe(words()), maybe(words()), maybe(convert_to(words(), 'UTF8')),
    maybe(case when random() > 0.9 then 'infinity' else at::date end), maybe(at::date), maybe(at::time), maybe(at::timetz),
    maybe(case when random() > 0.9 then '-infinity' else at::timestamp end), maybe(case when random() > 0.9 then 'infinity' else at end),
    maybe(make_interval((random() * 9 - 4)::int, (random() * 9 - 4)::int, 0, (random() * 9 - 4)::int, 0, 0, random() * 1e5 - 5e4)),
    maybe(md5(random()::text)::uuid), maybe('10.0.0.0'::inet + (random() * 1e6)::int), maybe((random() * 1e6)::int::bit(20)::bit varying),
    maybe(json_build_object(words(), words())), maybe(jsonb_build_array(words(), random() > 0.5, null, random())),
    maybe(array[(random() * 9)::int, null]), maybe(array[words(), null, words()]), maybe(array[at]), maybe((enum_range(null::mood))[1 + (random() * 2)::int]),
    maybe(case when random() > 0.7 then row(null, null)::pair else row((random() * 9)::int, words())::pair end), maybe(array[row(1, words())::pair, null]),
    maybe(int4range(1, 1 + (random() * 9)::int)), maybe(tstzrange(at, null)), maybe(point(random(), -random())), maybe('twins.t'::regclass),
    maybe(chr(97 + (random() * 20)::int)::"char"), maybe(words()), null
  from (select id, '2000-01-01 00:00+00'::timestamptz + (random() - 0.3) * interval '1000 years' as at from generate_series(1, 200) id) as made;

-- One trigger of each format, native and not, with the arguments given.
create procedure triggers_on(args text) language plpgsql as $$
declare
    format text;
begin
    foreach format in array '{logu,sql,json}'::text[] loop
        execute format('create or replace trigger %1$s_native after insert or update or delete on t for each row'
            ' execute function native_%1$striga(''twins_native''%2$s)', format, args);
        execute format('create or replace trigger %1$s_pgq after insert or update or delete on t for each row'
            ' execute function pgq.%1$striga(''twins_pgq''%2$s)', format, args);
    end loop;
end $$;
-- A row comes, changes in one column, in none, in all, changes its key, and goes.
create procedure change(first int, last int) language plpgsql as $$
declare
    columns constant text := (select string_agg(quote_ident(attname), ', ' order by attnum) from pg_attribute
                               where attrelid = 't'::regclass and attnum > 1 and attgenerated = '' and not attisdropped);
    changed text;
begin
    for n in first .. last loop
        execute format('insert into t (id, %s) select id, %1$s from sample where id = $1', columns) using n;
        select quote_ident(attname) into changed from pg_attribute
         where attrelid = 't'::regclass and attnum > 1 and attgenerated = '' and not attisdropped order by random() limit 1;
        execute format('update t set %s = s.%1$s from sample s where s.id = $1 %% 200 + 1', changed) using n;
        update t set i2 = i2;
        execute format('update t set (%s) = (select %1$s from sample s where s.id = $1 %% 199 + 1)', columns) using n;
        update t set id = id + 1000;
        delete from t;
    end loop;
end $$;
-- Events that the two did not write alike, in the order of writing; and whether both wrote as many, and many.
\set compare 'with n as (select row_number() over (order by ev_id) as nr, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4 from :native), o as (select row_number() over (order by ev_id) as nr, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4 from :ours) select n, o from n full join o using (nr) where (n.*) is distinct from (o.*) order by nr limit 5; select (select count(*) from :native) = (select count(*) from :ours) as same, (select count(*) from :ours) > 200 as many; delete from :native; delete from :ours;'

call triggers_on('');
call change(1, 40);
:compare
call triggers_on($$, 'backup', 'ignore=n,f4,"q""&=%",ip'$$);
call change(41, 80);
:compare
call triggers_on($$, 'pkey=w,tsz', 'when=b is not false', 'ev_extra1=V || i8', 'ev_extra2=p', 'ev_extra3=tsz::text || f8', 'ev_type=i'$$);
call change(81, 120);
:compare
-- the session's own formats, and other ones
call triggers_on($$, 'backup', 'ev_extra3=tsz::text || f8'$$);
set datestyle = 'SQL, DMY';
set intervalstyle = 'sql_standard';
set extra_float_digits = 0;
set bytea_output = 'escape';
set timezone = 'Asia/Tokyo';
call change(121, 140);
:compare
-- (but for names of tables: see docs/plain.md)
alter table t drop column rc;
alter table sample drop column rc;
set pgcascade.fixed_output = off;
call change(141, 160);
:compare
reset pgcascade.fixed_output;

select pgq.drop_queue('twins_native'), pgq.drop_queue('twins_pgq');
drop schema twins cascade;
