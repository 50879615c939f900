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
    select 'pgcascade.maint_queue_limit', q.queue_name
      from pgq.queue q
      join pgcascade.queue_config c on c.queue_id = q.queue_id
     where c.max_age is not null or c.max_bytes is not null
     order by q.queue_name;

    return query
    select 'pgq.maint_rotate_tables_step1', q.queue_name
      from pgq.queue q
     where pgcascade.rotation_due(q)
     order by q.queue_name;

    if found or exists (select from pgq.queue where queue_switch_step2 is null) then
        func_name := 'pgq.maint_rotate_tables_step2';
        return next;
    end if;

    return query
    select 'pgq_node.maint_watermark', n.queue_name
      from pgq_node.node_info n
     where n.node_type = 'root'
     order by n.queue_name;

    return query
    select e.func, q.queue_name
      from pgq.queue q cross join unnest(q.queue_extra_maint) with ordinality e (func, position)
     order by q.queue_name, e.position;

    if pgcascade.positions_bloated() then
        func_name := 'pgcascade.compact_positions';
        func_arg := null;
        return next;
    end if;

    return query
    select 'vacuum', v.v from pgq.maint_tables_to_vacuum() v;
end
$$;

-- pgq.maint_rotate_tables_step1(1)
--     Truncate the next event table of a queue and make it the current one, if it is time (pgcascade.rotation_due()) and no
--     consumer needs what is in it. Returns 0 always; also when there is nothing to do, or when somebody is in the way:
--     it is tried again in the next round of maintenance.
--     Errors: a consumer stands at a tick that does not exist; transaction ids went backwards; the queue comes from a dump
--     and is not mended yet; not READ COMMITTED.
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
            hint = 'Its snapshot may not show what consumers need. Use READ COMMITTED; for a daemon that begins no transaction '
                   'itself: ALTER ROLE name SET default_transaction_isolation = ''read committed''.';
    end if;

    -- Before anything else: writers cache the control row, and are told of a change after it is committed but before
    -- its locks are released. Only a lock on the table orders step2 after that message.
    lock table pgq.queue in share update exclusive mode;

    select * into q from pgq.queue
     where queue_name = i_queue_name
       and pgcascade.rotation_due(queue)
       for no key update skip locked;
    if not found then
        return 0;
    end if;
    perform pgcascade.check_restored(q.queue_id);
    if txid_current() < q.queue_switch_step1 then
        -- A transaction that had its id before the last rotation leaves the next one to others.
        if q.queue_switch_step1 < txid_snapshot_xmax(txid_current_snapshot()) then
            return 0;
        end if;
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
--     Must run in a later transaction than step1, and before that writes anything: an id that was assigned before step1 was
--     committed is below those of writers that do not know of it. Else the rotation waits for the next call.
--     Writes pgq.queue; assigns no transaction id when there is nothing to note.
create function pgq.maint_rotate_tables_step2() returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    lock table pgq.queue in share update exclusive mode;
    if txid_current_if_assigned() is null and exists (select from pgq.queue where queue_switch_step2 is null) then
        update pgq.queue
           set queue_switch_step2 = txid_current()
         where queue_switch_step2 is null and queue_switch_step1 < txid_current()
           -- One from a dump has transaction ids of elsewhere (restore.sql).
           and queue_id not in (select r.queue_id from pgcascade.restored_queue r);
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

-- pgcascade.rotation_blockers()
--     Who keeps queues from being rotated that are due for it: one row per queue and blocker.
--     blocker     consumer: it has not finished a tick that is young enough, and such a tick is there
--                 transaction: it was open at the last tick, so what it writes is still to come
--                 ticker: the last tick is too old, and no transaction is the cause; consumers wait for the next one
--                 lock: it reads or writes the table to be truncated
--     name        the consumer; or the process id of a session, or the global id of a prepared transaction; of a ticker null
--     since       when the consumer's tick was made (of one whose tick is lost: when it was last active); when the
--                 transaction began; when the last tick was made
--     bytes       what the queue's event tables hold meanwhile
create function pgcascade.rotation_blockers(
    out queue_name text, out blocker text, out name text, out since timestamptz, out bytes bigint
) returns setof record
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    with due as (
        select q.queue_id, q.queue_name, q.queue_switch_step2,
               to_regclass(q.queue_data_pfx || '_' || (q.queue_cur_table + 1) % q.queue_ntables) as next_table,
               pgcascade.event_bytes(q.queue_data_pfx) as bytes,
               last.tick_time as last_time, last.tick_snapshot as last_snapshot
          from pgq.queue q
          left join lateral (
                   select t.tick_time, t.tick_snapshot from pgq.tick t
                    where t.tick_queue = q.queue_id
                    order by t.tick_id desc limit 1) last on true
         where pgcascade.rotation_due(q)
    ), waiting as (
        -- A consumer that stands at a tick that is not there keeps rotation from going on as well: it is an error there.
        select d.*, c.co_name, coalesce(t.tick_time, s.sub_active) as since,
               t.tick_id is null or txid_snapshot_xmin(d.last_snapshot) > d.queue_switch_step2 as to_blame
          from due d
          join pgq.subscription s on s.sub_queue = d.queue_id and s.sub_last_tick is not null
          join pgq.consumer c on c.co_id = s.sub_consumer
          left join pgq.tick t on t.tick_queue = d.queue_id and t.tick_id = s.sub_last_tick
         where t.tick_id is null or txid_snapshot_xmin(t.tick_snapshot) <= d.queue_switch_step2
    ), held as (
        -- Consumers have no tick that would do: what is in progress in the last one has to end first.
        select d.* from due d
         where exists (select from waiting w where w.queue_id = d.queue_id and not w.to_blame)
    ), running as (
        -- Transaction ids in these views have 32 bits; those in progress are less than 2^31 apart.
        select a.backend_xid::text::bigint as xid, a.pid::text as name, a.xact_start as since
          from pg_stat_activity a where a.backend_xid is not null
        union all
        select p.transaction::text::bigint, p.gid, p.prepared
          from pg_prepared_xacts p
    ), open_then as (
        select h.queue_id, h.queue_name, r.name, r.since, h.bytes
          from held h
         cross join lateral txid_snapshot_xip(h.last_snapshot) x (xid)
          join running r on r.xid = x.xid & 4294967295
         where x.xid <= h.queue_switch_step2
    )
    select w.queue_name, 'consumer', w.co_name, w.since, w.bytes
      from waiting w
     where w.to_blame
    union all
    select o.queue_name, 'transaction', o.name, o.since, o.bytes
      from open_then o
    union all
    select h.queue_name, 'ticker', null, h.last_time, h.bytes
      from held h
     where not exists (select from open_then o where o.queue_id = h.queue_id)
    union
    select d.queue_name, 'lock', coalesce(l.pid::text, p.gid), coalesce(a.xact_start, p.prepared), d.bytes
      from due d
      join pg_locks l on l.relation = d.next_table and l.locktype = 'relation' and l.granted
                     and l.pid is distinct from pg_backend_pid()
                     and l.database = (select b.oid from pg_database b where b.datname = current_database())
      left join pg_stat_activity a on a.pid = l.pid
      left join pg_locks x on l.pid is null and x.pid is null and x.virtualtransaction = l.virtualtransaction
                          and x.locktype = 'transactionid' and x.mode = 'ExclusiveLock'
      left join pg_prepared_xacts p on p.transaction = x.transactionid
     order by 1, 2, 3;
end
$$;

comment on function pgcascade.rotation_blockers() is 'who keeps which queue from being rotated, since when, at what size';
comment on function pgq.maint_operations() is 'maintenance to be done now: functions and their argument';
comment on function pgq.maint_rotate_tables_step1(text) is 'rotate the event tables of a queue if it is time and nobody needs the oldest';
comment on function pgq.maint_rotate_tables_step2() is 'note that rotations are visible; in a later transaction than step1';
comment on function pgq.maint_tables_to_vacuum() is 'tables to vacuum from outside while autovacuum is off';
