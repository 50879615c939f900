-- The journal of a takeover, on the node that becomes root, and the steps that are taken there.
--
-- A step that is taken on another node is entered here after it was taken (takeover_advance); those taken here are entered
-- in the same transaction. Who goes on with a takeover holds it: another run of the command that resumes it
-- takes it away, and the one before is told so at its next step.

-- pgcascade.takeover_begin(8)
--     Enter a takeover that makes this node root, and promise its epoch here.
--     i_kind        planned or dead; standby, where this node is a promoted standby of the root that it replaces
--     i_epoch       the lowest epoch it may have: one more than any that was seen or promised on the other nodes
--     i_holder      the run of the command
--     i_confirms    how many other nodes have to confirm; 0 only with i_fenced_by, how the operator made sure that the
--                   old root is off
--     i_lost        nodes that it does without: they are marked as dead until it is aborted
--     Returns the takeover and its epoch.
--     Errors: not a branch, or no promoted standby; planned, and a copy whose adoption is not complete; one that the cascade went on
--     without (check_adoption()); a takeover is under way here, or this node is promised to one (55006); nobody would confirm.
--     Writes takeover, node_promise, node_location.
create function pgcascade.takeover_begin(
    in i_queue_name text, in i_kind text, in i_old_node text, in i_epoch bigint, in i_holder text,
    in i_confirms integer, in i_fenced_by text, in i_lost text[] default '{}', out op_id uuid, out epoch_new bigint
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    me record;
    live pgcascade.takeover;
begin
    if i_kind = 'standby' then
        perform pgcascade.notice_promotion();
    end if;
    select * into me from pgcascade.lock_node(i_queue_name);
    select * into live from pgcascade.takeover t where t.queue_name = i_queue_name and t.step not in ('done', 'aborted');
    if found then
        raise exception using errcode = 'object_in_use',
            message = format('takeover %s of queue "%s" to node "%s" is under way: %s since %s', live.op_id, i_queue_name,
                             live.new_node, live.step, live.updated_at),
            hint = 'Finish it with consumer takeover --resume, or give it up with --abort.';
    elsif i_kind = 'planned' and exists (select from pgcascade.adoption a where a.queue_name = i_queue_name) then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('node "%s" of queue "%s" was adopted as a copy of the root, and has not got all yet that it was made with',
                             (me.node).node_name, i_queue_name),
            hint = 'Let its replay go on: the root gives it what it lacks. Or choose another branch.';
    elsif i_kind = 'standby' then
        if (me.node).node_type <> 'root' or (me.known).fence_reason not like 'promoted outside takeover%' is not false then
            raise exception using errcode = 'object_not_in_prerequisite_state',
                message = format('node "%s" of queue "%s" is no root that was closed because of a promotion',
                                 (me.node).node_name, i_queue_name),
                hint = 'pgcascade.node_state shows what it is, and why it is closed.';
        end if;
    elsif (me.node).node_type <> 'branch' then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('node "%s" of queue "%s" is a %s and cannot become root', (me.node).node_name, i_queue_name,
                             (me.node).node_type),
            hint = 'Only a branch has the queue that a root needs.';
    end if;
    perform pgcascade.check_adoption(i_queue_name);
    if i_kind = 'planned' and coalesce(i_confirms, 0) < 1 or coalesce(i_confirms, 0) < 1 and i_fenced_by is null then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('a takeover of queue "%s" that no other node has to confirm needs the operator''s word',
                             i_queue_name),
            hint = 'Say how the old root was made sure to be off: consumer takeover NEW --dead OLD --fenced-by "power off".';
    end if;
    op_id := gen_random_uuid();
    epoch_new := greatest(i_epoch, (me.known).epoch + 1, (me.promise).epoch + 1);
    perform pgcascade.promise_epoch(i_queue_name, op_id, epoch_new, case i_kind when 'standby' then 'dead' else i_kind end);
    with marked as (
        update pgq_node.node_location l set dead = true
         where l.queue_name = i_queue_name and l.node_name = any (i_lost) and not l.dead
        returning l.node_name)
    insert into pgcascade.takeover (op_id, queue_name, kind, old_node, new_node, epoch_new, step, confirms, fenced_by, holder, lost)
    select takeover_begin.op_id, i_queue_name, i_kind, i_old_node, (me.node).node_name, takeover_begin.epoch_new, 'prepared',
           i_confirms, i_fenced_by, i_holder, array(select m.node_name from marked m order by 1);
end
$$;

-- pgcascade.check_adoption(1)
--     Refuses an adopted copy of a root that the cascade went on without: what only it has cannot be in a later epoch.
create function pgcascade.check_adoption(i_queue_name text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    h constant pgcascade.epoch_history := pgcascade.adoption_end(i_queue_name);
begin
    if h.epoch is not null then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('queue "%s" has a copy of the root here that was adopted, and epoch %s began after tick %s without all that the '
                             'copy was made with', i_queue_name, h.epoch, h.start_tick),
            hint = 'Choose another branch; behind that one its replay saves what only it has, and copies the tables concerned.';
    end if;
end
$$;

-- pgcascade.takeover_claim(2)
--     Take a takeover over from whoever holds it, in order to resume or to abort it. Whoever has confirmed an epoch that is not open yet is
--     asked again: meanwhile another root may have been made that did not know where this one is. Returns its row.
--     Errors: no such takeover. Writes takeover.
create function pgcascade.takeover_claim(i_op uuid, i_holder text) returns pgcascade.takeover
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    result pgcascade.takeover;
begin
    update pgcascade.takeover t
       set holder = i_holder, updated_at = clock_timestamp(), error = null,
           confirmed_by = case when array_position(pgcascade.takeover_steps(t.kind), t.step)
                                    < array_position(pgcascade.takeover_steps(t.kind), 'opened') then '{}'
                               else t.confirmed_by end
     where t.op_id = i_op
    returning * into result;
    if not found then
        raise exception using errcode = 'undefined_object',
            message = format('there is no takeover %s on this node', coalesce(i_op::text, 'NULL')),
            hint = 'pgcascade.takeover lists those that made, or should make, this database root.';
    end if;
    return result;
end
$$;

-- pgcascade.takeover_without_old(5)
--     The old root of a planned takeover is gone for good after this node was promoted, and before it was a branch: go on as if it had been dead
--     from the beginning. What is left is to be told to the others, and confirmed by one of them instead. Nothing is lost by that, as this
--     node has the closing tick.
--     i_confirms, i_fenced_by, i_lost   as for takeover_begin(); i_lost has the old root, too
--     Returns false if that was done, or if the old root is not needed any more.
--     Errors: those of takeover_at(); not promoted yet; nobody would confirm. Writes takeover, node_location.
create function pgcascade.takeover_without_old(
    i_op uuid, i_holder text, i_confirms integer, i_fenced_by text, i_lost text[]
) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    t pgcascade.takeover;
begin
    if (pgcascade.takeover_at(i_op, i_holder, 'promoted')).op_id is not null then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('takeover %s has not promoted its node yet, and cannot do without the old root', i_op),
            hint = 'Give it up with --abort, and begin one without the old root: consumer takeover NEW --dead OLD.';
    end if;
    select * into t from pgcascade.takeover k where k.op_id = i_op;
    if t.kind <> 'planned' or t.step not in ('promoted', 'opened') then
        return false;
    end if;
    if coalesce(i_confirms, 0) < 1 and i_fenced_by is null then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('a takeover of queue "%s" that no other node has to confirm needs the operator''s word', t.queue_name),
            hint = 'Say how the old root was made sure to be off: consumer takeover NEW --resume --dead OLD --fenced-by "power off".';
    end if;
    update pgq_node.node_location l set dead = true where l.queue_name = t.queue_name and l.node_name = any (i_lost);
    update pgcascade.takeover k
       set kind = 'dead', step = 'promoted', confirms = i_confirms, confirmed_by = '{}', fenced_by = i_fenced_by,
           updated_at = clock_timestamp(), error = null
     where k.op_id = i_op;
    return true;
end
$$;

-- pgcascade.takeover_at(3)
--     Lock a takeover, and its node, for its next step. Returns its row, or null if the step was taken. The step 'aborted' may
--     come after each one before 'promoted'.
--     Errors: no such takeover; it was aborted, or another run of the command holds it (55006); the step before was not taken.
create function pgcascade.takeover_at(i_op uuid, i_holder text, i_step text) returns pgcascade.takeover
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    t pgcascade.takeover;
    steps text[];
    done integer;
begin
    -- The node first, as everywhere.
    perform pgcascade.lock_node(k.queue_name) from pgcascade.takeover k where k.op_id = i_op;
    select * into t from pgcascade.takeover k where k.op_id = i_op for update;
    steps := pgcascade.takeover_steps(t.kind);
    done := array_position(steps, t.step);
    if t.op_id is null then
        raise exception using errcode = 'undefined_object',
            message = format('there is no takeover %s on this node', coalesce(i_op::text, 'NULL')),
            hint = 'pgcascade.takeover lists those that made, or should make, this database root.';
    elsif t.holder is distinct from i_holder then
        raise exception using errcode = 'object_in_use',
            message = format('takeover %s of queue "%s" was taken over by another run of the command (%s)', i_op, t.queue_name,
                             t.holder),
            hint = 'Leave it to that one; or take it back with consumer takeover --resume.';
    elsif t.step = i_step or array_position(steps, i_step) <= done then
        return null;
    elsif t.step = 'aborted' then
        raise exception using errcode = 'object_in_use',
            message = format('takeover %s of queue "%s" was aborted', i_op, t.queue_name),
            hint = 'Begin a new one.';
    elsif i_step = 'aborted' then
        if done >= array_position(steps, 'promoted') then
            raise exception using errcode = 'object_not_in_prerequisite_state',
                message = format('takeover %s of queue "%s" is %s and cannot be aborted any more', i_op, t.queue_name, t.step),
                hint = 'Finish it with consumer takeover --resume; then take over again in the other direction.';
        end if;
    elsif array_position(steps, i_step) is distinct from done + 1 then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('takeover %s of queue "%s" is %s and cannot become %s', i_op, t.queue_name, t.step,
                             coalesce(i_step, 'NULL')),
            hint = coalesce('Its next step is ' || steps[done + 1] || '.', 'It has no step left.');
    end if;
    return t;
end
$$;

-- pgcascade.takeover_advance(5)
--     Enter a step that was taken on other nodes. i_fork_tick and i_donor: what was found; null keeps what is known.
--     Returns false if it was entered already. Errors: those of takeover_at(); a step that is taken here.
--     Writes takeover.
create function pgcascade.takeover_advance(
    i_op uuid, i_holder text, i_step text, i_fork_tick bigint, i_donor text
) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    t pgcascade.takeover;
begin
    t := pgcascade.takeover_at(i_op, i_holder, i_step);
    if t.op_id is null then
        return false;
    elsif i_step in ('promoted', 'opened') then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('%s is not a step that can only be entered', i_step),
            hint = 'Use pgcascade.takeover_promote() or pgcascade.takeover_open().';
    end if;
    update pgcascade.takeover k
       set step = i_step, updated_at = clock_timestamp(), error = null,
           fork_tick = coalesce(i_fork_tick, k.fork_tick), donor = coalesce(i_donor, k.donor)
     where k.op_id = i_op;
    if i_step = 'done' then
        delete from pgcascade.takeover_tail a where a.op_id = i_op;
    end if;
    return true;
end
$$;

-- pgcascade.takeover_fetch(4)
--     Let this node, which has promised to take no ticks, fetch what it lacks from the donor, and no more than that.
--     i_history   what the donor knows of epochs
--     Errors: those of takeover_at() for the step 'caught-up'; not promised to this takeover any more (55006); the donor is
--     not known here; those of learn_epochs() and check_adoption(). Writes epoch_history, node_epoch, node_promise, local_state,
--     takeover.
create function pgcascade.takeover_fetch(i_op uuid, i_holder text, i_donor text, i_history jsonb) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    t pgcascade.takeover;
    code integer;
    note text;
begin
    t := pgcascade.takeover_at(i_op, i_holder, 'caught-up');
    if t.op_id is null then
        return;
    end if;
    perform pgcascade.check_promise(t);
    perform pgcascade.learn_epochs(t.queue_name, i_history);
    perform pgcascade.check_adoption(t.queue_name);
    if exists (select from pgq_node.node_info n where n.queue_name = t.queue_name and n.node_type = 'root') then
        perform pgcascade.takeover_set_aside(t);
    end if;
    update pgcascade.takeover k
       set read_from = coalesce(k.read_from, l.provider_node)
      from pgq_node.node_info n
      join pgq_node.local_state l on l.queue_name = n.queue_name and l.consumer_name = n.worker_name
     where k.op_id = i_op and n.queue_name = t.queue_name;
    select c.ret_code, c.ret_note into code, note
      from pgq_node.node_info n, pgq_node.change_consumer_provider(n.queue_name, n.worker_name, i_donor) c
     where n.queue_name = t.queue_name;
    if code >= 300 then
        raise exception using errcode = 'undefined_object', message = note,
            hint = 'Make it known with pgq_node.register_location().';
    end if;
    update pgcascade.node_promise p set fetch_upto = t.fork_tick where p.queue_name = t.queue_name and p.op_id = i_op;
end
$$;

-- pgcascade.check_promise(1)
--     Refuses (55006) if this node is not promised to the takeover any more. The caller has locked the node.
create function pgcascade.check_promise(i_takeover pgcascade.takeover) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    node pgcascade.node_state;
begin
    select * into node from pgcascade.node_state s where s.queue_name = i_takeover.queue_name;
    if (node.promised_op, node.promised_epoch) is distinct from (i_takeover.op_id, i_takeover.epoch_new) then
        raise exception using errcode = 'object_in_use',
            message = format('takeover %s of queue "%s" was superseded: node "%s" %s', i_takeover.op_id, i_takeover.queue_name,
                             i_takeover.new_node,
                             case when node.promised_op is null then format('follows epoch %s', node.epoch)
                                  else format('has promised epoch %s to takeover %s', node.promised_epoch,
                                              node.promised_op) end),
            hint = 'Nothing is to be done for it; consumer status shows which node is root.';
    end if;
end
$$;

-- pgcascade.takeover_promote(5)
--     Make this node the root of the new epoch, closed: this transaction is the change of root. Its first tick is made, a million
--     above all that was seen, and with it there are no events after the fork that any other root knows. Events that only this copy of the
--     root has, a promoted standby or an adopted branch, are in it.
--     i_fork_tick   the closing tick of the old root; null: the last tick that is here
--     i_max_tick, i_max_event   the highest ids seen on any node
--     Returns the history of epochs, which the other nodes have to learn; done again, the same.
--     Errors: those of takeover_at(); superseded (55006); the node does not stand at i_fork_tick; it has events after it;
--     not READ COMMITTED. Writes node_info, local_state, pgq.queue, pgq.tick, epoch_history, node_epoch, takeover, adoption.
create function pgcascade.takeover_promote(
    i_op uuid, i_holder text, i_fork_tick bigint, i_max_tick bigint, i_max_event bigint
) returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    margin constant bigint := 1000000;
    t pgcascade.takeover;
    q pgq.queue;
    last pgq.tick;
    tick bigint;
    event bigint;
    role text;
begin
    t := pgcascade.takeover_at(i_op, i_holder, 'promoted');
    if t.op_id is not null then
        perform pgcascade.check_promise(t);
        select * into q from pgq.queue where queue_name = t.queue_name;
        perform pgcascade.lock_ticker(q.queue_id);
        select * into last from pgq.tick where tick_queue = q.queue_id order by tick_id desc limit 1;
        select n.node_type into role from pgq_node.node_info n where n.queue_name = t.queue_name;
        if role is distinct from 'branch' and (t.kind, role) is distinct from ('standby', 'root')
           or last.tick_id is distinct from coalesce(i_fork_tick, last.tick_id)
           -- Retried events of consumers that read here are for them alone.
           or role = 'branch' and pgcascade.has_undelivered(q.queue_data_pfx, last.tick_snapshot, true)
        then
            raise exception using errcode = 'object_not_in_prerequisite_state',
                message = format('node "%s" of queue "%s" cannot become root after tick %s: it is a %s at tick %s', t.new_node,
                                 t.queue_name, i_fork_tick, role, last.tick_id),
                hint = 'It must be a branch that has every event up to that tick, and none after it.';
        end if;

        tick := setval(q.queue_tick_seq, margin + greatest(last.tick_id, pgq.seq_getval(q.queue_tick_seq), i_max_tick));
        event := setval(q.queue_event_seq,
                        margin + greatest(last.tick_event_seq, pgq.seq_getval(q.queue_event_seq), i_max_event));
        -- First the role: a branch that is promised away takes no ticks.
        update pgq_node.node_info set node_type = 'root' where queue_name = t.queue_name;
        perform pgcascade.renew_gate_standbys(t.queue_name);
        update pgcascade.takeover_tail l set op_id = t.op_id
          from pgcascade.adoption a where a.queue_name = t.queue_name and l.op_id = a.op_id;
        delete from pgcascade.adoption a where a.queue_name = t.queue_name;
        perform pgcascade.takeover_put_back(t);
        perform pgcascade.write_tick(q.queue_id, tick, clock_timestamp(), event);
        update pgq_node.local_state l set provider_node = t.new_node, last_tick_id = tick, uptodate = false
          from pgq_node.node_info n
         where l.queue_name = t.queue_name and n.queue_name = t.queue_name and l.consumer_name = n.worker_name;
        insert into pgcascade.epoch_history
        select t.queue_name, t.epoch_new, last.tick_id, tick, t.new_node, c.system_identifier::text,
               pgcascade.current_timeline(), t.op_id, clock_timestamp()
          from pg_control_system() c;
        update pgcascade.node_epoch e
           set epoch = t.epoch_new, system_id = h.system_id, timeline = h.timeline,
               fence_reason = format('takeover %s: not confirmed yet', t.op_id)
          from pgcascade.epoch_history h
         where e.queue_name = t.queue_name and h.queue_name = t.queue_name and h.epoch = t.epoch_new;
        update pgcascade.takeover k
           set step = 'promoted', fork_tick = last.tick_id, updated_at = clock_timestamp(), error = null
         where k.op_id = i_op;
    end if;
    return (select jsonb_agg(to_jsonb(h) order by h.epoch)
              from pgcascade.epoch_history h
              join pgcascade.takeover k on k.queue_name = h.queue_name
             where k.op_id = i_op);
end
$$;

-- pgcascade.takeover_confirmed(3)
--     Enter that another node has confirmed the new epoch (confirm_epoch() there). Errors: those of takeover_at(); not promoted
--     yet. Writes takeover.
create function pgcascade.takeover_confirmed(i_op uuid, i_holder text, i_node text) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if (pgcascade.takeover_at(i_op, i_holder, 'promoted')).op_id is not null then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('takeover %s has begun no epoch that node "%s" could have confirmed', i_op, i_node),
            hint = 'Promote first.';
    end if;
    update pgcascade.takeover t
       set confirmed_by = confirmed_by || i_node, updated_at = clock_timestamp()
     where t.op_id = i_op and i_node <> t.new_node and i_node <> all (t.confirmed_by);
end
$$;

-- pgcascade.takeover_open(2)
--     Let applications write to the new root. Returns false if that was done.
--     Errors: those of takeover_at(); superseded (55006); not enough nodes have confirmed.
--     Writes pgq.queue, node_epoch, node_promise, takeover.
create function pgcascade.takeover_open(i_op uuid, i_holder text) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    t pgcascade.takeover;
begin
    t := pgcascade.takeover_at(i_op, i_holder, 'opened');
    if t.op_id is null then
        return false;
    end if;
    -- It was, before the old root was lost (takeover_without_old()).
    if not exists (select from pgcascade.node_state s
                    where s.queue_name = t.queue_name and s.open and s.epoch = t.epoch_new and s.promised_op is null) then
        perform pgcascade.check_promise(t);
        if cardinality(t.confirmed_by) < t.confirms then
            raise exception using errcode = 'object_not_in_prerequisite_state',
                message = format('node "%s" does not open queue "%s": %s of %s nodes have confirmed epoch %s', t.new_node,
                                 t.queue_name, cardinality(t.confirmed_by), t.confirms, t.epoch_new),
                hint = 'Another root may have been made meanwhile. Resume the takeover when the other nodes can be reached.';
        end if;
    end if;
    update pgq.queue set queue_disable_insert = false, queue_external_ticker = false where queue_name = t.queue_name;
    delete from pgcascade.node_promise p where p.queue_name = t.queue_name;
    update pgcascade.node_epoch e set fence_reason = null where e.queue_name = t.queue_name;
    update pgcascade.takeover k set step = 'opened', updated_at = clock_timestamp(), error = null where k.op_id = i_op;
    return true;
end
$$;

-- pgcascade.takeover_abort(3)
--     Give a takeover up, before it promoted. From here on it cannot promote any more, so the other nodes may be released
--     (release_promise). This node reads from whom it read before it fetched; who was lost to it is not dead any more. Returns
--     false if it was aborted already.
--     Errors: no such takeover, or another run holds it (55006); it has promoted. Writes takeover, node_promise, local_state, node_location.
create function pgcascade.takeover_abort(i_op uuid, i_holder text, i_error text) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    t pgcascade.takeover;
begin
    t := pgcascade.takeover_at(i_op, i_holder, 'aborted');
    if t.op_id is null then
        return false;
    end if;
    if t.kind = 'standby' then
        perform pgcascade.takeover_restore(t);
    elsif t.read_from is not null then
        update pgq_node.local_state l set provider_node = t.read_from, uptodate = false
          from pgq_node.node_info n
         where n.queue_name = t.queue_name and l.queue_name = n.queue_name and l.consumer_name = n.worker_name
           and l.provider_node = t.donor;
    end if;
    update pgcascade.takeover k set step = 'aborted', error = i_error, updated_at = clock_timestamp() where k.op_id = i_op;
    update pgq_node.node_location l set dead = false where l.queue_name = t.queue_name and l.node_name = any (t.lost);
    perform pgcascade.release_promise(t.queue_name, i_op);
    return true;
end
$$;

-- pgcascade.takeover_failed(3)
--     Note why a takeover does not go on, for whoever looks at the journal. Does nothing if another run of the command
--     holds it. Writes takeover.
create function pgcascade.takeover_failed(i_op uuid, i_holder text, i_error text) returns void
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
    update pgcascade.takeover t set error = i_error, updated_at = clock_timestamp()
     where t.op_id = i_op and t.holder = i_holder and t.step not in ('done', 'aborted');
$$;

comment on function pgcascade.takeover_begin(text, text, text, bigint, text, integer, text, text[]) is
    'enter a takeover that makes this node root';
comment on function pgcascade.check_adoption(text) is 'refuse an adopted copy of a root that the cascade went on without';
comment on function pgcascade.takeover_claim(uuid, text) is 'take a takeover over in order to resume or to abort it';
comment on function pgcascade.takeover_without_old(uuid, text, integer, text, text[]) is
    'go on with a takeover whose old root was lost after the promotion';
comment on function pgcascade.takeover_at(uuid, text, text) is 'lock a takeover for its next step';
comment on function pgcascade.takeover_advance(uuid, text, text, bigint, text) is 'enter a step that was taken on other nodes';
comment on function pgcascade.takeover_fetch(uuid, text, text, jsonb) is 'let the new root fetch from the donor';
comment on function pgcascade.check_promise(pgcascade.takeover) is 'refuse a takeover that was superseded on its own node';
comment on function pgcascade.takeover_promote(uuid, text, bigint, bigint, bigint) is
    'make this node the root of a new epoch, closed for writers';
comment on function pgcascade.takeover_confirmed(uuid, text, text) is 'enter that another node has confirmed the new epoch';
comment on function pgcascade.takeover_open(uuid, text) is 'open the new root for writers, once enough nodes have confirmed it';
comment on function pgcascade.takeover_abort(uuid, text, text) is 'give a takeover up before it promoted';
comment on function pgcascade.takeover_failed(uuid, text, text) is 'note why a takeover does not go on';
