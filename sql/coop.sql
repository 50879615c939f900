-- pgq_coop: cooperative consumers: several subconsumers share the batches of one main consumer, each batch to one of them.
--
-- A subconsumer is a subscription named "main.sub" with the sub_id of its main consumer, so events that one of them
-- retries come back to any of them. The main consumer only hands out batches: it opens one, closes it at once, and the
-- two ticks go to the subconsumer, which holds the events until it finishes the batch. Between batches it has no tick.
--
-- A subconsumer belongs to the role that owns its main consumer.
--
-- Promised: a batch is open at one subconsumer at a time. Who opens or takes over a batch holds the row of the main
-- consumer, always before rows of subconsumers, so batches are handed out one after the other.
-- A batch that is taken over keeps its id. So when the worker that was believed dead finishes it after all, the batch
-- is finished: it was dealt with, and the one who took it over is told at its own finish, with a warning and 0.

create schema pgq_coop;

comment on schema pgq_coop is 'cooperative consumers: several workers share the batches of one consumer';

grant usage on schema pgq_coop to public;

-- pgcascade.main_consumer(2)
--     The main consumer that a subscribed consumer is a subconsumer of; null if it is not one.
create function pgcascade.main_consumer(i_queue_id integer, i_consumer_id integer) returns integer
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select main.sub_consumer
          from pgq.subscription sub
          join pgq.consumer subname on subname.co_id = sub.sub_consumer
          join pgq.subscription main on main.sub_queue = sub.sub_queue and main.sub_id = sub.sub_id
          join pgq.consumer mainname on mainname.co_id = main.sub_consumer
         where sub.sub_queue = i_queue_id and sub.sub_consumer = i_consumer_id
           and starts_with(subname.co_name, mainname.co_name || '.')
         order by length(mainname.co_name) limit 1);
end
$$;

-- pgcascade.refuse_dropped(3)
--     Refuses a subconsumer that was dropped, or whose main consumer was, for a queue limit: asking for a batch registers
--     whoever is not registered, and would skip what was lost without a word. It has to be registered in so many words.
create function pgcascade.refuse_dropped(
    i_queue_name text, i_consumer_name text, i_subconsumer_name text
) returns void
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    gone text;
begin
    select d.consumer_name into gone from pgcascade.dropped_consumer d
     where d.queue_name = i_queue_name and d.returned_at is null
       and d.consumer_name in (i_consumer_name, i_consumer_name || '.' || i_subconsumer_name)
     order by length(d.consumer_name) limit 1;
    if found then
        raise exception using errcode = 'undefined_object',
            message = format('Not subscriber to queue: %s/%s', i_queue_name, gone),
            hint = pgcascade.not_subscribed_hint(i_queue_name, gone);
    end if;
end
$$;

-- pgq_coop.register_subconsumer(3)
--     Subscribe a subconsumer, and its main consumer if it is not subscribed. Returns 1 if newly subscribed, 0 if it was.
--     Errors: a null argument; no such queue; the main consumer belongs to another role; "main.sub" is the name of a consumer that is not of this main consumer.
--     Writes pgq.consumer, pgq.subscription. Locks the row of the main consumer.
create function pgq_coop.register_subconsumer(
    i_queue_name text, i_consumer_name text, i_subconsumer_name text
) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    name constant text := i_consumer_name || '.' || i_subconsumer_name;
    main pgq.subscription;
    sub pgq.subscription;
    consumer integer;
begin
    if i_queue_name is null or name is null then
        raise exception using errcode = 'null_value_not_allowed', message = 'Invalid NULL value',
            hint = 'Give the queue, the consumer and the subconsumer.';
    end if;

    perform pgq.register_consumer(i_queue_name, i_consumer_name);
    select s.* into main
      from pgq.subscription s
      join pgq.queue q on q.queue_id = s.sub_queue
      join pgq.consumer c on c.co_id = s.sub_consumer
     where q.queue_name = i_queue_name and c.co_name = i_consumer_name
       for update of s;
    if not found then
        raise exception using errcode = 'object_in_use',
            message = format('consumer %s was unregistered from queue %s just now', i_consumer_name, i_queue_name),
            hint = 'Register the subconsumer again.';
    end if;
    perform pgcascade.check_consumer(main.sub_queue, main.sub_consumer);

    select s.* into sub
      from pgq.subscription s
      join pgq.consumer c on c.co_id = s.sub_consumer
     where s.sub_queue = main.sub_queue and c.co_name = name;
    if found and sub.sub_id = main.sub_id then
        return 0;
    elsif found then
        raise exception using errcode = 'duplicate_object',
            message = format('%s is another consumer of queue %s', name, i_queue_name),
            hint = 'A subconsumer is called "consumer.subconsumer": choose another name, or unregister that consumer.';
    end if;

    select co_id into consumer from pgq.consumer where co_name = name for key share;
    if not found then
        insert into pgq.consumer (co_id, co_name)
        values (pgcascade.unused_id('pgq.consumer_co_id_seq'), name)
        on conflict (co_name) do update set co_name = excluded.co_name
        returning co_id into consumer;
    end if;
    insert into pgq.subscription (sub_id, sub_queue, sub_consumer)
    values (main.sub_id, main.sub_queue, consumer);
    perform pgcascade.consumer_returned(main.sub_queue, name);
    return 1;
end
$$;

-- pgq_coop.unregister_subconsumer(4)
--     End a subconsumer. Returns 1, or 0 if there was none.
--     i_batch_handling   what becomes of an open batch; 0: it is an error; 1: it counts as finished, nobody else gets it
--     Errors: a batch is open (0); another value than these two.
--     Writes pgq.subscription, pgq.consumer.
create function pgq_coop.unregister_subconsumer(
    i_queue_name text, i_consumer_name text, i_subconsumer_name text, i_batch_handling integer
) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    sub record;
begin
    if i_batch_handling is null or i_batch_handling not in (0, 1) then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('unknown batch handling: %s', coalesce(i_batch_handling::text, 'NULL')),
            hint = 'Use 0 to fail if a batch is open, or 1 to drop the batch.';
    end if;

    select s.sub_batch, c.co_name into sub
      from pgq.queue q
      join pgq.consumer mc on mc.co_name = i_consumer_name
      join pgq.subscription m on m.sub_queue = q.queue_id and m.sub_consumer = mc.co_id
      join pgq.consumer c on c.co_name = i_consumer_name || '.' || i_subconsumer_name
      join pgq.subscription s on s.sub_queue = q.queue_id and s.sub_consumer = c.co_id and s.sub_id = m.sub_id
     where q.queue_name = i_queue_name
       for update of s;
    if not found then
        return 0;
    end if;
    if i_batch_handling = 0 and sub.sub_batch is not null then
        raise exception using errcode = 'object_in_use', message = 'subconsumer has active batch',
            detail = format('Subconsumer: %s, batch id: %s', sub.co_name, sub.sub_batch),
            hint = 'Finish it with pgq_coop.finish_batch(), or drop it by batch handling 1.';
    end if;
    return pgq.unregister_consumer(i_queue_name, sub.co_name);
end
$$;

-- pgq_coop.next_batch_custom(7)
--     The open batch of a subconsumer, or the next one of its main consumer. Null when there is none.
--     i_min_lag, i_min_count, i_min_interval   as in pgq.next_batch_custom()
--     i_dead_interval   take over the batch of a subconsumer that neither opened nor finished nor asked for one for that
--                       long; the subscription of that one ends. Null: nobody's. The oldest batch is taken first.
--     Registers main consumer and subconsumer where they are not. Errors: a null name; no such queue; the main consumer
--     reads batches itself; those of pgq.next_batch_custom().
--     Writes pgq.subscription. Nothing is locked or written, and no transaction id assigned, when there is nothing to get.
--     A worker that holds a lock on its row is at work, so it is not waited for but left alone.
create function pgq_coop.next_batch_custom(
    i_queue_name text, i_consumer_name text, i_subconsumer_name text,
    i_min_lag interval, i_min_count int4, i_min_interval interval, i_dead_interval interval
) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    name constant text := i_consumer_name || '.' || i_subconsumer_name;
    look record;
    main pgq.subscription;
    sub pgq.subscription;
    dead record;
    batch record;
begin
    -- 1. A look without locks: who polls an idle queue is done here.
    select m.sub_queue, m.sub_consumer,
           s.sub_batch is not null
           or m.sub_batch is not null
           or not exists (select from pgq.tick t where t.tick_queue = m.sub_queue and t.tick_id = m.sub_last_tick)
           or exists (select from pgq.tick t where t.tick_queue = m.sub_queue and t.tick_id > m.sub_last_tick)
           or exists (select from pgq.subscription d
                       where d.sub_queue = m.sub_queue and d.sub_id = m.sub_id and d.sub_batch is not null
                         and d.sub_active < clock_timestamp() - i_dead_interval) as busy
      into look
      from pgq.subscription m
      join pgq.queue q on q.queue_id = m.sub_queue and q.queue_name = i_queue_name
      join pgq.consumer mc on mc.co_id = m.sub_consumer and mc.co_name = i_consumer_name
      join pgq.consumer c on c.co_name = name
      join pgq.subscription s on s.sub_queue = m.sub_queue and s.sub_consumer = c.co_id and s.sub_id = m.sub_id;
    if not found then
        perform pgcascade.refuse_dropped(i_queue_name, i_consumer_name, i_subconsumer_name);
        perform pgq_coop.register_subconsumer(i_queue_name, i_consumer_name, i_subconsumer_name);
        select m.sub_queue, m.sub_consumer into look
          from pgq.subscription m
          join pgq.queue q on q.queue_id = m.sub_queue and q.queue_name = i_queue_name
          join pgq.consumer mc on mc.co_id = m.sub_consumer and mc.co_name = i_consumer_name;
    else
        perform pgcascade.check_consumer(look.sub_queue, look.sub_consumer);
        if not look.busy then
            return null;
        end if;
    end if;

    -- 2. The main consumer's row: from here on nobody else hands out batches of this consumer.
    select s.* into main from pgq.subscription s
     where s.sub_queue = look.sub_queue and s.sub_consumer = look.sub_consumer
       for update;
    select s.* into sub
      from pgq.subscription s
      join pgq.consumer c on c.co_id = s.sub_consumer
     where s.sub_queue = main.sub_queue and s.sub_id = main.sub_id and c.co_name = name
       for update of s;
    if not found then
        -- It was ended between 1 and 2: by itself, or because its batch was taken over and finished meanwhile.
        perform pgcascade.refuse_dropped(i_queue_name, i_consumer_name, i_subconsumer_name);
        perform pgq_coop.register_subconsumer(i_queue_name, i_consumer_name, i_subconsumer_name);
        select s.* into strict sub
          from pgq.subscription s
          join pgq.queue q on q.queue_id = s.sub_queue and q.queue_name = i_queue_name
          join pgq.consumer c on c.co_id = s.sub_consumer and c.co_name = name
           for update of s;
    end if;

    -- 3. Its own batch. Asking for it is a sign of life.
    if sub.sub_batch is not null then
        update pgq.subscription set sub_active = clock_timestamp()
         where sub_queue = sub.sub_queue and sub_consumer = sub.sub_consumer;
        return sub.sub_batch;
    end if;

    -- 4. The batch of a dead one. Its row goes before ours gets the batch, whose id is unique.
    select s.sub_last_tick, s.sub_next_tick, s.sub_batch, c.co_name into dead
      from pgq.subscription s
      join pgq.consumer c on c.co_id = s.sub_consumer
     where s.sub_queue = sub.sub_queue and s.sub_id = sub.sub_id
       and s.sub_consumer not in (sub.sub_consumer, main.sub_consumer)
       and s.sub_batch is not null
       and s.sub_active < clock_timestamp() - i_dead_interval
     order by s.sub_next_tick limit 1
       for update of s skip locked;
    if found then
        perform pgq.unregister_consumer(i_queue_name, dead.co_name);
        update pgq.subscription
           set sub_last_tick = dead.sub_last_tick, sub_next_tick = dead.sub_next_tick, sub_batch = dead.sub_batch,
               sub_active = clock_timestamp()
         where sub_queue = sub.sub_queue and sub_consumer = sub.sub_consumer;
        return dead.sub_batch;
    end if;

    -- 5. The next one of the main consumer.
    if main.sub_batch is not null then
        raise exception using errcode = 'object_in_use', message = 'main consumer has batch open?',
            detail = format('Consumer: %s, batch id: %s', i_consumer_name, main.sub_batch),
            hint = 'Finish it with pgq.finish_batch(); a consumer with subconsumers does not read batches itself.';
    end if;
    select n.batch_id, n.cur_tick_id, n.prev_tick_id into batch
      from pgq.next_batch_custom(i_queue_name, i_consumer_name, i_min_lag, i_min_count, i_min_interval) n;
    if batch.batch_id is null then
        return null;
    end if;
    perform pgq.finish_batch(batch.batch_id);
    update pgq.subscription
       set sub_last_tick = batch.prev_tick_id, sub_next_tick = batch.cur_tick_id, sub_batch = batch.batch_id,
           sub_active = clock_timestamp()
     where sub_queue = sub.sub_queue and sub_consumer = sub.sub_consumer;
    return batch.batch_id;
end
$$;

-- pgq_coop.next_batch_custom(6), pgq_coop.next_batch(4), pgq_coop.next_batch(3)
--     The same without take-over, without conditions, without both.
create function pgq_coop.next_batch_custom(
    i_queue_name text, i_consumer_name text, i_subconsumer_name text,
    i_min_lag interval, i_min_count int4, i_min_interval interval
) returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return pgq_coop.next_batch_custom(i_queue_name, i_consumer_name, i_subconsumer_name,
                                      i_min_lag, i_min_count, i_min_interval, null);
end
$$;

create function pgq_coop.next_batch(
    i_queue_name text, i_consumer_name text, i_subconsumer_name text, i_dead_interval interval
) returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return pgq_coop.next_batch_custom(i_queue_name, i_consumer_name, i_subconsumer_name,
                                      null, null, null, i_dead_interval);
end
$$;

create function pgq_coop.next_batch(i_queue_name text, i_consumer_name text, i_subconsumer_name text) returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return pgq_coop.next_batch_custom(i_queue_name, i_consumer_name, i_subconsumer_name, null, null, null, null);
end
$$;

-- pgq_coop.finish_batch(1)
--     The events of a subconsumer's batch are dealt with. Returns 1; a batch that is not open any more is a warning and 0.
--     The batch of an ordinary consumer is finished as pgq.finish_batch() does it.
--     Writes pgq.subscription: the subconsumer has no tick afterwards, so an idle one holds up no rotation.
create function pgq_coop.finish_batch(i_batch_id bigint) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    sub pgq.subscription;
begin
    select * into sub from pgq.subscription where sub_batch = i_batch_id for update;
    if not found then
        raise warning 'coop_finish_batch: batch % not found', i_batch_id;
        return 0;
    end if;
    perform pgcascade.check_consumer(sub.sub_queue, sub.sub_consumer);
    if pgcascade.main_consumer(sub.sub_queue, sub.sub_consumer) is null then
        return pgq.finish_batch(i_batch_id);
    end if;
    update pgq.subscription
       set sub_last_tick = null, sub_next_tick = null, sub_batch = null, sub_active = clock_timestamp()
     where sub_queue = sub.sub_queue and sub_consumer = sub.sub_consumer;
    return 1;
end
$$;

-- pgq_coop.version()
--     Version of the installed extension.
create function pgq_coop.version() returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return pgq.version();
end
$$;

comment on function pgcascade.refuse_dropped(text, text, text) is 'raise an error for a subconsumer that was dropped for a queue limit';
comment on function pgcascade.main_consumer(integer, integer) is 'main consumer of a subconsumer; null if it is not one';
comment on function pgq_coop.register_subconsumer(text, text, text) is 'subscribe a subconsumer; 1 if new, 0 if it was';
comment on function pgq_coop.unregister_subconsumer(text, text, text, integer) is
    'end a subconsumer; an open batch is an error (0) or dropped (1)';
comment on function pgq_coop.next_batch_custom(text, text, text, interval, integer, interval, interval) is
    'next batch for a subconsumer, or that of a dead one; with conditions';
comment on function pgq_coop.next_batch_custom(text, text, text, interval, integer, interval) is
    'next batch for a subconsumer; with conditions';
comment on function pgq_coop.next_batch(text, text, text, interval) is 'next batch for a subconsumer, or that of a dead one';
comment on function pgq_coop.next_batch(text, text, text) is 'next batch for a subconsumer; null when there is none';
comment on function pgq_coop.finish_batch(bigint) is 'finish the batch of a subconsumer; 0 if it is not open';
comment on function pgq_coop.version() is 'version of the extension';

revoke all on all functions in schema pgq_coop from public;
grant execute on all functions in schema pgq_coop to pgq_reader;
grant execute on function pgq_coop.version() to public;
