--
-- pgq_node: nodes that read from this one, and watermarks.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset null (null)
\set consumers 'select c.co_name, s.sub_last_tick from pgq.subscription s join pgq.consumer c on c.co_id = s.sub_consumer join pgq.queue q on q.queue_id = s.sub_queue where q.queue_name = \'node_s\' order by c.co_name collate "C";'
-- No node.
select * from pgq_node.register_subscriber('node_s', 'b', 'bw', null);
select * from pgq_node.unregister_subscriber('node_s', 'b');
select * from pgq_node.set_subscriber_watermark('node_s', 'b', 1);
select * from pgq_node.set_global_watermark('node_s', 1);
select * from pgq_node.set_global_watermark(null, null);
select * from pgq_node.set_partition_watermark('node_s', 'p', 1);
select pgq_node.maint_watermark('node_s'), pgq_node.maint_watermark(null);
select count(*) from pgq_node.get_subscriber_info('node_s');

select ret_code from unnest(array['r', 'b', 'c', 'd']) n, pgq_node.register_location('node_s', n, 'dbname=' || n, false);
select * from pgq_node.create_node('node_s', 'root', 'r', 'w', null, null, null);
select queue_id as id from pgq.queue where queue_name = 'node_s' \gset
update pgq.queue set queue_ticker_max_lag = '0', queue_ticker_idle_period = '0' where queue_id = :id;

-- Subscribing at the global watermark, or at a tick; again changes nothing.
select * from pgq_node.register_subscriber('node_s', 'b', 'bw', null);
select pgq.ticker('node_s'), pgq.ticker('node_s'), pgq.ticker('node_s');
select * from pgq_node.register_subscriber('node_s', 'c', 'cw', 3);
:consumers
select * from pgq_node.get_subscriber_info('node_s');
select * from pgq_node.subscriber_info;
select * from pgq_node.set_subscriber_watermark('node_s', 'c', 3);
select * from pgq_node.register_subscriber('node_s', 'c', 'cw', null);
:consumers
select * from pgq_node.register_subscriber('node_s', 'c', 'cw', 2);
:consumers
select * from pgq_node.register_subscriber('node_s', 'c', 'other worker', null);
select * from pgq_node.register_subscriber('node_s', 'x', 'xw', null);
select * from pgq_node.register_subscriber('node_s', null, 'xw', null);
select * from pgq_node.register_subscriber('node_s', 'd', null, null);
select * from pgq_node.register_subscriber('node_s', 'd', 'dw', 99);
select count(*) from pgq_node.get_subscriber_info('node_s') where node_name = 'd';
-- Its consumers are not taken away behind its back.
\set VERBOSITY terse
select pgq.unregister_consumer('node_s', 'bw');
\set VERBOSITY default

-- What a subscriber needs only moves on.
select * from pgq_node.set_subscriber_watermark('node_s', 'b', 3);
select * from pgq_node.set_subscriber_watermark('node_s', 'b', 3);
select * from pgq_node.set_subscriber_watermark('node_s', 'b', 2);
select * from pgq_node.set_subscriber_watermark('node_s', 'b', 99);
select * from pgq_node.set_subscriber_watermark('node_s', 'b', null);
select * from pgq_node.set_subscriber_watermark('node_s', 'x', 3);
select * from pgq_node.set_subscriber_watermark('node_s', null, 3);
select * from pgq_node.set_subscriber_watermark(null, 'b', 3);
select * from pgq_node.get_subscriber_info('node_s');

-- The global watermark of a root: what the slowest needs. The others are told, and the worker stands there.
select global_watermark, local_watermark, worker_last_tick from pgq_node.get_node_info('node_s');
select * from pgq_node.set_global_watermark('node_s', null);
select pgq.register_consumer_at('node_s', 'bw', 4), pgq.register_consumer_at('node_s', 'cw', 4);
select * from pgq_node.set_subscriber_watermark('node_s', 'b', 4);
select * from pgq_node.set_subscriber_watermark('node_s', 'c', 4);
select * from pgq_node.set_global_watermark('node_s', null);
select global_watermark, local_watermark, completed_tick, local_queue_top from pgq_node.get_worker_state('node_s');
select * from pgq_node.set_global_watermark('node_s', 3);
select * from pgq_node.set_global_watermark('node_s', 99);
:consumers
select ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4 from pgq.event_template where ev_type = 'pgq.global-watermark' order by ev_id;

-- Maintenance sets it when it is old, or missing; not while the queue is closed.
select pgq_node.maint_watermark('node_s');
select pgcascade.consumer_tick('node_s', '.global_watermark');
update pgq.tick set tick_time = tick_time - interval '6 minutes' where tick_queue = :id;
update pgq.queue set queue_disable_insert = true where queue_id = :id;
select pgq_node.maint_watermark('node_s');
select pgcascade.consumer_tick('node_s', '.global_watermark');
update pgq.queue set queue_disable_insert = false where queue_id = :id;
select pgq_node.maint_watermark('node_s');
select pgcascade.consumer_tick('node_s', '.global_watermark');
select pgq.ticker('node_s');
select pgq.unregister_consumer('node_s', '.global_watermark');
select global_watermark from pgq_node.get_node_info('node_s');
select pgq_node.maint_watermark('node_s');
select pgcascade.consumer_tick('node_s', '.global_watermark');

-- Leaving: both consumers go.
select * from pgq_node.unregister_subscriber('node_s', 'c');
select * from pgq_node.unregister_subscriber('node_s', 'c');
select * from pgq_node.unregister_subscriber('node_s', null);
select * from pgq_node.unregister_location('node_s', 'b');
:consumers
-- Any name will do.
select * from pgq_node.register_location('node_s', E'o"d\'d.,\u00e4', 'dbname=odd', false);
select * from pgq_node.register_subscriber('node_s', E'o"d\'d.,\u00e4', E'w"\'.,\u00e4', null);
select * from pgq_node.set_subscriber_watermark('node_s', E'o"d\'d.,\u00e4', 5);
:consumers
-- A reader may subscribe, not administer.
set role pgq_reader;
select * from pgq_node.unregister_subscriber('node_s', E'o"d\'d.,\u00e4');
select * from pgq_node.set_global_watermark('node_s', null);
reset role;
select * from pgq_node.drop_node('node_s', 'r');

-- A branch follows; a tick that has not come yet is left for later.
select ret_code from unnest(array['r', 'b']) n, pgq_node.register_location('node_s', n, 'dbname=' || n, false);
select * from pgq_node.create_node('node_s', 'branch', 'b', 'bw', 'r', 5, null);
select pgq.ticker('node_s', 6, now(), 1), pgq.ticker('node_s', 7, now(), 1);
select * from pgq_node.set_global_watermark('node_s', 6);
select * from pgq_node.set_global_watermark('node_s', 99);
select * from pgq_node.set_global_watermark('node_s', null);
select global_watermark, local_watermark from pgq_node.get_node_info('node_s');
select count(*) from pgq.event_template where ev_extra1 = 'node_s';
select pgq_node.maint_watermark('node_s');

-- Leaves have no watermark of others; one that is merged into a combined branch stays behind.
select ret_code from unnest(array['r', 'l']) n, pgq_node.register_location('node_p', n, 'dbname=' || n, false);
select * from pgq_node.create_node('node_p', 'leaf', 'l', 'pw', 'r', 5, 'node_s');
select * from pgq_node.register_subscriber('node_p', 'r', 'rw', null);
select * from pgq_node.unregister_subscriber('node_p', 'r');
select * from pgq_node.set_subscriber_watermark('node_p', 'r', 1);
select * from pgq_node.set_global_watermark('node_p', 1);
select * from pgq_node.set_global_watermark('node_p', null);
select pgq_node.maint_watermark('node_p');
select * from pgq_node.set_partition_watermark('node_s', 'node_p', 9);
select completed_tick, local_watermark, combined_queue, combined_type from pgq_node.get_worker_state('node_p');
select * from pgq_node.set_partition_watermark('node_s', 'node_p', null);
select * from pgq_node.set_partition_watermark('node_s', 'no such part', 9);
select * from pgq_node.set_partition_watermark('no such queue', 'node_p', 9);
select * from pgq_node.set_partition_watermark(null, null, 9);
select target_for from pgq_node.get_node_info('node_s');
select * from pgq_node.promote_branch('node_s');
select * from pgq_node.set_partition_watermark('node_s', 'node_p', 10);
select completed_tick from pgq_node.get_worker_state('node_p');
select ret_code from pgq_node.drop_node('node_p', 'l') union all select ret_code from pgq_node.drop_node('node_s', 'b');
