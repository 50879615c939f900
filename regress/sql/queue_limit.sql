--
-- Queue limits: setting them, warning, dropping a consumer, its coming back.
--
set client_min_messages = warning;
set intervalstyle = 'sql_standard';   -- no message depends on it
\set SHOW_CONTEXT never
\pset null (null)
select pgq.create_queue('queue "limit" %s');
select queue_id as id, queue_data_pfx as pfx from pgq.queue where queue_name = 'queue "limit" %s' \gset
update pgq.queue set queue_ticker_max_lag = '0', queue_ticker_idle_period = '0', queue_rotation_period = '0' where queue_id = :id;
\set q '''queue "limit" %s'''
\set rotate 'select pgq.maint_rotate_tables_step1(' :q '); select pgq.maint_rotate_tables_step2();'
\set limits 'select blocker, name, regexp_replace(reason, \'[0-9:]+( [kM]B)? ?(old)\', \'N \\2\') as reason, cascade from pgcascade.limits_exceeded() where queue_id = ' :id ';'
-- Everything that waits, read and finished; null if there is nothing.
create function queue_limit_read(i_consumer text) returns text language plpgsql as $$
declare
    batch bigint;
    result text := '';
begin
    loop
        batch := pgq.next_batch('queue "limit" %s', i_consumer);
        exit when batch is null;
        result := result || coalesce((select string_agg(ev_data, ' ' order by ev_id) from pgq.get_batch_events(batch)), '');
        perform pgq.finish_batch(batch);
    end loop;
    return result;
end $$;

-- Setting. Without limits there is nothing to enforce.
select pgcascade.maint_queue_limit(:q), pgcascade.maint_queue_limit('no such queue'), pgcascade.maint_queue_limit(null);
select * from pgq.maint_operations() where func_name = 'pgcascade.maint_queue_limit';
select pgcascade.set_queue_limit(:q, '1 hour', null);
select max_age, max_bytes, policy, warn_interval from pgcascade.queue_config where queue_id = :id;
select pgcascade.set_queue_limit(:q, null, pg_size_bytes('10 GB'), 'drop');
select max_age, max_bytes, policy, warn_interval from pgcascade.queue_config where queue_id = :id;
select pgcascade.set_queue_limit(:q, '1 day', null);
select max_age, max_bytes, policy, warn_interval from pgcascade.queue_config where queue_id = :id;
select * from pgq.maint_operations() where func_arg = :q;
-- Not values.
select pgcascade.set_queue_limit(:q, '0', null);
select pgcascade.set_queue_limit(:q, '-1 day', null);
select pgcascade.set_queue_limit(:q, '100000000 years', null);
select pgcascade.set_queue_limit(:q, null, 0);
select pgcascade.set_queue_limit(:q, null, -1);
select pgcascade.set_queue_limit(:q, null, 1048575);
select pgcascade.set_queue_limit(:q, null, null, 'DROP');
select pgcascade.set_queue_limit(:q, null, null, '');
select pgcascade.set_queue_limit('no such queue', null, null);
select pgcascade.set_queue_limit(null, null, null);
-- By hand neither.
\set VERBOSITY terse
update pgcascade.queue_config set max_age = '-1';
update pgcascade.queue_config set max_bytes = 5;
update pgcascade.queue_config set policy = 'delete';
update pgcascade.queue_config set warn_interval = '0';
insert into pgcascade.queue_config (queue_id) values (-1);
\set VERBOSITY default
select max_age, max_bytes, policy, warn_interval from pgcascade.queue_config where queue_id = :id;

-- Consumers that do not read. Only those are named that rotation waits for.
select pgcascade.set_queue_limit(:q, '1 microsecond', null, 'warn');
select pgq.register_consumer(:q, 'dead, "one"'), pgq.register_consumer(:q, 'alive');
select pgq.insert_event(:q, 't', 'a');
select pgq.ticker(:q) > 0 as ticked;
update pgq.tick set tick_time = tick_time - interval '2 hours' where tick_queue = :id;
:limits
\o /dev/null
:rotate
\o
select pgq.insert_event(:q, 't', 'b');
select pgq.ticker(:q) > 0 as ticked;
select queue_limit_read('alive');
:limits
-- Warned of once, and again after warn_interval.
select pgcascade.maint_queue_limit(:q);
select pgcascade.maint_queue_limit(:q);
select blocker, name from pgcascade.limit_warning where queue_id = :id;
update pgcascade.limit_warning set warned_at = warned_at - interval '61 minutes' where queue_id = :id;
select pgcascade.maint_queue_limit(:q);
select pgcascade.maint_queue_limit(:q);
-- Once it reads the cause is gone, and forgotten.
begin;
select queue_limit_read('dead, "one"');
:limits
select pgcascade.maint_queue_limit(:q);
select count(*) from pgcascade.limit_warning where queue_id = :id;
rollback;

-- Dropped, with its retried events; the record says what it lost.
select pgq.event_retry_raw(:q, 'dead, "one"', now(), null, now(), null, 't', 'r', null, null, null, null) > 0 as retried;
select pgq.next_batch(:q, 'dead, "one"') as batch \gset
select pgcascade.set_queue_limit(:q, '1 microsecond', null, 'drop');
select pgcascade.maint_queue_limit(:q);
select queue_name, consumer_name, regexp_replace(reason, '[0-9:]+ old', 'N old') as reason, last_tick, batch_id = :batch as batch, next_tick,
       lag > interval '2 hours' as lag, bytes > 0 as bytes, retries, returned_at
  from pgcascade.dropped_consumer where queue_id = :id;
select consumer_name from pgq.get_consumer_info(:q);
select count(*) from pgq.retry_queue where ev_queue = :id;
select pgcascade.maint_queue_limit(:q);
-- Now the events are truncated.
select string_agg(ev_data, ' ' order by ev_id) as events from :pfx;
\o /dev/null
:rotate
select pgq.ticker(:q), queue_limit_read('alive');
:rotate
select pgq.ticker(:q), queue_limit_read('alive');
:rotate
\o
select string_agg(ev_data, ' ' order by ev_id) as events from :pfx;
-- It comes back, and is told.
do $$
declare
    said text;
begin
    perform pgq.next_batch('queue "limit" %s', 'dead, "one"');
exception when undefined_object then
    get stacked diagnostics said = pg_exception_hint;
    raise warning '% [%]', sqlerrm, regexp_replace(regexp_replace(said, '\d{4}-\d\d-\d\d \d\d:\d\d:\d\d', 'TIME'), '[0-9:]+ old', 'N old');
end $$;
\set VERBOSITY sqlstate
select pgq.finish_batch(:batch);
\set VERBOSITY default
select pgq.next_batch(:q, 'never there');
\set VERBOSITY terse
select pgq.register_consumer(:q, 'dead, "one"');
\set VERBOSITY default
select returned_at is not null as returned from pgcascade.dropped_consumer where queue_id = :id;
select pgq.next_batch(:q, 'dead, "one"') is null as nothing;
select pgq.unregister_consumer(:q, 'dead, "one"');
select pgq.next_batch(:q, 'dead, "one"');

-- Bytes. Beyond the limit a queue is rotated early, once a minute.
select pgq.register_consumer(:q, 'big');
begin; -- one time, whatever it takes
update pgq.queue set queue_rotation_period = '1 day', queue_switch_time = now() - interval '59 seconds' where queue_id = :id;
select pgcascade.set_queue_limit(:q, null, 1048576, 'warn');
select count(pgq.insert_event(:q, 't', repeat(md5(i::text), 60))) from generate_series(1, 1000) i;
select pgcascade.event_bytes(:'pfx') > 1048576 as over;
select func_name from pgq.maint_operations() where func_arg = :q;
commit;
update pgq.queue set queue_switch_time = now() - interval '61 seconds' where queue_id = :id;
select func_name from pgq.maint_operations() where func_arg = :q;
select queue_cur_table as before from pgq.queue where queue_id = :id \gset
\o /dev/null
select pgq.ticker(:q), queue_limit_read('alive'), queue_limit_read('big');
:rotate
\o
select queue_cur_table = (:before + 1) % 3 as rotated from pgq.queue where queue_id = :id;
-- One of the two reads on; the other is in the way, once a minute has passed.
select count(pgq.insert_event(:q, 't', repeat(md5(i::text), 60))) from generate_series(1, 1000) i;
select pgq.ticker(:q) > 0 as ticked, queue_limit_read('alive') > '' as read;
select pgcascade.maint_queue_limit(:q);
update pgq.queue set queue_switch_time = now() - interval '61 seconds', queue_rotation_period = '0' where queue_id = :id;
select blocker, name from pgcascade.limits_exceeded() where queue_id = :id;
\set VERBOSITY sqlstate
select pgcascade.maint_queue_limit(:q);
select pgcascade.set_queue_limit(:q, null, 1048576, 'drop');
select pgcascade.maint_queue_limit(:q);
\set VERBOSITY default
select consumer_name, reason ~ '^the queue holds .* kB, and its limit is 1024 kB$' as reason from pgcascade.dropped_consumer
 where queue_id = :id order by dropped_at desc limit 1;
\set round 'select pgq.ticker(' :q '), queue_limit_read(\'alive\'); update pgq.queue set queue_switch_time = now() - interval \'61 seconds\' where queue_id = ' :id '; select pgq.maint_rotate_tables_step1(' :q '); select pgq.maint_rotate_tables_step2();'
\o /dev/null
:round
:round
:round
\o
select pgcascade.event_bytes(:'pfx') < 1048576 as freed;

-- A transaction that is open: nobody is dropped for its sake, but it is named.
begin;
select pgq.insert_event(:q, 't', repeat(md5('x'), 100000)) > 0 as inserted;
prepare transaction 'queue_limit';
\o /dev/null
select pgq.ticker(:q), queue_limit_read('alive');
update pgq.queue set queue_switch_time = now() - interval '61 seconds', queue_rotation_period = '0' where queue_id = :id;
:rotate
select pgq.ticker(:q), queue_limit_read('alive');
alter table pgcascade.queue_config drop constraint queue_config_max_bytes_at_least_1_mb;
update pgcascade.queue_config set max_bytes = 1 where queue_id = :id;
\o
select blocker, name from pgcascade.limits_exceeded() where queue_id = :id;
\set VERBOSITY terse
\set VERBOSITY sqlstate
select pgcascade.maint_queue_limit(:q);
\set VERBOSITY default
commit prepared 'queue_limit';
-- Ended, but no tick has seen that yet: only the ticker can help.
select blocker, name from pgcascade.limits_exceeded() where queue_id = :id;
\o /dev/null
select pgq.ticker(:q), queue_limit_read('alive');
\o
select blocker, name from pgcascade.limits_exceeded() where queue_id = :id;

-- The watermark of a cascade is not dropped.
select pgq.register_consumer(:q, '.global_watermark'), pgq.ticker(:q) > 0 as ticked;
\o /dev/null
:rotate
select pgq.ticker(:q), queue_limit_read('alive');
\o
select blocker, name, cascade from pgcascade.limits_exceeded() where queue_id = :id;
\set VERBOSITY sqlstate
select pgcascade.maint_queue_limit(:q);
\set VERBOSITY default
select pgq.unregister_consumer(:q, '.global_watermark');

-- Cooperating consumers: the subconsumer that holds a batch goes; it does not come back by asking for a batch.
select pgq_coop.register_subconsumer(:q, 'coop', 'a'), pgq_coop.register_subconsumer(:q, 'coop', 'b');
\o /dev/null
select pgq.insert_event(:q, 't', 'coop'), pgq.ticker(:q);
select pgq_coop.next_batch(:q, 'coop', 'a');
select pgq.ticker(:q);
\o
select pgq_coop.finish_batch(pgq_coop.next_batch(:q, 'coop', 'b'));
\o /dev/null
select queue_limit_read('alive');
:rotate
select pgq.ticker(:q), queue_limit_read('alive');
\o
select pgq_coop.finish_batch(pgq_coop.next_batch(:q, 'coop', 'b'));
select blocker, name from pgcascade.limits_exceeded() where queue_id = :id;
\set VERBOSITY sqlstate
select pgcascade.maint_queue_limit(:q);
select pgq_coop.next_batch(:q, 'coop', 'a');
select pgq_coop.next_batch(:q, 'coop', 'b') is null as nothing;
select pgq_coop.register_subconsumer(:q, 'coop', 'a');
select pgq_coop.next_batch(:q, 'coop', 'a') is null as nothing;
\set VERBOSITY default
select consumer_name, batch_id is not null as batch, next_tick > last_tick as ticks, returned_at is not null as returned
  from pgcascade.dropped_consumer where queue_id = :id and consumer_name ~ 'coop' order by consumer_name;
-- The main consumer takes its subconsumers with it.
\o /dev/null
select pgq.insert_event(:q, 't', 'coop'), pgq.ticker(:q);
select pgq_coop.next_batch(:q, 'coop', 'b');
select queue_limit_read('alive');
:rotate
select pgq.ticker(:q), queue_limit_read('alive');
\o
select blocker, name from pgcascade.limits_exceeded() where queue_id = :id;
\set VERBOSITY sqlstate
select pgcascade.maint_queue_limit(:q);
select consumer_name from pgq.get_consumer_info(:q);
select pgq_coop.next_batch(:q, 'coop', 'a');
select pgq_coop.next_batch(:q, 'coop', 'c');
\set VERBOSITY default
select consumer_name, batch_id is not null as batch, returned_at is not null as returned
  from pgcascade.dropped_consumer where queue_id = :id and consumer_name ~ 'coop' order by dropped_at, consumer_name;

-- A consumer that stands at a tick that is not there.
select pgq.register_consumer(:q, 'lost');
update pgq.subscription s set sub_last_tick = 99999, sub_active = now() - interval '1 day'
  from pgq.consumer c where c.co_id = s.sub_consumer and c.co_name = 'lost';
select pgcascade.set_queue_limit(:q, '1 microsecond', null, 'drop');
select blocker, name, since < now() - interval '23 hours' as since from pgcascade.limits_exceeded() where queue_id = :id;
\set VERBOSITY terse
select pgcascade.maint_queue_limit(:q);
\set VERBOSITY default

-- Limits go with their queue, the record stays.
set session_replication_role = replica;
select pgq.drop_queue(:q, true);
reset session_replication_role;
select count(*) from pgcascade.queue_config where queue_id = :id;
select count(*) from pgcascade.dropped_consumer where queue_id = :id;
delete from pgcascade.dropped_consumer where queue_id = :id;
alter table pgcascade.queue_config add constraint queue_config_max_bytes_at_least_1_mb check (max_bytes >= 1048576);
drop function queue_limit_read;
