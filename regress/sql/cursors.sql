--
-- Reading a batch through a cursor.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset null (null)
select pgq.create_queue('cursors');
update pgq.queue set queue_ticker_max_lag = '0' where queue_name = 'cursors';
select pgq.register_consumer('cursors', 'cursors_c');
select count(pgq.insert_event('cursors', 'type' || g % 2, g::text)) from generate_series(1, 6) g;
select pgq.ticker('cursors');
select pgq.next_batch('cursors', 'cursors_c') as batch \gset

-- First rows at once, the rest by FETCH.
begin;
select ev_id, ev_type, ev_data from pgq.get_batch_cursor(:batch, 'walker', 2);
fetch 1 from walker \gset f_
select :f_ev_id as ev_id, :'f_ev_data' as ev_data;
move 2 from walker;
fetch 1 from walker \gset f_
select :f_ev_id as ev_id;
fetch 1 from walker;
close walker;
-- More than there are, none, and names that need quotes.
select count(*) from pgq.get_batch_cursor(:batch, 'walker', 100);
close walker;
select count(*) from pgq.get_batch_cursor(:batch, 'walker', 0);
move all from walker;
close walker;
select count(*) from pgq.get_batch_cursor(:batch, 'Odd "name; drop', 1);
move all from "Odd ""name; drop";
close "Odd ""name; drop";
-- Only events that meet a condition.
select ev_id, ev_data from pgq.get_batch_cursor(:batch, 'walker', 2, $$ev_type = 'type1'$$);
move all from walker;
close walker;
select count(*) from pgq.get_batch_cursor(:batch, 'walker', 10, $$ev_data = '1' or ev_data = '6' -- a comment$$);
close walker;
select count(*) from pgq.get_batch_cursor(:batch, 'walker', 10, null);
close walker;
-- The condition sees the functions of the caller.
create function pg_temp.is_odd(t text) returns bool language sql as 'select t::int % 2 = 1';
create schema cursors_schema;
create function cursors_schema.is_even(t text) returns bool language sql as 'select t::int % 2 = 0';
set local search_path = cursors_schema;
select ev_data from pgq.get_batch_cursor(:batch, 'walker', 10, 'pg_temp.is_odd(ev_data) or (is_even(ev_data) and ev_data > ''4'')');
rollback;

-- Nothing is opened for a null argument.
begin;
select count(*) from pgq.get_batch_cursor(:batch, null, 2);
select count(*) from pgq.get_batch_cursor(:batch, 'walker', null);
select count(*) from pgq.get_batch_cursor(null, 'walker', 2);
select count(*) from pgq.get_batch_cursor(:batch, 'walker', null, 'true');
select count(*) from pgq.get_batch_cursor(:batch, null, 2, 'true');
select count(*) from pg_cursors where name in ('walker', '');
rollback;

-- Mistakes.
select * from pgq.get_batch_cursor(-1, 'walker', 2);
\set VERBOSITY sqlstate
select * from pgq.get_batch_cursor(:batch, 'walker', 2, 'no_such_column = 1');
select * from pgq.get_batch_cursor(:batch, 'walker', 2, '');
begin;
select count(*) from pgq.get_batch_cursor(:batch, 'walker', 2);
select count(*) from pgq.get_batch_cursor(:batch, 'walker', 2);
rollback;
\set VERBOSITY default
-- Outside of a transaction block only the first rows can be had.
select ev_id from pgq.get_batch_cursor(:batch, 'walker', 2);
fetch 1 from walker;
select pgq.drop_queue('cursors', true);
