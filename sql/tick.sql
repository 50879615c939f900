-- The ticker: recording snapshots. Called by the background worker, and by anybody else who is an administrator.
--
-- What batches rely on: every tick of a queue sees all that the tick before it saw. So the order is
--     1. the queue's ticker lock, held until the transaction ends, so that the tick before is committed;
--     2. the snapshot, in a new statement, so that it is younger than the tick before;
-- which needs READ COMMITTED: any other level would keep the snapshot of before the lock.

-- Why the background worker could not tick a queue: one row per queue that it ever failed to tick, of the last time. It counts
-- until the queue has a younger tick (stats.sql). Not saved by pg_dump.
create table pgcascade.tick_error (
    queue_id    integer     not null,
    failed_at   timestamptz not null,
    error       text        not null,

    constraint tick_error_pkey primary key (queue_id),
    constraint tick_error_queue_fkey foreign key (queue_id) references pgq.queue (queue_id) on delete cascade
);
comment on table pgcascade.tick_error is 'why the background worker could not tick a queue, the last time that it failed';

-- pgcascade.note_tick_error(2)
--     Note why a queue could not be ticked; nothing if there is no such queue any more. Called by the background worker, once for each cause.
--     Writes pgcascade.tick_error.
create function pgcascade.note_tick_error(i_queue_name text, i_error text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into pgcascade.tick_error as e (queue_id, failed_at, error)
    select q.queue_id, clock_timestamp(), i_error from pgq.queue q where q.queue_name = i_queue_name
    on conflict (queue_id) do update set failed_at = excluded.failed_at, error = excluded.error;
end
$$;

-- pgcascade.lock_ticker(1)
--     Become the only ticker of a queue until the end of the transaction; waits for another one.
--     Errors: the isolation level is not READ COMMITTED.
create function pgcascade.lock_ticker(i_queue_id integer) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
        raise exception using errcode = 'active_sql_transaction',
            message = format('a tick cannot be made in a %s transaction', current_setting('transaction_isolation')),
            hint = 'Its snapshot may be older than the last tick. Use READ COMMITTED; for a daemon that begins no transaction '
                   'itself: ALTER ROLE name SET default_transaction_isolation = ''read committed''.';
    end if;
    perform pgcascade.lock_queue(i_queue_id);
end
$$;

-- pgcascade.write_tick(4)
--     Insert a tick with the snapshot of now, announce it on channel pgcascade_tick as "queue_id tick_id", and wake those who
--     wait for a batch (wait.sql). What this transaction itself stores is for the next tick; with an external ticker for this one.
--     The caller holds the ticker lock.
--     Errors: the queue's storage is not sound; the tick id or the snapshot does not follow the last tick; the tick has no place
--     on this node of a cascade (takeover.sql).
create function pgcascade.write_tick(
    i_queue_id integer, i_tick_id bigint, i_tick_time timestamptz, i_event_seq bigint
) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    last pgq.tick;
    last_xmax bigint;
    snap txid_snapshot;
    me bigint;
begin
    perform pgcascade.check_queue(i_queue_id);
    perform pgcascade.check_epoch(i_queue_id, i_tick_id);
    select * into last from pgq.tick where tick_queue = i_queue_id order by tick_id desc limit 1;
    -- A big snapshot is compressed: nothing below unpacks it once per transaction in it.
    last_xmax := txid_snapshot_xmax(last.tick_snapshot);
    snap := txid_current_snapshot();
    me := txid_current();
    if (select q.queue_external_ticker from pgq.queue q where q.queue_id = i_queue_id) then
        -- A tick that was made elsewhere comes with its events: those that this transaction stores, before or after, are in it,
        -- so that a batch of a branch is the same as that of its root. Nobody sees the tick without them. Transactions
        -- between ours and the newest that has ended count as running.
        if not txid_visible_in_snapshot(me, snap) then
            snap := format('%s:%s:%s', txid_snapshot_xmin(snap), me + 1,
                           (select string_agg(x.xid::text, ',' order by x.xid)
                              from (select txid_snapshot_xip(snap)
                                    union all
                                    select generate_series(txid_snapshot_xmax(snap), me - 1)) x (xid)));
        end if;
    elsif txid_visible_in_snapshot(me, snap) then
        -- A transaction that stored events before it ticks may store more after it: they are for the next tick, all of
        -- them. Its own snapshot shows it as ended as soon as a younger one has.
        snap := format('%s:%s:%s', txid_snapshot_xmin(snap), txid_snapshot_xmax(snap),
                       (select string_agg(x.xid::text, ',' order by x.xid)
                          from (select txid_snapshot_xip(snap) union all select me) x (xid)));
    end if;

    -- A snapshot from before the last one means that transaction ids went backwards: the queue was restored into a
    -- younger cluster, or the cluster to an earlier time. Batches across that point would lose events.
    if txid_snapshot_xmin(last.tick_snapshot) > txid_snapshot_xmax(snap) then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('Invalid PgQ state: old xmin=%s, old xmax=%s, cur txid=%s',
                             txid_snapshot_xmin(last.tick_snapshot), txid_snapshot_xmax(last.tick_snapshot),
                             txid_snapshot_xmax(snap)),
            hint = 'The queue comes from another cluster or from its future. Create it anew, or move this cluster''s '
                   'next transaction id beyond the old one with pg_resetwal -x and -e.';
    elsif txid_snapshot_xmax(last.tick_snapshot) > txid_snapshot_xmax(snap)
          or exists (select xid from txid_snapshot_xip(snap) xid where xid < last_xmax
                     except
                     select txid_snapshot_xip(last.tick_snapshot))
    then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('Dubious PgQ state: old xmax=%s, cur txid=%s',
                             txid_snapshot_xmax(last.tick_snapshot), txid_snapshot_xmax(snap)),
            detail = format('Transactions that were finished at tick %s are not finished now.', last.tick_id),
            hint = 'The queue comes from another cluster or from its future. Create it anew, or move this cluster''s '
                   'next transaction id beyond the old one with pg_resetwal -x and -e.';
    end if;
    if i_tick_id < last.tick_id then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('tick %s cannot follow tick %s', i_tick_id, last.tick_id),
            hint = 'Tick ids only grow. If the tick sequence of the queue was set back, set it beyond the last tick.';
    end if;

    -- Whoever sees this tick may rely on it after a crash, and so on every event before it.
    if current_setting('synchronous_commit') = 'off' then
        perform set_config('synchronous_commit', 'local', true);
    end if;
    insert into pgq.tick (tick_queue, tick_id, tick_time, tick_snapshot, tick_event_seq)
    values (i_queue_id, i_tick_id, i_tick_time, snap, i_event_seq);
    perform pg_notify('pgcascade_tick', i_queue_id || ' ' || i_tick_id);
    perform pgcascade.wake_waiters(i_queue_id);
end
$$;

-- pgq.ticker(1)
--     Tick a queue if it is due. Returns the tick id, or null if it is not due.
--     Errors: no such queue, ticks come from elsewhere, paused; those of write_tick(), lock_ticker() and check_restored().
--     Writes pgq.tick; assigns a transaction id only then. Waits for another ticker of the same queue.
create function pgq.ticker(i_queue_name text) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    q pgq.queue;
    id integer;
    last pgq.tick;
    seq bigint;
    new_events bigint;
    lag interval;
    gap interval;
    late boolean;
    tick bigint;
begin
    select queue_id into id from pgq.queue where queue_name = i_queue_name;
    perform pgcascade.lock_ticker(id);

    -- Everything below is read under the lock: the ticker before us may have changed it.
    select * into q from pgq.queue where queue_name = i_queue_name;
    if not found then
        raise exception using errcode = 'undefined_object', message = 'no such queue',
            detail = format('Queue name: %s', coalesce(quote_literal(i_queue_name), 'NULL')),
            hint = 'pgq.get_queue_info() lists the queues.';
    end if;
    perform pgcascade.check_restored(q.queue_id);
    if q.queue_external_ticker then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = 'This queue has external tick source.',
            detail = format('Queue name: %L', i_queue_name),
            hint = 'Its ticks come from its provider, by pgq.ticker(queue, tick_id, time, event_seq).';
    end if;
    if q.queue_ticker_paused then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = 'Ticker has been paused for this queue',
            detail = format('Queue name: %L', i_queue_name),
            hint = format('Resume it with pgq.set_queue_config(%L, ''ticker_paused'', ''false'').', i_queue_name);
    end if;

    seq := pgq.seq_getval(q.queue_event_seq);
    select * into last from pgq.tick where tick_queue = q.queue_id order by tick_id desc limit 1;
    if found then
        new_events := seq - last.tick_event_seq;
        if new_events < 0 then
            raise warning 'Negative new_events?  old=% cur=%', last.tick_event_seq, seq;
        end if;
        lag := clock_timestamp() - last.tick_time;
        gap := last.tick_time - (select t.tick_time from pgq.tick t
                                  where t.tick_queue = q.queue_id and t.tick_id < last.tick_id
                                  order by t.tick_id desc limit 1);
        if pgcascade.tick_due_in(new_events, lag, gap, q.queue_ticker_max_count, q.queue_ticker_max_lag,
                                 q.queue_ticker_idle_period, seq, q.queue_data_pfx, last.tick_snapshot) > interval '0'
        then
            return null;
        end if;
    end if;

    -- seq counts the ids of open transactions too. Their events belong to a later tick, and no id is drawn when they
    -- commit; so the tick stands one lower, which is not enough to be due but keeps the ticker looking. The order: 1. the
    -- sequence was read, 2. writers are looked for, 3. the snapshot is taken. A writer counted in 1 and gone in 2 is then
    -- seen by 3. This transaction may be one of them.
    late := pgcascade.has_writers(q.queue_data_pfx::regclass);
    if not late and txid_current_if_assigned() is not null then
        execute format('select exists (select from %s where ev_txid = $1)', q.queue_data_pfx) into late using txid_current();
    end if;
    if late then
        seq := greatest(seq - 1, last.tick_event_seq);
    end if;
    tick := nextval(q.queue_tick_seq);
    perform pgcascade.write_tick(q.queue_id, tick, clock_timestamp(), seq);
    return tick;
end
$$;

-- pgq.ticker()
--     Tick all queues that are due, except external and paused ones. Returns how many were ticked.
--     A queue that cannot be ticked is a warning and does not keep the others from being ticked. Looks first which standbys have got what
--     was ticked before (gate_standby.sql), as the background worker does after each look.
create function pgq.ticker() returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    queue record;
    ticked bigint := 0;
begin
    perform pgcascade.confirm_standbys();
    perform pgcascade.settle_restored();
    for queue in
        select queue_id, queue_name from pgq.queue
         where not queue_external_ticker and not queue_ticker_paused
         order by queue_id       -- one order, so that two of us cannot wait for each other
    loop
        perform pgcascade.lock_ticker(queue.queue_id);
        begin
            ticked := ticked + (pgq.ticker(queue.queue_name) is not null)::integer;
        exception when others then
            raise warning using errcode = sqlstate,
                message = format('queue "%s" was not ticked: %s', queue.queue_name, sqlerrm);
        end;
    end loop;
    return ticked;
end
$$;

-- pgq.ticker(4)
--     Record a tick that was made elsewhere, on a queue with external ticker. Returns the tick id.
--     Both sequences of the queue are moved forward, never back.
--     Errors: no such queue, not external, or paused; a null argument; those of write_tick(), lock_ticker() and
--     check_restored().
create function pgq.ticker(
    i_queue_name text, i_tick_id bigint, i_orig_timestamp timestamptz, i_event_seq bigint
) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    q pgq.queue;
    id integer;
begin
    select queue_id into id from pgq.queue where queue_name = i_queue_name;
    perform pgcascade.lock_ticker(id);
    select * into q from pgq.queue
     where queue_name = i_queue_name and queue_external_ticker and not queue_ticker_paused;
    if not found then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('queue not found or ticker disabled: %s', coalesce(i_queue_name, '<NULL>')),
            hint = 'The queue must exist, with external_ticker true and ticker_paused false; see pgq.get_queue_info().';
    end if;

    perform pgcascade.check_restored(q.queue_id);
    perform pgcascade.write_tick(q.queue_id, i_tick_id, i_orig_timestamp, i_event_seq);
    perform pgq.seq_setval(q.queue_tick_seq, i_tick_id);
    perform pgq.seq_setval(q.queue_event_seq, i_event_seq);
    return i_tick_id;
end
$$;

-- pgq.force_tick(1)
--     Make the next run of the ticker tick this queue, by moving its event sequence on. Does not tick.
--     Returns the last tick id; call it until that changes. Null for an unknown queue, or one that has no tick.
--     The sequence of an external or paused queue is left alone.
create function pgq.force_tick(i_queue_name text) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    q pgq.queue;
begin
    select * into q from pgq.queue where queue_name = i_queue_name;
    if not q.queue_external_ticker and not q.queue_ticker_paused then
        perform pgq.seq_setval(q.queue_event_seq,
                               nextval(q.queue_event_seq) + q.queue_ticker_max_count::bigint * 2 + 1000);
    end if;
    return (select t.tick_id from pgq.tick t where t.tick_queue = q.queue_id order by t.tick_id desc limit 1);
end
$$;

comment on function pgcascade.note_tick_error(text, text) is 'note why the background worker could not tick a queue';
comment on function pgcascade.lock_ticker(integer) is 'become the only ticker of a queue until the end of the transaction';
comment on function pgcascade.write_tick(integer, bigint, timestamptz, bigint) is 'insert a tick and announce it';
comment on function pgq.ticker(text) is 'tick a queue if it is due; tick id or null';
comment on function pgq.ticker() is 'tick all queues that are due; how many were';
comment on function pgq.ticker(text, bigint, timestamptz, bigint) is 'record a tick made elsewhere, for a queue with external ticker';
comment on function pgq.force_tick(text) is 'make the next run of the ticker tick this queue; returns its last tick';
