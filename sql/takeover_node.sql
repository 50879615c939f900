-- What a node does in a takeover when it is asked: promise, close, open again, learn of a new epoch, follow its root.
-- The order of locks is that of pgq_node.demote_root(): node, ticker, control row, event table.

-- pgcascade.promise_epoch(4)
--     Promise an epoch to a takeover.
--     i_kind   planned: the node works on as before, and refuses if it is promised to anybody.
--              dead: it takes no more ticks from its provider, and an older promise does not count any more: who had it is
--              told so at its next step.
--     Returns the epoch that the node is in and its last tick; with dead it will have no other until it is told whom to follow.
--     Errors: not a node; promised to another takeover, or in that epoch (55006); this one was given up (55006); an open root with dead.
--     Writes node_promise. Waits for a tick that is on its way, with dead.
create function pgcascade.promise_epoch(
    in i_queue_name text, in i_op uuid, in i_epoch bigint, in i_kind text,
    out in_epoch bigint, out last_tick bigint
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    me record;
    q pgq.queue;
begin
    select * into me from pgcascade.lock_node(i_queue_name);
    select * into q from pgq.queue where queue_name = i_queue_name;
    if i_op is null or i_epoch is null or i_kind is null or i_kind not in ('planned', 'dead') then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('%s, %s, %s is no promise', coalesce(i_op::text, 'NULL'), coalesce(i_epoch::text, 'NULL'),
                             coalesce(i_kind, 'NULL')),
            hint = 'It takes a takeover, an epoch, and planned or dead.';
    elsif (me.promise).op_id = i_op and (me.promise).epoch = i_epoch then
        null;
    elsif exists (select from pgcascade.node_release r where r.queue_name = i_queue_name and r.op_id = i_op) then
        raise exception using errcode = 'object_in_use',
            message = format('node "%s" of queue "%s" cannot promise epoch %s to takeover %s, which was given up', (me.node).node_name,
                             i_queue_name, i_epoch, i_op),
            hint = 'Nothing is to be done for it; consumer status shows which node is root.';
    elsif i_epoch <= greatest((me.known).epoch, (me.promise).epoch) or i_kind = 'planned' and (me.promise).op_id is not null
    then
        raise exception using errcode = 'object_in_use',
            message = format('node "%s" of queue "%s" cannot promise epoch %s to takeover %s: it %s', (me.node).node_name,
                             i_queue_name, i_epoch, i_op,
                             case when (me.promise).op_id is null then format('is in epoch %s', (me.known).epoch)
                                  else format('has promised epoch %s to takeover %s', (me.promise).epoch,
                                              (me.promise).op_id) end),
            hint = 'Another takeover came between. Finish or abort that one first; consumer takeover --plan shows where it is.';
    elsif i_kind = 'dead' and (me.node).node_type = 'root' and not q.queue_disable_insert then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('node "%s" is root of queue "%s" and open for writers', (me.node).node_name, i_queue_name),
            hint = 'It is not dead. Use a planned takeover: consumer takeover NEW --from OLD.';
    else
        if i_kind = 'dead' and q.queue_id is not null then
            -- A batch that is being stored has the lock from its tick to its commit; the next one finds us frozen.
            perform pgcascade.lock_ticker(q.queue_id);
        end if;
        insert into pgcascade.node_promise (queue_name, op_id, epoch, frozen)
        values (i_queue_name, i_op, i_epoch, i_kind = 'dead');
    end if;
    in_epoch := (me.known).epoch;
    last_tick := pgcascade.node_tick(i_queue_name);
end
$$;

-- pgcascade.release_promise(2)
--     The end of a takeover that was aborted: this node owes it nothing any more. With no promise left, a root that was
--     closed for that opens again, unless it has learned of another root since. What that takeover asked before, and comes later, is
--     refused. Called after the journal says aborted. Returns whether there was a promise.
--     Errors: the new epoch was confirmed here, so the takeover can only be finished.
--     Writes node_promise, node_release, node_epoch, pgq.queue.
create function pgcascade.release_promise(i_queue_name text, i_op uuid) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    me record;
begin
    select * into me from pgcascade.lock_node(i_queue_name);
    if exists (select from pgcascade.epoch_history h where h.queue_name = i_queue_name and h.op_id = i_op) then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('node "%s" of queue "%s" knows the epoch of takeover %s, which cannot be aborted any more',
                             (me.node).node_name, i_queue_name, i_op),
            hint = 'Finish it: consumer takeover --resume.';
    end if;
    insert into pgcascade.node_release (queue_name, op_id) values (i_queue_name, i_op) on conflict do nothing;
    delete from pgcascade.node_promise p where p.queue_name = i_queue_name and p.op_id = i_op;
    if not found then
        return false;
    end if;
    if (me.known).fence_op is not null
       and not exists (select from pgcascade.node_promise p where p.queue_name = i_queue_name)
    then
        update pgq.queue set queue_disable_insert = false, queue_external_ticker = false where queue_name = i_queue_name;
        update pgcascade.node_epoch set fence_op = null, closing_tick = null, fence_reason = null
         where queue_name = i_queue_name;
    end if;
    return true;
end
$$;

-- pgcascade.close_root(3)
--     Close a root, which the caller has locked, for writers and for its own ticker until this transaction ends and, if it commits,
--     for good: writers have ended, and none comes.
--     i_wait_ms   how long writers that are not finished are waited for, prepared transactions included; meanwhile new
--                 ones wait too
--     Errors: a writer does not end in time (55P03); not READ COMMITTED. Writes pgq.queue.
create function pgcascade.close_root(i_queue pgq.queue, i_node_name text, i_wait_ms integer) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    writers text;
begin
    begin
        perform set_config('lock_timeout', greatest(i_wait_ms, 1)::text, true);
        perform pgcascade.lock_ticker(i_queue.queue_id);
        update pgq.queue set queue_disable_insert = true, queue_external_ticker = true where queue_id = i_queue.queue_id;
        execute format('lock table %s in share mode', i_queue.queue_data_pfx);
    exception when lock_not_available then
        select string_agg(case when l.pid is null then 'a prepared transaction' else 'process ' || l.pid end, ', ' order by l.pid)
          into writers
          from pg_locks l
         where l.locktype = 'relation' and l.granted and l.mode = 'RowExclusiveLock'
           and l.relation = i_queue.queue_data_pfx::regclass
           and l.database = (select d.oid from pg_database d where d.datname = current_database());
        raise exception using errcode = 'lock_not_available',
            message = format('root "%s" of queue "%s" was not closed: transactions that write to it did not end within %s ms',
                             i_node_name, i_queue.queue_name, i_wait_ms),
            detail = 'They are: ' || coalesce(writers, 'gone by now') || '.',
            hint = 'Nothing was changed. End them (pg_stat_activity, pg_prepared_xacts) or wait longer, and repeat.';
    end;
end
$$;

-- pgcascade.fence_root(3)
--     Close this root for writers and make its last tick, in this transaction: whoever writes waits until it ends, and is refused
--     if it commits, whatever the isolation level (docs/concurrency.md). Nothing that was committed is after the tick.
--     i_wait_ms   how long writers that are not finished are waited for, prepared transactions included; meanwhile new
--                 ones wait too
--     Returns the closing tick and where the sequence of event ids stands; done again, the same.
--     Errors: not the root; not promised to this takeover (55006); closed by somebody else; a writer does not
--     end in time (55P03), nothing is changed then; not READ COMMITTED.
--     Writes pgq.queue, pgq.tick, node_epoch.
create function pgcascade.fence_root(
    in i_queue_name text, in i_op uuid, in i_wait_ms integer, out closing_tick bigint, out last_event bigint
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    me record;
    q pgq.queue;
begin
    select * into me from pgcascade.lock_node(i_queue_name);
    select * into q from pgq.queue where queue_name = i_queue_name;
    if (me.promise).op_id is distinct from i_op then
        raise exception using errcode = 'object_in_use',
            message = format('root "%s" of queue "%s" is not promised to takeover %s', (me.node).node_name, i_queue_name,
                             coalesce(i_op::text, 'NULL')),
            hint = 'It was aborted, or another takeover came between; consumer takeover --plan shows which.';
    elsif (me.known).fence_op = i_op then
        closing_tick := (me.known).closing_tick;
        last_event := pgq.seq_getval(q.queue_event_seq);
        return;
    elsif (me.node).node_type <> 'root' then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('node "%s" of queue "%s" is not the root', (me.node).node_name, i_queue_name),
            hint = 'consumer status shows which node is.';
    elsif q.queue_disable_insert or q.queue_external_ticker then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('root "%s" of queue "%s" is closed already', (me.node).node_name, i_queue_name),
            hint = 'It was closed by hand, or by pgq_node.demote_root(). If that is over, open it: update pgq.queue set '
                   'queue_disable_insert = false, queue_external_ticker = false.';
    end if;

    perform pgcascade.close_root(q, (me.node).node_name, i_wait_ms);
    -- Only now the snapshot: it is taken by the statement in write_tick().
    closing_tick := nextval(q.queue_tick_seq);
    last_event := pgq.seq_getval(q.queue_event_seq);
    perform pgcascade.write_tick(q.queue_id, closing_tick, clock_timestamp(), last_event);
    update pgcascade.node_epoch e
       set fence_op = i_op, closing_tick = fence_root.closing_tick, fence_reason = format('takeover %s', i_op)
     where e.queue_name = i_queue_name;
end
$$;

-- pgcascade.learn_epochs(2)
--     Take over what another node knows of epochs: i_history is its pgcascade.epoch_history of this queue as a JSON array.
--     Returns the epoch that this node is in then.
--     An open root that learns of a newer one closes itself at once, whoever tells it: what it wrote since stays where it is. One that
--     was closed for another takeover stays closed, whatever becomes of that.
--     Errors: not a node; two epochs of one number; this node, if it is not such a root, has a tick that none of the epochs
--     has, so its history went another way.
--     Writes epoch_history, node_epoch, node_promise, node_release; pgq.queue of such a root.
create function pgcascade.learn_epochs(i_queue_name text, i_history jsonb) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    me record;
    h pgcascade.epoch_history;
    newest pgcascade.epoch_history;
    refuted pgcascade.epoch_history;
    top bigint;
    was_open boolean;
begin
    select * into me from pgcascade.lock_node(i_queue_name);
    top := pgcascade.node_tick(i_queue_name);
    for h in select * from jsonb_populate_recordset(null::pgcascade.epoch_history, i_history) order by epoch loop
        insert into pgcascade.epoch_history
        values (i_queue_name, h.epoch, h.start_tick, h.first_tick, h.root_node, h.system_id, h.timeline, h.op_id, h.began)
            on conflict (queue_name, epoch) do nothing;
        if not exists (select from pgcascade.epoch_history k
                        where k.queue_name = i_queue_name and k.epoch = h.epoch and k.op_id = h.op_id) then
            raise exception using errcode = 'object_not_in_prerequisite_state',
                message = format('epoch %s of queue "%s" began twice: node "%s" knows another root than "%s"', h.epoch,
                                 i_queue_name, (me.node).node_name, h.root_node),
                hint = 'They belong to different cascades, or a node was restored from an older copy. Make this node anew.';
        elsif top > h.start_tick and top < h.first_tick then
            refuted := h;
        end if;
        newest := h;
    end loop;
    if newest.epoch > (me.known).epoch then
        select (me.node).node_type = 'root' and not q.queue_disable_insert into was_open
          from pgq.queue q where q.queue_name = i_queue_name;
        if was_open then
            update pgq.queue set queue_disable_insert = true, queue_external_ticker = true where queue_name = i_queue_name;
            refuted := null;
        end if;
        if was_open or (me.known).fence_op <> newest.op_id then
            update pgcascade.node_epoch e
               set fence_op = null, closing_tick = null,
                   fence_reason = format('epoch %s has root "%s"', newest.epoch, newest.root_node)
             where e.queue_name = i_queue_name;
        end if;
        update pgcascade.node_epoch e set epoch = newest.epoch where e.queue_name = i_queue_name;
        delete from pgcascade.node_promise p where p.queue_name = i_queue_name and p.epoch < newest.epoch;
        delete from pgcascade.node_release r where r.queue_name = i_queue_name;
    end if;
    if refuted.epoch is not null then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('node "%s" of queue "%s" has tick %s, which epoch %s does not have: it began after tick %s',
                             (me.node).node_name, i_queue_name, top, refuted.epoch, refuted.start_tick),
            hint = 'The node has changes of a root that had lost its role. docs/takeover.md says how it joins again.';
    end if;
    return greatest(newest.epoch, (me.known).epoch);
end
$$;

-- pgcascade.confirm_epoch(3)
--     Confirm the epoch that a takeover began: this node has every tick before it, and will never go back. Only after
--     that does the new root open. Returns the epoch.
--     Errors: not promised to this takeover (55006); the node has not come as far as the end of the epoch before; those of
--     learn_epochs(). Writes epoch_history, node_epoch, node_promise.
create function pgcascade.confirm_epoch(i_queue_name text, i_op uuid, i_history jsonb) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    me record;
    begun pgcascade.epoch_history;
    top bigint;
begin
    select * into me from pgcascade.lock_node(i_queue_name);
    select * into begun from jsonb_populate_recordset(null::pgcascade.epoch_history, i_history) h where h.op_id = i_op;
    if begun.epoch is null
       or (me.promise).op_id is not null
          and ((me.promise).op_id, (me.promise).epoch) is distinct from (i_op, begun.epoch)
       -- A node that follows the new root already is not promised to anybody.
       or (me.promise).op_id is null
          and not exists (select from pgcascade.epoch_history h
                           where h.queue_name = i_queue_name and h.op_id = i_op and h.epoch = (me.known).epoch)
    then
        raise exception using errcode = 'object_in_use',
            message = format('node "%s" of queue "%s" is not promised to takeover %s', (me.node).node_name, i_queue_name,
                             coalesce(i_op::text, 'NULL')),
            hint = 'It was aborted, or another takeover came between; consumer takeover --plan shows which.';
    end if;
    top := pgcascade.node_tick(i_queue_name);
    if coalesce(top < begun.start_tick, true) then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('node "%s" of queue "%s" cannot confirm epoch %s: it has tick %s, and needs tick %s',
                             (me.node).node_name, i_queue_name, begun.epoch, coalesce(top::text, 'NULL'), begun.start_tick),
            hint = 'Repeat it when its replay has come that far.';
    end if;
    return pgcascade.learn_epochs(i_queue_name, i_history);
end
$$;

-- pgcascade.follow_root(4)
--     Begin to follow the root of a new epoch: learn its history, read from i_provider, be a branch if this was the root.
--     What was promised to the takeover is kept thereby, and the node takes ticks again.
--     i_op   the takeover that asks
--     Returns the node's last tick, where it goes on. Done again, it changes nothing.
--     Errors: unknown provider; an open root, or one with events after its last tick; promised to another takeover
--     (55006); those of learn_epochs(). Writes node_epoch, node_promise, epoch_history, node_info, local_state, takeover.
create function pgcascade.follow_root(i_queue_name text, i_op uuid, i_history jsonb, i_provider text) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    me record;
    q pgq.queue;
    last pgq.tick;
    learned bigint;
    top bigint;
begin
    select * into me from pgcascade.lock_node(i_queue_name);
    if not exists (select from pgq_node.node_location l
                    where l.queue_name = i_queue_name and l.node_name = i_provider
                      and l.node_name <> (me.node).node_name) then
        raise exception using errcode = 'undefined_object',
            message = format('node "%s" of queue "%s" knows no other node %s', (me.node).node_name, i_queue_name,
                             coalesce(quote_literal(i_provider), 'NULL')),
            hint = 'Make it known with pgq_node.register_location().';
    elsif (me.promise).op_id <> i_op then
        raise exception using errcode = 'object_in_use',
            message = format('node "%s" of queue "%s" is promised to takeover %s, not to %s', (me.node).node_name,
                             i_queue_name, (me.promise).op_id, i_op),
            hint = 'Another takeover came between; consumer takeover --plan shows where it is.';
    end if;
    learned := pgcascade.learn_epochs(i_queue_name, i_history);
    if learned < (me.promise).epoch
       or not exists (select from pgcascade.epoch_history h
                       where h.queue_name = i_queue_name and h.epoch = learned and h.op_id = i_op) then
        raise exception using errcode = 'object_in_use',
            message = format('node "%s" of queue "%s" does not follow takeover %s: it has learned or promised a newer epoch',
                             (me.node).node_name, i_queue_name, i_op),
            hint = 'Another takeover came between; consumer takeover --plan shows where it is.';
    end if;
    top := pgcascade.node_tick(i_queue_name);
    if (me.node).node_type = 'root' then
        select * into q from pgq.queue where queue_name = i_queue_name;
        select * into last from pgq.tick where tick_queue = q.queue_id order by tick_id desc limit 1;
        if not (q.queue_disable_insert and q.queue_external_ticker)
           or pgcascade.has_writers(q.queue_data_pfx::regclass)
           or pgcascade.has_undelivered(q.queue_data_pfx, last.tick_snapshot)
        then
            raise exception using errcode = 'object_not_in_prerequisite_state',
                message = format('root "%s" of queue "%s" is open, or has events after its last tick', (me.node).node_name,
                                 i_queue_name),
                hint = 'Close it first: pgcascade.fence_root() or, after a loss, as docs/takeover.md says.';
        end if;
        update pgq_node.node_info set node_type = 'branch' where queue_name = i_queue_name;
        update pgq_node.local_state set last_tick_id = top
         where queue_name = i_queue_name and consumer_name = (me.node).worker_name;
    end if;
    update pgq_node.local_state l set provider_node = i_provider, uptodate = false
     where l.queue_name = i_queue_name and l.consumer_name = (me.node).worker_name and l.provider_node <> i_provider;
    delete from pgcascade.node_promise p where p.queue_name = i_queue_name;
    update pgcascade.node_epoch set fence_op = null, closing_tick = null, fence_reason = null
     where queue_name = i_queue_name;
    -- A takeover that should have made this node root, and did not get as far as to open it.
    update pgcascade.takeover t
       set step = 'aborted', error = format('superseded by takeover %s', i_op), updated_at = clock_timestamp()
     where t.queue_name = i_queue_name and t.op_id <> i_op and t.step not in ('done', 'aborted')
       and t.epoch_new <= learned;
    return top;
end
$$;

comment on function pgcascade.promise_epoch(text, uuid, bigint, text) is 'promise an epoch to a takeover';
comment on function pgcascade.release_promise(text, uuid) is 'forget the promise to a takeover that was aborted, and open again';
comment on function pgcascade.close_root(pgq.queue, text, integer) is 'close a root for writers, and wait until they have ended';
comment on function pgcascade.fence_root(text, uuid, integer) is 'close this root for writers with a last tick, for a takeover';
comment on function pgcascade.learn_epochs(text, jsonb) is 'take over what another node knows of epochs';
comment on function pgcascade.confirm_epoch(text, uuid, jsonb) is 'confirm the epoch that a takeover began';
comment on function pgcascade.follow_root(text, uuid, jsonb, text) is 'follow the root of a new epoch';
