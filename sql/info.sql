-- What an administrator and a monitor look at: queues, consumers, the version.
--
-- Column lists are read by position by clients: never add one here. Ages are measured to the clock, not to the start
-- of the transaction, so that they are right in a long one.

-- pgq.get_queue_info(1)
--     Settings and state of one queue, or of all when the name is null. Readable by everybody.
--     ticker_lag      age of the last tick
--     ev_per_sec      event ids per second over the last twenty ticks; null when that is not measurable
--     ev_new          event ids drawn since the last tick
create function pgq.get_queue_info(
    in i_queue_name text,
    out queue_name text, out queue_ntables integer, out queue_cur_table integer,
    out queue_rotation_period interval, out queue_switch_time timestamptz,
    out queue_external_ticker boolean, out queue_ticker_paused boolean,
    out queue_ticker_max_count integer, out queue_ticker_max_lag interval, out queue_ticker_idle_period interval,
    out ticker_lag interval, out ev_per_sec float8, out ev_new bigint, out last_tick_id bigint
) returns setof record
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select q.queue_name, q.queue_ntables, q.queue_cur_table,
           q.queue_rotation_period, q.queue_switch_time,
           q.queue_external_ticker, q.queue_ticker_paused,
           q.queue_ticker_max_count, q.queue_ticker_max_lag, q.queue_ticker_idle_period,
           clock_timestamp() - last.tick_time,
           ((last.tick_event_seq - past.tick_event_seq)
               / nullif(extract(epoch from last.tick_time - past.tick_time), 0))::float8,
           pgq.seq_getval(q.queue_event_seq) - last.tick_event_seq,
           last.tick_id
      from pgq.queue q
      left join lateral (
               select t.tick_id, t.tick_time, t.tick_event_seq
                 from pgq.tick t
                where t.tick_queue = q.queue_id
                order by t.tick_id desc limit 1) last on true
      left join lateral (
               select t.tick_time, t.tick_event_seq
                 from pgq.tick t
                where t.tick_queue = q.queue_id and t.tick_id >= last.tick_id - 20
                order by t.tick_id limit 1) past on true
     where i_queue_name is null or q.queue_name = i_queue_name
     order by q.queue_name;
end
$$;

-- pgq.get_queue_info()
--     The same for all queues.
create function pgq.get_queue_info(
    out queue_name text, out queue_ntables integer, out queue_cur_table integer,
    out queue_rotation_period interval, out queue_switch_time timestamptz,
    out queue_external_ticker boolean, out queue_ticker_paused boolean,
    out queue_ticker_max_count integer, out queue_ticker_max_lag interval, out queue_ticker_idle_period interval,
    out ticker_lag interval, out ev_per_sec float8, out ev_new bigint, out last_tick_id bigint
) returns setof record
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return query select i.* from pgq.get_queue_info(null::text) i;
end
$$;

-- pgq.get_consumer_info(2)
--     Position of one consumer on one queue; a null argument stands for all. Readable by everybody.
--     lag             age of the last finished tick
--     last_seen       time since the consumer last opened or finished a batch
--     pending_events  event ids between the last finished tick and the last tick of the queue
create function pgq.get_consumer_info(
    in i_queue_name text, in i_consumer_name text,
    out queue_name text, out consumer_name text, out lag interval, out last_seen interval,
    out last_tick bigint, out current_batch bigint, out next_tick bigint, out pending_events bigint
) returns setof record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select q.queue_name, c.co_name,
           clock_timestamp() - done.tick_time, clock_timestamp() - s.sub_active,
           s.sub_last_tick, s.sub_batch, s.sub_next_tick,
           top.tick_event_seq - done.tick_event_seq
      from pgq.subscription s
      join pgq.queue q on q.queue_id = s.sub_queue
      join pgq.consumer c on c.co_id = s.sub_consumer
      left join pgq.tick done on done.tick_queue = s.sub_queue and done.tick_id = s.sub_last_tick
      left join lateral (
               select t.tick_event_seq
                 from pgq.tick t
                where t.tick_queue = s.sub_queue
                order by t.tick_id desc limit 1) top on true
     where (i_queue_name is null or q.queue_name = i_queue_name)
       and (i_consumer_name is null or c.co_name = i_consumer_name)
     order by q.queue_name, c.co_name;
end
$$;

-- pgq.get_consumer_info(1), pgq.get_consumer_info()
--     The same for all consumers of a queue, and for all.
create function pgq.get_consumer_info(
    in i_queue_name text,
    out queue_name text, out consumer_name text, out lag interval, out last_seen interval,
    out last_tick bigint, out current_batch bigint, out next_tick bigint, out pending_events bigint
) returns setof record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return query select i.* from pgq.get_consumer_info(i_queue_name, null) i;
end
$$;

create function pgq.get_consumer_info(
    out queue_name text, out consumer_name text, out lag interval, out last_seen interval,
    out last_tick bigint, out current_batch bigint, out next_tick bigint, out pending_events bigint
) returns setof record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return query select i.* from pgq.get_consumer_info(null, null) i;
end
$$;

-- pgq.version()
--     Version of the installed extension.
create function pgq.version() returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return (select extversion from pg_extension where extname = 'pgcascade');
end
$$;

comment on function pgq.get_queue_info(text) is 'settings and state of a queue, or of all queues for null';
comment on function pgq.get_queue_info() is 'settings and state of all queues';
comment on function pgq.get_consumer_info(text, text) is 'position of a consumer on a queue';
comment on function pgq.get_consumer_info(text) is 'positions of all consumers of a queue';
comment on function pgq.get_consumer_info() is 'positions of all consumers';
comment on function pgq.version() is 'version of the extension';
