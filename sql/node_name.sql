-- A node gets another name: because somebody wants it, or because it is a copy of a node and has to be one of its own.
--
-- Renaming is a row of small steps on several nodes (consumer/src/node/rename.rs). Until the last of them every node knows
-- both names at one location, and whoever asks for the old name and finds the new one there may go on. What is history keeps
-- the old name: epoch_history and takeover.

-- pgcascade.check_no_takeover(1)
--     Refuses (55006) while this node has a part in a takeover. The caller has locked the node.
create function pgcascade.check_no_takeover(i_queue_name text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    op uuid;
    name text;
begin
    select coalesce(s.promised_op, t.op_id), s.node_name into op, name
      from pgcascade.node_state s
      left join pgcascade.takeover t on t.queue_name = s.queue_name and t.step not in ('done', 'aborted')
     where s.queue_name = i_queue_name;
    if op is not null then
        raise exception using errcode = 'object_in_use',
            message = format('node "%s" of queue "%s" has a part in takeover %s', name, i_queue_name, op),
            hint = 'Finish that one with consumer takeover --resume, or give it up with --abort.';
    end if;
end
$$;

-- pgcascade.rename_subscriber(4)
--     A node that reads from here is about to be renamed: its new name stands where the old one does, and what the one
--     may still read the other may, too. The old one stays until pgq_node.unregister_subscriber().
--     i_worker   the name of its worker then; may be the same
--     Returns whether there was anything to do. Errors: not a node; the worker's name is another consumer's.
--     Writes subscriber_info, candidate, pgq.consumer, pgq.subscription. Locks as pgq_node.register_subscriber().
create function pgcascade.rename_subscriber(i_queue_name text, i_old_name text, i_new_name text, i_worker text) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    old pgq_node.subscriber_info;
    watermark constant text := '.' || i_new_name || '.watermark';
begin
    perform from pgq_node.node_info where queue_name = i_queue_name for share;
    perform from pgq.queue where queue_name = i_queue_name for share;
    select * into old from pgq_node.subscriber_info
     where queue_name = i_queue_name and subscriber_node = i_old_name for update;
    if not found or exists (select from pgq_node.subscriber_info
                             where queue_name = i_queue_name and subscriber_node = i_new_name) then
        return false;
    end if;
    if i_worker <> old.worker_name then
        if pgcascade.consumer_tick(i_queue_name, i_worker) is not null then
            raise exception using errcode = 'duplicate_object',
                message = format('queue "%s" has a consumer "%s" already', i_queue_name, i_worker),
                hint = 'Choose another name, or unregister that consumer if nobody uses it.';
        end if;
        perform pgq.register_consumer_at(i_queue_name, i_worker, pgcascade.consumer_tick(i_queue_name, old.worker_name));
    end if;
    perform pgq.register_consumer_at(i_queue_name, watermark, pgcascade.consumer_tick(i_queue_name, old.watermark_name));
    insert into pgq_node.subscriber_info (queue_name, subscriber_node, worker_name, watermark_name)
    values (i_queue_name, i_new_name, i_worker, watermark);
    -- It is one branch, and counts once for the confirm gate.
    update pgcascade.candidate set node_name = i_new_name where queue_name = i_queue_name and node_name = i_old_name;
    return true;
end
$$;

-- pgcascade.rename_provider(3)
--     Whatever reads from the old name for this node reads from the new one. Returns how many consumers that were.
--     Writes local_state, node_location.
create function pgcascade.rename_provider(i_queue_name text, i_old_name text, i_new_name text) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    result integer;
begin
    insert into pgq_node.node_location (queue_name, node_name, node_location, dead)
    select queue_name, i_new_name, node_location, dead from pgq_node.node_location
     where queue_name = i_queue_name and node_name = i_old_name
        on conflict (queue_name, node_name) do nothing;
    update pgq_node.local_state set provider_node = i_new_name, uptodate = false
     where queue_name = i_queue_name and provider_node = i_old_name;
    get diagnostics result = row_count;
    return result;
end
$$;

-- pgcascade.rename_node(4)
--     This node gets the new name, and its worker that one. It goes on being known by the old name, too, until that location
--     is forgotten. Returns whether there was anything to do.
--     Errors: not a node of either name; it has a part in a takeover (55006).
--     Writes node_info, local_state, node_location.
create function pgcascade.rename_node(i_queue_name text, i_old_name text, i_new_name text, i_worker text) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    me record;
begin
    select * into me from pgcascade.lock_node(i_queue_name);
    if (me.node).node_name = i_new_name then
        return false;
    elsif (me.node).node_name is distinct from i_old_name then
        raise exception using errcode = 'undefined_object',
            message = format('this database is node "%s" of queue "%s", not %s', (me.node).node_name, i_queue_name,
                             coalesce(quote_literal(i_old_name), 'NULL')),
            hint = 'consumer status shows the nodes.';
    end if;
    perform pgcascade.check_no_takeover(i_queue_name);
    perform pgcascade.rename_provider(i_queue_name, i_old_name, i_new_name);
    update pgq_node.node_info set node_name = i_new_name, worker_name = i_worker where queue_name = i_queue_name;
    update pgq_node.local_state set consumer_name = i_worker, uptodate = false
     where queue_name = i_queue_name and consumer_name = (me.node).worker_name;
    return true;
end
$$;

-- pgcascade.adopt_node(7)
--     This database is a copy of a root or branch, and becomes a branch of its own. It is closed for writers, forgets who reads
--     from the original, what that one had promised and which takeovers it was to end, and learns what its provider knows.
--     i_tick        the last tick that it has in common with the provider, where it goes on
--     i_history     what the provider knows of epochs
--     i_locations   the nodes, as rows of node_location in JSON
--     Returns how many events it has after that tick: none, or the caller must not commit.
--     Errors: not the node that the caller took it for; a newer epoch than the provider's; those of lock_ticker(),
--     check_restored() and learn_epochs(). Waits for writers.
--     Writes pgq.queue, pgq.tick, all of pgq_node, node_epoch, node_promise, epoch_history, takeover.
create function pgcascade.adopt_node(
    i_queue_name text, i_new_name text, i_worker text, i_provider text, i_tick bigint, i_history jsonb, i_locations jsonb
) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    me record;
    q pgq.queue;
    last pgq.tick;
    provider_epoch bigint;
    result bigint;
begin
    select * into me from pgcascade.lock_node(i_queue_name);
    if (me.node).node_type not in ('root', 'branch') then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('node "%s" of queue "%s" is a %s', (me.node).node_name, i_queue_name, (me.node).node_type),
            hint = 'Only a copy of a root or branch becomes a branch.';
    end if;
    select coalesce(max(h.epoch), 1) into provider_epoch
      from jsonb_populate_recordset(null::pgcascade.epoch_history, i_history) h;
    if (me.known).epoch > provider_epoch then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('the copy of node "%s" of queue "%s" is in epoch %s, and its provider in epoch %s',
                             (me.node).node_name, i_queue_name, (me.known).epoch, provider_epoch),
            hint = 'Have it read from a node that knows the last change of root.';
    end if;
    select * into q from pgq.queue where queue_name = i_queue_name;
    perform pgcascade.lock_ticker(q.queue_id);
    perform pgcascade.check_restored(q.queue_id);
    update pgq.queue set queue_disable_insert = true, queue_external_ticker = true where queue_id = q.queue_id;
    execute format('lock table %s in share mode', q.queue_data_pfx);

    perform pgq_node.unregister_subscriber(i_queue_name, s.subscriber_node)
       from pgq_node.subscriber_info s where s.queue_name = i_queue_name;
    delete from pgcascade.node_promise where queue_name = i_queue_name;
    update pgcascade.node_epoch
       set fence_op = null, closing_tick = null, fence_reason = null, system_id = null, timeline = null
     where queue_name = i_queue_name;
    update pgcascade.takeover
       set step = 'aborted', error = format('of node "%s", of which this is a copy', (me.node).node_name),
           updated_at = clock_timestamp()
     where queue_name = i_queue_name and step not in ('done', 'aborted');

    insert into pgq_node.node_location
    select i_queue_name, l.node_name, l.node_location, l.dead
      from jsonb_populate_recordset(null::pgq_node.node_location, i_locations) l
        on conflict (queue_name, node_name) do update set node_location = excluded.node_location, dead = excluded.dead;
    update pgq_node.node_info set node_type = 'branch', node_name = i_new_name, worker_name = i_worker
     where queue_name = i_queue_name;
    update pgq_node.local_state
       set consumer_name = i_worker, provider_node = i_provider, last_tick_id = i_tick, paused = false, uptodate = false,
           cur_error = null
     where queue_name = i_queue_name and consumer_name = (me.node).worker_name;
    delete from pgq_node.node_location l
     where l.queue_name = i_queue_name
       and not exists (select from jsonb_populate_recordset(null::pgq_node.node_location, i_locations) k
                        where k.node_name = l.node_name)
       and not exists (select from pgq_node.local_state s
                        where s.queue_name = i_queue_name and s.provider_node = l.node_name);

    -- Ticks that a copied root made before it was closed are none of the cascade's.
    delete from pgq.tick where tick_queue = q.queue_id and tick_id > i_tick;
    select * into last from pgq.tick where tick_queue = q.queue_id and tick_id = i_tick;
    execute format('select count(*) from %s where not txid_visible_in_snapshot(ev_txid, $1)', q.queue_data_pfx)
       into result using last.tick_snapshot;
    perform pgcascade.learn_epochs(i_queue_name, i_history);
    return result;
end
$$;

comment on function pgcascade.check_no_takeover(text) is 'refuse while this node has a part in a takeover';
comment on function pgcascade.rename_subscriber(text, text, text, text) is 'let a node that reads from here read under a new name';
comment on function pgcascade.rename_provider(text, text, text) is 'read from a node under its new name';
comment on function pgcascade.rename_node(text, text, text, text) is 'give this node a new name';
comment on function pgcascade.adopt_node(text, text, text, text, bigint, jsonb, jsonb) is
    'make this copy of a root or branch a branch of its own';
