--
-- The confirm gate: who gets a tick before enough branches have it. The database plays the root "root" of queue gate_r, which
-- two branches, a leaf and a plain consumer read from; and a branch of queue gate_b.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset null (null)
create function pg_temp.refused(statement text) returns text language plpgsql as $$
declare
    said text; code text; hint text;
begin
    execute statement;
    return 'not refused';
exception when others then
    get stacked diagnostics said = message_text, code = returned_sqlstate, hint = pg_exception_hint;
    return code || ' ' || said || E'\n' || hint;
end $$;
\set state 'select * from pgcascade.gate_state where queue_name like \'gate%\';'

select count(*) from unnest(array['root', 'one', 'two', 'leaf']) n, pgq_node.register_location('gate_r', n, 'dbname=' || n, false);
select ret_note from pgq_node.create_node('gate_r', 'root', 'root', 'root_worker', null, null, null);
select ret_note from unnest(array['one', 'two', 'leaf']) n, pgq_node.register_subscriber('gate_r', n, n || '_worker', null);
select pgq.register_consumer('gate_r', 'plain');
select pgcascade.register_candidate('gate_r', n) from unnest(array['one', 'two', 'one']) n;

select pg_temp.refused($$select pgcascade.set_confirm_gate('none', 1)$$);
select pg_temp.refused($$select pgcascade.set_confirm_gate('gate_r', -1)$$);
select pg_temp.refused($$select pgcascade.set_confirm_gate('gate_r', null)$$);
select pg_temp.refused($$select pgcascade.register_candidate('gate_r', 'nobody')$$);
:state
select pgcascade.set_confirm_gate('gate_r', 2);

-- Each its own transaction, and so its own tick.
select pgq.insert_event('gate_r', 't', 'a') > 0 as event;
select pgq.force_tick('gate_r') > 0 as forced;
select pgq.ticker('gate_r');
select pgq.insert_event('gate_r', 't', 'b') > 0 as event;
select pgq.force_tick('gate_r') > 0 as forced;
select pgq.ticker('gate_r');

-- Nobody has them: they go to the branches only, however they are asked for.
:state
select c, batch_id is not null as batch, cur_tick_id from unnest(array['plain', 'leaf_worker']) c,
       lateral pgq.next_batch_custom('gate_r', c, null, null, null);
select cur_tick_id from pgq.next_batch_custom('gate_r', 'plain', null, 1, null);
select cur_tick_id from pgq.next_batch_custom('gate_r', 'plain', '0', null, '0');
select pgcascade.released_tick('gate_r', c) as released, c from unnest(array['plain', 'leaf_worker', 'one_worker', 'none']) c;
select batch_id as one, cur_tick_id from pgq.next_batch_info('gate_r', 'one_worker') \gset
select batch_id as two, cur_tick_id from pgq.next_batch_info('gate_r', 'two_worker') \gset
select pgq.finish_batch(:one);
:state
select cur_tick_id from pgq.next_batch_info('gate_r', 'plain');
select pgq.finish_batch(:two);
:state
-- Both have the first one, so the others get that one and no more, if it is enough.
select cur_tick_id from pgq.next_batch_custom('gate_r', 'leaf_worker', null, 1000, null);
select cur_tick_id, pgq.finish_batch(batch_id) from pgq.next_batch_info('gate_r', 'plain');
select cur_tick_id from pgq.next_batch_info('gate_r', 'plain');
select pgq.finish_batch(batch_id) from unnest(array['one', 'two']) n, pgq.next_batch_info('gate_r', n || '_worker');
select cur_tick_id from pgq.next_batch_info('gate_r', 'plain');

-- A branch that is gone does not count any more, though it had the tick; what was given is not taken back.
select ret_note from pgq_node.unregister_subscriber('gate_r', 'two');
table pgcascade.candidate;
:state
select cur_tick_id from pgq.next_batch_info('gate_r', 'plain');
select pgcascade.set_confirm_gate('gate_r', 1);
:state
select pgcascade.set_confirm_gate('gate_r', 0);
:state

-- A branch does as its provider says.
select count(*) from unnest(array['up', 'here', 'below']) n, pgq_node.register_location('gate_b', n, 'dbname=' || n, false);
select ret_note from pgq_node.create_node('gate_b', 'branch', 'here', 'here_worker', 'up', 1, null);
select ret_note from pgq_node.register_subscriber('gate_b', 'below', 'below_worker', null);
select pg_temp.refused($$select pgcascade.set_confirm_gate('gate_b', 1)$$);
select pgcascade.follow_gate('gate_b', 2, null);
:state
select pgq.ticker('gate_b', t, now(), t) from generate_series(2, 4) t;
select cur_tick_id from pgq.next_batch_info('gate_b', 'below_worker');
select pgcascade.follow_gate('gate_b', 2, 3);
select pgcascade.follow_gate('gate_b', 2, 2);
:state
select cur_tick_id, pgq.finish_batch(batch_id) from pgq.next_batch_info('gate_b', 'below_worker');
select cur_tick_id, pgq.finish_batch(batch_id) from pgq.next_batch_info('gate_b', 'below_worker');
select cur_tick_id from pgq.next_batch_info('gate_b', 'below_worker');
-- One is enough, and this is one.
select pgcascade.follow_gate('gate_b', 1, 2);
:state
select cur_tick_id from pgq.next_batch_info('gate_b', 'below_worker');
select pgcascade.follow_gate('gate_b', 0, null);
:state
-- A root does not follow.
select pgcascade.follow_gate('gate_r', 5, null);
:state
-- All of it goes with the queue.
select pgcascade.set_confirm_gate('gate_r', 1);
select count(*) from unnest(array['one', 'leaf']) n, pgq_node.unregister_subscriber('gate_r', n);
select ret_note from pgq_node.unregister_subscriber('gate_b', 'below');
select ret_code from pgq_node.drop_node('gate_r', 'root') union all select ret_code from pgq_node.drop_node('gate_b', 'here');
select queue_name from pgq.get_queue_info() where queue_name like 'gate%';
select count(*) from (select candidates from pgcascade.confirm_gate union all select 1 from pgcascade.candidate) rest;
