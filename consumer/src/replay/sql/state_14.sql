-- Version 14 of what replay remembers on the subscriber: what a leaf keeps of the ticks that it has applied, in case that nobody else
-- has them when the root is lost; and what a leaf has promised.

-- One row per batch, without a gap between them: the last one ends at the leaf's position.
create table pgcascade_replay.journal (
    queue text not null,
    tick bigint not null, -- the end of the batch
    from_tick bigint not null, -- the end of the one before
    from_time timestamptz not null,
    ticks jsonb not null, -- each tick of the batch: tick, time, event_seq, epoch, and the provider's snapshot
    primary key (queue, tick)
);

-- The batch's events as a binary COPY of them, in parts, in the provider's encoding. Never changed, and read by nobody in most cases.
create table pgcascade_replay.journal_part (
    queue text not null,
    tick bigint not null,
    part integer not null,
    content bytea not null,
    primary key (queue, tick, part),
    foreign key (queue, tick) references pgcascade_replay.journal on delete cascade
);
alter table pgcascade_replay.journal_part alter column content set storage external;

-- On a branch that is to be the root: the ticks that it fetches from a leaf's journal, and their events, until it has applied them.
create table pgcascade_replay.donated_tick (
    queue text not null,
    tick bigint not null,
    previous bigint not null,
    tick_time timestamptz not null,
    event_seq bigint not null,
    snapshot pg_catalog.txid_snapshot not null, -- of the node that the leaf read from
    primary key (queue, tick)
);
create table pgcascade_replay.donated_event (
    queue text not null,
    tick bigint not null,
    ev_id bigint not null,
    ev_txid bigint not null,
    ev_time timestamptz not null,
    ev_type text,
    ev_data text,
    ev_extra1 text,
    ev_extra2 text,
    ev_extra3 text,
    ev_extra4 text,
    primary key (queue, tick, ev_id),
    foreign key (queue, tick) references pgcascade_replay.donated_tick on delete cascade
);

alter table pgcascade_replay.node
    add column epoch bigint not null default 1, -- the last one that it was told of
    -- Takeovers that it has promised an epoch to. While there is one, it takes no ticks.
    add column promises jsonb not null default '{}';
