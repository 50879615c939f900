--
-- pgq_node: state of the consumers that apply to this database.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset null (null)
\set show 'select * from pgq_node.get_consumer_info(\'node_c\');'
-- No node: nothing to register at.
select * from pgq_node.register_consumer('node_c', 'c', 'r', 1);
select * from pgq_node.unregister_consumer('node_c', 'c');
select * from pgq_node.change_consumer_provider('node_c', 'c', 'r');
select * from pgq_node.set_consumer_uptodate('node_c', 'c', true);
select * from pgq_node.set_consumer_paused('node_c', 'c', true);
select * from pgq_node.set_consumer_completed('node_c', 'c', 1);
select * from pgq_node.set_consumer_error('node_c', 'c', 'oops');
:show

select * from pgq_node.register_location('node_c', 'r', 'dbname=r', false);
select * from pgq_node.register_location('node_c', 's', 'dbname=s', false);
select * from pgq_node.register_location('node_c', 'l', 'dbname=l', false);
select * from pgq_node.create_node('node_c', 'leaf', 'l', 'w', 'r', 5, null);

-- Registering; again sets it anew.
select * from pgq_node.register_consumer('node_c', 'c', 'r', 1);
select * from pgq_node.set_consumer_uptodate('node_c', 'c', true);
select * from pgq_node.register_consumer('node_c', 'c', 's', 7);
:show
select * from pgq_node.register_consumer('node_c', 'c', 'no such node', 1);
select * from pgq_node.register_consumer('node_c', 'c', null, 1);
select * from pgq_node.register_consumer('node_c', 'c', 'r', null);
select * from pgq_node.register_consumer('node_c', null, 'r', 1);
select * from pgq_node.register_consumer(null, 'c', 'r', 1);
select * from pgq_node.register_consumer('node_c', E'o"d\'d.,\u00e4', 'r', 1);
select * from pgq_node.get_consumer_state('node_c', E'o"d\'d.,\u00e4');
select * from pgq_node.get_consumer_state('node_c', 'no such consumer');
select * from pgq_node.get_consumer_state('node_c', null);

-- The worker of a leaf is its watermark; others are not.
select local_watermark from pgq_node.get_node_info('node_c');
select * from pgq_node.set_consumer_completed('node_c', 'w', 9);
select local_watermark, worker_last_tick from pgq_node.get_node_info('node_c');

-- Pausing is a handshake: asked, then confirmed.
select * from pgq_node.set_consumer_uptodate('node_c', 'w', true);
select * from pgq_node.set_consumer_paused('node_c', 'w', true);
select paused, uptodate from pgq_node.get_consumer_state('node_c', 'w');
select * from pgq_node.set_consumer_uptodate('node_c', 'w', true);
select * from pgq_node.set_consumer_paused('node_c', 'w', true);
select paused, uptodate from pgq_node.get_worker_state('node_c');
select worker_paused, worker_uptodate from pgq_node.get_node_info('node_c');
select * from pgq_node.set_consumer_paused('node_c', 'w', false);
select * from pgq_node.set_consumer_paused('node_c', 'w', false);
select * from pgq_node.set_consumer_uptodate('node_c', 'w', false);
select * from pgq_node.set_consumer_uptodate('node_c', 'no such consumer', true);
select * from pgq_node.set_consumer_uptodate(null, null, true);
select * from pgq_node.set_consumer_paused('node_c', 'no such consumer', true);
select * from pgq_node.set_consumer_paused('node_c', null, true);

-- Positions and errors: a position ends an error.
select * from pgq_node.set_consumer_error('node_c', 'w', 'oops');
select cur_error from pgq_node.get_worker_state('node_c');
select * from pgq_node.set_consumer_completed('node_c', 'w', 10);
select cur_error, completed_tick from pgq_node.get_worker_state('node_c');
select * from pgq_node.set_consumer_error('node_c', 'w', null);
select * from pgq_node.set_consumer_error('node_c', 'no such consumer', 'oops');
select * from pgq_node.set_consumer_error(null, null, null);
select * from pgq_node.set_consumer_completed('node_c', 'w', 8);
select * from pgq_node.set_consumer_completed('node_c', 'no such consumer', 8);
select * from pgq_node.set_consumer_completed(null, 'w', 8);
\set VERBOSITY sqlstate
select * from pgq_node.set_consumer_uptodate('node_c', 'w', null);
select * from pgq_node.set_consumer_paused('node_c', 'w', null);
select * from pgq_node.set_consumer_completed('node_c', 'w', null);
\set VERBOSITY default

-- Another provider: the consumer has to notice. The one it reads from is not forgotten.
select * from pgq_node.set_consumer_uptodate('node_c', 'w', true);
select * from pgq_node.change_consumer_provider('node_c', 'w', 's');
select * from pgq_node.change_consumer_provider('node_c', 'w', 'no such node');
select * from pgq_node.change_consumer_provider('node_c', 'w', null);
select * from pgq_node.change_consumer_provider('node_c', 'no such consumer', 's');
select * from pgq_node.change_consumer_provider('node_c', null, 's');
:show
select * from pgq_node.unregister_location('node_c', 's');
select * from pgq_node.drop_node('node_c', 's');

-- Leaving; again is no error. A node without its worker says so.
select * from pgq_node.unregister_consumer('node_c', 'c');
select * from pgq_node.unregister_consumer('node_c', 'c');
select * from pgq_node.unregister_consumer('node_c', null);
select * from pgq_node.unregister_consumer('node_c', 'w');
\x
select * from pgq_node.get_worker_state('node_c');
select * from pgq_node.get_node_info('node_c');
\x

-- Writers keep positions, readers look.
set role pgq_writer;
select * from pgq_node.register_consumer('node_c', 'w', 'r', 1);
select * from pgq_node.set_consumer_completed('node_c', 'w', 2);
select * from pgq_node.drop_node('node_c', 'l');
set role pgq_reader;
select completed_tick from pgq_node.get_consumer_state('node_c', 'w');
select * from pgq_node.set_consumer_completed('node_c', 'w', 2);
select count(*) from pgq_node.local_state;
reset role;
select * from pgq_node.drop_node('node_c', 'l');
