-- Consumers that apply to this database: the node's own worker, and others. Called by the consumers themselves, on this
-- end, in the transaction that applies the data.

-- pgq_node.register_consumer(4)
--     Store a consumer's position, or set it anew. 200; 201 it was there, now with this provider and tick;
--     404 not a node, unknown provider, a name or the tick is null.
create function pgq_node.register_consumer(
    in i_queue_name text, in i_consumer_name text, in i_provider_node text, in i_custom_tick_id int8,
    out ret_code int4, out ret_note text
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    is_new boolean;
begin
    select 404, case
        when not exists (select from pgq_node.node_info where queue_name = i_queue_name) then
            'Unknown queue: ' || coalesce(i_queue_name, 'NULL')
        when i_consumer_name is null then 'Consumer name is null'
        when i_custom_tick_id is null then format('Tick of consumer %s is null', i_consumer_name)
        when not exists (select from pgq_node.node_location
                          where queue_name = i_queue_name and node_name = i_provider_node) then
            'Provider node not found: ' || coalesce(i_provider_node, 'NULL')
        end into ret_code, ret_note;
    if ret_note is not null then
        return;
    end if;

    -- xmax is zero in a row that was inserted, not updated.
    insert into pgq_node.local_state (queue_name, consumer_name, provider_node, last_tick_id)
    values (i_queue_name, i_consumer_name, i_provider_node, i_custom_tick_id)
    on conflict (queue_name, consumer_name)
        do update set provider_node = excluded.provider_node, last_tick_id = excluded.last_tick_id
    returning xmax = 0 into is_new;
    if is_new then
        select 200, format('Consumer %s registered on queue %s', i_consumer_name, i_queue_name) into ret_code, ret_note;
    else
        select 201, format('Consumer already registered: %s/%s', i_queue_name, i_consumer_name) into ret_code, ret_note;
    end if;
end
$$;

-- pgq_node.unregister_consumer(2)
--     Forget a consumer's position. 200, also if there was none; 404 not a node.
create function pgq_node.unregister_consumer(
    in i_queue_name text, in i_consumer_name text, out ret_code int4, out ret_note text
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if not exists (select from pgq_node.node_info where queue_name = i_queue_name) then
        select 404, 'Unknown queue: ' || coalesce(i_queue_name, 'NULL') into ret_code, ret_note;
        return;
    end if;
    delete from pgq_node.local_state where queue_name = i_queue_name and consumer_name = i_consumer_name;
    select 200, format('Consumer %s unregistered from %s', coalesce(i_consumer_name, 'NULL'), i_queue_name)
      into ret_code, ret_note;
end
$$;

-- pgq_node.change_consumer_provider(3)
--     Have a consumer read from another node. It is not up to date until it says so itself. 200; 404 unknown node or consumer.
create function pgq_node.change_consumer_provider(
    in i_queue_name text, in i_consumer_name text, in i_new_provider text, out ret_code int4, out ret_note text
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform from pgq_node.node_location
      where queue_name = i_queue_name and node_name = i_new_provider for key share;
    if not found then
        select 404, 'New node not found: ' || coalesce(i_new_provider, 'NULL') into ret_code, ret_note;
        return;
    end if;
    update pgq_node.local_state set provider_node = i_new_provider, uptodate = false
     where queue_name = i_queue_name and consumer_name = i_consumer_name;
    if found then
        select 200, 'Consumer provider node set to : ' || i_new_provider into ret_code, ret_note;
    else
        select 404, format('Unknown consumer: %s/%s', i_queue_name, coalesce(i_consumer_name, 'NULL'))
          into ret_code, ret_note;
    end if;
end
$$;

-- pgq_node.set_consumer_uptodate(3)
--     A consumer says that it has seen the last change of its state. 200; 404 unknown consumer.
--     Errors: i_uptodate is null.
create function pgq_node.set_consumer_uptodate(
    in i_queue_name text, in i_consumer_name text, in i_uptodate boolean, out ret_code int4, out ret_note text
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update pgq_node.local_state set uptodate = i_uptodate
     where queue_name = i_queue_name and consumer_name = i_consumer_name;
    if found then
        select 200, 'Consumer uptodate = ' || i_uptodate::int4 into ret_code, ret_note;
    else
        select 404, format('Consumer not known: %s/%s', coalesce(i_queue_name, 'NULL'), coalesce(i_consumer_name, 'NULL'))
          into ret_code, ret_note;
    end if;
end
$$;

-- pgq_node.set_consumer_paused(3)
--     Ask a consumer to pause or to go on. It has done so when it sets itself up to date.
--     200; 201 it was so already; 404 unknown consumer. Errors: i_paused is null.
create function pgq_node.set_consumer_paused(
    in i_queue_name text, in i_consumer_name text, in i_paused boolean, out ret_code int4, out ret_note text
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    word constant text := case when i_paused then 'paused' else 'resumed' end;
begin
    update pgq_node.local_state set paused = i_paused, uptodate = false
     where queue_name = i_queue_name and consumer_name = i_consumer_name and paused is distinct from i_paused;
    if found then
        select 200, format('Consumer %s tagged as %s', i_consumer_name, word) into ret_code, ret_note;
    elsif exists (select from pgq_node.local_state
                   where queue_name = i_queue_name and consumer_name = i_consumer_name) then
        select 201, format('Consumer %s already %s', i_consumer_name, word) into ret_code, ret_note;
    else
        select 404, 'Unknown consumer: ' || coalesce(i_consumer_name, 'NULL') into ret_code, ret_note;
    end if;
end
$$;

-- pgq_node.set_consumer_completed(3)
--     Store the tick that a consumer has applied; its error is over. 100; 404 unknown consumer.
--     Errors: i_tick_id is null.
create function pgq_node.set_consumer_completed(
    in i_queue_name text, in i_consumer_name text, in i_tick_id int8, out ret_code int4, out ret_note text
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update pgq_node.local_state set last_tick_id = i_tick_id, cur_error = null
     where queue_name = i_queue_name and consumer_name = i_consumer_name;
    if found then
        select 100, format('Consumer %s completed tick = %s', i_consumer_name, i_tick_id) into ret_code, ret_note;
    else
        select 404, format('Consumer not known: %s/%s', coalesce(i_queue_name, 'NULL'), coalesce(i_consumer_name, 'NULL'))
          into ret_code, ret_note;
    end if;
end
$$;

-- pgq_node.set_consumer_error(3)
--     Store why a consumer does not get on; null: it does. 100; 101 unknown consumer: who has an error to tell cannot do
--     anything about a second one.
create function pgq_node.set_consumer_error(
    in i_queue_name text, in i_consumer_name text, in i_error_msg text, out ret_code int4, out ret_note text
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update pgq_node.local_state set cur_error = i_error_msg
     where queue_name = i_queue_name and consumer_name = i_consumer_name;
    if found then
        select 100, format('Consumer %s error = %s', i_consumer_name, coalesce(i_error_msg, 'NULL'))
          into ret_code, ret_note;
    else
        select 101, format('Consumer not known, ignoring: %s/%s',
                           coalesce(i_queue_name, 'NULL'), coalesce(i_consumer_name, 'NULL'))
          into ret_code, ret_note;
    end if;
end
$$;

comment on function pgq_node.register_consumer(text, text, text, bigint) is 'store the position of a consumer that applies here';
comment on function pgq_node.unregister_consumer(text, text) is 'forget a consumer that applies here';
comment on function pgq_node.change_consumer_provider(text, text, text) is 'have a consumer read from another node';
comment on function pgq_node.set_consumer_uptodate(text, text, boolean) is 'a consumer has seen the last change of its state';
comment on function pgq_node.set_consumer_paused(text, text, boolean) is 'ask a consumer to pause or to go on';
comment on function pgq_node.set_consumer_completed(text, text, bigint) is 'store the tick that a consumer has applied';
comment on function pgq_node.set_consumer_error(text, text, text) is 'store why a consumer does not get on';
