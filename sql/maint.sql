-- Maintenance: rotating event tables, and the list of what is to be done now.
--
-- The event tables of a queue are written in turn; the oldest is truncated before it is written again. Called by the
-- background worker, or from outside: each row of maint_operations() is a call to make in a transaction of its own.

-- pgq.maint_operations()
--     What is to be done now: function and argument (null: none), in that order. "vacuum" is a command, not a function.
--     Assigns no transaction id.
create function pgq.maint_operations(out func_name text, out func_arg text) returns setof record
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select 'pgq.maint_rotate_tables_step1', q.queue_name
      from pgq.queue q
     where q.queue_switch_step2 is not null
       and q.queue_switch_time + q.queue_rotation_period < now()
     order by q.queue_name;

    if found or exists (select from pgq.queue where queue_switch_step2 is null) then
        func_name := 'pgq.maint_rotate_tables_step2';
        return next;
    end if;

    return query
    select e.func, q.queue_name
      from pgq.queue q cross join unnest(q.queue_extra_maint) with ordinality e (func, position)
     order by q.queue_name, e.position;

    return query
    select 'vacuum', v.v from pgq.maint_tables_to_vacuum() v;
end
$$;

-- pgq.maint_rotate_tables_step1(1)
--     Truncate the next event table of a queue and make it the current one, if the rotation period is over and no
--     consumer needs what is in it. Returns 0 always; also when there is nothing to do, or when somebody is in the way:
--     it is tried again in the next round of maintenance.
--     Errors: a consumer stands at a tick that does not exist; transaction ids went backwards; not READ COMMITTED.
--     Locks pgq.queue against other rotations, the queue's row against new consumers, the table to truncate against
--     everybody, without waiting for anybody who writes or reads events. Writes pgq.queue, pgq.tick.
create function pgq.maint_rotate_tables_step1(i_queue_name text) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    q pgq.queue;
    next_nr integer;
    next_table text;
    lost bigint;
    needed bigint;
    newest bigint;
begin
    if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
        raise exception using errcode = 'active_sql_transaction',
            message = format('tables cannot be rotated in a %s transaction', current_setting('transaction_isolation')),
            hint = 'Its snapshot may not show what consumers need. Use READ COMMITTED.';
    end if;

    -- Before anything else: writers cache the control row, and are told of a change after it is committed but before
    -- its locks are released. Only a lock on the table orders step2 after that message.
    lock table pgq.queue in share update exclusive mode;

    select * into q from pgq.queue
     where queue_name = i_queue_name
       and queue_switch_step2 is not null
       and queue_switch_time + queue_rotation_period < now()
       for no key update skip locked;
    if not found then
        return 0;
    end if;
    if txid_current() < q.queue_switch_step1 then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('queue %s maint failure: step1=%s, current=%s',
                             i_queue_name, q.queue_switch_step1, txid_current()),
            hint = 'The queue comes from another cluster or from its future. Create it anew, or move this cluster''s '
                   'next transaction id beyond the old one with pg_resetwal -x and -e.';
    end if;

    -- Everything older than this transaction id is in a finished batch of every consumer. Null: no consumers.
    select min(txid_snapshot_xmin(t.tick_snapshot)), min(s.sub_last_tick) filter (where t.tick_id is null)
      into needed, lost
      from pgq.subscription s
      left join pgq.tick t on t.tick_queue = s.sub_queue and t.tick_id = s.sub_last_tick
     where s.sub_queue = q.queue_id and s.sub_last_tick is not null;
    if lost is not null then
        raise exception using errcode = 'data_corrupted',
            message = format('queue %s maint failure: tick %s not found', i_queue_name, lost),
            hint = 'A consumer in pgq.get_consumer_info() stands at that tick. Move it with pgq.register_consumer_at() '
                   'or unregister it; until then the queue grows.';
    end if;
    if needed <= q.queue_switch_step2 then
        return 0;
    end if;

    next_nr := (q.queue_cur_table + 1) % q.queue_ntables;
    next_table := q.queue_data_pfx || '_' || next_nr;
    begin
        execute format('lock table %s in access exclusive mode nowait', next_table);
    exception when lock_not_available then
        return 0;
    end;

    -- Under that lock nobody has uncommitted events in the table, so this is the last word. It is not made superfluous
    -- by the comparison with step2: a transaction may have written here with a control row read before that rotation.
    execute format('select max(ev_txid) from %s', next_table) into newest;
    if newest >= needed then
        return 0;
    end if;
    execute 'truncate ' || next_table;

    update pgq.queue
       set queue_cur_table = next_nr, queue_switch_time = now(),
           queue_switch_step1 = txid_current(), queue_switch_step2 = null
     where queue_id = q.queue_id;

    -- Ticks whose following batches are not complete any more. Consumers can go back to those that stay: at least one
    -- rotation period. The last tick always stays, it is where new consumers begin.
    delete from pgq.tick
     where tick_queue = q.queue_id
       and (txid_snapshot_xmin(tick_snapshot) < q.queue_switch_step2 or txid_snapshot_xmin(tick_snapshot) <= newest)
       and tick_id < (select max(t.tick_id) from pgq.tick t where t.tick_queue = q.queue_id);
    return 0;
end
$$;

-- pgq.maint_rotate_tables_step2()
--     Note that rotations done by step1 are visible to every transaction that begins from now on. Returns 0.
--     Must run in a later transaction than step1; a rotation that is not older than this transaction waits.
--     Writes pgq.queue; assigns no transaction id when there is nothing to note.
create function pgq.maint_rotate_tables_step2() returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    lock table pgq.queue in share update exclusive mode;
    if exists (select from pgq.queue where queue_switch_step2 is null) then
        update pgq.queue
           set queue_switch_step2 = txid_current()
         where queue_switch_step2 is null and queue_switch_step1 < txid_current();
    end if;
    return 0;
end
$$;

-- pgq.maint_tables_to_vacuum()
--     Tables that change often and must be vacuumed from outside because autovacuum is off. None when it is on.
create function pgq.maint_tables_to_vacuum() returns setof text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    if current_setting('autovacuum') = 'on' and current_setting('track_counts') = 'on' then
        return;
    end if;
    return query
    values ('pgq.subscription'), ('pgq.consumer'), ('pgq.queue'), ('pgq.tick'), ('pgq.retry_queue');
end
$$;

comment on function pgq.maint_operations() is 'maintenance to be done now: functions and their argument';
comment on function pgq.maint_rotate_tables_step1(text) is 'rotate the event tables of a queue if it is time and nobody needs the oldest';
comment on function pgq.maint_rotate_tables_step2() is 'note that rotations are visible; in a later transaction than step1';
comment on function pgq.maint_tables_to_vacuum() is 'tables to vacuum from outside while autovacuum is off';
