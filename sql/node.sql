-- pgq_node: this database's place in a cascade: its nodes' locations, its own type, making and dropping it.
--
-- A cascade is a tree of databases that carry one queue with the same tick ids: the root is written by applications, a
-- branch has a copy of the queue, a leaf has only its position. A database may be a node of many cascades, at most once
-- in each. What the other nodes look like is known by location only; workers carry it from the root as events.
--
-- Functions answer with ret_code and ret_note: 1xx and 2xx done, 3xx nothing to do, 4xx and above refused, nothing written.
-- The other files: node_info.sql (state), node_consumer.sql (what reads here), node_subscriber.sql (nodes that read from
-- here, watermarks), node_role.sql (change of root).

create schema pgq_node;

comment on schema pgq_node is 'cascades: nodes that carry the same queue, and where each of them is';

grant usage on schema pgq_node to public;

-- Where the nodes of a cascade are. A dead node stays known, because others may have to be told.
create table pgq_node.node_location (
    queue_name      text        not null,
    node_name       text        not null,
    node_location   text        not null,
    dead            boolean     not null default false,

    constraint node_location_pkey primary key (queue_name, node_name)
);

-- What this database is in a cascade.
create table pgq_node.node_info (
    queue_name      text        not null,
    node_type       text        not null,
    node_name       text        not null,
    worker_name     text,
    combined_queue  text,
    node_attrs      text,

    constraint node_info_pkey primary key (queue_name),
    constraint node_info_queue_name_node_name_fkey foreign key (queue_name, node_name)
        references pgq_node.node_location (queue_name, node_name),
    constraint node_info_node_type_check check (node_type in ('root', 'branch', 'leaf')),
    constraint node_info_check check (
        case
            when node_type = 'root' then worker_name is not null and combined_queue is null
            when node_type = 'branch' then worker_name is not null and combined_queue is null
            when node_type = 'leaf' then worker_name is not null
            else false
        end)
);

-- Position and state of each consumer that applies to this database: the node's own worker, and others.
create table pgq_node.local_state (
    queue_name      text        not null,
    consumer_name   text        not null,
    provider_node   text        not null,
    last_tick_id    bigint      not null,
    cur_error       text,
    paused          boolean     not null default false,
    uptodate        boolean     not null default false,

    constraint local_state_pkey primary key (queue_name, consumer_name),
    constraint local_state_queue_name_fkey foreign key (queue_name) references pgq_node.node_info (queue_name),
    constraint local_state_queue_name_provider_node_fkey foreign key (queue_name, provider_node)
        references pgq_node.node_location (queue_name, node_name)
);

-- Nodes that read from this one. Each has two consumers here: its worker, and a watermark that says what it still needs.
create table pgq_node.subscriber_info (
    queue_name      text        not null,
    subscriber_node text        not null,
    worker_name     text        not null,
    watermark_name  text        not null,

    constraint subscriber_info_pkey primary key (queue_name, subscriber_node),
    constraint subscriber_info_queue_name_fkey foreign key (queue_name) references pgq_node.node_info (queue_name),
    constraint subscriber_info_queue_name_subscriber_node_fkey foreign key (queue_name, subscriber_node)
        references pgq_node.node_location (queue_name, node_name),
    constraint subscriber_info_worker_name_fkey foreign key (worker_name) references pgq.consumer (co_name),
    constraint subscriber_info_watermark_name_fkey foreign key (watermark_name) references pgq.consumer (co_name)
);

comment on table pgq_node.node_location is 'where the nodes of each cascade are';
comment on table pgq_node.node_info is 'what this database is in each cascade';
comment on table pgq_node.local_state is 'position and state of the consumers that apply to this database';
comment on table pgq_node.subscriber_info is 'nodes that read from this one';

select pg_catalog.pg_extension_config_dump('pgq_node.node_location', '');
select pg_catalog.pg_extension_config_dump('pgq_node.node_info', '');
select pg_catalog.pg_extension_config_dump('pgq_node.local_state', '');
select pg_catalog.pg_extension_config_dump('pgq_node.subscriber_info', '');

-- pgq_node.register_location(4)
--     Make a node known, or change where it is. A null location keeps the one that is known.
--     200; 301 null location of an unknown node. On the root, the other nodes are told (pgq.location-info).
--     Writes node_location; an event on the root.
create function pgq_node.register_location(
    in i_queue_name text, in i_node_name text, in i_node_location text, in i_dead boolean,
    out ret_code int4, out ret_note text
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    stored text;
begin
    if i_node_location is null then
        update pgq_node.node_location set dead = i_dead
         where queue_name = i_queue_name and node_name = i_node_name
        returning node_location into stored;
        if not found then
            select 301, format('Location not found: %s/%s', i_queue_name, i_node_name) into ret_code, ret_note;
            return;
        end if;
    else
        insert into pgq_node.node_location (queue_name, node_name, node_location, dead)
        values (i_queue_name, i_node_name, i_node_location, i_dead)
        on conflict (queue_name, node_name)
            do update set node_location = excluded.node_location, dead = excluded.dead
        returning node_location into stored;
    end if;

    if exists (select from pgq_node.node_info where queue_name = i_queue_name and node_type = 'root') then
        -- The location that is known goes along, also when only `dead` changed: a node that missed the first message
        -- learns it from the second. So does that for administrators (node_address.sql), which PgQ's own programs pass over.
        perform pgq.insert_event(i_queue_name, 'pgq.location-info', i_node_name, i_queue_name, stored, i_dead::text,
                                 (select a.location from pgcascade.node_admin_location a
                                   where a.queue_name = i_queue_name and a.node_name = i_node_name));
    end if;
    select 200, 'Location registered' into ret_code, ret_note;
end
$$;

-- pgq_node.unregister_location(2)
--     Forget a node, and what it subscribed to here.
--     200; 301 not known; 403 it is this node, or one that something here reads from.
--     On the root, the other nodes are told (pgq.unregister-location); also when it was not known, for those who know it.
--     Writes node_location, subscriber_info, pgq.subscription; an event on the root.
create function pgq_node.unregister_location(
    in i_queue_name text, in i_node_name text, out ret_code int4, out ret_note text
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    node pgq_node.node_info;
begin
    select * into node from pgq_node.node_info where queue_name = i_queue_name;
    if node.node_name = i_node_name then
        select 403, 'Cannot drop node''s own location' into ret_code, ret_note;
        return;
    elsif exists (select from pgq_node.local_state
                   where queue_name = i_queue_name and provider_node = i_node_name) then
        select 403, 'Cannot drop location of node''s parent' into ret_code, ret_note;
        return;
    end if;

    perform pgq_node.unregister_subscriber(i_queue_name, i_node_name);
    delete from pgq_node.node_location where queue_name = i_queue_name and node_name = i_node_name;
    if found then
        select 200, 'Ok' into ret_code, ret_note;
    else
        select 301, format('Location not found: %s/%s', coalesce(i_queue_name, 'NULL'), coalesce(i_node_name, 'NULL'))
          into ret_code, ret_note;
    end if;
    if node.node_type = 'root' and i_node_name is not null then
        perform pgq.insert_event(i_queue_name, 'pgq.unregister-location', i_node_name, i_queue_name, null, null, null);
    end if;
end
$$;

-- pgq_node.get_queue_locations(1)
--     The nodes of a cascade.
create function pgq_node.get_queue_locations(
    in i_queue_name text, out node_name text, out node_location text, out dead boolean
) returns setof record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select l.node_name, l.node_location, l.dead
      from pgq_node.node_location l
     where l.queue_name = i_queue_name
     order by l.node_name;
end
$$;

-- pgq_node.create_node(7)
--     Make this database a node.
--     root     provider, watermark and combined queue are null; the queue is made, or adopted if it is there
--     branch   the queue is made, closed for writers, with ticks from its provider; begins at tick i_global_watermark
--     leaf     no queue; i_combined_queue: queue of this database that its worker merges the events into
--     200; 401 the arguments do not fit, the location is not registered, the node exists.
--     Writes node_info, local_state; pgq.queue, pgq.tick and a consumer ".global_watermark" for root and branch; node_epoch for root.
create function pgq_node.create_node(
    in i_queue_name text, in i_node_type text, in i_node_name text, in i_worker_name text,
    in i_provider_name text, in i_global_watermark bigint, in i_combined_queue text,
    out ret_code int4, out ret_note text
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    position bigint := i_global_watermark;
    created boolean;
begin
    select 401, case
        when i_queue_name is null then 'queue name not set'
        when exists (select from pgq_node.node_info where queue_name = i_queue_name) then 'Node already initialized'
        when i_node_type is null or i_node_type not in ('root', 'branch', 'leaf') then
            format('unknown node type: %s', coalesce(i_node_type, 'NULL'))
        when i_node_type = 'root'
             and (i_provider_name is not null or i_global_watermark is not null or i_combined_queue is not null) then
            'unexpected args for root'
        when i_worker_name is null then format('worker name not set for %s', i_node_type)
        when i_node_type <> 'root' and i_provider_name is null then format('provider not set for %s', i_node_type)
        when i_node_type <> 'root' and i_global_watermark is null then
            format('global watermark not set for %s', i_node_type)
        when i_node_type = 'branch' and i_combined_queue is not null then 'unexpected combined queue for branch'
        when i_combined_queue is not null
             and not exists (select from pgq.queue where queue_name = i_combined_queue) then
            format('non-existing queue on leaf side: %s', i_combined_queue)
        when not exists (select from pgq_node.node_location
                          where queue_name = i_queue_name and node_name = i_node_name) then
            format('location not registered: %s/%s', i_queue_name, coalesce(i_node_name, 'NULL'))
        when i_node_type <> 'root'
             and not exists (select from pgq_node.node_location
                              where queue_name = i_queue_name and node_name = i_provider_name) then
            format('location not registered: %s/%s', i_queue_name, i_provider_name)
        -- Ticks of its own would not be those of the provider.
        when i_node_type = 'branch' and exists (
                select from pgq.queue q join pgq.tick t on t.tick_queue = q.queue_id
                 where q.queue_name = i_queue_name and t.tick_id > 1) then
            format('queue exists and has ticks of its own: %s', i_queue_name)
        end into ret_code, ret_note;
    if ret_note is not null then
        return;
    end if;

    -- Two sessions may make the node: the second waits here and is told so.
    insert into pgq_node.node_info (queue_name, node_type, node_name, worker_name, combined_queue)
    values (i_queue_name, i_node_type, i_node_name, i_worker_name, i_combined_queue)
    on conflict (queue_name) do nothing;
    if not found then
        select 401, 'Node already initialized' into ret_code, ret_note;
        return;
    end if;

    if i_node_type <> 'leaf' then
        created := pgq.create_queue(i_queue_name) = 1;
        if i_node_type = 'branch' then
            update pgq.queue set queue_external_ticker = true, queue_disable_insert = true
             where queue_name = i_queue_name;
            if i_global_watermark > 1 then
                perform pgq.ticker(i_queue_name, i_global_watermark, now(), 1);
            end if;
        elsif not created and (select queue_disable_insert from pgq.queue where queue_name = i_queue_name) then
            -- Left behind by a node that was dropped: a root is written by applications.
            update pgq.queue set queue_external_ticker = false, queue_disable_insert = false
             where queue_name = i_queue_name;
        end if;
        perform pgq.register_consumer_at(i_queue_name, '.global_watermark', i_global_watermark);
        perform pgcascade.set_consumer_owner(i_queue_name, '.global_watermark', 'pgq_admin');
        position := coalesce(i_global_watermark, pgcascade.local_queue_top(i_queue_name));
    end if;

    insert into pgq_node.local_state (queue_name, consumer_name, provider_node, last_tick_id)
    values (i_queue_name, i_worker_name, coalesce(i_provider_name, i_node_name), position);
    if i_node_type = 'root' then
        perform pgcascade.note_server(i_queue_name);
    end if;
    select 200, format('Node "%s" initialized for queue "%s" with type "%s"', i_node_name, i_queue_name, i_node_type)
      into ret_code, ret_note;
end
$$;

-- pgq_node.drop_node(2)
--     Forget another node (as unregister_location), or this one: then with its queue, all its events and all that is
--     known of the cascade. 200; 404 null; 405 it is one that something here reads from.
--     Writes everything of the queue. Locks in the order of pgq.drop_queue().
create function pgq_node.drop_node(
    in i_queue_name text, in i_node_name text, out ret_code int4, out ret_note text
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    node pgq_node.node_info;
begin
    if i_queue_name is null or i_node_name is null then
        select 404, format('Unknown node: %s/%s', coalesce(i_queue_name, 'NULL'), coalesce(i_node_name, 'NULL'))
          into ret_code, ret_note;
        return;
    end if;
    select * into node from pgq_node.node_info where queue_name = i_queue_name for update;

    if node.node_name = i_node_name then
        delete from pgq_node.subscriber_info where queue_name = i_queue_name;
        delete from pgq_node.local_state where queue_name = i_queue_name;
        delete from pgq_node.node_info where queue_name = i_queue_name;
        delete from pgq_node.node_location where queue_name = i_queue_name;
        if node.node_type <> 'leaf' and exists (select from pgq.queue where queue_name = i_queue_name) then
            perform pgcascade.lock_queue(queue_id) from pgq.queue where queue_name = i_queue_name;
            perform from pgq.queue where queue_name = i_queue_name for update;
            perform pgq.unregister_consumer(i_queue_name, c.co_name)
               from pgq.subscription s
               join pgq.queue q on q.queue_id = s.sub_queue
               join pgq.consumer c on c.co_id = s.sub_consumer
              where q.queue_name = i_queue_name;
            perform pgq.drop_queue(i_queue_name, true);
        end if;
    elsif exists (select from pgq_node.local_state
                   where queue_name = i_queue_name and provider_node = i_node_name) then
        select 405, format('Cannot drop provider node: %s', i_node_name) into ret_code, ret_note;
        return;
    else
        perform pgq_node.unregister_location(i_queue_name, i_node_name);
    end if;
    select 200, format('Node dropped: %s', i_node_name) into ret_code, ret_note;
end
$$;

-- pgq_node.set_node_attrs(2)
--     Store attributes of this node, url-encoded, for the workers. 200; 404 not a node.
create function pgq_node.set_node_attrs(
    in i_queue_name text, in i_node_attrs text, out ret_code int4, out ret_note text
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update pgq_node.node_info set node_attrs = i_node_attrs where queue_name = i_queue_name;
    if found then
        select 200, 'Node attributes updated' into ret_code, ret_note;
    else
        select 404, 'Node not found' into ret_code, ret_note;
    end if;
end
$$;

comment on function pgq_node.register_location(text, text, text, boolean) is 'make a node known, or change where it is';
comment on function pgq_node.unregister_location(text, text) is 'forget a node and its subscription';
comment on function pgq_node.get_queue_locations(text) is 'nodes of a cascade';
comment on function pgq_node.create_node(text, text, text, text, text, bigint, text) is
    'make this database a root, branch or leaf';
comment on function pgq_node.drop_node(text, text) is 'forget another node, or drop this one with its queue';
comment on function pgq_node.set_node_attrs(text, text) is 'store attributes of this node, url-encoded';
