-- Nodes that read from this one, and watermarks: which ticks somebody still needs.
--
-- Each subscriber has two consumers on the queue here: its worker, and ".node.watermark", which stands at the oldest tick
-- that the subscriber or anything below it needs. The slowest of all is this node's local watermark, which its worker
-- reports to the node above. What arrives at the root is the global watermark: it goes back down as an event, and
-- ".global_watermark" stands there on every root and branch, so any of them can serve any node after a change of provider.

-- pgq_node.register_subscriber(4)
--     Let another node read from this one. i_custom_tick_id: tick to begin at; null: the global watermark.
--     200, with the global watermark; 401 this is a leaf, no worker, or the node is subscribed with another worker;
--     404 not a node, unknown subscriber. Errors: no such tick.
--     Doing it again changes nothing, except that the worker moves to the tick if one is given.
--     Writes subscriber_info, pgq.consumer, pgq.subscription. Locks the queue's row first, as pgq.register_consumer_at() and
--     rotation do, so that the watermark read here is not forgotten before the subscriber stands at it.
create function pgq_node.register_subscriber(
    in i_queue_name text, in i_remote_node_name text, in i_remote_worker_name text, in i_custom_tick_id int8,
    out ret_code int4, out ret_note text, out global_watermark bigint
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    node pgq_node.node_info;
    watermark_name constant text := '.' || i_remote_node_name || '.watermark';
    known text;
begin
    select * into node from pgq_node.node_info where queue_name = i_queue_name for share;
    select case
        when node.queue_name is null then 404
        when node.node_type = 'leaf' or i_remote_worker_name is null then 401
        when not exists (select from pgq_node.node_location
                          where queue_name = i_queue_name and node_name = i_remote_node_name) then 404 end,
        case
        when node.queue_name is null then 'Unknown queue: ' || coalesce(i_queue_name, 'NULL')
        when node.node_type = 'leaf' then 'Cannot subscribe to leaf node'
        when i_remote_worker_name is null then 'Worker name is null'
        else format('Unknown node: %s/%s', i_queue_name, coalesce(i_remote_node_name, 'NULL')) end
      into ret_code, ret_note;
    if ret_code is not null then
        return;
    end if;

    perform from pgq.queue where queue_name = i_queue_name for share;
    global_watermark := pgcascade.consumer_tick(i_queue_name, '.global_watermark');

    select worker_name into known from pgq_node.subscriber_info
     where queue_name = i_queue_name and subscriber_node = i_remote_node_name for update;
    if known <> i_remote_worker_name then
        global_watermark := null;
        select 401, format('Node %s is subscribed with worker %s; unregister it first', i_remote_node_name, known)
          into ret_code, ret_note;
        return;
    end if;
    if known is null or pgcascade.consumer_tick(i_queue_name, watermark_name) is null then
        perform pgq.register_consumer_at(i_queue_name, watermark_name, global_watermark);
    end if;
    if known is null or i_custom_tick_id is not null
       or pgcascade.consumer_tick(i_queue_name, i_remote_worker_name) is null
    then
        perform pgq.register_consumer_at(i_queue_name, i_remote_worker_name,
                                         coalesce(i_custom_tick_id, global_watermark));
    end if;
    if known is null then
        insert into pgq_node.subscriber_info (queue_name, subscriber_node, worker_name, watermark_name)
        values (i_queue_name, i_remote_node_name, i_remote_worker_name, watermark_name);
    end if;
    select 200, 'Subscriber registered: ' || i_remote_node_name into ret_code, ret_note;
end
$$;

-- pgq_node.unregister_subscriber(2)
--     End the subscription of another node: its worker and its watermark. 200; 304 it was none.
--     Writes subscriber_info, pgq.subscription, pgq.consumer.
create function pgq_node.unregister_subscriber(
    in i_queue_name text, in i_remote_node_name text, out ret_code int4, out ret_note text
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    gone pgq_node.subscriber_info;
begin
    delete from pgq_node.subscriber_info
     where queue_name = i_queue_name and subscriber_node = i_remote_node_name
    returning * into gone;
    if not found then
        select 304, 'Subscriber not found' into ret_code, ret_note;
        return;
    end if;
    perform pgq.unregister_consumer(i_queue_name, gone.watermark_name);
    if not exists (select from pgq_node.subscriber_info
                    where queue_name = i_queue_name and worker_name = gone.worker_name) then
        perform pgq.unregister_consumer(i_queue_name, gone.worker_name);
    end if;
    select 200, 'Subscriber unregistered: ' || i_remote_node_name into ret_code, ret_note;
end
$$;

-- pgq_node.set_subscriber_watermark(3)
--     A subscriber says which tick it still needs. 200; 100 it stood there; 404 not subscribed; 405 backwards, or null.
--     Errors: no such tick.
--     Writes pgq.subscription. Holds the row of the watermark from the look to the write: of two reports the older one
--     cannot overtake.
create function pgq_node.set_subscriber_watermark(
    in i_queue_name text, in i_node_name text, in i_watermark bigint, out ret_code int4, out ret_note text
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    name text;
    cur bigint;
begin
    select watermark_name into name from pgq_node.subscriber_info
     where queue_name = i_queue_name and subscriber_node = i_node_name;
    if not found then
        select 404, format('node %s not subscribed to queue %s', coalesce(i_node_name, 'NULL'), coalesce(i_queue_name, 'NULL'))
          into ret_code, ret_note;
        return;
    end if;

    perform from pgq.queue where queue_name = i_queue_name for share;
    select s.sub_last_tick into cur
      from pgq.subscription s
      join pgq.queue q on q.queue_id = s.sub_queue and q.queue_name = i_queue_name
      join pgq.consumer c on c.co_id = s.sub_consumer and c.co_name = name
       for update of s;
    if i_watermark is null then
        select 405, 'watermark must not be null' into ret_code, ret_note;
    elsif i_watermark = cur then
        select 100, 'watermark already set' into ret_code, ret_note;
    elsif i_watermark < cur then
        select 405, 'watermark must not be moved backwards' into ret_code, ret_note;
    else
        perform pgq.register_consumer_at(i_queue_name, name, i_watermark);
        select 200, format('%s set to %s', name, i_watermark) into ret_code, ret_note;
    end if;
end
$$;

-- pgq_node.set_global_watermark(2)
--     Set the tick that somebody in the cascade still needs.
--     root     null: its local watermark; the other nodes are told (pgq.global-watermark), and its worker stands there
--     branch   a tick that has not arrived here yet is left for later
--     200; 100 leaf; 404 not a node; 500 null on a branch. Errors: no such tick on the root.
--     Writes pgq.subscription, local_state; an event on the root.
create function pgq_node.set_global_watermark(
    in i_queue_name text, in i_watermark bigint, out ret_code int4, out ret_note text
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    node pgq_node.node_info;
    wm bigint := i_watermark;
begin
    select * into node from pgq_node.node_info where queue_name = i_queue_name;
    if not found then
        select 404, format('Queue %s not found', coalesce(i_queue_name, 'NULL')) into ret_code, ret_note;
        return;
    elsif node.node_type = 'leaf' then
        select 100, 'Ignoring global watermark in leaf' into ret_code, ret_note;
        return;
    end if;

    perform from pgq.queue where queue_name = i_queue_name for share;
    if node.node_type = 'root' then
        wm := coalesce(wm, pgcascade.local_watermark(i_queue_name));
    elsif wm is null then
        select 500, 'bad usage: wm=null on branch node' into ret_code, ret_note;
        return;
    elsif not exists (select from pgq.queue q join pgq.tick t on t.tick_queue = q.queue_id
                       where q.queue_name = i_queue_name and t.tick_id = wm) then
        select 200, format('Skipping global watermark update to %s', wm) into ret_code, ret_note;
        return;
    end if;

    perform pgq.register_consumer_at(i_queue_name, '.global_watermark', wm);
    if node.node_type = 'root' then
        perform pgq.insert_event(i_queue_name, 'pgq.global-watermark', wm::text, i_queue_name, null, null, null);
        update pgq_node.local_state set last_tick_id = wm
         where queue_name = i_queue_name and consumer_name = node.worker_name;
    end if;
    select 200, format('Global watermark set to %s', wm) into ret_code, ret_note;
end
$$;

-- pgq_node.set_partition_watermark(3)
--     Where a leaf that is merged into a combined branch may go up to: the branch gets the merged events from its
--     provider, and the leaf stays behind. 200; 201 the combined queue is no branch here, or the other no leaf that is
--     merged into it; 401 null. Writes local_state.
create function pgq_node.set_partition_watermark(
    in i_combined_queue_name text, in i_part_queue_name text, in i_watermark bigint, out ret_code int4, out ret_note text
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    worker text;
begin
    select part.worker_name into worker
      from pgq_node.node_info part
      join pgq_node.node_info combined on combined.queue_name = part.combined_queue
     where part.queue_name = i_part_queue_name
       and combined.queue_name = i_combined_queue_name
       and combined.node_type = 'branch';
    if not found then
        select 201, 'Part-queue does not exist' into ret_code, ret_note;
        return;
    elsif i_watermark is null then
        select 401, 'watermark must not be null' into ret_code, ret_note;
        return;
    end if;
    update pgq_node.local_state set last_tick_id = i_watermark
     where queue_name = i_part_queue_name and consumer_name = worker;
    select 200, 'Ok' into ret_code, ret_note;
end
$$;

-- pgq_node.maint_watermark(1)
--     Maintenance of a root: its global watermark is set when it is five minutes old. Returns 0. Elsewhere, and while the
--     queue is closed for a change of root, nothing is done.
create function pgq_node.maint_watermark(i_queue_name text) returns int4
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgq_node.set_global_watermark(n.queue_name, null)
       from pgq_node.node_info n
       join pgq.queue q on q.queue_name = n.queue_name and not q.queue_disable_insert
      where n.queue_name = i_queue_name and n.node_type = 'root'
        and not exists (
               select from pgq.tick t
                where t.tick_queue = q.queue_id
                  and t.tick_id = pgcascade.consumer_tick(n.queue_name, '.global_watermark')
                  and t.tick_time > clock_timestamp() - interval '5 minutes');
    return 0;
end
$$;

comment on function pgq_node.register_subscriber(text, text, text, bigint) is 'let another node read from this one';
comment on function pgq_node.unregister_subscriber(text, text) is 'end the subscription of another node';
comment on function pgq_node.set_subscriber_watermark(text, text, bigint) is 'store the tick that a subscriber still needs';
comment on function pgq_node.set_global_watermark(text, bigint) is 'set the tick that somebody in the cascade still needs';
comment on function pgq_node.set_partition_watermark(text, text, bigint) is
    'set the position of a leaf that stays behind its combined branch';
comment on function pgq_node.maint_watermark(text) is 'set the global watermark of a root if it is old';
