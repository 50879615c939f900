-- Tables of the queue: which queues exist, who reads them, up to where.
--
-- Names, columns, types and defaults are PgQ's and are read and updated directly by clients and administrators, so
-- none of them may change. Event tables are made per queue by pgq.create_queue() and are not members of the extension.
-- What pgcascade adds lives in schema pgcascade and never here.

create schema pgq;
create schema pgcascade;

comment on schema pgq is 'queues: transactional event logs with ticks, batches and consumers (PgQ''s interface)';
comment on schema pgcascade is 'pgcascade''s own functions, beyond the interface of PgQ';

grant usage on schema pgq to public;
grant usage on schema pgcascade to public;

-- A named reader. One consumer may be subscribed to many queues.
create table pgq.consumer (
    co_id       serial,
    co_name     text        not null,

    constraint consumer_pkey primary key (co_id),
    constraint consumer_name_uq unique (co_name)
);

-- One row per queue: its settings, and which of its event tables is written now.
-- queue_switch_step1/2 are the transaction ids of the two steps of the last rotation (maint.sql).
create table pgq.queue (
    queue_id                    serial,
    queue_name                  text        not null,

    queue_ntables               integer     not null default 3,
    queue_cur_table             integer     not null default 0,
    queue_rotation_period       interval    not null default '2 hours',
    queue_switch_step1          bigint      not null default txid_current(),
    queue_switch_step2          bigint               default txid_current(),
    queue_switch_time           timestamptz not null default now(),

    queue_external_ticker       boolean     not null default false,
    queue_disable_insert        boolean     not null default false,
    queue_ticker_paused         boolean     not null default false,

    queue_ticker_max_count      integer     not null default 500,
    queue_ticker_max_lag        interval    not null default '3 seconds',
    queue_ticker_idle_period    interval    not null default '1 minute',
    queue_per_tx_limit          integer,

    queue_data_pfx              text        not null,
    queue_event_seq             text        not null,
    queue_tick_seq              text        not null,

    queue_extra_maint           text[],

    constraint queue_pkey primary key (queue_id),
    constraint queue_name_uq unique (queue_name),
    -- Functions that run as the extension's owner build statements from these names, and administrators may update this
    -- table: with other names they would run what they like with the owner's rights.
    constraint queue_names_check check (queue_data_pfx = 'pgq.event_' || queue_id::text
        and queue_event_seq = queue_data_pfx || '_id_seq' and queue_tick_seq = queue_data_pfx || '_tick_seq'),
    -- Values that would stop the ticker or rotation, of this queue or, by an overflow, of all. The other bounds are those
    -- of pgq.create_queue() and pgq.set_queue_config(), for those who UPDATE.
    constraint queue_name_is_usable check (queue_name <> '' and octet_length(queue_name) <= 2048),
    constraint queue_ntables_at_least_2 check (queue_ntables >= 2),
    constraint queue_cur_table_is_one_of_them check (queue_cur_table >= 0 and queue_cur_table < queue_ntables),
    constraint queue_rotation_period_not_negative
        check (queue_rotation_period >= interval '0' and queue_rotation_period <= interval '10000 years'),
    constraint queue_ticker_max_count_not_negative check (queue_ticker_max_count >= 0),
    constraint queue_ticker_max_lag_not_negative
        check (queue_ticker_max_lag >= interval '0' and queue_ticker_max_lag <= interval '10000 years'),
    constraint queue_ticker_idle_period_not_negative
        check (queue_ticker_idle_period >= interval '0' and queue_ticker_idle_period <= interval '10000 years'),
    constraint queue_per_tx_limit_not_negative check (queue_per_tx_limit >= 0)
);

-- A tick: a numbered snapshot. The events of a batch are those visible in one tick and not in the one before.
create table pgq.tick (
    tick_queue      integer         not null,
    tick_id         bigint          not null,
    tick_time       timestamptz     not null default now(),
    tick_snapshot   txid_snapshot   not null default txid_current_snapshot(),
    tick_event_seq  bigint          not null,

    constraint tick_pkey primary key (tick_queue, tick_id),
    constraint tick_queue_fkey foreign key (tick_queue) references pgq.queue (queue_id)
);

-- Batch ids are drawn from here; they mean something inside this database only.
create sequence pgq.batch_id_seq;

-- The position of one consumer on one queue. sub_batch and sub_next_tick are set while a batch is open.
-- sub_id is not unique: cooperating subconsumers share that of their main consumer.
create table pgq.subscription (
    sub_id          serial          not null,
    sub_queue       integer         not null,
    sub_consumer    integer         not null,
    sub_last_tick   bigint,
    sub_active      timestamptz     not null default now(),
    sub_batch       bigint,
    sub_next_tick   bigint,

    constraint subscription_pkey primary key (sub_queue, sub_consumer),
    constraint subscription_batch_idx unique (sub_batch),
    constraint sub_queue_fkey foreign key (sub_queue) references pgq.queue (queue_id),
    constraint sub_consumer_fkey foreign key (sub_consumer) references pgq.consumer (co_id)
);

-- The shape of every event table. ev_owner is set on retried events only: they are for that subscription alone.
create table pgq.event_template (
    ev_id       bigint          not null,
    ev_time     timestamptz     not null,

    ev_txid     bigint          not null default txid_current(),
    ev_owner    integer,
    ev_retry    integer,

    ev_type     text,
    ev_data     text,
    ev_extra1   text,
    ev_extra2   text,
    ev_extra3   text,
    ev_extra4   text
);

-- Events that a consumer asked to see again later. maint_retry_events() puts them back when their time has come.
create table pgq.retry_queue (
    ev_retry_after  timestamptz     not null,
    ev_queue        integer         not null,

    like pgq.event_template,

    constraint rq_pkey primary key (ev_owner, ev_id),
    constraint rq_queue_id_fkey foreign key (ev_queue) references pgq.queue (queue_id),
    -- In an event table that is a pack (pack.sql).
    constraint rq_retry_not_negative check (ev_retry >= 0)
);
alter table pgq.retry_queue alter column ev_txid drop not null;
create index rq_retry_idx on pgq.retry_queue (ev_retry_after);

comment on table pgq.consumer is 'names of consumers';
comment on table pgq.queue is 'queues and their settings; per_tx_limit, disable_insert and extra_maint are set by UPDATE';
comment on table pgq.tick is 'numbered snapshots that bound the batches of each queue';
comment on table pgq.subscription is 'position of each consumer on each queue it reads';
comment on table pgq.event_template is 'columns of all event tables';
comment on table pgq.retry_queue is 'events to be delivered again to one subscription';

-- Rows that pg_dump must save: without them a restored database would have event tables that nobody knows.
select pg_catalog.pg_extension_config_dump('pgq.queue', '');
select pg_catalog.pg_extension_config_dump('pgq.consumer', '');
select pg_catalog.pg_extension_config_dump('pgq.tick', '');
select pg_catalog.pg_extension_config_dump('pgq.subscription', '');
select pg_catalog.pg_extension_config_dump('pgq.event_template', '');
select pg_catalog.pg_extension_config_dump('pgq.retry_queue', '');
select pg_catalog.pg_extension_config_dump('pgq.batch_id_seq', '');
