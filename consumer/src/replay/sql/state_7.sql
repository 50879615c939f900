-- Version 7 of what replay remembers on the subscriber: partitions whose events are changes of the table that they are part
-- of, also those that are gone, as their events may still come.
create table pgcascade_replay.partition (
    consumer text not null,
    queue text not null,
    provider_schema text not null,
    provider_table text not null,
    partition_schema text not null,
    partition_table text not null,
    partition_rows text, -- the condition for its rows; null where it cannot be said: a hash decides
    clone oid,           -- the capture trigger that came from the table above; another one if it was taken out and put back
    primary key (consumer, queue, provider_schema, provider_table, partition_schema, partition_table),
    foreign key (consumer, queue, provider_schema, provider_table) references pgcascade_replay.table_state on delete cascade
);

-- The table's name as the event has it: that of a partition, where the table has some. Null: the table's own.
alter table pgcascade_replay.held_event add column ev_extra1 bytea;
