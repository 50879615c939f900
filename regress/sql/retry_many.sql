--
-- Many events of one batch retried one by one: the session remembers where they are, and what it remembers is only a hint.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset null (null)
select pgq.create_queue('many');
select queue_id as id, queue_data_pfx as pfx from pgq.queue where queue_name = 'many' \gset
update pgq.queue set queue_ticker_max_lag = '0', queue_ticker_idle_period = '0', queue_rotation_period = '0' where queue_id = :id;
select pgq.register_consumer('many', 'one'), pgq.register_consumer('many', 'other');
-- One batch in two event tables: the same places in both hold different events.
select count(pgq.insert_event('many', 't', 'first ' || g)) from generate_series(1, 500) g;
select pgq.maint_rotate_tables_step1('many');
select pgq.maint_rotate_tables_step2();
select count(pgq.insert_event('many', 't', 'second ' || g)) from generate_series(1, 500) g;
-- An event of somebody else, with the id of one of ours, and one of ours with an id that comes first.
select sub_id as sub from pgq.subscription where sub_queue = :id order by sub_id limit 1 \gset
select pgq.insert_event_raw('many', 7, now(), :sub + 1, 1, 't', 'not ours', null, null, null, null);
select pgq.insert_event_raw('many', -1, now(), :sub, 4, 't', 'ours', null, null, null, null);
select pgq.ticker('many') > 0 as ticked;
select pgq.insert_event('many', 't', 'of the next batch') as after \gset
select pgq.next_batch('many', 'one') as batch \gset

-- The first look does not read the whole batch, the second does.
select pgq.event_retry(:batch, 1, 0);
select count(pgcascade.recall_event(:batch, ev_id)) from pgq.get_batch_events(:batch);
select pgq.event_retry(:batch, 2, 0);
select count(pgcascade.recall_event(:batch, ev_id)), count(*) from pgq.get_batch_events(:batch);

-- Every event, each by a call of its own; those that wait already are 0. All are copied right.
select sum(pgq.event_retry(:batch, ev_id, 0)) from pgq.get_batch_events(:batch);
select count(*), min(r.ev_id), count(*) filter (where (r.ev_time, r.ev_data, r.ev_owner, r.ev_retry)
           is distinct from (e.ev_time, e.ev_data, :sub, coalesce(e.ev_retry, 0) + 1)) as wrong
  from pgq.get_batch_events(:batch) e full join pgq.retry_queue r on r.ev_id = e.ev_id and r.ev_owner = :sub
 where r.ev_queue = :id or r.ev_id is null;
-- Outside of the batch.
\set VERBOSITY terse
select pgq.event_retry(:batch, :after, 0);
select pgq.event_retry(:batch, -2, 0);
\set VERBOSITY default

-- Hints that lead nowhere, to another event, and to an event that is not of the batch. None is believed.
delete from pgq.retry_queue where ev_queue = :id;
select pgq.next_batch('many', 'other') as forged \gset
select pgcascade.recall_wanted(:forged), pgcascade.recall_wanted(:forged);
select pgcascade.remember_event(:forged, 10, '(4000000,1)'), pgcascade.remember_event(:forged, 11, '(0,1)');
select count(pgcascade.remember_event(:forged, ev_id, ctid)) from :pfx where ev_id = :after;
select pgq.event_retry(:forged, 10, 0), pgq.event_retry(:forged, 11, 0);
select ev_id, ev_data, ev_owner = :sub + 1 as mine from pgq.retry_queue where ev_queue = :id order by ev_id;
\set VERBOSITY terse
select pgq.event_retry(:forged, :after, 0);
\set VERBOSITY default
-- The event with two rows, one of them another consumer's: each gets its own.
select pgcascade.recall_event(:batch, 7) is not null;
select pgq.event_retry(:batch, 7, 0);
select ev_data from pgq.retry_queue where ev_queue = :id and ev_owner = :sub;

select pgq.drop_queue('many', true);
