--
-- pgq.set_queue_config: every setting, good and bad values.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
select pgq.create_queue('config');
\set show 'select queue_ticker_max_count, queue_ticker_max_lag, queue_ticker_idle_period, queue_ticker_paused, queue_rotation_period, queue_external_ticker from pgq.queue where queue_name = \'config\';'
select pgq.set_queue_config('config', 'ticker_max_count', '1000');
select pgq.set_queue_config('config', 'ticker_max_lag', '1.5');
select pgq.set_queue_config('config', 'ticker_idle_period', '00:02');
select pgq.set_queue_config('config', 'ticker_paused', 'yes');
select pgq.set_queue_config('config', 'rotation_period', 'P1DT2H');
select pgq.set_queue_config('config', 'external_ticker', '1');
:show
-- Not a setting, or one for UPDATE.
select pgq.set_queue_config('config', 'ticker_max_cnt', '1000');
select pgq.set_queue_config('config', 'queue_ticker_max_count', '1000');
select pgq.set_queue_config('config', 'per_tx_limit', '1000');
select pgq.set_queue_config('config', 'disable_insert', 'true');
select pgq.set_queue_config('config', 'name', 'other');
select pgq.set_queue_config('config', 'ticker_paused = true, queue_name', 'x');
select pgq.set_queue_config('config', '', 'x');
-- Not a value.
select pgq.set_queue_config('config', 'ticker_max_count', 'many');
select pgq.set_queue_config('config', 'ticker_max_count', '3000000000');
select pgq.set_queue_config('config', 'ticker_max_count', '1.5');
select pgq.set_queue_config('config', 'ticker_max_count', '');
select pgq.set_queue_config('config', 'ticker_max_count', '-1');
select pgq.set_queue_config('config', 'ticker_max_lag', 'a while');
select pgq.set_queue_config('config', 'ticker_max_lag', '-1 second');
select pgq.set_queue_config('config', 'rotation_period', '99999999999999 years');
select pgq.set_queue_config('config', 'ticker_paused', 'maybe');
select pgq.set_queue_config('config', 'external_ticker', $$'); drop table pgq.queue; --$$);
-- Null, and no such queue.
select pgq.set_queue_config('config', 'ticker_max_count', null);
select pgq.set_queue_config('config', null, '1');
select pgq.set_queue_config(null, 'ticker_max_count', '1');
select pgq.set_queue_config('no such queue', 'ticker_max_count', '1');
:show
select pgq.drop_queue('config');
