--
-- wait_batch: what it returns and refuses. Who wakes it is in consumer/tests/wait.rs.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset null (null)
select pgq.create_queue('wait, "odd" ''queue''');
update pgq.queue set queue_ticker_max_lag = '0', queue_ticker_idle_period = '0' where queue_name like 'wait%';
select pgq.register_consumer('wait, "odd" ''queue''', E'wait_c\\é');
\set names '\'wait, "odd" \'\'queue\'\'\', E\'wait_c\\\\é\''
select setval('pgq.batch_id_seq', 100000, false);

-- Nothing there, no time to wait.
call pgcascade.wait_batch(:names, '0');
call pgcascade.wait_batch(:names, '-1 day');
call pgcascade.wait_batch(:names, '1 millisecond', null);
select pgq.ticker('wait, "odd" ''queue''');
-- A batch: opened, and the same until it is finished. It waits for none of the times.
call pgcascade.wait_batch(:names, null);
call pgcascade.wait_batch(:names, '0');
call pgcascade.wait_batch(:names, '178000000 years');
select pgq.finish_batch(100000);

-- From a DO block and a procedure: what was done before is committed, what comes after can be rolled back.
select pgq.ticker('wait, "odd" ''queue''');
create table wait_done (what text);
create procedure wait_once(inout batch bigint) language plpgsql as $$
begin
    call pgcascade.wait_batch('wait, "odd" ''queue''', E'wait_c\\é', '1 hour', batch);
end $$;
do $$
declare
    batch bigint;
begin
    insert into wait_done values ('before');
    call wait_once(batch);
    insert into wait_done values ('opened ' || batch);
    rollback;
    -- The batch was not committed: it is opened anew.
    call pgcascade.wait_batch('wait, "odd" ''queue''', E'wait_c\\é', '1 hour', batch);
    insert into wait_done values ('opened ' || batch);
    for batch in select pgq.finish_batch(batch) loop
        call pgcascade.wait_batch('wait, "odd" ''queue''', E'wait_c\\é', '0', batch);
    end loop;
end $$;
select * from wait_done;
drop procedure wait_once;
drop table wait_done;

-- Not where a commit would take something away.
begin;
call pgcascade.wait_batch(:names, '0');
rollback;
\set VERBOSITY terse
do $$ declare b bigint; begin call pgcascade.wait_batch('q', 'c', '0', b); exception when undefined_object then null; end $$;
create function wait_function(b bigint) returns void language plpgsql as $$ begin call pgcascade.wait_batch('q', 'c', '0', b); end $$;
select wait_function(1);
drop function wait_function;
create procedure wait_pinned(inout b bigint) language plpgsql set search_path = pg_catalog
    as $$ begin call pgcascade.wait_batch('q', 'c', '0', b); end $$;
call wait_pinned(1);
drop procedure wait_pinned;
\set VERBOSITY default
-- Nobody to wait for.
call pgcascade.wait_batch('no such queue', 'c', null);
call pgcascade.wait_batch('wait, "odd" ''queue''', 'no such consumer', null);
call pgcascade.wait_batch(null, null, null);
-- Readers may, but for consumers of others.
create role wait_nobody;
create role wait_reader in role pgq_reader;
set role wait_nobody;
call pgcascade.wait_batch(:names, '0');
set role wait_reader;
call pgcascade.wait_batch(:names, '0');
reset role;
select pgcascade.set_consumer_owner(:names, 'wait_reader');
set role wait_reader;
call pgcascade.wait_batch(:names, '0');
-- Operators and functions of the caller's search_path are not called.
reset role;
create schema wait_evil;
create function wait_evil.eq(text, text) returns boolean language plpgsql as $$ begin raise exception 'called by %', current_user; end $$;
create operator wait_evil.= (leftarg = text, rightarg = text, function = wait_evil.eq);
set search_path = wait_evil, pg_catalog;
call pgcascade.wait_batch(:names, '0');
reset search_path;
drop schema wait_evil cascade;
drop role wait_nobody, wait_reader;
select pgq.drop_queue('wait, "odd" ''queue''', true);
