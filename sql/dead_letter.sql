-- Dead letters: events that a consumer could not deal with, kept with the reason until somebody looks at them.
--
-- An event gets here by fail_event(), or by pgq.event_retry() and pgq.batch_retry() when it was retried as often as the
-- consumer's max_retries allows. From here it is delivered to that consumer again, or deleted. Dead letters belong to a
-- subscription and go with it; those of a subconsumer belong to its main consumer.

create table pgcascade.dead_letter (
    dead_id     bigint      not null,
    queue_id    integer     not null,
    consumer_id integer     not null,
    failed_at   timestamptz not null,
    reason      text,

    ev_id       bigint      not null,
    ev_time     timestamptz not null,
    ev_retry    integer,
    ev_type     text,
    ev_data     text,
    ev_extra1   text,
    ev_extra2   text,
    ev_extra3   text,
    ev_extra4   text,

    constraint dead_letter_pkey primary key (dead_id),
    constraint dead_letter_event_uq unique (queue_id, consumer_id, ev_id),
    constraint dead_letter_queue_fkey foreign key (queue_id) references pgq.queue (queue_id) on delete cascade
);
create sequence pgcascade.dead_id_seq;
comment on table pgcascade.dead_letter is 'events that consumers could not deal with';

select pg_catalog.pg_extension_config_dump('pgcascade.dead_letter', '');
select pg_catalog.pg_extension_config_dump('pgcascade.dead_id_seq', '');

-- pgcascade.max_retries(1)
--     How often the consumer that has a batch open may retry an event; null: as often as it likes.
create function pgcascade.max_retries(i_batch_id bigint) returns integer
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    -- All of a group have the same sub_id, and only the main consumer has the setting.
    return (select max(c.max_retries)
              from pgq.subscription s
              join pgq.subscription g on g.sub_queue = s.sub_queue and g.sub_id = s.sub_id
              join pgcascade.consumer_config c on c.sub_queue = g.sub_queue and c.sub_consumer = g.sub_consumer
             where s.sub_batch = i_batch_id);
end
$$;

-- pgcascade.bury_event(3)
--     Put an event of an open batch among the dead letters. Returns 1, or 0 if it is there already. It does not wait to be
--     retried any more.
--     i_ev   as pgcascade.find_event() gives it, with the subscription as ev_owner
--     Writes pgcascade.dead_letter, pgq.retry_queue.
create function pgcascade.bury_event(i_batch_id bigint, i_ev pgq.event_template, i_reason text) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    delete from pgq.retry_queue where ev_owner = i_ev.ev_owner and ev_id = i_ev.ev_id;
    insert into pgcascade.dead_letter (dead_id, queue_id, consumer_id, failed_at, reason, ev_id, ev_time, ev_retry,
                                       ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4)
    select nextval('pgcascade.dead_id_seq'), s.sub_queue,
           coalesce(pgcascade.main_consumer(s.sub_queue, s.sub_consumer), s.sub_consumer), now(), i_reason,
           i_ev.ev_id, i_ev.ev_time, i_ev.ev_retry,
           i_ev.ev_type, i_ev.ev_data, i_ev.ev_extra1, i_ev.ev_extra2, i_ev.ev_extra3, i_ev.ev_extra4
      from pgq.subscription s
     where s.sub_batch = i_batch_id
    on conflict (queue_id, consumer_id, ev_id) do nothing;
    return found::integer;
end
$$;

-- pgcascade.fail_event(3)
--     The consumer gives one event of an open batch up: it goes to the dead letters with a reason, and is not retried.
--     Returns 1, or 0 if it is there already. The batch goes on, and is finished as any.
--     Errors: no such event in that batch, no such batch: both are "event not found"; the consumer belongs to another role.
--     Writes pgcascade.dead_letter, pgq.retry_queue.
create function pgcascade.fail_event(batch_id bigint, event_id bigint, reason text) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    ev constant pgq.event_template := pgcascade.find_event(batch_id, event_id);
begin
    if ev.ev_id is null then
        raise exception using errcode = 'no_data_found', message = 'event not found',
            detail = format('Batch id: %s, event id: %s',
                            coalesce(batch_id::text, 'NULL'), coalesce(event_id::text, 'NULL')),
            hint = 'Only events of an open batch can fail, before finish_batch().';
    end if;
    return pgcascade.bury_event(batch_id, ev, reason);
end
$$;

-- pgcascade.own_consumer(2)
--     The ids of a queue and a consumer by their names; of the main consumer for a subconsumer.
--     Errors: not subscribed; the consumer belongs to another role.
create function pgcascade.own_consumer(i_queue_name text, i_consumer_name text, out queue_id integer, out consumer_id integer)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    select s.sub_queue, s.sub_consumer into queue_id, consumer_id
      from pgq.subscription s
      join pgq.queue q on q.queue_id = s.sub_queue
      join pgq.consumer c on c.co_id = s.sub_consumer
     where q.queue_name = i_queue_name and c.co_name = i_consumer_name;
    if not found then
        raise exception using errcode = 'undefined_object',
            message = format('Not subscriber to queue: %s/%s',
                             coalesce(i_queue_name, 'NULL'), coalesce(i_consumer_name, 'NULL')),
            hint = 'Subscribe with pgq.register_consumer(); pgq.get_consumer_info() lists the consumers.';
    end if;
    consumer_id := coalesce(pgcascade.main_consumer(queue_id, consumer_id), consumer_id);
    perform pgcascade.check_consumer(queue_id, consumer_id);
end
$$;

-- pgcascade.set_max_retries(3)
--     How often a consumer may retry an event before it goes to the dead letters; null: no limit, as in PgQ.
--     Errors: not subscribed; the consumer belongs to another role; less than 0. Writes pgcascade.consumer_config.
create function pgcascade.set_max_retries(queue_name text, consumer_name text, max_retries integer) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    con record;
begin
    if set_max_retries.max_retries < 0 then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('max_retries cannot be negative: %s', set_max_retries.max_retries),
            hint = 'Use 0 to have an event fail the first time, or null for no limit.';
    end if;
    con := pgcascade.own_consumer(set_max_retries.queue_name, set_max_retries.consumer_name);
    insert into pgcascade.consumer_config (sub_queue, sub_consumer, max_retries)
    values (con.queue_id, con.consumer_id, set_max_retries.max_retries)
    on conflict (sub_queue, sub_consumer) do update set max_retries = excluded.max_retries;
end
$$;

-- pgcascade.dead_letters(2)
--     The dead letters of a consumer, the oldest first.
--     Errors: not subscribed; the consumer belongs to another role.
create function pgcascade.dead_letters(queue_name text, consumer_name text) returns setof pgcascade.dead_letter
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    con constant record := pgcascade.own_consumer(queue_name, consumer_name);
begin
    return query
    select d.* from pgcascade.dead_letter d
     where d.queue_id = con.queue_id and d.consumer_id = con.consumer_id
     order by d.dead_id;
end
$$;

-- pgcascade.retry_dead_letter(1), pgcascade.retry_dead_letters(2)
--     Deliver one dead letter, or all of a consumer, to that consumer again, at once and with all its retries before it:
--     ev_retry is 0. Returns how many; 0 if there is none.
--     Errors: not subscribed; the consumer belongs to another role. Writes pgcascade.dead_letter, pgq.retry_queue. Of two
--     sessions that retry or delete one dead letter, one does.
create function pgcascade.retry_dead_letter(dead_id bigint) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    result integer;
begin
    perform pgcascade.check_consumer(d.queue_id, d.consumer_id)
       from pgcascade.dead_letter d where d.dead_id = retry_dead_letter.dead_id;
    with gone as (
        delete from pgcascade.dead_letter d where d.dead_id = retry_dead_letter.dead_id returning d.*
    ), again as (
        insert into pgq.retry_queue (ev_retry_after, ev_queue, ev_id, ev_time, ev_owner, ev_retry,
                                     ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4)
        select now(), g.queue_id, g.ev_id, g.ev_time, s.sub_id, 0,
               g.ev_type, g.ev_data, g.ev_extra1, g.ev_extra2, g.ev_extra3, g.ev_extra4
          from gone g
          join pgq.subscription s on s.sub_queue = g.queue_id and s.sub_consumer = g.consumer_id
        on conflict (ev_owner, ev_id) do nothing
    )
    select count(*) into result from gone;
    return result;
end
$$;

create function pgcascade.retry_dead_letters(queue_name text, consumer_name text) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return (select coalesce(sum(pgcascade.retry_dead_letter(d.dead_id)), 0)
              from pgcascade.dead_letters(queue_name, consumer_name) d);
end
$$;

-- pgcascade.delete_dead_letter(1), pgcascade.delete_dead_letters(2)
--     Forget one dead letter, or all of a consumer. Returns how many; 0 if there is none.
--     Errors: not subscribed; the consumer belongs to another role. Writes pgcascade.dead_letter.
create function pgcascade.delete_dead_letter(dead_id bigint) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgcascade.check_consumer(d.queue_id, d.consumer_id)
       from pgcascade.dead_letter d where d.dead_id = delete_dead_letter.dead_id;
    delete from pgcascade.dead_letter d where d.dead_id = delete_dead_letter.dead_id;
    return found::integer;
end
$$;

create function pgcascade.delete_dead_letters(queue_name text, consumer_name text) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    con constant record := pgcascade.own_consumer(queue_name, consumer_name);
    result integer;
begin
    delete from pgcascade.dead_letter d where d.queue_id = con.queue_id and d.consumer_id = con.consumer_id;
    get diagnostics result = row_count;
    return result;
end
$$;

comment on function pgcascade.max_retries(bigint) is 'how often the consumer of a batch may retry an event';
comment on function pgcascade.bury_event(bigint, pgq.event_template, text) is 'put an event among the dead letters';
comment on function pgcascade.fail_event(bigint, bigint, text) is
    'give an event of an open batch up: to the dead letters; 1, or 0 if it is there';
comment on function pgcascade.own_consumer(text, text) is 'ids of a consumer of the caller, by its names';
comment on function pgcascade.set_max_retries(text, text, integer) is
    'how often a consumer may retry an event before it goes to the dead letters';
comment on function pgcascade.dead_letters(text, text) is 'dead letters of a consumer';
comment on function pgcascade.retry_dead_letter(bigint) is 'deliver a dead letter again; 1, or 0 if there is none';
comment on function pgcascade.retry_dead_letters(text, text) is 'deliver all dead letters of a consumer again; how many';
comment on function pgcascade.delete_dead_letter(bigint) is 'forget a dead letter; 1, or 0 if there is none';
comment on function pgcascade.delete_dead_letters(text, text) is 'forget all dead letters of a consumer; how many';
