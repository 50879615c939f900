-- Version 15 of what replay remembers on the subscriber: which node a table of a node is, or was last, copied from.
alter table pgcascade_replay.table_state add column copied_from text;
