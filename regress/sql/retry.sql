--
-- Retried events.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset null (null)
select pgq.create_queue('retry');
select queue_id as id, queue_data_pfx as pfx from pgq.queue where queue_name = 'retry' \gset
update pgq.queue set queue_ticker_max_lag = '0', queue_ticker_idle_period = '0' where queue_id = :id;
select pgq.register_consumer('retry', 'retry_a'), pgq.register_consumer('retry', 'retry_b');
select count(pgq.insert_event('retry', 't', g::text, 'x1', 'x2', 'x3', 'x4')) from generate_series(1, 15) g;
select pgq.ticker('retry');
select pgq.next_batch('retry', 'retry_a') as batch \gset
select sub_id as sub from pgq.subscription where sub_batch = :batch \gset
\set waiting 'select ev_id, ev_retry_after <= now() as due, ev_txid, ev_owner = :sub as mine, ev_retry, ev_type, ev_data, ev_extra1 || ev_extra2 || ev_extra3 || ev_extra4 as extra from pgq.retry_queue where ev_queue = :id order by ev_id;'

-- One event: at a time, or after seconds; twice is no error.
select pgq.event_retry(:batch, 1, now());
select pgq.event_retry(:batch, 1, now() + '1 hour');
select pgq.event_retry(:batch, 2, 3600), pgq.event_retry(:batch, 2, 0);
select pgq.event_retry(:batch, 3, -10);
:waiting
-- Not an event of that batch, not a batch.
\set VERBOSITY terse
select pgq.event_retry(:batch, 16, 0);
select pgq.event_retry(:batch, null, 0);
\set VERBOSITY default
select pgq.event_retry(-1, 1, now());
select pgq.event_retry(null, 1, now());
\set VERBOSITY sqlstate
select pgq.event_retry(:batch, 4, null::int);
select pgq.event_retry(:batch, 4, null::timestamptz);
select pgq.batch_retry(:batch, null);
\set VERBOSITY default
-- The whole batch, but for those that wait already.
begin;
select pgq.batch_retry(:batch, 0);
select pgq.batch_retry(:batch, 0);
select count(*), count(*) filter (where ev_retry_after <= now()) as due from pgq.retry_queue where ev_queue = :id;
rollback;
select pgq.batch_retry(-1, 0);
select pgq.batch_retry(null, 0);

-- Back they go when it is time: to their owner only, with the old id, and once.
select pgq.maint_retry_events();
select pgq.maint_retry_events();
:waiting
select pgq.finish_batch(:batch);
select pgq.ticker('retry');
select pgq.next_batch('retry', 'retry_a') as batch \gset
select ev_id, ev_retry, ev_data, ev_extra4 from pgq.get_batch_events(:batch);
-- Retried again: counted.
select pgq.event_retry(:batch, 3, 0);
select ev_id, ev_retry from pgq.retry_queue where ev_queue = :id order by ev_id;
select pgq.maint_retry_events();
select pgq.finish_batch(:batch);
select pgq.ticker('retry');
select pgq.next_batch('retry', 'retry_a') as batch \gset
select ev_id, ev_retry, ev_data from pgq.get_batch_events(:batch);
select pgq.finish_batch(:batch);
-- The other consumer sees none of that.
select count(*) from pgq.next_batch('retry', 'retry_b') as batch, pgq.get_batch_events(batch) where ev_retry is not null;
select pgq.next_batch('retry', 'retry_b') as batch \gset
select pgq.finish_batch(:batch);
select pgq.next_batch('retry', 'retry_b') as batch \gset
select count(*) from pgq.get_batch_events(:batch);

-- Ten at a time.
delete from pgq.retry_queue where ev_queue = :id;
select pgq.register_consumer_at('retry', 'retry_a', 1);
select pgq.next_batch('retry', 'retry_a') as batch \gset
select pgq.batch_retry(:batch, 0);
select pgq.maint_retry_events(), pgq.maint_retry_events(), pgq.maint_retry_events();
-- Not into a closed queue, and without holding up the others; a session that replicates does it.
select pgq.batch_retry(:batch, 0);
update pgq.queue set queue_disable_insert = true where queue_id = :id;
select pgq.maint_retry_events();
set session_replication_role = replica;
select pgq.maint_retry_events();
reset session_replication_role;
update pgq.queue set queue_disable_insert = false where queue_id = :id;
delete from pgq.retry_queue where ev_queue = :id;

-- An event that never was in the queue.
select pgq.event_retry_raw('retry', 'retry_a', now(), 777, now(), 5, 'raw', 'data', 'a', 'b', 'c', 'd');
select pgq.event_retry_raw('retry', 'retry_a', now(), null, now(), null, 'raw', null, null, null, null, null)
     = pgq.seq_getval(:'pfx' || '_id_seq') as drawn;
:waiting
select pgq.event_retry_raw('retry', 'no such consumer', now(), 778, now(), 5, 'raw', 'data', 'a', 'b', 'c', 'd');
select pgq.event_retry_raw('no such queue', 'retry_a', now(), 778, now(), 5, 'raw', 'data', 'a', 'b', 'c', 'd');
select pgq.event_retry_raw(null, null, now(), 778, now(), 5, 'raw', 'data', 'a', 'b', 'c', 'd');
\set VERBOSITY sqlstate
select pgq.event_retry_raw('retry', 'retry_a', now(), 777, now(), 5, 'raw', 'data', 'a', 'b', 'c', 'd');
select pgq.event_retry_raw('retry', 'retry_a', null, 778, now(), 5, 'raw', 'data', 'a', 'b', 'c', 'd');
select pgq.event_retry_raw('retry', 'retry_a', now(), 778, null, 5, 'raw', 'data', 'a', 'b', 'c', 'd');
\set VERBOSITY default
select pgq.drop_queue('retry', true);
