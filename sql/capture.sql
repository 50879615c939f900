-- Capture triggers: native functions that turn a row change into an event (pgext/src/capture).
--
-- create trigger ... after insert or update or delete on t for each row execute function pgq.logutriga('queue', ...)
-- create trigger ... after truncate on t for each statement execute function pgq.logutriga('queue', ...)
-- They differ in how ev_type and ev_data are written: URL-encoded row, partial SQL, JSON.

create function pgq.logutriga() returns trigger
language c volatile as 'MODULE_PATHNAME', 'logutriga_wrapper';

create function pgq.sqltriga() returns trigger
language c volatile as 'MODULE_PATHNAME', 'sqltriga_wrapper';

create function pgq.jsontriga() returns trigger
language c volatile as 'MODULE_PATHNAME', 'jsontriga_wrapper';

comment on function pgq.logutriga() is 'capture trigger: row changes as URL-encoded events in the queue given as first argument';
comment on function pgq.sqltriga() is 'capture trigger: row changes as partial SQL in the queue given as first argument';
comment on function pgq.jsontriga() is 'capture trigger: row changes as JSON in the queue given as first argument';
