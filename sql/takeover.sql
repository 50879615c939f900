-- Takeover: moving the root of a cascade to another node, planned or after a loss. Here is what is remembered of it; what a
-- node does when it is asked is in takeover_node.sql, the journal of a takeover and its promotion in takeover_journal.sql.
-- docs/takeover.md tells the whole; `consumer takeover` calls it all.
--
-- What it relies on:
--     epoch     a number that grows with each change of root. Every epoch but the first has a row in epoch_history, on each
--               node that has learned of it: it began after tick start_tick, and its own ticks begin at first_tick.
--               Ids between the two are given out by no root of the cascade that still is one: the new root leaves a
--               million out, so that what an old root went on to write can be told apart, and is refused.
--     promise   a node promises an epoch to one takeover: it will have no part in an older epoch or another takeover
--               of the same one. Who has no promise left can neither promote nor open.
--     closed    a promoted node takes no writes before other nodes have confirmed the new epoch. So of two takeovers
--               that do not know of each other, one does not get to open.
-- Every function is one transaction that may be repeated: it does nothing if it was done, and refuses if somebody else's
-- step came between. Refusals for the sake of another takeover have SQLSTATE 55006 (object_in_use).

-- What a node knows of epochs. A node without a row is in epoch 1.
create table pgcascade.node_epoch (
    queue_name      text        not null,
    epoch           bigint      not null default 1,
    -- The takeover that closed this root, and the tick that it was closed with.
    fence_op        uuid,
    closing_tick    bigint,
    fence_reason    text,
    -- The server that this node was seen on as root.
    system_id       text,
    timeline        integer,

    constraint node_epoch_pkey primary key (queue_name),
    constraint node_epoch_queue_name_fkey foreign key (queue_name)
        references pgq_node.node_info (queue_name) on delete cascade
);

-- What a node has promised. The highest epoch counts. The others are kept: when that takeover is aborted, the one before is in
-- force again, since the node must not forget that it has promised to read no older epoch.
create table pgcascade.node_promise (
    queue_name      text        not null,
    op_id           uuid        not null,
    epoch           bigint      not null,
    -- Takes no ticks until it is told whom to follow, except, while this promise counts, up to this one.
    frozen          boolean     not null,
    fetch_upto      bigint,

    constraint node_promise_pkey primary key (queue_name, op_id),
    constraint node_promise_epoch_key unique (queue_name, epoch),
    constraint node_promise_queue_name_fkey foreign key (queue_name)
        references pgq_node.node_info (queue_name) on delete cascade
);

-- The takeovers that were given up, as the node was told: what one of them still asks comes too late. Until the next change of root.
create table pgcascade.node_release (
    queue_name      text        not null,
    op_id           uuid        not null,

    constraint node_release_pkey primary key (queue_name, op_id),
    constraint node_release_queue_name_fkey foreign key (queue_name)
        references pgq_node.node_info (queue_name) on delete cascade
);

-- When each epoch began. Rows are only ever added.
create table pgcascade.epoch_history (
    queue_name      text        not null,
    epoch           bigint      not null,
    -- The last tick of the epochs before.
    start_tick      bigint      not null,
    -- The first tick of this one.
    first_tick      bigint      not null,
    root_node       text        not null,
    system_id       text        not null,
    timeline        integer     not null,
    op_id           uuid        not null,
    began           timestamptz not null,

    constraint epoch_history_pkey primary key (queue_name, epoch),
    constraint epoch_history_queue_name_fkey foreign key (queue_name)
        references pgq_node.node_info (queue_name) on delete cascade,
    constraint epoch_history_tick_check check (epoch > 1 and start_tick < first_tick)
);

-- The journal: one row per takeover, on the node that becomes root.
create table pgcascade.takeover (
    op_id           uuid        not null,
    queue_name      text        not null,
    kind            text        not null,
    old_node        text        not null,
    new_node        text        not null,
    epoch_new       bigint      not null,
    step            text        not null,
    -- Whom the new root fetches from what it lacks, and whom it read from before it did.
    donor           text,
    read_from       text,
    -- The last tick of the old epoch.
    fork_tick       bigint,
    -- Which other nodes have confirmed the new epoch, and how many have to.
    confirms        integer     not null,
    confirmed_by    text[]      not null default '{}',
    -- How the operator made sure that the old root is off, where no node is left that could confirm it.
    fenced_by       text,
    -- The nodes that are dead because of it: if it is aborted they are not.
    lost            text[]      not null default '{}',
    -- Which run of the command may go on.
    holder          text        not null,
    started         timestamptz not null default clock_timestamp(),
    updated_at      timestamptz not null default clock_timestamp(),
    error           text,

    constraint takeover_pkey primary key (op_id),
    constraint takeover_queue_name_fkey foreign key (queue_name)
        references pgq_node.node_info (queue_name) on delete cascade,
    constraint takeover_kind_check check (kind in ('planned', 'dead', 'standby')),
    constraint takeover_confirms_check check (confirms > 0 or kind <> 'planned' and fenced_by is not null)
);

-- What a copy of the root has after its last tick, while it fetches the ticks that it lacks: a promoted standby that is to be the
-- root (takeover_standby.sql), or a copy that was adopted as a branch (node_name.sql).
create table pgcascade.takeover_tail (
    -- The takeover, or the adoption.
    op_id           uuid        not null,
    queue_name      text        not null,
    ev_id           bigint      not null,
    ev_time         timestamptz not null,
    ev_txid         bigint      not null,
    ev_owner        integer,
    ev_retry        integer,
    ev_type         text,
    ev_data         text,
    ev_extra1       text,
    ev_extra2       text,
    ev_extra3       text,
    ev_extra4       text,
    -- The tick of the donor that has the event, too. Null: none that was fetched.
    tick_id         bigint,

    constraint takeover_tail_queue_name_fkey foreign key (queue_name)
        references pgq_node.node_info (queue_name) on delete cascade
);

create index takeover_tail_event on pgcascade.takeover_tail (op_id, ev_id);

create unique index takeover_one_at_a_time on pgcascade.takeover (queue_name) where step not in ('done', 'aborted');

comment on table pgcascade.node_epoch is 'what each node of this database knows of epochs';
comment on table pgcascade.node_promise is 'which epochs each node of this database has promised, and to which takeovers';
comment on table pgcascade.node_release is 'which takeovers were given up, as the nodes of this database were told';
comment on table pgcascade.epoch_history is 'when each epoch of a cascade began, and with which root';
comment on table pgcascade.takeover is 'journal of the takeovers that made, or should make, this database root';
comment on table pgcascade.takeover_tail is 'events that a copy of the root has after its last tick, while it fetches ticks';

select pg_catalog.pg_extension_config_dump('pgcascade.node_epoch', '');
select pg_catalog.pg_extension_config_dump('pgcascade.node_promise', '');
select pg_catalog.pg_extension_config_dump('pgcascade.node_release', '');
select pg_catalog.pg_extension_config_dump('pgcascade.epoch_history', '');
select pg_catalog.pg_extension_config_dump('pgcascade.takeover', '');
select pg_catalog.pg_extension_config_dump('pgcascade.takeover_tail', '');

-- The nodes of this database: role and whether applications can write, as PgQ's own tables have them, and the epoch.
create view pgcascade.node_state as
select n.queue_name, n.node_name, n.node_type as role,
       n.node_type = 'root' and not q.queue_disable_insert as open,
       coalesce(e.epoch, 1) as epoch, p.epoch as promised_epoch, p.op_id as promised_op,
       coalesce((select bool_or(f.frozen) from pgcascade.node_promise f where f.queue_name = n.queue_name), false) as frozen,
       e.closing_tick, e.fence_reason, e.system_id, e.timeline
  from pgq_node.node_info n
  left join pgq.queue q on q.queue_name = n.queue_name
  left join pgcascade.node_epoch e on e.queue_name = n.queue_name
  left join lateral (select * from pgcascade.node_promise x
                      where x.queue_name = n.queue_name order by x.epoch desc limit 1) p on true;

comment on view pgcascade.node_state is 'role, epoch and promises of the nodes of this database';

-- pgcascade.takeover_steps(1)
--     The steps of a takeover of this kind, in order. What a step means: docs/takeover.md. A takeover may be aborted before
--     'promoted'; from there on it can only be finished.
create function pgcascade.takeover_steps(i_kind text) returns text[]
language sql immutable
return case i_kind
    when 'planned' then array['prepared', 'fenced', 'drained', 'promoted', 'opened', 'demoted', 'repointed', 'done']
    when 'dead' then array['prepared', 'promised', 'elected', 'caught-up', 'promoted', 'repointed', 'opened', 'done']
    when 'standby' then array['prepared', 'promised', 'elected', 'caught-up', 'promoted', 'repointed', 'opened', 'done']
end;

-- pgcascade.lock_node(1)
--     Lock a node until the end of the transaction: its role, epochs and promises change one after the other. Returns what it
--     is, what it knows of epochs, and the promise that counts (all null if there is none).
--     Errors: not a node.
create function pgcascade.lock_node(
    in i_queue_name text, out node pgq_node.node_info, out known pgcascade.node_epoch,
    out promise pgcascade.node_promise
) returns record
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    select * into node from pgq_node.node_info n where n.queue_name = i_queue_name for update;
    if not found then
        raise exception using errcode = 'undefined_object',
            message = format('this database is no node of queue %s', coalesce(quote_literal(i_queue_name), 'NULL')),
            hint = 'pgcascade.node_state lists the nodes of this database.';
    end if;
    insert into pgcascade.node_epoch (queue_name) values (i_queue_name) on conflict (queue_name) do nothing;
    select * into known from pgcascade.node_epoch e where e.queue_name = i_queue_name for update;
    select * into promise from pgcascade.node_promise p where p.queue_name = i_queue_name order by p.epoch desc limit 1;
end
$$;

-- pgcascade.node_tick(1)
--     The last tick that this node has: of its queue, or where its worker stands if it is a leaf.
create function pgcascade.node_tick(i_queue_name text) returns bigint
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce(pgcascade.local_queue_top(i_queue_name),
                    (select l.last_tick_id
                       from pgq_node.node_info n
                       join pgq_node.local_state l on l.queue_name = n.queue_name and l.consumer_name = n.worker_name
                      where n.queue_name = i_queue_name));
end
$$;

-- pgcascade.current_timeline()
--     The timeline that this server writes. pg_control_checkpoint() has that of the last checkpoint, which comes some time
--     after a promotion.
create function pgcascade.current_timeline() returns integer
language sql volatile
set search_path = pg_catalog, pg_temp
return ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer;

-- pgcascade.note_server(1)
--     This node is a root from now on, and on this server: on another one it takes no events (takeover_promotion.sql). Called in the
--     transaction that makes it that. Writes node_epoch.
create function pgcascade.note_server(i_queue_name text) returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
    insert into pgcascade.node_epoch as e (queue_name, system_id, timeline)
    select i_queue_name, c.system_identifier::text, pgcascade.current_timeline() from pg_control_system() c
    on conflict (queue_name) do update set system_id = excluded.system_id, timeline = excluded.timeline;
$$;

-- pgcascade.check_epoch(2)
--     Refuses a tick that has no place on this node: the node has promised to follow another root; or the tick's id
--     lies between the end of one epoch and the beginning of the next, so that it is from a root that had lost its role.
--     Called by write_tick(), with the queue's ticker lock held, which promise_epoch() waits for.
create function pgcascade.check_epoch(i_queue_id integer, i_tick_id bigint) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    known record;
begin
    select s.queue_name, s.node_name, s.promised_epoch, s.promised_op, h.epoch, h.start_tick,
           s.role = 'branch' and s.frozen and coalesce(i_tick_id > p.fetch_upto, true) as frozen
      into known
      from pgq.queue q
      join pgcascade.node_state s on s.queue_name = q.queue_name
      left join pgcascade.node_promise p on p.queue_name = q.queue_name and p.op_id = s.promised_op
      left join pgcascade.epoch_history h
             on h.queue_name = q.queue_name and h.start_tick < i_tick_id and h.first_tick > i_tick_id
     where q.queue_id = i_queue_id
     limit 1;
    if known.epoch is not null then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('tick %s of queue "%s" is not one of the cascade: epoch %s began after tick %s',
                             i_tick_id, known.queue_name, known.epoch, known.start_tick),
            hint = 'It comes from a root that had lost its role. docs/takeover.md says how that one joins again.';
    elsif known.frozen then
        raise exception using errcode = 'object_in_use',
            message = format('node "%s" of queue "%s" has promised epoch %s to takeover %s and takes no ticks until that ends',
                             known.node_name, known.queue_name, known.promised_epoch, known.promised_op),
            hint = 'Finish it with consumer takeover --resume, or give it up with --abort.';
    end if;
end
$$;

comment on function pgcascade.takeover_steps(text) is 'steps of a takeover, in order';
comment on function pgcascade.lock_node(text) is 'lock a node, and what it knows of epochs, until the end of the transaction';
comment on function pgcascade.node_tick(text) is 'the last tick that a node of this database has';
comment on function pgcascade.current_timeline() is 'the timeline that this server writes';
comment on function pgcascade.note_server(text) is 'note that a root is on this server';
comment on function pgcascade.check_epoch(integer, bigint) is 'refuse a tick that has no place on this node';
