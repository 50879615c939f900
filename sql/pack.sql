-- Packed queues: many events of a statement in one row of an event table.
--
-- The capture triggers of a packed queue store events of one statement that differ in id and data only as one row, a pack: its
-- ev_id is the first event's, its ev_retry how many there are, negative, its ev_data has a line for each, with how far its id is from
-- the first one's, a tab, and its data (pgext/wire/src/pack.rs). Every function that gives events gives them one by one; who
-- reads an event table itself goes through pgcascade.event_source(1). A queue is not packed unless it was told to be:
-- its tables are then as PgQ's.

-- The queues that are or were packed. Rows stay, so that what was packed is read as such for ever.
create table pgcascade.packed_queue (
    queue_id    integer     not null,
    packs       boolean     not null,   -- whether new events are packed

    constraint packed_queue_pkey primary key (queue_id),
    constraint packed_queue_queue_fkey foreign key (queue_id) references pgq.queue (queue_id) on delete cascade
);

comment on table pgcascade.packed_queue is 'queues whose event tables may have many events in one row';

select pg_catalog.pg_extension_config_dump('pgcascade.packed_queue', '');

-- pgcascade.pack_events(2)
--     Have the events of a queue packed from now on, or not any more. Returns 1.
--     Errors: no such queue; null.
--     Writes pgcascade.packed_queue. Locks the queue's row, and makes writers read it again.
create function pgcascade.pack_events(i_queue_name text, i_packs boolean) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    id integer;
begin
    if i_packs is null then
        raise exception using errcode = 'null_value_not_allowed',
            message = format('it is not said whether the events of queue %s are to be packed',
                             coalesce(quote_literal(i_queue_name), 'NULL')),
            hint = 'Give true or false.';
    end if;
    -- By this sessions that write hear of it (control_changed()), behind what is written below: all becomes visible at once.
    update pgq.queue set queue_id = queue_id where queue_name = i_queue_name returning queue_id into id;
    if not found then
        raise exception using errcode = 'undefined_object', message = 'No such event queue',
            detail = format('Queue name: %s', coalesce(quote_literal(i_queue_name), 'NULL')),
            hint = 'pgq.get_queue_info() lists the queues.';
    end if;
    insert into pgcascade.packed_queue as p (queue_id, packs) values (id, i_packs)
    on conflict (queue_id) do update set packs = excluded.packs;
    return 1;
end
$$;

-- pgcascade.event_source(1)
--     What to read a queue's events from, as SQL text that goes behind FROM and needs an alias: ctid (of the row that has the
--     event: unique in one event table; the events of a pack share it) and the columns of pgq.event_template, a row for each
--     event. The parent of its event tables, unless they may have packs; those of a queue from a dump may, until the mark is off,
--     since pg_restore may bring the queue before the row that says so (packs_unsaid()).
--     The caller's search_path does not matter. Conditions on ev_txid use the index, as they do on the table. Null if there is
--     no such queue.
--     Who reads it needs SELECT on the event tables. Text of an open batch stays right: the packs of that batch were made after
--     the queue was told to have packs, and that before the tick.
create function pgcascade.event_source(i_queue_id integer) returns text
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
    select case when exists (select from pgcascade.packed_queue p where p.queue_id = q.queue_id)
                     or exists (select from pgcascade.restored_queue r where r.queue_id = q.queue_id) then format(
               '(select s.ctid, e.ev_id, s.ev_time, s.ev_txid, s.ev_owner, e.ev_retry, s.ev_type, e.ev_data,'
               ' s.ev_extra1, s.ev_extra2, s.ev_extra3, s.ev_extra4 from %s s cross join lateral ('
               'select s.ev_id, s.ev_retry, s.ev_data where s.ev_retry is null or s.ev_retry operator(pg_catalog.>=) 0 union all '
               'select s.ev_id operator(pg_catalog.+) pg_catalog.split_part(line, E''\t'', 1)::pg_catalog.int8, null,'
               ' pg_catalog.substr(line, pg_catalog.strpos(line, E''\t'') operator(pg_catalog.+) 1)'
               ' from pg_catalog.unnest(pg_catalog.string_to_array(s.ev_data, E''\n'')) line'
               ' where s.ev_retry operator(pg_catalog.<) 0) e)',
               q.queue_data_pfx)
           else q.queue_data_pfx end
      from pgq.queue q
     where q.queue_id = i_queue_id;
end;

comment on function pgcascade.pack_events(text, boolean) is 'store events of a statement that differ in id and data only in one row, or not';
comment on function pgcascade.event_source(integer) is 'what to read the events of a queue from, one by one, as SQL text';
