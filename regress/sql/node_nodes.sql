--
-- pgq_node: locations; making nodes of each type; dropping them.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset null (null)
\set events 'select ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4 from pgq.event_template where ev_extra1 = \'node_q\' or ev_type = \'t\' order by ev_id;'
\set consumers 'select c.co_name, s.sub_last_tick from pgq.subscription s join pgq.consumer c on c.co_id = s.sub_consumer join pgq.queue q on q.queue_id = s.sub_queue where q.queue_name like \'node\\_%\' order by q.queue_name, c.co_name collate "C";'

-- No node.
select ret_code, ret_note from pgq_node.get_node_info('node_q');
select ret_code, ret_note from pgq_node.get_worker_state('node_q');
select ret_code, ret_note from pgq_node.get_consumer_state('node_q', 'w');
select ret_code, ret_note from pgq_node.get_node_info(null);
select pgq_node.is_root_node('node_q');
select pgq_node.is_leaf_node(null);
select * from pgq_node.set_node_attrs('node_q', 'a=1');
select * from pgq_node.drop_node('node_q', 'r');
select * from pgq_node.drop_node('node_q', null);
select * from pgq_node.unregister_location('node_q', 'r');
select count(*) from pgq_node.get_queue_locations('node_q');

-- Locations.
select * from pgq_node.register_location('node_q', 'r', 'dbname=old', false);
select * from pgq_node.register_location('node_q', 'r', 'dbname=r', true);
select * from pgq_node.register_location('node_q', 'r', null, false);
select * from pgq_node.register_location('node_q', 'x', null, true);
select * from pgq_node.register_location('node_q', 'b', 'dbname=b', false);
select * from pgq_node.register_location('node_q', E'o"d\'d.,\u00e4', 'dbname=odd', true);
select * from pgq_node.get_queue_locations('node_q');
\set VERBOSITY sqlstate
select * from pgq_node.register_location(null, 'x', 'dbname=x', false);
select * from pgq_node.register_location('node_q', null, 'dbname=x', false);
select * from pgq_node.register_location('node_q', 'x', 'dbname=x', null);
\set VERBOSITY default

-- A root: what does not fit is refused and leaves nothing behind.
select * from pgq_node.create_node('node_q', 'root', 'missing', 'w', null, null, null);
select * from pgq_node.create_node('node_q', 'root', null, 'w', null, null, null);
select * from pgq_node.create_node('node_q', 'twig', 'r', 'w', null, null, null);
select * from pgq_node.create_node('node_q', null, 'r', 'w', null, null, null);
select * from pgq_node.create_node('node_q', 'root', 'r', null, null, null, null);
select * from pgq_node.create_node('node_q', 'root', 'r', 'w', 'b', null, null);
select * from pgq_node.create_node('node_q', 'root', 'r', 'w', null, 1, null);
select * from pgq_node.create_node('node_q', 'root', 'r', 'w', null, null, 'node_c');
select * from pgq_node.create_node(null, 'root', 'r', 'w', null, null, null);
select count(*) from pgq.queue where queue_name = 'node_q';
select * from pgq_node.create_node('node_q', 'root', 'r', 'w', null, null, null);
select * from pgq_node.create_node('node_q', 'root', 'r', 'w', null, null, null);
select * from pgq_node.node_info where queue_name = 'node_q';
select * from pgq_node.local_state where queue_name = 'node_q';
select queue_external_ticker, queue_disable_insert, queue_extra_maint from pgq.queue where queue_name = 'node_q';
:consumers
\x
select * from pgq_node.get_node_info('node_q');
select * from pgq_node.get_worker_state('node_q');
\x
select pgq_node.is_root_node('node_q'), pgq_node.is_leaf_node('node_q');
select * from pgq.maint_operations() where func_arg = 'node_q';

-- The root tells the others.
select * from pgq_node.register_location('node_q', 'b', 'dbname=b2', true);
select * from pgq_node.register_location('node_q', 'b', null, false);
select * from pgq_node.register_location('node_q', 'x', null, true);
select * from pgq_node.unregister_location('node_q', E'o"d\'d.,\u00e4');
select * from pgq_node.unregister_location('node_q', E'o"d\'d.,\u00e4');
select * from pgq_node.unregister_location('node_q', null);
select * from pgq_node.unregister_location('node_q', 'r');
select * from pgq_node.unregister_location('nodes', 'b');
:events

-- Attributes.
select * from pgq_node.set_node_attrs('node_q', 'a=1&b=%20');
select node_attrs from pgq_node.get_node_info('node_q');
select * from pgq_node.set_node_attrs('node_q', null);
select node_attrs from pgq_node.get_node_info('node_q');

-- A branch: closed for writers, its ticks come from the provider; begins at the watermark.
select * from pgq_node.register_location('node_b', 'r', 'dbname=r', false);
select * from pgq_node.register_location('node_b', 'b', 'dbname=b', false);
select * from pgq_node.create_node('node_b', 'branch', 'b', 'bw', null, 5, null);
select * from pgq_node.create_node('node_b', 'branch', 'b', 'bw', 'r', null, null);
select * from pgq_node.create_node('node_b', 'branch', 'b', 'bw', 'missing', 5, null);
select * from pgq_node.create_node('node_b', 'branch', 'b', null, 'r', 5, null);
select * from pgq_node.create_node('node_b', 'branch', 'b', 'bw', 'r', 5, 'node_q');
select * from pgq_node.create_node('node_b', 'branch', 'b', 'bw', 'r', 5, null);
select queue_external_ticker, queue_disable_insert from pgq.queue where queue_name = 'node_b';
select t.tick_id, t.tick_event_seq from pgq.tick t join pgq.queue on queue_id = tick_queue where queue_name = 'node_b' order by 1;
select pgq.seq_getval(queue_tick_seq) from pgq.queue where queue_name = 'node_b';
select pgq.insert_event('node_b', 't', 'd');
select pgq.ticker('node_b', 6, now(), 10);
\x
select * from pgq_node.get_node_info('node_b');
select * from pgq_node.get_worker_state('node_b');
\x
select pgq_node.is_root_node('node_b'), pgq_node.is_leaf_node('node_b');
-- It tells nobody, keeps its provider, and has no watermark to maintain.
select * from pgq_node.register_location('node_b', 'x', 'dbname=x', false);
select * from pgq_node.unregister_location('node_b', 'x');
select * from pgq_node.unregister_location('node_b', 'r');
select * from pgq_node.unregister_location('node_b', 'b');
select * from pgq_node.drop_node('node_b', 'r');
select count(*) from pgq.event_template where ev_extra1 = 'node_b';
select count(*) from pgq.maint_operations() where func_arg = 'node_b';
select * from pgq_node.drop_node('node_b', 'b');
-- From tick 1; not onto a queue with ticks of its own.
select * from pgq_node.register_location('node_b', 'r', 'dbname=r', false);
select * from pgq_node.register_location('node_b', 'b', 'dbname=b', false);
select pgq.create_queue('node_b');
update pgq.queue set queue_ticker_max_lag = '0', queue_ticker_idle_period = '0' where queue_name = 'node_b';
select pgq.ticker('node_b');
select * from pgq_node.create_node('node_b', 'branch', 'b', 'bw', 'r', 5, null);
select pgq.drop_queue('node_b');
select * from pgq_node.create_node('node_b', 'branch', 'b', 'bw', 'r', 1, null);
select t.tick_id from pgq.tick t join pgq.queue on queue_id = tick_queue where queue_name = 'node_b' order by 1;

-- A leaf: no queue. Its events may be merged into another queue of this database.
select * from pgq_node.register_location('node_l', 'r', 'dbname=r', false);
select * from pgq_node.register_location('node_l', 'l', 'dbname=l', false);
select * from pgq_node.create_node('node_l', 'leaf', 'l', 'lw', null, 5, null);
select * from pgq_node.create_node('node_l', 'leaf', 'l', 'lw', 'r', null, null);
select * from pgq_node.create_node('node_l', 'leaf', 'l', null, 'r', 5, null);
select * from pgq_node.create_node('node_l', 'leaf', 'l', 'lw', 'r', 5, 'no such queue');
select * from pgq_node.create_node('node_l', 'leaf', 'l', 'lw', 'r', 5, 'node_q');
select count(*) from pgq.queue where queue_name = 'node_l';
\x
select * from pgq_node.get_node_info('node_l');
select * from pgq_node.get_worker_state('node_l');
\x
select pgq_node.is_root_node('node_l'), pgq_node.is_leaf_node('node_l');
select target_for from pgq_node.get_node_info('node_q');

-- Dropping: another one, this one with everything; again is no error. A queue beside a leaf stays.
select * from pgq_node.register_subscriber('node_q', 'b', 'bw', null);
select * from pgq_node.drop_node('node_q', 'b');
select count(*) from pgq_node.get_subscriber_info('node_q');
select * from pgq_node.get_queue_locations('node_q');
select pgq.create_queue('node_l');
select * from pgq_node.drop_node('node_l', 'l');
select pgq.drop_queue('node_l');
select * from pgq_node.register_location('node_q', 'b', 'dbname=b', false);
select * from pgq_node.register_subscriber('node_q', 'b', 'bw', null);
select pgq.next_batch('node_q', 'bw');
select * from pgq_node.drop_node('node_q', 'r');
select * from pgq_node.drop_node('node_q', 'r');
select * from pgq_node.drop_node('node_b', 'b');
:consumers
select count(*) from pgq.consumer where co_name in ('.global_watermark', '.b.watermark', 'bw');
select count(*) from pgq.queue where queue_name like 'node\_%';
select (select count(*) from pgq_node.node_info), (select count(*) from pgq_node.node_location),
       (select count(*) from pgq_node.local_state), (select count(*) from pgq_node.subscriber_info);

-- An existing queue becomes a root, with its events and consumers.
select pgq.create_queue('node_q');
update pgq.queue set queue_ticker_max_lag = '0', queue_ticker_idle_period = '0' where queue_name = 'node_q';
select pgq.register_consumer('node_q', 'mine');
select pgq.ticker('node_q');
select * from pgq_node.register_location('node_q', 'r', 'dbname=r', false);
select * from pgq_node.create_node('node_q', 'root', 'r', 'w', null, null, null);
:consumers
select global_watermark, local_watermark, worker_last_tick from pgq_node.get_node_info('node_q');
select * from pgq_node.drop_node('node_q', 'r');

-- What the tables themselves refuse.
\set VERBOSITY terse
insert into pgq_node.node_location (queue_name, node_name, node_location) values ('node_q', 'r', 'dbname=r');
insert into pgq_node.node_info (queue_name, node_type, node_name) values ('node_q', 'root', 'r');
insert into pgq_node.node_info (queue_name, node_type, node_name, worker_name, combined_queue) values ('node_q', 'branch', 'r', 'w', 'c');
insert into pgq_node.node_info (queue_name, node_type, node_name, worker_name) values ('node_q', 'twig', 'r', 'w');
insert into pgq_node.node_info (queue_name, node_type, node_name, worker_name) values ('node_q', 'root', 'x', 'w');
insert into pgq_node.local_state (queue_name, consumer_name, provider_node, last_tick_id) values ('node_q', 'w', 'r', 1);
\set VERBOSITY default
delete from pgq_node.node_location;
select pgq_node.upgrade_schema(), pgq_node.version() = pgq.version() as version;
