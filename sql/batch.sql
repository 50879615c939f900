-- Batches: opening the next one, reading its events, finishing it.
--
-- A consumer has at most one open batch per queue. Opening it fixes the two ticks that bound it; until it is finished,
-- next_batch() gives the same batch again, to every session that asks: so a consumer that died can start over, and
-- two sessions of one consumer never hold different batches.

-- pgq.next_batch_info(2), pgq.next_batch(2), pgq.next_batch_custom(5)
--     Open the next batch of a consumer, or return the one that is open.
--     i_min_lag        the batch must end at a tick at least that old
--     i_min_count      the batch should have that many events, or
--     i_min_interval   it should cover that much time; one of the two is enough
--     Returns batch id and the two ticks; all null when there is no batch yet, or the confirm gate keeps it back.
--     Errors: not subscribed; the consumer belongs to another role; its tick does not exist any more.
--     Writes pgq.subscription, and the caller as owner of a consumer that has none. Locks the subscription's row when there is something to open, and then looks again: of
--     two sessions the second waits and gets the batch of the first. Assigns no transaction id otherwise. Without bitmap scans for the reason
--     that find_tick_helper() has.
create function pgq.next_batch_custom(
    in i_queue_name text, in i_consumer_name text,
    in i_min_lag interval, in i_min_count int4, in i_min_interval interval,
    out batch_id int8, out cur_tick_id int8, out prev_tick_id int8,
    out cur_tick_time timestamptz, out prev_tick_time timestamptz,
    out cur_tick_event_seq int8, out prev_tick_event_seq int8
) returns record
language plpgsql volatile security definer
set enable_bitmapscan = off
set search_path = pg_catalog, pg_temp
as $$
declare
    sub record;
    owned boolean;
    locked boolean := false;
    released bigint;
begin
    select s.sub_queue, s.sub_consumer, s.sub_last_tick, s.sub_next_tick, s.sub_batch into sub
      from pgq.subscription s
      join pgq.queue q on q.queue_id = s.sub_queue
      join pgq.consumer c on c.co_id = s.sub_consumer
     where q.queue_name = i_queue_name and c.co_name = i_consumer_name;

    loop
        if locked then
            select s.sub_queue, s.sub_consumer, s.sub_last_tick, s.sub_next_tick, s.sub_batch into sub
              from pgq.subscription s
             where s.sub_queue = sub.sub_queue and s.sub_consumer = sub.sub_consumer
               for update;
        end if;
        if not found then
            raise exception using errcode = 'undefined_object',
                message = format('Not subscriber to queue: %s/%s',
                                 coalesce(i_queue_name, 'NULL'), coalesce(i_consumer_name, 'NULL')),
                hint = pgcascade.not_subscribed_hint(i_queue_name, i_consumer_name);
        end if;
        owned := pgcascade.check_consumer(sub.sub_queue, sub.sub_consumer);

        select t.tick_id, t.tick_time, t.tick_event_seq
          into prev_tick_id, prev_tick_time, prev_tick_event_seq
          from pgq.tick t
         where t.tick_queue = sub.sub_queue and t.tick_id = sub.sub_last_tick;
        if not found then
            -- Between two statements the queue may have been dropped, or the consumer moved and the tick rotated away.
            if not locked then
                locked := true;
                continue;
            end if;
            raise exception using errcode = 'data_corrupted',
                message = format('PgQ corruption: Consumer %s on queue %s does not see tick %s',
                                 i_consumer_name, i_queue_name, coalesce(sub.sub_last_tick::text, '<NULL>')),
                hint = 'Events after that tick may be lost for it. Compare its data with the source, then move it to '
                       'a tick that exists with pgq.register_consumer_at().';
        end if;

        if sub.sub_batch is not null then
            batch_id := sub.sub_batch;
            select t.tick_id, t.tick_time, t.tick_event_seq
              into cur_tick_id, cur_tick_time, cur_tick_event_seq
              from pgq.tick t
             where t.tick_queue = sub.sub_queue and t.tick_id = sub.sub_next_tick;
            return;
        end if;

        if i_min_count is null and i_min_interval is null then
            select t.tick_id, t.tick_time, t.tick_event_seq
              into cur_tick_id, cur_tick_time, cur_tick_event_seq
              from pgq.tick t
             where t.tick_queue = sub.sub_queue and t.tick_id > sub.sub_last_tick
             order by t.tick_id limit 1;
        else
            select f.next_tick_id, f.next_tick_time, f.next_tick_seq
              into cur_tick_id, cur_tick_time, cur_tick_event_seq
              from pgq.find_tick_helper(sub.sub_queue, prev_tick_id, prev_tick_time, prev_tick_event_seq,
                                        i_min_count, i_min_interval) f;
        end if;
        if cur_tick_id is not null then
            -- The confirm gate (gate.sql), if the queue has one: then the first tick that is far enough, of those that may go.
            select pgcascade.released_tick(i_queue_name, i_consumer_name) into released
              from pgcascade.confirm_gate g where g.queue_id = sub.sub_queue;
            if cur_tick_id > released then
                select t.tick_id, t.tick_time, t.tick_event_seq
                  into cur_tick_id, cur_tick_time, cur_tick_event_seq
                  from pgq.tick t
                 where t.tick_queue = sub.sub_queue and t.tick_id > sub.sub_last_tick and t.tick_id <= released
                   and (i_min_count is null and i_min_interval is null
                        or t.tick_event_seq - prev_tick_event_seq >= i_min_count
                        or t.tick_time - prev_tick_time >= i_min_interval)
                 order by t.tick_id limit 1;
            end if;
        end if;
        if cur_tick_id is null or clock_timestamp() - cur_tick_time < i_min_lag then
            cur_tick_id := null;
            cur_tick_time := null;
            cur_tick_event_seq := null;
            prev_tick_id := null;
            prev_tick_time := null;
            prev_tick_event_seq := null;
            return;
        end if;

        exit when locked;
        locked := true;
    end loop;

    if not owned then
        perform pgcascade.store_owner(sub.sub_queue, sub.sub_consumer, pgcascade.caller(), true);
    end if;
    batch_id := nextval('pgq.batch_id_seq');
    update pgq.subscription s
       set sub_batch = batch_id, sub_next_tick = cur_tick_id, sub_active = now()
     where s.sub_queue = sub.sub_queue and s.sub_consumer = sub.sub_consumer;
end
$$;

create function pgq.next_batch_info(
    in i_queue_name text, in i_consumer_name text,
    out batch_id int8, out cur_tick_id int8, out prev_tick_id int8,
    out cur_tick_time timestamptz, out prev_tick_time timestamptz,
    out cur_tick_event_seq int8, out prev_tick_event_seq int8
) returns record
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    select n.batch_id, n.cur_tick_id, n.prev_tick_id, n.cur_tick_time, n.prev_tick_time,
           n.cur_tick_event_seq, n.prev_tick_event_seq
      into batch_id, cur_tick_id, prev_tick_id, cur_tick_time, prev_tick_time,
           cur_tick_event_seq, prev_tick_event_seq
      from pgq.next_batch_custom(i_queue_name, i_consumer_name, null, null, null) n;
end
$$;

create function pgq.next_batch(i_queue_name text, i_consumer_name text) returns int8
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return (select n.batch_id from pgq.next_batch_custom(i_queue_name, i_consumer_name, null, null, null) n);
end
$$;

-- pgq.find_tick_helper(6)
--     The tick that ends a batch of a wanted size which begins at the tick given.
--     i_min_count, i_min_interval   wanted events, wanted time; null: does not matter; one of the two is enough
--     Returns the last tick, so that a consumer that is behind gets few batches, unless that makes a batch of more
--     than twice the wanted size: then the first tick that is far enough. Null when no tick is.
--     No bitmap scans: a table of ticks that has not been analyzed looks so small that all ticks behind the first would be read and
--     sorted in order to find the next one.
create function pgq.find_tick_helper(
    in i_queue_id int4, in i_prev_tick_id int8, in i_prev_tick_time timestamptz, in i_prev_tick_seq int8,
    in i_min_count int8, in i_min_interval interval,
    out next_tick_id int8, out next_tick_time timestamptz, out next_tick_seq int8
) returns record
language plpgsql stable
set enable_bitmapscan = off
set search_path = pg_catalog, pg_temp
as $$
begin
    select t.tick_id, t.tick_time, t.tick_event_seq
      into next_tick_id, next_tick_time, next_tick_seq
      from pgq.tick t
     where t.tick_queue = i_queue_id and t.tick_id > i_prev_tick_id
     order by t.tick_id desc limit 1;
    if (next_tick_seq - i_prev_tick_seq between i_min_count and i_min_count * 2
        or next_tick_time - i_prev_tick_time between i_min_interval and i_min_interval * 2)
       and coalesce(next_tick_seq - i_prev_tick_seq <= i_min_count * 2, true)
       and coalesce(next_tick_time - i_prev_tick_time <= i_min_interval * 2, true)
    then
        return;
    end if;

    select t.tick_id, t.tick_time, t.tick_event_seq
      into next_tick_id, next_tick_time, next_tick_seq
      from pgq.tick t
     where t.tick_queue = i_queue_id and t.tick_id > i_prev_tick_id
       and (t.tick_event_seq - i_prev_tick_seq >= i_min_count
            or t.tick_time - i_prev_tick_time >= i_min_interval)
     order by t.tick_id limit 1;
end
$$;

-- pgq.get_batch_info(1)
--     What an open batch is: whose, between which ticks. One row, all null for an unknown batch.
create function pgq.get_batch_info(
    in x_batch_id bigint,
    out queue_name text, out consumer_name text, out batch_start timestamptz, out batch_end timestamptz,
    out prev_tick_id bigint, out tick_id bigint, out lag interval, out seq_start bigint, out seq_end bigint
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    select q.queue_name, c.co_name, prev.tick_time, cur.tick_time,
           s.sub_last_tick, s.sub_next_tick, clock_timestamp() - cur.tick_time,
           prev.tick_event_seq, cur.tick_event_seq
      into queue_name, consumer_name, batch_start, batch_end,
           prev_tick_id, tick_id, lag, seq_start, seq_end
      from pgq.subscription s
      join pgq.queue q on q.queue_id = s.sub_queue
      join pgq.consumer c on c.co_id = s.sub_consumer
      left join pgq.tick prev on prev.tick_queue = s.sub_queue and prev.tick_id = s.sub_last_tick
      left join pgq.tick cur on cur.tick_queue = s.sub_queue and cur.tick_id = s.sub_next_tick
     where s.sub_batch = x_batch_id;
end
$$;

-- pgq.batch_event_sql(1)
--     The SELECT for the events of an open batch, ordered by event id; see pgcascade.tick_event_sql().
--     Errors: no such batch; the consumer belongs to another role.
create function pgq.batch_event_sql(x_batch_id bigint) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    sub pgq.subscription;
begin
    select * into sub from pgq.subscription where sub_batch = x_batch_id;
    if not found then
        raise exception using errcode = 'undefined_object', message = 'batch not found',
            detail = format('Batch id: %s', coalesce(x_batch_id::text, 'NULL')),
            hint = 'It was finished, or its consumer was moved or unregistered; get the open one from pgq.next_batch().';
    end if;
    perform pgcascade.check_consumer(sub.sub_queue, sub.sub_consumer);
    return pgcascade.tick_event_sql(sub.sub_queue, sub.sub_last_tick, sub.sub_next_tick, sub.sub_id);
end
$$;

-- pgq.batch_event_tables(1)
--     The event tables in which events of an open batch may be: all of the queue, oldest first. Which of them are
--     empty of such events cannot be told from the control row alone.
--     Errors: no such batch; the consumer belongs to another role.
create function pgq.batch_event_tables(x_batch_id bigint) returns setof text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgcascade.check_batch(x_batch_id);
    return query
    select q.queue_data_pfx || '_' || (q.queue_cur_table + i) % q.queue_ntables
      from pgq.subscription s
      join pgq.queue q on q.queue_id = s.sub_queue
     cross join generate_series(1, q.queue_ntables) i
     where s.sub_batch = x_batch_id
     order by i;
    if not found then
        raise exception using errcode = 'undefined_object',
            message = format('Cannot find data for batch %s', coalesce(x_batch_id::text, '<NULL>')),
            hint = 'It was finished, or its consumer was moved or unregistered; get the open one from pgq.next_batch().';
    end if;
end
$$;

-- pgq.get_batch_events(1)
--     The events of an open batch, ordered by event id.
--     Errors: no such batch; the consumer belongs to another role; more than the cap on one read (page.sql), which is found
--     before more than that is kept. Takes share locks on the queue's event tables, which keep rotation away.
--     Event tables are never analyzed, so that for a big one the planner believes in work that would pay for compiling
--     the query; it does not.
create function pgq.get_batch_events(
    in x_batch_id bigint,
    out ev_id bigint, out ev_time timestamptz, out ev_txid bigint, out ev_retry int4, out ev_type text,
    out ev_data text, out ev_extra1 text, out ev_extra2 text, out ev_extra3 text, out ev_extra4 text
) returns setof record
language plpgsql volatile
set jit = off
set search_path = pg_catalog, pg_temp
as $$
declare
    caps constant record := pgcascade.read_caps();
    events bigint := 0;
    bytes bigint := 0;
begin
    if caps.max_events is null and caps.max_bytes is null then
        return query execute pgq.batch_event_sql(x_batch_id);
        return;
    end if;
    for ev_id, ev_time, ev_txid, ev_retry, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4 in
        execute pgq.batch_event_sql(x_batch_id)
    loop
        events := events + 1;
        bytes := bytes + pgcascade.event_bytes(ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4);
        if events > caps.max_events or bytes > caps.max_bytes then
            perform pgcascade.check_read(x_batch_id, events, bytes, caps.max_events, caps.max_bytes);
        end if;
        return next;
    end loop;
end
$$;

-- pgq.get_batch_cursor(4)
--     Open a cursor over the events of an open batch, in the caller's transaction, and return its first rows.
--     i_cursor_name   name of the cursor, to FETCH the rest from
--     i_quick_limit   how many rows to return at once
--     i_extra_where   SQL condition on the columns of an event; null: all events
--     Nothing is opened when one of the first three is null.
--     The condition runs with the rights and, unlike all other functions here, with the search_path of the caller,
--     who may name functions in it; what this function itself names is therefore qualified.
--     The first rows count against the cap on one read (page.sql). What is fetched later is the client's own choice.
create function pgq.get_batch_cursor(
    in i_batch_id bigint, in i_cursor_name text, in i_quick_limit int4, in i_extra_where text,
    out ev_id bigint, out ev_time timestamptz, out ev_txid bigint, out ev_retry int4, out ev_type text,
    out ev_data text, out ev_extra1 text, out ev_extra2 text, out ev_extra3 text, out ev_extra4 text
) returns setof record
language plpgsql volatile
set jit = off
as $$
declare
    cursor_name constant pg_catalog.text := pg_catalog.quote_ident(i_cursor_name);
    events pg_catalog.text;
    caps constant pg_catalog.record := pgcascade.read_caps();
    bytes pg_catalog.int8 := 0;
    fetched pg_catalog.int8;
begin
    if i_batch_id is null or i_cursor_name is null or i_quick_limit is null then
        return;
    end if;

    events := pgq.batch_event_sql(i_batch_id);
    if i_extra_where is not null then
        events := pg_catalog.format(E'select * from (%s) ev where (%s\n) order by 1', events, i_extra_where);
    end if;
    execute pg_catalog.format('declare %s no scroll cursor for %s', cursor_name, events);
    if caps.max_events is null and caps.max_bytes is null then
        return query execute pg_catalog.format('fetch %s from %s', i_quick_limit, cursor_name);
        return;
    end if;
    for nr in 1 .. i_quick_limit loop
        execute pg_catalog.format('fetch next from %s', cursor_name)
           into ev_id, ev_time, ev_txid, ev_retry, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4;
        get diagnostics fetched = row_count;
        exit when fetched operator(pg_catalog.=) 0;
        bytes := bytes operator(pg_catalog.+)
                 pgcascade.event_bytes(ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4);
        perform pgcascade.check_read(i_batch_id, nr, bytes, caps.max_events, caps.max_bytes);
        return next;
    end loop;
end
$$;

-- pgq.get_batch_cursor(3)
--     The same without condition.
create function pgq.get_batch_cursor(
    in i_batch_id bigint, in i_cursor_name text, in i_quick_limit int4,
    out ev_id bigint, out ev_time timestamptz, out ev_txid bigint, out ev_retry int4, out ev_type text,
    out ev_data text, out ev_extra1 text, out ev_extra2 text, out ev_extra3 text, out ev_extra4 text
) returns setof record
language plpgsql volatile strict
set search_path = pg_catalog, pg_temp
as $$
begin
    return query select c.* from pgq.get_batch_cursor(i_batch_id, i_cursor_name, i_quick_limit, null) c;
end
$$;

-- pgq.finish_batch(1)
--     The events of a batch are dealt with: the consumer's position moves to its end. Returns 1.
--     A batch that is not open any more (finished by somebody else, consumer moved) is a warning and 0.
--     Errors: the consumer belongs to another role.
--     Writes pgq.subscription. Where the queue has a confirm gate it wakes those who wait for a batch.
create function pgq.finish_batch(x_batch_id bigint) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    of_queue integer;
begin
    perform pgcascade.check_batch(x_batch_id);
    update pgq.subscription
       set sub_active = now(), sub_last_tick = sub_next_tick, sub_next_tick = null, sub_batch = null
     where sub_batch = x_batch_id
    returning sub_queue into of_queue;
    if not found then
        raise warning 'finish_batch: batch % not found', x_batch_id;
        return 0;
    end if;
    perform pgcascade.gate_moved(g.queue_id) from pgcascade.confirm_gate g where g.queue_id = of_queue;
    return 1;
end
$$;

comment on function pgq.next_batch(text, text) is 'open the next batch of a consumer; null when there is none';
comment on function pgq.next_batch_info(text, text) is 'open the next batch of a consumer; with its ticks';
comment on function pgq.next_batch_custom(text, text, interval, integer, interval) is
    'open the next batch of a consumer with a minimal lag, event count or duration';
comment on function pgq.find_tick_helper(integer, bigint, timestamptz, bigint, bigint, interval) is
    'the tick that ends a batch of a wanted size';
comment on function pgq.get_batch_info(bigint) is 'queue, consumer and ticks of an open batch';
comment on function pgq.batch_event_sql(bigint) is 'SQL text that reads the events of an open batch';
comment on function pgq.batch_event_tables(bigint) is 'event tables that an open batch has to be looked for in';
comment on function pgq.get_batch_events(bigint) is 'events of an open batch';
comment on function pgq.get_batch_cursor(bigint, text, integer) is
    'open a cursor over the events of a batch and return the first rows';
comment on function pgq.get_batch_cursor(bigint, text, integer, text) is
    'open a cursor over the events of a batch that meet a condition and return the first rows';
comment on function pgq.finish_batch(bigint) is 'finish a batch; 1, or 0 with a warning if it is not open';
