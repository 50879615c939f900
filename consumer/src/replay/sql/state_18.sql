-- Version 18 of what replay remembers on the subscriber: what keeps a copy waiting that is tried again.
alter table pgcascade_replay.table_state
    add column waits_for text, -- why it could not go on when it was tried last; null: it goes on
    add column waits_since timestamptz;
