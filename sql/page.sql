-- Reading a batch within limits: the server's cap on what one read returns, and reading in pages.
--
-- Where the cap is set, a client that would run out of memory gets an error instead of a batch; never a part of it, which
-- it would take for the whole and finish. Any client reads a batch of any size with get_batch_page().

-- pgcascade.read_caps()
--     The server's cap on one read, from the settings pgcascade.max_batch_events and max_batch_bytes; null: none.
create function pgcascade.read_caps(out max_events bigint, out max_bytes bigint) returns record
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
    select nullif(pgcascade.setting('pgcascade.max_batch_events')::bigint, 0),
           nullif(pg_size_bytes(pgcascade.setting('pgcascade.max_batch_bytes')), 0);
end;

-- pgcascade.event_bytes(6)
--     What an event counts against a cap in bytes: its texts, as the server stores them.
create function pgcascade.event_bytes(
    i_type text, i_data text, i_extra1 text, i_extra2 text, i_extra3 text, i_extra4 text
) returns bigint
language sql immutable parallel safe
return coalesce(octet_length(i_type), 0)::bigint + coalesce(octet_length(i_data), 0) + coalesce(octet_length(i_extra1), 0)
    + coalesce(octet_length(i_extra2), 0) + coalesce(octet_length(i_extra3), 0) + coalesce(octet_length(i_extra4), 0);

-- pgcascade.check_read(5)
--     Refuses a read that has come to that many events and bytes, if that is beyond the caps given.
--     Errors: program_limit_exceeded.
create function pgcascade.check_read(
    i_batch_id bigint, i_events bigint, i_bytes bigint, i_max_events bigint, i_max_bytes bigint
) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    hint constant text := format('Read it in parts with pgcascade.get_batch_page(%s, ...), or have the setting raised.', i_batch_id);
begin
    if i_events > i_max_events then
        raise exception using errcode = 'program_limit_exceeded', hint = hint,
            message = format('batch %s has more events than one read may return (pgcascade.max_batch_events = %s)',
                             i_batch_id, i_max_events);
    elsif i_bytes > i_max_bytes then
        raise exception using errcode = 'program_limit_exceeded', hint = hint,
            message = format('batch %s has more bytes than one read may return (pgcascade.max_batch_bytes = %s)',
                             i_batch_id, pgcascade.setting('pgcascade.max_batch_bytes'));
    end if;
end
$$;

-- pgcascade.get_batch_page(4)
--     The next events of an open batch, in the order of get_batch_events().
--     i_after        id of the last event of the page before; null: the first page
--     i_max_events   how many events at most; i_max_bytes: how many bytes of text; null: as many as the server's cap allows
--     Returns at least one event if there is one. Events of one id (a retried one and its original) stay together: if they are
--     more than asked, or a single event has more bytes, the page is bigger than asked. No rows: the batch is read.
--     Errors: no such batch; the consumer belongs to another role; a limit below 1.
--     Each page reads the whole batch, since nothing is indexed by event id, so pages should not be small. With a limit on
--     events it keeps no more than a page of them in mind while it sorts; with one on bytes alone it sorts all that follow.
create function pgcascade.get_batch_page(
    in i_batch_id bigint, in i_after bigint, in i_max_events integer, in i_max_bytes bigint,
    out ev_id bigint, out ev_time timestamptz, out ev_txid bigint, out ev_retry int4, out ev_type text,
    out ev_data text, out ev_extra1 text, out ev_extra2 text, out ev_extra3 text, out ev_extra4 text
) returns setof record
language plpgsql volatile
set jit = off
set search_path = pg_catalog, pg_temp
as $$
declare
    caps constant record := pgcascade.read_caps();
    max_events constant bigint := least(i_max_events, caps.max_events);
    max_bytes constant bigint := least(i_max_bytes, caps.max_bytes);
    query text;
    last_id bigint;
    events bigint := 0;
    bytes bigint := 0;
    ev record;
begin
    if i_max_events < 1 or i_max_bytes < 1 then
        raise exception using errcode = 'invalid_parameter_value',
            message = 'a page has at least one event and one byte',
            detail = format('Events: %s, bytes: %s', coalesce(i_max_events::text, 'NULL'), coalesce(i_max_bytes::text, 'NULL')),
            hint = 'Give limits of at least 1, or null for as much as the server allows.';
    end if;
    -- The next page begins after an id, so this one must have all events of its last id. One more event than asked is
    -- looked at; of its id there may be more, so that id is left to the next page, unless there is no other. (FETCH WITH
    -- TIES would do, but sorts everything.)
    query := format('select b.* from (%s) b where ($1 is null or b.ev_id > $1)', pgq.batch_event_sql(i_batch_id));
    if max_events is not null then
        query := format('with ahead as materialized (%1$s order by b.ev_id limit %2$s + 1),'
                        ' edge as materialized (select max(a.ev_id) as id, min(a.ev_id) = max(a.ev_id) as alone'
                        '                         from ahead a having count(*) > %2$s)'
                        ' select a.* from ahead a where not exists (select from edge e where e.id = a.ev_id)'
                        ' union all'
                        ' select b.* from (%1$s) b where (select e.alone from edge e) and b.ev_id = (select e.id from edge e)',
                        query, max_events);
    end if;
    for ev in execute format('select p.* from (%s) p order by p.ev_id', query) using i_after loop
        bytes := bytes + pgcascade.event_bytes(ev.ev_type, ev.ev_data, ev.ev_extra1, ev.ev_extra2, ev.ev_extra3, ev.ev_extra4);
        exit when events > 0 and bytes > max_bytes and ev.ev_id <> last_id;
        events := events + 1;
        last_id := ev.ev_id;
        ev_id := ev.ev_id;
        ev_time := ev.ev_time;
        ev_txid := ev.ev_txid;
        ev_retry := ev.ev_retry;
        ev_type := ev.ev_type;
        ev_data := ev.ev_data;
        ev_extra1 := ev.ev_extra1;
        ev_extra2 := ev.ev_extra2;
        ev_extra3 := ev.ev_extra3;
        ev_extra4 := ev.ev_extra4;
        return next;
    end loop;
end
$$;

comment on function pgcascade.read_caps() is 'the server''s cap on events and bytes of one read of a batch; null: none';
comment on function pgcascade.event_bytes(text, text, text, text, text, text) is 'what an event counts against a cap in bytes';
comment on function pgcascade.check_read(bigint, bigint, bigint, bigint, bigint) is 'refuse a read of a batch beyond the cap';
comment on function pgcascade.get_batch_page(bigint, bigint, integer, bigint) is
    'the next events of an open batch, up to a number and a size';
