-- Tables that were written since they were last analyzed: how often, and the last tick that is surely older than that. The
-- server counts committed changes of rows since then, a while after their commit; hence the minute.
-- $1: oids of the tables, $2: the queue
select s.relid as table, s.n_mod_since_analyze as changes,
       extract(epoch from pg_catalog.clock_timestamp() - a.analyzed)::float8 as age,
       to_char(a.analyzed, 'YYYY-MM-DD HH24:MI:SS OF') as analyzed,
       t.tick_snapshot::text as snapshot, q.queue_data_pfx as events
  from pg_catalog.pg_stat_user_tables s
 cross join lateral (select greatest(s.last_analyze, s.last_autoanalyze) as analyzed) a
  join pgq.queue q on q.queue_name = $2
 cross join lateral (select t.tick_snapshot from pgq.tick t
                      where t.tick_queue = q.queue_id and t.tick_time < a.analyzed - '1 minute'::interval
                      order by t.tick_id desc limit 1) t
 where s.relid = any ($1::oid[]) and s.n_mod_since_analyze > 0
