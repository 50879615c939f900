-- The change of root. Three steps on the old one, each in a transaction of its own and each to be called again after a
-- failure, then one step on the new one.
--
-- What it relies on: a writer locks the parent event table until its transaction ends, and then reads from the control
-- row whether it may write (pgext/src/insert.rs), at every isolation level. So who gets a lock on that table that
-- excludes writers, after the queue was closed, has seen the last event: all of them are committed or rolled back, and
-- every later writer reads that the queue is closed.

-- pgq_node.demote_root(3)
--     1   close the queue for writers; nobody but step 2 makes ticks
--     2   wait for the last writer, make the last tick. Returns it, and so does step 3
--     3   this is a branch now, with i_new_provider as its provider; its worker begins after the last tick
--     200; 301 not root; 404 not a node, unknown new provider (null is for step 3 only to miss).
--     Errors: no such step; a step is left out; a writer does not end within lock_timeout; not READ COMMITTED.
--     Writes pgq.queue, pgq.tick, node_info, local_state. Locks the node, then as the ticker, then the event table.
create function pgq_node.demote_root(
    in i_queue_name text, in i_step int4, in i_new_provider text,
    out ret_code int4, out ret_note text, out last_tick int8
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    node pgq_node.node_info;
    q pgq.queue;
    last pgq.tick;
begin
    select * into node from pgq_node.node_info where queue_name = i_queue_name for update;
    if not found then
        select 404, 'Node not initialized for queue: ' || coalesce(i_queue_name, 'NULL') into ret_code, ret_note;
        return;
    elsif node.node_type <> 'root' then
        select 301, 'Node not root' into ret_code, ret_note;
        return;
    elsif i_step is null or i_step not in (1, 2, 3) then
        raise exception using errcode = 'invalid_parameter_value', message = 'incorrect step number',
            detail = format('Step: %s', coalesce(i_step::text, 'NULL')),
            hint = 'Steps are 1 (close the queue), 2 (make the last tick) and 3 (become a branch).';
    elsif (i_new_provider is not null or i_step = 3)
          and (i_new_provider is not distinct from node.node_name
               or not exists (select from pgq_node.node_location
                               where queue_name = i_queue_name and node_name = i_new_provider)) then
        select 404, 'New node not found: ' || coalesce(i_new_provider, 'NULL') into ret_code, ret_note;
        return;
    end if;

    if i_step = 1 then
        update pgq.queue set queue_disable_insert = true, queue_external_ticker = true
         where queue_name = i_queue_name;
        select 200, 'Step 1: Writing disabled for: ' || i_queue_name into ret_code, ret_note;
        return;
    end if;

    select * into q from pgq.queue where queue_name = i_queue_name;
    if not (q.queue_disable_insert and q.queue_external_ticker) then
        raise exception using errcode = 'object_not_in_prerequisite_state', message = 'steps in wrong order',
            detail = format('Queue %s is open for writers.', i_queue_name),
            hint = 'Do step 1 first, and commit it.';
    end if;

    if i_step = 2 then
        perform pgcascade.lock_ticker(q.queue_id);
        execute format('lock table %s in share mode', q.queue_data_pfx);
        -- Only now the snapshot: it is taken by the statement in write_tick().
        last_tick := nextval(q.queue_tick_seq);
        perform pgcascade.write_tick(q.queue_id, last_tick, clock_timestamp(), pgq.seq_getval(q.queue_event_seq));
        select 200, 'Step 2: Inserted last tick: ' || i_queue_name into ret_code, ret_note;
        return;
    end if;

    select * into last from pgq.tick where tick_queue = q.queue_id order by tick_id desc limit 1;
    if pgcascade.has_writers(q.queue_data_pfx::regclass) or pgcascade.has_undelivered(q.queue_data_pfx, last.tick_snapshot) then
        raise exception using errcode = 'object_not_in_prerequisite_state', message = 'steps in wrong order',
            detail = format('Queue %s has events after its last tick.', i_queue_name),
            hint = 'Do step 2 first, and commit it.';
    end if;
    last_tick := last.tick_id;
    update pgq_node.node_info set node_type = 'branch' where queue_name = i_queue_name;
    update pgq_node.local_state set provider_node = i_new_provider, last_tick_id = last_tick, uptodate = false
     where queue_name = i_queue_name and consumer_name = node.worker_name;
    select 200, 'Step 3: Demoted root to branch: ' || i_queue_name into ret_code, ret_note;
end
$$;

-- pgq_node.promote_branch(1)
--     This branch is the root now: open for writers, with ticks of its own. 200; 301 not a branch; 404 not a node.
--     Writes node_info, local_state, pgq.queue, node_epoch.
create function pgq_node.promote_branch(
    in i_queue_name text, out ret_code int4, out ret_note text
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    node pgq_node.node_info;
begin
    select * into node from pgq_node.node_info where queue_name = i_queue_name for update;
    if not found then
        select 404, 'Node not initialized for queue: ' || coalesce(i_queue_name, 'NULL') into ret_code, ret_note;
        return;
    elsif node.node_type <> 'branch' then
        select 301, 'Node not branch' into ret_code, ret_note;
        return;
    end if;
    update pgq_node.node_info set node_type = 'root' where queue_name = i_queue_name;
    perform pgcascade.renew_gate_standbys(i_queue_name);
    update pgq_node.local_state set provider_node = node.node_name, uptodate = false
     where queue_name = i_queue_name and consumer_name = node.worker_name;
    update pgq.queue set queue_disable_insert = false, queue_external_ticker = false where queue_name = i_queue_name;
    perform pgcascade.note_server(i_queue_name);
    select 200, 'Branch node promoted to root' into ret_code, ret_note;
end
$$;

comment on function pgq_node.demote_root(text, integer, text) is 'make this root a branch, in steps 1 to 3';
comment on function pgq_node.promote_branch(text) is 'make this branch the root';
