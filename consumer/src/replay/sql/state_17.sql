-- Version 17 of what replay remembers on the subscriber: a TRUNCATE at one of a table's several sources is a conflict, too.
alter table pgcascade_replay.conflict
    drop constraint conflict_kind_check,
    add constraint conflict_kind_check check (kind in ('insert_exists', 'update_exists', 'update_missing', 'delete_missing', 'missing_parent',
                                                       'still_referenced', 'truncate_shared'));
