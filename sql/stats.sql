-- What a monitor looks at: one row per queue, and one row per consumer of each queue.
--
-- Cheap enough to be asked every few seconds: no event table is read. Per queue the ends of pgq.tick are looked up by its
-- index, one minute of ticks is walked for the rate, and the files of the event tables are measured, for which each is
-- locked for a moment; retried, delayed and dead events are counted. Who is in the way of rotation costs more (all locks and sessions are
-- looked at), but only while a rotation is due. Event counts are counts of event ids: those of rolled back transactions,
-- and those that pgq.force_tick() leaves out, count too. Nothing depends on the session's settings. Every column is described
-- in docs/queues.md.

create view pgcascade.queue_stats as
select q.queue_id, q.queue_name,
       q.queue_external_ticker as external_ticker,
       q.queue_ticker_paused as ticker_paused,
       q.queue_disable_insert as insert_disabled,
       coalesce(seq.drawn, 0) as events_total,
       case when last.tick_id is not null then greatest(coalesce(seq.drawn, 1) - last.tick_event_seq, 0) end as events_new,
       (greatest(coalesce(seq.drawn, 1) - past.tick_event_seq, 0)
           / nullif(extract(epoch from clock_timestamp() - past.tick_time), 0))::float8 as events_per_second,
       first.tick_id as first_tick,
       last.tick_id as last_tick,
       last.tick_time as last_tick_time,
       clock_timestamp() - last.tick_time as ticker_lag,
       failed.error as ticker_error, failed.failed_at as ticker_error_time,
       q.queue_ntables as event_tables,
       q.queue_cur_table as current_table,
       pgcascade.event_bytes(q.queue_data_pfx) as event_bytes,
       q.queue_rotation_period as rotation_period,
       q.queue_switch_time as last_rotation,
       pgcascade.rotation_due(q) as rotation_due,
       block.blocker, block.name as blocker_name, block.since as blocker_since,
       subs.consumers, subs.open_batches,
       coalesce(retries.waiting, 0) as retries,
       (select count(*) from pgcascade.delayed_event e where e.queue_id = q.queue_id) as delayed,
       (select count(*) from pgcascade.dead_letter d where d.queue_id = q.queue_id) as dead_letters,
       c.max_age, c.max_bytes, c.policy,
       over_limit.reason is not null or coalesce(pgcascade.event_bytes(q.queue_data_pfx) > c.max_bytes, false) as over_limit,
       over_limit.reason as over_limit_reason,
       (select count(*) from pgcascade.dropped_consumer d
         where d.queue_id = q.queue_id and d.returned_at is null) as dropped_consumers
  from pgq.queue q
 cross join lateral (
           select pg_catalog.pg_sequence_last_value(pg_catalog.to_regclass(q.queue_event_seq)) as drawn) seq
  left join lateral (
           select t.tick_id, t.tick_time, t.tick_event_seq
             from pgq.tick t
            where t.tick_queue = q.queue_id
            order by t.tick_id desc limit 1) last on true
  left join lateral (
           select t.tick_id
             from pgq.tick t
            where t.tick_queue = q.queue_id
            order by t.tick_id limit 1) first on true
  left join lateral (
           -- The youngest tick that is at least a minute old; of a queue without one the oldest.
           (select t.tick_time, t.tick_event_seq
              from pgq.tick t
             where t.tick_queue = q.queue_id and t.tick_time <= clock_timestamp() - interval '1 minute'
             order by t.tick_id desc limit 1)
           union all
           (select t.tick_time, t.tick_event_seq
              from pgq.tick t
             where t.tick_queue = q.queue_id
             order by t.tick_id limit 1)
           limit 1) past on true
  left join pgcascade.tick_error failed
         on failed.queue_id = q.queue_id and (last.tick_time is null or last.tick_time < failed.failed_at)
 cross join lateral (
           select count(*) as consumers, count(s.sub_batch) as open_batches
             from pgq.subscription s
            where s.sub_queue = q.queue_id) subs
  left join (
           select distinct on (b.queue_name) b.queue_name, b.blocker, b.name, b.since
             from pgcascade.rotation_blockers() b
            order by b.queue_name, b.since, b.name) block on block.queue_name = q.queue_name
  left join (
           select distinct on (x.queue_id) x.queue_id, x.reason
             from pgcascade.limits_exceeded() x
            order by x.queue_id, x.since, x.name) over_limit on over_limit.queue_id = q.queue_id
  left join (
           select r.ev_queue, count(*) as waiting
             from pgq.retry_queue r
            group by r.ev_queue) retries on retries.ev_queue = q.queue_id
  left join pgcascade.queue_config c on c.queue_id = q.queue_id;

-- Bytes are estimated. Ticks are kept as far back as the current event table and the one before it, so the bytes of all tables
-- but the one to be truncated next, divided by the event ids since the oldest tick, are the size of an average event.
create view pgcascade.consumer_stats as
with held as materialized (
    select q.queue_id, q.queue_name, q.queue_switch_step2 as step2,
           coalesce(seq.drawn, 1) as drawn,
           last.tick_id, last.tick_time, first.tick_event_seq as first_seq,
           pgcascade.event_bytes(q.queue_data_pfx) as bytes,
           coalesce(pg_catalog.pg_total_relation_size(pg_catalog.to_regclass(
               q.queue_data_pfx || '_' || (q.queue_cur_table + 1) % q.queue_ntables)), 0) as next_bytes,
           pg_catalog.pg_total_relation_size(pg_catalog.to_regclass(
               q.queue_data_pfx || '_' || q.queue_cur_table)) as current_bytes
      from pgq.queue q
     cross join lateral (
               select pg_catalog.pg_sequence_last_value(pg_catalog.to_regclass(q.queue_event_seq)) as drawn) seq
      left join lateral (
               select t.tick_id, t.tick_time
                 from pgq.tick t
                where t.tick_queue = q.queue_id
                order by t.tick_id desc limit 1) last on true
      left join lateral (
               select t.tick_event_seq
                 from pgq.tick t
                where t.tick_queue = q.queue_id
                order by t.tick_id limit 1) first on true
)
select h.queue_id, h.queue_name, co.co_name as consumer_name,
       main.co_name as main_consumer,
       coalesce(conf.owner, main_conf.owner) as owner,
       s.sub_last_tick as last_tick,
       done.tick_time as last_tick_time,
       done.tick_event_seq as position,
       h.tick_id - s.sub_last_tick as ticks_behind,
       events.behind as events_behind,
       case when events.behind = 0 then 0
            when events.behind > 0 then ((h.bytes - h.next_bytes)::numeric * events.behind / greatest(h.drawn - h.first_seq, events.behind))::bigint
       end as bytes_behind,
       h.tick_time - done.tick_time as behind,
       clock_timestamp() - done.tick_time as lag,
       s.sub_batch as batch_id,
       s.sub_next_tick as batch_tick,
       case when s.sub_batch is not null then s.sub_active end as batch_since,
       clock_timestamp() - s.sub_active as last_seen,
       case when main.co_name is null then coalesce(retries.waiting, 0) end as retries,
       case when main.co_name is null then
           (select count(*) from pgcascade.dead_letter d where d.queue_id = s.sub_queue and d.consumer_id = s.sub_consumer)
       end as dead_letters,
       case when s.sub_last_tick is null then 0
            when done.tick_id is null or pg_catalog.txid_snapshot_xmin(done.tick_snapshot) <= h.step2 then h.bytes
            else h.current_bytes
       end as bytes_held,
       block.name is not null as blocks_rotation,
       over_limit.reason is not null as over_limit,
       over_limit.reason as over_limit_reason
  from held h
  join pgq.subscription s on s.sub_queue = h.queue_id
  join pgq.consumer co on co.co_id = s.sub_consumer
  left join pgcascade.consumer_config conf on conf.sub_queue = s.sub_queue and conf.sub_consumer = s.sub_consumer
  left join pgq.tick done on done.tick_queue = s.sub_queue and done.tick_id = s.sub_last_tick
 cross join lateral (
           select case when done.tick_id is not null then greatest(h.drawn - done.tick_event_seq, 0) end as behind) events
  left join lateral (
           select c.co_name, m.sub_consumer
             from pgq.subscription m
             join pgq.consumer c on c.co_id = m.sub_consumer
            where m.sub_queue = s.sub_queue and m.sub_id = s.sub_id and m.sub_consumer <> s.sub_consumer
              and pg_catalog.starts_with(co.co_name, c.co_name || '.')
            order by pg_catalog.length(c.co_name) limit 1) main on true
  left join pgcascade.consumer_config main_conf
         on main_conf.sub_queue = s.sub_queue and main_conf.sub_consumer = main.sub_consumer
  left join pgcascade.rotation_blockers() block
         on block.queue_name = h.queue_name and block.blocker = 'consumer' and block.name = co.co_name
  left join pgcascade.limits_exceeded() over_limit
         on over_limit.queue_id = h.queue_id and over_limit.blocker = 'consumer' and over_limit.name = co.co_name
  left join (
           select r.ev_owner, count(*) as waiting
             from pgq.retry_queue r
            group by r.ev_owner) retries on retries.ev_owner = s.sub_id;

comment on view pgcascade.queue_stats is 'state of each queue, for monitoring; columns in docs/queues.md';
comment on view pgcascade.consumer_stats is 'state of each consumer on each queue, for monitoring; columns in docs/queues.md';
