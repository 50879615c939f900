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
    -- in-copy: to be copied; with a copy_snapshot it is copied in chunks, of which some may be there. catching-up: copied;
    -- events that copy_snapshot sees are in the copy, those that only copy_end_snapshot sees may be. ok: all are applied.
    state text not null check (state in ('in-copy', 'catching-up', 'ok')),
    copy_snapshot text check (case state when 'ok' then copy_snapshot is null when 'catching-up' then copy_snapshot is not null else true end),
    copy_end_snapshot text check (copy_end_snapshot is null or state = 'catching-up'),
    copied_rows bigint,
    error text, -- why the last run stopped at this table; empty again with the next batch that is applied
    updated timestamptz not null default now(),
    primary key (consumer, queue, provider_schema, provider_table),
    foreign key (consumer, queue) references pgcascade_replay.position on delete cascade
);

-- The chunks of a table that is being copied: ranges of its key. Each is marked in the transaction that stores its rows.
create table pgcascade_replay.copy_chunk (
    consumer text not null,
    queue text not null,
    provider_schema text not null,
    provider_table text not null,
    chunk integer not null,
    above text[], -- the key's values as text; null: from the first row
    upto text[], -- null: to the last row
    copied_rows bigint, -- null: not copied yet
    primary key (consumer, queue, provider_schema, provider_table, chunk),
    foreign key (consumer, queue, provider_schema, provider_table) references pgcascade_replay.table_state on delete cascade
);

-- Events of tables that are being copied, as they came, until they are applied.
create table pgcascade_replay.held_event (
    consumer text not null,
    queue text not null,
    provider_schema text not null,
    provider_table text not null,
    tick bigint not null, -- the end of the batch that they came in
    ev_id bigint not null,
    ev_txid bigint not null,
    ev_type bytea not null, -- bytes, as they are in the provider's encoding
    ev_data bytea,
    primary key (consumer, queue, provider_schema, provider_table, tick, ev_id),
    foreign key (consumer, queue, provider_schema, provider_table) references pgcascade_replay.table_state on delete cascade
);
