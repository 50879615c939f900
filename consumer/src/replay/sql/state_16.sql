-- Version 16 of what replay remembers on the subscriber: foreign keys that --create is still to make. A row goes when its key is there.
create table pgcascade_replay.foreign_key (
    consumer text not null,
    queue text not null,
    provider_schema text not null,
    provider_table text not null,
    relation_schema text not null, -- what has the key: the table, or one below it; by its name on the provider, as all here
    relation_table text not null,
    name text not null,
    columns text[] not null, -- in the order of their names
    parent_schema text not null,
    parent_table text not null,
    parent_columns text[] not null, -- in the order of `columns`
    referring text not null, -- FOREIGN KEY (...)
    referred text not null, -- what follows the name of the referenced table
    validates boolean not null, -- the provider knows that every row has its parent
    made boolean not null default false, -- it is there, and not valid yet
    error text, -- why it cannot be made, or not be valid
    primary key (consumer, queue, relation_schema, relation_table, name),
    foreign key (consumer, queue, provider_schema, provider_table) references pgcascade_replay.table_state on delete cascade
);
