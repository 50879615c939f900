-- Version 4 of what replay remembers on the subscriber: what a leaf of a cascade keeps beside its position. It has no
-- extension, so this stands for pgq_node there.

-- One row per queue: this database as a leaf.
create table pgcascade_replay.node (
    queue text primary key,
    node text not null,
    worker text not null, -- its name as a consumer of its provider, and in position
    provider text not null,
    paused boolean not null default false, -- somebody wants it to pause
    uptodate boolean not null default false, -- its worker has seen the last change
    tick_time timestamptz, -- when the position's tick was made on the root
    error text
) with (fillfactor = 50); -- updated at every batch

-- Where the nodes of the cascade are, as the root's events tell.
create table pgcascade_replay.node_location (
    queue text not null,
    node text not null,
    location text not null,
    dead boolean not null default false,
    primary key (queue, node)
);
