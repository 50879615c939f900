-- Where the rows of a table without a key are, and whether the events of the queue say of each row that comes where it is. In the
-- transaction that has the table locked.
-- $1: oid of the table, $2: the queue
with stored as (
       select c.oid from pg_catalog.pg_class c where c.oid = $1 and c.relkind <> 'p'
       union
       select t.relid from pg_catalog.pg_partition_tree($1::oid::regclass) t where t.isleaf),
     captures as (
       select t.tgrelid as oid, t.tgtype, t.tgenabled in ('O', 'A') as fires,
              -- Each ends with a zero byte.
              array(select pg_catalog.convert_from(pg_catalog.decode(m.match[1], 'hex'), pg_catalog.getdatabaseencoding())
                      from pg_catalog.regexp_matches(pg_catalog.encode(t.tgargs, 'hex'), '((?:(?!00)..)*)00', 'g') m(match)) as arguments
         from pg_catalog.pg_trigger t
         join pg_catalog.pg_proc p on p.oid = t.tgfoid
         join pg_catalog.pg_namespace n on n.oid = p.pronamespace
        where n.nspname = 'pgq' and p.proname = 'logutriga' and t.tgtype & 1 = 1
          and t.tgqual is null and t.tgattr = ''::pg_catalog.int2vector)
select c.oid, i.identity || ':' || c.oid as place, pg_catalog.pg_relation_filenode(c.oid) as filenode,
       pg_catalog.pg_relation_size(c.oid) / pg_catalog.current_setting('block_size')::int8 as blocks,
       -- Others may move rows as they like.
       a.amname = 'heap'
         -- With a key of its own, a partition's rows are changed.
         and not exists (select from pg_catalog.pg_index i where i.indrelid = c.oid and i.indisprimary)
         and not exists (select from captures t, pg_catalog.unnest(t.arguments) argument
                          where t.oid = c.oid and argument ~ '^(pkey|ev_extra4)=')
         and exists (select from captures t
                      where t.oid = c.oid and t.fires and t.tgtype & 70 = 4 and t.arguments[1] = $2 and 'place' = any (t.arguments[2:])) as told
  from stored
 cross join (select s.system_identifier || ':' || d.oid from pg_catalog.pg_control_system() s, pg_catalog.pg_database d
              where d.datname = pg_catalog.current_database()) i(identity)
  join pg_catalog.pg_class c on c.oid = stored.oid
  left join pg_catalog.pg_am a on a.oid = c.relam
