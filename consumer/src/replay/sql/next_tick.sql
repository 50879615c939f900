-- Opens the next batch, or returns the one that is open: up to the next tick, and no further.
-- $1: queue, $2: consumer, $3: not used
select b.batch_id, b.prev_tick_id, b.cur_tick_id from pgq.next_batch_info($1, $2) b where b.batch_id is not null and $3::int4 is not null
