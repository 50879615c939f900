-- Who may do what about takeovers and the confirm gate: readers and monitoring see them, administrators do them.

grant select on pgcascade.node_epoch, pgcascade.node_promise, pgcascade.node_release, pgcascade.epoch_history, pgcascade.takeover,
    pgcascade.takeover_tail, pgcascade.adoption,
    pgcascade.node_state
    to pgq_reader, pgq_admin, pg_monitor;

-- Lost events are contents, as those in a queue. Who has dealt with them deletes them.
grant select on pgcascade.root_return to pgq_reader, pgq_admin, pg_monitor;
grant select, delete on pgcascade.lost_event to pgq_admin;

grant select on pgcascade.confirm_gate, pgcascade.candidate, pgcascade.gate_state, pgcascade.gate_standby, pgcascade.followed_standby
    to pgq_reader, pgq_admin, pg_monitor;

grant execute on function
    pgcascade.takeover_steps(text),
    pgcascade.released_tick(pgcascade.confirm_gate),
    pgcascade.released_tick(text, text),
    pgcascade.gate_standbys()
to pgq_reader, pg_monitor;

grant execute on function
    pgcascade.promise_epoch(text, uuid, bigint, text),
    pgcascade.release_promise(text, uuid),
    pgcascade.fence_root(text, uuid, integer),
    pgcascade.learn_epochs(text, jsonb),
    pgcascade.confirm_epoch(text, uuid, jsonb),
    pgcascade.follow_root(text, uuid, jsonb, text),
    pgcascade.takeover_begin(text, text, text, bigint, text, integer, text, text[]),
    pgcascade.takeover_claim(uuid, text),
    pgcascade.takeover_without_old(uuid, text, integer, text, text[]),
    pgcascade.takeover_advance(uuid, text, text, bigint, text),
    pgcascade.takeover_fetch(uuid, text, text, jsonb),
    pgcascade.takeover_promote(uuid, text, bigint, bigint, bigint),
    pgcascade.takeover_confirmed(uuid, text, text),
    pgcascade.takeover_open(uuid, text),
    pgcascade.takeover_abort(uuid, text, text),
    pgcascade.takeover_failed(uuid, text, text),
    pgcascade.notice_promotion(),
    pgcascade.confirm_promotion(text),
    pgcascade.return_fork(text, jsonb),
    pgcascade.return_close(text, jsonb, integer),
    pgcascade.return_join(text, uuid, jsonb, bigint, text, text, jsonb),
    pgcascade.check_no_takeover(text),
    pgcascade.rename_subscriber(text, text, text, text),
    pgcascade.rename_provider(text, text, text),
    pgcascade.rename_node(text, text, text, text),
    pgcascade.adopt_node(text, text, text, text, bigint, bigint, jsonb, jsonb),
    pgcascade.adoption_end(text),
    pgcascade.adoption_lost(text),
    pgcascade.tick_digest(text, bigint),
    pgcascade.takeover_had(text, bigint),
    pgcascade.note_location(text, text, text, boolean)
to pgq_admin;

grant execute on function
    pgcascade.set_confirm_gate(text, integer),
    pgcascade.set_gate_standby(text, text, boolean),
    pgcascade.confirm_standbys(),
    pgcascade.offered_gate(text),
    pgcascade.follow_gate(text, integer, bigint, text[], bigint),
    pgcascade.register_candidate(text, text, bigint[]),
    pgcascade.other_standbys(text, text, text[])
to pgq_admin;
