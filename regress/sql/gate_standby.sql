--
-- Standbys that count for the confirm gate: how they are named, what they count for, and who has to know of them first. No standby streams
-- from this server; what confirm_standbys() would note is written by hand. With real ones: consumer/tests/takeover/gate.rs.
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
\set state 'select queue_name, candidates, released_tick from pgcascade.gate_state where queue_name like \'gs%\';'
\set standbys 'select * from pgcascade.gate_standbys();'

select count(*) from unnest(array['root', 'one', 'two']) n, pgq_node.register_location('gs_r', n, 'dbname=' || n, false);
select ret_note from pgq_node.create_node('gs_r', 'root', 'root', 'root_worker', null, null, null);
select ret_note from unnest(array['one', 'two']) n, pgq_node.register_subscriber('gs_r', n, n || '_worker', null);
select pgcascade.register_candidate('gs_r', 'one'), pgq.register_consumer('gs_r', 'plain');
update pgq.queue set queue_external_ticker = true where queue_name = 'gs_r';
select pgq.ticker('gs_r', t, now(), t) from generate_series(2, 5) t;
update pgq.queue set queue_external_ticker = false where queue_name = 'gs_r';

select pg_temp.refused($$select pgcascade.set_gate_standby('none', 'a')$$);
select pg_temp.refused($$select pgcascade.set_gate_standby('gs_r', null)$$);
select pg_temp.refused($$select pgcascade.set_gate_standby('gs_r', '')$$);
select pg_temp.refused($$select pgcascade.set_gate_standby('gs_r', 'näh')$$);
select pg_temp.refused($$select pgcascade.set_gate_standby('gs_r', E'a\nb')$$);
select pg_temp.refused($$select pgcascade.set_gate_standby('gs_r', repeat('a', 64))$$);
select pg_temp.refused($$select pgcascade.set_gate_standby('gs_r', 'a', null)$$);
set client_min_messages = notice;
select pgcascade.set_gate_standby('gs_r', 'a b''"%s');
set client_min_messages = warning;
select pgcascade.set_gate_standby('gs_r', 'a b''"%s');
select pgcascade.set_gate_standby('gs_r', 'a b''"%s', false);
select pgcascade.set_gate_standby('gs_r', 'a b''"%s', false);

-- Without a gate there is nothing to count for, and nobody who streams is waited for.
select pgcascade.set_gate_standby('gs_r', 'a');
select pgcascade.confirm_standbys();
select pgcascade.set_confirm_gate('gs_r', 1);
:standbys
select pgcascade.confirm_standbys();
:state

-- It has ticks, and counts once the branch has stored it.
update pgcascade.gate_standby set tick_id = 4 where standby_name = 'a';
:state
select candidates, released_tick, last_tick, standbys, cardinality(ids) from pgcascade.offered_gate('gs_r');
select pgcascade.register_candidate('gs_r', 'one', (pgcascade.offered_gate('gs_r')).ids);
:standbys
:state
-- Not to those that are candidates, and to the others what it has.
select c, pgcascade.released_tick('gs_r', c) from unnest(array['plain', 'two_worker', 'one_worker']) c;
-- A second branch does not know it yet.
select pgcascade.register_candidate('gs_r', 'two');
:standbys
:state
select pgcascade.register_candidate('gs_r', 'two', (pgcascade.offered_gate('gs_r')).ids);
:state

-- Two of three, whichever they are.
select pgcascade.set_confirm_gate('gs_r', 2);
:state
select pgq.finish_batch(batch_id) from pgq.next_batch_info('gs_r', 'one_worker');
:state
select pgcascade.set_confirm_gate('gs_r', 3);
:state
select pgcascade.set_confirm_gate('gs_r', 1);

-- Another standby counts once the first one has it in its copy of the table; one that has no tick is not asked.
select pgcascade.set_gate_standby('gs_r', 'b');
select standbys from pgcascade.offered_gate('gs_r');
update pgcascade.gate_standby set tick_id = 5 where standby_name = 'b';
update pgcascade.candidate set knows = (pgcascade.offered_gate('gs_r')).ids where queue_name = 'gs_r';
:standbys
:state
update pgcascade.gate_standby set knows = (pgcascade.offered_gate('gs_r')).ids where standby_name = 'a';
:standbys
:state
update pgcascade.gate_standby set knows = (pgcascade.offered_gate('gs_r')).ids where standby_name = 'b';
:state

-- What knew it knows nothing of one that is named again by the same name.
select pgcascade.set_gate_standby('gs_r', 'b', false), pgcascade.set_gate_standby('gs_r', 'b');
update pgcascade.gate_standby set tick_id = 5 where standby_name = 'b';
:standbys
:state

-- A promoted standby and the others: by its own name, or as the server's settings say (walreceiver).
select pgcascade.other_standbys('gs_r', 'a', '{}');
select pgcascade.other_standbys('gs_r', null, '{c,b,walreceiver}');
select pgcascade.set_gate_standby('gs_r', 'never there');
select pgcascade.other_standbys('gs_r', 'a', null);
select pgcascade.other_standbys('none', null, null);

-- A branch stores those of its provider, and remembers one that is not offered any more until it has what that one counted for.
select count(*) from unnest(array['up', 'here', 'below']) n, pgq_node.register_location('gs_b', n, 'dbname=' || n, false);
select ret_note from pgq_node.create_node('gs_b', 'branch', 'here', 'here_worker', 'up', 1, null);
select pgcascade.follow_gate('gs_b', 1, 4, '{a,b}', 5);
select * from pgcascade.offered_gate('gs_b');
select pgcascade.follow_gate('gs_b', 1, 4, '{b}', 6);
select standby_name, until_tick from pgcascade.followed_standby order by 1;
select pgq.ticker('gs_b', t, now(), t) from generate_series(2, 5) t;
select pgcascade.follow_gate('gs_b', 1, 4, '{b}', 8);
select standby_name, until_tick from pgcascade.followed_standby order by 1;
select pgq.ticker('gs_b', 6, now(), 6);
select standbys from pgcascade.offered_gate('gs_b');
select pgcascade.follow_gate('gs_b', 0, null, '{}', 9);
select standby_name, until_tick from pgcascade.followed_standby order by 1;
select pgcascade.follow_gate('gs_b', 1, 4, '{b}', 9);
select standby_name, until_tick from pgcascade.followed_standby order by 1;
-- Those of its own server are for when it is the root.
select pgcascade.set_gate_standby('gs_b', 'mine');
select standbys from pgcascade.offered_gate('gs_b');
-- A root follows nobody.
select pgcascade.follow_gate('gs_r', 1, 4, '{x}', 9);
select count(*) from pgcascade.followed_standby where standby_name = 'x';

-- Who becomes the root again begins anew: as if none had been there.
select pgcascade.set_confirm_gate('gs_r', 0);
select ret_code from pgq_node.register_location('gs_r', 'one', 'dbname=one', false);
create temp table ids as select standby_id from pgcascade.gate_standby;
select ret_code from pgq_node.demote_root('gs_r', 1, 'one') union all select ret_code from pgq_node.demote_root('gs_r', 2, 'one');
select ret_code from pgq_node.demote_root('gs_r', 3, 'one');
select ret_code from pgq_node.promote_branch('gs_r');
select s.standby_name, s.tick_id, s.knows, i is null as new
  from pgcascade.gate_standby s left join ids i using (standby_id) where s.standby_name <> 'mine' order by s.standby_id;
:state
select count(*) from unnest(array['one', 'two']) n, pgq_node.unregister_subscriber('gs_r', n);
select pgq.unregister_consumer('gs_r', 'plain');
select ret_code from pgq_node.drop_node('gs_r', 'root') union all select ret_code from pgq_node.drop_node('gs_b', 'here');
select count(*) from (select standby_name from pgcascade.gate_standby union all select standby_name from pgcascade.followed_standby) rest;
