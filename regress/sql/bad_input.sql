--
-- Odd names and values, through everything that takes a name.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset null (null)
select pgq.create_queue(null);
-- One round of everything for each odd name, used for queue and consumer: the result must be the same for all.
create table bad_input (n text primary key, result text);
insert into bad_input values ('plain'), (' '), ('two words'), ('Upper'), ('a.b'), ('a..b'), ('.'), ('a,b'), ('quo"te'), ('apo''strophe'), ('back\slash'),
    ('semi;colon -- x'), ('%'), ('%s %I %L'), ('$1'), ('$$'), ('''; drop table pgq.queue; --'), ('null'), ('select'),
    (E'new\nline'), (E'tab\t'), ('prüfung'), ('очередь'), ('キュー'), ('🐘'), ('a:b'), ('a@b'), ('a/b'), ('{1}'),
    (repeat('x', 200)), (repeat('ä', 200)), (repeat('long ', 300));
do $$
declare
    name text;
    result text := null;
    batch bigint;
begin
    for name in select n from bad_input loop
        result := 'create ' || pgq.create_queue(name) || pgq.create_queue(name);
        result := result || pgq.set_queue_config(name, 'ticker_max_lag', '0');
        result := result || pgq.register_consumer(name, name) || pgq.register_consumer(name, name);
        commit;
        result := result || ' event ' || pgq.insert_event(name, name, name) || pgq.insert_event(name, '', '', name, name, name, name);
        result := result || ' raw ' || pgq.insert_event_raw(name, 100, now(), null, null, name, name, null, null, null, null);
        commit;
        perform pgq.force_tick(name);
        result := result || ' tick ' || pgq.ticker(name);
        commit;
        batch := pgq.next_batch(name, name);
        result := result || ' batch ' || (select count(*) from pgq.get_batch_events(batch)) || (select count(*) from pgq.get_batch_events(batch) where ev_data = name);
        result := result || (select count(*) from pgq.get_batch_cursor(batch, 'c' || name, 10));
        result := result || (select (queue_name = name and consumer_name = name)::int from pgq.get_batch_info(batch));
        result := result || ' retry ' || pgq.event_retry(batch, 100, 0) || pgq.maint_retry_events();
        result := result || pgq.event_retry_raw(name, name, now(), 5, now(), 0, name, name, null, null, null, null) || pgq.maint_retry_events();
        result := result || ' finish ' || pgq.finish_batch(batch);
        commit;
        result := result || ' info ' || (select count(*) from pgq.get_queue_info(name)) || (select count(*) from pgq.get_consumer_info(name)) || (select count(*) from pgq.get_consumer_info(name, name));
        result := result || ' admin ' || pgq.grant_perms(name) || pgq.tune_storage(name);
        perform pgq.unregister_consumer(name, name);
        update pgq.queue set queue_rotation_period = '0' where queue_name = name;
        commit;
        result := result || ' rotate ' || pgq.maint_rotate_tables_step1(name);
        result := result || (select queue_cur_table from pgq.queue where queue_name = name);
        commit;
        result := result || ' table ' || (pgq.current_event_table(name) ~ '^pgq\.event_\d+_1$')::int;
        result := result || ' end ' || pgq.unregister_consumer(name, name) || pgq.drop_queue(name);
        update bad_input b set result = r.r from (values (name, result)) r (n, r) where b.n = r.n;
        commit;
    end loop;
end $$;
-- (The empty name is the data of one more event.)
select result, count(*), min(length(n)), max(length(n)) from bad_input group by 1 order by 2 desc;
drop table bad_input;
-- Names that differ are different queues.
select pgq.create_queue('bad_input'), pgq.create_queue('Bad_Input'), pgq.create_queue('bad_input '), pgq.create_queue('bad.input');
select count(distinct queue_id) from pgq.queue where lower(queue_name) like 'bad_input%' or queue_name = 'bad.input';
select pgq.drop_queue('bad_input'), pgq.drop_queue('Bad_Input'), pgq.drop_queue('bad_input '), pgq.drop_queue('bad.input');

-- Nulls.
select pgq.create_queue('bad_input');
\set VERBOSITY terse
select pgq.drop_queue(null), pgq.tune_storage(null), pgq.force_tick(null), pgq.unregister_consumer(null, null), pgq.maint_rotate_tables_step1(null);
select pgq.drop_queue(null, true);
select pgq.drop_queue(null, null);
select pgq.register_consumer(null, null);
select pgq.register_consumer('bad_input', null);
select pgq.register_consumer_at('bad_input', 'c', -1);
select pgq.grant_perms(null);
select pgq.set_queue_config(null, null, null);
select pgq.next_batch_custom(null, null, null, null, null);
select pgq.next_batch_custom('bad_input', 'c', '-1 day', -5, '-1 day');
select pgq.register_consumer('bad_input', 'c');
select pgq.next_batch_custom('bad_input', 'c', '-1 day', -5, '-1 day');
select pgq._grant_perms_from('pgq', 'no such table', 'pgq', 'no such table'), pgq._grant_perms_from(null, null, null, null);
select pgq._grant_perms_from('pgq', 'queue', 'pgq', 'no such table');
select pgq.find_tick_helper(null, null, null, null, null, null);
select pgcascade.tick_event_sql(null, null, null, null);
\set VERBOSITY default
select pgq.drop_queue('bad_input', true);
