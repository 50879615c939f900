-- Version 12 of what replay remembers on the subscriber: leaves whose events are merged into a queue of this database.
alter table pgcascade_replay.node
    add column combined_queue text, -- this database is root or branch of it
    -- False: it stands behind a branch of the combined queue, and the branch has not told yet how far it is.
    add column position_known boolean not null default true;
