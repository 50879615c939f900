--
-- Subscribing, moving and leaving.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset null (null)
select pgq.create_queue('consumers');
select queue_id as id from pgq.queue where queue_name = 'consumers' \gset
update pgq.queue set queue_ticker_max_lag = '0', queue_ticker_idle_period = '0' where queue_id = :id;
select pgq.ticker('consumers'), pgq.ticker('consumers');

\set show 'select c.co_name, s.sub_last_tick, s.sub_batch is not null as open, s.sub_next_tick from pgq.subscription s join pgq.consumer c on c.co_id = s.sub_consumer where s.sub_queue = :id order by 1;'

-- New ones begin at the last tick, or where they want to.
select pgq.register_consumer('consumers', 'consumers_a');
select pgq.register_consumer('consumers', 'consumers_a');
select pgq.register_consumer_at('consumers', 'consumers_b', 2);
select pgq.register_consumer_at('consumers', 'consumers_c', null);
:show

-- Moving: to a tick that exists; the open batch is dropped.
select pgq.next_batch('consumers', 'consumers_b') as batch \gset
:show
select pgq.register_consumer_at('consumers', 'consumers_b', null);
select pgq.register_consumer('consumers', 'consumers_b');
:show
select pgq.register_consumer_at('consumers', 'consumers_b', 1);
:show
set client_min_messages = error; -- the warning has the batch id in it
select pgq.finish_batch(:batch);
set client_min_messages = warning;
select pgq.register_consumer_at('consumers', 'consumers_b', 99);
select pgq.register_consumer_at('consumers', 'consumers_new', 99);
select pgq.register_consumer('no such queue', 'consumers_a');
select pgq.register_consumer_at('no such queue', 'consumers_a', 1);
select count(*) from pgq.consumer where co_name = 'consumers_new';

-- One name on several queues.
select pgq.create_queue('consumers two');
select pgq.register_consumer('consumers two', 'consumers_a');
select count(*) from pgq.consumer where co_name = 'consumers_a';
select pgq.unregister_consumer('consumers', 'consumers_a');
select count(*) from pgq.consumer where co_name = 'consumers_a';
select pgq.unregister_consumer('consumers two', 'consumers_a');
select count(*) from pgq.consumer where co_name = 'consumers_a';
select pgq.drop_queue('consumers two');

-- Leaving: nothing there is no error.
select pgq.unregister_consumer('consumers', 'consumers_a'),
       pgq.unregister_consumer('consumers', 'no such consumer'),
       pgq.unregister_consumer('no such queue', 'consumers_b'),
       pgq.unregister_consumer(null, 'consumers_b'),
       pgq.unregister_consumer('consumers', null);
-- With an open batch and a retried event.
select pgq.next_batch('consumers', 'consumers_b') > 0 as opened;
select pgq.event_retry_raw('consumers', 'consumers_b', now(), 1, now(), null, 't', 'd', null, null, null, null);
select pgq.unregister_consumer('consumers', 'consumers_b');
select count(*) from pgq.retry_queue where ev_queue = :id;
select pgq.unregister_consumer('consumers', 'consumers_c');

-- Subconsumers share the main consumer's sub_id (schema pgq_coop makes them; here by hand). A main consumer takes
-- them along, also while it has a batch open; a subconsumer leaves alone.
select pgq.register_consumer_at('consumers', 'consumers_m', 1);
insert into pgq.consumer (co_name) values ('consumers_m.1'), ('consumers_m.2');
insert into pgq.subscription (sub_id, sub_queue, sub_consumer)
select m.sub_id, m.sub_queue, c.co_id
  from pgq.subscription m join pgq.consumer mc on mc.co_id = m.sub_consumer and mc.co_name = 'consumers_m', pgq.consumer c
 where m.sub_queue = :id and c.co_name like 'consumers\_m.%';
select pgq.event_retry_raw('consumers', 'consumers_m', now(), 1, now(), null, 't', 'd', null, null, null, null);
select pgq.next_batch('consumers', 'consumers_m') > 0 as opened;
:show
select pgq.unregister_consumer('consumers', 'consumers_m.1');
:show
select count(*) as retry_rows from pgq.retry_queue where ev_queue = :id;
select pgq.unregister_consumer('consumers', 'consumers_m');
:show
select count(*) as retry_rows from pgq.retry_queue where ev_queue = :id;
select co_name from pgq.consumer where co_name like 'consumers\_%';

-- A queue without ticks has no place to begin at.
delete from pgq.tick where tick_queue = :id;
select pgq.register_consumer('consumers', 'consumers_a');
select pgq.drop_queue('consumers');
