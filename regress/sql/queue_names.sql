--
-- Which queues may be made: names, pgcascade.queue_name_pattern, pgcascade.max_queues.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
load 'pgcascade';
select pgq.create_queue('');
select pgq.create_queue(repeat('n', 2049));
select pgq.create_queue(repeat('n', 2048));
select pgq.drop_queue(repeat('n', 2048));
-- The whole name has to match.
set pgcascade.queue_name_pattern = 'app_[a-z]+|queue_names';
select pgq.create_queue('app_one');
select pgq.create_queue('queue_names');
select pgq.create_queue('app_one2');
select pgq.create_queue('my_app_one');
select pgq.create_queue(E'app_one\nx');
select pgq.create_queue('%s "odd"');
-- One that is there is not made, so it is not refused.
set pgcascade.queue_name_pattern = 'x';
select pgq.create_queue('app_one');
-- Not a pattern.
set pgcascade.queue_name_pattern = 'a)|(b';
select pgq.create_queue('app_two');
set pgcascade.queue_name_pattern = '[';
select pgq.create_queue('app_two');
reset pgcascade.queue_name_pattern;
-- Nodes of a cascade are no exception.
set pgcascade.queue_name_pattern = 'app_.*';
select pgq_node.register_location('other', 'n', 'dbname=n', false);
select pgq_node.create_node('other', 'root', 'n', 'w', null, null, null);
select pgq_node.unregister_location('other', 'n');
reset pgcascade.queue_name_pattern;

-- Number of queues.
select count(*) as queues, count(*) + 1 as one_more from pgq.queue \gset
select set_config('pgcascade.max_queues', :'queues', false) = :'queues' as set;
do $$
begin
    perform pgq.create_queue('app_two');
exception when configuration_limit_exceeded then
    raise warning '% [%]', regexp_replace(sqlerrm, '\d+', 'N'), sqlstate;
end $$;
select pgq.create_queue('app_one');
select set_config('pgcascade.max_queues', :'one_more', false) = :'one_more' as set;
select pgq.create_queue('app_two');
begin isolation level repeatable read;
select pgq.create_queue('app_three');
rollback;
reset pgcascade.max_queues;
-- A session without rights cannot set them, nor pretend to have before the library is loaded.
create role queue_names_admin in role pgq_admin;
set role queue_names_admin;
\set VERBOSITY sqlstate
set pgcascade.max_queues = 0;
set pgcascade.queue_name_pattern = '';
\set VERBOSITY default
reset role;
drop role queue_names_admin;
select pgq.drop_queue('app_one'), pgq.drop_queue('app_two'), pgq.drop_queue('queue_names');
