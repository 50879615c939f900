-- Version 13 of what replay remembers on the subscriber: where administrators reach the nodes of a cascade, if not where replay does.
alter table pgcascade_replay.node_location add column admin_location text;
