-- What replay remembers on the subscriber. Run once, in one transaction, by replay's first start; any PostgreSQL will
-- do.
create schema pgcascade_replay;
comment on schema pgcascade_replay is 'positions of pgcascade''s consumers (version 1); without it they have to start over';

-- One row per consumer: the last tick whose events are applied. It changes in the transaction that applies them, and
-- nowhere else. A null tick is an intent: the consumer was about to be registered on the provider, and nothing is
-- applied yet.
create table pgcascade_replay.position (
    consumer text not null,
    queue text not null,
    provider_identity text not null, -- system identifier, database oid and queue_id of the provider, joined by colons
    epoch bigint not null default 0,
    tick bigint,
    updated timestamptz not null default now(),
    primary key (consumer, queue)
) with (fillfactor = 50); -- one row, updated at every batch: leave room for it on its page

-- One row per table and consumer.
create table pgcascade_replay.table_state (
    consumer text not null,
    queue text not null,
    provider_schema text not null,
    provider_table text not null,
    subscriber_schema text not null,
    subscriber_table text not null,
    -- in-copy: to be copied from the beginning. catching-up: copied; events that copy_snapshot sees are skipped. ok:
    -- all are applied.
    state text not null check (state in ('in-copy', 'catching-up', 'ok')),
    copy_snapshot text check ((state = 'catching-up') = (copy_snapshot is not null)),
    copied_rows bigint,
    error text, -- why the last run stopped at this table; empty again with the next batch that is applied
    updated timestamptz not null default now(),
    primary key (consumer, queue, provider_schema, provider_table),
    foreign key (consumer, queue) references pgcascade_replay.position on delete cascade
);
