-- The native functions once more, in PL/pgSQL: the specification of what the library does, and a replacement for it.
--
-- Not part of the extension's script. A superuser loads it into a database that has the extension, with
-- psql -f "$(pg_config --sharedir)/extension/pgcascade.plain.sql", and goes back with pgcascade.native.sql beside it
-- (docs/plain.md). It replaces every function that is written in C by one with the same results, errors and rules, on
-- the same tables. regress/golden runs the cases and specs of the native functions on these as well.
--
-- What they rest on, as the native ones do (docs/concurrency.md): a writer has a transaction id first, then locks the
-- queue's parent event table to the end of its transaction, and only then believes what it reads of the control row,
-- which must be read with a fresh snapshot. A SELECT in a REPEATABLE READ transaction has none. But the system catalogs
-- are looked up fresh at every isolation level, so each control row has a copy there: a function without arguments
-- that returns it (pgcascade.plain_control_HASH). The trigger on pgq.queue writes it anew with each change of the row, and
-- the message that tells sessions of a changed function is sent, and read, at the same moments as that about a changed table.

\set ON_ERROR_STOP on
begin;
set local client_min_messages = warning;
set local search_path = pg_catalog, pg_temp;

-- Sessions that go on with the native functions until their transaction ends forget their cached control rows.
update pgq.queue set queue_id = queue_id;

-- Expressions of triggers run as this role, which nobody is a member of. What it may do everybody may who may make a
-- trigger that captures.
do $role$
begin
    if to_regrole('pgcascade_expression') is null then
        create role pgcascade_expression nologin;
    end if;
    grant pgq_writer to pgcascade_expression;
end
$role$;

---------------------------------------------------------------------------------------------------------------------------
-- The control row

-- pgcascade.control_changed()
--     Trigger on pgq.queue. Writes the functions that plain_control() reads, in the transaction that changes the row, whose
--     lock keeps two of us from writing one function at once. They are members of the extension, so that pg_dump leaves
--     them out.
create or replace function pgcascade.control_changed() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    old_reader text;
    new_reader text;
begin
    if tg_op <> 'INSERT' then
        old_reader := pgcascade.plain_reader(old.queue_name);
    end if;
    if tg_op <> 'DELETE' then
        new_reader := pgcascade.plain_reader(new.queue_name);
    end if;
    if old_reader is distinct from new_reader and to_regprocedure(old_reader) is not null then
        execute 'alter extension pgcascade drop function ' || old_reader;
        execute 'drop function ' || old_reader;
    end if;
    if new_reader is null then
        return null;
    end if;

    execute format('create or replace function %s'
                   '     returns table (queue_name text, parent text, event_table text, sequence text, closed boolean,'
                   '                    per_tx_limit integer)'
                   ' language sql immutable as %L',
                   new_reader,
                   format('select %L::pg_catalog.text, %L::pg_catalog.text, %L::pg_catalog.text, %L::pg_catalog.text,'
                          ' %L::pg_catalog.bool, %L::pg_catalog.int4',
                          new.queue_name, new.queue_data_pfx, new.queue_data_pfx || '_' || new.queue_cur_table,
                          new.queue_event_seq, new.queue_disable_insert, new.queue_per_tx_limit));
    if new_reader is distinct from old_reader or not exists (
        select from pg_depend
         where classid = 'pg_proc'::regclass and objid = to_regprocedure(new_reader) and deptype = 'e')
    then
        execute format('revoke all on function %s from public', new_reader);
        execute format('alter extension pgcascade add function %s', new_reader);
    end if;
    return null;
end
$$;

-- pgcascade.plain_reader(1)
--     The function that returns the control row of a queue, as SQL writes it. Names of queues are too long for names of
--     functions.
create function pgcascade.plain_reader(i_queue_name text) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
return 'pgcascade.plain_control_' || md5(i_queue_name) || '()';

-- pgcascade.plain_control(1)
--     The control row of a queue as it was last committed, or as this transaction has changed it, at every isolation level;
--     all null if there is no such queue.
create function pgcascade.plain_control(
    i_queue_name text,
    out queue_name text, out parent text, out event_table text, out sequence text, out closed boolean,
    out per_tx_limit integer
) returns record
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    reader constant text := pgcascade.plain_reader(i_queue_name);
begin
    if to_regprocedure(reader) is not null then
        execute 'select * from ' || reader
           into queue_name, parent, event_table, sequence, closed, per_tx_limit;
    end if;
end
$$;

-- pgcascade.plain_for_writing(1)
--     The control row of a queue for one who is going to write events: transaction id, lock, control row, in that order.
--     All null if there is no such queue. Does not look at closed and per_tx_limit, except that closed is made false in
--     sessions that replicate.
--     Errors: the queue comes from a dump and is not settled; a relation of it is missing; its event sequence hands out ids in
--     blocks.
--     Assigns a transaction id; locks the parent table ROW EXCLUSIVE.
create function pgcascade.plain_for_writing(
    i_queue_name text,
    out queue_name text, out parent text, out event_table text, out sequence text, out closed boolean,
    out per_tx_limit integer
) returns record
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    to_lock text;
    relation text;
    cache bigint;
begin
    perform txid_current();
    loop
        to_lock := (pgcascade.plain_control(i_queue_name)).parent;
        exit when to_lock is null;
        if to_regclass(to_lock) is not null then
            begin
                execute format('lock table only %s in row exclusive mode', to_lock);
            exception when undefined_table then
                -- Dropped while we waited, and the control row with it.
                continue;
            end;
        end if;
        select c.* into queue_name, parent, event_table, sequence, closed, per_tx_limit
          from pgcascade.plain_control(i_queue_name) c;
        -- Another one if the queue was dropped and made again while we waited.
        exit when parent = to_lock;
    end loop;
    if queue_name is null then
        return;
    end if;

    -- A mark is set together with the queue's row and only ever taken off, so any snapshot will do.
    if exists (select from pgcascade.restored_queue r where parent = 'pgq.event_' || r.queue_id) then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('queue ''%s'' was restored from a dump and takes no events yet', queue_name),
            hint = 'The ticker clears it within a second after the restore, or says in the server''s log what is wrong with it. '
                   'Where no ticker runs, or where it says so, run SELECT pgcascade.mend_restored().';
    end if;
    if not closed and exists (select from pgcascade.node_epoch e
                               where e.queue_name = plain_for_writing.queue_name and e.system_id is not null
                                 and (e.system_id, e.timeline) is distinct from
                                     ((select c.system_identifier::text from pg_control_system() c), pgcascade.current_timeline()))
    then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('the root of queue ''%s'' was promoted outside takeover and takes no events yet', queue_name),
            hint = 'Make it the root: consumer takeover NODE --promoted-standby. docs/takeover.md says what else can be done.';
    end if;
    foreach relation in array array[parent, event_table, sequence] loop
        if to_regclass(relation) is null then
            raise exception using errcode = 'undefined_table',
                message = format('relation %s of queue ''%s'' does not exist', relation, queue_name),
                hint = 'Restore it, or drop the queue with pgq.drop_queue() and create it again.';
        end if;
    end loop;
    -- A sequence that hands out blocks would put a later change of a row before an earlier one of another session.
    cache := (pg_sequence_parameters(sequence::regclass)).cache_size;
    if cache <> 1 then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('the event sequence of queue ''%s'' has CACHE %s, which would reorder events', queue_name, cache),
            hint = 'Set it back with ALTER SEQUENCE ... CACHE 1 (its name is queue_event_seq in pgq.queue).';
    end if;
    closed := closed and current_setting('session_replication_role') <> 'replica';
end
$$;

-- pgcascade.plain_refuse(2), plain_no_queue(2)
--     The errors of a queue that is closed, and of one that does not exist.
create function pgcascade.plain_refuse(i_message text, i_queue_name text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception using errcode = 'object_not_in_prerequisite_state', message = i_message,
        hint = format('Queue ''%s'' has queue_disable_insert set: write at the root of its cascade, or clear the flag in pgq.queue.',
                      i_queue_name);
end
$$;

create function pgcascade.plain_no_queue(i_message text, i_queue_name text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception using errcode = 'undefined_object', message = i_message,
        hint = format('There is no queue ''%s'': create it with pgq.create_queue(), or correct the name.', i_queue_name);
end
$$;

---------------------------------------------------------------------------------------------------------------------------
-- Events (event.sql)

-- The limit counts what this transaction has in the queue, so events that a ROLLBACK TO SAVEPOINT took back, which
-- the native function still counts, do not count.
create or replace function pgq.insert_event_raw(
    queue_name text, ev_id bigint, ev_time timestamptz, ev_owner integer, ev_retry integer,
    ev_type text, ev_data text,
    ev_extra1 text, ev_extra2 text, ev_extra3 text, ev_extra4 text
) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    q record;
    next_id bigint;
    inserted bigint;
begin
    if queue_name is null then
        raise exception using errcode = 'null_value_not_allowed', message = 'Queue name must not be NULL',
            hint = 'Give the name of a queue.';
    end if;
    q := pgcascade.plain_for_writing(queue_name);
    if q.parent is null then
        perform pgcascade.plain_no_queue('No such queue', queue_name);
    end if;
    if q.closed then
        perform pgcascade.plain_refuse('Insert into queue disallowed', queue_name);
    end if;
    perform pgcascade.check_retried(queue_name, ev_retry);
    if q.per_tx_limit is not null then
        execute format('select count(*) from %s where ev_txid = txid_current()', q.parent) into inserted;
        if inserted >= q.per_tx_limit then
            raise exception using errcode = 'program_limit_exceeded',
                message = format('Queue ''%s'' allows max %s events from one TX', queue_name, q.per_tx_limit),
                hint = 'Write in smaller transactions, or raise queue_per_tx_limit in pgq.queue.';
        end if;
    end if;

    -- Drawn even if the event brings its id: the ticker sees by this sequence that there is something to tick.
    next_id := nextval(q.sequence::regclass);
    next_id := coalesce(ev_id, next_id);
    execute format('insert into %s (ev_id, ev_time, ev_txid, ev_owner, ev_retry, ev_type, ev_data, ev_extra1, ev_extra2,'
                   ' ev_extra3, ev_extra4) values ($1, $2, txid_current(), $3, $4, $5, $6, $7, $8, $9, $10)', q.event_table)
      using next_id, coalesce(ev_time, now()), ev_owner, ev_retry, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3,
            ev_extra4;
    return next_id;
end
$$;

create or replace function pgq.insert_event(
    queue_name text, ev_type text, ev_data text,
    ev_extra1 text, ev_extra2 text, ev_extra3 text, ev_extra4 text
) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return pgq.insert_event_raw(queue_name, null, null, null, null, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4);
end
$$;

-- By the form with seven arguments, which users may replace.
create or replace function pgq.insert_event(queue_name text, ev_type text, ev_data text) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if queue_name is null then
        raise exception using errcode = 'null_value_not_allowed', message = 'Queue name must not be NULL',
            hint = 'Give the name of a queue.';
    end if;
    return pgq.insert_event(queue_name, ev_type, ev_data, null, null, null, null);
end
$$;

create or replace function pgq.current_event_table(x_queue_name text) returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    q record;
begin
    q := pgcascade.plain_for_writing(x_queue_name);
    if q.parent is null then
        perform pgcascade.plain_no_queue('Event queue not found', coalesce(x_queue_name, ''));
    end if;
    if q.closed then
        perform pgcascade.plain_refuse('Writing to queue disabled', x_queue_name);
    end if;
    return q.event_table;
end
$$;

---------------------------------------------------------------------------------------------------------------------------
-- The ticker's locks, settings (pgcascade.sql, setting.sql)

-- A holder of a lock that SHARE conflicts with, as the native function asks for. Prepared transactions are in this view too.
create or replace function pgcascade.has_writers(i_events regclass) returns boolean
language sql volatile strict
set search_path = pg_catalog, pg_temp
return exists (
    select from pg_locks
     where locktype = 'relation' and relation = i_events and granted and pid is distinct from pg_backend_pid()
       and database = (select oid from pg_database where datname = current_database())
       and mode in ('RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
                    'AccessExclusiveLock'));

-- The native lock is on a part of the extension and cannot be taken in SQL. This one, on the parent event table, conflicts
-- with itself and with nothing that writers, readers and rotations take. Ids that are no queue's are locks for other things
-- (queue.sql, delayed.sql), which have the template of the event tables between them.
create or replace function pgcascade.lock_queue(i_queue_id integer) returns void
language plpgsql volatile strict
set search_path = pg_catalog, pg_temp
as $$
begin
    if i_queue_id < 1 then
        lock table only pgq.event_template in share update exclusive mode;
    elsif to_regclass('pgq.event_' || i_queue_id) is not null then
        execute format('lock table only pgq.event_%s in share update exclusive mode', i_queue_id);
    end if;
exception when undefined_table then
    null;   -- dropped while we waited; our callers look again
end
$$;

-- The settings are the library's: without it they are mere placeholders, which anybody may set to anything.
create or replace function pgcascade.setting(i_name text) returns text
language plpgsql stable strict security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform pgcascade.plain_load();
    if i_name not like 'pgcascade.%' or not exists (select from pg_settings where lower(name) = lower(i_name)) then
        raise exception using errcode = 'undefined_object',
            message = format('"%s" is not a setting of pgcascade', i_name),
            hint = 'SELECT name FROM pg_settings WHERE name LIKE ''pgcascade.%'' lists them.';
    end if;
    return current_setting(i_name);
end
$$;

-- pgcascade.plain_load()
--     Loads the library, if this session has not done so: that defines the settings, and drops values that who set them had
--     no right to.
create function pgcascade.plain_load() returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    load '$libdir/pgcascade';
end
$$;

-- The launcher looks for new databases by itself, and the ticker for new events: both a little later than when woken.
create or replace function pgcascade.wake_launcher() returns void
language sql
set search_path = pg_catalog, pg_temp
begin atomic
end;

---------------------------------------------------------------------------------------------------------------------------
-- Waiting for a batch, and delayed events (wait.sql, delayed.sql)

-- Nobody is woken: the ticker looks once a second, and wait_batch() ten times a second.
create or replace function pgcascade.wake_waiters(i_queue_id integer) returns void
language sql volatile strict
set search_path = pg_catalog, pg_temp
begin atomic
end;

create or replace function pgcascade.wake_ticker() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    return null;
end
$$;

-- A procedure that commits cannot have a search_path of its own. Called where it cannot commit it fails with PL/pgSQL's error.
create or replace procedure pgcascade.wait_batch(
    queue_name text, consumer_name text, timeout interval, inout batch_id bigint default null
)
language plpgsql
as $$
declare
    began constant timestamptz := pg_catalog.clock_timestamp();
begin
    loop
        commit;
        select n.batch_id into wait_batch.batch_id
          from pgq.next_batch_custom(wait_batch.queue_name, wait_batch.consumer_name, null, null, null) n;
        exit when wait_batch.batch_id is not null
              or pg_catalog.clock_timestamp() operator(pg_catalog.-) began operator(pg_catalog.>=) timeout;
        commit;
        perform pg_catalog.pg_sleep(0.1);
    end loop;
end
$$;

---------------------------------------------------------------------------------------------------------------------------
-- Hints for event_retry (retry.sql): nothing is remembered, so every event is looked for in its batch

create or replace function pgcascade.recall_event(i_batch_id bigint, i_event_id bigint) returns tid
language sql volatile strict
set search_path = pg_catalog, pg_temp
return null::tid;

create or replace function pgcascade.recall_wanted(i_batch_id bigint) returns boolean
language sql volatile strict
set search_path = pg_catalog, pg_temp
return false;

create or replace function pgcascade.remember_event(i_batch_id bigint, i_event_id bigint, i_place tid) returns boolean
language sql volatile strict
set search_path = pg_catalog, pg_temp
return true;

---------------------------------------------------------------------------------------------------------------------------
-- Compaction (compact.sql): rows that every snapshot sees cannot be written from here, so positions are left as they are

create or replace function pgcascade.put_frozen(i_table regclass, i_row record) returns void
language plpgsql volatile strict
set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception using errcode = 'feature_not_supported',
        message = 'the plain version cannot store rows that every snapshot sees',
        hint = 'Go back to the native functions with pgcascade.native.sql.';
end
$$;

---------------------------------------------------------------------------------------------------------------------------
-- Names and values as text (pgext/wire)

-- pgcascade.plain_name(1)
--     A name as event types and ev_extra1 have it: quoted if it could be misread.
create function pgcascade.plain_name(i_name text) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
return case when i_name = '' or i_name ~ '[.,":]' then '"' || replace(i_name, '"', '""') || '"' else i_name end;

-- pgcascade.plain_names(1)
--     The names in a list between commas, quoted as by plain_name(); a list that does not read as such is split at its
--     commas and taken literally.
create function pgcascade.plain_names(i_list text) returns text[]
language sql immutable
set search_path = pg_catalog, pg_temp
return case
    when i_list ~ '^("([^"]|"")*"|[^",]+)(,("([^"]|"")*"|[^",]+))*$' then array(
        select case when one[1] like '"%' then replace(substr(one[1], 2, length(one[1]) - 2), '""', '"') else one[1] end
          from regexp_matches(i_list, '"(?:[^"]|"")*"|[^",]+', 'g') with ordinality m (one, position)
         order by position)
    else string_to_array(i_list, ',')
end;

-- pgcascade.plain_url(1)
--     URL-encoded, byte by byte of the server's encoding: letters, digits and _ . - as they are, a space as +, all else
--     %xx. Done in runs of bytes that need it and runs that do not.
create function pgcascade.plain_url(i_text text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return case
    when i_text ~ '[^0-9A-Za-z_.-]' then (
        select string_agg(
                   case when run[1] ~ '^[0-9A-Za-z_.-]' then run[1]
                        else replace(regexp_replace(encode(convert_to(run[1], getdatabaseencoding()), 'hex'), '..', '%\&', 'g'),
                                     '%20', '+')
                   end, '' order by position)
          from regexp_matches(i_text, '[0-9A-Za-z_.-]+|[^0-9A-Za-z_.-]+', 'g') with ordinality m (run, position))
    else i_text
end;

-- pgcascade.plain_event_type(5)
--     The text of ev_type. i_format: url, sql or json.
create function pgcascade.plain_event_type(
    i_format text, i_operation text, i_schema text, i_table text, i_key text[]
) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return case
    when i_format = 'json' then
        format('{"op":%s,"table":[%s,%s],"pkey":[%s]}', to_json(i_operation), to_json(i_schema), to_json(i_table),
               (select string_agg(to_json(k.name)::text, ',' order by k.position)
                  from unnest(i_key) with ordinality k (name, position)))
    when i_operation = 'TRUNCATE' then 'R'
    when i_format = 'sql' then left(i_operation, 1)
    else left(i_operation, 1) || ':' || coalesce(
        (select string_agg(pgcascade.plain_name(k.name), ',' order by k.position)
           from unnest(i_key) with ordinality k (name, position)), '')
end;

---------------------------------------------------------------------------------------------------------------------------
-- Capture triggers (capture.sql)

-- pgcascade.plain_arguments(2)
--     The arguments of a trigger. Keywords are exact; of two that are the same the last one counts.
--     Errors: no queue, an argument that is not known, one that makes no sense for TRUNCATE.
create function pgcascade.plain_arguments(
    i_operation text, i_arguments text[],
    out queue text, out skip boolean, out backup boolean, out deny boolean, out place boolean,
    out ignore text[], out pkey text[], out condition text,
    out fields text[]     -- expressions for ev_type, ev_data, ev_extra1 .. ev_extra4; null: not given
) returns record
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
    names constant text[] := '{ev_type,ev_data,ev_extra1,ev_extra2,ev_extra3,ev_extra4}';
    argument text;
    name text;
    value text;
    wrong text;
begin
    skip := false;
    backup := false;
    deny := false;
    place := false;
    fields := array_fill(null::text, '{6}');
    foreach argument in array coalesce(i_arguments, '{}') loop
        name := split_part(argument, '=', 1);
        value := substr(argument, length(name) + 2);
        if queue is null then
            queue := argument;
        elsif argument = 'SKIP' then
            skip := true;
        elsif argument = 'backup' then
            backup := true;
        elsif argument = 'deny' then
            deny := true;
        elsif argument = 'place' then
            place := true;
        elsif argument = name then
            wrong := coalesce(wrong, argument);
        elsif name = 'ignore' then
            ignore := pgcascade.plain_names(value);
        elsif name = 'pkey' then
            pkey := pgcascade.plain_names(value);
        elsif name = 'when' then
            condition := value;
        elsif name = any (names) then
            fields[array_position(names, name)] := value;
        else
            wrong := coalesce(wrong, argument);
        end if;
    end loop;
    if queue is null then
        raise exception using errcode = 'invalid_parameter_value',
            message = 'pgq trigger must have destination queue as argument',
            hint = 'Create the trigger with EXECUTE FUNCTION ...(''queue name'').';
    elsif wrong is not null then
        raise exception using errcode = 'invalid_parameter_value', message = 'bad param to pgq trigger',
            hint = format('''%s'' is not known: use SKIP, backup, deny, place, ignore=, pkey=, when=, ev_type=, ev_data= or '
                          'ev_extra1= to ev_extra4=.', wrong);
    end if;

    if i_operation = 'TRUNCATE' then
        wrong := case
            when ignore is not null then 'Column ignore does not make sense for truncate trigger'
            when pkey is not null then 'Custom pkey_list does not make sense for truncate trigger'
            when backup then 'Backup does not make sense for truncate trigger'
            when place then 'Place does not make sense for truncate trigger'
            -- The typing error is upstream's; programs may look for it.
            when condition is not null or num_nonnulls(variadic fields) > 0 then
                'Custom expressions do not make sense for truncater trigger'
        end;
        if wrong is not null then
            raise exception using errcode = 'invalid_parameter_value', message = wrong,
                hint = 'Make a trigger of its own for TRUNCATE, without this argument.';
        end if;
    end if;
end
$$;

-- pgcascade.plain_columns(3)
--     The columns of a table that a trigger has to do with, in the table's order, and its primary key in the key's order.
--     A virtual generated column has no value in the row, so it is none.
--     Errors: a REPEATABLE READ transaction sees the table as it was before a change; it must be run again.
create function pgcascade.plain_columns(
    i_table oid, i_schema text, i_name text, out names text[], out types oid[], out key text[]
) returns record
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    fresh text[];
    known text[];
begin
    -- As text: 'v' is a kind of its own from PostgreSQL 18 on.
    select coalesce(array_agg(a.attname::text order by a.attnum) filter (where a.attgenerated <> 'v'), '{}'),
           coalesce(array_agg(a.atttypid order by a.attnum) filter (where a.attgenerated <> 'v'), '{}'),
           coalesce(array_agg(a.attname::text order by a.attnum), '{}')
      into names, types, known
      from pg_attribute a
     where a.attrelid = i_table and a.attnum > 0 and not a.attisdropped;
    select coalesce(array_agg(a.attname::text order by k.position), '{}') into key
      from pg_index i
     cross join unnest(i.indkey::int2[]) with ordinality k (number, position)
      join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.number
     where i.indrelid = i_table and i.indisprimary and k.position <= i.indnkeyatts;

    -- The row has the columns of now, whatever the snapshot shows; the server reads names in a statement as of now, too.
    if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
        execute format('select array(select json_object_keys(row_to_json(r)) from (select (null::%I.%I).*) r)', i_schema, i_name)
           into fresh;
        if fresh <> known then
            raise exception using errcode = 'serialization_failure',
                message = format('table %I.%I was altered after this transaction took its snapshot', i_schema, i_name),
                hint = 'Run the transaction again.';
        end if;
    end if;
end
$$;

-- pgcascade.plain_value(4)
--     The value of an expression over the columns of a row, as text, and its type. Runs with the rights of its owner,
--     pgcascade_expression, and under the settings of the caller.
--     Columns are seen by name as SQL does; one with capital letters also without quotes, unless that would be another.
--     Errors: those of the expression; it has not exactly one value.
create function pgcascade.plain_value(
    i_expression text, i_names text[], i_row anyelement, out value text, out type oid
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    columns text;
    query text;
    found_rows bigint;
begin
    if i_expression ~ '^\s*$' then
        return;
    end if;
    -- Only columns that the text mentions: of a text that mentions none, a $1 is nobody's.
    select ' from (select ' || string_agg(
               format('($1).%I as "%s"', n.name, replace(s.seen, '"', '""')), ', ' order by n.position, s.seen <> n.name)
               || ') as "row"'
      into columns
      from unnest(i_names) with ordinality n (name, position)
     cross join lateral (select n.name as seen
                         union
                         select lower(n.name collate "C") where lower(n.name collate "C") <> all (i_names)) s
     where strpos(lower(i_expression collate "C"), lower(replace(n.name, '"', '""') collate "C")) > 0;
    -- The line end closes a comment at the end of the text.
    query := format(E'select case num_nulls(v) when 0 then concat(v) end, pg_typeof(v)::oid from (select (%s\n)%s) as x (v)',
                    i_expression, columns);
    if columns is null then
        execute query into value, type;
    else
        execute query into value, type using i_row;
    end if;
    get diagnostics found_rows = row_count;
    if found_rows <> 1 then
        raise exception using errcode = 'cardinality_violation',
            message = format('Expect 1 row from override query, got %s', found_rows),
            hint = 'Write the expression of the trigger argument so that it has one value.';
    end if;
end
$$;

-- pgcascade.plain_texts(5)
--     Two versions of a row as text: each column by its type's output function; for JSON each as a JSON value instead, in
--     which booleans and integers are native, dates and times in ISO form, all else is a string. And which columns differ
--     to the bit: a numeric 1.50 that becomes 1.5 has changed.
create function pgcascade.plain_texts(
    i_format text, i_names text[], i_types oid[], i_old anyelement, i_new anyelement,
    out old_texts text[], out new_texts text[], out old_json text[], out new_json text[], out differ boolean[]
) returns record
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    texts text[];     -- of the old row, of the new row
    jsons text[];
    differences text;
begin
    -- num_nulls() because a composite value of nulls IS NULL; concat() because a cast may be the user's.
    select array_agg(e.texts order by e.parameter), array_agg(e.jsons order by e.parameter)
      into texts, jsons
      from (
        select p.parameter,
               string_agg(format('case num_nulls(($%1$s).%2$I) when 0 then concat(($%1$s).%2$I) end', p.parameter, c.name),
                          ', ' order by c.position) filter (where c.name is not null) as texts,
               string_agg(format(
                   case when c.type in ('bool'::regtype, 'int2'::regtype, 'int4'::regtype, 'int8'::regtype)
                            then '($%1$s).%2$I::text'
                        when c.type in ('date'::regtype, 'timestamp'::regtype, 'timestamptz'::regtype)
                            then 'to_json(($%1$s).%2$I)::text'
                        else 'case num_nulls(($%1$s).%2$I) when 0 then to_json(concat(($%1$s).%2$I))::text end'
                   end, p.parameter, c.name), ', ' order by c.position) filter (where c.name is not null) as jsons
          from generate_series(1, 2) p (parameter)
          left join unnest(i_names, i_types) with ordinality c (name, type, position) on true
         group by p.parameter) e;
    select string_agg(format('record_image_ne(row(($1).%1$I), row(($2).%1$I))', c.name), ', ' order by c.position) into differences
      from unnest(i_names) with ordinality c (name, position);

    execute format('select array[%s]::text[], array[%s]::text[], array[%s]::boolean[], array[%s]::text[], array[%s]::text[]',
                   texts[1], texts[2], differences,
                   case i_format when 'json' then jsons[1] end, case i_format when 'json' then jsons[2] end)
       into old_texts, new_texts, differ, old_json, new_json using i_old, i_new;
end
$$;

-- pgcascade.plain_row(5)
--     A whole row as ev_data or backup: JSON for jsontriga, URL-encoded for the others. i_hidden: columns left out.
create function pgcascade.plain_row(
    i_format text, i_names text[], i_texts text[], i_json text[], i_hidden text[]
) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return case i_format
    when 'json' then '{' || coalesce(
        (select string_agg(to_json(c.name)::text || ':' || coalesce(c.value, 'null'), ',' order by c.position)
           from unnest(i_names, i_json) with ordinality c (name, value, position)
          where c.name <> all (i_hidden)), '') || '}'
    else coalesce(
        (select string_agg(pgcascade.plain_url(c.name) || coalesce('=' || pgcascade.plain_url(c.value), ''), '&' order by c.position)
           from unnest(i_names, i_texts) with ordinality c (name, value, position)
          where c.name <> all (i_hidden)), '')
end;

-- pgcascade.plain_sql(7)
--     ev_data of sqltriga: the end of a statement. An update sets what changed; one that changed nothing sets the first
--     column of the key. A key given by pkey= may hold NULL, which nothing equals.
create function pgcascade.plain_sql(
    i_operation text, i_names text[], i_old text[], i_new text[], i_differ boolean[], i_key text[], i_hidden text[]
) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    key text;
    first_of_key text;
    result text;
begin
    select string_agg(quote_ident(c.name) || coalesce('=' || quote_literal(c.value), ' is null'), ' and ' order by c.position),
           (array_agg(c.name order by c.position))[1]
      into key, first_of_key
      from unnest(i_names, case i_operation when 'DELETE' then i_old else i_new end) with ordinality c (name, value, position)
     where c.name = any (i_key);

    case i_operation
    when 'INSERT' then
        select format('(%s) values (%s)', string_agg(quote_ident(c.name), ',' order by c.position),
                      string_agg(coalesce(quote_literal(c.value), 'null'), ',' order by c.position))
          into result
          from unnest(i_names, i_new) with ordinality c (name, value, position)
         where c.name <> all (i_hidden);
    when 'UPDATE' then
        select coalesce(string_agg(quote_ident(c.name) || '=' || coalesce(quote_literal(c.value), 'NULL'), ',' order by c.position)
                            filter (where c.differs and c.name <> all (i_hidden)),
                        max(quote_ident(c.name) || '=' || coalesce(quote_literal(c.value), 'NULL'))
                            filter (where c.name = first_of_key))
               || ' where ' || key
          into result
          from unnest(i_names, i_new, i_differ) with ordinality c (name, value, differs, position);
    when 'DELETE' then
        result := key;
    end case;
    return result;
end
$$;

-- pgcascade.plain_place(2)
--     Where a row of the table is stored: system identifier, oid of the database, oid of the table and number of the block.
create function pgcascade.plain_place(i_table oid, i_row tid) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return concat_ws(':', (pg_control_system()).system_identifier, (select d.oid from pg_database d where d.datname = current_database()),
                 i_table, split_part(trim('(' from i_row::text), ',', 1));

-- pgcascade.plain_event(10)
--     One event as the six texts ev_type, ev_data, ev_extra1 .. ev_extra4; null if the condition does not hold.
--     i_place    the row's, if it goes into ev_extra4
--     Errors: those of the expressions; the condition is not a boolean, or null.
create function pgcascade.plain_event(
    i_format text, i_operation text, i_schema text, i_table text, i_names text[], i_types oid[], i_key text[],
    i_arguments record, i_place text, i_old anyelement, i_new anyelement
) returns text[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    fields constant text[] := '{ev_type,ev_data,ev_extra1,ev_extra2,ev_extra3,ev_extra4}';
    magic integer;
    hidden text[];
    t record;
    v record;
    event text[] := array_fill(null::text, '{6}');
begin
    event[1] := pgcascade.plain_event_type(i_format, i_operation, i_schema, i_table, i_key);
    event[3] := pgcascade.plain_name(i_schema) || '.' || pgcascade.plain_name(i_table);
    if i_operation = 'TRUNCATE' then
        event[2] := case i_format when 'json' then '{}' else '' end;
        return event;
    end if;
    event[6] := i_place;

    if i_arguments.condition is not null then
        v := pgcascade.plain_value(i_arguments.condition, i_names, case i_operation when 'DELETE' then i_old else i_new end);
        if v.type is distinct from 'bool'::regtype then
            raise exception using errcode = 'datatype_mismatch',
                message = format('when= query result must be boolean, got=%s', coalesce(v.type, 0)),
                hint = 'Write a condition after when=.';
        elsif v.value is null then
            raise exception using errcode = 'null_value_not_allowed', message = 'when= should not be NULL',
                hint = 'Write the condition so that it is true or false for every row, for example with coalesce().';
        elsif v.value = 'f' then
            return null;
        end if;
    end if;

    -- The deprecated magic columns are never in the data.
    hidden := coalesce(i_arguments.ignore, '{}') || array(select name from unnest(i_names) name where starts_with(name, '_pgq_'));
    t := pgcascade.plain_texts(i_format, i_names, i_types, i_old, i_new);
    event[2] := case
        when i_format = 'sql' then pgcascade.plain_sql(i_operation, i_names, t.old_texts, t.new_texts, t.differ, i_key, hidden)
        when i_operation = 'DELETE' then pgcascade.plain_row(i_format, i_names, t.old_texts, t.old_json, hidden)
        else pgcascade.plain_row(i_format, i_names, t.new_texts, t.new_json, hidden)
    end;
    if i_arguments.backup and i_operation = 'UPDATE' then
        event[4] := pgcascade.plain_row(i_format, i_names, t.old_texts, t.old_json, hidden);
    end if;
    for field in 1 .. 6 loop
        magic := array_position(i_names, '_pgq_' || fields[field]);
        if i_arguments.fields[field] is not null then
            v := pgcascade.plain_value(i_arguments.fields[field], i_names, case i_operation when 'DELETE' then i_old else i_new end);
            event[field] := v.value;
        elsif magic is not null then
            event[field] := case i_operation when 'DELETE' then t.old_texts[magic] else t.new_texts[magic] end;
        end if;
    end loop;
    return event;
end
$$;

-- The same with values in fixed text formats, whatever the session has set.
create function pgcascade.plain_event_fixed(
    i_format text, i_operation text, i_schema text, i_table text, i_names text[], i_types oid[], i_key text[],
    i_arguments record, i_place text, i_old anyelement, i_new anyelement
) returns text[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set datestyle = 'ISO'
set intervalstyle = 'postgres'
set timezone = 'GMT'
set extra_float_digits = 1
set bytea_output = 'hex'
set lc_monetary = 'C'
set quote_all_identifiers = off
as $$
begin
    return pgcascade.plain_event(i_format, i_operation, i_schema, i_table, i_names, i_types, i_key, i_arguments, i_place, i_old,
                                 i_new);
end
$$;

-- pgcascade.plain_capture(10)
--     Turns one change into its event or events: two if the key changed, so that whoever replays them by key gets it right;
--     none if only ignored columns did. Returns whether the row is to be kept out of the table.
--     i_row           where the row is, if it was inserted
--     i_old, i_new    the row, twice for an insert and a delete; any nulls for a truncate
--     Errors: those of the arguments; SKIP after the fact; deny; no key; those of pgq.insert_event().
create function pgcascade.plain_capture(
    i_format text, i_operation text, i_when text, i_table oid, i_schema text, i_name text, i_arguments text[], i_row tid,
    i_old anyelement, i_new anyelement
) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    a record := pgcascade.plain_arguments(i_operation, i_arguments);
    c record := pgcascade.plain_columns(i_table, i_schema, i_name);
    fixed constant boolean := coalesce(current_setting('pgcascade.fixed_output', true)::boolean, true);
    missing text;
    changed text[];
    operation text;
    operations text[] := array[i_operation];
    event text[];
    place constant text := case when a.place and i_row is not null and i_when = 'AFTER' then pgcascade.plain_place(i_table, i_row) end;
begin
    missing := (select name from unnest(a.pkey) with ordinality p (name, position)
                 where name <> all (c.names) order by position limit 1);
    if missing is not null then
        raise exception using errcode = 'undefined_column',
            message = format('column "%s" of pkey= does not exist in table "%s"', missing, i_name),
            hint = 'Correct the pkey= argument of the trigger.';
    end if;
    c.key := coalesce(a.pkey, c.key);
    if a.skip and i_when = 'AFTER' then
        raise exception using errcode = 'invalid_parameter_value', message = 'SKIP does not work in AFTER trigger.',
            hint = 'Make it a BEFORE trigger, or leave SKIP out.';
    elsif a.deny then
        raise exception using errcode = 'insufficient_privilege',
            message = format('Table ''%s.%s'' to queue ''%s'': change not allowed (%s)', i_schema, i_name, a.queue, i_operation),
            hint = 'The trigger''s deny argument forbids it: change the table at the root of its cascade.';
    elsif i_operation in ('UPDATE', 'DELETE') and c.key = '{}' then
        raise exception using errcode = 'object_not_in_prerequisite_state', message = 'Update/Delete on table without pkey',
            hint = format('Give table %s.%s a primary key, or name its key with pkey= in the trigger.', i_schema, i_name);
    end if;

    if i_operation = 'UPDATE' then
        changed := array(
            select u.name
              from unnest(c.names, (pgcascade.plain_texts(i_format, c.names, c.types, i_old, i_new)).differ) u (name, differs)
             where u.differs);
        if a.ignore && changed and changed <@ a.ignore then
            return a.skip;
        elsif changed && c.key then
            operations := '{DELETE,INSERT}';
        end if;
    end if;
    foreach operation in array operations loop
        event := case when fixed then
            pgcascade.plain_event_fixed(i_format, operation, i_schema, i_name, c.names, c.types, c.key, a, place, i_old, i_new)
        else
            pgcascade.plain_event(i_format, operation, i_schema, i_name, c.names, c.types, c.key, a, place, i_old, i_new)
        end;
        if event is not null then
            perform pgq.insert_event(a.queue, event[1], event[2], event[3], event[4], event[5], event[6]);
        end if;
    end loop;
    return a.skip;
end
$$;

-- The three triggers differ in their format only. They run as their owner, so that a writer of the table needs no right
-- on the queue; what is the table owner's runs in plain_value().
do $triggers$
declare
    name text;
    letters text;
begin
    for name, letters in values ('logutriga', 'url'), ('sqltriga', 'sql'), ('jsontriga', 'json') loop
        execute format($create$
create or replace function pgq.%I() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $function$
declare
    skip boolean := false;
begin
    if tg_op = 'TRUNCATE' and tg_level <> 'STATEMENT' or tg_op <> 'TRUNCATE' and tg_level <> 'ROW' then
        raise exception using errcode = 'trigger_protocol_violated',
            message = case tg_op when 'TRUNCATE' then 'pgq tRuncate trigger must be fired FOR EACH STATEMENT'
                                 else 'pgq Ins/Upd/Del trigger must be fired FOR EACH ROW' end,
            hint = 'Create the trigger again with the level that the message names.';
    end if;
    if current_setting('session_replication_role') <> 'local' then
        case tg_op
        when 'INSERT' then
            skip := pgcascade.plain_capture(%2$L, tg_op, tg_when, tg_relid, tg_table_schema, tg_table_name, tg_argv, new.ctid, new, new);
        when 'UPDATE' then
            skip := pgcascade.plain_capture(%2$L, tg_op, tg_when, tg_relid, tg_table_schema, tg_table_name, tg_argv, null, old, new);
        when 'DELETE' then
            skip := pgcascade.plain_capture(%2$L, tg_op, tg_when, tg_relid, tg_table_schema, tg_table_name, tg_argv, null, old, old);
        when 'TRUNCATE' then
            perform pgcascade.plain_capture(%2$L, tg_op, tg_when, tg_relid, tg_table_schema, tg_table_name, tg_argv, null, '', ''::text);
        end case;
    end if;
    -- A BEFORE trigger keeps the row out by returning nothing.
    if skip or tg_op = 'TRUNCATE' then
        return null;
    elsif tg_op = 'DELETE' then
        return old;
    end if;
    return new;
end
$function$
        $create$, name, letters);
    end loop;
end
$triggers$;

---------------------------------------------------------------------------------------------------------------------------
-- Nothing left out; helpers are members of the extension, for nobody else to call

do $members$
declare
    native text;
    helper regprocedure;
begin
    select string_agg(p.oid::regprocedure::text, ', ') into native
      from pg_proc p
      join pg_depend d on d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e'
      join pg_extension e on e.oid = d.refobjid and e.extname = 'pgcascade'
      join pg_language l on l.oid = p.prolang and l.lanname = 'c';
    if native is not null then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('there is no plain version of %s', native),
            hint = 'This file belongs to another version of pgcascade than the one installed in the database.';
    end if;
    for helper in
        select oid from pg_proc where pronamespace = 'pgcascade'::regnamespace and starts_with(proname, 'plain_')
    loop
        execute format('revoke all on function %s from public', helper);
        execute format('alter extension pgcascade add function %s', helper);
        execute format('comment on function %s is %L', helper, 'of the plain version of the native functions (sql/plain.sql)');
    end loop;
end
$members$;
alter function pgcascade.plain_value(text, text[], anyelement) owner to pgcascade_expression;

-- Make the copies of the control rows.
update pgq.queue set queue_id = queue_id;
commit;
