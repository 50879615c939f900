-- Standbys that count for the confirm gate (gate.sql), beside the branches that read from the root.
--
-- A standby has a tick when its log, on disk, reaches beyond the tick's commit. The server says how far each standby's log reaches
-- (pg_stat_replication), and nobody writes down where a tick's commit is. So it is noted afterwards: first the last tick is seen, which a
-- snapshot shows only after its commit is in the log, then the log's end is read. Once a standby has that, it has the tick.
-- The background worker does this after each look, and pgq.ticker() without one.
--
-- A note is a commit of its own, after the log's end that it is about: so that end is flushed and sent also when nobody writes. At most one
-- is open for each standby, none while the standby is away; ticks that come meanwhile are in the next one. What a standby
-- had it is taken to have for ever, as a branch.
--
-- What a takeover has to ask: a tick may be with a consumer because a standby has it, and no branch. So a standby that is known to have any tick
-- counts only once every branch that reads from the root has stored its name (followed_standby), and every other such standby's log reaches
-- beyond the row that says so. A takeover to any of them finds the name, and is refused unless the operator gives that standby up. One that was named and never
-- seen is asked for nowhere: all members of a cluster can be named once, the root's server among them.

-- On the root; also set ahead on a branch whose server has standbys, for when it is the root. Not saved by pg_dump: it is about
-- standbys of this server.
create table pgcascade.gate_standby (
    queue_id        integer not null,
    standby_name    text    not null,
    -- Given out once: who knows of a standby that was there before knows nothing of one of the same name that was named again.
    standby_id      bigint  not null generated always as identity,
    -- The last tick that it is known to have, and which rows of this table as those of standbys that have any.
    tick_id         bigint  not null default 0,
    knows           bigint[] not null default '{}',
    -- What it has once its log reaches there; null: nothing is waited for.
    awaited_lsn     pg_lsn,
    awaited_tick    bigint,
    awaited_knows   bigint[],

    constraint gate_standby_pkey primary key (queue_id, standby_name),
    constraint gate_standby_queue_fkey foreign key (queue_id) references pgq.queue (queue_id) on delete cascade
);

-- On a branch: the standbys of the root that may have ticks which no branch has.
create table pgcascade.followed_standby (
    queue_id        integer not null,
    standby_name    text    not null,
    -- It does not count any more; what it counted for is up to here. Null: it counts.
    until_tick      bigint,

    constraint followed_standby_pkey primary key (queue_id, standby_name),
    constraint followed_standby_queue_fkey foreign key (queue_id) references pgq.queue (queue_id) on delete cascade
);

comment on table pgcascade.gate_standby is 'standbys of this server that count for the confirm gate, and the ticks that they have';
comment on table pgcascade.followed_standby is 'standbys of the root that a branch would ask for in a takeover';

select pg_catalog.pg_extension_config_dump('pgcascade.followed_standby', '');

-- pgcascade.flushed_standbys()
--     How far the logs of this server's standbys reach, by application_name. Only what streams and replays is a standby: pg_receivewal
--     replays nothing, and a logical slot's reader has no log. Of several by one name the one that has least, and none
--     while one of them does not stream yet or has not said what it has: nobody can say which of them would be promoted.
create function pgcascade.flushed_standbys(out standby_name text, out flushed pg_lsn) returns setof record
language sql volatile security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select r.application_name, min(r.flush_lsn)
      from pg_stat_replication r
     where (r.replay_lsn is not null or r.write_lsn is null)
       and not exists (select from pg_replication_slots s where s.active_pid = r.pid and s.slot_type = 'logical')
     group by r.application_name
    having bool_and(r.state = 'streaming' and r.flush_lsn is not null);
end;

-- pgcascade.standby_unknown_to(1)
--     Who does not know yet of a standby, so that it does not count: branches that read from here, and other standbys.
create function pgcascade.standby_unknown_to(i_standby pgcascade.gate_standby) returns text[]
language sql stable security definer
set search_path = pg_catalog, pg_temp
return array(
    select c.node_name
      from pgcascade.candidate c
      join pgq.queue q using (queue_name)
     where q.queue_id = i_standby.queue_id and i_standby.standby_id <> all (c.knows)
     union
    select o.standby_name
      from pgcascade.gate_standby o
     where o.queue_id = i_standby.queue_id and o.standby_id <> i_standby.standby_id and i_standby.standby_id <> all (o.knows)
       and o.tick_id > 0
     order by 1);

-- pgcascade.set_gate_standby(3)
--     Have a standby of this server count for the confirm gate, or not any more. It is named by its application_name, as in
--     synchronous_standby_names; one that is not there yet is told of in a notice. It counts while this node is the root.
--     Returns whether that was a change.
--     Errors: not a node; not a root or branch; a name that no standby can have.
--     Writes gate_standby. Wakes those who wait for a batch.
create function pgcascade.set_gate_standby(i_queue_name text, i_standby_name text, i_counts boolean default true) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    me record;
    id integer;
    changed boolean;
begin
    select * into me from pgcascade.lock_node(i_queue_name);
    select queue_id into id from pgq.queue where queue_name = i_queue_name;
    if id is null then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('node "%s" of queue "%s" has no queue, and no confirm gate', (me.node).node_name, i_queue_name),
            hint = 'Name the standby on the root, or on a branch that may become the root.';
    elsif i_standby_name !~ '^[\x20-\x7e]{1,63}$' is not false or i_counts is null then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('%s cannot be the application_name of a standby', coalesce(quote_literal(i_standby_name), 'NULL')),
            hint = 'Give the one in primary_conninfo of the standby, as pg_stat_replication shows it: 1 to 63 printable characters of ASCII.';
    end if;
    if i_counts then
        insert into pgcascade.gate_standby (queue_id, standby_name) values (id, i_standby_name) on conflict do nothing;
        changed := found;
        if not exists (select from pgcascade.flushed_standbys() f where f.standby_name = i_standby_name) then
            raise notice using message = format('no standby "%s" streams from this server now', i_standby_name),
                hint = 'It counts from when it does. pg_stat_replication shows the application_name of each.';
        end if;
    else
        delete from pgcascade.gate_standby where queue_id = id and standby_name = i_standby_name;
        changed := found;
    end if;
    if changed then
        perform pgcascade.gate_moved(id);
    end if;
    return changed;
end
$$;

-- pgcascade.renew_gate_standbys(1)
--     This node has become the root, or its server another one: what its standbys had is not what they are known to have now, and nobody knows of
--     them. Called in the transaction that makes it the root. Writes gate_standby.
create function pgcascade.renew_gate_standbys(i_queue_name text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    with before as (
        delete from pgcascade.gate_standby s using pgq.queue q
         where q.queue_name = i_queue_name and s.queue_id = q.queue_id
        returning s.queue_id, s.standby_name, s.standby_id)
    insert into pgcascade.gate_standby (queue_id, standby_name)
    select b.queue_id, b.standby_name from before b order by b.standby_id;
end
$$;

-- pgcascade.confirm_standbys()
--     Look which standbys have the ticks that they are waited for, and note what is to be waited for next. Called by the background
--     worker after each look, and by pgq.ticker(). Returns true if something was written, false if standbys that are there are still
--     waited for, null if there is nothing to wait for: a standby that is away is found by the next look.
--     Does nothing in a transaction that has an id: it would see ticks of its own, which are not in the log yet.
--     Writes gate_standby; assigns a transaction id only then. Wakes those who wait for a batch.
create function pgcascade.confirm_standbys() returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    seen record;
    log_end pg_lsn;
    reaches pg_lsn;
    result boolean;
    tick bigint;
    known bigint[];
    awaits boolean;
begin
    if not exists (select from pgcascade.gate_standby) or txid_current_if_assigned() is not null then
        return null;
    end if;
    for seen in
        select s.*, now.last_tick, now.ids
          from pgcascade.gate_standby s
          join pgcascade.confirm_gate g using (queue_id)
          join pgq.queue q using (queue_id)
          -- Not a root that was promoted outside takeover: it may be none for long.
          join pgcascade.node_state n on n.queue_name = q.queue_name and n.role = 'root' and n.fence_reason is null
                                     and (n.timeline is null or n.timeline = pgcascade.current_timeline())
         cross join lateral (
                   select (select max(t.tick_id) from pgq.tick t where t.tick_queue = s.queue_id) as last_tick,
                          array(select o.standby_id from pgcascade.gate_standby o
                                 where o.queue_id = s.queue_id and o.tick_id > 0 order by 1) as ids) now
         where now.last_tick > s.tick_id or now.ids <> s.knows
         order by s.standby_id
    loop
        -- After the snapshot that showed the tick and the rows.
        log_end := pg_current_wal_insert_lsn();
        select f.flushed into reaches from pgcascade.flushed_standbys() f where f.standby_name = seen.standby_name;
        continue when reaches is null;
        tick := seen.tick_id;
        known := seen.knows;
        awaits := true;
        if reaches >= log_end then
            tick := seen.last_tick;
            known := seen.ids;
            awaits := false;
        elsif reaches >= seen.awaited_lsn then
            tick := seen.awaited_tick;
            known := seen.awaited_knows;
            awaits := seen.last_tick > tick or seen.ids <> known;
        elsif seen.awaited_lsn <= log_end then
            result := coalesce(result, false);
            continue;
        end if;
        -- With the others, the end of the log is on disk and on its way.
        if current_setting('synchronous_commit') = 'off' then
            perform set_config('synchronous_commit', 'local', true);
        end if;
        update pgcascade.gate_standby
           set tick_id = tick, knows = known,
               awaited_lsn = case when awaits then log_end end,
               awaited_tick = case when awaits then seen.last_tick end,
               awaited_knows = case when awaits then seen.ids end
         where standby_id = seen.standby_id and tick_id = seen.tick_id and awaited_lsn is not distinct from seen.awaited_lsn;
        result := true;
        if found and (tick > seen.tick_id or known <> seen.knows) then
            perform pgcascade.gate_moved(seen.queue_id);
        end if;
    end loop;
    return result;
end
$$;

-- pgcascade.gate_standbys()
--     The standbys that were named for confirm gates: the last tick that each is known to have, whether it streams from this server now,
--     and who has to know of it before it counts.
create function pgcascade.gate_standbys(
    out queue_name text, out standby_name text, out tick_id bigint, out streams boolean, out unknown_to text[]
) returns setof record
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select q.queue_name, s.standby_name, s.tick_id,
           exists (select from pgcascade.flushed_standbys() f where f.standby_name = s.standby_name),
           pgcascade.standby_unknown_to(s)
      from pgcascade.gate_standby s
      join pgq.queue q using (queue_id)
     order by 1, 2;
end
$$;

-- pgcascade.other_standbys(3)
--     On a promoted standby: the other standbys of the gate, which may have ticks that it lacks. Not those that stream from it: they follow its
--     log, so they had no more.
--     i_own_name  the name that it had itself; null: as its settings say, that it connected with
--     i_known     standbys that branches know of, beside those of its own table
create function pgcascade.other_standbys(i_queue_name text, i_own_name text, i_known text[]) returns setof text
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    -- As libpq and the server's own receiver find it.
    own constant text := coalesce(i_own_name,
        replace(substring(current_setting('primary_conninfo') from '\mapplication_name\s*=\s*''((?:[^''\\]|\\.)*)'''), '\', ''),
        substring(current_setting('primary_conninfo') from '\mapplication_name\s*=\s*([^\s&]+)'),
        nullif(current_setting('cluster_name'), ''), 'walreceiver');
begin
    return query
    select k.name
      from (select s.standby_name from pgcascade.gate_standby s join pgq.queue q using (queue_id)
             where q.queue_name = i_queue_name and s.tick_id > 0
            union
            select unnest(i_known)) k (name)
     where k.name <> own
       and not exists (select from pgcascade.flushed_standbys() f where f.standby_name = k.name)
     order by 1;
end
$$;

comment on function pgcascade.flushed_standbys() is 'how far the logs of this server''s standbys reach';
comment on function pgcascade.standby_unknown_to(pgcascade.gate_standby) is 'who has to know of a standby before it counts for a confirm gate';
comment on function pgcascade.set_gate_standby(text, text, boolean) is
    'have a standby of this server count for the confirm gate of a queue, or not any more';
comment on function pgcascade.renew_gate_standbys(text) is 'a new root knows nothing of what its standbys have';
comment on function pgcascade.confirm_standbys() is 'look which ticks the standbys of confirm gates have';
comment on function pgcascade.gate_standbys() is 'standbys that were named for confirm gates, and the ticks that they have';
comment on function pgcascade.other_standbys(text, text, text[]) is 'standbys of the gate that may have what a promoted one lacks';
