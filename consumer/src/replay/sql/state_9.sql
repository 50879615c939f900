-- Version 9 of what replay remembers on the subscriber: in which database a partition's trigger was seen. Oids of one database say
-- nothing in another, and a node of a cascade can read from any.

-- System identifier and database oid, joined by a colon. Null: the partition is known by its name only.
alter table pgcascade_replay.partition add column provider text;
