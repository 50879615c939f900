-- A standby of the root that was promoted, as the root that it is to be: branches may have ticks that it lacks, and it has
-- events that no tick of its own shows. `consumer takeover --promoted-standby` calls this.
--
-- What is relied on: a standby has the transactions of the root in the order of their commits in the log, up to some place. Ticks
-- show transactions in the order in which they became visible, which is a little later, and not the same order. So of a tick that the
-- standby lacks it may have any part, and it may have transactions that no tick shows which any branch has (the extras).
-- A transaction gives its locks away only after both. Therefore whatever of a tick is missing here depends on nothing that is
-- missing, and can be applied; and no extra touches a row that any of it touches, in either order.
--
--     1. takeover_set_aside(): all events after the last tick leave the queue, in one transaction; it becomes a branch.
--     2. Each tick that is fetched is the donor's, whole, with its ids. Events of it that were set aside are not applied
--        (takeover_had()): their rows are here.
--     3. takeover_put_back(): the extras return, and are in the first tick of the new epoch.
-- A promoted server takes no events before that (notice_promotion(), and the library itself until that was called), so there is
-- nothing here that the root did not write.
--
-- A copy of the root that was adopted as a branch (node_name.sql) has done the first when it was adopted. While it follows its root, that gives it
-- all that it has. If the root is lost before, and the copy is to be the next one, it goes on with the second and the third: whatever made
-- the copy, what it has is what the root had in the order of its log, or what one snapshot of the root showed.

-- pgcascade.tick_digest(2)
--     A tick and the events between it and the tick before, for comparing nodes. The last tick that is not after i_tick_id; no
--     row if there is none. Of the oldest tick there are no events.
create function pgcascade.tick_digest(
    in i_queue_name text, in i_tick_id bigint,
    out tick_id bigint, out tick_time timestamptz, out event_seq bigint, out events bigint, out digest text
) returns setof record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    queue integer;
    previous bigint;
begin
    select t.tick_queue, t.tick_id, t.tick_time, t.tick_event_seq into queue, tick_id, tick_time, event_seq
      from pgq.queue q
      join pgq.tick t on t.tick_queue = q.queue_id
     where q.queue_name = i_queue_name and t.tick_id <= i_tick_id
     order by t.tick_id desc limit 1;
    if not found then
        return;
    end if;
    previous := (select max(t.tick_id) from pgq.tick t where t.tick_queue = queue and t.tick_id < tick_digest.tick_id);
    if previous is not null then
        -- In one encoding, whatever those of the databases are. An event's transaction is each node's own.
        execute format('select count(*), md5(string_agg(md5(convert_to(row(ev_id, extract(epoch from ev_time), ev_type, ev_data, '
                       'ev_extra1, ev_extra2, ev_extra3, ev_extra4)::text, %L)), '''' order by ev_id)) from (%s) batch',
                       case getdatabaseencoding() when 'SQL_ASCII' then 'SQL_ASCII' else 'UTF8' end,
                       pgcascade.tick_event_sql(queue, previous, tick_id, null))
           into events, digest;
    end if;
    return next;
end
$$;

-- pgcascade.takeover_set_aside(1)
--     The first of the above: this root, which is closed, becomes a branch of the donor at its last tick, without the events
--     after that. Called by takeover_fetch(), with the node locked.
--     Errors: it is no root; transactions that write to the queue have not ended.
--     Writes takeover_tail, the event tables, pgq.queue, node_info, local_state.
create function pgcascade.takeover_set_aside(i_takeover pgcascade.takeover) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    q pgq.queue;
    last pgq.tick;
begin
    select * into q from pgq.queue where queue_name = i_takeover.queue_name;
    perform pgcascade.lock_ticker(q.queue_id);
    if pgcascade.has_writers(q.queue_data_pfx::regclass) then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('node "%s" of queue "%s" cannot fetch ticks yet: transactions that write to the queue have not ended',
                             i_takeover.new_node, i_takeover.queue_name),
            detail = 'Prepared transactions of the database: '
                     || coalesce((select string_agg(quote_literal(p.gid), ', ' order by p.gid) from pg_prepared_xacts p
                                   where p.database = current_database()), 'none') || '.',
            hint = 'Commit or roll back prepared ones, as whoever prepared them says; then repeat.';
    end if;
    select * into last from pgq.tick where tick_queue = q.queue_id order by tick_id desc limit 1;
    execute format($q$
        with removed as (
            delete from %1$s e where e.ev_txid >= txid_snapshot_xmin($1) and not txid_visible_in_snapshot(e.ev_txid, $1))
        insert into pgcascade.takeover_tail
        select $2, $3, ev_id, ev_time, ev_txid, ev_owner, ev_retry, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4, null
          from %2$s e
         where e.ev_txid >= txid_snapshot_xmin($1) and not txid_visible_in_snapshot(e.ev_txid, $1)$q$,
                   q.queue_data_pfx, pgcascade.event_source(q.queue_id))
      using last.tick_snapshot, i_takeover.op_id, i_takeover.queue_name;
    -- A ticker that somebody had paused takes no ticks of the donor either.
    update pgq.queue set queue_ticker_paused = false where queue_id = q.queue_id and queue_ticker_paused;
    update pgq_node.node_info set node_type = 'branch' where queue_name = i_takeover.queue_name;
    update pgq_node.local_state l set last_tick_id = last.tick_id
      from pgq_node.node_info n
     where n.queue_name = i_takeover.queue_name and l.queue_name = n.queue_name and l.consumer_name = n.worker_name;
end
$$;

-- pgcascade.takeover_had(2)
--     The second: which events of the tick that this transaction stores were here before, so that their rows are not to be changed
--     again. Called by replay in the transaction of each batch, after its events were stored.
--     Errors (XX001): an event that was here is another one than the donor's of that id; an adopted copy has events that the root
--     did not. 55006: or that the root was lost with, adoption_lost() comes first.
--     Writes takeover_tail, adoption.
create function pgcascade.takeover_had(i_queue_name text, i_tick_id bigint) returns bigint[]
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    op uuid;
    source text;
    -- Of an adopted copy: by this tick the root has given all that it had when the copy was made.
    complete_tick bigint;
    anew constant text := 'The copy took writes of its own. Make it anew: consumer node drop, then create-branch.';
    had bigint[];
    other bigint;
begin
    select coalesce(a.op_id, t.op_id), a.complete_tick, pgcascade.event_source(q.queue_id) into op, complete_tick, source
      from pgq.queue q
      left join pgcascade.adoption a on a.queue_name = q.queue_name
      left join pgcascade.takeover t on t.queue_name = q.queue_name and t.step not in ('done', 'aborted')
     where q.queue_name = i_queue_name;
    if op is null then
        return '{}';
    end if;
    -- Events that were put back for one consumer are no part of a tick on other nodes.
    execute format($q$
        with stored as (select * from %s e where ev_txid = txid_current()),
        had as (
            update pgcascade.takeover_tail t set tick_id = $2
              from stored s
             where t.op_id = $1 and t.ev_id = s.ev_id and t.ev_owner is null
            returning s.ev_id, (s.ev_time, s.ev_type, s.ev_data, s.ev_extra1, s.ev_extra2, s.ev_extra3, s.ev_extra4)
                is distinct from (t.ev_time, t.ev_type, t.ev_data, t.ev_extra1, t.ev_extra2, t.ev_extra3, t.ev_extra4) as differs)
        select coalesce(array_agg(ev_id order by ev_id), '{}'), min(ev_id) filter (where differs) from had$q$, source)
       into had, other using op, i_tick_id;
    if other is not null then
        raise exception using errcode = 'data_corrupted',
            message = format('event %s of queue "%s" is another one here than in tick %s of the donor', other, i_queue_name,
                             i_tick_id),
            hint = case when complete_tick is not null then anew
                        else 'This server took writes after its promotion, or is no standby of the root. Abort this takeover, and make '
                             'a branch the root: consumer takeover BRANCH --dead ROOT.'
                   end;
    end if;
    if complete_tick <= i_tick_id then
        select min(a.ev_id) into other from pgcascade.takeover_tail a where a.op_id = op and a.tick_id is null;
        if other is not null and (pgcascade.adoption_end(i_queue_name)).epoch is not null then
            raise exception using errcode = 'object_in_use',
                message = format('event %s of queue "%s" was here when the copy was adopted, and its root was lost before others had it',
                                 other, i_queue_name),
                hint = 'Its replay saves what only it has, and goes on.';
        elsif other is not null then
            raise exception using errcode = 'data_corrupted',
                message = format('event %s of queue "%s" was here when the copy was adopted, and is in no tick up to %s', other,
                                 i_queue_name, i_tick_id),
                hint = anew;
        end if;
        delete from pgcascade.takeover_tail a where a.op_id = op;
        delete from pgcascade.adoption a where a.op_id = op;
    end if;
    return had;
end
$$;

-- pgcascade.takeover_put_back(1)
--     The third: the events that were set aside and that no fetched tick has are in the queue again, as events of this transaction.
--     Called when the takeover is promoted, and when it is aborted, with the node locked. Returns how many.
--     Writes the current event table, takeover_tail.
create function pgcascade.takeover_put_back(i_takeover pgcascade.takeover) returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    prefix text;
    current integer;
    extras bigint;
begin
    if not exists (select from pgcascade.takeover_tail a where a.op_id = i_takeover.op_id and a.tick_id is null) then
        return 0;
    end if;
    -- As every writer: transaction id, lock, control row (docs/concurrency.md). The queue is closed for all others.
    perform txid_current();
    select q.queue_data_pfx into prefix from pgq.queue q where q.queue_name = i_takeover.queue_name;
    execute format('lock table only %s in row exclusive mode', prefix);
    select q.queue_cur_table into current from pgq.queue q where q.queue_name = i_takeover.queue_name;
    execute format($q$
        with extra as (
            update pgcascade.takeover_tail set tick_id = 0 where op_id = $1 and tick_id is null returning *)
        insert into %s (ev_id, ev_time, ev_owner, ev_retry, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4)
        select ev_id, ev_time, ev_owner, ev_retry, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4
          from extra$q$, prefix || '_' || current)
      using i_takeover.op_id;
    get diagnostics extras = row_count;
    return extras;
end
$$;

-- pgcascade.takeover_restore(1)
--     The end of a takeover of a promoted standby that was aborted: it is the closed root that it was, with the ticks that it has
--     fetched. Called by takeover_abort(), with the node locked. Writes node_info, local_state, and as takeover_put_back().
create function pgcascade.takeover_restore(i_takeover pgcascade.takeover) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    update pgq_node.node_info set node_type = 'root' where queue_name = i_takeover.queue_name and node_type = 'branch';
    if not found then
        return;
    end if;
    update pgq_node.local_state l set provider_node = n.node_name, uptodate = false
      from pgq_node.node_info n
     where n.queue_name = i_takeover.queue_name and l.queue_name = n.queue_name and l.consumer_name = n.worker_name;
    perform pgcascade.takeover_put_back(i_takeover);
    delete from pgcascade.takeover_tail a where a.op_id = i_takeover.op_id;
end
$$;

-- pgcascade.note_location(4)
--     As pgq_node.register_location() of a node that is known here, but the other nodes are not told, which a closed root cannot: they
--     are when it is open. A null location keeps the one that is known.
--     Errors: no such node. Writes node_location.
create function pgcascade.note_location(i_queue_name text, i_node text, i_location text, i_dead boolean) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update pgq_node.node_location l set node_location = coalesce(i_location, l.node_location), dead = i_dead
     where l.queue_name = i_queue_name and l.node_name = i_node;
    if not found then
        raise exception using errcode = 'undefined_object',
            message = format('this database knows no node %s of queue %s', coalesce(quote_literal(i_node), 'NULL'),
                             coalesce(quote_literal(i_queue_name), 'NULL')),
            hint = 'pgq_node.node_location lists those that it knows.';
    end if;
end
$$;

comment on function pgcascade.tick_digest(text, bigint) is 'a tick and a digest of its events, for comparing nodes';
comment on function pgcascade.takeover_set_aside(pgcascade.takeover) is
    'make a promoted standby a branch, its events after the last tick set aside';
comment on function pgcascade.takeover_had(text, bigint) is 'which events of the tick that is stored were set aside here';
comment on function pgcascade.takeover_put_back(pgcascade.takeover) is 'put back events that were set aside and that no tick has';
comment on function pgcascade.takeover_restore(pgcascade.takeover) is 'make a promoted standby the closed root again that it was';
comment on function pgcascade.note_location(text, text, text, boolean) is 'change where a node is, without telling other nodes';
