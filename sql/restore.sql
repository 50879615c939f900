-- Queues that came with a dump: pg_dump saves events and ticks with the transaction ids of the cluster they were made in.
--
-- What they mean here depends on this cluster's own counter. If it was beyond all of them when the queue was loaded, they
-- are simply old, and everything goes on by itself. If not, an event written here could have an id that a tick from there
-- takes for seen long ago, and no consumer would ever get it; and it would not help to wait until the counter has passed
-- them. So a queue is marked when its row is loaded, and until the mark is gone it is not written to, ticked or rotated.
-- What the dump's ticks cover can be read and finished meanwhile: nothing is added to it.
-- The mark is taken off by the next look of the ticker where the ids are old, else by pgcascade.mend_restored().

-- One row per marked queue. Not saved by pg_dump: it is about this cluster.
create table pgcascade.restored_queue (
    queue_id    integer     not null,
    oldest_xid  bigint      not null,   -- no transaction that can write to the queue has an id below this one

    constraint restored_queue_pkey primary key (queue_id),
    constraint restored_queue_queue_fkey foreign key (queue_id) references pgq.queue (queue_id) on delete cascade
);

comment on table pgcascade.restored_queue is 'queues loaded from a dump whose transaction ids have not been settled yet';

-- pgcascade.mark_restored()
--     Trigger on pgq.queue: marks a queue whose tables are there before its row is. pg_restore makes them in that order,
--     pgq.create_queue() in the other one. Writes pgcascade.restored_queue.
create function pgcascade.mark_restored() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if to_regclass(new.queue_data_pfx) is not null then
        insert into pgcascade.restored_queue (queue_id, oldest_xid)
        values (new.queue_id, txid_snapshot_xmin(txid_current_snapshot()));
    end if;
    return null;
end
$$;

-- ALWAYS: a restore may run with session_replication_role = replica.
create trigger pgcascade_mark_restored
    after insert on pgq.queue
    for each row execute function pgcascade.mark_restored();
alter table pgq.queue enable always trigger pgcascade_mark_restored;

-- pgcascade.restore_incomplete(1)
--     What a marked queue still lacks, as a sentence's end; null if its restore is complete. pg_restore makes indexes after
--     it has loaded the rows, also with --jobs: a table that has its index has its rows.
create function pgcascade.restore_incomplete(i_queue_id integer) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    bare regclass;
begin
    if not exists (select from pgq.tick where tick_queue = i_queue_id) then
        return 'it has no ticks yet';
    end if;
    select i.inhrelid into bare
      from pgq.queue q
      join pg_inherits i on i.inhparent = to_regclass(q.queue_data_pfx)
      join pg_attribute a on a.attrelid = i.inhrelid and a.attname = 'ev_txid'
     where q.queue_id = i_queue_id
       and not exists (select from pg_index x where x.indrelid = i.inhrelid and x.indisvalid and x.indkey[0] = a.attnum)
     order by 1 limit 1;
    return format('table %s has no index on ev_txid yet', bare) where found;
end
$$;

-- pgcascade.packs_unsaid(1)
--     Whether a marked queue has packs, and no row of pgcascade.packed_queue: they would be taken for single events. It reads
--     the event tables, so it is asked last. No row is made: the restore may still bring it.
create function pgcascade.packs_unsaid(i_queue_id integer) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    result boolean;
begin
    if exists (select from pgcascade.packed_queue where queue_id = i_queue_id) then
        return false;
    end if;
    execute format($sql$select exists (select from %s where ev_retry < 0 and starts_with(ev_data, E'0\t'))$sql$,
                   (select queue_data_pfx from pgq.queue where queue_id = i_queue_id))
       into result;
    return result;
end
$$;

-- pgcascade.refuse_incomplete(2)
--     Raises what a marked queue still lacks. i_read_events: also what is only known by reading its event tables.
create function pgcascade.refuse_incomplete(i_queue_id integer, i_read_events boolean) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    missing text := pgcascade.restore_incomplete(i_queue_id);
    remedy text := 'restore again what is missing';
begin
    if missing is null and i_read_events and pgcascade.packs_unsaid(i_queue_id) then
        missing := 'it has packs, and pgcascade.packed_queue has no row of it yet';
        remedy := 'restore that row, or make it with pgcascade.pack_events(name, true)';
    end if;
    if missing is not null then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('queue "%s" is being restored: %s',
                             (select queue_name from pgq.queue where queue_id = i_queue_id), missing),
            hint = format('If the restore has ended, it was not complete: %s, or drop the queue with pgq.drop_queue(name, true).',
                          remedy);
    end if;
end
$$;

-- pgcascade.newest_foreign_xid(1)
--     The greatest transaction id in a marked queue: all of them come from the dump.
create function pgcascade.newest_foreign_xid(i_queue_id integer) returns bigint
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    q pgq.queue;
    result bigint;
    newest bigint;
    event_table regclass;
begin
    select * into q from pgq.queue where queue_id = i_queue_id;
    select greatest(q.queue_switch_step1, q.queue_switch_step2, max(txid_snapshot_xmax(tick_snapshot)) - 1) into result
      from pgq.tick where tick_queue = i_queue_id;
    -- One by one: each is a look at the end of its index.
    for event_table in select inhrelid from pg_inherits where inhparent = to_regclass(q.queue_data_pfx) loop
        execute format('select max(ev_txid) from %s', event_table) into newest;
        result := greatest(result, newest);
    end loop;
    return result;
end
$$;

-- pgcascade.settle_restored()
--     Takes the mark off queues whose restore is complete and whose transaction ids are all older than any that can be
--     written here. Called at each look of the ticker. Writes pgcascade.restored_queue; assigns no transaction id when
--     there is nothing to take off.
create function pgcascade.settle_restored() returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    if exists (select from pgcascade.restored_queue) then
        -- Looking at the tables of several queues would deadlock with mending, which locks them one after the other. The
        -- lock is not waited for: a ticker may have a queue that mending waits for.
        begin
            lock table pgcascade.restored_queue in share row exclusive mode nowait;
        exception when lock_not_available then
            return;
        end;
        delete from pgcascade.restored_queue r
         where case
                   when pgcascade.restore_incomplete(r.queue_id) is null
                       and pgcascade.newest_foreign_xid(r.queue_id) < r.oldest_xid
                   then not pgcascade.packs_unsaid(r.queue_id)
                   else false
               end;
    end if;
end
$$;

-- pgcascade.check_restored(1)
--     Refuses a queue that is marked and cannot be settled. Called before each tick and each rotation.
--     Errors: the restore is not complete; the queue has transaction ids that this cluster gives out again; another session
--     settles or mends queues at this moment.
create function pgcascade.check_restored(i_queue_id integer) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    name text;
    oldest bigint;
    newest bigint;
begin
    if not exists (select from pgcascade.restored_queue where queue_id = i_queue_id) then
        return;
    end if;
    perform pgcascade.settle_restored();
    select q.queue_name, r.oldest_xid into name, oldest
      from pgcascade.restored_queue r join pgq.queue q on q.queue_id = r.queue_id
     where r.queue_id = i_queue_id;
    if not found then
        return;
    end if;
    perform pgcascade.refuse_incomplete(i_queue_id, false);
    newest := pgcascade.newest_foreign_xid(i_queue_id);
    if newest < oldest then
        perform pgcascade.refuse_incomplete(i_queue_id, true);
        raise exception using errcode = 'lock_not_available',
            message = format('queue "%s" was restored, and another session is looking at that', name),
            hint = 'Try again when it has ended: select pid from pg_locks where relation = ''pgcascade.restored_queue''::regclass.';
    end if;
    raise exception using errcode = 'object_not_in_prerequisite_state',
        message = format('Invalid PgQ state: queue "%s" was restored from another cluster: it has transaction ids up to %s,'
                         ' this cluster was at %s', name, newest, oldest),
        hint = 'Run select pgcascade.mend_restored(): it gives the queue transaction ids of this cluster; consumers go on '
               'where they were.';
end
$$;

-- pgcascade.mend_restored()
--     Gives all marked queues transaction ids of this cluster, so that each consumer goes on with exactly the events that it
--     had not finished. Returns how many queues were marked.
--     Errors: the restore of one is not complete; consumers stand at more ticks than this cluster has had transactions; not
--     READ COMMITTED.
--     Locks the event tables against everybody. Writes them, pgq.tick, pgq.queue and pgcascade.restored_queue. The event
--     tables grow to twice their size until they are rotated.
create function pgcascade.mend_restored() returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    q pgq.queue;
    result integer := 0;
begin
    if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
        raise exception using errcode = 'active_sql_transaction',
            message = format('queues cannot be mended in a %s transaction', current_setting('transaction_isolation')),
            hint = 'Its snapshot may be older than what has to be mended. Use READ COMMITTED.';
    end if;
    lock table pgcascade.restored_queue in share row exclusive mode;
    for q in
        select * from pgq.queue
         where queue_id in (select queue_id from pgcascade.restored_queue)
         order by queue_id      -- the order of pgq.ticker()
    loop
        perform pgcascade.lock_ticker(q.queue_id);
        perform pgcascade.refuse_incomplete(q.queue_id, true);
        perform pgcascade.renumber(q.queue_id);
        delete from pgcascade.restored_queue where queue_id = q.queue_id;
        result := result + 1;
    end loop;
    return result;
end
$$;

-- pgcascade.renumber(1)
--     The work of mend_restored() for one queue, whose ticker lock the caller holds.
--
-- What a tick sees, the ticks after it see too. So all that matters of an event's transaction id is how many ticks do not
-- see it: that is the number of the batch that it is in. Events get this number, counted from `base`, as their transaction
-- id, and tick k the snapshot "all below base + k, nothing in progress". Which events are between any two ticks stays
-- the same. Transactions that were in progress when the dump was made have no rows in it and are forgotten. The numbers
-- end right below all transaction ids that are in use now.
-- A young cluster may have had fewer transactions than the queue has ticks. Then ticks go that no consumer and no node
-- stands at, evenly: batches become larger.
create function pgcascade.renumber(i_queue_id integer) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    q pgq.queue;
    next_xid bigint;
    room bigint;
    needed bigint[];
    base bigint;
begin
    select * into q from pgq.queue where queue_id = i_queue_id for update;
    execute format('lock table %s in access exclusive mode', q.queue_data_pfx);
    next_xid := txid_snapshot_xmin(txid_current_snapshot());

    -- 1 and 2 are not transactions, and one number more than there are ticks is for events that none of them sees.
    room := next_xid - 4;
    needed := array(
        select t.tick_id from pgq.tick t
         where t.tick_queue = i_queue_id
           and (exists (select from pgq.subscription s
                         where s.sub_queue = i_queue_id and t.tick_id in (s.sub_last_tick, s.sub_next_tick))
                or exists (select from pgq_node.local_state l
                            where l.queue_name = q.queue_name and l.last_tick_id = t.tick_id)
                or t.tick_id = (select max(l.tick_id) from pgq.tick l where l.tick_queue = i_queue_id)));
    if cardinality(needed) > room then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('queue "%s" needs %s transaction ids, and this cluster has had %s',
                             q.queue_name, cardinality(needed), room),
            hint = 'Use up some more, each with SELECT txid_current() in a transaction of its own, and try again.';
    end if;
    delete from pgq.tick
     where tick_queue = i_queue_id
       and tick_id in (
           -- As many of the others stay as there is room for: those at which the rounded share goes up.
           select o.tick_id
             from (select t.tick_id, row_number() over (order by t.tick_id) as nr, count(*) over () as others,
                          room - cardinality(needed) as spare
                     from pgq.tick t
                    where t.tick_queue = i_queue_id and t.tick_id <> all (needed)) o
            where o.others > o.spare and o.nr * o.spare / o.others = (o.nr - 1) * o.spare / o.others);
    select next_xid - 1 - count(*) into base from pgq.tick where tick_queue = i_queue_id;

    -- Ticks that do not see a transaction id: those made before it was given out, and those it was in progress at.
    execute format($sql$
        with old (xid) as (
            select ev_txid from %1$s union select $2 union select $3
        ), made_before as (
            select m.xid, m.given_out,
                   count(*) filter (where not m.given_out) over (order by m.xid, m.given_out rows unbounded preceding) as ticks
              from (select o.xid, true as given_out from old o
                    union all
                    select txid_snapshot_xmax(t.tick_snapshot), false from pgq.tick t where t.tick_queue = $1) m
        ), in_progress as (
            select x.xid, count(*) as ticks
              from pgq.tick t cross join lateral txid_snapshot_xip(t.tick_snapshot) x (xid)
             where t.tick_queue = $1
             group by x.xid
        ), number as materialized (
            select b.xid, $4 + b.ticks + coalesce(p.ticks, 0) as new
              from made_before b left join in_progress p on p.xid = b.xid
             where b.given_out
        ), events as (
            update %1$s e set ev_txid = n.new from number n where n.xid = e.ev_txid
        )
        update pgq.queue
           set queue_switch_step1 = (select n.new from number n where n.xid = $2),
               queue_switch_step2 = (select n.new from number n where n.xid = $3)
         where queue_id = $1$sql$, q.queue_data_pfx)
      using i_queue_id, q.queue_switch_step1, q.queue_switch_step2, base;

    update pgq.tick t
       set tick_snapshot = format('%1$s:%1$s:', base + n.nr)::txid_snapshot
      from (select tick_id, row_number() over (order by tick_id) as nr from pgq.tick where tick_queue = i_queue_id) n
     where t.tick_queue = i_queue_id and t.tick_id = n.tick_id;
end
$$;

comment on function pgcascade.mark_restored() is 'trigger on pgq.queue: marks a queue that comes from a dump';
comment on function pgcascade.restore_incomplete(integer) is 'what a queue that is being restored still lacks';
comment on function pgcascade.packs_unsaid(integer) is 'whether a queue that is being restored has packs, and nothing says so';
comment on function pgcascade.refuse_incomplete(integer, boolean) is 'raise what a queue that is being restored still lacks';
comment on function pgcascade.newest_foreign_xid(integer) is 'greatest transaction id in a restored queue';
comment on function pgcascade.settle_restored() is 'take the mark off restored queues that are sound as they are';
comment on function pgcascade.check_restored(integer) is 'raise an error for a restored queue that must be mended first';
comment on function pgcascade.mend_restored() is 'give restored queues transaction ids of this cluster; returns how many';
comment on function pgcascade.renumber(integer) is 'give a queue transaction ids of this cluster';
