-- The statement that gives a consumer another name in every table that has rows of consumers.
-- $1: the old name, $2: queue, $3: the new name
select 'with ' || pg_catalog.string_agg(
           pg_catalog.format('t%s as (update pgcascade_replay.%I set consumer = %L where consumer = %L and queue = %L)',
                             c.oid, c.relname, $3::text, $1::text, $2::text), ', ')
       || ' select'
  from pg_catalog.pg_class c
 where c.relnamespace = 'pgcascade_replay'::pg_catalog.regnamespace and c.relkind = 'r'
   and (select count(*) from pg_catalog.pg_attribute a
         where a.attrelid = c.oid and a.attname in ('consumer', 'queue') and not a.attisdropped) = 2
