-- Who may do what with the limits and figures of queues: readers and monitoring see them, administrators set and enforce them.
-- Monitoring is the server's pg_monitor: it does not need a role of ours.

grant select on pgcascade.queue_config, pgcascade.dropped_consumer, pgcascade.queue_stats, pgcascade.consumer_stats
    to pgq_reader, pgq_admin, pg_monitor;
grant insert, update, delete on pgcascade.queue_config, pgcascade.dropped_consumer to pgq_admin;

grant execute on function
    pgcascade.event_bytes(text),
    pgcascade.rotation_due(pgq.queue),
    pgcascade.limits_exceeded(),
    pgcascade.rotation_blockers()
to pgq_reader, pg_monitor;

grant execute on function
    pgcascade.set_queue_limit(text, interval, bigint, text),
    pgcascade.pack_events(text, boolean),
    pgcascade.maint_queue_limit(text)
to pgq_admin;
