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
--     Writes local_state, node_location, node_admin_location.
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
    insert into pgcascade.node_admin_location (queue_name, node_name, location)
    select queue_name, i_new_name, location from pgcascade.node_admin_location
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

-- A copy of the root that has become a branch, until it has the ticks that its last events are in. What the copy has after its last
-- tick is in takeover_tail meanwhile, and takeover_had() compares it with what comes.
create table pgcascade.adoption (
    queue_name      text        not null,
    op_id           uuid        not null,
    -- A tick of the root from after the copy was made: it, and those before it, have all of that.
    complete_tick   bigint      not null,

    constraint adoption_pkey primary key (queue_name),
    constraint adoption_queue_name_fkey foreign key (queue_name)
        references pgq_node.node_info (queue_name) on delete cascade
);

comment on table pgcascade.adoption is 'copies of a root that are branches now, and still fetch what their last events are in';

select pg_catalog.pg_extension_config_dump('pgcascade.adoption', '');

-- pgcascade.adopt_node(8)
--     This database is a copy of a root or branch, and becomes a branch of its own. It is closed for writers, forgets who reads
--     from the original, what that one had promised and which takeovers it was to end, and learns what its provider knows.
--     i_tick           the last tick that it has in common with the provider, where it goes on
--     i_complete_tick  a tick that the root has made since; null for the copy of a branch
--     i_history        what the provider knows of epochs
--     i_locations      the nodes, as rows of node_location in JSON
--     Returns how many events it has after i_tick. Those of a copy of the root are set aside, since they will come with the ticks
--     that have them, and their rows are here; the copy of a branch has none, or the caller must not commit.
--     Errors: not the node that the caller took it for; a newer epoch than the provider's; prepared transactions that have written to the
--     queue; those of lock_ticker(), check_restored() and learn_epochs(). Waits for writers.
--     Writes pgq.queue, pgq.tick, all of pgq_node, node_epoch, node_promise, epoch_history, takeover; of a copy of the root the event
--     tables, takeover_tail, adoption.
create function pgcascade.adopt_node(
    i_queue_name text, i_new_name text, i_worker text, i_provider text, i_tick bigint, i_complete_tick bigint, i_history jsonb,
    i_locations jsonb
) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    me record;
    q pgq.queue;
    last pgq.tick;
    provider_epoch bigint;
    op constant uuid := gen_random_uuid();
    prepared text;
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
    -- Whoever waits for one of these waits for somebody else's word.
    select string_agg(quote_literal(p.gid), ', ' order by p.gid) into prepared
      from pg_prepared_xacts p where p.database = current_database()::text;
    if prepared is not null and pgcascade.has_writers(q.queue_data_pfx::regclass) then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('the copy of node "%s" of queue "%s" has prepared transactions: %s', (me.node).node_name, i_queue_name,
                             prepared),
            hint = 'Roll them back on the copy; where they were prepared, they go on as whoever prepared them says.';
    end if;
    update pgq.queue set queue_disable_insert = true, queue_external_ticker = true, queue_ticker_paused = false
     where queue_id = q.queue_id;
    execute format('lock table %s in share mode', q.queue_data_pfx);

    perform pgq_node.unregister_subscriber(i_queue_name, s.subscriber_node)
       from pgq_node.subscriber_info s where s.queue_name = i_queue_name;
    delete from pgcascade.node_promise where queue_name = i_queue_name;
    delete from pgcascade.gate_standby where queue_id = q.queue_id;
    update pgcascade.node_epoch
       set fence_op = null, closing_tick = null, fence_reason = null, system_id = null, timeline = null
     where queue_name = i_queue_name;
    -- They are the original's: nobody may read here that one of them is over.
    delete from pgcascade.takeover where queue_name = i_queue_name and step not in ('done', 'aborted');

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
    if (me.node).node_type = 'root' then
        -- Events that were put back for one consumer are no part of a tick on other nodes; those of the cascade itself change no rows.
        execute format($q$
            with removed as (
                delete from %1$s e
                 where e.ev_txid >= txid_snapshot_xmin($1) and not txid_visible_in_snapshot(e.ev_txid, $1) and e.ev_owner is null)
            insert into pgcascade.takeover_tail
            select $2, $3, ev_id, ev_time, ev_txid, ev_owner, ev_retry, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4,
                   null
              from %2$s e
             where e.ev_txid >= txid_snapshot_xmin($1) and not txid_visible_in_snapshot(e.ev_txid, $1) and e.ev_owner is null
               and e.ev_type not like 'pgq.%%'$q$, q.queue_data_pfx, pgcascade.event_source(q.queue_id))
          using last.tick_snapshot, op, i_queue_name;
        get diagnostics result = row_count;
        insert into pgcascade.adoption (queue_name, op_id, complete_tick) values (i_queue_name, op, i_complete_tick);
    else
        execute format('select count(*) from %s e where not txid_visible_in_snapshot(ev_txid, $1)', pgcascade.event_source(q.queue_id))
           into result using last.tick_snapshot;
    end if;
    perform pgcascade.learn_epochs(i_queue_name, i_history);
    return result;
end
$$;

-- pgcascade.adoption_end(1)
--     The epoch by which it is certain that the root that this branch was a copy of has not given all that the copy was made with: the
--     cascade went on from a tick before complete_tick. All columns are null if there is none, or nothing to be given any more.
create function pgcascade.adoption_end(i_queue_name text) returns pgcascade.epoch_history
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
    select h from pgcascade.adoption a
      join pgcascade.epoch_history h on h.queue_name = a.queue_name
           and h.start_tick < a.complete_tick and h.first_tick > a.complete_tick
     where a.queue_name = i_queue_name
     order by h.epoch limit 1;
$$;

-- pgcascade.adoption_lost(1)
--     This branch stands where adoption_end() says that the cascade went on without all that it was made with. What it has that no tick up to
--     there has is saved in lost_event, and the adoption is over. The caller puts the tables right in the same transaction.
--     Returns the takeover that began that epoch, and how many events were saved; null if there is nothing to do.
--     Errors: not a node. Writes lost_event, takeover_tail, adoption.
create function pgcascade.adoption_lost(in i_queue_name text, out op_id uuid, out lost_events bigint) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    adopted pgcascade.adoption;
    h pgcascade.epoch_history;
    was_in bigint;
begin
    perform pgcascade.lock_node(i_queue_name);
    select * into adopted from pgcascade.adoption a where a.queue_name = i_queue_name for update;
    h := pgcascade.adoption_end(i_queue_name);
    if (h.start_tick <= pgcascade.node_tick(i_queue_name)) is not true then
        return;
    end if;
    was_in := (select coalesce(max(k.epoch), 1) from pgcascade.epoch_history k
                where k.queue_name = i_queue_name and k.first_tick <= adopted.complete_tick);
    insert into pgcascade.lost_event (op_id, queue_name, number, epoch, tick, ev_id, ev_time, ev_txid, ev_type, ev_data, ev_extra1, ev_extra2,
                                      ev_extra3, ev_extra4)
    select h.op_id, i_queue_name, row_number() over (order by t.ev_id), was_in, null, t.ev_id, t.ev_time, t.ev_txid, t.ev_type,
           t.ev_data, t.ev_extra1, t.ev_extra2, t.ev_extra3, t.ev_extra4
      from pgcascade.takeover_tail t
     where t.op_id = adopted.op_id and t.tick_id is null;
    get diagnostics lost_events = row_count;
    delete from pgcascade.takeover_tail t where t.op_id = adopted.op_id;
    delete from pgcascade.adoption a where a.op_id = adopted.op_id;
    op_id := h.op_id;
end
$$;

comment on function pgcascade.adoption_end(text) is 'the epoch that began without all that an adopted copy of the root was made with';
comment on function pgcascade.adoption_lost(text) is 'save what only an adopted copy has of a root that was lost';
comment on function pgcascade.check_no_takeover(text) is 'refuse while this node has a part in a takeover';
comment on function pgcascade.rename_subscriber(text, text, text, text) is 'let a node that reads from here read under a new name';
comment on function pgcascade.rename_provider(text, text, text) is 'read from a node under its new name';
comment on function pgcascade.rename_node(text, text, text, text) is 'give this node a new name';
comment on function pgcascade.adopt_node(text, text, text, text, bigint, bigint, jsonb, jsonb) is
    'make this copy of a root or branch a branch of its own';
