-- Addresses for administrators: what the root tells, and what makes a node forget them.
set client_min_messages = warning;
\set SHOW_CONTEXT never

select pgq_node.register_location('node_addr', 'root', 'db=root', false);
select pgq_node.create_node('node_addr', 'root', 'root', 'root_worker', null, null, null);
select pgq_node.register_location('node_addr', 'b', 'db=b', false);

-- Only of a node that is known, and told when it is new.
select pgcascade.set_admin_location('node_addr', 'nobody', 'x');
select pgcascade.set_admin_location(null, null, null);
select pgcascade.set_admin_location('node_addr', 'b', 'db=b user=boss');
select pgcascade.set_admin_location('node_addr', 'b', 'db=b user=boss');
select pgcascade.set_admin_location('node_addr', 'b', 'db=b user=chief');
table pgcascade.node_admin_location;

-- Kept while the node is where it was, and told along.
select pgq_node.register_location('node_addr', 'b', 'db=b', true);
select pgq_node.register_location('node_addr', 'b', null, false);
table pgcascade.node_admin_location;
-- Forgotten when it may have moved, also by who writes as replay does, or without the functions.
set session_replication_role = replica;
select pgq_node.register_location('node_addr', 'b', 'db=b2', false);
table pgcascade.node_admin_location;
reset session_replication_role;
select pgcascade.set_admin_location('node_addr', 'b', 'db=b2 user=boss');
select pgcascade.note_location('node_addr', 'b', 'db=b3', false);
table pgcascade.node_admin_location;
select pgcascade.set_admin_location('node_addr', 'b', 'db=b3 user=boss');
select pgcascade.set_admin_location('node_addr', 'b', null);
select pgcascade.set_admin_location('node_addr', 'b', null);
table pgcascade.node_admin_location;
-- A new name has it, too.
select pgcascade.set_admin_location('node_addr', 'root', 'db=root user=boss');
select pgcascade.rename_provider('node_addr', 'root', 'top');
select * from pgcascade.node_admin_location order by node_name;
-- And with the node it goes.
select pgcascade.set_admin_location('node_addr', 'b', 'db=b3 user=boss');
set session_replication_role = replica;
select pgq_node.unregister_location('node_addr', 'b');
reset session_replication_role;
select * from pgcascade.node_admin_location order by node_name;
-- What the others were told.
select ev_type, ev_data, ev_extra2, ev_extra3, ev_extra4 from pgq.event_template where ev_extra1 = 'node_addr' order by ev_id;
select pgq_node.drop_node('node_addr', 'root');
table pgcascade.node_admin_location;
