-- Retried events: a consumer that cannot deal with an event now has it delivered again, to itself only.
--
-- The event is copied to pgq.retry_queue. When its time has come maint_retry_events() inserts it again, with the same
-- event id and with ev_owner set to the subscription. The original stays where it is.

-- pgcascade.recall_event(2), recall_wanted(1), remember_event(3)
--     Where the session has seen an event of a batch; whether it is time to remember the places of a batch; remember
--     one. Hints only, see pgext/src/recall.rs. For pgcascade.find_event() alone.
create function pgcascade.recall_event(i_batch_id bigint, i_event_id bigint) returns tid
language c volatile strict as 'MODULE_PATHNAME', 'recall_event_wrapper';
create function pgcascade.recall_wanted(i_batch_id bigint) returns boolean
language c volatile strict as 'MODULE_PATHNAME', 'recall_wanted_wrapper';
create function pgcascade.remember_event(i_batch_id bigint, i_event_id bigint, i_place tid) returns boolean
language c volatile strict as 'MODULE_PATHNAME', 'remember_event_wrapper';

-- pgcascade.find_event(2)
--     One event of an open batch, by its id; all null when there is none. ev_owner is the subscription that has the batch.
--     Errors: the consumer belongs to another role.
--     The first look into a batch reads the range of the ev_txid index that the batch is, as all later ones would: the
--     event's transaction is not known, and nothing but the range says where it is. The second remembers the places of
--     all events, so that from then on each is one row fetched by its place. Whatever a place leads to is checked against
--     the two ticks. A place is not that of one table, so it is looked up in each of the queue's.
create function pgcascade.find_event(i_batch_id bigint, i_event_id bigint) returns pgq.event_template
language plpgsql volatile
set jit = off
set search_path = pg_catalog, pg_temp
as $$
declare
    batch record;
    place tid;
    ev pgq.event_template;
begin
    select s.sub_queue, s.sub_consumer, s.sub_id, pgcascade.event_source(q.queue_id) as events,
           p.tick_snapshot as prev, c.tick_snapshot as cur into batch
      from pgq.subscription s
      join pgq.queue q on q.queue_id = s.sub_queue
      join pgq.tick p on p.tick_queue = s.sub_queue and p.tick_id = s.sub_last_tick
      join pgq.tick c on c.tick_queue = s.sub_queue and c.tick_id = s.sub_next_tick
     where s.sub_batch = i_batch_id;
    if not found or i_event_id is null then
        return null;
    end if;
    perform pgcascade.check_consumer(batch.sub_queue, batch.sub_consumer);

    place := pgcascade.recall_event(i_batch_id, i_event_id);
    if place is null and pgcascade.recall_wanted(i_batch_id) then
        execute format('select count(pgcascade.remember_event($1, e.ev_id, e.place)) from ('
                       'select b.ev_id, b.place from ('
                       'select ev_id, ctid as place from %1$s ev where ev_txid >= $2 and ev_txid < $3 union all '
                       'select ev_id, ctid from %1$s ev where ev_txid = any ($4)) b'
                       -- Of a batch that is too big to be remembered: those from this event on.
                       ' order by b.ev_id >= $5 desc, b.ev_id limit 1048576) e', batch.events)
          using i_batch_id, txid_snapshot_xmax(batch.prev), txid_snapshot_xmax(batch.cur),
                array(select xid from txid_snapshot_xip(batch.prev) xid), i_event_id;
        place := pgcascade.recall_event(i_batch_id, i_event_id);
    end if;
    if place is not null then
        execute format('select ev_id, ev_time, ev_txid, ev_owner, ev_retry, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3,'
                       ' ev_extra4 from %s ev where ctid = $1 and ev_id = $2 and (ev_owner is null or ev_owner = $3)'
                       ' and pg_catalog.txid_visible_in_snapshot(ev_txid, $4)'
                       ' and not pg_catalog.txid_visible_in_snapshot(ev_txid, $5) limit 1', batch.events)
           into ev using place, i_event_id, batch.sub_id, batch.cur, batch.prev;
    end if;
    if ev.ev_id is null then
        execute 'select ev_id, ev_time, ev_txid, null, ev_retry, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4'
                ' from (' || pgq.batch_event_sql(i_batch_id) || ') b where ev_id = $1 limit 1'
           into ev using i_event_id;
    end if;
    if ev.ev_id is not null then
        ev.ev_owner := batch.sub_id;
    end if;
    return ev;
end
$$;

-- pgq.event_retry(3), time given
--     Deliver one event of an open batch again, not before x_retry_time. Returns 1, or 0 if it is waiting already.
--     One that was retried as often as the consumer's max_retries allows goes to the dead letters instead (dead_letter.sql): 1
--     too, since it is taken care of, or 0 if it is there already.
--     Errors: no such event in that batch, no such batch; both are "event not found"; the consumer belongs to another role.
--     Writes pgq.retry_queue or pgcascade.dead_letter. Finds the event by pgcascade.find_event().
create function pgq.event_retry(x_batch_id bigint, x_event_id bigint, x_retry_time timestamptz) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    ev constant pgq.event_template := pgcascade.find_event(x_batch_id, x_event_id);
begin
    if ev.ev_id is null then
        raise exception using errcode = 'no_data_found', message = 'event not found',
            detail = format('Batch id: %s, event id: %s',
                            coalesce(x_batch_id::text, 'NULL'), coalesce(x_event_id::text, 'NULL')),
            hint = 'Only events of an open batch can be retried, before finish_batch().';
    end if;
    if coalesce(ev.ev_retry, 0) >= pgcascade.max_retries(x_batch_id) then
        return pgcascade.bury_event(x_batch_id, ev, format('retried %s times', coalesce(ev.ev_retry, 0)));
    end if;

    insert into pgq.retry_queue (ev_retry_after, ev_queue, ev_id, ev_time, ev_owner, ev_retry,
                                 ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4)
    select x_retry_time, s.sub_queue, ev.ev_id, ev.ev_time, ev.ev_owner, coalesce(ev.ev_retry, 0) + 1,
           ev.ev_type, ev.ev_data, ev.ev_extra1, ev.ev_extra2, ev.ev_extra3, ev.ev_extra4
      from pgq.subscription s
     where s.sub_batch = x_batch_id
    on conflict (ev_owner, ev_id) do nothing;
    return found::integer;
end
$$;

-- pgq.event_retry(3), seconds given
--     The same, not before x_retry_seconds from now.
create function pgq.event_retry(x_batch_id bigint, x_event_id bigint, x_retry_seconds integer) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return pgq.event_retry(x_batch_id, x_event_id, now() + make_interval(secs => x_retry_seconds));
end
$$;

-- pgq.batch_retry(2)
--     Deliver all events of an open batch again, not before i_retry_seconds from now.
--     Returns how many were put into the retry queue or, see event_retry(), among the dead letters; those that are there
--     already are not counted.
--     Errors: no such batch; the consumer belongs to another role.
--     Writes pgq.retry_queue.
create function pgq.batch_retry(i_batch_id bigint, i_retry_seconds integer) returns integer
language plpgsql volatile security definer
set jit = off
set search_path = pg_catalog, pg_temp
as $$
declare
    sub pgq.subscription;
    allowed constant integer := pgcascade.max_retries(i_batch_id);
    dead integer := 0;
    result integer;
begin
    select * into sub from pgq.subscription where sub_batch = i_batch_id;
    if not found then
        raise exception using errcode = 'undefined_object',
            message = format('batch_retry: batch %s not found', coalesce(i_batch_id::text, '<NULL>')),
            hint = 'Only an open batch can be retried, before finish_batch().';
    end if;
    perform pgcascade.check_consumer(sub.sub_queue, sub.sub_consumer);

    -- Not by pgq.get_batch_events(): its cap is about what is sent to clients.
    if allowed is not null then
        execute 'select coalesce(sum(pgcascade.bury_event('
                ' $1, (e.ev_id, e.ev_time, e.ev_txid, $2, e.ev_retry, e.ev_type, e.ev_data,'
                ' e.ev_extra1, e.ev_extra2, e.ev_extra3, e.ev_extra4)::pgq.event_template,'
                ' format(''retried %s times'', coalesce(e.ev_retry, 0)))), 0)'
                ' from (' || pgq.batch_event_sql(i_batch_id) || ') e where coalesce(e.ev_retry, 0) >= $3'
           into dead using i_batch_id, sub.sub_id, allowed;
    end if;
    execute 'insert into pgq.retry_queue (ev_retry_after, ev_queue, ev_id, ev_time, ev_owner, ev_retry,'
            ' ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4)'
            ' select now() + make_interval(secs => $1), $2, e.ev_id, e.ev_time, $3, coalesce(e.ev_retry, 0) + 1,'
            ' e.ev_type, e.ev_data, e.ev_extra1, e.ev_extra2, e.ev_extra3, e.ev_extra4'
            ' from (' || pgq.batch_event_sql(i_batch_id) || ') e where $4 is null or coalesce(e.ev_retry, 0) < $4'
            ' on conflict (ev_owner, ev_id) do nothing'
      using i_retry_seconds, sub.sub_queue, sub.sub_id, allowed;
    get diagnostics result = row_count;
    return result + dead;
end
$$;

-- pgcascade.check_retried(2)
--     Refuses a negative number of retries, as by that a pack is told (pack.sql). Errors: invalid_parameter_value.
create function pgcascade.check_retried(i_queue_name text, i_retry integer) returns void
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    if i_retry < 0 then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('an event for queue ''%s'' cannot have been retried a negative number of times', i_queue_name),
            hint = 'Give how often it was retried in ev_retry, or NULL.';
    end if;
end
$$;

-- pgq.event_retry_raw(12)
--     Put an event made up by the caller into the retry queue of one consumer. Returns its id.
--     x_ev_id   null: drawn from the queue's sequence
--     Errors: consumer not registered, or of another role; no time given; a negative x_ev_retry; an event with that id waits already.
--     Writes pgq.retry_queue.
create function pgq.event_retry_raw(
    x_queue text, x_consumer text, x_retry_after timestamptz,
    x_ev_id bigint, x_ev_time timestamptz, x_ev_retry integer, x_ev_type text, x_ev_data text,
    x_ev_extra1 text, x_ev_extra2 text, x_ev_extra3 text, x_ev_extra4 text
) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    sub record;
    id bigint;
begin
    select s.sub_queue, s.sub_consumer, s.sub_id, q.queue_event_seq into sub
      from pgq.subscription s
      join pgq.queue q on q.queue_id = s.sub_queue
      join pgq.consumer c on c.co_id = s.sub_consumer
     where q.queue_name = x_queue and c.co_name = x_consumer;
    if not found then
        raise exception using errcode = 'undefined_object', message = 'consumer not registered',
            detail = format('Queue name: %s, consumer name: %s',
                            coalesce(quote_literal(x_queue), 'NULL'), coalesce(quote_literal(x_consumer), 'NULL')),
            hint = 'pgq.get_consumer_info() lists the consumers.';
    end if;
    perform pgcascade.check_consumer(sub.sub_queue, sub.sub_consumer);
    perform pgcascade.check_retried(x_queue, x_ev_retry);

    id := coalesce(x_ev_id, nextval(sub.queue_event_seq));
    insert into pgq.retry_queue (ev_retry_after, ev_queue, ev_id, ev_time, ev_owner, ev_retry,
                                 ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4)
    values (x_retry_after, sub.sub_queue, id, x_ev_time, sub.sub_id, x_ev_retry,
            x_ev_type, x_ev_data, x_ev_extra1, x_ev_extra2, x_ev_extra3, x_ev_extra4);
    return id;
end
$$;

-- pgcascade.is_branch(1)
--     Whether a queue of this database is a branch's: closed for writers, as its events come from another node.
create function pgcascade.is_branch(i_queue_name text) returns boolean
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return exists (select from pgq_node.node_info n where n.queue_name = i_queue_name and n.node_type = 'branch');
end
$$;

-- pgcascade.retry_on_branch(3)
--     Copy an event from the retry queue into the queue of a branch: it is for one consumer there, and no other node gets it. The next
--     tick of the provider's has it. Nothing if the queue is no branch's. Writes an event table.
create function pgcascade.retry_on_branch(i_queue_name text, i_owner integer, i_event_id bigint) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    prefix text;
    current integer;
begin
    if not pgcascade.is_branch(i_queue_name) then
        return;
    end if;
    -- As every writer: transaction id, lock, control row (docs/concurrency.md).
    perform txid_current();
    select q.queue_data_pfx into prefix from pgq.queue q where q.queue_name = i_queue_name;
    execute format('lock table only %s in row exclusive mode', prefix);
    select q.queue_cur_table into current from pgq.queue q where q.queue_name = i_queue_name;
    execute format($q$
        insert into %s (ev_id, ev_time, ev_owner, ev_retry, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4)
        select ev_id, ev_time, ev_owner, ev_retry, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4
          from pgq.retry_queue where ev_owner = $1 and ev_id = $2$q$, prefix || '_' || current)
      using i_owner, i_event_id;
end
$$;

-- pgq.maint_retry_events()
--     Insert events whose time has come into their queues again. Returns how many: call it until it returns 0.
--     When none is left it delivers delayed events (delayed.sql), so that those who run maintenance from outside do too.
--     500 at a time keeps the transactions short, and the calls few: each walks past all that were put back before and
--     that vacuum could not remove yet. The lock keeps a second session from inserting the same events.
--     Events of a queue that takes no inserts stay, so that they do not stop those of the others; those of a branch's
--     consumers come again there (retry_on_branch()).
--     Writes pgq.retry_queue, pgcascade.delayed_event and event tables.
create function pgq.maint_retry_events() returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    ev record;
    result integer := 0;
begin
    lock table pgq.retry_queue in share update exclusive mode;
    for ev in
        select q.queue_name, q.queue_disable_insert and current_setting('session_replication_role') <> 'replica' as closed, r.*
          from pgq.retry_queue r
          join pgq.queue q on q.queue_id = r.ev_queue
         where r.ev_retry_after <= now()
           and (not q.queue_disable_insert or current_setting('session_replication_role') = 'replica'
                or pgcascade.is_branch(q.queue_name))
           and q.queue_id not in (select m.queue_id from pgcascade.restored_queue m)
         order by r.ev_retry_after
         limit 500
    loop
        if ev.closed then
            perform pgcascade.retry_on_branch(ev.queue_name, ev.ev_owner, ev.ev_id);
        else
            perform pgq.insert_event_raw(ev.queue_name, ev.ev_id, ev.ev_time, ev.ev_owner, ev.ev_retry,
                                         ev.ev_type, ev.ev_data, ev.ev_extra1, ev.ev_extra2, ev.ev_extra3, ev.ev_extra4);
        end if;
        delete from pgq.retry_queue where ev_owner = ev.ev_owner and ev_id = ev.ev_id;
        result := result + 1;
    end loop;
    if result = 0 then
        return pgcascade.deliver_delayed_events();
    end if;
    return result;
end
$$;

comment on function pgcascade.recall_event(bigint, bigint) is 'where this session has seen an event of a batch; a hint';
comment on function pgcascade.recall_wanted(bigint) is 'whether to remember now where the events of a batch are';
comment on function pgcascade.remember_event(bigint, bigint, tid) is 'remember where an event of a batch is';
comment on function pgcascade.find_event(bigint, bigint) is 'one event of an open batch, by its id';
comment on function pgq.event_retry(bigint, bigint, timestamptz) is 'deliver an event of an open batch again at a later time';
comment on function pgq.event_retry(bigint, bigint, integer) is 'deliver an event of an open batch again after some seconds';
comment on function pgq.batch_retry(bigint, integer) is 'deliver all events of an open batch again after some seconds';
comment on function pgcascade.check_retried(text, integer) is 'refuse a negative number of retries';
comment on function pgq.event_retry_raw(text, text, timestamptz, bigint, timestamptz, integer, text, text, text, text, text, text) is
    'put an event into the retry queue of one consumer';
comment on function pgcascade.is_branch(text) is 'whether a queue of this database is a branch''s';
comment on function pgcascade.retry_on_branch(text, integer, bigint) is 'put a retried event into the queue of a branch, for its consumer there';
comment on function pgq.maint_retry_events() is 'insert due retried events again; call until it returns 0';
