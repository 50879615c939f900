--
-- pgq_coop: subconsumers share the batches of one main consumer.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset null (null)
select pgq.create_queue('coop');
select queue_id as id from pgq.queue where queue_name = 'coop' \gset
update pgq.queue set queue_ticker_max_lag = '0', queue_ticker_idle_period = '0' where queue_id = :id;
select setval('pgq.batch_id_seq', 1000, false);
\set show 'select c.co_name, s.sub_id = min(s.sub_id) filter (where c.co_name = \'coop\') over () as same_id, s.sub_last_tick, s.sub_batch, s.sub_next_tick from pgq.subscription s join pgq.consumer c on c.co_id = s.sub_consumer where s.sub_queue = :id order by 1;'

-- Registering takes the main consumer along; a subconsumer has no tick.
select pgq_coop.register_subconsumer('coop', 'coop', '1'), pgq_coop.register_subconsumer('coop', 'coop', '1'),
       pgq_coop.register_subconsumer('coop', 'coop', '2');
:show
select pgq_coop.register_subconsumer('no such queue', 'coop', '1');
select pgq_coop.register_subconsumer(null, 'coop', '1');
select pgq_coop.register_subconsumer('coop', null, '1');
select pgq_coop.register_subconsumer('coop', 'coop', null);

-- Nothing yet. Then each batch goes to one of them; who asks again gets the same.
select pgq_coop.next_batch('coop', 'coop', '1');
select pgq.insert_event('coop', 't', 'one') > 0 as inserted;
select pgq.ticker('coop');
select pgq.insert_event('coop', 't', 'two') > 0 as inserted;
select pgq.ticker('coop');
select pgq_coop.next_batch('coop', 'coop', '1'), pgq_coop.next_batch('coop', 'coop', '2'),
       pgq_coop.next_batch('coop', 'coop', '1'), pgq_coop.next_batch('coop', 'coop', '2', '1 hour'),
       pgq_coop.next_batch_custom('coop', 'coop', '1', null, null, null);
:show
select ev_data from pgq.get_batch_events(1000);
select ev_data from pgq.get_batch_events(1001);
select queue_name, consumer_name, prev_tick_id, tick_id from pgq.get_batch_info(1000);
-- A third one registers by asking.
select pgq_coop.next_batch('coop', 'coop', '3');
:show

-- Finishing: once. The subconsumer has no tick then.
select pgq_coop.finish_batch(1000);
select pgq_coop.finish_batch(1000);
select pgq_coop.finish_batch(null);
:show

-- A retried event comes back to any of them.
select pgq.event_retry(1001, 2, 0);
select pgq_coop.finish_batch(1001);
select pgq.maint_retry_events();
select pgq.ticker('coop');
select pgq_coop.next_batch('coop', 'coop', '3');
select ev_data, ev_retry from pgq.get_batch_events(1002);

-- Taking over. Young ones are left alone; the batch keeps its id and the dead one's subscription ends.
select pgq_coop.next_batch('coop', 'coop', '1', '1 hour');
update pgq.subscription set sub_active = now() - interval '2 hours' where sub_batch = 1002;
select pgq_coop.next_batch('coop', 'coop', '1');
select pgq_coop.next_batch('coop', 'coop', '1', '3 hours');
select pgq_coop.next_batch('coop', 'coop', '1', '1 hour');
:show
select count(*) from pgq.consumer where co_name = 'coop.3';
-- Nobody is dead now.
select pgq_coop.next_batch('coop', 'coop', '2', '1 hour');
-- The one believed dead comes back: it may finish what it has, or start anew.
select pgq_coop.next_batch('coop', 'coop', '3');
select pgq_coop.finish_batch(1002);
select pgq_coop.finish_batch(1002);
:show
-- The oldest batch of several dead ones is taken first; asking for one's own batch is a sign of life.
select pgq.ticker('coop'), pgq.ticker('coop'), pgq.ticker('coop');
select pgq_coop.next_batch('coop', 'coop', '1'), pgq_coop.next_batch('coop', 'coop', '2'), pgq_coop.next_batch('coop', 'coop', '3');
update pgq.subscription set sub_active = now() - interval '2 hours' where sub_batch > 1002;
select pgq_coop.next_batch('coop', 'coop', '1');
select pgq_coop.next_batch('coop', 'coop', '4', '1 hour'), pgq_coop.next_batch('coop', 'coop', '5', '1 hour'),
       pgq_coop.next_batch('coop', 'coop', '6', '1 hour');
:show

-- Conditions are those of pgq.next_batch_custom.
select pgq.ticker('coop');
select pgq_coop.next_batch_custom('coop', 'coop', '6', '1 hour', null, null),
       pgq_coop.next_batch_custom('coop', 'coop', '6', null, 100, null, '1 hour'),
       pgq_coop.next_batch_custom('coop', 'coop', '6', null, null, '1 hour');
select pgq_coop.next_batch_custom('coop', 'coop', '6', '0', null, null, '1 hour');

-- Leaving: with a batch only when told so.
select pgq_coop.unregister_subconsumer('coop', 'coop', '6', 0);
select pgq_coop.unregister_subconsumer('coop', 'coop', '6', 2);
select pgq_coop.unregister_subconsumer('coop', 'coop', '6', null);
select pgq_coop.unregister_subconsumer('coop', 'coop', '6', 1), pgq_coop.unregister_subconsumer('coop', 'coop', '6', 1),
       pgq_coop.unregister_subconsumer('coop', 'coop', 'no such', 0), pgq_coop.unregister_subconsumer('coop', 'no such', '1', 0),
       pgq_coop.unregister_subconsumer('no such queue', 'coop', '1', 0), pgq_coop.unregister_subconsumer(null, null, null, 0);
:show

select pgq_coop.register_subconsumer('coop', 'coop', '2');
-- Asking when there is nothing assigns no transaction id.
begin;
select pgq_coop.next_batch('coop', 'coop', 'idle');
select txid_current_if_assigned() is null as asked_for_nothing;
rollback;
begin;
select pgq_coop.next_batch('coop', 'coop', '2') is null, pgq_coop.next_batch('coop', 'coop', '2', '1 hour') is null;
select txid_current_if_assigned() is null as asked_for_nothing;
rollback;

-- The main consumer does not read itself, nor is somebody else's consumer a subconsumer.
select pgq.ticker('coop');
select pgq.next_batch('coop', 'coop') as batch \gset
\set VERBOSITY terse
select pgq_coop.next_batch('coop', 'coop', '2');
\set VERBOSITY default
select pgq.finish_batch(:batch);
select pgq.register_consumer('coop', 'coop.mine');
select pgq_coop.register_subconsumer('coop', 'coop', 'mine');
select pgq_coop.next_batch('coop', 'coop', 'mine');
select pgq_coop.unregister_subconsumer('coop', 'coop', 'mine', 0);
-- "coop.1"."x" and "coop"."1.x" are one name, and not two subconsumers.
select pgq_coop.register_subconsumer('coop', 'coop', '1.x');
select pgq_coop.register_subconsumer('coop', 'other', 'x'), pgq_coop.register_subconsumer('coop', 'coop', E'o"d\'d ,\u00e4');
:show
-- An ordinary consumer's batch may be finished here as well.
select pgq.ticker('coop');
select pgq.next_batch('coop', 'coop.mine') as batch \gset
select pgq_coop.finish_batch(:batch);
select c.co_name, s.sub_last_tick = s2.top as at_top from pgq.subscription s join pgq.consumer c on c.co_id = s.sub_consumer, (select max(tick_id) as top from pgq.tick where tick_queue = :id) s2 where c.co_name = 'coop.mine';
select pgq.unregister_consumer('coop', 'coop.mine');

-- Rotation waits for open batches and not for idle subconsumers.
select pgq_coop.finish_batch(sub_batch) from pgq.subscription where sub_queue = :id and sub_batch is not null;
update pgq.queue set queue_rotation_period = '0' where queue_id = :id;
select pgq.unregister_consumer('coop', 'other');
\set rotate 'select pgq.maint_rotate_tables_step1(\'coop\'); select pgq.maint_rotate_tables_step2(); select queue_cur_table from pgq.queue where queue_id = :id;'
:rotate
select pgq_coop.next_batch('coop', 'coop', '1') is not null as open;
select pgq.insert_event('coop', 't', 'here') > 0 as inserted;
select pgq.ticker('coop') is not null as ticked;
select pgq_coop.next_batch('coop', 'coop', '2') is not null as open;
:rotate
:rotate
select pgq_coop.finish_batch(sub_batch) from pgq.subscription where sub_queue = :id and sub_batch is not null;
:rotate

-- Only readers, and of those the owner: it was opened above by another role. A main consumer takes its subconsumers along.
set role pgq_writer;
select pgq_coop.next_batch('coop', 'coop', '1');
set role pgq_reader;
select pgq_coop.next_batch('coop', 'coop', '1') is not null as open;
reset role;
select pgcascade.set_consumer_owner('coop', 'coop', 'pgq_reader');
set role pgq_reader;
select pgq_coop.next_batch('coop', 'coop', '1') is not null as open;
reset role;
select pgq_coop.version() = pgq.version() as version;
select pgq.unregister_consumer('coop', 'coop');
:show
select count(*) from pgq.consumer where co_name like 'coop%';
select pgq.drop_queue('coop');
