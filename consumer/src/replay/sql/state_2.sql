-- Version 2 of what replay remembers on the subscriber: conflicts, parked tables, and what keeps a replay from going on.

-- A table can be broken: one of its events could not be applied, and none has been since. Its error says why.
alter table pgcascade_replay.table_state
    drop constraint table_state_state_check,
    add constraint table_state_state_check check (state in ('in-copy', 'catching-up', 'ok', 'broken'));

-- Why the last attempt to replay failed; all null again once something was applied, or nothing was left to be.
alter table pgcascade_replay.position
    add column error text,
    add column failing_since timestamptz, -- the first failure in a row
    add column attempts integer, -- how many there were
    add column next_attempt timestamptz; -- null: it gave up

-- Events that found something else than on the provider and did not stop replay, because a policy said so. Written in the
-- transaction of the batch, and never read by replay: rows may be deleted by whoever has seen them.
create table pgcascade_replay.conflict (
    id bigint generated always as identity primary key,
    consumer text not null,
    queue text not null,
    ev_id bigint not null,
    tick bigint not null, -- the end of the event's batch
    provider_schema text not null,
    provider_table text not null,
    kind text not null check (kind in ('insert_exists', 'update_exists', 'update_missing', 'delete_missing', 'missing_parent',
                                       'still_referenced')),
    policy text not null check (policy in ('skip', 'overwrite')),
    outcome text not null check (outcome in ('skipped', 'updated', 'inserted')),
    row_key text not null, -- (columns)=(values), as in PostgreSQL's own messages
    ev_type text not null,
    ev_data text, -- the event as pgq.logutriga wrote it
    reason text, -- the server's message, where there was one
    noticed timestamptz not null default pg_catalog.clock_timestamp()
);
create index on pgcascade_replay.conflict (consumer, queue, provider_schema, provider_table);
