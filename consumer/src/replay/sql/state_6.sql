-- Version 6 of what replay remembers: the files that `consumer execute` ran in this database, which has this on the provider,
-- too. Each is recorded in the transaction that ran it.
create table pgcascade_replay.executed (
    queue text not null,
    file text not null, -- its name, without folders
    sql text, -- null: recorded by hand
    txid bigint, -- of the transaction that ran it
    executed timestamptz not null default clock_timestamp(),
    primary key (queue, file)
);
