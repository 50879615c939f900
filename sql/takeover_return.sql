-- A root that was given up (takeover_journal.sql, kind dead) is there again. What it has after the fork, the tick at which the next
-- epoch began, no other node has: that is saved in lost_event, goes out of its queue, and it is a branch from the fork on. Its
-- tables are put right by replay, which copies those that are named here as changed.
--
-- `consumer node rejoin` calls it: return_fork(), return_close(), and in one transaction with replay's position return_join().
-- Every function is one transaction that may be repeated. Nothing is deleted before return_join(), which compares first.

-- One row per return, on the node that returned.
create table pgcascade.root_return (
    -- The takeover that began the epoch after the fork.
    op_id           uuid        not null,
    queue_name      text        not null,
    -- The epoch in which this node was the root.
    epoch           bigint      not null,
    fork_tick       bigint      not null,
    -- How many events it has after the fork.
    lost_events     bigint      not null,
    -- closed: saved in lost_event, still in the queue; joined: a branch since.
    step            text        not null,
    -- Of the file that they were written to.
    sha256          text,
    updated_at      timestamptz not null default clock_timestamp(),

    constraint root_return_pkey primary key (op_id, queue_name),
    constraint root_return_queue_name_fkey foreign key (queue_name)
        references pgq_node.node_info (queue_name) on delete cascade,
    constraint root_return_step_check check (step in ('closed', 'joined'))
);

-- Events that were committed on a root and are on no other node. They stay until somebody deletes them, also when the node is dropped.
create table pgcascade.lost_event (
    op_id           uuid        not null,
    queue_name      text        not null,
    -- In the order of their ticks, and in a tick in that of their ids.
    number          bigint      not null,
    epoch           bigint      not null,
    -- The root's tick that had it; null: none had been made yet.
    tick            bigint,

    ev_id           bigint      not null,
    ev_time         timestamptz not null,
    ev_txid         bigint      not null,
    ev_type         text,
    ev_data         text,
    ev_extra1       text,
    ev_extra2       text,
    ev_extra3       text,
    ev_extra4       text,

    constraint lost_event_pkey primary key (op_id, queue_name, number)
);

comment on table pgcascade.root_return is 'returns of roots that had been given up';
comment on table pgcascade.lost_event is 'events that only a root had that was given up, and has returned';

select pg_catalog.pg_extension_config_dump('pgcascade.root_return', '');
select pg_catalog.pg_extension_config_dump('pgcascade.lost_event', '');

-- pgcascade.return_fork(2)
--     Where the history of this root and that of the cascade part. i_history is the root's pgcascade.epoch_history as a JSON array.
--     Returns the takeover that began the next epoch, the epoch in which this node was the root, the last tick that it shares
--     with the others, and how far it went on.
--     Errors: not a node; not a root; promised to a takeover that may still be under way (55006); no epoch has begun after a tick
--     of this root, or it does not have that tick (any more); two epochs of one number.
create function pgcascade.return_fork(
    in i_queue_name text, in i_history jsonb,
    out op_id uuid, out in_epoch bigint, out fork_tick bigint, out last_tick bigint
) returns record
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    me pgcascade.node_state;
    known pgcascade.epoch_history;
    newest pgcascade.epoch_history;
begin
    select * into me from pgcascade.node_state s where s.queue_name = i_queue_name;
    if not found then
        raise exception using errcode = 'undefined_object',
            message = format('this database is no node of queue %s', coalesce(quote_literal(i_queue_name), 'NULL')),
            hint = 'pgcascade.node_state lists the nodes of this database.';
    elsif me.role <> 'root' then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('node "%s" of queue "%s" is a %s, and not a root that was given up', me.node_name, i_queue_name,
                             me.role),
            hint = 'consumer status shows the cascade.';
    end if;
    select h.* into newest from jsonb_populate_recordset(null::pgcascade.epoch_history, i_history) h order by h.epoch desc limit 1;
    -- What began the newest epoch, and is over, needs no promise any more; consumer node rejoin looks for that on the root.
    if me.promised_epoch > newest.epoch then
        raise exception using errcode = 'object_in_use',
            message = format('root "%s" of queue "%s" is promised to takeover %s', me.node_name, i_queue_name, me.promised_op),
            hint = 'Finish or abort that one first: consumer takeover --resume or --abort; --plan shows where it is.';
    end if;
    select k.* into known
      from jsonb_populate_recordset(null::pgcascade.epoch_history, i_history) h
      join pgcascade.epoch_history k on k.queue_name = i_queue_name and k.epoch = h.epoch and k.op_id <> h.op_id
     order by k.epoch limit 1;
    if found then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('epoch %s of queue "%s" began twice: node "%s" knows the root "%s" of it', known.epoch, i_queue_name,
                             me.node_name, known.root_node),
            hint = 'They belong to different cascades, or a node was restored from an older copy. Make this node anew.';
    end if;

    last_tick := pgcascade.local_queue_top(i_queue_name);
    -- Ids between the start of an epoch and its first tick are those of a root that had lost its role. It stands in as many
    -- of these gaps as it has slept through takeovers; the cascade left it at the lowest.
    select min(h.start_tick), (array_agg(h.op_id order by h.epoch))[1] into fork_tick, op_id
      from jsonb_populate_recordset(null::pgcascade.epoch_history, i_history) h
     where h.start_tick <= last_tick and h.first_tick > last_tick;
    select coalesce(max(h.epoch), 1) into in_epoch
      from jsonb_populate_recordset(null::pgcascade.epoch_history, i_history) h
     where h.first_tick <= last_tick;
    if fork_tick is null then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('root "%s" of queue "%s" stands at tick %s, and the cascade began no epoch at or before that without it',
                             me.node_name, i_queue_name, last_tick),
            hint = case when newest.start_tick > last_tick then
                       'It lacks ticks that the others have, as the standby or the restored copy of a root does. Make it anew: '
                       'consumer node drop, create-branch.'
                   else 'No takeover has declared it dead: it is the root.' end;
    elsif not exists (select from pgq.tick t join pgq.queue q on q.queue_id = t.tick_queue
                       where q.queue_name = i_queue_name and t.tick_id = fork_tick) then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('root "%s" of queue "%s" does not have tick %s, after which epoch %s began, any more', me.node_name,
                             i_queue_name, fork_tick, in_epoch + 1),
            hint = 'What only it has cannot be told from the rest. Compare its tables with another node''s, then make it anew.';
    end if;
end
$$;

-- pgcascade.return_close(3)
--     Close this root for writers, if it is open, and save in lost_event what it has after the fork. Nobody but its own writers,
--     which have ended then, could add to that; repeated, it saves anew.
--     i_wait_ms   how long writers that are not finished are waited for
--     Returns the takeover, the fork and how many events were saved. Events that were put back for one consumer alone are none of them.
--     Errors: those of return_fork(); a writer does not end in time (55P03); not READ COMMITTED. Nothing is changed then.
--     Writes pgq.queue, node_epoch, root_return, lost_event.
create function pgcascade.return_close(
    in i_queue_name text, in i_history jsonb, in i_wait_ms integer,
    out op_id uuid, out fork_tick bigint, out lost_events bigint
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    me record;
    q pgq.queue;
    found_fork record;
    t record;
    prev pgq.tick;
    saved bigint := 0;
    added bigint;
    columns constant text := 'ev_id, ev_time, ev_txid, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4';
    into_table constant text := 'insert into pgcascade.lost_event (op_id, queue_name, number, epoch, tick, ' || columns || ')'
        ' select $1, $2, $3 + row_number() over (order by ev_id), $4, $5, ' || columns;
begin
    select * into me from pgcascade.lock_node(i_queue_name);
    select * into found_fork from pgcascade.return_fork(i_queue_name, i_history);
    select * into q from pgq.queue where queue_name = i_queue_name;
    perform pgcascade.close_root(q, (me.node).node_name, i_wait_ms);
    update pgcascade.node_epoch e
       set fence_reason = coalesce(e.fence_reason, format('given up by takeover %s', found_fork.op_id))
     where e.queue_name = i_queue_name;

    delete from pgcascade.lost_event l where l.op_id = found_fork.op_id and l.queue_name = i_queue_name;
    for t in select * from pgq.tick k where k.tick_queue = q.queue_id and k.tick_id >= found_fork.fork_tick order by k.tick_id loop
        if prev.tick_id is not null then
            execute into_table || ' from (' || pgcascade.tick_event_sql(q.queue_id, prev.tick_id, t.tick_id, null) || ') ev'
              using found_fork.op_id, i_queue_name, saved, found_fork.in_epoch, t.tick_id;
            get diagnostics added = row_count;
            saved := saved + added;
        end if;
        prev := t;
    end loop;
    execute into_table || format(' from %s ev where ev_owner is null and (ev_txid >= $6 or ev_txid = any ($7))',
                                 pgcascade.event_source(q.queue_id))
      using found_fork.op_id, i_queue_name, saved, found_fork.in_epoch, null::bigint, txid_snapshot_xmax(prev.tick_snapshot),
            array(select xid from txid_snapshot_xip(prev.tick_snapshot) xid);
    get diagnostics added = row_count;

    op_id := found_fork.op_id;
    fork_tick := found_fork.fork_tick;
    lost_events := saved + added;
    insert into pgcascade.root_return as r (op_id, queue_name, epoch, fork_tick, lost_events, step)
    values (found_fork.op_id, i_queue_name, found_fork.in_epoch, found_fork.fork_tick, saved + added, 'closed')
    on conflict on constraint root_return_pkey do update
       set epoch = excluded.epoch, fork_tick = excluded.fork_tick, lost_events = excluded.lost_events, step = excluded.step,
           updated_at = clock_timestamp();
end
$$;

-- pgcascade.return_join(7)
--     Take what is saved out of the queue, with the ticks after the fork, and follow the root of the newest epoch from the fork on.
--     Consumers that stand after the fork go back to it; batches that reach beyond it are not open any more. Events that were put
--     back for one of them wait to be put back again, unless they are lost themselves.
--     i_lost_events, i_sha256   what the caller has written elsewhere, or 0 and null
--     i_provider    whom to read from
--     i_nodes       the other nodes as that one knows them: an array of objects with node, location and dead
--     Returns the names of the nodes that read from here and stand after the fork: they have lost events, and are
--     subscribers no more. Null if it was done before.
--     Errors: not closed by return_close(); lost_event is not what the queue has after the fork; another number of events was written;
--     those of follow_root(). Writes everything about the queue and the node.
create function pgcascade.return_join(
    i_queue_name text, i_op uuid, i_history jsonb, i_lost_events bigint, i_sha256 text, i_provider text, i_nodes jsonb
) returns text[]
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    me record;
    q pgq.queue;
    r pgcascade.root_return;
    fork pgq.tick;
    after_fork text;
    columns constant text := 'ev_id, ev_time, ev_txid, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4';
    differs boolean;
    lost_nodes text[];
    newest pgcascade.epoch_history;
begin
    select * into me from pgcascade.lock_node(i_queue_name);
    select * into r from pgcascade.root_return k where k.op_id = i_op and k.queue_name = i_queue_name for update;
    select * into q from pgq.queue where queue_name = i_queue_name;
    if r.step = 'joined' and (me.node).node_type <> 'root' then
        return null;
    elsif r.step is distinct from 'closed' or (me.node).node_type <> 'root'
       or not (q.queue_disable_insert and q.queue_external_ticker)
    then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('node "%s" of queue "%s" was not closed for its return after takeover %s', (me.node).node_name,
                             i_queue_name, coalesce(i_op::text, 'NULL')),
            hint = 'Type consumer node rejoin again, which closes it.';
    end if;
    perform pgcascade.lock_ticker(q.queue_id);
    execute format('lock table %s in share mode', q.queue_data_pfx);
    select * into fork from pgq.tick where tick_queue = q.queue_id and tick_id = r.fork_tick;
    after_fork := format('(ev_txid >= %s or ev_txid = any (%L::pg_catalog.int8[]))', txid_snapshot_xmax(fork.tick_snapshot),
                         array(select xid from txid_snapshot_xip(fork.tick_snapshot) xid));
    execute format('select (select count(*) from %1$s ev where ev_owner is null and %2$s) <> $3 or exists ('
                   'select %3$s from %1$s ev where ev_owner is null and %2$s except all'
                   ' select %3$s from pgcascade.lost_event where op_id = $1 and queue_name = $2)',
                   pgcascade.event_source(q.queue_id), after_fork, columns)
       into differs using i_op, i_queue_name, i_lost_events;
    if differs or fork.tick_id is null then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('node "%s" of queue "%s" does not have the %s events after tick %s that were saved', (me.node).node_name,
                             i_queue_name, i_lost_events, r.fork_tick),
            hint = 'Nothing was removed. Type consumer node rejoin again, which saves them anew.';
    end if;

    execute format('insert into pgq.retry_queue (ev_retry_after, ev_queue, ev_id, ev_time, ev_owner, ev_retry,'
                   ' ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4)'
                   ' select clock_timestamp(), $1, ev_id, ev_time, ev_owner, ev_retry,'
                   ' ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4'
                   '   from %s where ev_owner in (select s.sub_id from pgq.subscription s where s.sub_queue = $1) and %s'
                   ' on conflict do nothing', q.queue_data_pfx, after_fork)
      using q.queue_id;
    delete from pgq.retry_queue w using pgcascade.lost_event l
     where w.ev_queue = q.queue_id and l.op_id = i_op and l.queue_name = i_queue_name and l.ev_id = w.ev_id;
    execute format('delete from %s where %s', q.queue_data_pfx, after_fork);
    delete from pgq.tick where tick_queue = q.queue_id and tick_id > r.fork_tick;

    lost_nodes := array(select s.subscriber_node from pgq_node.subscriber_info s
                         where s.queue_name = i_queue_name and pgcascade.consumer_tick(i_queue_name, s.worker_name) > r.fork_tick
                         order by 1);
    perform pgq_node.unregister_subscriber(i_queue_name, node) from unnest(lost_nodes) node;
    -- A subconsumer has ticks while it has a batch; without it its main consumer, which went on, has to hand that out again.
    with back as (
        select s.sub_consumer, s.sub_id, s.sub_last_tick, pgcascade.main_consumer(s.sub_queue, s.sub_consumer) as main
          from pgq.subscription s
         where s.sub_queue = q.queue_id and greatest(s.sub_last_tick, s.sub_next_tick) > r.fork_tick)
    update pgq.subscription s
       set sub_last_tick = case when b.main is null then least(b.sub_last_tick, r.fork_tick, (
                                     select min(m.sub_last_tick) from back m where m.main = b.sub_consumer)) end,
           sub_next_tick = null, sub_batch = null
      from back b
     where s.sub_queue = q.queue_id and s.sub_consumer = b.sub_consumer;

    insert into pgq_node.node_location (queue_name, node_name, node_location, dead)
    select i_queue_name, n.node, n.location, n.dead
      from jsonb_to_recordset(i_nodes) n (node text, location text, dead boolean)
     where n.node <> (me.node).node_name
    on conflict (queue_name, node_name) do update set node_location = excluded.node_location, dead = excluded.dead;
    select h.* into newest from jsonb_populate_recordset(null::pgcascade.epoch_history, i_history) h order by h.epoch desc limit 1;
    -- A promise to a takeover that did not come to it is kept by following a later one.
    delete from pgcascade.node_promise p where p.queue_name = i_queue_name and p.epoch <= newest.epoch;
    perform pgcascade.follow_root(i_queue_name, newest.op_id, i_history, i_provider);
    update pgcascade.root_return k set step = 'joined', sha256 = i_sha256, updated_at = clock_timestamp()
     where k.op_id = i_op and k.queue_name = i_queue_name;
    return lost_nodes;
end
$$;

comment on function pgcascade.return_fork(text, jsonb) is 'where a root that was given up and the cascade parted';
comment on function pgcascade.return_close(text, jsonb, integer) is 'close a root that was given up, and save what only it has';
comment on function pgcascade.return_join(text, uuid, jsonb, bigint, text, text, jsonb) is
    'take what only a root had that was given up out of its queue, and make it a branch';
