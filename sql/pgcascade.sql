-- What pgcascade adds inside: the events between two ticks, when a queue is due for a tick, what must hold for a queue
-- to be trusted. Used by the functions of schema pgq, by the background worker and by the consumer.

-- pgcascade.tick_event_sql(4), tick_row_sql(4), tick_sql(5)
--     The SELECT for the events between two ticks of a queue, ordered by event id; for the rows in which they are stored, packs
--     among them (pack.sql), ordered by the id of the first; from a source given.
--     i_prev_tick, i_cur_tick   the two ticks; events visible in cur and not in prev are wanted
--     i_sub_id                  retried events of this subscription are included; null: nobody's are
--     i_source                  as event_source() says it
--     Returns SQL text with the columns ev_id, ev_time, ev_txid, ev_retry, ev_type, ev_data, ev_extra1 .. ev_extra4.
--     The caller's search_path does not matter to it. Errors: the queue or one of the ticks does not exist. Locks and writes nothing.
--
-- Which transactions are wanted, given snapshots as (xmin, xmax, in progress):
--     1. those that began after prev:  xmax(prev) <= xid < xmax(cur), except those in progress in cur;
--     2. those in progress in prev that are finished in cur.
-- (1) is one range of the ev_txid index. (2) is looked up by value: a range from xmin(prev) would read again everything
-- written since the oldest transaction that was open then. The two do not overlap. In (1) the visibility function
-- is left out when no transaction of the range was in progress.
-- The parent table is read, so every event table is probed, whatever the control row says about rotation: a
-- transaction that read the control row before a rotation may have written to the table of before.
create function pgcascade.tick_sql(
    i_queue_id integer, i_prev_tick bigint, i_cur_tick bigint, i_sub_id integer, i_source text
) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    events text;
    prev txid_snapshot;
    cur txid_snapshot;
    prev_xmax bigint;
    cur_xmax bigint;
    late bigint[];
    running boolean;
    wanted text;
    result text;
begin
    select 'select ev_id, ev_time, ev_txid, ev_retry, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4'
               || ' from ' || i_source || ' ev where ',
           p.tick_snapshot, c.tick_snapshot
      into events, prev, cur
      from pgq.queue q
      join pgq.tick p on p.tick_queue = q.queue_id and p.tick_id = i_prev_tick
      join pgq.tick c on c.tick_queue = q.queue_id and c.tick_id = i_cur_tick
     where q.queue_id = i_queue_id;
    if not found then
        raise exception using
            errcode = 'undefined_object',
            message = format('queue %s does not have both ticks %s and %s',
                             coalesce((select quote_literal(queue_name) from pgq.queue where queue_id = i_queue_id),
                                      'number ' || i_queue_id, 'NULL'),
                             coalesce(i_prev_tick::text, 'NULL'), coalesce(i_cur_tick::text, 'NULL')),
            hint = 'Ticks older than the last rotation are forgotten; see pgq.tick for those that are left.';
    end if;

    -- A snapshot of thousands of transactions is compressed in its tick: it is unpacked once here, not once for each of them.
    prev_xmax := txid_snapshot_xmax(prev);
    cur_xmax := txid_snapshot_xmax(cur);
    late := array((select xid from txid_snapshot_xip(prev) xid where xid < cur_xmax
                   except
                   select txid_snapshot_xip(cur)) order by 1);
    running := exists (select from txid_snapshot_xip(cur) xid where xid >= prev_xmax);
    wanted := case when i_sub_id is null then ' and ev_owner is null'
                   else format(' and (ev_owner is null or ev_owner operator(pg_catalog.=) %s)', i_sub_id) end;

    result := events
        || format('ev_txid operator(pg_catalog.>=) %s and ev_txid operator(pg_catalog.<) %s',
                  txid_snapshot_xmax(prev), txid_snapshot_xmax(cur))
        || case when running then
               format(' and pg_catalog.txid_visible_in_snapshot(ev_txid, %L::pg_catalog.txid_snapshot)', cur)
           else '' end
        || wanted;
    if cardinality(late) > 0 then
        result := result || ' union all ' || events
            || format('ev_txid operator(pg_catalog.=) any (%L::pg_catalog.int8[])', late)
            || wanted;
    end if;
    return result || ' order by 1';
end
$$;

create function pgcascade.tick_event_sql(
    i_queue_id integer, i_prev_tick bigint, i_cur_tick bigint, i_sub_id integer
) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return pgcascade.tick_sql(i_queue_id, i_prev_tick, i_cur_tick, i_sub_id, pgcascade.event_source(i_queue_id));
end
$$;

create function pgcascade.tick_row_sql(
    i_queue_id integer, i_prev_tick bigint, i_cur_tick bigint, i_sub_id integer
) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return pgcascade.tick_sql(i_queue_id, i_prev_tick, i_cur_tick, i_sub_id,
                              (select q.queue_data_pfx from pgq.queue q where q.queue_id = i_queue_id));
end
$$;

-- pgcascade.tick_due_in(6)
--     How long a queue has to wait for its next tick if nothing more happens; zero or less: tick now.
--     i_new_events   event ids drawn since the last tick
--     i_lag          age of the last tick; i_gap: time between the last two ticks, null when there is only one
--     and the three settings of the queue.
--     With new events: when there are enough, or they have waited long enough. Without: idle ticks, whose distance
--     doubles up to the idle period. A sequence or a clock that was set back is no reason to stop ticking.
create function pgcascade.tick_due_in(
    i_new_events bigint, i_lag interval, i_gap interval,
    i_max_count integer, i_max_lag interval, i_idle_period interval
) returns interval
language sql immutable
return case
    when i_lag < interval '0' or i_new_events < 0 then interval '0'
    when i_new_events >= greatest(i_max_count, 1) then interval '0'
    when i_new_events > 0 then i_max_lag - i_lag
    when i_gap is null then interval '0'
    else greatest(i_max_lag / 2, least(i_gap * 2, i_idle_period)) - i_lag
end;

-- pgcascade.tick_due_in(9)
--     The same for a real queue, where two figures do not say whether there is an event:
--     1. a sequence that moved by one: the tick before was made while a writer was at work and says so by standing one
--        lower, see pgq.ticker(1); or the one event is not committed yet, or was rolled back;
--     2. a sequence at 1, which is where it stands before the first event and after it.
--     Then the events are looked into.
--     i_seq   where the sequence stands; i_events: the queue's event table; i_last: snapshot of the last tick
create function pgcascade.tick_due_in(
    i_new_events bigint, i_lag interval, i_gap interval,
    i_max_count integer, i_max_lag interval, i_idle_period interval,
    i_seq bigint, i_events text, i_last txid_snapshot
) returns interval
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    idle constant interval := pgcascade.tick_due_in(0, i_lag, i_gap, i_max_count, i_max_lag, i_idle_period);
    one constant interval := pgcascade.tick_due_in(1, i_lag, i_gap, i_max_count, i_max_lag, i_idle_period);
begin
    if i_new_events = 1 and one <= interval '0' then
        return case when pgcascade.has_undelivered(i_events, i_last) then one else idle end;
    elsif i_new_events = 0 and i_seq = 1 and one <= interval '0' and idle > interval '0' then
        return case when pgcascade.has_undelivered(i_events, i_last) then one else idle end;
    end if;
    return pgcascade.tick_due_in(i_new_events, i_lag, i_gap, i_max_count, i_max_lag, i_idle_period);
end
$$;

-- pgcascade.queues_due()
--     The queues that the ticker has to look at, and in how many milliseconds (0: now) if nothing more happens; neither
--     external nor paused ones. Called by the background worker at each look. Assigns no transaction id.
--     A queue that is broken is due, so that its tick reports it. One that was restored and is sound gets its mark taken off.
--     A root that was promoted outside takeover is closed.
--     Looks into the event tables of queues in the order of their ids, in which pgcascade.mend_restored() locks them.
create function pgcascade.queues_due(out queue_name text, out due_ms bigint) returns setof record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgcascade.settle_restored();
    perform pgcascade.notice_promotion();
    return query
    select q.queue_name,
           coalesce(ceil(extract(epoch from greatest(interval '0', due.due_in)) * 1000), 0)::bigint
      from (select * from pgq.queue order by queue_id offset 0) q
      left join lateral (
               select t.tick_id, t.tick_time, t.tick_event_seq, t.tick_snapshot
                 from pgq.tick t
                where t.tick_queue = q.queue_id
                order by t.tick_id desc limit 1) last on true
      left join lateral (
               select t.tick_time
                 from pgq.tick t
                where t.tick_queue = q.queue_id and t.tick_id < last.tick_id
                order by t.tick_id desc limit 1) prev on true
     cross join lateral (
               select pg_sequence_last_value(to_regclass(q.queue_event_seq)) as drawn) seq
     cross join lateral (
               select pgcascade.tick_due_in(
                          coalesce(seq.drawn, 1) - last.tick_event_seq,
                          clock_timestamp() - last.tick_time, last.tick_time - prev.tick_time,
                          q.queue_ticker_max_count, q.queue_ticker_max_lag, q.queue_ticker_idle_period,
                          seq.drawn, q.queue_data_pfx, last.tick_snapshot) as due_in offset 0) due
     where not q.queue_external_ticker
       and not q.queue_ticker_paused
     order by q.queue_id;
end
$$;

-- pgcascade.has_undelivered(3)
--     Whether a queue has committed events that the snapshot of its last tick does not see.
--     i_shared   only events for all consumers count
--     Looks at transactions that are finished now and were not then: those listed as in progress then, and the ranges of
--     younger ones between those in progress now, whose rows (of a bulk load, say) would be read in vain each time.
create function pgcascade.has_undelivered(i_events text, i_last txid_snapshot, i_shared boolean default false) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    now constant txid_snapshot := txid_current_snapshot();
    last_xmax constant bigint := txid_snapshot_xmax(i_last);
    finished constant bigint[] := array(select txid_snapshot_xip(i_last) except select txid_snapshot_xip(now));
    lowest bigint[];
    highest bigint[];
    result boolean;
begin
    select array_agg(r.begins), array_agg(r.ends - 1) into lowest, highest
      from (select x.xid as ends, lag(x.xid + 1, 1, last_xmax) over (order by x.xid) as begins
              from (select xid from txid_snapshot_xip(now) xid where xid >= last_xmax
                    union all
                    select txid_snapshot_xmax(now)) x (xid)) r
     where r.begins < r.ends;

    execute format('select exists (select from %1$s where ev_txid = any ($1)%2$s) or exists ('
                   'select from unnest($2, $3) r (lowest, highest)'
                   ' where exists (select from %1$s where ev_txid between r.lowest and r.highest%2$s))',
                   i_events, case when i_shared then ' and ev_owner is null' else '' end)
       into result using finished, lowest, highest;
    return result;
end
$$;

-- pgcascade.has_writers(1)
--     Whether other transactions may have written events to a queue and are not finished: those hold a lock on its parent
--     table, i_events. Looks at that lock alone, which is why it is native: pg_locks copies all there are.
create function pgcascade.has_writers(i_events regclass) returns boolean
language c volatile strict as 'MODULE_PATHNAME', 'has_writers_wrapper';

-- pgcascade.lock_queue(1)
--     Wait for the ticker lock of a queue and hold it until the end of the transaction (pgext/src/lock.rs). Whoever
--     needs it in order to tick takes it by pgcascade.lock_ticker(1).
create function pgcascade.lock_queue(i_queue_id integer) returns void
language c volatile strict as 'MODULE_PATHNAME', 'lock_queue_wrapper';

-- pgcascade.check_queue(1)
--     Refuses a queue whose order of events or whose durability cannot be relied on any more. Called at each tick.
--     Order within a batch is that of event ids, which is the order of writing only if ids are drawn one by one and
--     upwards. An event table that is not logged would be empty after a crash, while its ticks are not.
create function pgcascade.check_queue(i_queue_id integer) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    seq text;
    unlogged regclass;
begin
    select q.queue_event_seq into seq
      from pgq.queue q
      join pg_sequence s on s.seqrelid = to_regclass(q.queue_event_seq)
     where q.queue_id = i_queue_id
       and (s.seqcache <> 1 or s.seqincrement < 1 or s.seqcycle);
    if found then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = format('event sequence %s does not issue event ids in order', seq),
            hint = format('Run ALTER SEQUENCE %s CACHE 1 INCREMENT BY 1 NO CYCLE.', seq);
    end if;

    select c.oid into unlogged
      from pgq.queue q
      join pg_inherits i on i.inhparent = to_regclass(q.queue_data_pfx)
      join pg_class c on c.oid = i.inhrelid
     where q.queue_id = i_queue_id and c.relpersistence <> 'p'
     limit 1;
    if found then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = format('event table %s would lose its events in a crash', unlogged),
            hint = format('Run ALTER TABLE %s SET LOGGED.', unlogged);
    end if;
end
$$;

-- A changed control row makes every session forget its cached copy (pgext/src/control.rs). ALWAYS: also for sessions
-- that replay with session_replication_role = replica.
create function pgcascade.control_changed() returns trigger
language c as 'MODULE_PATHNAME', 'control_changed_wrapper';

create trigger pgcascade_control_changed
    after insert or update or delete on pgq.queue
    for each row execute function pgcascade.control_changed();
alter table pgq.queue enable always trigger pgcascade_control_changed;

-- Tells the launcher of the background workers to look for new databases once this transaction commits.
create function pgcascade.wake_launcher() returns void
language c as 'MODULE_PATHNAME', 'wake_launcher_wrapper';

comment on function pgcascade.tick_event_sql(integer, bigint, bigint, integer) is
    'SQL text that reads the events between two ticks of a queue';
comment on function pgcascade.tick_row_sql(integer, bigint, bigint, integer) is
    'SQL text that reads the rows in which the events between two ticks of a queue are stored';
comment on function pgcascade.tick_sql(integer, bigint, bigint, integer, text) is
    'SQL text that reads what is between two ticks of a queue, from a source';
comment on function pgcascade.tick_due_in(bigint, interval, interval, integer, interval, interval) is
    'how long a queue with these figures waits for its next tick';
comment on function pgcascade.tick_due_in(bigint, interval, interval, integer, interval, interval, bigint, text, txid_snapshot) is
    'how long a queue waits for its next tick; looks into its events where the figures do not say';
comment on function pgcascade.queues_due() is 'queues that the ticker looks at, and when they are due';
comment on function pgcascade.has_undelivered(text, txid_snapshot, boolean) is
    'whether a queue has committed events that its last tick does not see';
comment on function pgcascade.has_writers(regclass) is 'whether a queue may have events that are not committed yet';
comment on function pgcascade.lock_queue(integer) is 'hold the ticker lock of a queue until the end of the transaction';
comment on function pgcascade.check_queue(integer) is
    'raise an error if a queue cannot keep its events in order or safe';
comment on function pgcascade.control_changed() is 'trigger on pgq.queue: invalidates cached control rows';
comment on function pgcascade.wake_launcher() is 'make the launcher look for databases with pgcascade';
