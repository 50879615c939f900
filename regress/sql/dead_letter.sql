--
-- Dead letters: events that a consumer gave up, or retried too often.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset null (null)
select pgq.create_queue('dead, "odd" ''queue''');
select queue_id as id from pgq.queue where queue_name like 'dead%' \gset
update pgq.queue set queue_ticker_max_lag = '0', queue_ticker_idle_period = '0' where queue_id = :id;
\set q '\'dead, "odd" \'\'queue\'\'\''
select pgq.register_consumer(:q, 'dead_c'), pgq.register_consumer(:q, 'dead_other');
select count(pgq.insert_event(:q, 't', g::text, 'x1', 'x2', 'x3', 'x4')) from generate_series(1, 5) g;
select pgq.insert_event(:q, null, repeat('big ', 500000), null, null, null, null);
select pgq.ticker(:q);
select pgq.next_batch(:q, 'dead_c') as batch \gset
\set list 'select ev_id, reason, ev_retry, ev_type, length(ev_data), left(ev_data, 3) as data, ev_extra1, ev_extra4, failed_at <= now() as past from pgcascade.dead_letters(:q, \'dead_c\') order by ev_id;'

-- Given up: once, with all that it has. It is not waiting to be retried any more.
select pgcascade.fail_event(:batch, 1, 'no such customer'), pgcascade.fail_event(:batch, 6, null);
select pgcascade.fail_event(:batch, 1, 'another reason');
select pgq.event_retry(:batch, 2, 0), pgcascade.fail_event(:batch, 2, 'changed its mind');
select count(*) from pgq.retry_queue where ev_queue = :id;
:list
\set VERBOSITY terse
select pgcascade.fail_event(:batch, 99, 'r');
\set VERBOSITY default
select pgcascade.fail_event(-1, 1, 'r');
select pgcascade.fail_event(null, null, null);
select pgq.finish_batch(:batch);

-- Retried: to that consumer alone, with the old id. Deleted: gone.
select dead_id as one from pgcascade.dead_letters(:q, 'dead_c') where ev_id = 1 \gset
select dead_id as six from pgcascade.dead_letters(:q, 'dead_c') where ev_id = 6 \gset
select pgcascade.retry_dead_letter(:one), pgcascade.retry_dead_letter(-1), pgcascade.retry_dead_letter(null);
select pgcascade.delete_dead_letter(:six), pgcascade.delete_dead_letter(:six);
:list
select pgq.maint_retry_events();
select pgq.ticker(:q);
select pgq.next_batch(:q, 'dead_c') as batch \gset
select ev_id, ev_retry, ev_data, ev_extra4 from pgq.get_batch_events(:batch);
select pgq.next_batch(:q, 'dead_other') as other \gset
select pgq.finish_batch(:other);
select count(*) from pgq.get_batch_events(pgq.next_batch(:q, 'dead_other'));

-- At most two retries: the third time it is dead, and event_retry says that it is taken care of.
select pgcascade.set_max_retries(:q, 'dead_c', 2);
select pgq.event_retry(:batch, 1, 0), pgq.finish_batch(:batch), pgq.maint_retry_events();
select pgq.ticker(:q);
select pgq.next_batch(:q, 'dead_c') as batch \gset
select ev_id, ev_retry from pgq.get_batch_events(:batch);
select pgq.event_retry(:batch, 1, 0), pgq.finish_batch(:batch), pgq.maint_retry_events();
select pgq.ticker(:q);
select pgq.next_batch(:q, 'dead_c') as batch \gset
select ev_id, ev_retry from pgq.get_batch_events(:batch);
begin;
select pgq.event_retry(:batch, 1, 0), pgq.event_retry(:batch, 1, now());
select ev_id, reason, ev_retry from pgcascade.dead_letters(:q, 'dead_c') where ev_id = 1;
select count(*) from pgq.retry_queue where ev_queue = :id;
rollback;
-- The same for a whole batch.
select pgq.batch_retry(:batch, 0), pgq.batch_retry(:batch, 0);
select ev_id, reason, ev_retry from pgcascade.dead_letters(:q, 'dead_c') where ev_id = 1;
select count(*) from pgq.retry_queue where ev_queue = :id;
select pgq.finish_batch(:batch);
-- None at all; and no limit again.
select pgcascade.set_max_retries(:q, 'dead_other', 0);
select pgq.register_consumer_at(:q, 'dead_other', 1);
select pgq.next_batch(:q, 'dead_other') as other \gset
select pgq.event_retry(:other, 3, 0);
select pgcascade.set_max_retries(:q, 'dead_other', null);
select pgq.event_retry(:other, 4, 0);
select ev_id, reason, ev_retry from pgcascade.dead_letters(:q, 'dead_other');
select ev_id from pgq.retry_queue where ev_queue = :id;
select pgcascade.set_max_retries(:q, 'dead_c', -1);
select pgcascade.set_max_retries(:q, 'nobody', 1);
select pgcascade.set_max_retries(null, null, 1);

-- All of a consumer.
select pgcascade.retry_dead_letters(:q, 'dead_c'), pgcascade.retry_dead_letters(:q, 'dead_c');
select pgcascade.delete_dead_letters(:q, 'dead_other'), pgcascade.delete_dead_letters(:q, 'dead_other');
select count(*) from pgcascade.dead_letter;
select ev_id, ev_retry from pgq.retry_queue where ev_queue = :id order by ev_id;
select pgcascade.dead_letters(:q, 'nobody');
select pgcascade.retry_dead_letters(null, 'nobody');

-- A subconsumer fails for its main consumer, and by its limit.
select pgq_coop.register_subconsumer(:q, 'dead_group', 'one'), pgq_coop.register_subconsumer(:q, 'dead_group', 'two');
select pgcascade.set_max_retries(:q, 'dead_group.one', 0);
select pgq.insert_event(:q, 'coop', 'd');
select pgq.ticker(:q);
select pgq_coop.next_batch(:q, 'dead_group', 'two') as batch \gset
select pgq.event_retry(:batch, ev_id, 0) from pgq.get_batch_events(:batch) where ev_type = 'coop';
select ev_type, reason from pgcascade.dead_letters(:q, 'dead_group');
select pgq_coop.finish_batch(:batch);

-- Only who the consumer belongs to.
create role dead_owner in role pgq_reader;
create role dead_stranger in role pgq_reader;
create role dead_admin in role pgq_admin;
set role dead_owner;
select pgq.register_consumer_at(:q, 'dead_mine', 1);
select pgq.next_batch(:q, 'dead_mine') as batch \gset
select pgcascade.set_max_retries(:q, 'dead_mine', 3), pgcascade.fail_event(:batch, 1, 'mine');
select count(*) from pgcascade.dead_letters(:q, 'dead_mine');
select dead_id as mine from pgcascade.dead_letters(:q, 'dead_mine') \gset
set role dead_stranger;
\set VERBOSITY terse
select pgcascade.set_max_retries(:q, 'dead_mine', 0);
select pgcascade.fail_event(:batch, 2, 'not mine');
select pgcascade.dead_letters(:q, 'dead_mine');
select pgcascade.retry_dead_letter(:mine);
select pgcascade.retry_dead_letters(:q, 'dead_mine');
select pgcascade.delete_dead_letter(:mine);
select pgcascade.delete_dead_letters(:q, 'dead_mine');
select count(*) from pgcascade.dead_letter;
\set VERBOSITY default
set role dead_admin;
select reason from pgcascade.dead_letter where dead_id = :mine;
select pgcascade.retry_dead_letter(:mine);
reset role;

-- They end with the subscription and with the queue.
select pgcascade.fail_event(:batch, 3, 'r');
select pgq.unregister_consumer(:q, 'dead_mine');
select c.co_name, d.ev_type from pgcascade.dead_letter d join pgq.consumer c on c.co_id = d.consumer_id;
select pgq.drop_queue(:q, true);
select count(*) from pgcascade.dead_letter;
drop role dead_owner, dead_stranger, dead_admin;
