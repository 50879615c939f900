--
-- What monitors read: pgq.get_queue_info, pgq.get_consumer_info, pgq.get_batch_info, pgq.version.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset null (null)
select pgq.create_queue('info b'), pgq.create_queue('info a');
select queue_id as id, queue_event_seq as seq from pgq.queue where queue_name = 'info a' \gset

-- All columns, in order; a C client reads them by position.
select * from pgq.get_queue_info('no such queue');
select * from pgq.get_consumer_info('no such queue');
select * from pgq.get_consumer_info('info a', 'no such consumer');
select queue_name, queue_ntables, queue_cur_table, queue_rotation_period, queue_switch_time <= now() as queue_switch_time,
       queue_external_ticker, queue_ticker_paused, queue_ticker_max_count, queue_ticker_max_lag, queue_ticker_idle_period,
       ticker_lag between '0' and '1 minute' as ticker_lag, ev_per_sec, ev_new, last_tick_id
  from pgq.get_queue_info('info a');
-- Sorted by name.
select queue_name from pgq.get_queue_info() where queue_name like 'info%';
select queue_name from pgq.get_queue_info(null) where queue_name like 'info%';

-- Events per second over the last twenty ticks; events since the last tick.
delete from pgq.tick where tick_queue = :id;
select queue_name, ticker_lag, ev_per_sec, ev_new, last_tick_id from pgq.get_queue_info('info a');
insert into pgq.tick (tick_queue, tick_id, tick_time, tick_event_seq)
select :id, n, now() - (100 - n) * interval '10 seconds', n * n from generate_series(1, 100) n;
select setval(:'seq', 10123);
select ticker_lag < '1 minute' as ticker_lag, ev_per_sec, ev_new, last_tick_id from pgq.get_queue_info('info a');
delete from pgq.tick where tick_queue = :id and tick_id < 95;
select ev_per_sec, ev_new, last_tick_id from pgq.get_queue_info('info a');
delete from pgq.tick where tick_queue = :id and tick_id < 100;
select ev_per_sec, ev_new, last_tick_id from pgq.get_queue_info('info a');
insert into pgq.tick (tick_queue, tick_id, tick_time, tick_event_seq) select :id, 101, tick_time, 10100 from pgq.tick where tick_queue = :id;
select ev_per_sec, ev_new, last_tick_id from pgq.get_queue_info('info a');

-- Consumers: at the last tick, behind, with a batch open, at a tick that is gone, a subconsumer without position.
select pgq.register_consumer('info a', 'info z'), pgq.register_consumer('info b', 'info z');
select pgq.register_consumer_at('info a', 'info y', 100);
select pgq.register_consumer_at('info a', 'info x', 100);
select pgq.next_batch('info a', 'info x') as batch \gset
select pgq.register_consumer('info a', 'info w'), pgq.register_consumer('info a', 'info v');
update pgq.subscription set sub_last_tick = 1 where sub_consumer = (select co_id from pgq.consumer where co_name = 'info w');
update pgq.subscription set sub_last_tick = null where sub_consumer = (select co_id from pgq.consumer where co_name = 'info v');
\set show 'select queue_name, consumer_name, lag between \'0\' and \'1 hour\' as lag, last_seen between \'0\' and \'1 hour\' as last_seen, last_tick, current_batch = :batch as current_batch, next_tick, pending_events'
:show from pgq.get_consumer_info() where queue_name like 'info%';
:show from pgq.get_consumer_info('info b');
:show from pgq.get_consumer_info('info a', 'info x');
select count(*) from pgq.get_consumer_info(null, 'info z');
select count(*) from pgq.get_consumer_info('info a', null);
select queue_name, consumer_name, batch_start <= batch_end as times, prev_tick_id, tick_id, lag between '0' and '1 hour' as lag, seq_start, seq_end
  from pgq.get_batch_info(:batch);

-- Readable by everybody.
create role info_nobody;
set role info_nobody;
select count(*) from pgq.get_queue_info('info a');
select count(*) from pgq.get_consumer_info('info a');
select count(*) from pgq.queue where queue_name = 'info a';
select pgq.version() is not null as version;
reset role;
drop role info_nobody;
select pgq.drop_queue('info a', true), pgq.drop_queue('info b', true);
