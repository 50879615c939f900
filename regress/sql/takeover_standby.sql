--
-- A promoted standby of a root: its events after the last tick are set aside, come with the ticks of a donor, or return. This database
-- plays the standby; what the donor has is written here by hand, as replay does it.
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
\set state 'select role, open, epoch, frozen, regexp_replace(fence_reason, \'[0-9a-f]{8}-.*|[0-9]+\', \'N\', \'g\') as fence_reason from pgcascade.node_state where queue_name = \'tk_s\';'
\set events 'select ev_id, ev_data, ev_owner from only_events order by ev_id;'

select count(*) from unnest(array['s', 'b']) n, pgq_node.register_location('tk_s', n, 'dbname=' || n, false);
select ret_note from pgq_node.create_node('tk_s', 'root', 's', 's_worker', null, null, null);
select pgcascade.notice_promotion();
do $$ begin execute format('create temp view only_events as select ev_id, ev_data, ev_owner, ev_txid from %s',
    (select queue_data_pfx from pgq.queue where queue_name = 'tk_s')); end $$;
select setval(queue_event_seq, 100) from pgq.queue where queue_name = 'tk_s';
select pgq.insert_event('tk_s', 't', 'in a tick');
select pgq.force_tick('tk_s') > 0 as forced;
select pgq.ticker('tk_s');
-- The rest of what it has: a part of the donor's next tick, one that no tick shows, one put back for a consumer.
select pgq.insert_event('tk_s', 't', 'a part');
select pgq.insert_event('tk_s', 't', 'an extra');
select pgq.insert_event_raw('tk_s', 101, now(), 77, 1, 't', 'in a tick', null, null, null, null);
select tick_id, event_seq, events, digest is not null as digest from pgcascade.tick_digest('tk_s', 1000);
select tick_id, events, digest from pgcascade.tick_digest('tk_s', 1);
select count(*) from pgcascade.tick_digest('tk_s', 0);

-- Only a root that was promoted. On the server that it was promoted on it takes no events, noticed or not.
select pg_temp.refused($$select pgcascade.takeover_begin('tk_s', 'standby', 's', 2, 'h', 1, null)$$);
update pgcascade.node_epoch set timeline = timeline + 1 where queue_name = 'tk_s';
update pgq.queue set queue_ticker_paused = true where queue_name = 'tk_s';
select pg_temp.refused($$select pgq.insert_event('tk_s', 't', 'after the promotion')$$);
select pg_temp.refused($$select pgcascade.takeover_begin('tk_s', 'standby', 's', 2, 'h', 0, null)$$);
select op_id as op, epoch_new from pgcascade.takeover_begin('tk_s', 'standby', 's', 2, 'h', 1, null) \gset
:state
select pg_temp.refused($$select pgcascade.confirm_promotion('tk_s')$$);
select pgcascade.takeover_advance(:'op', 'h', 'promised', null, null), pgcascade.takeover_advance(:'op', 'h', 'elected', 12, 'b');

-- As a branch of the donor, without its tail.
select pgcascade.takeover_fetch(:'op', 'h', 'b', null), pgcascade.takeover_fetch(:'op', 'h', 'b', null);
:state
:events
select ev_id, ev_data, ev_owner, tick_id from pgcascade.takeover_tail order by ev_id, ev_owner nulls first;
select provider_node, last_tick_id from pgq_node.local_state where queue_name = 'tk_s';
-- Given up, it is what it was.
select pgcascade.takeover_abort(:'op', 'h', 'enough');
:state
:events
select provider_node from pgq_node.local_state where queue_name = 'tk_s';
select count(*) from pgcascade.takeover_tail;

select op_id as op, epoch_new from pgcascade.takeover_begin('tk_s', 'standby', 's', 2, 'h', 1, null) \gset
select pgcascade.takeover_advance(:'op', 'h', 'promised', null, null), pgcascade.takeover_advance(:'op', 'h', 'elected', 12, 'b');
select pgcascade.takeover_fetch(:'op', 'h', 'b', null);
set session_replication_role = replica;
select pgq.current_event_table('tk_s') as event_table \gset
reset session_replication_role;
-- Another event under an id that is here, in a tick of the donor.
begin;
select pgq.ticker('tk_s', 11, now(), 110);
insert into :event_table (ev_id, ev_time, ev_type, ev_data) select ev_id, ev_time, ev_type, 'something else' from pgcascade.takeover_tail where ev_data = 'a part';
select pg_temp.refused($$select pgcascade.takeover_had('tk_s', 11)$$);
rollback;
-- The donor's ticks: one with what is here and what is not, one with nothing of it.
begin;
select pgq.ticker('tk_s', 11, now(), 110);
insert into :event_table (ev_id, ev_time, ev_type, ev_data) select ev_id, ev_time, ev_type, ev_data from pgcascade.takeover_tail where ev_data = 'a part';
insert into :event_table (ev_id, ev_time, ev_type, ev_data) values (2200, now(), 't', 'one that is missing');
select pgcascade.takeover_had('tk_s', 11);
commit;
select pgq.ticker('tk_s', 12, now(), 120);
select pgcascade.takeover_had('tk_s', 12);
select pg_temp.refused($$select pgq.ticker('tk_s', 13, now(), 130)$$);
select ev_id, ev_data, ev_owner, tick_id from pgcascade.takeover_tail order by ev_id, ev_owner nulls first;
select pgcascade.takeover_advance(:'op', 'h', 'caught-up', null, null);
select jsonb_array_length(pgcascade.takeover_promote(:'op', 'h', 12, 500, 600));
:state
-- What no tick of the donor has is in the first tick of the new epoch.
select tick_id, events from pgcascade.tick_digest('tk_s', 11) union all select tick_id, events from pgcascade.tick_digest('tk_s', 12)
 union all select tick_id, events from pgcascade.tick_digest('tk_s', 9999999);
:events
select pgcascade.takeover_advance(:'op', 'h', 'repointed', null, null), pgcascade.takeover_confirmed(:'op', 'h', 'b'), pgcascade.takeover_open(:'op', 'h');
:state
select pgcascade.takeover_advance(:'op', 'h', 'done', null, null);
select count(*) from pgcascade.takeover_tail;
select pgq.insert_event('tk_s', 't', 'd') > 1000000 as jumped;

-- Where another node is, noted without an event.
select pgcascade.note_location('tk_s', 'b', 'dbname=elsewhere', true), pgcascade.note_location('tk_s', 'b', null, false);
select node_location, dead from pgq_node.node_location where queue_name = 'tk_s' and node_name = 'b';
select pg_temp.refused($$select pgcascade.note_location('tk_s', 'nobody', null, true)$$);
drop view only_events;
select ret_code from pgq_node.drop_node('tk_s', 's');
