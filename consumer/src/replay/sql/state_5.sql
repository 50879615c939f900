-- Version 5 of what replay remembers on the subscriber: which copy of a table it is.

-- That of the set of tables when the table was added or told to start over. A copy that began before ends nothing.
alter table pgcascade_replay.table_state add column revision bigint not null default 0;
