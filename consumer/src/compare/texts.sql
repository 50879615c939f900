-- How this end treats texts: their encoding, their order, and the numbers that their bytes are hashed to.
select pg_catalog.getdatabaseencoding()::text as encoding,
       pg_catalog.concat_ws('/', coalesce(j.d ->> 'datlocprovider', 'c'), d.datcollate,
                            coalesce(j.d ->> 'datlocale', j.d ->> 'daticulocale')) as collation,
       array(select pg_catalog.hashtextextended(pg_catalog.repeat('pgcascade', n) collate pg_catalog."C", 0)
               from pg_catalog.generate_series(0, 9) n) as numbers
  from pg_catalog.pg_database d
 cross join lateral (select pg_catalog.to_jsonb(d) as d) j
 where d.datname = pg_catalog.current_database()
