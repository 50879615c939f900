-- What a queue is allowed to hold: limits in age and bytes, and what happens to a consumer that keeps the queue beyond them.
--
-- Without a row here a queue has no limits, as in PgQ: it keeps everything until the slowest consumer has read it. Here are
-- the table, the function that sets it, and the question whether a queue is to be rotated now, which depends on it.
-- Limits are enforced by sql/queue_limit.sql.

create table pgcascade.queue_config (
    queue_id        integer     not null,
    max_age         interval,
    max_bytes       bigint,
    policy          text        not null default 'warn',
    warn_interval   interval    not null default '1 hour',
    since           timestamptz not null default now(), -- ages are not counted from before this

    constraint queue_config_pkey primary key (queue_id),
    constraint queue_config_queue_fkey foreign key (queue_id) references pgq.queue (queue_id) on delete cascade,
    -- The upper bounds keep sums of a time and an interval within what timestamptz can hold.
    constraint queue_config_max_age_positive check (max_age > interval '0' and max_age <= interval '10000 years'),
    -- An empty queue has some 100 kB of indexes: a limit near that would always be exceeded.
    constraint queue_config_max_bytes_at_least_1_mb check (max_bytes >= 1048576),
    constraint queue_config_policy_warn_or_drop check (policy in ('warn', 'drop')),
    constraint queue_config_warn_interval_positive
        check (warn_interval > interval '0' and warn_interval <= interval '10000 years')
);

comment on table pgcascade.queue_config is 'limits of queues: age and bytes, and what is done about a consumer that exceeds them';

select pg_catalog.pg_extension_config_dump('pgcascade.queue_config', '');

-- pgcascade.limit_begins()
--     Trigger on pgcascade.queue_config: a row that is made or restored from a dump is in force from now on, so consumers that
--     are as old as the dump are not dropped before they could read on.
create function pgcascade.limit_begins() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    new.since := now();
    return new;
end
$$;

create trigger pgcascade_limit_begins
    before insert on pgcascade.queue_config
    for each row execute function pgcascade.limit_begins();
alter table pgcascade.queue_config enable always trigger pgcascade_limit_begins;

-- pgcascade.set_queue_limit(4)
--     Limit what a queue keeps for consumers that do not read it. Returns 1. Replaces all limits of the queue.
--     i_max_age     how old the last tick of a consumer may be that keeps the queue from being rotated; null: no limit
--     i_max_bytes   what its event tables may hold; null: no limit. Beyond it the queue is also rotated early
--     i_policy      warn: say so in the server's log; drop: unregister the consumer as well. Null: what it was, or warn
--     Errors: no such queue; not a fitting value.
--     Writes pgcascade.queue_config, pgcascade.limit_warning.
create function pgcascade.set_queue_limit(
    i_queue_name text, i_max_age interval, i_max_bytes bigint, i_policy text default null
) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    id integer;
    wrong text;
begin
    select queue_id into id from pgq.queue where queue_name = i_queue_name for key share;
    if not found then
        raise exception using errcode = 'undefined_object', message = 'No such event queue',
            detail = format('Queue name: %s', coalesce(quote_literal(i_queue_name), 'NULL')),
            hint = 'pgq.get_queue_info() lists the queues.';
    end if;

    wrong := case
        when i_max_age <= interval '0' or i_max_age > interval '10000 years' then
            format('max_age of queue "%s" cannot be %s', i_queue_name, i_max_age)
        when i_max_bytes < 1048576 then
            format('max_bytes of queue "%s" cannot be %s', i_queue_name, i_max_bytes)
        when i_policy not in ('warn', 'drop') then
            format('policy of queue "%s" cannot be %L', i_queue_name, i_policy)
    end;
    if wrong is not null then
        raise exception using errcode = 'invalid_parameter_value', message = wrong,
            hint = 'Give an age above zero and below 10000 years, at least 1 MB (1048576), and warn or drop; null is no limit.';
    end if;

    insert into pgcascade.queue_config as c (queue_id, max_age, max_bytes, policy)
    values (id, i_max_age, i_max_bytes, coalesce(i_policy, 'warn'))
    on conflict (queue_id) do update
       set max_age = excluded.max_age, max_bytes = excluded.max_bytes, policy = coalesce(i_policy, c.policy),
           since = now();
    -- New limits are a new reason to warn.
    delete from pgcascade.limit_warning where queue_id = id;
    return 1;
end
$$;

-- pgcascade.event_bytes(1)
--     What the event tables of a queue hold on disk, with indexes and TOAST. i_data_pfx: their parent table.
--     The tables are not read; each is locked for a moment, which waits for a rotation that is just truncating it.
create function pgcascade.event_bytes(i_data_pfx text) returns bigint
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce((select sum(pg_total_relation_size(i.inhrelid)) from pg_inherits i
                      where i.inhparent = to_regclass(i_data_pfx)), 0);
end
$$;

-- pgcascade.rotation_due(1)
--     Whether it is time to rotate a queue: its rotation period is over; or it holds more than its limit in bytes, and the
--     last rotation was a minute ago. That minute is what consumers have to move beyond a rotation before the next one waits
--     for them. Intervals are compared, so the result does not depend on the session's time zone.
create function pgcascade.rotation_due(i_queue pgq.queue) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    since constant interval := now() - i_queue.queue_switch_time;
begin
    return i_queue.queue_switch_step2 is not null
       and (since > i_queue.queue_rotation_period
            or since > interval '1 minute'
               and exists (select from pgcascade.queue_config c
                            where c.queue_id = i_queue.queue_id
                              and c.max_bytes < pgcascade.event_bytes(i_queue.queue_data_pfx)));
end
$$;

comment on function pgcascade.limit_begins() is 'trigger on pgcascade.queue_config: notes since when limits are in force';
comment on function pgcascade.set_queue_limit(text, interval, bigint, text) is
    'limit age and bytes of what a queue keeps for its consumers; policy warn or drop';
comment on function pgcascade.event_bytes(text) is 'what the event tables of a queue hold on disk';
comment on function pgcascade.rotation_due(pgq.queue) is 'whether it is time to rotate the event tables of a queue';
