-- Version 21 of what replay remembers on the subscriber: tables without a key that are copied in chunks of blocks (places.rs).

-- The chunk is of the blocks from `above` to before `upto`, and stays until the table is ok; null: it is of a range of the key.
alter table pgcascade_replay.copy_chunk
    add column place text, -- system identifier, oid of the database and oid of the table that has the blocks, joined by colons
    add column filenode oid, -- of that table when the chunks were cut
    add column epoch bigint, -- of the provider then; 0: it is no node
    add column snapshot text, -- that the chunk was read with; null: not yet
    add check (num_nulls(place, filenode, epoch) in (0, 3)),
    add check (place is null or (copied_rows is null) = (snapshot is null));

-- Where an insert has put its row, as the capture trigger tells.
alter table pgcascade_replay.held_event add column ev_extra4 bytea;

-- Some event did not tell: the table is to be copied whole.
alter table pgcascade_replay.table_state add column copy_whole boolean not null default false;
