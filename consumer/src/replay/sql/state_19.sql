-- Version 19 of what replay remembers on the subscriber: rows that had to make way for others during their table's copy (displaced.rs).
create table pgcascade_replay.displaced_row (
    id bigint generated always as identity primary key,
    table_schema text not null,
    table_name text not null,
    key text[] not null, -- the columns of the provider's primary key
    row text not null, -- the whole row, as a composite value
    at timestamptz not null default pg_catalog.clock_timestamp(),
    told boolean not null default false -- it did not come back, and replay has said so
);
create index displaced_row_key_idx on pgcascade_replay.displaced_row (table_schema, table_name, key) where not told;
