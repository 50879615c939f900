--
-- Takeover: epochs, promises, the fence, the journal. Two queues of this database play two nodes of one cascade: tk_r is
-- the root "r", tk_n the branch "n". What a node learns of another is passed on as the other's history.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset null (null)
-- What a statement says when it fails, with the ids of takeovers and the times made the same in every run.
create function pg_temp.refused(statement text) returns text language plpgsql as $$
declare
    said text; code text; hint text;
begin
    execute statement;
    return 'not refused';
exception when others then
    get stacked diagnostics said = message_text, code = returned_sqlstate, hint = pg_exception_hint;
    return code || ' ' || regexp_replace(regexp_replace(said, '[0-9a-f]{8}-[0-9a-f-]{27}', 'OP', 'g'),
                                         'since .*$', 'since TIME') || E'\n' || hint;
end $$;
\set state 'select node_name, role, open, epoch, promised_epoch, promised_op is not null as promised, frozen, fence_reason is not null as fenced from pgcascade.node_state where queue_name like \'tk%\' order by 1;'

select count(*) from unnest(array['tk_r', 'tk_n', 'tk_b']) q, unnest(array['r', 'n', 'b']) n, pgq_node.register_location(q, n, 'dbname=' || n, false);
select ret_note from pgq_node.create_node('tk_r', 'root', 'r', 'r_worker', null, null, null);
select ret_note from pgq_node.create_node('tk_n', 'branch', 'n', 'n_worker', 'r', 1, null);
select ret_note from pgq_node.create_node('tk_b', 'branch', 'b', 'b_worker', 'r', 1, null);
:state
select pgcascade.takeover_steps('planned'), pgcascade.takeover_steps('dead'), pgcascade.takeover_steps('x');

-- Begin: on a branch, one at a time.
select pg_temp.refused($$select pgcascade.takeover_begin('none', 'planned', 'r', 2, 'h1', 1, null)$$);
select pg_temp.refused($$select pgcascade.takeover_begin('tk_r', 'planned', 'r', 2, 'h1', 1, null)$$);
select pg_temp.refused($$select pgcascade.takeover_begin('tk_n', 'x', 'r', 2, 'h1', 1, null)$$);
select pg_temp.refused($$select pgcascade.takeover_begin('tk_n', 'planned', 'r', 2, 'h1', 0, null)$$);
select op_id as op, epoch_new from pgcascade.takeover_begin('tk_n', 'planned', 'r', 2, 'h1', 1, null) \gset
select :'epoch_new' as epoch_new;
select pg_temp.refused($$select pgcascade.takeover_begin('tk_n', 'planned', 'r', 2, 'h2', 1, null)$$);
select kind, old_node, new_node, epoch_new, step, confirms, confirmed_by, holder, error from pgcascade.takeover;

-- The old root promises to one takeover.
select pg_temp.refused($$select pgcascade.promise_epoch('tk_r', null, 2, 'planned')$$);
select pg_temp.refused(format($$select pgcascade.promise_epoch('tk_r', %L, 1, 'planned')$$, :'op'));
select pg_temp.refused(format($$select pgcascade.promise_epoch('tk_r', %L, 2, 'dead')$$, :'op'));
select * from pgcascade.promise_epoch('tk_r', :'op', 2, 'planned');
select * from pgcascade.promise_epoch('tk_r', :'op', 2, 'planned');
select pg_temp.refused($$select pgcascade.promise_epoch('tk_r', gen_random_uuid(), 3, 'planned')$$);
select pg_temp.refused($$select pgcascade.promise_epoch('tk_r', gen_random_uuid(), 2, 'dead')$$);
:state

-- The steps come in order, for who holds the takeover.
select pg_temp.refused(format($$select pgcascade.takeover_advance(%L, 'h1', 'drained', null, null)$$, :'op'));
select pg_temp.refused(format($$select pgcascade.takeover_advance(%L, 'h2', 'fenced', null, null)$$, :'op'));
select pg_temp.refused(format($$select pgcascade.takeover_advance(%L, 'h1', 'x', null, null)$$, :'op'));
select pg_temp.refused($$select pgcascade.takeover_advance(gen_random_uuid(), 'h1', 'fenced', null, null)$$);
select pg_temp.refused(format($$select pgcascade.takeover_promote(%L, 'h1', null, 0, 0)$$, :'op'));

-- The fence, with an event before it.
select pgq.insert_event('tk_r', 't', 'before') as event \gset
select pg_temp.refused($$select pgcascade.fence_root('tk_r', gen_random_uuid(), 100)$$);
select pg_temp.refused(format($$select pgcascade.fence_root('tk_n', %L, 100)$$, :'op'));
select closing_tick, last_event from pgcascade.fence_root('tk_r', :'op', 100);
select closing_tick, last_event from pgcascade.fence_root('tk_r', :'op', 100);
select pg_temp.refused($$select pgq.insert_event('tk_r', 't', 'after')$$);
select pg_temp.refused($$select pgq.ticker('tk_r')$$);
:state

-- Abort: the root opens again. It may be repeated, and begun anew.
select pg_temp.refused(format($$select pgcascade.takeover_abort(%L, 'h2', 'too slow')$$, :'op'));
select pgcascade.takeover_abort(:'op', 'h1', 'too slow'), pgcascade.takeover_abort(:'op', 'h1', 'again');
select pgcascade.release_promise('tk_r', :'op'), pgcascade.release_promise('tk_r', :'op');
:state
select pgq.insert_event('tk_r', 't', 'after the abort') > 0 as inserted;
select step, error from pgcascade.takeover;
select pg_temp.refused(format($$select pgcascade.takeover_advance(%L, 'h1', 'fenced', null, null)$$, :'op'));
select pg_temp.refused(format($$select pgcascade.takeover_promote(%L, 'h1', null, 0, 0)$$, :'op'));

-- A root that was closed by hand is left alone.
select op_id as op from pgcascade.takeover_begin('tk_n', 'planned', 'r', 2, 'h1', 1, null) \gset
select * from pgcascade.promise_epoch('tk_r', :'op', 2, 'planned');
update pgq.queue set queue_disable_insert = true where queue_name = 'tk_r';
select pg_temp.refused(format($$select pgcascade.fence_root('tk_r', %L, 100)$$, :'op'));
update pgq.queue set queue_disable_insert = false where queue_name = 'tk_r';

-- To the end. The branch gets the root's ticks as its worker would store them.
select closing_tick as fork, last_event from pgcascade.fence_root('tk_r', :'op', 100) \gset
select pgcascade.takeover_advance(:'op', 'h1', 'fenced', :fork, null), pgcascade.takeover_advance(:'op', 'h1', 'fenced', :fork, null);
select pg_temp.refused(format($$select pgcascade.takeover_promote(%L, 'h1', 2, 0, 0)$$, :'op'));
select pgq.ticker('tk_n', 2, now(), 1);
select pgcascade.takeover_advance(:'op', 'h1', 'drained', null, null);
select pg_temp.refused(format($$select pgcascade.takeover_without_old(%L, 'h1', 1, null, '{}')$$, :'op'));
select pg_temp.refused(format($$select pgcascade.takeover_promote(%L, 'h1', %s, 0, 0)$$, :'op', :fork));
-- A branch's batch is its root's: what is stored with a tick, before or after it in one transaction, is in that tick and no other.
set session_replication_role = replica;
select pgq.register_consumer('tk_n', 'c'), pgq.current_event_table('tk_n') as events \gset
begin;
insert into :events (ev_id, ev_time, ev_type, ev_data) values (1, now(), 't', 'stored before the tick');
select pgq.ticker('tk_n', :fork, now(), :last_event);
insert into :events (ev_id, ev_time, ev_type, ev_data) values (2, now(), 't', 'stored after the tick');
commit;
select batch_id as batch, cur_tick_id = :fork as of_this_tick from pgq.next_batch_info('tk_n', 'c') \gset
select :'of_this_tick' as of_this_tick, ev_id, ev_data from pgq.get_batch_events(:batch);
select pgq.finish_batch(:batch);
reset session_replication_role;
select pg_temp.refused(format($$select pgcascade.takeover_confirmed(%L, 'h1', 'r')$$, :'op'));
select holder from pgcascade.takeover_claim(:'op', 'h3');
select pg_temp.refused(format($$select pgcascade.takeover_promote(%L, 'h1', %s, 0, 0)$$, :'op', :fork));
select pgcascade.takeover_promote(:'op', 'h3', :fork, 500, 700) as history \gset
select pgcascade.takeover_promote(:'op', 'h3', :fork, 500, 700) = :'history' as the_same;
select epoch, start_tick = :fork as from_fork, first_tick, root_node from pgcascade.epoch_history;
select tick_id, tick_event_seq from pgq.tick join pgq.queue on queue_id = tick_queue where queue_name = 'tk_n' order by 1 desc limit 1;
:state
select pg_temp.refused($$select pgq.insert_event('tk_n', 't', 'not open yet')$$);
select pg_temp.refused(format($$select pgcascade.takeover_abort(%L, 'h3', 'too late')$$, :'op'));
select pg_temp.refused(format($$select pgcascade.takeover_open(%L, 'h3')$$, :'op'));
select pg_temp.refused(format($$select pgcascade.follow_root('tk_r', gen_random_uuid(), %L, 'n')$$, :'history'));
select pg_temp.refused(format($$select pgcascade.confirm_epoch('tk_r', gen_random_uuid(), %L)$$, :'history'));
-- The old root may be lost now: somebody else confirms.
begin;
select pg_temp.refused(format($$select pgcascade.takeover_without_old(%L, 'h1', 1, null, '{r}')$$, :'op'));
select pg_temp.refused(format($$select pgcascade.takeover_without_old(%L, 'h3', 0, null, '{r}')$$, :'op'));
select pgcascade.takeover_without_old(:'op', 'h3', 1, null, '{r}'), pgcascade.takeover_without_old(:'op', 'h3', 1, null, '{r}') as again;
select kind, step, confirms from pgcascade.takeover where op_id = :'op';
select pgcascade.takeover_advance(:'op', 'h3', 'repointed', null, null);
select pg_temp.refused(format($$select pgcascade.takeover_open(%L, 'h3')$$, :'op'));
rollback;
select pgcascade.confirm_epoch('tk_r', :'op', :'history'), pgcascade.confirm_epoch('tk_r', :'op', :'history');
select pg_temp.refused(format($$select pgcascade.release_promise('tk_r', %L)$$, :'op'));
select pgcascade.takeover_confirmed(:'op', 'h3', 'n');
select pg_temp.refused(format($$select pgcascade.takeover_open(%L, 'h3')$$, :'op'));
select pgcascade.takeover_confirmed(:'op', 'h3', 'r'), pgcascade.takeover_confirmed(:'op', 'h3', 'r');
select pgcascade.takeover_open(:'op', 'h3'), pgcascade.takeover_open(:'op', 'h3');
-- Also when it was opened: it stays so.
begin;
select pgcascade.takeover_without_old(:'op', 'h3', 1, null, '{r}');
select pgcascade.takeover_advance(:'op', 'h3', 'repointed', null, null), pgcascade.takeover_open(:'op', 'h3');
:state
rollback;
select pg_temp.refused(format($$select pgcascade.follow_root('tk_r', %L, %L, 'r')$$, :'op', :'history'));
select pgcascade.follow_root('tk_r', :'op', :'history', 'n') = :fork as at_fork, pgcascade.follow_root('tk_r', :'op', :'history', 'n') = :fork as again;
select pgcascade.takeover_advance(:'op', 'h3', s, null, null) from unnest(array['demoted', 'repointed', 'done']) s;
select pg_temp.refused(format($$select pgcascade.takeover_advance(%L, 'h3', 'done', null, null)$$, :'op'));
select pg_temp.refused(format($$select pgcascade.takeover_advance(%L, 'h3', 'more', null, null)$$, :'op'));
:state
select pgq.insert_event('tk_n', 't', 'by the new root') > 1000000 as jumped;
select pgq.ticker('tk_n') is null as not_due;
select provider_node, completed_tick = :fork as at_fork from pgq_node.get_worker_state('tk_r');

-- A tick that the old root made after the fork is refused by whoever knows the epoch, and by its id alone.
select pg_temp.refused(format($$select pgq.ticker('tk_r', %s, now(), 9)$$, :fork + 1));
select pgq.ticker('tk_r', 1000500, now(), 1000700);
-- A node that has taken such a tick does not join.
select pgq.ticker('tk_b', :fork + 1, now(), 9) = :fork + 1 as ticked;
select pg_temp.refused(format($$select pgcascade.learn_epochs('tk_b', %L)$$, :'history'));
-- Two epochs of one number are two cascades.
select pg_temp.refused(format($$select pgcascade.learn_epochs('tk_r', %L)$$, jsonb_set(:'history', '{0,op_id}', to_jsonb(gen_random_uuid()))));
select pgcascade.learn_epochs('tk_r', null), pgcascade.learn_epochs('tk_r', '[]');

-- A dead root. The promise stops the branch, and takes the place of an older one.
select op_id as older from pgcascade.takeover_begin('tk_r', 'planned', 'n', 3, 'h1', 1, null) \gset
select gen_random_uuid() as newer \gset
select * from pgcascade.promise_epoch('tk_r', :'newer', 4, 'dead');
select pg_temp.refused($$select pgq.ticker('tk_r', 1000600, now(), 1000700)$$);
select pgcascade.takeover_advance(:'older', 'h1', 'fenced', 1000500, null), pgcascade.takeover_advance(:'older', 'h1', 'drained', null, null);
select pg_temp.refused(format($$select pgcascade.takeover_promote(%L, 'h1', null, 0, 0)$$, :'older'));
:state
-- When the newer one is given up the older one counts again, and only with the last is the node free.
select pgcascade.release_promise('tk_r', :'newer');
:state
-- What it asked for before is refused when it comes only now.
select pg_temp.refused(format($$select pgcascade.promise_epoch('tk_r', %L, 4, 'dead')$$, :'newer'));
select gen_random_uuid() as newer \gset
select * from pgcascade.promise_epoch('tk_r', :'newer', 4, 'dead');
select pgcascade.takeover_abort(:'older', 'h1', 'superseded');
select pg_temp.refused($$select pgq.ticker('tk_r', 1000600, now(), 1000700)$$);
select pgcascade.release_promise('tk_r', :'newer');
-- With nobody left who could confirm it, the operator's word is needed, and kept.
select pg_temp.refused($$select pgcascade.takeover_begin('tk_r', 'dead', 'n', 3, 'h1', 0, null)$$);
select op_id as op from pgcascade.takeover_begin('tk_r', 'dead', 'n', 3, 'h1', 0, 'power off') \gset
select pg_temp.refused($$select pgq.ticker('tk_r', 1000600, now(), 1000700)$$);
select pgcascade.takeover_advance(:'op', 'h1', 'promised', null, null), pgcascade.takeover_advance(:'op', 'h1', 'elected', 1000600, 'b');
select pg_temp.refused(format($$select pgcascade.takeover_fetch(%L, 'h1', 'nobody', null)$$, :'op'));
select pgcascade.takeover_fetch(:'op', 'h1', 'b', null);
select pg_temp.refused($$select pgq.ticker('tk_r', 1000601, now(), 1000700)$$);
select pgq.ticker('tk_r', 1000600, now(), 1000700);
select pgcascade.takeover_advance(:'op', 'h1', 'caught-up', null, null);
select jsonb_array_length(pgcascade.takeover_promote(:'op', 'h1', null, null, null));
select pgcascade.takeover_advance(:'op', 'h1', 'repointed', null, null);
select pgcascade.takeover_failed(:'op', 'h1', 'b cannot be reached'), pgcascade.takeover_failed(:'op', 'h2', 'not mine');
select kind, step, donor, fork_tick, error, fenced_by from pgcascade.takeover where op_id = :'op';
select pgcascade.takeover_open(:'op', 'h1'), pgcascade.takeover_advance(:'op', 'h1', 'done', null, null);
select epoch, start_tick, first_tick from pgcascade.epoch_history where queue_name = 'tk_r' order by 1;
-- The root before, which did not know, closes as soon as it is told, whatever it has written. It does not just join.
select jsonb_agg(to_jsonb(h)) as history from pgcascade.epoch_history h where queue_name = 'tk_r' \gset
select pgq.insert_event('tk_n', 't', 'nobody else has it') > 0 as inserted, pgq.force_tick('tk_n') > 0 as forced;
update pgq.queue set queue_ticker_max_lag = '0' where queue_name = 'tk_n';
select setval(queue_tick_seq, 1000600) from pgq.queue where queue_name = 'tk_n';
select pgq.ticker('tk_n');
select pgcascade.learn_epochs('tk_n', :'history');
:state
select fence_reason from pgcascade.node_state where queue_name = 'tk_n';
select pg_temp.refused($$select pgq.insert_event('tk_n', 't', 'd')$$);
select pg_temp.refused(format($$select pgcascade.learn_epochs('tk_n', %L)$$, :'history'));
select pg_temp.refused(format($$select pgcascade.follow_root('tk_n', %L, %L, 'r')$$, :'op', :'history'));

-- A root that is seen on another server or timeline than before is closed, and opens in a new epoch when that is confirmed.
select ret_note from pgq_node.register_location('tk_p', 'p', 'dbname=p', false);
select ret_note from pgq_node.create_node('tk_p', 'root', 'p', 'p_worker', null, null, null);
select system_id is not null and timeline is not null as noted from pgcascade.node_state where queue_name = 'tk_p';
select pgcascade.notice_promotion();
select pg_temp.refused($$select pgcascade.confirm_promotion('tk_p')$$);
update pgcascade.node_epoch set timeline = timeline + 1 where queue_name = 'tk_p';
select pg_temp.refused($$select pgq.insert_event('tk_p', 't', 'before it was noticed')$$);
select count(*) from pgcascade.queues_due() where queue_name = 'tk_p';
select pgcascade.notice_promotion();
select role, open, epoch, regexp_replace(fence_reason, '\d+', 'N', 'g') as fence_reason from pgcascade.node_state where queue_name = 'tk_p';
select pg_temp.refused($$select pgq.insert_event('tk_p', 't', 'd')$$);
select pgcascade.confirm_promotion('tk_p');
select pg_temp.refused($$select pgcascade.confirm_promotion('tk_p')$$);
select role, open, epoch, fence_reason from pgcascade.node_state where queue_name = 'tk_p';
select epoch, start_tick, first_tick, root_node from pgcascade.epoch_history where queue_name = 'tk_p';
select pgq.insert_event('tk_p', 't', 'd') > 1000000 as jumped;
select pgcascade.notice_promotion();
-- A root that was closed for a takeover, and learns of another one of the same number, is not opened by the end of the first.
select gen_random_uuid() as given_up \gset
select in_epoch from pgcascade.promise_epoch('tk_p', :'given_up', 3, 'planned');
select closing_tick > 1000000 as closed from pgcascade.fence_root('tk_p', :'given_up', 1000);
select pgcascade.learn_epochs('tk_p', jsonb_build_array(jsonb_build_object('epoch', 3, 'start_tick', closing_tick, 'first_tick', 9000000,
    'root_node', 'elsewhere', 'system_id', '1', 'timeline', 1, 'op_id', gen_random_uuid(), 'began', now())))
  from pgcascade.node_state where queue_name = 'tk_p';
select pgcascade.release_promise('tk_p', :'given_up');
select role, open, epoch, promised_epoch, fence_reason from pgcascade.node_state where queue_name = 'tk_p';
select ret_code from pgq_node.drop_node('tk_p', 'p');
-- Where no background worker runs, a promotion is noticed when it is confirmed.
select ret_code from pgq_node.register_location('tk_w', 'w', 'dbname=w', false)
 union all select ret_code from pgq_node.create_node('tk_w', 'root', 'w', 'w_worker', null, null, null);
begin;
update pgcascade.node_epoch set timeline = timeline + 1 where queue_name = 'tk_w';
select pgcascade.confirm_promotion('tk_w');
commit;
select role, open, epoch, fence_reason from pgcascade.node_state where queue_name = 'tk_w';
select ret_code from pgq_node.drop_node('tk_w', 'w');

-- Readers look, and do nothing.
create role tk_reader in role pgq_reader;
set role tk_reader;
select count(*) from pgcascade.takeover t, pgcascade.epoch_history, pgcascade.node_epoch, pgcascade.node_state;
select pgcascade.takeover_abort(:'op', 'h1', 'x');
select pgcascade.release_promise('tk_r', :'op');
update pgcascade.takeover set step = 'done';
reset role;
drop role tk_reader;
select ret_code from pgq_node.drop_node('tk_r', 'r') union all select ret_code from pgq_node.drop_node('tk_n', 'n')
 union all select ret_code from pgq_node.drop_node('tk_b', 'b');
-- All of it goes with the nodes.
select count(*) from (select queue_name from pgcascade.epoch_history union all select queue_name from pgcascade.takeover
                      union all select queue_name from pgcascade.node_epoch
                      union all select queue_name from pgcascade.node_promise
                      union all select queue_name from pgcascade.node_release) rest;
