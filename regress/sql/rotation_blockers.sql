--
-- pgcascade.rotation_blockers: who keeps a queue from being rotated.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
select pgq.create_queue('rotation_blockers');
select queue_id as id, queue_data_pfx as pfx from pgq.queue where queue_name = 'rotation_blockers' \gset
update pgq.queue set queue_ticker_max_lag = '0', queue_ticker_idle_period = '0' where queue_id = :id;
select pgq.register_consumer('rotation_blockers', 'rotation_blockers_a'), pgq.register_consumer('rotation_blockers', 'rotation_blockers_b');
\set show 'select blocker, name, since <= now() as since, bytes > 0 as bytes from pgcascade.rotation_blockers() where queue_name = \'rotation_blockers\';'
create function rotation_blockers_read(i_consumer text) returns void language plpgsql as $$
begin
    for i in 1 .. 100 loop
        exit when pgq.next_batch('rotation_blockers', i_consumer) is null;
        perform pgq.finish_batch(pgq.next_batch('rotation_blockers', i_consumer));
    end loop;
end $$;

-- Not due, so not blocked.
:show
-- Consumers that have not read: both, then the one that is left.
update pgq.queue set queue_rotation_period = '0' where queue_id = :id;
select pgq.insert_event('rotation_blockers', 't', 'd');
select pgq.ticker('rotation_blockers');
:show
select rotation_blockers_read('rotation_blockers_a');
:show
select rotation_blockers_read('rotation_blockers_b');
:show
select pgq.maint_rotate_tables_step1('rotation_blockers');
-- A transaction that was open when the tables were rotated: the consumers have read all there is.
begin;
select pgq.insert_event('rotation_blockers', 't', 'd');
prepare transaction 'rotation_blockers 1';
select pgq.maint_rotate_tables_step2();
select pgq.ticker('rotation_blockers');
select rotation_blockers_read('rotation_blockers_a'), rotation_blockers_read('rotation_blockers_b');
:show
select pgq.maint_rotate_tables_step1('rotation_blockers');
select queue_cur_table from pgq.queue where queue_id = :id;
commit prepared 'rotation_blockers 1';
select pgq.ticker('rotation_blockers');
select rotation_blockers_read('rotation_blockers_a'), rotation_blockers_read('rotation_blockers_b');
:show
-- Somebody who reads the table.
begin;
select count(*) >= 0 as read from :pfx;
prepare transaction 'rotation_blockers 2';
:show
commit prepared 'rotation_blockers 2';
:show
select pgq.maint_rotate_tables_step1('rotation_blockers');
select queue_cur_table from pgq.queue where queue_id = :id;
select pgq.drop_queue('rotation_blockers', true);
drop function rotation_blockers_read;
