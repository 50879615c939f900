-- Version 8 of what replay remembers on the subscriber: which database a node was replayed in last, so that a copy of it is told
-- from the node.
alter table pgcascade_replay.position add column home text; -- system identifier and database oid
