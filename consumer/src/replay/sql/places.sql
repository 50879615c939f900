-- Where the rows of a table without a key are, and whether the events of the queue say of each row that comes where it is. In the
-- transaction that has the table locked.
-- $1: oid of the table, $2: the queue, $3: the table's name, by which it is locked
with stored as (
       select c.oid from pg_catalog.pg_class c where c.oid = $1 and c.relkind <> 'p'
       union
       select t.relid from pg_catalog.pg_partition_tree($1::oid::regclass) t where t.isleaf),
     captures as (
       select t.tgrelid as oid, t.tgtype, t.tgenabled in ('O', 'A') as fires, t.tgargs as arguments
         from pg_catalog.pg_trigger t
         join pg_catalog.pg_proc p on p.oid = t.tgfoid
         join pg_catalog.pg_namespace n on n.oid = p.pronamespace
        where n.nspname = 'pgq' and p.proname = 'logutriga' and t.tgtype & 1 = 1
          and t.tgqual is null and t.tgattr = ''::pg_catalog.int2vector)
select c.oid, i.identity || ':' || c.oid as place, pg_catalog.pg_relation_filenode(c.oid) as filenode,
       pg_catalog.pg_relation_size(c.oid) / pg_catalog.current_setting('block_size')::int8 as blocks,
       -- Others may move rows as they like.
       a.amname = 'heap' and pg_catalog.to_regclass($3)::oid = $1
         -- With a key of its own, a partition's rows are changed.
         and not exists (select from pg_catalog.pg_index i where i.indrelid = c.oid and i.indisprimary)
         -- Each argument ends with a zero byte.
         and not exists (select from captures t
                          where t.oid = c.oid and (position('\000pkey='::bytea in t.arguments) > 0 or position('\000ev_extra4='::bytea in t.arguments) > 0))
         and exists (select from captures t
                      where t.oid = c.oid and t.fires and t.tgtype & 70 = 4 and position('\000place\000'::bytea in t.arguments) > 0
                        and position(pg_catalog.convert_to($2, pg_catalog.getdatabaseencoding()) || '\000'::bytea in t.arguments) = 1) as told
  from stored
 cross join (select s.system_identifier || ':' || d.oid from pg_catalog.pg_control_system() s, pg_catalog.pg_database d
              where d.datname = pg_catalog.current_database()) i(identity)
  join pg_catalog.pg_class c on c.oid = stored.oid
  left join pg_catalog.pg_am a on a.oid = c.relam
