-- One consumer of one queue, as the provider sees it. No row: the queue does not exist. $1: queue, $2: consumer, $3:
-- the subscriber's position, null when it is not known; then the provider's own idea of it counts.
select (select s.system_identifier::text from pg_catalog.pg_control_system() s)
       || ':' || (select d.oid::text from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
       || ':' || q.queue_id::text as identity,
       sub.sub_last_tick as last_tick,
       sub.sub_next_tick as next_tick,
       newest.tick_id as newest_tick,
       at.tick_id is not null as tick_is_there,
       (select count(*) from pgq.tick t where t.tick_queue = q.queue_id and t.tick_id > here.tick) as lag_ticks,
       -- Not by ev_new of pgq.get_queue_info(), which may count from a younger tick than this statement sees.
       pgq.seq_getval(q.queue_event_seq) - at.tick_event_seq as lag_events,
       extract(epoch from pg_catalog.clock_timestamp() - at.tick_time)::float8 as age
  from pgq.queue q
  left join (pgq.subscription sub join pgq.consumer c on c.co_id = sub.sub_consumer and c.co_name = $2)
    on sub.sub_queue = q.queue_id
 cross join lateral (select coalesce($3::int8, sub.sub_last_tick) as tick) here
  left join pgq.tick at on at.tick_queue = q.queue_id and at.tick_id = here.tick
  left join lateral (
        select t.tick_id
          from pgq.tick t
         where t.tick_queue = q.queue_id
         order by t.tick_id desc
         limit 1
       ) newest on true
 where q.queue_name = $1
