--
-- pgq_node: change of root.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset null (null)
\set queue 'select queue_external_ticker, queue_disable_insert from pgq.queue where queue_name = \'node_r\';'
\set node 'select node_type, provider_node, completed_tick, uptodate, local_queue_top from pgq_node.get_worker_state(\'node_r\');'
select * from pgq_node.demote_root('node_r', 1, 's');
select * from pgq_node.demote_root(null, 1, 's');
select * from pgq_node.promote_branch('node_r');
select * from pgq_node.promote_branch(null);

select ret_code from unnest(array['r', 's']) n, pgq_node.register_location('node_r', n, 'dbname=' || n, false);
select * from pgq_node.create_node('node_r', 'root', 'r', 'w', null, null, null);
update pgq.queue set queue_ticker_max_lag = '0', queue_ticker_idle_period = '0' where queue_name = 'node_r';
select pgq.register_consumer('node_r', 'c');
select * from pgq_node.promote_branch('node_r');

-- Steps in order, and each may be done again.
select * from pgq_node.demote_root('node_r', 2, 's');
select * from pgq_node.demote_root('node_r', 3, 's');
select * from pgq_node.demote_root('node_r', 4, 's');
select * from pgq_node.demote_root('node_r', null, 's');
select * from pgq_node.demote_root('node_r', 1, 'no such node');
select * from pgq_node.demote_root('node_r', 1, 'r');
select pgq.insert_event('node_r', 't', 'the last one') > 0 as inserted;
select * from pgq_node.demote_root('node_r', 1, 's');
select * from pgq_node.demote_root('node_r', 1, 's');
:queue
select pgq.insert_event('node_r', 't', 'too late');
select pgq.ticker('node_r');
-- Step 3 without step 2 would leave an event without a tick.
select * from pgq_node.demote_root('node_r', 3, 's');
select * from pgq_node.demote_root('node_r', 2, 's');
begin isolation level repeatable read;
select * from pgq_node.demote_root('node_r', 2, 's');
rollback;
select pgq.next_batch('node_r', 'c') as batch \gset
select ev_data from pgq.get_batch_events(:batch);
select pgq.finish_batch(:batch);
select * from pgq_node.demote_root('node_r', 2, 's');
select * from pgq_node.demote_root('node_r', 3, null);
select * from pgq_node.demote_root('node_r', 3, 's');
:queue
:node
select * from pgq_node.demote_root('node_r', 3, 's');
select pgq_node.is_root_node('node_r');
select pgq.insert_event('node_r', 't', 'too late');

-- Ticks of the new root arrive with their ids, and back again.
select pgq.ticker('node_r', 10, now(), 5);
select * from pgq_node.set_consumer_completed('node_r', 'w', 10);
select * from pgq_node.set_consumer_uptodate('node_r', 'w', true);
select * from pgq_node.promote_branch('node_r');
:queue
:node
select * from pgq_node.promote_branch('node_r');
select pgq.insert_event('node_r', 't', 'by the root') > 0 as inserted;
select pgq.ticker('node_r');

-- A leaf has no role to change.
select ret_code from unnest(array['r', 'l']) n, pgq_node.register_location('node_l', n, 'dbname=' || n, false);
select * from pgq_node.create_node('node_l', 'leaf', 'l', 'lw', 'r', 1, null);
select * from pgq_node.demote_root('node_l', 1, 'r');
select * from pgq_node.promote_branch('node_l');
select ret_code from pgq_node.drop_node('node_l', 'l') union all select ret_code from pgq_node.drop_node('node_r', 'r');
