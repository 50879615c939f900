-- Compaction: rewriting the table of positions, so that a batch costs the same however long somebody has kept vacuum back.
--
-- pgq.subscription is updated twice per batch. As long as any transaction in the database has an older snapshot, an hour-long
-- report or an idle session, none of the old versions can be removed, and each look-up of a position, and the check of the
-- unique indexes at each update, walks through all of them. So the live rows are written anew when it has grown.
--
-- Who could notice, and why nobody is hurt (docs/concurrency.md has the argument): the table is locked against everybody, or
-- left alone; the rows go back frozen, so that older snapshots see the present positions, and not an empty table.

-- pgcascade.positions_bloated()
--     Whether the table of positions is much bigger than its rows need: 4 pages and twice the rows. Assigns no transaction id.
create function pgcascade.positions_bloated() returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    pages constant bigint := pg_relation_size('pgq.subscription') / current_setting('block_size')::bigint;
begin
    -- A row takes at most 80 bytes, so a page has at least 100.
    return pages > 4 and pages > 4 + (select count(*) from pgq.subscription) / 50;
end
$$;

-- pgcascade.put_frozen(2)
--     Store a row in a table that this subtransaction has truncated, visible to every snapshot (pgext/src/compact.rs).
create function pgcascade.put_frozen(i_table regclass, i_row record) returns void
language c volatile strict as 'MODULE_PATHNAME', 'put_frozen_wrapper';

-- pgcascade.compact_positions()
--     Rewrite pgq.subscription if it has grown. Returns 1 if it was rewritten, else 0: also when somebody is in the way, since it
--     is called again soon, by the background worker and as an entry of pgq.maint_operations().
--     Errors: not READ COMMITTED.
--     Locks pgq.subscription against everybody without waiting for anybody. Assigns a transaction id only when it rewrites.
create function pgcascade.compact_positions() returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    positions pgq.subscription[];
    sub pgq.subscription;
begin
    if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
        raise exception using errcode = 'active_sql_transaction',
            message = format('positions cannot be compacted in a %s transaction', current_setting('transaction_isolation')),
            hint = 'Its snapshot may not show all of them. Use READ COMMITTED.';
    end if;
    if not pgcascade.positions_bloated() then
        return 0;
    end if;
    -- A dump that has its snapshot and not yet its lock on the table would save positions that are younger than the ticks it
    -- saves. It looks at the extensions before it locks tables, and keeps that lock. A trigger might be somebody else's.
    -- The plain version (plain.sql) cannot store frozen rows.
    if exists (select from pg_locks
                where relation = 'pg_catalog.pg_extension'::regclass and pid is distinct from pg_backend_pid()
                  and database = (select oid from pg_database where datname = current_database()))
       or exists (select from pg_stat_activity where datname = current_database() and application_name like 'pg_dump%')
       or exists (select from pg_trigger where tgrelid = 'pgq.subscription'::regclass and not tgisinternal)
       or exists (select from pg_proc p join pg_language l on l.oid = p.prolang
                   where p.oid = 'pgcascade.put_frozen(regclass, record)'::regprocedure and l.lanname <> 'c')
    then
        return 0;
    end if;
    begin
        lock table pgq.subscription in access exclusive mode nowait;
    exception when lock_not_available then
        return 0;
    end;

    positions := array(select s from pgq.subscription s order by s.sub_queue, s.sub_consumer);
    truncate pgq.subscription;
    foreach sub in array positions loop
        perform pgcascade.put_frozen('pgq.subscription', sub);
    end loop;
    return 1;
end
$$;

comment on function pgcascade.positions_bloated() is 'whether the table of positions is much bigger than its rows need';
comment on function pgcascade.put_frozen(regclass, record) is 'store a row in a table just truncated, for every snapshot to see';
comment on function pgcascade.compact_positions() is 'rewrite the table of positions if it has grown; 1 if it was';
