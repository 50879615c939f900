--
-- pgq_ext: what the target remembers of ticks, batches and events.
--
\set SHOW_CONTEXT never
\pset null (null)
-- Batches: the last one is remembered, each consumer and subconsumer for itself.
select pgq_ext.is_batch_done('ext', 1), pgq_ext.set_batch_done('ext', 1), pgq_ext.is_batch_done('ext', 1);
select pgq_ext.set_batch_done('ext', 1), pgq_ext.set_batch_done('ext', 2), pgq_ext.is_batch_done('ext', 1),
       pgq_ext.is_batch_done('ext', 2);
-- An older one, after a change of provider say, counts as new.
select pgq_ext.set_batch_done('ext', 1), pgq_ext.is_batch_done('ext', 2);
select pgq_ext.is_batch_done('ext', 's', 1), pgq_ext.set_batch_done('ext', 's', 1), pgq_ext.set_batch_done('ext', 's', 1),
       pgq_ext.is_batch_done('ext', 's', 1), pgq_ext.is_batch_done('ext', '', 1), pgq_ext.is_batch_done('ext', 't', 1);
select * from pgq_ext.completed_batch order by 1, 2;

-- Events of the current batch; the first of another batch forgets them.
select pgq_ext.is_event_done('ext', 5, 1), pgq_ext.set_event_done('ext', 5, 1), pgq_ext.is_event_done('ext', 5, 1),
       pgq_ext.set_event_done('ext', 5, 1), pgq_ext.set_event_done('ext', 5, 2), pgq_ext.is_event_done('ext', 6, 1);
select pgq_ext.set_event_done('ext', 's', 5, 1), pgq_ext.set_event_done('ext', 's', 5, 1),
       pgq_ext.is_event_done('ext', 's', 5, 1), pgq_ext.is_event_done('ext', 's', 5, 2);
select * from pgq_ext.completed_event order by 1, 2, 3, 4;
select pgq_ext.set_event_done('ext', 6, 1), pgq_ext.is_event_done('ext', 5, 1), pgq_ext.is_event_done('ext', 6, 1);
select * from pgq_ext.completed_event order by 1, 2, 3, 4;
select * from pgq_ext.partial_batch order by 1, 2;
-- What rolls back is not done.
begin;
select pgq_ext.set_event_done('ext', 7, 1), pgq_ext.set_batch_done('ext', 7);
rollback;
select pgq_ext.is_event_done('ext', 7, 1), pgq_ext.is_event_done('ext', 6, 1), pgq_ext.is_batch_done('ext', 7);

-- Ticks; null forgets.
select pgq_ext.get_last_tick('ext'), pgq_ext.set_last_tick('ext', 10), pgq_ext.get_last_tick('ext');
select pgq_ext.set_last_tick('ext', 9), pgq_ext.set_last_tick('ext', 's', 1234567890123), pgq_ext.get_last_tick('ext'),
       pgq_ext.get_last_tick('ext', 's'), pgq_ext.get_last_tick('ext', '');
select pgq_ext.set_last_tick('ext', null), pgq_ext.set_last_tick('ext', null), pgq_ext.get_last_tick('ext');
select * from pgq_ext.completed_tick order by 1, 2;

-- Names are names; nulls are not.
select pgq_ext.set_batch_done(E'a.b"''\\ \u00e4', 'x,y.z', 1), pgq_ext.is_batch_done(E'a.b"''\\ \u00e4', 'x,y.z', 1),
       pgq_ext.set_batch_done('', 1);
select pgq_ext.is_batch_done(null, 1), pgq_ext.is_batch_done('ext', null), pgq_ext.is_event_done('ext', null, 1),
       pgq_ext.get_last_tick(null), pgq_ext.set_last_tick(null, null);
\set VERBOSITY sqlstate
select pgq_ext.set_batch_done(null, 1);
select pgq_ext.set_batch_done('ext', null);
select pgq_ext.set_batch_done('ext', null, 1);
select pgq_ext.set_event_done('ext', null, 1);
select pgq_ext.set_event_done('ext', 6, null);
select pgq_ext.set_last_tick(null, 1);
\set VERBOSITY default
select pgq_ext.upgrade_schema(), pgq_ext.version() = pgq.version() as version;

-- A writer may do this, a reader not; the tables are for administrators.
set role pgq_writer;
select pgq_ext.set_batch_done('ext writer', 1), pgq_ext.set_event_done('ext writer', 1, 1), pgq_ext.set_last_tick('ext writer', 1);
select count(*) from pgq_ext.completed_batch;
set role pgq_reader;
select pgq_ext.set_batch_done('ext', 1);
reset role;
delete from pgq_ext.completed_tick;
delete from pgq_ext.completed_batch;
delete from pgq_ext.completed_event;
delete from pgq_ext.partial_batch;
