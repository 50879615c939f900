-- Version 10 of what replay remembers on the subscriber: of a partitioned table each chunk is of one partition. Null: of the table itself.
alter table pgcascade_replay.copy_chunk
    add column partition_schema text,
    add column partition_table text,
    add check ((partition_schema is null) = (partition_table is null));
