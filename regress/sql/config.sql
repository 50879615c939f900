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
select pgq.set_queue_config('config', 'rotation_period', '20000 years');
-- By UPDATE.
\set VERBOSITY terse
update pgq.queue set queue_rotation_period = '-1 second' where queue_name = 'config';
update pgq.queue set queue_rotation_period = '170000000 years' where queue_name = 'config';
update pgq.queue set queue_ticker_max_lag = '-1 second' where queue_name = 'config';
update pgq.queue set queue_ticker_idle_period = '-1 second' where queue_name = 'config';
update pgq.queue set queue_ticker_max_count = -1 where queue_name = 'config';
update pgq.queue set queue_per_tx_limit = -1 where queue_name = 'config';
update pgq.queue set queue_name = '' where queue_name = 'config';
update pgq.queue set queue_ntables = 1 where queue_name = 'config';
update pgq.queue set queue_cur_table = 3 where queue_name = 'config';
\set VERBOSITY default

-- (The id of the queue is written as N.)
create function config_ntables(n integer) returns text language plpgsql as $$
begin
    update pgq.queue set queue_ntables = n where queue_name = 'config';
    return 'changed';
exception when object_not_in_prerequisite_state then
    return regexp_replace(sqlerrm, 'event_\d+', 'event_N');
end $$;
select config_ntables(5), config_ntables(2), config_ntables(3);
drop function config_ntables;
-- Null, and no such queue.
select pgq.set_queue_config('config', 'ticker_max_count', null);
select pgq.set_queue_config('config', null, '1');
select pgq.set_queue_config(null, 'ticker_max_count', '1');
select pgq.set_queue_config('no such queue', 'ticker_max_count', '1');
:show
select pgq.drop_queue('config');
