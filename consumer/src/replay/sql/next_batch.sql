-- Opens the next batch, or returns the one that is open. Ticks are merged: while the consumer is far behind, until
-- about $3 events are reached; else up to the tick that is the last one now that it may have, so that it never waits for more.
-- $1: queue, $2: consumer, $3: wanted number of events
select b.batch_id, b.prev_tick_id, b.cur_tick_id
  from (select case when l.tick_event_seq - p.tick_event_seq >= 2 * $3::int4 then $3::int4 end as wanted,
               -- A batch may be up to twice as long as what is asked for, so "as old as the last tick" means just that
               -- tick.
               case when l.tick_event_seq - p.tick_event_seq < 2 * $3::int4 then l.tick_time - p.tick_time end as age
          from pgq.queue q
          join pgq.subscription s on s.sub_queue = q.queue_id
          join pgq.consumer c on c.co_id = s.sub_consumer and c.co_name = $2
         -- (`offset 0`: by both columns of its key, and not all ticks of the queue, whatever the planner thinks that there are.)
         cross join lateral (select t.* from pgq.tick t
                              where t.tick_queue = s.sub_queue and t.tick_id = s.sub_last_tick offset 0) p
         cross join lateral (select pgcascade.released_tick($1, $2) as tick offset 0) released
         cross join lateral (select t.tick_event_seq, t.tick_time from pgq.tick t
                              where t.tick_queue = q.queue_id and (released.tick is null or t.tick_id <= released.tick)
                              order by t.tick_id desc limit 1) l
         where q.queue_name = $1) lag
 cross join lateral pgq.next_batch_custom($1, $2, null, lag.wanted, lag.age) b
 where b.batch_id is not null
