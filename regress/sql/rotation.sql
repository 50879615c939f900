--
-- Rotation: which table is written, what is truncated, what it waits for.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset null (null)
select pgq.create_queue('rotation');
select queue_id as id, queue_data_pfx as pfx from pgq.queue where queue_name = 'rotation' \gset
update pgq.queue set queue_ticker_max_lag = '0', queue_ticker_idle_period = '0' where queue_id = :id;
\set state 'select q.queue_cur_table as cur, q.queue_switch_step2 is not null as complete, (select string_agg(right(e.tableoid::regclass::text, 2) || \':\' || e.ev_data, \' \' order by e.ev_id) from ' :pfx ' e) as events, (select string_agg(t.tick_id::text, \' \' order by t.tick_id) from pgq.tick t where t.tick_queue = q.queue_id) as ticks from pgq.queue q where q.queue_id = ' :id ';'
\set rotate 'select pgq.maint_rotate_tables_step1(\'rotation\'); select pgq.maint_rotate_tables_step2();'
create function rotation_read() returns text language plpgsql as $$
declare
    batch bigint;
    result text := '';
begin
    loop
        batch := pgq.next_batch('rotation', 'rotation_c');
        exit when batch is null;
        result := result || '[' || coalesce((select string_agg(ev_data, ' ' order by ev_id) from pgq.get_batch_events(batch)), '') || ']';
        perform pgq.finish_batch(batch);
    end loop;
    return result;
end $$;

-- Not before its time.
select * from pgq.maint_operations() where func_arg = 'rotation';
\o /dev/null
:rotate
\o
:state
update pgq.queue set queue_rotation_period = '0' where queue_id = :id;
select * from pgq.maint_operations() where func_arg = 'rotation' or func_arg is null;

-- Two steps: the second in a later transaction. What is to be done says maint_operations.
begin;
select pgq.maint_rotate_tables_step1('rotation');
select pgq.maint_rotate_tables_step2();
:state
commit;
:state
select * from pgq.maint_operations() where func_arg = 'rotation' or func_arg is null;
-- Not again before the second step.
select pgq.maint_rotate_tables_step1('rotation');
:state
-- Nor in a transaction that has an id, which may be from before the first step.
begin;
select txid_current() > 0 as has_id;
select pgq.maint_rotate_tables_step2();
commit;
:state
select pgq.maint_rotate_tables_step2();
:state

-- A consumer that has not read keeps everything that it needs.
select pgq.ticker('rotation');
select pgq.register_consumer('rotation', 'rotation_c');
select pgq.insert_event('rotation', 't', 'a');
select pgq.ticker('rotation');
\o /dev/null
:rotate
\o
:state
select pgq.insert_event('rotation', 't', 'b');
select pgq.ticker('rotation');
\o /dev/null
:rotate
:rotate
\o
:state
select rotation_read();
-- Now it may go on: nothing is truncated before it has been read, and the consumer gets every event once.
\o /dev/null
:rotate
\o
:state
select pgq.insert_event('rotation', 't', 'c');
select pgq.ticker('rotation');
select rotation_read();
\o /dev/null
:rotate
\o
:state
select pgq.insert_event('rotation', 't', 'd');
select pgq.ticker('rotation');
select rotation_read();
\o /dev/null
:rotate
\o
:state
select pgq.insert_event('rotation', 't', 'e');
select pgq.ticker('rotation');
select rotation_read();
\o /dev/null
:rotate
\o
:state

-- Ticks go with the events that follow them; the last one stays. A consumer can be put back to any that is left.
select min(tick_id) as oldest from pgq.tick where tick_queue = :id \gset
select pgq.register_consumer_at('rotation', 'rotation_c', :oldest);
select rotation_read() <> '' as readable;

-- A transaction that is open keeps the table that it wrote to, however long ago.
begin;
select pgq.insert_event('rotation', 't', 'open');
prepare transaction 'rotation 1';
create function rotation_round() returns void language plpgsql as $$
begin
    perform pgq.ticker('rotation');
    perform rotation_read();
end $$;
\o /dev/null
select rotation_round();
:rotate
select rotation_round();
:rotate
select rotation_round();
:rotate
select rotation_round();
:rotate
\o
select queue_cur_table as cur, (select right(tableoid::regclass::text, 2) from pgq.event_template where ev_data = 'open') as visible
  from pgq.queue where queue_id = :id;
commit prepared 'rotation 1';
select pgq.ticker('rotation') > 0 as ticked;
select rotation_read();
-- Committed, but not read: it is not thrown away although the control row says that the table is long done (R1).
begin;
select pgq.insert_event('rotation', 't', 'unread');
prepare transaction 'rotation 2';
\o /dev/null
select rotation_round();
:rotate
select rotation_round();
:rotate
\o
commit prepared 'rotation 2';
\o /dev/null
:rotate
:rotate
:rotate
\o
select count(*) from pgq.event_template where ev_data = 'unread';
select pgq.ticker('rotation') > 0 as ticked;
select rotation_read();

-- Somebody reads the table: skipped, without waiting.
begin;
select count(*) >= 0 as read from :pfx;
prepare transaction 'rotation 3';
select queue_cur_table as before from pgq.queue where queue_id = :id \gset
\o /dev/null
select rotation_round();
:rotate
\o
select queue_cur_table = :before as skipped from pgq.queue where queue_id = :id;
rollback prepared 'rotation 3';
\o /dev/null
:rotate
\o
select queue_cur_table = :before as skipped from pgq.queue where queue_id = :id;

-- No consumers: nobody needs the events.
select pgq.unregister_consumer('rotation', 'rotation_c');
select pgq.insert_event('rotation', 't', 'z') > 0 as inserted;
\o /dev/null
:rotate
:rotate
:rotate
\o
select count(*) from :pfx;
select count(*) as ticks, max(tick_id) = pgq.seq_getval(:'pfx' || '_tick_seq') as last from pgq.tick where tick_queue = :id;
select pgq.register_consumer('rotation', 'rotation_c');

-- Mistakes and accidents.
select pgq.maint_rotate_tables_step1('no such queue'), pgq.maint_rotate_tables_step1(null);
begin isolation level repeatable read;
select pgq.maint_rotate_tables_step1('rotation');
rollback;
update pgq.subscription set sub_last_tick = 9999 where sub_queue = :id;
select pgq.maint_rotate_tables_step1('rotation');
update pgq.subscription set sub_last_tick = null where sub_queue = :id;
\o /dev/null
:rotate
\o
update pgq.queue set queue_switch_step1 = 1152921504606846976 where queue_id = :id;
\set VERBOSITY sqlstate
select pgq.maint_rotate_tables_step1('rotation');
\set VERBOSITY default

-- What else is to be maintained: functions put there by an administrator, and vacuum where autovacuum is off.
update pgq.queue set queue_extra_maint = array['public.second', 'public.first'], queue_rotation_period = '1 day' where queue_id = :id;
select * from pgq.maint_operations() where func_arg = 'rotation';
show autovacuum;
select * from pgq.maint_tables_to_vacuum();
select pgq.drop_queue('rotation', true);
drop function rotation_read, rotation_round;
