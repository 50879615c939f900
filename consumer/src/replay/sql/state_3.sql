-- Version 3 of what replay remembers on the subscriber: the set of tables, which `consumer table` changes.

-- Counts changes of the set: a replay that runs looks at it at each batch and at each poll.
alter table pgcascade_replay.position add column revision bigint not null default 0;

alter table pgcascade_replay.table_state
    add column only_columns text[],   -- no other columns are replayed
    add column except_columns text[], -- all columns but these are replayed
    add column row_filter text,       -- an SQL condition: the rows that are replayed
    -- The rows that the subscriber has are removed in the transaction that stores the copy.
    add column replace_rows boolean not null default false,
    -- The copy ends with making the provider's plain indexes.
    add column with_indexes boolean not null default false,
    add check (only_columns is null or except_columns is null);

-- Whether the row passes the filter, as the trigger says.
alter table pgcascade_replay.held_event add column ev_extra2 bytea;
