-- Version 20 of what replay remembers on the subscriber: which takeovers were given up, as a leaf was told. What one of them still asks comes too
-- late. Until the next change of root.
alter table pgcascade_replay.node
    add column released text[] not null default '{}';
