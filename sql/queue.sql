-- Queues: making, dropping, setting and granting them.
--
-- A queue is a row of pgq.queue, a parent event table pgq.event_N with one child per rotation slot, and two sequences.
-- These per-queue objects are not members of the extension: they hold data, and they keep the extension from being
-- dropped while a queue exists.

-- pgcascade.check_new_queue(1)
--     Refuses a queue that may not be made: its name is empty, too long for an index entry, or does not match
--     pgcascade.queue_name_pattern as a whole; or there are pgcascade.max_queues already. Not asked by a restore.
--     With a maximum, sessions that make queues wait for each other, by the ticker lock of queue 0, which is no queue's;
--     a snapshot that is older than the wait could not see what the other one made.
create function pgcascade.check_new_queue(i_queue_name text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    pattern constant text := pgcascade.setting('pgcascade.queue_name_pattern');
    max_queues constant bigint := pgcascade.setting('pgcascade.max_queues');
    matches boolean := true;
begin
    if i_queue_name = '' then
        raise exception using errcode = 'invalid_name', message = 'the name of a queue cannot be empty',
            hint = 'Give a name of at most 2048 bytes.';
    elsif octet_length(i_queue_name) > 2048 then
        raise exception using errcode = 'name_too_long',
            message = format('the name of a queue cannot have %s bytes', octet_length(i_queue_name)),
            detail = format('Queue name: %s...', left(i_queue_name, 60)),
            hint = 'Give a name of at most 2048 bytes.';
    end if;

    if pattern <> '' then
        begin
            -- By itself first: what is no expression alone, as "a)|(b", could become one between the parentheses.
            matches := i_queue_name ~ pattern and i_queue_name ~ ('^(?:' || pattern || ')$');
        exception when invalid_regular_expression then
            raise exception using errcode = 'invalid_regular_expression',
                message = format('queue "%s" cannot be created: pgcascade.queue_name_pattern is not a regular expression: %s',
                                 i_queue_name, sqlerrm),
                hint = 'Have a superuser correct the setting.';
        end;
    end if;
    if not matches then
        raise exception using errcode = 'invalid_name',
            message = format('queue "%s" cannot be created: its name does not match the pattern %s', i_queue_name, pattern),
            hint = 'Choose another name, or have a superuser change the setting pgcascade.queue_name_pattern.';
    end if;

    if max_queues > 0 then
        if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
            raise exception using errcode = 'active_sql_transaction',
                message = format('queue "%s" cannot be created in a %s transaction while pgcascade.max_queues is set',
                                 i_queue_name, current_setting('transaction_isolation')),
                hint = 'Its snapshot may not show all queues. Use READ COMMITTED.';
        end if;
        perform pgcascade.lock_queue(0);
        if (select count(*) from pgq.queue) >= max_queues then
            raise exception using errcode = 'configuration_limit_exceeded',
                message = format('queue "%s" cannot be created: a database may have %s queues, and this one has them',
                                 i_queue_name, max_queues),
                hint = 'Drop a queue with pgq.drop_queue(), or have a superuser raise the setting pgcascade.max_queues.';
        end if;
    end if;
end
$$;

-- pgcascade.check_tables()
--     Trigger on pgq.queue: refuses a number of event tables that the queue does not have, which would stop its writers at the
--     next rotation.
create function pgcascade.check_tables() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    missing text;
begin
    select new.queue_data_pfx || '_' || i into missing
      from generate_series(0, new.queue_ntables - 1) i
     where to_regclass(new.queue_data_pfx || '_' || i) is null
     order by i limit 1;
    if found then
        raise exception using errcode = 'object_not_in_prerequisite_state',
            message = format('queue "%s" cannot have %s event tables: there is no table %s',
                             new.queue_name, new.queue_ntables, missing),
            hint = 'The number is fixed when the queue is made, from the default of column queue_ntables.';
    end if;
    return new;
end
$$;

create trigger pgcascade_check_tables
    before update on pgq.queue
    for each row when (new.queue_ntables is distinct from old.queue_ntables) execute function pgcascade.check_tables();

-- pgq.create_queue(1)
--     Make a queue with its tables, sequences, grants and first tick. Returns 1, or 0 if it was there.
--     Errors: the name is null; those of pgcascade.check_new_queue().
--     Writes pgq.queue, pgq.tick. Of two sessions that create one queue, the second waits and gets 0.
create function pgq.create_queue(i_queue_name text) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    id integer;
    prefix text;
    event_seq text;
    tick_seq text;
    n_tables integer;
    slot text;
begin
    if i_queue_name is null then
        raise exception using errcode = 'null_value_not_allowed', message = 'Invalid NULL value',
            hint = 'Give the name of the queue.';
    end if;

    -- Looked for first so that calling it again and again does not use up queue ids.
    if exists (select from pgq.queue where queue_name = i_queue_name) then
        return 0;
    end if;
    perform pgcascade.check_new_queue(i_queue_name);

    id := pgcascade.unused_id('pgq.queue_queue_id_seq');
    prefix := 'pgq.event_' || id;
    event_seq := prefix || '_id_seq';
    tick_seq := prefix || '_tick_seq';
    insert into pgq.queue (queue_id, queue_name, queue_data_pfx, queue_event_seq, queue_tick_seq)
    values (id, i_queue_name, prefix, event_seq, tick_seq)
    on conflict (queue_name) do nothing
    returning queue_ntables into n_tables;
    if not found then
        return 0;
    end if;

    execute format('create sequence %s cache 1', tick_seq);
    execute format('create sequence %s cache 1', event_seq);
    execute format('create table %s () inherits (pgq.event_template)', prefix);
    for i in 0 .. n_tables - 1 loop
        slot := prefix || '_' || i;
        execute format('create table %s () inherits (%s)', slot, prefix);
        execute format('alter table %s alter column ev_id set default nextval(%L)', slot, event_seq);
        execute format('create index %I on %s (ev_txid)', 'event_' || id || '_' || i || '_txid_idx', slot);
    end loop;

    perform pgq.grant_perms(i_queue_name);
    perform pgq.tune_storage(i_queue_name);

    -- The first tick. Nobody else can see the queue yet, so this needs neither the ticker's lock nor its checks.
    insert into pgq.tick (tick_queue, tick_id, tick_event_seq)
    values (id, nextval(tick_seq), pgq.seq_getval(event_seq));
    return 1;
end
$$;

-- pgq.drop_queue(2)
--     Drop a queue and all its events. Returns 1.
--     x_force    drop it although consumers are attached
--     Errors: no such queue; consumers attached and not x_force.
--     Writes retry_queue, tick, subscription, queue. Locks, in an order in which nobody waits for us while we wait for him:
--     1. the ticker's lock, which a tick takes first; 2. the queue's row, so that nobody can register meanwhile;
--     3. the tables against writers, who draw from the sequence later; 4. the sequence against those who read it and then the
--     tables (pgcascade.queues_due()); 5. the tables against readers, the parent before its children, as readers do.
create function pgq.drop_queue(x_queue_name text, x_force bool) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    q pgq.queue;
    tables text;
begin
    perform pgcascade.lock_queue(queue_id) from pgq.queue where queue_name = x_queue_name;
    select * into q from pgq.queue where queue_name = x_queue_name for update;
    if not found then
        raise exception using errcode = 'undefined_object', message = 'No such event queue',
            detail = format('Queue name: %s', coalesce(quote_literal(x_queue_name), 'NULL')),
            hint = 'pgq.get_queue_info() lists the queues.';
    end if;

    if x_force then
        delete from pgq.subscription where sub_queue = q.queue_id;
    elsif exists (select from pgq.subscription where sub_queue = q.queue_id) then
        raise exception using errcode = 'dependent_objects_still_exist',
            message = 'cannot drop queue, consumers still attached',
            detail = format('Queue name: %L', x_queue_name),
            hint = 'Unregister the consumers that pgq.get_consumer_info() lists, or use pgq.drop_queue(name, true).';
    end if;
    delete from pgq.retry_queue where ev_queue = q.queue_id;
    -- By ourselves: foreign keys do not cascade while session_replication_role is replica.
    delete from pgcascade.limit_warning where queue_id = q.queue_id;
    delete from pgcascade.queue_config where queue_id = q.queue_id;
    delete from pgcascade.packed_queue where queue_id = q.queue_id;
    delete from pgq.tick where tick_queue = q.queue_id;
    delete from pgq.queue where queue_id = q.queue_id;
    perform pgcascade.wake_waiters(q.queue_id);

    execute format('lock table %s in share row exclusive mode', q.queue_data_pfx);
    -- Changes nothing; LOCK does not take sequences.
    execute format('alter sequence %s owned by none', q.queue_event_seq);

    -- One statement without CASCADE: what users built on these tables is not dropped silently.
    select string_agg(i.inhrelid::regclass::text, ', ' order by i.inhrelid) into tables
      from pg_inherits i where i.inhparent = q.queue_data_pfx::regclass;
    execute 'drop table ' || concat_ws(', ', q.queue_data_pfx, tables);
    execute format('drop sequence %s, %s', q.queue_tick_seq, q.queue_event_seq);
    return 1;
end
$$;

-- pgq.drop_queue(1)
--     Drop a queue that has no consumers. Returns 1.
create function pgq.drop_queue(x_queue_name text) returns integer
language plpgsql volatile strict
set search_path = pg_catalog, pg_temp
as $$
begin
    return pgq.drop_queue(x_queue_name, false);
end
$$;

-- pgq.set_queue_config(3)
--     Change one setting of a queue. Returns 1.
--     x_param_name   ticker_max_count, ticker_max_lag, ticker_idle_period, ticker_paused, rotation_period or
--                    external_ticker; the other columns of pgq.queue are for UPDATE by an administrator
--     Errors: a null argument, no such queue, not one of these settings, not a fitting value.
--     Writes pgq.queue.
create function pgq.set_queue_config(x_queue_name text, x_param_name text, x_param_value text) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    param_type text;
    example text;
    negative boolean := false;
begin
    if x_queue_name is null or x_param_name is null or x_param_value is null then
        raise exception using errcode = 'null_value_not_allowed', message = 'Invalid NULL value',
            hint = 'Give the queue, the name of the setting and its value.';
    end if;
    if not exists (select from pgq.queue where queue_name = x_queue_name) then
        raise exception using errcode = 'undefined_object', message = 'No such event queue',
            detail = format('Queue name: %L', x_queue_name),
            hint = 'pgq.get_queue_info() lists the queues.';
    end if;

    case x_param_name
        when 'ticker_max_count' then param_type := 'integer'; example := '500';
        when 'ticker_max_lag', 'ticker_idle_period', 'rotation_period' then param_type := 'interval'; example := '3 seconds';
        when 'ticker_paused', 'external_ticker' then param_type := 'boolean'; example := 'true';
        else
            raise exception using errcode = 'invalid_parameter_value',
                message = format('cannot change parameter "%s"', x_param_name),
                hint = 'Settings are ticker_max_count, ticker_max_lag, ticker_idle_period, ticker_paused, '
                       'rotation_period and external_ticker; per_tx_limit, disable_insert and extra_maint '
                       'are changed by UPDATE pgq.queue.';
    end case;

    begin
        if param_type <> 'boolean' then
            execute format('select $1::%s < %L::%s', param_type, '0', param_type) into negative using x_param_value;
        end if;
        if not negative then
            execute format('update pgq.queue set %I = $1::%s where queue_name = $2', 'queue_' || x_param_name, param_type)
              using x_param_value, x_queue_name;
        end if;
    exception when data_exception then
        raise exception using errcode = sqlstate, message = sqlerrm,
            hint = format('%s takes a value of type %s, for example %L.', x_param_name, param_type, example);
    when check_violation then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('%s cannot be %s', x_param_name, x_param_value),
            hint = format('Use a value of at most 10000 years, for example %L.', example);
    end;
    if negative then
        raise exception using errcode = 'invalid_parameter_value',
            message = format('%s cannot be negative: %s', x_param_name, x_param_value),
            hint = format('Use a value of type %s, for example %L.', param_type, example);
    end if;
    return 1;
end
$$;

-- pgq.grant_perms(1)
--     Give a queue's tables the grants of pgq.event_template and its sequences theirs. Returns 1.
--     Errors: no such queue.
create function pgq.grant_perms(x_queue_name text) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    q pgq.queue;
    event_table name;
begin
    select * into q from pgq.queue where queue_name = x_queue_name;
    if not found then
        raise exception using errcode = 'undefined_object', message = 'Queue not found',
            detail = format('Queue name: %s', coalesce(quote_literal(x_queue_name), 'NULL')),
            hint = 'pgq.get_queue_info() lists the queues.';
    end if;

    -- Everybody may see how far a queue is; an administrator may draw event ids (COPY into an event table does).
    execute format('grant select on sequence %s, %s to public', q.queue_event_seq, q.queue_tick_seq);
    execute format('grant usage on sequence %s to pgq_admin', q.queue_event_seq);

    for event_table in
        select c.relname from pg_class c where c.oid = q.queue_data_pfx::regclass
        union all
        select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
         where i.inhparent = q.queue_data_pfx::regclass
    loop
        perform pgq._grant_perms_from('pgq', 'event_template', 'pgq', event_table);
    end loop;
    return 1;
end
$$;

-- pgq._grant_perms_from(4)
--     Copy the grants of one table to another. Returns 1. The caller must be allowed to grant on the second.
--     The owner of the first is left out: the second has its own.
create function pgq._grant_perms_from(src_schema text, src_table text, dst_schema text, dst_table text) returns integer
language plpgsql volatile strict
set search_path = pg_catalog, pg_temp
as $$
declare
    acl record;
begin
    for acl in
        select a.privilege_type, a.is_grantable,
               case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end as grantee
          from pg_class c
          join pg_namespace n on n.oid = c.relnamespace
         cross join lateral aclexplode(c.relacl) a
         where n.nspname = src_schema and c.relname = src_table and a.grantee <> c.relowner
    loop
        execute format('grant %s on %I.%I to %s', acl.privilege_type, dst_schema, dst_table, acl.grantee)
            || case when acl.is_grantable then ' with grant option' else '' end;
    end loop;
    return 1;
end
$$;

-- pgq.tune_storage(1)
--     Storage settings for tables that are only ever appended to and truncated: no room for updates, no autovacuum.
--     Returns 1, or 0 if there is no such queue. The caller must own the tables.
create function pgq.tune_storage(i_queue_name text) returns integer
language plpgsql volatile strict
set search_path = pg_catalog, pg_temp
as $$
declare
    event_table regclass;
    result integer := 0;
begin
    for event_table in
        select i.inhrelid from pgq.queue q join pg_inherits i on i.inhparent = q.queue_data_pfx::regclass
         where q.queue_name = i_queue_name
    loop
        execute format(
            'alter table %s set (fillfactor = 100, autovacuum_enabled = off, toast.autovacuum_enabled = off)',
            event_table);
        result := 1;
    end loop;
    return result;
end
$$;

-- pgq.upgrade_schema()
--     For clients that call it after an update: upgrades are done by ALTER EXTENSION, so there is nothing to do.
--     Returns the number of changes: 0.
create function pgq.upgrade_schema() returns int4
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return 0;
end
$$;

comment on function pgcascade.check_new_queue(text) is 'raise an error for a queue that may not be made';
comment on function pgcascade.check_tables() is 'trigger on pgq.queue: a queue has as many event tables as its row says';
comment on function pgq.create_queue(text) is 'create a queue; 1 if created, 0 if it was there';
comment on function pgq.drop_queue(text, boolean) is 'drop a queue; with true although consumers are attached';
comment on function pgq.drop_queue(text) is 'drop a queue that has no consumers';
comment on function pgq.set_queue_config(text, text, text) is
    'change a setting of a queue: ticker_max_count, ticker_max_lag, ticker_idle_period, ticker_paused, rotation_period, external_ticker';
comment on function pgq.grant_perms(text) is 'set the grants of a queue''s tables and sequences again';
comment on function pgq._grant_perms_from(text, text, text, text) is 'copy the grants of one table to another';
comment on function pgq.tune_storage(text) is 'set the storage options of a queue''s event tables again';
comment on function pgq.upgrade_schema() is 'kept for clients that call it; upgrades are done by ALTER EXTENSION';
