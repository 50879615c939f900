-- Queue limits at work: one dead consumer must not fill the disk.
--
-- A consumer is named here only if it is in the way of a rotation that is due, and reading on would get it out of the way
-- (pgcascade.rotation_blockers()). A consumer that waits for a long transaction or for the next tick is never to blame.
-- pgq.maint_operations() lists maint_queue_limit() for each queue with limits, before rotation, so that what it frees is
-- rotated in the same round, whoever runs the round.
--
-- Nobody is dropped quietly: a row in pgcascade.dropped_consumer, a WARNING in the server's log, and an error with the
-- reason for the consumer that comes back, until somebody registers it again.

-- What was dropped. Rows stay, also when the queue is gone.
create table pgcascade.dropped_consumer (
    queue_id        integer     not null,
    queue_name      text        not null,
    consumer_name   text        not null,
    dropped_at      timestamptz not null default clock_timestamp(),
    reason          text        not null,
    last_tick       bigint,     -- the last tick that it had finished; what came after that is lost to it
    batch_id        bigint,     -- the batch that it had open, and the tick at its end
    next_tick       bigint,
    lag             interval,
    bytes           bigint      not null,
    retries         bigint      not null,
    returned_at     timestamptz, -- when it was registered again

    constraint dropped_consumer_pkey primary key (queue_id, consumer_name, dropped_at)
);
create index dropped_consumer_name_idx on pgcascade.dropped_consumer (consumer_name, queue_name) where returned_at is null;

-- What the log has been told: a cause that lasts is said again after warn_interval only. Forgotten when the cause is gone.
create table pgcascade.limit_warning (
    queue_id        integer     not null,
    blocker         text        not null,
    name            text        not null,
    since           timestamptz not null default now(),
    warned_at       timestamptz not null default now(),

    constraint limit_warning_pkey primary key (queue_id, blocker, name),
    constraint limit_warning_queue_fkey foreign key (queue_id) references pgq.queue (queue_id) on delete cascade
);

comment on table pgcascade.dropped_consumer is 'consumers that were unregistered because they kept a queue beyond its limits';
comment on table pgcascade.limit_warning is 'who keeps queues beyond their limits and was warned of';

select pg_catalog.pg_extension_config_dump('pgcascade.dropped_consumer', '');

-- pgcascade.limits_exceeded()
--     Who keeps which queue beyond its limits, the oldest first.
--     blocker, name   as in pgcascade.rotation_blockers()
--     reason          which limit, in words and figures
--     cascade         the consumer is a watermark or a worker of a node of a cascade, which is never dropped: nodes below
--                     would lose what they still need, and could not be given another provider
--     What a consumer could not use does not count against it: the time before the limits were set or restored and while
--     the server was down. So ages begin anew with the server, and for bytes it has a minute, as after a rotation.
create function pgcascade.limits_exceeded(
    out queue_id integer, out queue_name text, out blocker text, out name text, out since timestamptz,
    out bytes bigint, out reason text, out cascade boolean
) returns setof record
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set intervalstyle = postgres
as $$
begin
    return query
    select q.queue_id, q.queue_name, b.blocker, coalesce(b.name, ''), b.since, b.bytes,
           case when b.bytes > c.max_bytes then
               format('the queue holds %s, and its limit is %s', pg_size_pretty(b.bytes), pg_size_pretty(c.max_bytes))
           else
               format('the tick it stands at is %s old, and the limit is %s',
                      date_trunc(case when age.age < interval '10 minutes' then 'second' else 'minute' end, age.age), c.max_age)
           end,
           b.blocker = 'consumer'
           and (starts_with(b.name, '.')
                or exists (select from pgq_node.subscriber_info i
                            where i.queue_name = q.queue_name and b.name in (i.worker_name, i.watermark_name)))
      from pgcascade.rotation_blockers() b
      join pgq.queue q on q.queue_name = b.queue_name
      join pgcascade.queue_config c on c.queue_id = q.queue_id
     cross join lateral (
               select clock_timestamp() - b.since as age,
                      clock_timestamp() - greatest(c.since, pg_postmaster_start_time()) as chance) age
     where (b.bytes > c.max_bytes and age.chance > least(q.queue_rotation_period, interval '1 minute')
            or b.blocker = 'consumer' and least(age.age, age.chance) > c.max_age)
       and not exists (select from pgcascade.restored_queue r where r.queue_id = q.queue_id)
     order by b.since, b.name;
end
$$;

-- pgcascade.maint_queue_limit(1)
--     Enforce the limits of a queue: warn of those who keep it beyond them, or drop them if that is the policy and they are
--     consumers. Returns how many were dropped. What they leave behind is truncated by the rotations that follow.
--     Writes pgcascade.dropped_consumer, pgcascade.limit_warning and what pgq.unregister_consumer() writes; assigns no
--     transaction id when there is nobody to name. Holds the queue's limits, so that of two rounds of maintenance one warns,
--     and the row of the consumer; one whose row is locked is at work just now and left alone.
create function pgcascade.maint_queue_limit(i_queue_name text) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    conf record;
    b record;
    dropped integer := 0;
begin
    select c.queue_id, c.policy, c.warn_interval into conf
      from pgcascade.queue_config c
      join pgq.queue q on q.queue_id = c.queue_id
     where q.queue_name = i_queue_name;
    if not found
       or not exists (select from pgcascade.limits_exceeded() x where x.queue_id = conf.queue_id)
          and not exists (select from pgcascade.limit_warning w where w.queue_id = conf.queue_id)
    then
        return 0;
    end if;
    perform from pgcascade.queue_config c where c.queue_id = conf.queue_id for no key update skip locked;
    if not found then
        return 0;
    end if;

    for b in select x.* from pgcascade.limits_exceeded() x where x.queue_id = conf.queue_id order by x.since, x.name loop
        if conf.policy = 'drop' and b.blocker = 'consumer' and not b.cascade then
            dropped := dropped + pgcascade.drop_consumer(b.queue_id, b.name, b.since, b.bytes, b.reason);
            continue;
        end if;
        insert into pgcascade.limit_warning as w (queue_id, blocker, name)
        values (b.queue_id, b.blocker, b.name)
        on conflict (queue_id, blocker, name) do update
           set warned_at = now() where w.warned_at < now() - conf.warn_interval;
        if found then
            raise warning using errcode = 'configuration_limit_exceeded',
                message = case b.blocker
                    when 'ticker' then format('queue "%s" waits for a tick before it can be rotated: %s',
                                              b.queue_name, b.reason)
                    else format('%s "%s" keeps queue "%s" from being rotated: %s', b.blocker, b.name,
                                b.queue_name, b.reason)
                end,
                hint = case
                    when b.cascade then 'It belongs to a node of a cascade and is not dropped: start that node''s worker, '
                                        'or drop the node with pgq_node.unregister_subscriber().'
                    when b.blocker = 'consumer' then 'Start the consumer, or end it with pgq.unregister_consumer(), as '
                                                     'policy drop in pgcascade.set_queue_limit() would.'
                    when b.blocker = 'ticker' then 'Resume the ticker of the queue, or of the node that it gets its ticks from.'
                    else 'End it, and its transaction with it; pgcascade.rotation_blockers() shows since when it is open.'
                end;
        end if;
    end loop;

    delete from pgcascade.limit_warning w
     where w.queue_id = conf.queue_id
       and not exists (select from pgcascade.limits_exceeded() x
                        where x.queue_id = w.queue_id and x.blocker = w.blocker and x.name = w.name);
    return dropped;
end
$$;

-- pgcascade.drop_consumer(5)
--     Unregister a consumer that exceeds a limit, and record it. Returns 1, or 0 if it moved on or is at work just now.
--     With a main consumer go its subconsumers; those that had a batch open get records of their own.
create function pgcascade.drop_consumer(
    i_queue_id integer, i_consumer_name text, i_since timestamptz, i_bytes bigint, i_reason text
) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    sub pgq.subscription;
    is_main boolean;
    queue text;
begin
    select s.* into sub
      from pgq.subscription s
      join pgq.consumer c on c.co_id = s.sub_consumer
     where s.sub_queue = i_queue_id and c.co_name = i_consumer_name
       for update of s skip locked;
    -- The row is what is true now: it may have finished its batch since it was looked at.
    if not found
       or i_since is distinct from coalesce((select t.tick_time from pgq.tick t
                                              where t.tick_queue = i_queue_id and t.tick_id = sub.sub_last_tick),
                                            sub.sub_active)
    then
        return 0;
    end if;
    select q.queue_name into queue from pgq.queue q where q.queue_id = i_queue_id;
    is_main := pgcascade.main_consumer(sub.sub_queue, sub.sub_consumer) is null;

    insert into pgcascade.dropped_consumer (queue_id, queue_name, consumer_name, reason, last_tick, batch_id, next_tick,
                                            lag, bytes, retries)
    select i_queue_id, queue, c.co_name, i_reason, s.sub_last_tick, s.sub_batch, s.sub_next_tick,
           clock_timestamp() - i_since, i_bytes,
           case when is_main and s.sub_consumer = sub.sub_consumer then
               (select count(*) from pgq.retry_queue r where r.ev_queue = i_queue_id and r.ev_owner = s.sub_id)
           else 0 end
      from pgq.subscription s
      join pgq.consumer c on c.co_id = s.sub_consumer
     where s.sub_queue = i_queue_id
       and (s.sub_consumer = sub.sub_consumer or is_main and s.sub_id = sub.sub_id and s.sub_batch is not null);
    perform pgq.unregister_consumer(queue, i_consumer_name);

    raise warning using errcode = 'configuration_limit_exceeded',
        message = format('consumer "%s" of queue "%s" was dropped: %s', i_consumer_name, queue, i_reason),
        detail = format('The last tick that it had finished is %s; what came after that is lost to it.',
                        coalesce(sub.sub_last_tick::text, 'unknown')),
        hint = 'The record is in pgcascade.dropped_consumer. Compare the consumer''s data with the source before it is '
               'registered again.';
    return 1;
end
$$;

-- pgcascade.not_subscribed_hint(2)
--     What to tell somebody who reads a queue without being subscribed: that it was dropped and why, or how to subscribe.
create function pgcascade.not_subscribed_hint(i_queue_name text, i_consumer_name text) returns text
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    gone pgcascade.dropped_consumer;
begin
    select * into gone from pgcascade.dropped_consumer d
     where d.queue_name = i_queue_name and d.consumer_name = i_consumer_name and d.returned_at is null
     order by d.dropped_at desc limit 1;
    if not found then
        return 'Subscribe with pgq.register_consumer(); pgq.get_consumer_info() lists the consumers.';
    end if;
    return format('It was dropped at %s UTC, having finished tick %s, because it kept the queue from being rotated: %s. Events '
                  'after that tick are lost to it: compare its data with the source, then subscribe it again with '
                  'pgq.register_consumer().',
                  to_char(gone.dropped_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS'), coalesce(gone.last_tick::text, 'unknown'),
                  gone.reason);
end
$$;

-- pgcascade.consumer_returned(2)
--     A consumer was registered anew: if it had been dropped, it is told what it missed, and the record is closed.
create function pgcascade.consumer_returned(i_queue_id integer, i_consumer_name text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    gone record;
begin
    for gone in
        update pgcascade.dropped_consumer d
           set returned_at = now()
         where d.queue_id = i_queue_id and d.consumer_name = i_consumer_name and d.returned_at is null
        returning d.queue_name, d.last_tick, d.reason
    loop
        raise warning using errcode = 'configuration_limit_exceeded',
            message = format('consumer "%s" of queue "%s" had been dropped: events between tick %s and now are lost to it',
                             i_consumer_name, gone.queue_name, coalesce(gone.last_tick::text, 'unknown')),
            detail = format('Reason: %s.', gone.reason),
            hint = 'Compare its data with the source.';
    end loop;
end
$$;

comment on function pgcascade.limits_exceeded() is 'who keeps which queue beyond its limits';
comment on function pgcascade.maint_queue_limit(text) is 'enforce the limits of a queue: warn, or drop consumers';
comment on function pgcascade.drop_consumer(integer, text, timestamptz, bigint, text) is
    'unregister a consumer that exceeds a limit, and record it';
comment on function pgcascade.not_subscribed_hint(text, text) is 'hint for a consumer that is not subscribed: whether it was dropped';
comment on function pgcascade.consumer_returned(integer, text) is 'close the record of a dropped consumer that is registered again';
