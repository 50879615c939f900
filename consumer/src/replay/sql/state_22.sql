-- Version 22 of what replay remembers on the subscriber: which partition a chunk of a range of the key is of, whatever its name.

alter table pgcascade_replay.copy_chunk
    add column partition_place text; -- system identifier, oid of the database and oid of the partition, joined by colons; null: not known
