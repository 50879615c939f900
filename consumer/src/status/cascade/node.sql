-- What a root or branch says of itself.
-- $1: queue, $2: key of the lock that its replay holds
select exists (select from pg_catalog.pg_locks l
                where l.locktype = 'advisory' and l.granted and l.objsubid = 1
                  and l.database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
                  and ((l.classid::int8 << 32) | l.objid::int8) = $2) as replaying,
       s.cur_error as error, i.local_watermark, i.global_watermark,
       array(select b.subscriber_node from pgq_node.subscriber_info b where b.queue_name = $1 order by 1) as subscribers
  from pgq_node.get_node_info($1) i
  left join pgq_node.local_state s on s.queue_name = $1 and s.consumer_name = i.worker_name
