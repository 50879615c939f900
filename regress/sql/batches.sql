--
-- Batches: opening, reading, finishing, and which events are in which.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset null (null)
select pgq.create_queue('batches');
select queue_id as id, queue_data_pfx as pfx from pgq.queue where queue_name = 'batches' \gset
update pgq.queue set queue_ticker_max_lag = '0', queue_ticker_idle_period = '0' where queue_id = :id;
select pgq.register_consumer('batches', 'batches_a'), pgq.register_consumer('batches', 'batches_b');

-- Nothing to read yet.
select pgq.next_batch('batches', 'batches_a');
select * from pgq.next_batch_info('batches', 'batches_a');

select pgq.insert_event('batches', 'one', g::text) from generate_series(1, 3) g;
select pgq.next_batch('batches', 'batches_a');
select pgq.ticker('batches');

-- One batch at a time; asking again gives the same.
select pgq.next_batch('batches', 'batches_a') as batch \gset
select pgq.next_batch('batches', 'batches_a') = :batch as same;
select batch_id = :batch as same, cur_tick_id, prev_tick_id, cur_tick_time > prev_tick_time as later, cur_tick_event_seq, prev_tick_event_seq
  from pgq.next_batch_info('batches', 'batches_a');
select batch_id = :batch as same from pgq.next_batch_custom('batches', 'batches_a', '1 day', 1000, '1 day');
select queue_name, consumer_name, batch_start < batch_end as later, prev_tick_id, tick_id, lag >= '0' as lag, seq_start, seq_end
  from pgq.get_batch_info(:batch);
select ev_id, ev_time <= now() as ev_time, ev_txid < txid_current() as ev_txid, ev_retry, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4
  from pgq.get_batch_events(:batch);
select pgq.finish_batch(:batch);
set client_min_messages = error; -- the warning has the batch id in it
select pgq.finish_batch(:batch);
set client_min_messages = warning;
select pgq.next_batch('batches', 'batches_a');

-- Each consumer has its own position; a batch may be empty.
select pgq.ticker('batches');
select pgq.insert_event('batches', 'two', 'x');
select pgq.ticker('batches');
select pgq.next_batch('batches', 'batches_a') as batch \gset
select count(*) from pgq.get_batch_events(:batch);
select pgq.finish_batch(:batch);
select pgq.next_batch('batches', 'batches_a') as batch \gset
select ev_id, ev_type from pgq.get_batch_events(:batch);
select pgq.finish_batch(:batch);
select pgq.next_batch('batches', 'batches_b') as batch \gset
select ev_id, ev_type from pgq.get_batch_events(:batch);
select pgq.finish_batch(:batch);

-- The next batch may span ticks: 3, 4 and one more, by size or by time.
select pgq.insert_event('batches', 'three', g::text) from generate_series(1, 10) g;
select pgq.ticker('batches');
select batch_id, cur_tick_id, prev_tick_id, cur_tick_time, prev_tick_time, cur_tick_event_seq, prev_tick_event_seq
  from pgq.next_batch_custom('batches', 'batches_b', null, 1000, null);
select batch_id from pgq.next_batch_custom('batches', 'batches_b', null, null, '1 hour');
select batch_id from pgq.next_batch_custom('batches', 'batches_b', '1 hour', null, null);
select batch_id as batch, cur_tick_id, prev_tick_id, cur_tick_event_seq, prev_tick_event_seq
  from pgq.next_batch_custom('batches', 'batches_b', '0', 10, '1 hour') \gset
select :cur_tick_id as cur, :prev_tick_id as prev, :cur_tick_event_seq as cur_seq, :prev_tick_event_seq as prev_seq;
select ev_type, count(*), min(ev_id), max(ev_id) from pgq.get_batch_events(:batch) group by 1 order by 2;
select pgq.finish_batch(:batch);

-- The tick that ends a batch of a wanted size. Ticks: id, minute, event id.
insert into pgq.tick (tick_queue, tick_id, tick_time, tick_snapshot, tick_event_seq)
select :id, 100 + n, '2020-01-01 00:00+00'::timestamptz + n * interval '1 minute', '1:1:', 1000 + n * n
  from generate_series(0, 10) n;
select wanted.count, wanted.interval, f.next_tick_id, f.next_tick_seq
  from (values (null::int8, null::interval), (1, null), (9, null), (10, null), (50, null), (64, null), (100, null), (101, null),
               (null, '1 minute'), (null, '4 minutes'), (null, '5 minutes'), (null, '11 minutes'),
               (1000, '5 minutes'), (60, '1 hour'), (60, '1 minute'), (1, '7 minutes'), (0, null)) wanted (count, interval),
       pgq.find_tick_helper(:id, 100, '2020-01-01 00:00+00', 1000, wanted.count, wanted.interval) f;
select * from pgq.find_tick_helper(:id, 110, '2020-01-01 00:00+00', 1000, 1, '1 minute');
delete from pgq.tick where tick_queue = :id and tick_id >= 100;

-- What the batch query is made of: a range of transaction ids, and those that were open at the first tick. The
-- snapshots are made up, because real ones show what else runs in this server.
select pgq.register_consumer('batches', 'batches_sql');
select sub_id as sub from pgq.subscription s join pgq.consumer on co_id = sub_consumer where co_name = 'batches_sql' \gset
insert into pgq.tick (tick_queue, tick_id, tick_snapshot, tick_event_seq)
values (:id, 101, '10:10:', 1), (:id, 102, '20:20:', 1), (:id, 103, '12:30:12,25', 1), (:id, 104, '40:40:', 1);
create function batches_sql(i_prev bigint, i_cur bigint) returns setof text language plpgsql as $$
declare
    line text;
begin
    update pgq.subscription set sub_last_tick = i_prev, sub_next_tick = i_cur, sub_batch = -7
     where sub_consumer = (select co_id from pgq.consumer where co_name = 'batches_sql') returning sub_id into line;
    return query select replace(regexp_replace(
        regexp_split_to_table(pgq.batch_event_sql(-7), '(?=union all)|(?<= where)|(?= order by)'), 'event_\d+ ', 'event_N '), 'ev_owner operator(pg_catalog.=) ' || line, 'ev_owner = S');
end $$;
\t
select batches_sql(101, 102);
select batches_sql(102, 103);
select batches_sql(103, 104);
select replace(pgcascade.tick_event_sql(:id, 101, 102, null), :'pfx', 'pgq.event_N');
\t
-- Where to look: every table of the queue, the one written now last.
select replace(pgq.batch_event_tables(-7), :'pfx', 'pgq.event_N') as batch_event_tables;
update pgq.queue set queue_cur_table = 1 where queue_id = :id;
select replace(pgq.batch_event_tables(-7), :'pfx', 'pgq.event_N') as batch_event_tables;
select pgq.unregister_consumer('batches', 'batches_sql');
drop function batches_sql;
delete from pgq.tick where tick_queue = :id and tick_id > 100;

-- Unknown things.
select pgq.next_batch('batches', 'no such consumer');
select pgq.next_batch('no such queue', 'batches_a');
select pgq.next_batch(null, 'batches_a');
select pgq.next_batch('batches', null);
select pgq.next_batch_info('batches', 'no such consumer');
select pgq.next_batch_custom('batches', 'no such consumer', null, null, null);
select * from pgq.get_batch_info(-1);
select * from pgq.get_batch_info(null);
select * from pgq.get_batch_events(-1);
select * from pgq.get_batch_events(null);
select pgq.batch_event_sql(-1);
select pgq.batch_event_tables(-1);
select pgq.batch_event_tables(null);
select pgq.finish_batch(-1);
select pgq.finish_batch(null);
-- A consumer whose tick is gone must not go on silently.
update pgq.subscription set sub_last_tick = 9999 where sub_queue = :id;
select pgq.next_batch('batches', 'batches_a');
select pgq.drop_queue('batches', true);
