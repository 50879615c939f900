-- A root whose server was promoted by somebody else: a standby of it, a copy of its files, a dump that was loaded
-- elsewhere. There may be two of it now, and it may lack ticks that branches have and would give out their ids again for
-- other events. So it is closed as soon as it is noticed, takes no events before that (pgext/src/promoted.rs), and opens with a new epoch
-- when an operator says that it is the root.

-- pgcascade.notice_promotion()
--     Close the roots of this database that were last seen on another server or timeline, also those that a takeover had closed, which
--     they keep their promise to; note where others are that were never seen. Called by the background worker at each look, and by what asks whether a root was promoted. Assigns no transaction id
--     while nothing has changed. Returns how many were closed. Writes node_epoch; pgq.queue of those.
create function pgcascade.notice_promotion() returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    here text;
    timeline_here integer;
    me record;
    root record;
    closed integer := 0;
begin
    if not exists (select from pgq_node.node_info n where n.node_type = 'root') then
        return 0;
    end if;
    select c.system_identifier::text, pgcascade.current_timeline() into here, timeline_here from pg_control_system() c;
    for root in
        select s.queue_name from pgcascade.node_state s
         where s.role = 'root' and (s.system_id, s.timeline) is distinct from (here, timeline_here)
           and (s.fence_reason is null or s.closing_tick is not null)
           -- What is being restored has not all of its rows yet; it takes no events until it is whole (restore.sql).
           and exists (select from pgq.queue q
                        where q.queue_name = s.queue_name
                          and not exists (select from pgcascade.restored_queue r where r.queue_id = q.queue_id))
         order by 1
    loop
        select * into me from pgcascade.lock_node(root.queue_name);
        continue when (me.node).node_type <> 'root' or (me.known).fence_reason is not null and (me.known).closing_tick is null;
        if (me.known).system_id is null then
            perform pgcascade.note_server(root.queue_name);
        elsif ((me.known).system_id, (me.known).timeline) is distinct from (here, timeline_here) then
            update pgq.queue set queue_disable_insert = true, queue_external_ticker = true where queue_name = root.queue_name;
            update pgcascade.node_epoch
               set fence_op = null, closing_tick = null,
                   fence_reason = format('promoted outside takeover: was on server %s, timeline %s, is on server %s, timeline %s',
                                         (me.known).system_id, (me.known).timeline, here, timeline_here)
             where queue_name = root.queue_name;
            closed := closed + 1;
            raise warning using
                message = format('root "%s" of queue "%s" was promoted outside takeover, and is closed', (me.node).node_name,
                                 root.queue_name),
                hint = format('If no other root of it is left: consumer takeover %s --promoted-standby; or, where there is '
                              'nothing to merge, select pgcascade.confirm_promotion(%L).',
                              (me.node).node_name, root.queue_name);
        end if;
    end loop;
    return closed;
end
$$;

-- pgcascade.confirm_promotion(1)
--     An operator says that this root, which notice_promotion() has closed or closes now, is the root from now on: it begins a new
--     epoch after its last tick, its ids jump, and it opens. Returns the epoch.
--     Branches that have ticks beyond it do not join: they are diverged, and are made anew or compared and repaired.
--     Errors: not a root; not closed for that; promised to a takeover (55006); not READ COMMITTED.
--     Writes epoch_history, node_epoch, pgq.queue, pgq.tick.
create function pgcascade.confirm_promotion(i_queue_name text) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    margin constant bigint := 1000000;
    me record;
    q pgq.queue;
    last pgq.tick;
    tick bigint;
    event bigint;
    begun bigint;
begin
    -- There may be no background worker.
    perform pgcascade.notice_promotion();
    select * into me from pgcascade.lock_node(i_queue_name);
    if (me.node).node_type <> 'root' or (me.known).fence_reason not like 'promoted outside takeover%' is not false then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('node "%s" of queue "%s" is no root that was closed because of a promotion', (me.node).node_name,
                             i_queue_name),
            hint = 'pgcascade.node_state shows what it is, and why it is closed.';
    elsif (me.promise).op_id is not null then
        raise exception using errcode = 'object_in_use',
            message = format('root "%s" of queue "%s" is promised to takeover %s', (me.node).node_name, i_queue_name,
                             (me.promise).op_id),
            hint = 'Finish or abort that one first.';
    end if;
    select * into q from pgq.queue where queue_name = i_queue_name;
    perform pgcascade.lock_ticker(q.queue_id);
    -- What was written between the promotion and its being noticed belongs to the new epoch: writers have ended, and the
    -- events that no tick has are in the tick made here.
    execute format('lock table %s in share mode', q.queue_data_pfx);
    select * into last from pgq.tick where tick_queue = q.queue_id order by tick_id desc limit 1;
    tick := setval(q.queue_tick_seq, margin + greatest(last.tick_id, pgq.seq_getval(q.queue_tick_seq)));
    event := setval(q.queue_event_seq, margin + greatest(last.tick_event_seq, pgq.seq_getval(q.queue_event_seq)));
    perform pgcascade.write_tick(q.queue_id, tick, clock_timestamp(), event);
    begun := (me.known).epoch + 1;
    insert into pgcascade.epoch_history
    select i_queue_name, begun, last.tick_id, tick, (me.node).node_name, c.system_identifier::text,
           pgcascade.current_timeline(), gen_random_uuid(), clock_timestamp()
      from pg_control_system() c;
    update pgcascade.node_epoch e
       set epoch = begun, system_id = h.system_id, timeline = h.timeline, fence_reason = null
      from pgcascade.epoch_history h
     where e.queue_name = i_queue_name and h.queue_name = i_queue_name and h.epoch = begun;
    perform pgcascade.renew_gate_standbys(i_queue_name);
    update pgq.queue set queue_disable_insert = false, queue_external_ticker = false where queue_id = q.queue_id;
    return begun;
end
$$;

comment on function pgcascade.notice_promotion() is 'close roots whose server was promoted outside takeover';
comment on function pgcascade.confirm_promotion(text) is 'open a root that was promoted outside takeover, in a new epoch';
