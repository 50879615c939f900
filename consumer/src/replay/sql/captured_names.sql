-- Which of the named tables have a trigger of their own that captures into the queue.
-- $1, $2: schemas and names, in pairs; $3: the queue
select n.nspname::text, c.relname::text
  from rows from (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) w (schema, name)
  join pg_catalog.pg_namespace n on n.nspname = w.schema
  join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = w.name
 where exists (select from pg_catalog.pg_trigger t
                 join pg_catalog.pg_proc f on f.oid = t.tgfoid
                 join pg_catalog.pg_namespace fn on fn.oid = f.pronamespace and fn.nspname = 'pgq'
                where t.tgrelid = c.oid and t.tgparentid = 0
                  and position(pg_catalog.convert_to($3, pg_catalog.getdatabaseencoding()) || '\x00'::bytea in t.tgargs) = 1
                  and t.tgtype & 1 = 1)
