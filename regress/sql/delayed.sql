--
-- Delayed events: stored now, in a batch of every consumer after their time.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset null (null)
select pgq.create_queue('delayed'), pgq.create_queue('delayed, "odd" ''queue''');
update pgq.queue set queue_ticker_max_lag = '0', queue_ticker_idle_period = '0' where queue_name like 'delayed%';
select pgq.register_consumer('delayed', 'delayed_a'), pgq.register_consumer('delayed', 'delayed_b');
\set waiting 'select q.queue_name, d.ev_type, d.ev_data, d.deliver_at <= now() as due from pgcascade.delayed_event d join pgq.queue q using (queue_id) order by d.delayed_id;'

-- With its transaction, or not at all.
begin;
select pgcascade.insert_event_at('delayed', now() + '1 hour', 't', 'rolled back') > 0 as stored;
rollback;
select pgcascade.insert_event_at('delayed', now() + '1 hour', 'later', null) as later \gset
select pgcascade.insert_event_at('delayed', now() - interval '1 hour', 'second', 'd', 'x1', 'x2', 'x3', 'x4') < :later as lower;
select pgcascade.insert_event_at('delayed', '-infinity', null, repeat('big ', 1000000)) > 0 as stored;
select pgcascade.insert_event_at('delayed, "odd" ''queue''', now(), 'odd', E'd\\\'"\n') > 0 as stored;
select ev_type, length(ev_data), deliver_at > now() as waits from pgcascade.delayed_event order by delayed_id;
-- Nothing is in the queue before its time, nor before it is put there.
select pgq.ticker('delayed');
select pgq.next_batch('delayed', 'delayed_a') as batch \gset
select count(*) from pgq.get_batch_events(:batch);
select pgq.finish_batch(:batch);
select pgcascade.deliver_delayed_events();
select pgcascade.deliver_delayed_events();
:waiting
-- To every consumer, in the order of their times, with new ids, and with the time that was asked for.
select pgq.ticker('delayed');
select pgq.next_batch('delayed', 'delayed_a') as batch \gset
select ev_type, left(ev_data, 8) as data, length(ev_data), ev_extra1, ev_extra4, ev_retry, ev_time <= now() as past
  from pgq.get_batch_events(:batch) order by ev_id;
select pgq.finish_batch(:batch);
select pgq.next_batch('delayed', 'delayed_b') as batch \gset
select pgq.finish_batch(:batch);
select count(*) from pgq.get_batch_events(pgq.next_batch('delayed', 'delayed_b'));
-- The tick that sees it is younger than the time of each event.
select count(*) from pgq.event_template e join pgq.tick t on txid_visible_in_snapshot(e.ev_txid, t.tick_snapshot)
 where e.ev_type = 'second' and t.tick_time < e.ev_time;

-- Taken back.
select pgcascade.cancel_event_at(:later), pgcascade.cancel_event_at(:later), pgcascade.cancel_event_at(null);
:waiting

-- Not like that.
select pgcascade.insert_event_at('no such queue', now(), 't', 'd');
select pgcascade.insert_event_at(null, now(), 't', 'd');
select pgcascade.insert_event_at('delayed', null, 't', 'd');
select pgcascade.insert_event_at('delayed', 'infinity', 't', 'd');
select pgcascade.insert_event_at('delayed', now(), 't', 'waits for the queue') > 0 as stored;
update pgq.queue set queue_disable_insert = true where queue_name = 'delayed';
select pgcascade.insert_event_at('delayed', now(), 't', 'd');
-- A closed queue gets nothing and is not waited for; a session that replicates may.
select pgcascade.deliver_delayed_events(), pgcascade.next_delivery();
set session_replication_role = replica;
select pgcascade.insert_event_at('delayed', now(), 't', 'replica') > 0 as stored;
select pgcascade.deliver_delayed_events();
reset session_replication_role;
update pgq.queue set queue_disable_insert = false where queue_name = 'delayed';

-- The limit of a queue is that of a delivery.
update pgq.queue set queue_per_tx_limit = 2 where queue_name = 'delayed';
select count(pgcascade.insert_event_at('delayed', now(), 't', g::text)) from generate_series(1, 5) g;
select pgcascade.deliver_delayed_events();
select pgcascade.deliver_delayed_events();
update pgq.queue set queue_per_tx_limit = null where queue_name = 'delayed';
-- Maintenance from outside does it too: first retried events, then delayed ones.
select pgq.event_retry_raw('delayed', 'delayed_a', now(), 777, now(), 1, 'again', null, null, null, null, null);
select pgq.maint_retry_events() as retried, (select count(*) from pgcascade.delayed_event) as delayed;
select pgq.maint_retry_events();
select pgq.maint_retry_events();

-- A queue that cannot take them keeps its own, and no others.
select pgcascade.insert_event_at('delayed', now(), 't', 'held up') > 0 as stored;
select pgcascade.insert_event_at('delayed, "odd" ''queue''', now(), 'odd', 'goes') > 0 as stored;
begin;
create function delayed_refuse() returns trigger language plpgsql as $$ begin raise exception 'not today'; end $$;
do $$
begin
    execute format('create trigger refuse before insert on %s for each row execute function delayed_refuse()',
                   pgq.current_event_table('delayed'));
end $$;
select pgcascade.deliver_delayed_events();
:waiting
rollback;
select pgcascade.deliver_delayed_events();

-- When the next is due: what is retried counts too.
select pgcascade.next_delivery();
select pgcascade.insert_event_at('delayed', now() + '1 day', 't', 'd') > 0 as stored;
select pgcascade.next_delivery();
select pgcascade.insert_event_at('delayed', now() + '10 min', 't', 'd') > 0 as stored;
select pgcascade.next_delivery() between 1 and 600000 as minutes;
select pgq.event_retry_raw('delayed', 'delayed_a', now(), 778, now(), 1, 'again', null, null, null, null, null);
select pgcascade.next_delivery();
update pgq.retry_queue set ev_retry_after = 'infinity';
select pgcascade.next_delivery() between 1 and 600000 as minutes;
update pgq.retry_queue set ev_retry_after = '-infinity';
select pgcascade.next_delivery();

-- Many at once.
select count(pgcascade.insert_event_at('delayed', now(), 't', g::text)) from generate_series(1, 2500) g;
select pgcascade.deliver_delayed_events(), pgcascade.deliver_delayed_events(), pgcascade.deliver_delayed_events();
select count(*) = count(distinct ev_data) as each_once, bool_and(ev_id - first = ev_data::int - 1) as in_order
  from (select ev_id, ev_data, min(ev_id) over () as first from pgq.event_template where ev_type = 't' and ev_data ~ '^\d+$'
         and ev_txid = (select max(ev_txid) from pgq.event_template where ev_data = '1000')) e where ev_data::int <= 1000;

-- They go with their queue.
select pgcascade.insert_event_at('delayed, "odd" ''queue''', now(), 't', 'd') > 0 as stored;
select pgq.drop_queue('delayed, "odd" ''queue'''), pgq.drop_queue('delayed', true);
:waiting
