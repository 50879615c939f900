-- State of this database's nodes: what workers read at the beginning of each round, and administrators look at.
--
-- Column lists are read by name and by position by clients: never add one here.

-- pgcascade.local_queue_top(1)
--     The last tick of a queue of this database; null if there is none.
create function pgcascade.local_queue_top(i_queue_name text) returns bigint
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (select t.tick_id
              from pgq.queue q join pgq.tick t on t.tick_queue = q.queue_id
             where q.queue_name = i_queue_name
             order by t.tick_id desc limit 1);
end
$$;

-- pgcascade.consumer_tick(2)
--     The tick that a consumer of a queue stands at; null if there is no such consumer.
create function pgcascade.consumer_tick(i_queue_name text, i_consumer_name text) returns bigint
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (select s.sub_last_tick
              from pgq.subscription s
              join pgq.queue q on q.queue_id = s.sub_queue
              join pgq.consumer c on c.co_id = s.sub_consumer
             where q.queue_name = i_queue_name and c.co_name = i_consumer_name);
end
$$;

-- pgcascade.local_watermark(1)
--     The oldest tick that this node and those below it still need. On root and branch: where the slowest consumer
--     stands, those of subscribers included, or the last tick if there is none; the global watermark is no need of its
--     own. On a leaf: where its worker stands. Null if this is not a node.
create function pgcascade.local_watermark(i_queue_name text) returns bigint
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select case
                   when n.node_type = 'leaf' then
                       (select l.last_tick_id from pgq_node.local_state l
                         where l.queue_name = n.queue_name and l.consumer_name = n.worker_name)
                   else
                       coalesce((select min(s.sub_last_tick)
                                   from pgq.queue q
                                   join pgq.subscription s on s.sub_queue = q.queue_id
                                   join pgq.consumer c on c.co_id = s.sub_consumer
                                  where q.queue_name = n.queue_name and c.co_name <> '.global_watermark'),
                                pgcascade.local_queue_top(n.queue_name))
               end
          from pgq_node.node_info n
         where n.queue_name = i_queue_name);
end
$$;

-- pgq_node.is_root_node(1), pgq_node.is_leaf_node(1)
--     Whether this database is root, or leaf, of a cascade. Errors: it is no node of it.
create function pgq_node.is_root_node(i_queue_name text) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    result boolean;
begin
    select node_type = 'root' into result from pgq_node.node_info where queue_name = i_queue_name;
    if not found then
        raise exception using errcode = 'undefined_object',
            message = format('queue does not exist: %s', coalesce(i_queue_name, 'NULL')),
            hint = 'This database is no node of it; make it one with pgq_node.create_node().';
    end if;
    return result;
end
$$;

create function pgq_node.is_leaf_node(i_queue_name text) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    result boolean;
begin
    select node_type = 'leaf' into result from pgq_node.node_info where queue_name = i_queue_name;
    if not found then
        raise exception using errcode = 'undefined_object',
            message = format('queue does not exist: %s', coalesce(i_queue_name, 'NULL')),
            hint = 'This database is no node of it; make it one with pgq_node.create_node().';
    end if;
    return result;
end
$$;

-- pgq_node.get_node_info(1)
--     What this node is and where its worker stands. 100; 404 not a node.
--     combined_type      type of the queue that this leaf's events are merged into
--     target_for         queues whose leaves here are merged into this one
--     worker_last_tick   on the root: the last tick of the queue
create function pgq_node.get_node_info(
    in i_queue_name text,
    out ret_code int4, out ret_note text, out node_type text, out node_name text,
    out global_watermark bigint, out local_watermark bigint, out provider_node text, out provider_location text,
    out combined_queue text, out combined_type text, out worker_name text, out worker_paused bool,
    out worker_uptodate bool, out worker_last_tick bigint, out node_attrs text, out target_for text[]
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    select 100, 'Ok', n.node_type, n.node_name,
           pgcascade.consumer_tick(n.queue_name, '.global_watermark'), pgcascade.local_watermark(n.queue_name),
           w.provider_node, p.node_location,
           case when c.queue_name is not null then n.combined_queue end, c.node_type, n.worker_name, w.paused,
           w.uptodate,
           case when n.node_type = 'root' then pgcascade.local_queue_top(n.queue_name) else w.last_tick_id end,
           n.node_attrs,
           (select array_agg(t.queue_name order by t.queue_name)
              from pgq_node.node_info t where t.combined_queue = n.queue_name)
      into ret_code, ret_note, node_type, node_name, global_watermark, local_watermark, provider_node,
           provider_location, combined_queue, combined_type, worker_name, worker_paused, worker_uptodate,
           worker_last_tick, node_attrs, target_for
      from pgq_node.node_info n
      left join pgq_node.local_state w on w.queue_name = n.queue_name and w.consumer_name = n.worker_name
      left join pgq_node.node_location p on p.queue_name = w.queue_name and p.node_name = w.provider_node
      left join pgq_node.node_info c on c.queue_name = n.combined_queue
     where n.queue_name = i_queue_name;
    if not found then
        select 404, 'Unknown queue: ' || coalesce(i_queue_name, 'NULL') into ret_code, ret_note;
    end if;
end
$$;

-- pgq_node.get_worker_state(1)
--     What the worker of this node has to know to go on. 100; 404 not a node, or its worker is not registered.
create function pgq_node.get_worker_state(
    in i_queue_name text,
    out ret_code int4, out ret_note text, out node_type text, out node_name text, out completed_tick bigint,
    out provider_node text, out provider_location text, out paused boolean, out uptodate boolean, out cur_error text,
    out worker_name text, out global_watermark bigint, out local_watermark bigint, out local_queue_top bigint,
    out combined_queue text, out combined_type text
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    node pgq_node.node_info;
begin
    select * into node from pgq_node.node_info n where n.queue_name = i_queue_name;
    if not found then
        select 404, 'Unknown queue: ' || coalesce(i_queue_name, 'NULL') into ret_code, ret_note;
        return;
    end if;
    worker_name := node.worker_name;
    select s.ret_code, s.ret_note, s.node_type, s.node_name, s.completed_tick, s.provider_node, s.provider_location,
           s.paused, s.uptodate, s.cur_error
      into ret_code, ret_note, node_type, node_name, completed_tick, provider_node, provider_location,
           paused, uptodate, cur_error
      from pgq_node.get_consumer_state(i_queue_name, worker_name) s;
    if ret_code <> 100 then
        return;
    end if;
    select pgcascade.consumer_tick(i_queue_name, '.global_watermark'), pgcascade.local_watermark(i_queue_name),
           case when node.node_type <> 'leaf' then pgcascade.local_queue_top(i_queue_name) end
      into global_watermark, local_watermark, local_queue_top;
    select c.queue_name, c.node_type into combined_queue, combined_type
      from pgq_node.node_info c where c.queue_name = node.combined_queue;
end
$$;

-- pgq_node.get_consumer_state(2)
--     Where one consumer that applies to this database stands. 100; 404 not a node, or no such consumer.
create function pgq_node.get_consumer_state(
    in i_queue_name text, in i_consumer_name text,
    out ret_code int4, out ret_note text, out node_type text, out node_name text, out completed_tick bigint,
    out provider_node text, out provider_location text, out paused boolean, out uptodate boolean, out cur_error text
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    select n.node_type, n.node_name into node_type, node_name
      from pgq_node.node_info n where n.queue_name = i_queue_name;
    if not found then
        select 404, 'Unknown queue: ' || coalesce(i_queue_name, 'NULL') into ret_code, ret_note;
        return;
    end if;
    select 100, 'Ok', s.last_tick_id, s.provider_node, p.node_location, s.paused, s.uptodate, s.cur_error
      into ret_code, ret_note, completed_tick, provider_node, provider_location, paused, uptodate, cur_error
      from pgq_node.local_state s
      left join pgq_node.node_location p on p.queue_name = s.queue_name and p.node_name = s.provider_node
     where s.queue_name = i_queue_name and s.consumer_name = i_consumer_name;
    if not found then
        select 404, format('Unknown consumer: %s/%s', i_queue_name, coalesce(i_consumer_name, 'NULL'))
          into ret_code, ret_note;
    end if;
end
$$;

-- pgq_node.get_consumer_info(1)
--     All consumers that apply to this database.
create function pgq_node.get_consumer_info(
    in i_queue_name text,
    out consumer_name text, out provider_node text, out last_tick_id bigint,
    out paused boolean, out uptodate boolean, out cur_error text
) returns setof record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select s.consumer_name, s.provider_node, s.last_tick_id, s.paused, s.uptodate, s.cur_error
      from pgq_node.local_state s
     where s.queue_name = i_queue_name
     order by s.consumer_name;
end
$$;

-- pgq_node.get_subscriber_info(1)
--     The nodes that read from this one, and what they still need.
create function pgq_node.get_subscriber_info(
    in i_queue_name text, out node_name text, out worker_name text, out node_watermark bigint
) returns setof record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select s.subscriber_node, s.worker_name, pgcascade.consumer_tick(s.queue_name, s.watermark_name)
      from pgq_node.subscriber_info s
     where s.queue_name = i_queue_name
     order by s.subscriber_node;
end
$$;

-- pgq_node.upgrade_schema(), pgq_node.version()
--     For clients that call them: upgrades are done by ALTER EXTENSION; the version is the extension's.
create function pgq_node.upgrade_schema() returns int4
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return 0;
end
$$;

create function pgq_node.version() returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return pgq.version();
end
$$;

comment on function pgcascade.local_queue_top(text) is 'last tick of a queue';
comment on function pgcascade.consumer_tick(text, text) is 'tick that a consumer of a queue stands at';
comment on function pgcascade.local_watermark(text) is 'oldest tick that this node and those below it still need';
comment on function pgq_node.is_root_node(text) is 'whether this database is the root of a cascade';
comment on function pgq_node.is_leaf_node(text) is 'whether this database is a leaf of a cascade';
comment on function pgq_node.get_node_info(text) is 'what this node is, its watermarks and its worker';
comment on function pgq_node.get_worker_state(text) is 'state of this node''s worker';
comment on function pgq_node.get_consumer_state(text, text) is 'state of a consumer that applies to this database';
comment on function pgq_node.get_consumer_info(text) is 'consumers that apply to this database';
comment on function pgq_node.get_subscriber_info(text) is 'nodes that read from this one';
comment on function pgq_node.upgrade_schema() is 'kept for clients that call it; upgrades are done by ALTER EXTENSION';
comment on function pgq_node.version() is 'version of the extension';
