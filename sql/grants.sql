-- Who may do what. Nothing is executable by everybody unless it is said so here.
--
-- public looks, pgq_reader consumes, pgq_writer produces, pgq_admin makes queues and keeps them running. pgq_admin is a
-- member of the other two.

revoke all on all routines in schema pgq, pgcascade from public;

-- Tables. Administrators update pgq.queue and pgq.subscription directly.
grant select on pgq.consumer, pgq.queue, pgq.tick, pgq.subscription to public;
grant select on pgq.consumer, pgq.queue, pgq.tick, pgq.subscription, pgq.event_template to pgq_reader;
grant select, insert, update, delete
    on pgq.consumer, pgq.queue, pgq.tick, pgq.subscription, pgq.retry_queue to pgq_admin;
grant select on pgcascade.consumer_config to pgq_reader;
grant select on pgcascade.packed_queue, pgcascade.restored_queue to public;    -- pgcascade.event_source() reads them
-- Event tables get the grants of this one, see pgq.grant_perms().
grant select, insert, truncate on pgq.event_template to pgq_admin;
grant select on pgcascade.delayed_event, pgcascade.dead_letter to pgq_admin;

grant execute on function
    pgq.get_queue_info(), pgq.get_queue_info(text),
    pgq.get_consumer_info(), pgq.get_consumer_info(text), pgq.get_consumer_info(text, text),
    pgq.seq_getval(text),
    pgq.quote_fqname(text),
    pgq.version()
to public;

grant execute on function
    pgq.register_consumer(text, text),
    pgq.register_consumer_at(text, text, bigint),
    pgq.unregister_consumer(text, text),
    pgq.next_batch(text, text),
    pgq.next_batch_info(text, text),
    pgq.next_batch_custom(text, text, interval, integer, interval),
    pgq.find_tick_helper(integer, bigint, timestamptz, bigint, bigint, interval),
    pgq.get_batch_info(bigint),
    pgq.get_batch_events(bigint),
    pgq.get_batch_cursor(bigint, text, integer),
    pgq.get_batch_cursor(bigint, text, integer, text),
    pgq.batch_event_sql(bigint),
    pgq.batch_event_tables(bigint),
    pgq.finish_batch(bigint),
    pgq.event_retry(bigint, bigint, timestamptz),
    pgq.event_retry(bigint, bigint, integer),
    pgq.batch_retry(bigint, integer),
    pgq.force_tick(text),
    pgcascade.tick_event_sql(integer, bigint, bigint, integer),
    pgcascade.tick_row_sql(integer, bigint, bigint, integer),
    pgcascade.tick_sql(integer, bigint, bigint, integer, text),
    pgcascade.event_source(integer),
    pgcascade.read_caps(),
    pgcascade.event_bytes(text, text, text, text, text, text),
    pgcascade.check_read(bigint, bigint, bigint, bigint, bigint),
    pgcascade.get_batch_page(bigint, bigint, integer, bigint),
    pgcascade.rotation_blockers(),
    pgcascade.fail_event(bigint, bigint, text),
    pgcascade.set_max_retries(text, text, integer),
    pgcascade.dead_letters(text, text),
    pgcascade.retry_dead_letter(bigint),
    pgcascade.retry_dead_letters(text, text),
    pgcascade.delete_dead_letter(bigint),
    pgcascade.delete_dead_letters(text, text),
    pgcascade.setting(text),
    pgcascade.check_consumer(integer, integer),
    pgcascade.check_batch(bigint)
to pgq_reader;
grant execute on procedure pgcascade.wait_batch(text, text, interval, bigint) to pgq_reader;

grant execute on function
    pgq.insert_event(text, text, text),
    pgq.insert_event(text, text, text, text, text, text, text),
    pgq.current_event_table(text),
    pgcascade.insert_event_at(text, timestamptz, text, text, text, text, text, text),
    pgcascade.cancel_event_at(bigint),
    pgq.logutriga(),
    pgq.sqltriga(),
    pgq.jsontriga(),
    pgcascade.setting(text)
to pgq_writer;

grant execute on function
    pgq.create_queue(text),
    pgq.drop_queue(text),
    pgq.drop_queue(text, boolean),
    pgq.set_queue_config(text, text, text),
    pgq.grant_perms(text),
    pgq._grant_perms_from(text, text, text, text),
    pgq.tune_storage(text),
    pgq.upgrade_schema(),
    pgq.ticker(),
    pgq.ticker(text),
    pgq.ticker(text, bigint, timestamptz, bigint),
    pgq.maint_operations(),
    pgq.maint_rotate_tables_step1(text),
    pgq.maint_rotate_tables_step2(),
    pgq.maint_retry_events(),
    pgcascade.is_branch(text),
    pgcascade.retry_on_branch(text, integer, bigint),
    pgq.maint_tables_to_vacuum(),
    pgq.seq_setval(text, bigint),
    pgq.insert_event_raw(text, bigint, timestamptz, integer, integer, text, text, text, text, text, text),
    pgq.event_retry_raw(text, text, timestamptz, bigint, timestamptz, integer, text, text, text, text, text, text),
    pgcascade.position_bloat(),
    pgcascade.positions_bloated(),
    pgcascade.compact_positions(),
    pgcascade.queues_due(),
    pgcascade.check_restored(integer),
    pgcascade.mend_restored(),
    pgcascade.set_consumer_owner(text, text, name),
    pgcascade.deliver_delayed_events(),
    pgcascade.next_delivery()
to pgq_admin;
