-- pgq_ext: what the target of a consumer remembers, so that a batch or an event that is delivered again is not applied
-- again. Called on the target, in the transaction that applies the data.
--
-- Promised: of two transactions that mark the same thing done, one gets true; the other waits for it and gets false,
-- or true if the first one rolled back. Only the last batch of a consumer is remembered: this protects a consumer
-- that goes through its batches in order, one at a time.
-- Each function exists with and without a subconsumer; without is the subconsumer with the empty name.

create schema pgq_ext;

comment on schema pgq_ext is 'target side of consumers: which ticks, batches and events are done';

grant usage on schema pgq_ext to public;

create table pgq_ext.completed_tick (
    consumer_id     text    not null,
    subconsumer_id  text    not null,
    last_tick_id    bigint  not null,

    constraint completed_tick_pkey primary key (consumer_id, subconsumer_id)
);

create table pgq_ext.completed_batch (
    consumer_id     text    not null,
    subconsumer_id  text    not null,
    last_batch_id   bigint  not null,

    constraint completed_batch_pkey primary key (consumer_id, subconsumer_id)
);

-- Events of the batch that partial_batch names; of no other one.
create table pgq_ext.completed_event (
    consumer_id     text    not null,
    subconsumer_id  text    not null,
    batch_id        bigint  not null,
    event_id        bigint  not null,

    constraint completed_event_pkey primary key (consumer_id, subconsumer_id, batch_id, event_id)
);

create table pgq_ext.partial_batch (
    consumer_id     text    not null,
    subconsumer_id  text    not null,
    cur_batch_id    bigint  not null,

    constraint partial_batch_pkey primary key (consumer_id, subconsumer_id)
);

comment on table pgq_ext.completed_tick is 'last tick that a consumer applied here';
comment on table pgq_ext.completed_batch is 'last batch that a consumer applied here';
comment on table pgq_ext.completed_event is 'events that a consumer applied here, of its current batch';
comment on table pgq_ext.partial_batch is 'batch whose events completed_event lists';

select pg_catalog.pg_extension_config_dump('pgq_ext.completed_tick', '');
select pg_catalog.pg_extension_config_dump('pgq_ext.completed_batch', '');
select pg_catalog.pg_extension_config_dump('pgq_ext.completed_event', '');
select pg_catalog.pg_extension_config_dump('pgq_ext.partial_batch', '');

-- pgq_ext.is_batch_done(3), (2)
--     Whether this batch is the last one that the consumer marked done.
create function pgq_ext.is_batch_done(a_consumer text, a_subconsumer text, a_batch_id bigint) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return exists (
        select from pgq_ext.completed_batch
         where consumer_id = a_consumer and subconsumer_id = a_subconsumer and last_batch_id = a_batch_id);
end
$$;

create function pgq_ext.is_batch_done(a_consumer text, a_batch_id bigint) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return pgq_ext.is_batch_done(a_consumer, '', a_batch_id);
end
$$;

-- pgq_ext.set_batch_done(3), (2)
--     Mark a batch done. True if it was not; false if it was, so the caller must not apply it.
--     Writes pgq_ext.completed_batch. Waits for another transaction that marks a batch of this consumer.
create function pgq_ext.set_batch_done(a_consumer text, a_subconsumer text, a_batch_id bigint) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into pgq_ext.completed_batch as done (consumer_id, subconsumer_id, last_batch_id)
    values (a_consumer, a_subconsumer, a_batch_id)
    on conflict (consumer_id, subconsumer_id)
        do update set last_batch_id = excluded.last_batch_id where done.last_batch_id <> excluded.last_batch_id;
    return found;
end
$$;

create function pgq_ext.set_batch_done(a_consumer text, a_batch_id bigint) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return pgq_ext.set_batch_done(a_consumer, '', a_batch_id);
end
$$;

-- pgq_ext.is_event_done(4), (3)
--     Whether this event of the consumer's current batch was marked done.
create function pgq_ext.is_event_done(
    a_consumer text, a_subconsumer text, a_batch_id bigint, a_event_id bigint
) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return exists (
        select from pgq_ext.completed_event
         where consumer_id = a_consumer and subconsumer_id = a_subconsumer
           and batch_id = a_batch_id and event_id = a_event_id);
end
$$;

create function pgq_ext.is_event_done(a_consumer text, a_batch_id bigint, a_event_id bigint) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return pgq_ext.is_event_done(a_consumer, '', a_batch_id, a_event_id);
end
$$;

-- pgq_ext.set_event_done(4), (3)
--     Mark an event of a batch done. True if it was not, false if it was. The first event of another batch forgets the
--     events of the batch before.
--     Writes partial_batch, completed_event. The order matters: who names another batch holds the row of partial_batch
--     until its transaction ends, so nobody marks events of the old batch meanwhile that would then stay behind.
create function pgq_ext.set_event_done(
    a_consumer text, a_subconsumer text, a_batch_id bigint, a_event_id bigint
) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform from pgq_ext.partial_batch
      where consumer_id = a_consumer and subconsumer_id = a_subconsumer and cur_batch_id = a_batch_id
        for key share;
    if not found then
        insert into pgq_ext.partial_batch as cur (consumer_id, subconsumer_id, cur_batch_id)
        values (a_consumer, a_subconsumer, a_batch_id)
        on conflict (consumer_id, subconsumer_id)
            do update set cur_batch_id = excluded.cur_batch_id where cur.cur_batch_id <> excluded.cur_batch_id;
        if found then
            delete from pgq_ext.completed_event
             where consumer_id = a_consumer and subconsumer_id = a_subconsumer and batch_id <> a_batch_id;
        end if;
    end if;

    insert into pgq_ext.completed_event (consumer_id, subconsumer_id, batch_id, event_id)
    values (a_consumer, a_subconsumer, a_batch_id, a_event_id)
    on conflict (consumer_id, subconsumer_id, batch_id, event_id) do nothing;
    return found;
end
$$;

create function pgq_ext.set_event_done(a_consumer text, a_batch_id bigint, a_event_id bigint) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return pgq_ext.set_event_done(a_consumer, '', a_batch_id, a_event_id);
end
$$;

-- pgq_ext.get_last_tick(2), (1)
--     The tick that was stored last for a consumer; null if none is.
create function pgq_ext.get_last_tick(a_consumer text, a_subconsumer text) returns int8
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return (select last_tick_id from pgq_ext.completed_tick
             where consumer_id = a_consumer and subconsumer_id = a_subconsumer);
end
$$;

create function pgq_ext.get_last_tick(a_consumer text) returns int8
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return pgq_ext.get_last_tick(a_consumer, '');
end
$$;

-- pgq_ext.set_last_tick(3), (2)
--     Store the tick of a consumer; null forgets it. Returns 1. Writes pgq_ext.completed_tick.
create function pgq_ext.set_last_tick(a_consumer text, a_subconsumer text, a_tick_id bigint) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if a_tick_id is null then
        delete from pgq_ext.completed_tick where consumer_id = a_consumer and subconsumer_id = a_subconsumer;
    else
        insert into pgq_ext.completed_tick (consumer_id, subconsumer_id, last_tick_id)
        values (a_consumer, a_subconsumer, a_tick_id)
        on conflict (consumer_id, subconsumer_id) do update set last_tick_id = excluded.last_tick_id;
    end if;
    return 1;
end
$$;

create function pgq_ext.set_last_tick(a_consumer text, a_tick_id bigint) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return pgq_ext.set_last_tick(a_consumer, '', a_tick_id);
end
$$;

-- pgq_ext.upgrade_schema(), pgq_ext.version()
--     For clients that call them: upgrades are done by ALTER EXTENSION; the version is the extension's.
create function pgq_ext.upgrade_schema() returns int4
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return 0;
end
$$;

create function pgq_ext.version() returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return pgq.version();
end
$$;

comment on function pgq_ext.is_batch_done(text, text, bigint) is 'whether this is the last batch marked done';
comment on function pgq_ext.is_batch_done(text, bigint) is 'whether this is the last batch marked done';
comment on function pgq_ext.set_batch_done(text, text, bigint) is 'mark a batch done; false if it was';
comment on function pgq_ext.set_batch_done(text, bigint) is 'mark a batch done; false if it was';
comment on function pgq_ext.is_event_done(text, text, bigint, bigint) is 'whether an event of the current batch is done';
comment on function pgq_ext.is_event_done(text, bigint, bigint) is 'whether an event of the current batch is done';
comment on function pgq_ext.set_event_done(text, text, bigint, bigint) is 'mark an event done; false if it was';
comment on function pgq_ext.set_event_done(text, bigint, bigint) is 'mark an event done; false if it was';
comment on function pgq_ext.get_last_tick(text, text) is 'tick stored for a consumer';
comment on function pgq_ext.get_last_tick(text) is 'tick stored for a consumer';
comment on function pgq_ext.set_last_tick(text, text, bigint) is 'store the tick of a consumer; null forgets it';
comment on function pgq_ext.set_last_tick(text, bigint) is 'store the tick of a consumer; null forgets it';
comment on function pgq_ext.upgrade_schema() is 'kept for clients that call it; upgrades are done by ALTER EXTENSION';
comment on function pgq_ext.version() is 'version of the extension';

revoke all on all functions in schema pgq_ext from public;
grant select, insert, update, delete
    on pgq_ext.completed_tick, pgq_ext.completed_batch, pgq_ext.completed_event, pgq_ext.partial_batch to pgq_admin;
grant execute on all functions in schema pgq_ext to pgq_writer;
grant execute on function pgq_ext.version() to public;
revoke execute on function pgq_ext.upgrade_schema() from pgq_writer;
grant execute on function pgq_ext.upgrade_schema() to pgq_admin;
