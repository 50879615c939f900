-- Consumers: subscribing to a queue, moving to a tick, leaving.
--
-- Registering picks a tick as position, and rotation forgets ticks and events that no position needs. The two meet on
-- the queue's row: registering holds it FOR SHARE, rotation FOR UPDATE (maint.sql), so a position is never given out
-- that rotation is just taking away.

-- pgq.register_consumer_at(3)
--     Subscribe a consumer to a queue, or move a subscribed one.
--     x_tick_pos   the tick after which events are wanted; null: the last one, and a subscribed consumer stays
--     Returns 1 if newly subscribed, 0 if it was. Moving drops the open batch.
--     A new subscription belongs to the caller; that of an administrator, who prepares it for others, to whoever opens its
--     first batch (consumer_config.sql).
--     Errors: no such queue; no such tick; the queue has no tick yet; moving a consumer of another role.
--     Writes pgq.consumer, pgq.subscription, pgcascade.consumer_config.
create function pgq.register_consumer_at(x_queue_name text, x_consumer_name text, x_tick_pos bigint) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    id integer;
    consumer integer;
    start_tick bigint;
    -- An administrator's act is not a claim.
    claimant constant name := case when not pg_has_role(pgcascade.caller(), 'pgq_admin', 'member') then pgcascade.caller() end;
begin
    select queue_id into id from pgq.queue where queue_name = x_queue_name for share;
    if not found then
        raise exception using errcode = 'undefined_object', message = 'Event queue not created yet',
            detail = format('Queue name: %s', coalesce(quote_literal(x_queue_name), 'NULL')),
            hint = 'Create it with pgq.create_queue(), or see pgq.get_queue_info() for the queues that exist.';
    end if;

    select co_id into consumer from pgq.consumer where co_name = x_consumer_name for key share;
    if not found then
        -- Two sessions may bring the same new name: the second waits here and uses the row of the first.
        insert into pgq.consumer (co_id, co_name)
        values (pgcascade.unused_id('pgq.consumer_co_id_seq'), x_consumer_name)
        on conflict (co_name) do update set co_name = excluded.co_name
        returning co_id into consumer;
    end if;

    if x_tick_pos is not null then
        select tick_id into start_tick from pgq.tick where tick_queue = id and tick_id = x_tick_pos;
        if not found then
            raise exception using errcode = 'undefined_object',
                message = format('cannot reposition, tick not found: %s', x_tick_pos),
                detail = format('Queue name: %L', x_queue_name),
                hint = 'Ticks older than the last rotation are forgotten; see pgq.tick for those that are left.';
        end if;

        if exists (select from pgq.subscription where sub_queue = id and sub_consumer = consumer)
           and not pgcascade.check_consumer(id, consumer)
        then
            perform pgcascade.store_owner(id, consumer, claimant, true);
        end if;
        update pgq.subscription
           set sub_last_tick = start_tick, sub_batch = null, sub_next_tick = null, sub_active = now()
         where sub_queue = id and sub_consumer = consumer;
        if found then
            perform pgcascade.wake_waiters(id);
            return 0;
        end if;
    elsif exists (select from pgq.subscription where sub_queue = id and sub_consumer = consumer) then
        return 0;
    else
        select tick_id into start_tick from pgq.tick where tick_queue = id order by tick_id desc limit 1;
        if not found then
            raise exception using errcode = 'object_not_in_prerequisite_state',
                message = 'No ticks for this queue.  Please run ticker on database.',
                detail = format('Queue name: %L', x_queue_name),
                hint = 'Run pgq.ticker(queue), or add pgcascade to shared_preload_libraries to have it done.';
        end if;
    end if;

    insert into pgq.subscription (sub_id, sub_queue, sub_consumer, sub_last_tick)
    values (pgcascade.unused_id('pgq.subscription_sub_id_seq'), id, consumer, start_tick)
    on conflict (sub_queue, sub_consumer) do nothing;
    if not found then
        return 0;
    end if;
    perform pgcascade.consumer_returned(id, x_consumer_name);
    -- What was known of an earlier subscription under that name is not known of this one.
    delete from pgcascade.consumer_config where sub_queue = id and sub_consumer = consumer;
    perform pgcascade.store_owner(id, consumer, claimant, false);
    return 1;
end
$$;

-- pgq.register_consumer(2)
--     Subscribe a consumer to a queue from the last tick on. Returns 1, or 0 if it was subscribed.
create function pgq.register_consumer(x_queue_name text, x_consumer_id text) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return pgq.register_consumer_at(x_queue_name, x_consumer_id, null);
end
$$;

-- pgq.unregister_consumer(2)
--     End a subscription, with its open batch and its retried events. Returns the number of subscriptions ended: 0 if
--     there was none, more than 1 when a main consumer takes its subconsumers with it.
--     Errors: the consumer belongs to another role.
--     Writes pgq.subscription, pgq.retry_queue, pgq.consumer, pgcascade.consumer_config.
create function pgq.unregister_consumer(x_queue_name text, x_consumer_name text) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    sub pgq.subscription;
    is_subconsumer boolean;
    ended integer[];
begin
    select s.* into sub
      from pgq.subscription s
      join pgq.queue q on q.queue_id = s.sub_queue
      join pgq.consumer c on c.co_id = s.sub_consumer
     where q.queue_name = x_queue_name and c.co_name = x_consumer_name
       for update of s;
    if not found then
        return 0;
    end if;
    perform pgcascade.check_consumer(sub.sub_queue, sub.sub_consumer);

    -- A subconsumer shares sub_id with its main consumer and is called "main.sub".
    is_subconsumer := exists (
        select from pgq.subscription s
          join pgq.consumer c on c.co_id = s.sub_consumer
         where s.sub_queue = sub.sub_queue and s.sub_id = sub.sub_id
           and starts_with(x_consumer_name, c.co_name || '.'));

    with gone as (
        delete from pgq.subscription s
         where s.sub_queue = sub.sub_queue
           and case when is_subconsumer then s.sub_consumer = sub.sub_consumer else s.sub_id = sub.sub_id end
        returning s.sub_consumer
    )
    select array_agg(sub_consumer) into ended from gone;
    delete from pgcascade.consumer_config where sub_queue = sub.sub_queue and sub_consumer = any (ended);
    delete from pgcascade.dead_letter where queue_id = sub.sub_queue and consumer_id = any (ended);
    perform pgcascade.wake_waiters(sub.sub_queue);
    if not is_subconsumer then
        delete from pgq.retry_queue where ev_owner = sub.sub_id;
    end if;

    -- Names that nothing refers to any more go as well. One that is being registered elsewhere just now is locked
    -- there, and stays.
    delete from pgq.consumer
     where co_id in (select c.co_id from pgq.consumer c
                      where c.co_id = any (ended)
                        and not exists (select from pgq.subscription s where s.sub_consumer = c.co_id)
                        for update skip locked);
    return cardinality(ended);
end
$$;

comment on function pgq.register_consumer(text, text) is 'subscribe a consumer to a queue; 1 if new, 0 if it was';
comment on function pgq.register_consumer_at(text, text, bigint) is
    'subscribe a consumer at a tick, or move it there; 1 if new, 0 if it was';
comment on function pgq.unregister_consumer(text, text) is 'end a consumer''s subscription; returns how many were ended';
