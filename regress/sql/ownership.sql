--
-- A consumer belongs to the role that registered it: what another role may do with it, function by function.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
create role own_alice in role pgq_reader;
create role own_bob in role pgq_reader;
create role own_admin in role pgq_admin;
create role own_team in role pgq_reader;
create role own_member in role own_team;
select pgq.create_queue('own');
select pgq.insert_event('own', 't', 'first');

-- pg_temp.as_role(role, sql): runs a statement as a role and says what became of it.
create function pg_temp.as_role(i_role text, i_sql text) returns text language plpgsql as $$
declare
    answer text;
begin
    perform set_config('role', i_role, true);
    begin
        execute i_sql into answer;
        answer := 'yes: ' || coalesce(answer, 'null');
    exception when others then
        answer := sqlstate;
    end;
    perform set_config('role', 'none', true);
    return answer;
end
$$;

set role own_alice;
select pgq.register_consumer('own', 'alice''s');
select pgq_coop.register_subconsumer('own', 'crew', '1');
reset role;
select c.co_name, s.owner, s.owner_oid = to_regrole(s.owner::text) as oid, s.owner_system is not null as system
  from pgcascade.consumer_config s join pgq.consumer c on c.co_id = s.sub_consumer order by 1;
select pgq.insert_event('own', 't', 'second');
select pgq.force_tick('own') > 0 as forced;
select pgq.ticker('own') > 0 as ticked;
set role own_alice;
select pgq.next_batch('own', 'alice''s') as batch \gset
select pgq_coop.next_batch('own', 'crew', '1') as crew_batch \gset
reset role;
select tick_id as tick from pgq.tick t join pgq.queue on queue_id = tick_queue where queue_name = 'own' order by 1 limit 1 \gset
select max(ev_id) as event from pgq.get_batch_events(:batch) \gset

-- Everything that takes a consumer or its batch. Each is undone after the look, so each meets the same open batch.
create temp table acts (n serial, act text);
insert into acts (act) values
    ($$select pgq.next_batch('own', 'alice''s') is not null$$),
    ($$select batch_id is not null from pgq.next_batch_info('own', 'alice''s')$$),
    ($$select batch_id is not null from pgq.next_batch_custom('own', 'alice''s', null, null, null)$$),
    (format($$select count(*) from pgq.get_batch_events(%s)$$, :batch)),
    (format($$select count(*) from pgq.get_batch_cursor(%s, 'c', 10)$$, :batch)),
    (format($$select count(*) from pgq.get_batch_cursor(%s, 'c', 10, 'true')$$, :batch)),
    (format($$select pgq.batch_event_sql(%s) <> ''$$, :batch)),
    (format($$select count(*) from pgq.batch_event_tables(%s)$$, :batch)),
    (format($$select pgq.event_retry(%s, %s, 0)$$, :batch, :event)),
    (format($$select pgq.event_retry(%s, %s, now())$$, :batch, :event)),
    (format($$select pgq.batch_retry(%s, 0)$$, :batch)),
    (format($$select pgq.finish_batch(%s)$$, :batch)),
    (format($$select pgq_coop.finish_batch(%s)$$, :batch)),
    ($$select pgq.register_consumer('own', 'alice''s')$$),
    (format($$select pgq.register_consumer_at('own', 'alice''s', %s)$$, :tick)),
    ($$select pgq.unregister_consumer('own', 'alice''s')$$),
    ($$select pgq_coop.register_subconsumer('own', 'crew', '2')$$),
    ($$select pgq_coop.next_batch('own', 'crew', '1') is not null$$),
    ($$select pgq_coop.next_batch('own', 'crew', '3', '0 s') is null$$),
    (format($$select count(*) from pgq.get_batch_events(%s)$$, :crew_batch)),
    (format($$select pgq_coop.finish_batch(%s)$$, :crew_batch)),
    (format($$select pgq.finish_batch(%s)$$, :crew_batch)),
    ($$select pgq_coop.unregister_subconsumer('own', 'crew', '1', 1)$$),
    ($$select pgq.unregister_consumer('own', 'crew.1')$$),
    ($$select pgq.unregister_consumer('own', 'crew')$$),
    ($$select pgq.event_retry_raw('own', 'alice''s', now(), null, now(), 0, 't', 'd', null, null, null, null) > 0$$),
    ($$select pgcascade.set_consumer_owner('own', 'alice''s', 'own_bob')::text$$),
    ($$select pgcascade.store_owner(1, 1, 'own_bob', false)::text$$),
    ($$update pgcascade.consumer_config set owner = 'own_bob'$$),
    ($$delete from pgcascade.consumer_config$$),
    -- Who is where is no secret, and a batch that does not exist is nobody's.
    (format($$select consumer_name from pgq.get_batch_info(%s)$$, :batch)),
    ($$select pgq.finish_batch(-1)$$);
create function pg_temp.undone(i_role text, i_sql text) returns text language plpgsql as $$
declare
    answer text;
begin
    begin
        answer := pg_temp.as_role(i_role, i_sql);
        raise exception using errcode = 'ZZ000';
    exception when sqlstate 'ZZ000' then
        return answer;
    end;
end
$$;
set client_min_messages = error;
select regexp_replace(act, '\d{2,}', 'N', 'g') as act,
       pg_temp.undone('own_alice', act) as alice, pg_temp.undone('own_bob', act) as bob, pg_temp.undone('own_admin', act) as admin
  from acts order by n;
-- The setting restores PgQ's openness: bob gets what alice gets.
set pgcascade.consumer_ownership = off;
select act, pg_temp.undone('own_alice', act) as alice, pg_temp.undone('own_bob', act) as bob
  from acts where pg_temp.undone('own_bob', act) is distinct from pg_temp.undone('own_alice', act) order by n;
reset pgcascade.consumer_ownership;
set client_min_messages = warning;

-- The message.
set role own_bob;
select pgq.next_batch('own', 'alice''s');
select pgq.finish_batch(:batch);
select pgq_coop.finish_batch(:crew_batch);
reset role;

-- A group: every member. SECURITY DEFINER functions of others do not change who acts.
select pgcascade.set_consumer_owner('own', 'alice''s', 'own_team');
select role, pg_temp.undone(role, format('select pgq.finish_batch(%s)', :batch)) as finish
  from unnest(array['own_member', 'own_team', 'own_alice', 'own_bob']) role;
create function own_finish(i_batch bigint) returns integer language sql security definer as 'select pgq.finish_batch($1)';
alter function own_finish(bigint) owner to own_team;
select role, pg_temp.undone(role, format('select own_finish(%s)', :batch)) as finish
  from unnest(array['own_member', 'own_bob']) role;
-- What such functions are for: a consumer open to all who may call them.
select pgcascade.set_consumer_owner('own', 'alice''s', 'public');
select role, pg_temp.undone(role, format('select own_finish(%s)', :batch)) as finish
  from unnest(array['own_member', 'own_bob']) role;
drop function own_finish(bigint);
select pgcascade.set_consumer_owner('own', 'nobody''s', 'own_bob');
select pgcascade.set_consumer_owner('own', 'alice''s', 'no such role');

-- A renamed role stays the owner; who gets its old name is somebody else. A dropped one leaves the consumer to
-- administrators, also when its name comes back.
select pgcascade.set_consumer_owner('own', 'alice''s', 'own_alice');
alter role own_alice rename to "Own ""Alice""";
create role own_alice in role pgq_reader;
select role, pg_temp.undone(role, format('select pgq.finish_batch(%s)', :batch)) as finish
  from unnest(array['own_alice', 'Own "Alice"', 'own_admin']) role;
set role own_alice;
select pgq.next_batch('own', 'alice''s');
reset role;
drop role "Own ""Alice""";
select role, pg_temp.undone(role, format('select pgq.finish_batch(%s)', :batch)) as finish
  from unnest(array['own_alice', 'own_admin']) role;
set role own_alice;
select pgq.next_batch('own', 'alice''s');
reset role;
-- In another cluster, where a dump was restored, the name counts, whatever has that oid there.
update pgcascade.consumer_config set owner_system = 1, owner_oid = 'own_bob'::regrole;
select role, pg_temp.undone(role, format('select pgq.finish_batch(%s)', :batch)) as finish
  from unnest(array['own_alice', 'own_bob', 'own_admin']) role;

-- What an administrator registers belongs to whoever opens its first batch, and so does one of before there were owners.
set role own_admin;
select pgq.register_consumer('own', 'prepared');
select pgq.register_consumer_at('own', 'prepared', :tick);
reset role;
insert into pgq.consumer (co_name) values ('inserted');
insert into pgq.subscription (sub_queue, sub_consumer, sub_last_tick)
select queue_id, co_id, :tick from pgq.queue, pgq.consumer where queue_name = 'own' and co_name = 'inserted';
set role own_bob;
select pgq.next_batch('own', 'prepared') is not null as opened, pgq.next_batch('own', 'inserted') is not null as opened;
reset role;
select c.co_name, s.owner from pgcascade.consumer_config s join pgq.consumer c on c.co_id = s.sub_consumer order by 1;
select pg_temp.undone('own_alice', $$select pgq.next_batch('own', 'prepared')$$) as alice;
-- Moving one is taking it too; asking for a batch when there is none is not.
select pgq.register_consumer('own', 'moved'), pgq.register_consumer('own', 'asked');
set role own_bob;
select pgq.next_batch('own', 'asked');
select pgq.register_consumer_at('own', 'moved', :tick);
reset role;
select c.co_name, s.owner from pgcascade.consumer_config s join pgq.consumer c on c.co_id = s.sub_consumer
 where c.co_name in ('moved', 'asked') order by 1;
-- Registered anew it is a new one.
select pgq.unregister_consumer('own', 'moved');
set role own_alice;
select pgq.register_consumer('own', 'moved');
reset role;
select s.owner from pgcascade.consumer_config s join pgq.consumer c on c.co_id = s.sub_consumer where c.co_name = 'moved';

-- The watermark of a cascade is the administrators', who alone move it.
select ret_code from pgq_node.register_location('own_cascade', 'n1', 'dbname=x', false);
select ret_code from pgq_node.create_node('own_cascade', 'root', 'n1', 'w', null, null, null);
select pg_temp.undone(role, $$select pgq.unregister_consumer('own_cascade', '.global_watermark')$$)
  from unnest(array['own_bob', 'own_admin']) role;
select ret_code from pgq_node.drop_node('own_cascade', 'n1');

-- Reading a queue is not a matter of consumers: every pgq_reader may read its tables, as in PgQ. What one queue's readers
-- are is said by grants on its tables, which the functions follow.
select pgq.create_queue('own_secret');
select queue_data_pfx as events from pgq.queue where queue_name = 'own_secret' \gset
select queue_data_pfx || '_0' as events_0, queue_data_pfx || '_1' as events_1, queue_data_pfx || '_2' as events_2
  from pgq.queue where queue_name = 'own_secret' \gset
revoke select on :events, :events_0, :events_1, :events_2 from pgq_reader;
grant select on :events to own_bob;
select pgq.insert_event('own_secret', 't', 'd');
set role own_alice;
select pgq.register_consumer('own_secret', 'alice');
reset role;
set role own_bob;
select pgq.register_consumer('own_secret', 'bob');
reset role;
select pgq.insert_event('own_secret', 't', 'd');
select pgq.force_tick('own_secret') > 0 as forced;
select pgq.ticker('own_secret') > 0 as ticked;
select role, pg_temp.undone(role, format($$select count(*) from pgq.get_batch_events(pgq.next_batch('own_secret', %L))$$, consumer))
  from (values ('own_alice', 'alice'), ('own_bob', 'bob')) v (role, consumer);

-- Nothing is left of a queue that is dropped.
select pgq.drop_queue('own', true), pgq.drop_queue('own_secret', true);
select count(*) from pgcascade.consumer_config;
drop role own_alice, own_bob, own_admin, own_member, own_team;
