-- Waiting for a batch, without asking again and again (pgext/src/wait.rs).

-- pgcascade.wake_waiters(1)
--     Once this transaction commits, those who wait for a batch of a queue look again. Called by whatever may give a
--     consumer a batch, or take its subscription away.
create function pgcascade.wake_waiters(i_queue_id integer) returns void
language c volatile strict as 'MODULE_PATHNAME', 'wake_waiters_wrapper';

-- pgcascade.wait_batch(4)
--     A procedure: wait until a consumer has a batch, and open it, as pgq.next_batch() does. Returns at once when
--     one is open; of two sessions that wait for one consumer, both get the same.
--     timeout    how long to wait; zero or less: look once; null: for ever
--     batch_id   the batch; null when the time is over
--     Errors: those of pgq.next_batch(), also when the queue or the subscription goes meanwhile; called in a transaction
--     block, a function or below an EXCEPTION clause, because it commits first.
--     Writes pgq.subscription. While it waits it has no transaction id, no snapshot and no lock. It is woken by the commit of
--     a tick; where the library is not preloaded it looks every 0.1 seconds instead.
create procedure pgcascade.wait_batch(
    queue_name text, consumer_name text, timeout interval, inout batch_id bigint default null
)
language c as 'MODULE_PATHNAME', 'wait_batch_wrapper';

comment on function pgcascade.wake_waiters(integer) is 'those who wait for a batch of a queue look again, once this commits';
comment on procedure pgcascade.wait_batch(text, text, interval, bigint) is
    'wait until a consumer has a batch and open it; null when the time is over';
