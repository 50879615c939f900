-- Version 11 of what replay remembers on the subscriber: indexes that are made again when a table's copy is there, as rows go into
-- a table with few indexes faster. Nothing takes a row away but what makes the index.
create table pgcascade_replay.index_aside (
    consumer text not null,
    queue text not null,
    provider_schema text not null,
    provider_table text not null,
    index_schema text not null,
    index_name text not null,
    definition text not null, -- the statements
    primary key (consumer, queue, provider_schema, provider_table, index_schema, index_name)
);
