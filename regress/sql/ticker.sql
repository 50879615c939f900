--
-- When a queue is ticked, and what a tick holds.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset null (null)
select pgq.create_queue('ticker');
select queue_id as id, queue_data_pfx as pfx, queue_event_seq as seq, queue_tick_seq as tick_seq from pgq.queue where queue_name = 'ticker' \gset
-- Hours in place of seconds: however slow the server is, no case becomes the next one meanwhile.
select pgq.set_queue_config('ticker', 'ticker_max_lag', '3 hours'), pgq.set_queue_config('ticker', 'ticker_idle_period', '60 hours');
-- Makes all ticks older, instead of waiting.
\set older 'update pgq.tick set tick_time = tick_time - interval'

-- A queue with one tick is ticked at once; then it is idle for longer and longer, up to the idle period.
select pgq.ticker('ticker');
select pgq.ticker('ticker');
:older '1.6 hours' where tick_queue = :id;
select pgq.ticker('ticker');
select pgq.ticker('ticker');
:older '3 hours' where tick_queue = :id;
select pgq.ticker('ticker');
:older '3.3 hours' where tick_queue = :id;
select pgq.ticker('ticker');
:older '30 hours' where tick_queue = :id;
select pgq.ticker('ticker');
:older '59 hours' where tick_queue = :id;
select pgq.ticker('ticker');
:older '2 hours' where tick_queue = :id;
select pgq.ticker('ticker');

-- New events: when they are old enough,
select count(pgq.insert_event('ticker', 't', g::text)) from generate_series(1, 5) g;
select pgq.ticker('ticker');
:older '2.9 hours' where tick_queue = :id;
select pgq.ticker('ticker');
:older '0.2 hours' where tick_queue = :id;
select pgq.ticker('ticker');
-- or many enough.
select pgq.set_queue_config('ticker', 'ticker_max_count', '10');
select count(pgq.insert_event('ticker', 't', g::text)) from generate_series(1, 9) g;
select pgq.ticker('ticker');
select pgq.insert_event('ticker', 't', 'x');
select pgq.ticker('ticker');
select tick_id, tick_event_seq from pgq.tick where tick_queue = :id order by 1;

-- A tick sees what is committed, is young, and its snapshot follows that of the tick before.
select bool_and(txid_snapshot_xmax(t.tick_snapshot) >= txid_snapshot_xmax(p.tick_snapshot)) as grows,
       bool_and(t.tick_time > p.tick_time) as later, max(t.tick_time) > now() - interval '1 minute' as young
  from pgq.tick t join pgq.tick p on p.tick_queue = t.tick_queue and p.tick_id = t.tick_id - 1
 where t.tick_queue = :id;

-- The first event of a queue is noticed as well, although the sequence was at 1 before it.
select pgq.create_queue('ticker first');
select pgq.set_queue_config('ticker first', 'ticker_max_lag', '0');
select pgq.ticker('ticker first'), pgq.ticker('ticker first');
update pgq.tick set tick_time = tick_time - interval '1 hour' where tick_queue = (select queue_id from pgq.queue where queue_name = 'ticker first') and tick_id = 1;
select pgq.ticker('ticker first');
select pgq.insert_event('ticker first', 't', 'd');
select pgq.ticker('ticker first');
select pgq.ticker('ticker first');
select pgq.drop_queue('ticker first');

-- A tick that is not made costs no transaction id.
begin;
select pgq.ticker('ticker') is null as not_due, pgq.ticker() = 0 as none, txid_current_if_assigned() is null as no_xid;
select count(*) = 0 as none from pgq.maint_operations() where func_arg = 'ticker';
select count(*) >= 0 as looked from pgcascade.queues_due();
select txid_current_if_assigned() is null as no_xid;
rollback;

-- force_tick moves the sequence; the ticker does the rest. It does not tick by itself.
select pgq.force_tick('ticker');
select pgq.force_tick('ticker');
select pgq.ticker('ticker');
select pgq.ticker('ticker');
select tick_event_seq from pgq.tick where tick_queue = :id order by tick_id desc limit 1;
select pgq.force_tick('no such queue'), pgq.force_tick(null);

-- All queues: a count. Paused and external ones are left out; by name they are an error.
select pgq.create_queue('ticker two');
select pgq.ticker() >= 1 as ticked;
select pgq.ticker();
select pgq.set_queue_config('ticker two', 'ticker_paused', 'true');
select pgq.force_tick('ticker two');
select pgq.ticker('ticker two');
select pgq.ticker();
select pgq.set_queue_config('ticker two', 'ticker_paused', 'false'), pgq.set_queue_config('ticker two', 'external_ticker', 'true');
select pgq.force_tick('ticker two');
select pgq.ticker('ticker two');
select pgq.ticker();
select pgq.ticker('no such queue');
select pgq.ticker(null);

-- Ticks from elsewhere: with the id, time and event id given. Both sequences follow, forward only.
select queue_id as two, queue_event_seq as seq2, queue_tick_seq as tick_seq2 from pgq.queue where queue_name = 'ticker two' \gset
select pgq.ticker('ticker two', 50, '2020-02-29 12:00+00', 2000);
select pgq.seq_getval(:'tick_seq2') as tick_seq, pgq.seq_getval(:'seq2') as event_seq;
select pgq.ticker('ticker two', 51, '2020-02-29 11:00+00', 1500);
select pgq.seq_getval(:'tick_seq2') as tick_seq, pgq.seq_getval(:'seq2') as event_seq;
select tick_id, tick_time = '2020-02-29 12:00+00' as noon, tick_event_seq from pgq.tick where tick_queue = :two order by 1;
-- Ticks only go forward: one in between would give its events to two batches.
\set VERBOSITY sqlstate
select pgq.ticker('ticker two', 51, now(), 2000);
\set VERBOSITY default
select pgq.ticker('ticker two', 49, now(), 2000);
\set VERBOSITY sqlstate
select pgq.ticker('ticker two', null, now(), 2000);
select pgq.ticker('ticker two', 52, null, 2000);
select pgq.ticker('ticker two', 52, now(), null);
\set VERBOSITY default
select pgq.ticker('ticker', 1000, now(), 2000);
select pgq.ticker('no such queue', 1000, now(), 2000);
select pgq.ticker(null, 1000, now(), 2000);
select pgq.set_queue_config('ticker two', 'ticker_paused', 'true');
select pgq.ticker('ticker two', 52, now(), 2000);
select pgq.drop_queue('ticker two');

-- A snapshot that may be older than the last tick is refused (R3).
begin isolation level repeatable read;
select pgq.ticker('ticker');
rollback;
begin isolation level serializable;
select pgq.ticker();
rollback;

-- Ticks written with synchronous_commit off would be seen before they are safe (R13).
begin;
set local synchronous_commit = off;
select pgq.force_tick('ticker') > 0 as forced;
select pgq.ticker('ticker') > 0 as ticked;
show synchronous_commit;
rollback;
begin;
set local synchronous_commit = remote_apply;
select pgq.force_tick('ticker') > 0 as forced;
select pgq.ticker('ticker') > 0 as ticked;
show synchronous_commit;
rollback;

-- Restored into a younger cluster: transaction ids of the last tick are not there yet.
begin;
update pgq.tick set tick_snapshot = '1152921504606847076:1152921504606847076:' where tick_queue = :id;
select pgq.force_tick('ticker') > 0 as forced;
\set VERBOSITY sqlstate
select pgq.ticker('ticker');
rollback;
begin;
update pgq.tick set tick_snapshot = '3:1152921504606847076:3' where tick_queue = :id;
select pgq.force_tick('ticker') > 0 as forced;
select pgq.ticker('ticker');
rollback;
\set VERBOSITY default

-- A sequence that was set back does not stop the ticker.
select setval(:'seq', 3);
select pgq.ticker('ticker') > 0 as ticked;
select tick_event_seq from pgq.tick where tick_queue = :id order by tick_id desc limit 1;
select setval(:'tick_seq', 2);
select pgq.force_tick('ticker') > 0 as forced;
\set VERBOSITY sqlstate
select pgq.ticker('ticker');
\set VERBOSITY default

-- One queue that cannot be ticked does not keep the others from it.
select pgq.create_queue('ticker three');
\set VERBOSITY terse
select pgq.ticker();
\set VERBOSITY default
select pgq.drop_queue('ticker three');
select pgq.drop_queue('ticker');
