-- What changes the tables of torture.rs: tort.step() is one random transaction.
create function tort.pick(variadic choices text[]) returns text language sql volatile
return choices[1 + floor(random() * cardinality(choices))::int];

create function tort.bytes() returns bytea language sql volatile
return (select string_agg(set_byte('\x00', 0, case when random() < 0.5 then i else floor(random() * 256)::int end), ''::bytea)
          from generate_series(0, 255) i);

create function tort.fill(first int, last int) returns void language sql volatile
begin atomic
insert into tort.kinds
select i, tort.pick('NaN', '-0.00', '1e-300', '-12345678901234567890.5', 'Infinity', null)::numeric,
       tort.pick('NaN', '-0.0', '5e-324', '1.7976931348623157e308', '-Infinity', '0.1')::float8,
       tort.pick('NaN', '-0.0', '1e-45', '3.4028235e38', 'Infinity', '0.1')::real,
       tort.pick('-92233720368547758.08', '0.01', '-1234.56')::money,
       tort.pick('infinity', '-infinity', '4713-01-01 BC', '0044-03-15 BC', '5874897-12-31')::date,
       tort.pick('infinity', '4713-01-01 00:00:00 BC', '294276-12-31 23:59:59.999999')::timestamp,
       tort.pick('-infinity', '0001-01-01 00:00:00+00 BC', '2026-03-29 02:30:00+01')::timestamptz,
       tort.pick('-1 year 2 days -03:04:05.6', '0', '178000000 years')::interval, tort.bytes(),
       tort.pick('empty', '[1,5)', '(,7]', '(,)')::int4range,
       tort.pick('["4713-01-01 BC",infinity)', 'empty', null)::tstzrange,
       tort.pick('{}', '{[1,3),[5,7)}', '{(,0),[9,)}')::int4multirange, tort.pick('<a b="c">&amp;</a>', '', null)::xml,
       tort.pick('sad', 'o k', 'hap"py')::tort.mood, tort.pick('{}', '{"o k",NULL,"hap\"py"}')::tort.mood[],
       tort.pick('-100', '100', null)::tort.small, tort.pick('', 'abcd', 'ü€😀', '    ')::tort.code,
       tort.pick('(,,)', '(7,"x, ""y\\ "" ",sad)', null)::tort.pair, tort.pick('{}', '{"(1,\"a b\",\"o k\")",NULL}')::tort.pair[],
       tort.pick('null', '{"a": [1, null, "x\\y"]}', null)::jsonb,
       tort.pick('', ' ', E'\t\n\r\\N\\. %+&=', 'ü€😀', repeat('long ', 2000), null)
  from generate_series(first, last) i
    on conflict do nothing;
end;

-- One transaction of somebody: a few changes of some table, now and then a savepoint that is given up.
create function tort.step() returns void language plpgsql as $$
declare
    k int := floor(random() * 300);
    what text := tort.pick('kinds', 'kinds', 'numbered', 'family', 'family', 'extra', 'truncate');
begin
    for i in 1 .. 1 + floor(random() * 4)::int loop
        if what = 'kinds' then
            case floor(random() * 5)::int
                when 0 then delete from tort.kinds where id between k and k + 20;
                when 1 then perform tort.fill(k, k + 30);
                when 2 then update tort.kinds a set (n, d, by, tr, p, tx) = (select b.n, b.d, tort.bytes(), b.tr, b.p, b.tx
                                                                                from tort.kinds b order by random() limit 1)
                             where a.id between k and k + 10;
                when 3 then update tort.kinds set e = tort.pick('sad', 'o k')::tort.mood, d = -d, r = -r where id % 7 = k % 7;
                else update tort.kinds set id = -id where id between k and k + 3 and not exists (select from tort.kinds b where b.id = -kinds.id);
            end case;
        elsif what = 'numbered' then
            insert into tort.numbered (v) select 'v' || j from generate_series(1, 5) j;
            update tort.numbered set g = g + 1, v = v || '+' where id % 10 = k % 10;
            delete from tort.numbered where id % 17 = k % 17;
            insert into tort.numbered (id, v) overriding system value values (-k - 1000 * i - floor(random() * 1e9)::int, 'given');
        elsif what = 'family' then
            insert into tort.child select k, 'b,' || j, -k from generate_series(1, 3) j on conflict do nothing;
            insert into tort.parent select -k, (select coalesce(max(n), 0) + 1 from tort.parent)
             where not exists (select from tort.parent where id = -k);
            update tort.parent p set n = (select max(n) + min(n) from tort.parent) - n;
            update tort.child set "B,b" = md5(random()::text) where a = k - 1;
            delete from tort.child where a = k - 2;
        elsif what = 'extra' then
            insert into tort.extra values (k, 'x') on conflict (id) do update set v = extra.v || 'y';
            delete from tort.extra where id = k - 1;
        elsif random() < 0.1 then
            truncate tort.extra;
        end if;
        if random() < 0.2 then
            begin
                delete from tort.kinds;
                insert into tort.extra values (-1, 'given up');
                raise division_by_zero;
            exception when division_by_zero then null;
            end;
        end if;
        k := floor(random() * 300);
    end loop;
end
$$;
