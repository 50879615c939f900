--
-- What a queue must be for its order and its events to be relied on is checked at each tick (R6, unlogged tables).
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
select pgq.create_queue('storage');
select queue_id as id, queue_data_pfx as pfx, queue_event_seq as seq from pgq.queue where queue_name = 'storage' \gset
select :'pfx' || '_1' as slot \gset
select seqcache, seqincrement, seqcycle from pg_sequence where seqrelid = :'seq'::regclass;
create function storage_tick() returns text language plpgsql as $$
declare
    state text; message text; hint text;
begin
    perform pgq.force_tick('storage');
    return 'tick ' || pgq.ticker('storage');
exception when others then
    get stacked diagnostics state = returned_sqlstate, message = message_text, hint = pg_exception_hint;
    return regexp_replace(format('%s: %s. %s', state, message, hint), 'event_\d+', 'event_N', 'g');
end $$;
select storage_tick();
-- Ids from a cache come out of order.
alter sequence :seq cache 10;
select storage_tick();
alter sequence :seq cache 1;
alter sequence :seq increment by -1;
select storage_tick();
alter sequence :seq increment by 1;
alter sequence :seq cycle;
select storage_tick();
alter sequence :seq no cycle;
select storage_tick() like 'tick %' as ticked;
-- An unlogged table is empty after a crash.
alter table :slot set unlogged;
select storage_tick();
alter table :slot set logged;
select storage_tick() like 'tick %' as ticked;
-- The sequence is gone.
begin;
alter sequence :seq rename to storage_seq;
select storage_tick();
rollback;
drop function storage_tick;
select pgq.drop_queue('storage');
