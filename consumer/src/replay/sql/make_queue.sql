-- Makes the queue if it is not there; one that is keeps its settings. Ours ticks at every chance, so that a committed change is on its way
-- at once, and is packed, since those who read it by the functions for that do not see it. Null: it was there.
-- $1: queue
select case when pgq.create_queue($1) = 1
       then least(pgq.set_queue_config($1, 'ticker_max_lag', '0'), pgcascade.pack_events($1, true)) end
