-- Delayed events: stored now, delivered to all consumers after a time given.
--
-- A delayed event waits in pgcascade.delayed_event, inside the caller's transaction as any event. When its time has come,
-- deliver_delayed_events() deletes the row and inserts the event into its queue, in one transaction: so it is
-- delivered once, in a batch whose tick was made after that time. The background worker calls it in time; from outside,
-- pgq.maint_retry_events() does, as pgqd calls that.

-- Rows go with their queue. ev_time of the event will be deliver_at, so that lag counts from there.
create table pgcascade.delayed_event (
    delayed_id  bigint      not null,
    queue_id    integer     not null,
    deliver_at  timestamptz not null,

    ev_type     text,
    ev_data     text,
    ev_extra1   text,
    ev_extra2   text,
    ev_extra3   text,
    ev_extra4   text,

    constraint delayed_event_pkey primary key (delayed_id),
    constraint delayed_event_queue_fkey foreign key (queue_id) references pgq.queue (queue_id) on delete cascade,
    -- Never is not a time, and what is due must not stand before all others for ever.
    constraint delayed_event_time_check check (isfinite(deliver_at))
);
create index delayed_event_due_idx on pgcascade.delayed_event (queue_id, deliver_at, delayed_id);
create sequence pgcascade.delayed_id_seq;
comment on table pgcascade.delayed_event is 'events to be put into their queues later';

select pg_catalog.pg_extension_config_dump('pgcascade.delayed_event', '');
select pg_catalog.pg_extension_config_dump('pgcascade.delayed_id_seq', '');

-- Trigger: the ticker looks again, once this transaction commits, when something falls due. ALWAYS: also for sessions
-- that replay with session_replication_role = replica.
create function pgcascade.wake_ticker() returns trigger
language c as 'MODULE_PATHNAME', 'wake_ticker_wrapper';

create trigger pgcascade_wake_ticker after insert on pgcascade.delayed_event
    for each statement execute function pgcascade.wake_ticker();
alter table pgcascade.delayed_event enable always trigger pgcascade_wake_ticker;
create trigger pgcascade_wake_ticker after insert on pgq.retry_queue
    for each statement execute function pgcascade.wake_ticker();
alter table pgq.retry_queue enable always trigger pgcascade_wake_ticker;

-- pgcascade.insert_event_at(8)
--     Store an event that is delivered once deliver_at is over; a time in the past is now. Returns an id for
--     cancel_event_at(); the event gets its event id when it is put into the queue, and deliver_at as its ev_time.
--     Errors: no such queue; inserts disabled (unless session_replication_role is replica); no time, or infinity.
--     Writes pgcascade.delayed_event. Its transaction is a writer of the queue as any: who closes the queue waits for it, and sees it.
create function pgcascade.insert_event_at(
    queue_name text, deliver_at timestamptz, ev_type text, ev_data text,
    ev_extra1 text default null, ev_extra2 text default null, ev_extra3 text default null, ev_extra4 text default null
) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    q record;
    id bigint;
begin
    select queue_id, queue_disable_insert into q from pgq.queue where queue_name = insert_event_at.queue_name;
    if not found then
        raise exception using errcode = 'undefined_object', message = 'No such queue',
            detail = format('Queue name: %s', coalesce(quote_literal(insert_event_at.queue_name), 'NULL')),
            hint = 'Create it with pgq.create_queue(), or see pgq.get_queue_info() for the queues that exist.';
    end if;
    if q.queue_disable_insert and current_setting('session_replication_role') <> 'replica' then
        raise exception using errcode = 'object_not_in_prerequisite_state', message = 'Insert into queue disallowed',
            detail = format('Queue name: %L', insert_event_at.queue_name),
            hint = 'The queue has queue_disable_insert set: write at the root of its cascade, or clear the flag in pgq.queue.';
    end if;
    if insert_event_at.deliver_at is null or insert_event_at.deliver_at = 'infinity' then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('an event cannot be delivered at %s', coalesce(insert_event_at.deliver_at::text, 'NULL')),
            hint = 'Give a point in time, for example now() + interval ''1 hour''.';
    end if;

    -- Refuses, too: what was read above may be older.
    perform pgq.current_event_table(insert_event_at.queue_name);
    insert into pgcascade.delayed_event (delayed_id, queue_id, deliver_at,
                                         ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4)
    values (nextval('pgcascade.delayed_id_seq'), q.queue_id, greatest(insert_event_at.deliver_at, now()),
            insert_event_at.ev_type, insert_event_at.ev_data, insert_event_at.ev_extra1, insert_event_at.ev_extra2,
            insert_event_at.ev_extra3, insert_event_at.ev_extra4)
    returning delayed_id into id;
    return id;
end
$$;

-- pgcascade.cancel_event_at(1)
--     Take a delayed event back. True: it was not delivered and, once this commits, will not be. False: there is none of
--     that id; it was delivered or taken back already, or its queue dropped.
--     Writes pgcascade.delayed_event. Waits for a delivery that is just happening.
create function pgcascade.cancel_event_at(delayed_id bigint) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    delete from pgcascade.delayed_event d where d.delayed_id = cancel_event_at.delayed_id;
    return found;
end
$$;

-- pgcascade.deliver_delayed_events()
--     Put events whose time has come into their queues, in the order of their times. Returns how many: call it, each time
--     in a transaction of its own, until it returns 0. A queue gets 1,000 at a time, and never more than its
--     queue_per_tx_limit. Those of a queue that takes no inserts wait; a queue that fails is a warning and keeps its own.
--     Writes pgcascade.delayed_event and event tables. One session after the other, by lock: so that what is due first
--     is in the first tick. The lock is not that of the table, in whose way it would be of vacuum. An event that somebody is
--     taking back just now is passed over, so as not to wait for him.
create function pgcascade.deliver_delayed_events() returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    queue record;
    moved integer;
    result integer := 0;
begin
    perform pgcascade.lock_queue(-1);
    for queue in
        select q.queue_id, q.queue_name, least(q.queue_per_tx_limit, 1000) as at_once
          from pgq.queue q
         where exists (select from pgcascade.delayed_event d where d.queue_id = q.queue_id and d.deliver_at <= now())
           and (not q.queue_disable_insert or current_setting('session_replication_role') = 'replica')
           and q.queue_id not in (select m.queue_id from pgcascade.restored_queue m)
         order by q.queue_id
    loop
        begin
            -- By ctid: nothing tells the planner how few of how many rows these are.
            with due as (
                delete from pgcascade.delayed_event
                 where ctid = any (array(select d.ctid from pgcascade.delayed_event d
                                          where d.queue_id = queue.queue_id and d.deliver_at <= now()
                                          order by d.deliver_at, d.delayed_id
                                          limit queue.at_once
                                            for update skip locked))
                returning *
            )
            select count(pgq.insert_event_raw(queue.queue_name, null, d.deliver_at, null, null, d.ev_type, d.ev_data,
                                              d.ev_extra1, d.ev_extra2, d.ev_extra3, d.ev_extra4))
              into moved
              from (select * from due order by deliver_at, delayed_id) d;
            result := result + moved;
        exception when others then
            raise warning using errcode = sqlstate,
                message = format('delayed events of queue "%s" were not delivered: %s', queue.queue_name, sqlerrm);
        end;
    end loop;
    return result;
end
$$;

-- pgcascade.next_delivery()
--     In how many milliseconds (0: now) a delayed or a retried event is due, at most an hour; null: none is waiting. Those
--     that wait for a closed queue are not counted. Called by the background worker at each look. Assigns no transaction id.
create function pgcascade.next_delivery() returns integer
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    due timestamptz;
begin
    select least((select min(d.deliver_at)
                    from pgq.queue q
                   cross join lateral (select d.deliver_at from pgcascade.delayed_event d
                                        where d.queue_id = q.queue_id
                                        order by d.deliver_at, d.delayed_id limit 1) d
                   where not q.queue_disable_insert),
                 (select r.ev_retry_after
                    from pgq.retry_queue r
                    join pgq.queue q on q.queue_id = r.ev_queue
                   where not q.queue_disable_insert or pgcascade.is_branch(q.queue_name)
                   order by r.ev_retry_after limit 1))
      into due;
    return case when due <= clock_timestamp() then 0
                when due > clock_timestamp() + interval '1 hour' then 3600000
                else ceil(extract(epoch from due - clock_timestamp()) * 1000) end;
end
$$;

comment on function pgcascade.wake_ticker() is 'trigger: the ticker looks when something falls due, once this commits';
comment on function pgcascade.insert_event_at(text, timestamptz, text, text, text, text, text, text) is
    'insert an event that is delivered later; returns an id to cancel it by';
comment on function pgcascade.cancel_event_at(bigint) is 'take a delayed event back; true if it will not be delivered';
comment on function pgcascade.deliver_delayed_events() is 'put due delayed events into their queues; call until it returns 0';
comment on function pgcascade.next_delivery() is 'milliseconds until a delayed or retried event is due';
