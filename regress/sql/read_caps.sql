--
-- The server's cap on one read of a batch, and reading a batch in pages.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset null (null)
select pgq.create_queue('caps');
select queue_id as id from pgq.queue where queue_name = 'caps' \gset
update pgq.queue set queue_ticker_max_lag = '0', queue_ticker_idle_period = '0' where queue_id = :id;
select pgq.register_consumer('caps', 'c');
-- 20 events of 105 bytes (type 1, data 100, extra1 4), two rows with one id, and one of 1,003 bytes.
select count(pgq.insert_event('caps', 't', repeat('d', 100), 'four', null, null, null)) from generate_series(1, 20);
select count(pgq.insert_event_raw('caps', 5, now(), null, null, 't', 'twin', null, null, null, null));
select pgq.insert_event('caps', 'big', repeat('é', 500)) as big;
select pgq.ticker('caps') > 0 as ticked;
select pgq.next_batch('caps', 'c') as batch \gset
\set shown 'select count(*), min(ev_id), max(ev_id), sum(pgcascade.event_bytes(ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4)) as bytes from'

-- No cap.
select * from pgcascade.read_caps();
:shown pgq.get_batch_events(:batch);
-- Just enough, and one too few. Batch ids differ: the message without them.
create function pg_temp.try(statement text) returns text language plpgsql as $$
declare n bigint; hint text;
begin
    execute 'select count(*) from ' || statement into n;
    return n;
exception when program_limit_exceeded then
    get stacked diagnostics hint = pg_exception_hint;
    return regexp_replace(sqlerrm || ' HINT: ' || hint, '(batch |page\()\d+', '\1N', 'g');
end $$;
set pgcascade.max_batch_events = 22;
select pg_temp.try('pgq.get_batch_events(' || :batch || ')');
set pgcascade.max_batch_events = 21;
select pg_temp.try('pgq.get_batch_events(' || :batch || ')');
select pg_temp.try('pgq.get_batch_cursor(' || :batch || ', ''c1'', 21)');
select pg_temp.try('pgq.get_batch_cursor(' || :batch || ', ''c2'', 22)');
select pg_temp.try('pgq.get_batch_cursor(' || :batch || ', ''c3'', 0)');
begin;
:shown pgq.get_batch_cursor(:batch, 'c', 21);
move all from c;
rollback;
set pgcascade.max_batch_events = 0;
set pgcascade.max_batch_bytes = '4kB';
select pg_temp.try('pgq.get_batch_events(' || :batch || ')');
set pgcascade.max_batch_bytes = '3kB';
select pg_temp.try('pgq.get_batch_events(' || :batch || ')');
select pg_temp.try('pgq.get_batch_cursor(' || :batch || ', ''c4'', 21)');
select pg_temp.try('pgq.get_batch_cursor(' || :batch || ', ''c5'', 22)');
-- What sends nothing is not limited.
select pgq.batch_retry(:batch, 3600);
delete from pgq.retry_queue where ev_queue = :id;
reset pgcascade.max_batch_bytes;

-- Pages: in order, complete, never between two events of one id.
:shown pgcascade.get_batch_page(:batch, null, null, null);
:shown pgcascade.get_batch_page(:batch, null, 5, null);
-- Both events with id 5 are in the next page, though only one is asked for.
:shown pgcascade.get_batch_page(:batch, 4, 1, null);
:shown pgcascade.get_batch_page(:batch, 5, 5, null);
:shown pgcascade.get_batch_page(:batch, null, null, 420);
:shown pgcascade.get_batch_page(:batch, null, null, 525);
:shown pgcascade.get_batch_page(:batch, null, null, 1);
:shown pgcascade.get_batch_page(:batch, 20, 5, 10);
:shown pgcascade.get_batch_page(:batch, 20000, 5, 10);
-- The server's cap limits them too.
set pgcascade.max_batch_events = 3;
:shown pgcascade.get_batch_page(:batch, null, null, null);
:shown pgcascade.get_batch_page(:batch, null, 4, null);
:shown pgcascade.get_batch_page(:batch, null, 2, null);
set pgcascade.max_batch_events = 0;
set pgcascade.max_batch_bytes = '1kB';
:shown pgcascade.get_batch_page(:batch, null, 100, 10000);
reset pgcascade.max_batch_bytes;
-- All pages together are the batch.
create temp table paged as select * from pgq.get_batch_events(:batch) limit 0;
do $$
declare after bigint; batch bigint := (select sub_batch from pgq.subscription s join pgq.queue on queue_id = sub_queue where queue_name = 'caps');
begin
    loop
        insert into paged select * from pgcascade.get_batch_page(batch, after, 3, 400);
        exit when not found;
        after := (select max(ev_id) from paged);
    end loop;
end $$;
select count(*) from paged;
select * from paged except all select * from pgq.get_batch_events(:batch);

-- Wrong input.
\set VERBOSITY terse
select * from pgcascade.get_batch_page(:batch, null, 0, null);
select * from pgcascade.get_batch_page(:batch, null, null, -1);
select * from pgcascade.get_batch_page(-1, null, 1, 1);
select * from pgcascade.get_batch_page(null, null, 1, 1);
\set VERBOSITY default
-- Readers may, others may not, and a reader cannot raise the cap.
create role caps_reader in role pgq_reader;
create role caps_nobody;
set role caps_nobody;
select * from pgcascade.get_batch_page(:batch, null, 1, 1);
set role caps_reader;
set pgcascade.max_batch_events = 0;
reset role;
set pgcascade.consumer_ownership = off;
set pgcascade.max_batch_events = 2;
set role caps_reader;
:shown pgcascade.get_batch_page(:batch, null, 1, 1);
select pg_temp.try('pgq.get_batch_cursor(' || :batch || ', ''c6'', 3)');
reset role;
drop role caps_reader, caps_nobody;
reset pgcascade.max_batch_events;
select pgq.drop_queue('caps', true);
