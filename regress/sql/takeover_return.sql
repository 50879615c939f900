--
-- A root that was given up is there again: what it has after the fork is saved, and goes out of its queue. The history of
-- the others is made up here.
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
    return code || ' ' || regexp_replace(said, '[0-9a-f]{8}-[0-9a-f-]{27}', 'OP', 'g') || E'\n' || hint;
end $$;
create function pg_temp.epoch(number bigint, starts bigint, begins bigint) returns jsonb language sql
return jsonb_build_object('epoch', number, 'start_tick', starts, 'first_tick', begins, 'root_node', 'n', 'system_id', '1', 'timeline', 1,
                          'op_id', format('00000000-0000-0000-0000-%s', lpad(number::text, 12, '0')), 'began', '2020-01-01');
create function pg_temp.history(variadic epochs jsonb[]) returns jsonb language sql return to_jsonb(epochs);

select count(*) from unnest(array['ret', 'retb']) q, unnest(array['r', 'n', 'b', 'x']) n, pgq_node.register_location(q, n, 'dbname=' || n, false);
select ret_note from pgq_node.create_node('ret', 'root', 'r', 'r_worker', null, null, null);
select ret_note from pgq_node.create_node('retb', 'branch', 'b', 'b_worker', 'r', 1, null);
select queue_data_pfx as events, queue_id as id from pgq.queue where queue_name = 'ret' \gset
create function pg_temp.tick() returns bigint language sql begin atomic
    select pgq.force_tick('ret');
    select pgq.ticker('ret');
end;
create view pg_temp.ticks as select * from pgq.tick t where tick_queue = (select queue_id from pgq.queue where queue_name = 'ret');
\set shown 'select ev_data, ev_owner is not null as owned from :events order by ev_id, 2;'
\set positions 'select co_name, sub_last_tick - :fork as after_fork, sub_next_tick - :fork as next, sub_batch is not null as has_batch from pgq.subscription join pgq.consumer on co_id = sub_consumer where sub_queue = :id and co_name !~ \'^[.]\' order by 1;'

-- Consumers: one that reads on, one with a batch, one whose events are put back, a cooperating one, two nodes.
select count(*) from unnest(array['behind', 'reads', 'holds', 'retries']) c, pgq.register_consumer('ret', c);
select pgq_coop.register_subconsumer('ret', 'coop', 'one'), pgq_coop.register_subconsumer('ret', 'over', 'one');
select ret_note from pgq_node.register_subscriber('ret', 'n', 'n_worker', null);
select ret_note from pgq_node.register_subscriber('ret', 'x', 'x_worker', null);
select pgq.insert_event('ret', 't', 'both have') is not null;
select pg_temp.tick() as fork \gset
select count(*) from unnest(array['reads', 'holds', 'retries', 'n_worker', 'x_worker']) c, pgq.next_batch_info('ret', c) b, pgq.finish_batch(b.batch_id)
 where c not in ('retries');
-- An event that both have is put back to one consumer after the fork.
select batch_id as batch from pgq.next_batch_info('ret', 'retries') \gset
select pgq.event_retry(:batch, (select min(ev_id) from pgq.get_batch_events(:batch) where ev_data = 'both have'), 0);
select pgq.finish_batch(:batch);
select pgq.maint_retry_events();
select pgq.insert_event('ret', 't', 'lost 1', 'public.t', null, null, null) is not null;
select pg_temp.tick() - :fork as after_fork;
select count(*) from unnest(array['reads', 'x_worker']) c, pgq.next_batch_info('ret', c) b, pgq.finish_batch(b.batch_id);
select batch_id as batch from pgq.next_batch_info('ret', 'holds') \gset
select pgq.event_retry(:batch, (select min(ev_id) from pgq.get_batch_events(:batch)), 10000);
select pgq_coop.finish_batch(pgq_coop.next_batch('ret', 'coop', 'one'));
-- Its one batch reaches over the fork.
select prev_tick_id - :fork as from_fork, tick_id - :fork as to_fork
  from pgq_coop.next_batch_custom('ret', 'over', 'one', null, 3000, null) b, pgq.get_batch_info(b);
select pgq_coop.next_batch('ret', 'coop', 'one') is not null as has_a_batch;
select pgq.insert_event('ret', 't', 'lost 2') is not null;
:positions
:shown

-- Who did not lose its role has no fork, and is not closed.
select pg_temp.refused($$select pgcascade.return_fork('none', '[]')$$);
select pg_temp.refused($$select pgcascade.return_fork('retb', '[]')$$);
select pg_temp.refused($$select pgcascade.return_close('ret', null, 100)$$);
select pg_temp.refused(format($$select pgcascade.return_close('ret', pg_temp.history(pg_temp.epoch(2, %s, 1000000)), 100)$$, 500000));
select pg_temp.refused($$select pgcascade.return_close('ret', pg_temp.history(pg_temp.epoch(2, 0, 2)), 100)$$);
select pg_temp.refused($$select pgcascade.return_close('ret', pg_temp.history(pg_temp.epoch(2, 0, 1000000)), 100)$$);
insert into pgcascade.node_promise (queue_name, op_id, epoch, frozen) values ('ret', pg_catalog.gen_random_uuid(), 3, false);
select pg_temp.refused(format($$select pgcascade.return_close('ret', pg_temp.history(pg_temp.epoch(2, %s, 1000000)), 100)$$, :'fork'));
-- One that did not come to it is nothing to be kept.
update pgcascade.node_promise set epoch = 2;
select open from pgcascade.node_state where queue_name = 'ret';

-- Two epochs have begun meanwhile; the first at the fork.
select pg_temp.history(pg_temp.epoch(2, :fork, 1000000), pg_temp.epoch(3, 1000005, 2000000)) as history \gset
select in_epoch, fork_tick = :fork as fork, last_tick - :fork as ahead, op_id from pgcascade.return_fork('ret', :'history');
select fork_tick = :fork as fork, lost_events from pgcascade.return_close('ret', :'history', 100);
select op_id as op, lost_events from pgcascade.return_close('ret', :'history', 100) \gset
select :'lost_events' as lost_events;
select open, fence_reason from pgcascade.node_state where queue_name = 'ret';
select number, epoch, tick - :fork as after_fork, ev_type, ev_data, ev_extra1 from pgcascade.lost_event where queue_name = 'ret' and ev_type = 't' order by number;

-- What is not what was saved stays.
\set join 'select pg_temp.refused(format($$select pgcascade.return_join(\'ret\', %L, %L, %s, \'x\', \'n\', \'[]\')$$, :\'op\', :\'history\', :lost_events));'
select pg_temp.refused(format($$select pgcascade.return_join('ret', %L, %L, %s, 'x', 'n', '[]')$$, :'op', :'history', :lost_events - 1));
select pg_temp.refused(format($$select pgcascade.return_join('ret', gen_random_uuid(), %L, %s, 'x', 'n', '[]')$$, :'history', :lost_events));
update pgcascade.lost_event set ev_data = 'another' where ev_data = 'lost 2';
:join
update pgcascade.lost_event set ev_data = 'lost 2' where ev_data = 'another';
begin;
update pgq.queue set queue_disable_insert = false where queue_name = 'ret';
:join
rollback;

select pgcascade.return_join('ret', :'op', :'history', :lost_events, 'x', 'n', '[{"node": "n", "location": "dbname=moved", "dead": false}, {"node": "y", "location": "dbname=y", "dead": true}, {"node": "r", "location": "no", "dead": true}]');
select pgcascade.return_join('ret', :'op', :'history', :lost_events, 'x', 'n', '[]');
select node_name, role, open, epoch, promised_op, fence_reason from pgcascade.node_state where queue_name = 'ret';
select provider_node, last_tick_id = :fork as at_fork from pgq_node.local_state where queue_name = 'ret';
select node_name, node_location, dead from pgq_node.node_location where queue_name = 'ret' order by 1;
select max(tick_id) = :fork as ends_at_fork from pg_temp.ticks;
:shown
:positions
select ev_data, ev_retry, co_name from pgq.retry_queue join pgq.subscription on sub_id = ev_owner join pgq.consumer on co_id = sub_consumer where ev_queue = :id;
select epoch, fork_tick = :fork as fork, step, sha256 from pgcascade.root_return;
select pg_temp.refused(format($$select pgcascade.return_close('ret', %L, 100)$$, :'history'));
-- It takes the ticks of the new root.
select pgq.ticker('ret', 1000000, now(), 1000700);

-- Who has no right to what is in a queue has none here.
set role pgq_reader;
select pg_temp.refused($$select count(*) from pgcascade.lost_event$$);
select pg_temp.refused($$select pgcascade.return_fork('ret', null)$$);
reset role;
select ret_note from pgq_node.drop_node('ret', 'r');
select count(*) from pgcascade.root_return;
with gone as (delete from pgcascade.lost_event returning 1) select count(*) > 0 as kept from gone;
select ret_note from pgq_node.drop_node('retb', 'b');
