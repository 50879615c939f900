--
-- pgcascade.queue_stats and consumer_stats: figures in every state of a queue.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset null (null)
\x on
select pgq.create_queue('stats, "q"');
select queue_id as id, queue_data_pfx as pfx from pgq.queue where queue_name = 'stats, "q"' \gset
update pgq.queue set queue_ticker_max_lag = '0', queue_ticker_idle_period = '0' where queue_id = :id;
\set q '''stats, "q"'''
\set queue 'select external_ticker, ticker_paused, insert_disabled, events_total, events_new, events_per_second > 0 as rate, first_tick, last_tick, last_tick_time <= clock_timestamp() as tick_time, ticker_lag >= \'0\' as ticker_lag, ticker_error, ticker_error_time <= clock_timestamp() as ticker_error_time, event_tables, current_table, event_bytes = pgcascade.event_bytes(\'' :pfx '\') as event_bytes, rotation_period, last_rotation <= now() as last_rotation, rotation_due, blocker, blocker_name, blocker_since <= now() as blocker_since, consumers, open_batches, retries, delayed, dead_letters, max_age, max_bytes, policy, over_limit, over_limit_reason is not null as reason, dropped_consumers from pgcascade.queue_stats where queue_id = ' :id ';'
\set consumers 'select consumer_name, main_consumer, owner = current_user as owner, last_tick, last_tick_time <= clock_timestamp() as tick_time, position, ticks_behind, events_behind, bytes_behind > 0 as bytes_behind, bytes_behind <= bytes_held as within, behind >= \'0\' as behind, lag >= behind as lag, batch_id is not null as batch, batch_tick, batch_since <= clock_timestamp() as batch_since, last_seen >= \'0\' as last_seen, retries, dead_letters, bytes_held > 0 as bytes_held, blocks_rotation, over_limit, over_limit_reason is not null as reason from pgcascade.consumer_stats where queue_id = ' :id ' order by consumer_name;'

-- New: one tick, no event, nobody reads.
:queue
:consumers
-- A consumer that never read, one that has a batch open, one that is where the queue is; a subconsumer without a batch.
select pgq.register_consumer(:q, 'never'), pgq.register_consumer(:q, 'open'), pgq.register_consumer(:q, 'done');
select pgq_coop.register_subconsumer(:q, 'never', 'sub');
\o /dev/null
select pgq.insert_event(:q, 't', repeat('x', 1000)) from generate_series(1, 100);
select pgq.ticker(:q);
select pgq.next_batch(:q, 'open');
select pgq.finish_batch(pgq.next_batch(:q, 'done'));
select pgq.event_retry_raw(:q, 'open', now(), null, now(), null, 't', 'd', null, null, null, null);
\o
select pgq.insert_event(:q, 't', 'not ticked'), pgcascade.insert_event_at(:q, now() + interval '1 day', 't', 'later') > 0 as delayed;
:queue
:consumers
-- Rotation is due, then waits for those two.
\o /dev/null
update pgq.queue set queue_rotation_period = '0' where queue_id = :id;
select pgq.maint_rotate_tables_step1(:q);
select pgq.maint_rotate_tables_step2();
select pgq.ticker(:q);
select pgq.finish_batch(pgq.next_batch(:q, 'done'));
select pgcascade.set_queue_limit(:q, '1 microsecond', null, 'warn');
\o
:queue
:consumers
-- Ticks from elsewhere; paused; closed; without any tick; a lost position.
update pgq.queue set queue_external_ticker = true, queue_ticker_paused = true, queue_disable_insert = true where queue_id = :id;
update pgq.subscription set sub_last_tick = 99999 where sub_queue = :id and sub_last_tick is not null;
delete from pgq.tick where tick_queue = :id;
:queue
:consumers
-- A sequence that stands behind the ticks (a branch whose worker restarted) makes no negative figures.
insert into pgq.tick (tick_queue, tick_id, tick_event_seq) values (:id, 99999, 5000);
:queue
:consumers

-- Why the background ticker cannot tick it, until somebody has. Whom a consumer belongs to, and its subconsumers with it.
select pgcascade.note_tick_error(:q, 'no space left'), pgcascade.note_tick_error('no such queue', 'gone');
select ticker_error, ticker_error_time <= clock_timestamp() as at from pgcascade.queue_stats where queue_id = :id;
select pgcascade.note_tick_error(:q, 'no memory left');
select ticker_error from pgcascade.queue_stats where queue_id = :id;
select count(*) from pgcascade.tick_error;
insert into pgq.tick (tick_queue, tick_id, tick_event_seq) values (:id, 100000, 6000);
select ticker_error, ticker_error_time from pgcascade.queue_stats where queue_id = :id;
create role stats_owner;
select pgcascade.set_consumer_owner(:q, 'never', 'stats_owner');
select consumer_name, main_consumer, owner from pgcascade.consumer_stats where queue_id = :id order by consumer_name;
drop role stats_owner;
-- Dead letters, of subconsumers with their main consumer.
insert into pgcascade.dead_letter (dead_id, queue_id, consumer_id, failed_at, ev_id, ev_time)
select n, :id, (select co_id from pgq.consumer where co_name = 'never'), now(), n, now() from generate_series(1, 3) n;
select dead_letters from pgcascade.queue_stats where queue_id = :id;
select consumer_name, dead_letters from pgcascade.consumer_stats where queue_id = :id order by consumer_name;
\x off

-- Those may look who should, whatever they have set.
create role stats_reader in role pgq_reader;
create role stats_monitor in role pg_monitor;
create role stats_nobody;
set role stats_reader;
select count(*) > 0 as queues from pgcascade.queue_stats;
select count(*) > 0 as consumers from pgcascade.consumer_stats;
set role stats_monitor;
select count(*) > 0 as queues from pgcascade.queue_stats;
select count(*) > 0 as consumers from pgcascade.consumer_stats;
set role stats_nobody;
select count(*) > 0 as queues from pgcascade.queue_stats;
select count(*) > 0 as consumers from pgcascade.consumer_stats;
reset role;
drop role stats_reader, stats_monitor, stats_nobody;
-- Each column is described; none is missing.
\getenv abs_srcdir PG_ABS_SRCDIR
\set manual :abs_srcdir '/docs/queues.md'
create temp table manual (line text);
\set load '\\copy manual from ' :'manual' ' with (format csv, delimiter E''\\x01'', quote E''\\x02'')'
:load
select a.attrelid::regclass, a.attname from pg_attribute a
 where a.attrelid in ('pgcascade.queue_stats'::regclass, 'pgcascade.consumer_stats'::regclass) and a.attnum > 0
   and not exists (select from manual m where m.line ~ ('^\| .*`' || a.attname || '`.* \|'))
 order by 1, a.attnum;
select pgq.drop_queue(:q, true);
