-- The confirm gate: leaves and plain consumers get a tick only once enough branches and standbys have stored it.
--
-- When the root is lost, the branch that has most becomes the root, or a standby of the root is promoted. What only a leaf or a program was
-- given would then be of a history that no node has. With a gate of k a tick goes to those that cannot become root after k of the candidates
-- have it, the branches that read from the root and the standbys that are named for it (gate_standby.sql): k - 1 of them may be lost together
-- with the root, and still nobody is ahead of those that are left.
--
-- Off unless set. Set on the root; branches take it over from the node that they read from, with how far it has released.

create table pgcascade.confirm_gate (
    queue_id    integer not null,
    candidates  integer not null,
    -- On a branch: what its provider had released when it was asked last. What is released stays released.
    released    bigint  not null default 0,

    constraint confirm_gate_pkey primary key (queue_id),
    constraint confirm_gate_queue_fkey foreign key (queue_id) references pgq.queue (queue_id) on delete cascade,
    constraint confirm_gate_candidates_check check (candidates > 0)
);

-- The branches among those that read from this node. A leaf, or a branch of PgQ's, is not here.
create table pgcascade.candidate (
    queue_name  text    not null,
    node_name   text    not null,
    -- Rows of gate_standby: the standbys that this branch would ask for in a takeover.
    knows       bigint[] not null default '{}',

    constraint candidate_pkey primary key (queue_name, node_name),
    constraint candidate_subscriber_fkey foreign key (queue_name, node_name)
        references pgq_node.subscriber_info (queue_name, subscriber_node) on delete cascade
);

comment on table pgcascade.confirm_gate is 'how many branches and standbys must have a tick before leaves and plain consumers get it';
comment on table pgcascade.candidate is 'nodes that read from this one and can become the root';

select pg_catalog.pg_extension_config_dump('pgcascade.confirm_gate', '');
select pg_catalog.pg_extension_config_dump('pgcascade.candidate', '');

-- pgcascade.gate_moved(1)
--     Those who wait for a batch of a queue with a gate look again once this transaction commits.
create function pgcascade.gate_moved(i_queue_id integer) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgcascade.wake_waiters(i_queue_id);
    perform pg_notify('pgcascade_tick', i_queue_id::text);
end
$$;

-- pgcascade.set_confirm_gate(2)
--     Have ticks wait until so many branches and standbys have them; 0: no gate. On the root; branches follow. Returns i_candidates.
--     Errors: not a node; a branch; a negative number.
--     Writes confirm_gate. Wakes those who wait for a batch.
create function pgcascade.set_confirm_gate(i_queue_name text, i_candidates integer) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    me record;
    id integer;
begin
    select * into me from pgcascade.lock_node(i_queue_name);
    if coalesce(i_candidates, -1) < 0 then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('the confirm gate of queue "%s" cannot be %s', i_queue_name, coalesce(i_candidates::text, 'NULL')),
            hint = 'Give the number of branches and standbys that must have a tick before others get it; 0 is no gate.';
    elsif (me.node).node_type <> 'root' then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('node "%s" is a %s of queue "%s", and the confirm gate is the root''s', (me.node).node_name,
                             (me.node).node_type, i_queue_name),
            hint = 'Set it on the root; branches take it over.';
    end if;
    select queue_id into id from pgq.queue where queue_name = i_queue_name;
    delete from pgcascade.confirm_gate where queue_id = id;
    if i_candidates > 0 then
        insert into pgcascade.confirm_gate (queue_id, candidates) values (id, i_candidates);
    end if;
    perform pgcascade.gate_moved(id);
    return i_candidates;
end
$$;

-- pgcascade.offered_gate(1)
--     What a node tells the branches that read from it: how many candidates its gate wants (0: there is none), what is released, its last tick, and
--     the standbys that may have what no branch has; of those that are this server's own, and have any tick, also the ids, for
--     register_candidate().
create function pgcascade.offered_gate(
    in i_queue_name text,
    out candidates integer, out released_tick bigint, out last_tick bigint, out standbys text[], out ids bigint[]
) returns record
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    queue integer;
begin
    select q.queue_id, coalesce(g.candidates, 0), pgcascade.released_tick(g) into queue, candidates, released_tick
      from pgq.queue q
      left join pgcascade.confirm_gate g on g.queue_id = q.queue_id
     where q.queue_name = i_queue_name;
    last_tick := pgcascade.node_tick(i_queue_name);
    if exists (select from pgq_node.node_info n where n.queue_name = i_queue_name and n.node_type = 'root') then
        select coalesce(array_agg(s.standby_name order by s.standby_id), '{}'), coalesce(array_agg(s.standby_id order by s.standby_id), '{}')
          into standbys, ids from pgcascade.gate_standby s where s.queue_id = queue and s.tick_id > 0;
    else
        ids := '{}';
        standbys := array(select f.standby_name from pgcascade.followed_standby f
                           where f.queue_id = queue and (f.until_tick is null or f.until_tick > last_tick) order by 1);
    end if;
end
$$;

-- pgcascade.follow_gate(5)
--     What a branch's replay read from its provider's gate (offered_gate()): how many, what is released there, the standbys, and the
--     last tick there. 0: no gate. On any other node it changes nothing, since a node may have become root meanwhile.
--     A standby that is not offered any more has counted for ticks up to that last one: it is remembered until they are here.
--     Writes confirm_gate, followed_standby. Wakes those who wait for a batch.
create function pgcascade.follow_gate(
    i_queue_name text, i_candidates integer, i_released bigint, i_standbys text[] default '{}', i_last_tick bigint default 0
) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    id integer;
begin
    select q.queue_id into id
      from pgq_node.node_info n join pgq.queue q using (queue_name)
     where n.queue_name = i_queue_name and n.node_type = 'branch' for share of n;
    if not found then
        return;
    end if;
    if coalesce(i_candidates, 0) = 0 then
        delete from pgcascade.confirm_gate where queue_id = id;
    else
        insert into pgcascade.confirm_gate as g (queue_id, candidates, released)
        values (id, i_candidates, coalesce(i_released, 0))
            on conflict (queue_id) do update
           set candidates = excluded.candidates, released = greatest(g.released, excluded.released);
    end if;
    delete from pgcascade.followed_standby where queue_id = id and until_tick <= pgcascade.node_tick(i_queue_name);
    update pgcascade.followed_standby set until_tick = i_last_tick
     where queue_id = id and until_tick is null and standby_name <> all (i_standbys);
    insert into pgcascade.followed_standby as f (queue_id, standby_name)
    select distinct id, s from unnest(i_standbys) s
        on conflict (queue_id, standby_name) do update set until_tick = null where f.until_tick is not null;
    perform pgcascade.gate_moved(id);
end
$$;

-- pgcascade.register_candidate(3)
--     A branch that reads from this node says that it is one, and which of its standbys it has stored (follow_gate()). Returns whether
--     it is a new one.
--     Errors: the node does not read from this one.
--     Writes candidate. Wakes those who wait for a batch if it has stored others than before.
create function pgcascade.register_candidate(i_queue_name text, i_node_name text, i_knows bigint[] default '{}') returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    added boolean;
begin
    if not exists (select from pgq_node.subscriber_info s
                    where s.queue_name = i_queue_name and s.subscriber_node = i_node_name) then
        raise exception using errcode = 'undefined_object',
            message = format('node %s does not read queue %s from this one', coalesce(quote_literal(i_node_name), 'NULL'),
                             coalesce(quote_literal(i_queue_name), 'NULL')),
            hint = 'Register it first, with pgq_node.register_subscriber().';
    end if;
    insert into pgcascade.candidate (queue_name, node_name, knows) values (i_queue_name, i_node_name, coalesce(i_knows, '{}'))
        on conflict do nothing;
    added := found;
    update pgcascade.candidate set knows = coalesce(i_knows, '{}')
     where queue_name = i_queue_name and node_name = i_node_name and knows <> coalesce(i_knows, '{}');
    if found or added then
        perform pgcascade.gate_moved(q.queue_id) from pgq.queue q where q.queue_name = i_queue_name;
    end if;
    return added;
end
$$;

-- pgcascade.released_tick(1)
--     Up to which tick this node gives its queue to leaves and plain consumers; null: there is no limit. On the root: the last tick
--     that as many candidates as the gate wants have, 0 if there are fewer: branches that have finished it, and standbys. On a branch: all
--     that it has if the gate wants one, since it is one that has it; else what its provider had released.
create function pgcascade.released_tick(i_gate pgcascade.confirm_gate) returns bigint
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    node pgq_node.node_info;
begin
    select n.* into node from pgq_node.node_info n join pgq.queue q using (queue_name) where q.queue_id = i_gate.queue_id;
    if not found or node.node_type = 'branch' and i_gate.candidates = 1 then
        return null;
    elsif node.node_type = 'branch' then
        return i_gate.released;
    end if;
    return coalesce((select has.tick
                       from (select s.sub_last_tick
                               from pgcascade.candidate c
                               join pgq_node.subscriber_info i on i.queue_name = c.queue_name and i.subscriber_node = c.node_name
                               join pgq.consumer w on w.co_name = i.worker_name
                               join pgq.subscription s on s.sub_consumer = w.co_id and s.sub_queue = i_gate.queue_id
                              where c.queue_name = node.queue_name
                             union all
                             select s.tick_id
                               from pgcascade.gate_standby s
                              where s.queue_id = i_gate.queue_id and pgcascade.standby_unknown_to(s) = '{}') has (tick)
                      order by has.tick desc offset i_gate.candidates - 1 limit 1), 0);
end
$$;

-- pgcascade.released_tick(2)
--     Up to which tick a consumer is given the queue; null: there is no limit, also for those that are candidates themselves.
create function pgcascade.released_tick(i_queue_name text, i_consumer_name text) returns bigint
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return (select pgcascade.released_tick(g)
              from pgcascade.confirm_gate g
              join pgq.queue q on q.queue_id = g.queue_id
             where q.queue_name = i_queue_name
               and not exists (select from pgcascade.candidate c
                                 join pgq_node.subscriber_info i on i.queue_name = c.queue_name and i.subscriber_node = c.node_name
                                where c.queue_name = i_queue_name and i.worker_name = i_consumer_name));
end
$$;

-- pgcascade.gate_state
--     The confirm gates of this database's nodes: what they want, up to which tick they give, and the last tick that is there.
create view pgcascade.gate_state as
select q.queue_name, g.candidates, pgcascade.released_tick(g) as released_tick,
       (select max(t.tick_id) from pgq.tick t where t.tick_queue = g.queue_id) as last_tick
  from pgcascade.confirm_gate g
  join pgq.queue q on q.queue_id = g.queue_id;

comment on function pgcascade.gate_moved(integer) is 'those who wait for a batch look again, once this commits';
comment on function pgcascade.set_confirm_gate(text, integer) is
    'how many branches and standbys must have a tick before leaves and plain consumers get it; 0: no gate';
comment on function pgcascade.offered_gate(text) is 'what a node tells the branches that read from it of its gate and standbys';
comment on function pgcascade.follow_gate(text, integer, bigint, text[], bigint) is
    'a branch takes over the gate of the node that it reads from';
comment on function pgcascade.register_candidate(text, text, bigint[]) is
    'a branch that reads from this node says that it is one, and which standbys it has stored';
comment on function pgcascade.released_tick(pgcascade.confirm_gate) is 'up to which tick a node gives its queue to leaves and plain consumers';
comment on function pgcascade.released_tick(text, text) is 'up to which tick a consumer is given a queue; null: no limit';
comment on view pgcascade.gate_state is 'confirm gates: what they want, and up to which tick they give';
