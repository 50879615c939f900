--
-- Every type of PostgreSQL's, in all three formats: the text of the value, and that the value can be read back from it, exactly.
-- Sessions of pg_regress have odd settings for dates and intervals, so that this also says whether the events depend on them.
--
set client_min_messages = warning;
set client_encoding = 'UTF8';
set timezone = 'Asia/Kolkata';
\set SHOW_CONTEXT never
\pset format unaligned
\pset null (null)
create schema capture_types;
set search_path = capture_types, public;
select pgq.create_queue('capture_types');

create type mood as enum ('sad', 'so so', 'it''s "fine"', '(happy)');
create type pair as (a int, b text);
create type nested as (p pair, list int[]);
create domain whole as int check (value >= 0);
create domain truth as bool;
create domain words as text[];
create domain instant as timestamptz;
create domain couple as pair;
create domain deeper as whole;
create type spans as range (subtype = text, collation = "C", multirange_type_name = multispans);

create table results (n int primary key, type text, input text, logu text, sql text, json text, read_back text);

-- Decodes one url-encoded text.
create function unescape(text) returns text language sql immutable strict as $$
    select coalesce(convert_from(string_agg(case
        when part[1] ~ '^%' then decode(substr(part[1], 2), 'hex')
        when part[1] = '+' then ' '::bytea
        else convert_to(part[1], 'UTF8') end, ''::bytea order by n), 'UTF8'), '')
    from regexp_matches($1, '%[0-9a-f]{2}|.', 'g') with ordinality as found (part, n);
$$;

-- Stores one value of one type, keeps what the three triggers made of it, and reads it back from each.
create procedure sample(n int, type text, input text) language plpgsql as $$
declare
    kind text;
    events text[];
    outcome text[] = '{}';
    same bool;
    original text;
begin
    execute format('create table sample (id int primary key, v %s)', type);
    execute format('create table copy (like sample)');
    foreach kind in array '{logu,sql,json}'::text[] loop
        execute format('create trigger %s after insert on sample for each row execute function pgq.%striga(''capture_types'')', kind, kind);
    end loop;
    execute format('insert into sample values (1, %L)', input);
    -- In the order of the triggers' names: json, logu, sql.
    select array_agg(ev_data order by ev_id) into events from pgq.event_template
        where tableoid = pgq.current_event_table('capture_types')::regclass;
    delete from pgq.event_template where tableoid = pgq.current_event_table('capture_types')::regclass;

    foreach kind in array '{logu,sql,json}'::text[] loop
        begin
            case kind
            when 'logu' then
                execute format('insert into copy values (1, %L)', unescape(substr(events[2], length('id=1&v=') + 1)));
            when 'sql' then
                execute 'insert into copy ' || events[3];
            when 'json' then
                execute format('insert into copy values (1, %L)', events[1]::json ->> 'v');
            end case;
            -- Same text is not enough: -0 and 0, or bytes that only look alike, differ in what is sent over the wire.
            execute 'select sample::text = copy::text from sample, copy' into same;
        exception when others then
            same = null;
            raise warning '% %: %', type, kind, sqlerrm;
        end;
        if same is distinct from true then
            outcome = outcome || kind;
        end if;
        truncate copy;
    end loop;
    insert into results values (n, type, input, substr(events[2], length('id=1&') + 1), events[3], events[1],
        case when outcome = '{}' then 'yes' else 'not from ' || outcome::text end);
    drop table sample, copy;
end $$;

create table samples (n int generated always as identity, type text, input text);
insert into samples (type, input) values
    ('smallint', '-32768'), ('integer', '2147483647'), ('bigint', '-9223372036854775808'), ('bigint', '9007199254740993'),
    ('numeric', '0.1000'), ('numeric', '-0.0'), ('numeric', 'NaN'), ('numeric', 'Infinity'), ('numeric', '-Infinity'), ('numeric(6,-2)', '123456'),
    ('numeric', '1e60'), ('numeric', '1e-30'),
    ('real', '0.1'), ('real', '-0'), ('real', 'NaN'), ('real', '-Infinity'), ('real', '1e-45'), ('real', '3.4028235e38'),
    ('double precision', '0.30000000000000004'), ('double precision', '-0'), ('double precision', 'NaN'), ('double precision', 'Infinity'),
    ('double precision', '5e-324'), ('double precision', '1.7976931348623157e308'), ('double precision', '1e15'), ('double precision', '100'),
    ('money', '12.5'), ('money', '-1234567.89'),
    ('boolean', 'true'), ('boolean', 'false'),
    ('text', ''), ('text', ' '), ('text', 'NULL'), ('text', E'\t\n\r\\\'"&=+%'), ('varchar(5)', 'áéíóú'), ('char(3)', 'a'), ('"char"', 'x'), ('"char"', ''),
    ('name', 'a name'), ('text', U&'\+01F600 \FEFF\200F\00A0'),
    ('bytea', ''), ('bytea', '\x00ff5c27'),
    ('date', '2024-03-04'), ('date', 'infinity'), ('date', '-infinity'), ('date', '0044-03-15 BC'), ('date', '4714-11-24 BC'), ('date', '5874897-12-31'),
    ('time', '05:06:07.089'), ('time', '24:00'), ('time(0)', '05:06:07.5'), ('timetz', '05:06:07.5+02'), ('timetz', '23:59:60-15:59:59'),
    ('timestamp', '2024-03-04 05:06:07.123456'), ('timestamp', '2024-03-04'), ('timestamp', 'infinity'), ('timestamp', '-infinity'),
    ('timestamp', '0044-03-15 12:00 BC'), ('timestamp', '294276-12-31 23:59:59.999999'), ('timestamp(3)', '2024-03-04 05:06:07.1236'),
    ('timestamptz', '2024-03-04 05:06:07.1+00'), ('timestamptz', 'infinity'), ('timestamptz', '-infinity'),
    ('timestamptz', '0044-03-15 12:00+00 BC'), ('timestamptz', '1900-01-01 00:00+00'),
    ('interval', '1 year 2 months -3 days 04:05:06.789'), ('interval', '-1 month +1 day'), ('interval', '0'), ('interval', '-00:00:01'),
    ('interval', '178000000 years'), ('interval year to month', '1-2'),
    ('point', '(1,-0.1)'), ('point', '(NaN,Infinity)'), ('line', '{1,-1,0}'), ('lseg', '[(0,0),(1,1)]'), ('box', '(1,1),(0,0)'),
    ('path', '[(0,0),(1,1)]'), ('path', '((0,0),(1,1))'), ('polygon', '((0,0),(1,1),(1,0))'), ('circle', '<(0.1,0),1>'),
    ('cidr', '10.1.0.0/16'), ('cidr', '2001:db8::/32'), ('inet', '192.168.0.1/24'), ('inet', '::1'), ('macaddr', '08-00-2b-01-02-03'),
    ('macaddr8', '08:00:2b:01:02:03:04:05'),
    ('bit(3)', '101'), ('bit varying', ''), ('bit varying(5)', '01'),
    ('tsvector', '''a '':1A,2 b'), ('tsquery', 'a & !(b | c:*)'),
    ('uuid', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'),
    ('json', '{"b" : 1,  "a":[true, null, "\u00e9"], "b": 2}'), ('json', 'null'), ('json', '"text"'),
    ('jsonb', '{"b" : 1,  "a":[true, null, "\u00e9"], "b": 2.50}'), ('jsonb', 'null'), ('jsonb', '"te\"xt"'),
    ('jsonpath', '$.a[*] ? (@ > 1)'),
    ('integer[]', '{1,NULL,-3}'), ('integer[]', '{}'), ('integer[]', '[-1:1]={1,2,3}'), ('integer[][]', '{{1,2},{3,4}}'),
    ('text[]', '{"a,b",NULL,"NULL","","\"","\\","{}"}'), ('bool[]', '{t,f}'), ('bytea[]', '{"\\x00","\\x27"}'), ('date[]', '{2024-03-04,infinity}'),
    ('timestamptz[]', '{"2024-03-04 05:06:07+00"}'), ('interval[]', '{"1 mon 02:03:04"}'), ('float8[]', '{0.30000000000000004,NaN}'),
    ('numeric(4,1)[]', '{1.5}'), ('json[]', '{"{\"a\": 1}"}'), ('point[]', '{"(1,2)"}'), ('box[]', '{(1,1),(0,0);(2,2),(1,1)}'),
    ('mood', 'so so'), ('mood', 'it''s "fine"'), ('mood[]', '{sad,(happy)}'),
    ('pair', '(1,"x, y")'), ('pair', '(,)'), ('pair', '(,"")'), ('pair[]', '{"(1,\"a \\\"b\\\"\")",NULL}'), ('nested', '("(1,b)","{1,2}")'),
    ('whole', '7'), ('truth', 'true'), ('words', '{a,"b c"}'), ('instant', '2024-03-04 05:06:07+00'), ('couple', '(1,b)'), ('deeper', '8'), ('whole[]', '{1,2}'),
    ('int4range', '[1,5)'), ('int4range', 'empty'), ('int8range', '(,5)'), ('numrange', '[1.10,2.20]'), ('tsrange', '["2024-03-04 05:06",)'),
    ('tstzrange', '["2024-03-04 05:06+00","2024-03-05 05:06+00")'), ('daterange', '[2024-03-04,infinity]'), ('spans', '["a,b","c""d")'), ('int4range[]', '{"[1,3)"}'),
    ('int4multirange', '{[1,3),[5,8)}'), ('nummultirange', '{}'), ('datemultirange', '{[2024-03-04,2024-03-05)}'), ('tstzmultirange', '{["2024-03-04 05:06+00",)}'),
    ('multispans', '{["a","b"),["c d",)}'),
    ('oid', '4294967295'), ('xid', '42'), ('xid8', '18446744073709551615'), ('cid', '1'), ('tid', '(1,2)'), ('pg_lsn', '16/B374D848'),
    ('pg_snapshot', '10:20:10,14'), ('txid_snapshot', '10:20:10,14'), ('regclass', 'pg_catalog.pg_class'), ('regtype', 'integer[]'), ('regproc', 'pg_catalog.now'),
    ('regprocedure', 'pg_catalog.lower(text)'), ('regoper', 'pg_catalog.||/'), ('regoperator', 'pg_catalog.+(integer,integer)'),
    ('regnamespace', 'pg_catalog'), ('regrole', 'pg_monitor'), ('regconfig', 'english'), ('regdictionary', 'simple'), ('regcollation', '"C"'),
    ('int2vector', '1 2'), ('oidvector', '1 2'), ('refcursor', '<unnamed>'), ('aclitem', 'pg_monitor=r/pg_monitor');
-- all bytes, and a character of each length
insert into samples (type, input)
select 'bytea', '\x' || string_agg(lpad(to_hex(i), 2, '0'), '' order by i) from generate_series(0, 255) as i;
insert into samples (type, input) values ('text', U&'\0001\007F\0080\07FF\0800\FFFD\+010000\+10FFFF');

do $$
declare
    one record;
begin
    for one in select * from samples order by n loop
        call sample(one.n, one.type, one.input);
    end loop;
end $$;
\pset tuples_only off
select type, logu, substr(sql, length('(id,v) values (''1'',') + 1) as sql, json::json -> 'v' as json, read_back from results order by n;

-- xml, which a server may be built without: anything here would be wrong
do $$
declare
    one record;
begin
    execute 'select xml ''<a/>''';
    for one in select * from (values (-1, '<a b="c">&amp;é</a>'), (-2, '<?xml version="1.0" encoding="UTF-8"?><a/>')) as xml (n, input) loop
        call sample(one.n, 'xml', one.input);
    end loop;
exception when feature_not_supported then
    null;
end $$;
select * from results where n < 0 and (logu, read_back) not in
    (('v=%3ca+b%3d%22c%22%3e%26amp%3b%c3%a9%3c%2fa%3e', 'yes'), ('v=%3ca%2f%3e', 'yes'));
delete from results where n < 0;

-- a composite type with a dropped attribute
create type shrunk as (a int, b int, c text);
create table shrunken (id int primary key, v shrunk);
insert into shrunken values (1, '(1,2,three)');
alter type shrunk drop attribute b;
create trigger capture after insert or update on shrunken for each row execute function pgq.logutriga('capture_types');
insert into shrunken values (2, '(1,three)');
update shrunken set v.a = 7 where id = 1;
select ev_data from pgq.event_template where tableoid = pgq.current_event_table('capture_types')::regclass order by ev_id;

select pgq.drop_queue('capture_types', true);
drop schema capture_types cascade;
