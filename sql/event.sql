-- Putting events into queues: the native functions of library pgcascade (pgext/src/insert.rs).
--
-- Each event gets the next event id and the transaction id of the caller, and goes into the queue's current event
-- table inside the caller's transaction. pgq.insert_event(7) may be replaced by CREATE OR REPLACE FUNCTION: the capture
-- triggers then call the replacement.

-- pgq.insert_event(3) and (7)
--     Insert one event. Returns its id.
--     Errors: no such queue, inserts disabled (unless session_replication_role is replica), queue_per_tx_limit reached.
create function pgq.insert_event(queue_name text, ev_type text, ev_data text) returns bigint
language c volatile as 'MODULE_PATHNAME', 'insert_event_wrapper';

create function pgq.insert_event(
    queue_name text, ev_type text, ev_data text,
    ev_extra1 text, ev_extra2 text, ev_extra3 text, ev_extra4 text
) returns bigint
language c volatile as 'MODULE_PATHNAME', 'insert_event_wrapper';

-- pgq.insert_event_raw(11)
--     Insert one event with id, time, owner and retry count given; a null id is drawn from the sequence, a null time is
--     now(). An id is drawn even when one is given, so that the ticker sees that there is something new.
--     Errors: those of insert_event(); a negative retry count.
create function pgq.insert_event_raw(
    queue_name text, ev_id bigint, ev_time timestamptz, ev_owner integer, ev_retry integer,
    ev_type text, ev_data text,
    ev_extra1 text, ev_extra2 text, ev_extra3 text, ev_extra4 text
) returns bigint
language c volatile as 'MODULE_PATHNAME', 'insert_event_raw_wrapper';

-- pgq.current_event_table(1)
--     The table that takes events of a queue now, for direct INSERT or COPY in the same transaction.
create function pgq.current_event_table(x_queue_name text) returns text
language c volatile as 'MODULE_PATHNAME', 'current_event_table_wrapper';

comment on function pgq.insert_event(text, text, text) is 'insert an event into a queue; returns its id';
comment on function pgq.insert_event(text, text, text, text, text, text, text) is
    'insert an event with extra fields into a queue; returns its id';
comment on function pgq.insert_event_raw(text, bigint, timestamptz, integer, integer, text, text, text, text, text, text) is
    'insert an event with id, time, owner and retry count given; returns its id';
comment on function pgq.current_event_table(text) is 'event table to COPY or INSERT into, for this transaction only';
