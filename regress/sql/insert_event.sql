--
-- Putting events in: by function, by COPY, by INSERT; what is refused.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset null (null)
select pgq.create_queue('insert_event');
select queue_id as id, queue_data_pfx as pfx, queue_event_seq as seq from pgq.queue where queue_name = 'insert_event' \gset

select pgq.insert_event('insert_event', 'type', 'data');
select pgq.insert_event('insert_event', 'type', 'data', 'one', 'two', 'three', 'four');
select pgq.insert_event('insert_event', null, null, null, null, null, null);
select pgq.insert_event('insert_event', '', '');
select pgq.insert_event(queue_name => 'insert_event', ev_type => 'named', ev_data => E'a\nb\\c''d');

-- With everything given. An id is drawn even when one is given.
select pgq.insert_event_raw('insert_event', 1000, '2020-02-29 12:00+00', 7, 3, 'raw', 'data', 'a', 'b', 'c', 'd');
select pgq.insert_event_raw('insert_event', null, null, null, null, 'raw', null, null, null, null, null);

-- Straight into the event table of now: id, time and transaction id are filled in.
select pgq.current_event_table('insert_event') = :'pfx' || '_0' as current_event_table;
select pgq.current_event_table('insert_event') as event_table \gset
insert into :event_table (ev_time, ev_type, ev_data) values (now(), 'direct', 'insert');
copy :event_table (ev_time, ev_type, ev_data) from stdin;
2020-02-29 12:00+00	direct	copy
\.
select ev_id, ev_time = now() as now, ev_txid = txid_current() as txid, ev_owner, ev_retry, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4
  from :pfx order by ev_id, ev_type;
begin;
select pgq.insert_event('insert_event', 'now', null);
select ev_time = now() as now, ev_txid = txid_current() as txid, ev_owner, ev_retry from :pfx where ev_type = 'now';
savepoint s;
select pgq.insert_event('insert_event', 'in savepoint', null);
select ev_txid = txid_current() as top_level_txid from :pfx where ev_type = 'in savepoint';
rollback to s;
select pgq.insert_event('insert_event', 'after savepoint', null);
commit;
select ev_id, ev_type from :pfx where ev_type like '%savepoint';

-- No such queue.
select pgq.insert_event('no such queue', 'type', 'data');
select pgq.insert_event(null, 'type', 'data');
select pgq.insert_event_raw('no such queue', null, null, null, null, 'type', null, null, null, null, null);
select pgq.insert_event_raw(null, null, null, null, null, 'type', null, null, null, null, null);
select pgq.current_event_table('no such queue');
select pgq.current_event_table(null);

-- Closed queue: only sessions that replicate may write.
update pgq.queue set queue_disable_insert = true where queue_id = :id;
select pgq.insert_event('insert_event', 'type', 'data');
select pgq.insert_event_raw('insert_event', null, null, null, null, 'type', null, null, null, null, null);
select pgq.current_event_table('insert_event');
set session_replication_role = replica;
select pgq.insert_event('insert_event', 'replica', 'data') > 0 as inserted;
select pgq.current_event_table('insert_event') = :'pfx' || '_0' as current_event_table;
reset session_replication_role;
update pgq.queue set queue_disable_insert = false where queue_id = :id;

-- Limit per transaction: 0 blocks, null does not limit, and each transaction counts anew.
update pgq.queue set queue_per_tx_limit = 0 where queue_id = :id;
select pgq.insert_event('insert_event', 'type', 'data');
update pgq.queue set queue_per_tx_limit = 2 where queue_id = :id;
begin;
select pgq.insert_event('insert_event', 'limit', '1') > 0 as one, pgq.insert_event('insert_event', 'limit', '2') > 0 as two;
select pgq.insert_event('insert_event', 'limit', '3');
rollback;
select pgq.insert_event('insert_event', 'limit', '1') > 0 as one, pgq.insert_event('insert_event', 'limit', '2') > 0 as two;
select pgq.insert_event('insert_event', 'limit', '1') > 0 as one, pgq.insert_event('insert_event', 'limit', '2') > 0 as two;
update pgq.queue set queue_per_tx_limit = null where queue_id = :id;
select count(pgq.insert_event('insert_event', 'many', g::text)) from generate_series(1, 1000) g;

-- A session that has written to a queue notices that it was dropped, made again, and rotated.
select pgq.drop_queue('insert_event');
select pgq.insert_event('insert_event', 'type', 'data');
select pgq.create_queue('insert_event');
select pgq.insert_event('insert_event', 'type', 'new queue');
select queue_data_pfx as pfx from pgq.queue where queue_name = 'insert_event' \gset
update pgq.queue set queue_cur_table = 2 where queue_name = 'insert_event';
select pgq.insert_event('insert_event', 'type', 'next table');
select right(tableoid::regclass::text, 2) as slot, ev_id, ev_data from :pfx order by ev_id;

-- The 7 argument form may be replaced; the 3 argument form then calls it.
begin;
create or replace function pgq.insert_event(queue_name text, ev_type text, ev_data text, ev_extra1 text, ev_extra2 text, ev_extra3 text, ev_extra4 text)
returns bigint language plpgsql security definer as $$
begin
    return pgq.insert_event_raw(queue_name, null, now(), null, null, ev_type, 'replaced: ' || ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4);
end $$;
select pgq.insert_event('insert_event', 'type', 'data', null, null, null, null);
select pgq.insert_event('insert_event', 'type', 'short') is not null as stored;
select ev_id, ev_data from :pfx where ev_data like 'replaced%' order by ev_id;
rollback;
select pgq.drop_queue('insert_event');
