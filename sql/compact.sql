-- Compaction: rewriting the tables of positions, so that a batch costs the same however long somebody has kept vacuum back.
--
-- pgq.subscription is updated twice per batch, pgcascade.gate_standby (gate_standby.sql) up to twice per tick. As long as any transaction in
-- the database has an older snapshot, an hour-long report or an idle session, none of the old versions can be removed, and each look-up of
-- a position, and the check of the unique indexes at each update, walks through all of them. So the live rows are written anew when a table has grown.
--
-- Who could notice, and why nobody is hurt (docs/concurrency.md has the argument): the table is locked against everybody, or
-- left alone; the rows go back frozen, so that older snapshots see the present positions, and not an empty table.

-- pgcascade.position_bloat()
--     The tables of positions that are much bigger than their rows need: 4 pages and twice the rows. Assigns no transaction id.
create function pgcascade.position_bloat() returns regclass[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    page constant bigint := current_setting('block_size');
    pages bigint := pg_relation_size('pgq.subscription') / page;
    bloated regclass[] := '{}';
begin
    -- A row takes at most 80 bytes, so a page has at least 100.
    if pages > 4 and pages > 4 + (select count(*) from pgq.subscription) / 50 then
        bloated := array['pgq.subscription'];
    end if;
    -- One has few rows, of a few hundred bytes.
    pages := pg_relation_size('pgcascade.gate_standby') / page;
    if pages > 4 and pages > 4 + (select count(*) from pgcascade.gate_standby) / 5 then
        bloated := bloated || regclass 'pgcascade.gate_standby';
    end if;
    return bloated;
end
$$;

-- pgcascade.positions_bloated()
--     Whether there is one. Assigns no transaction id.
create function pgcascade.positions_bloated() returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
return cardinality(pgcascade.position_bloat()) > 0;

-- pgcascade.put_frozen(2)
--     Store a row in a table that this subtransaction has truncated, visible to every snapshot (pgext/src/compact.rs).
create function pgcascade.put_frozen(i_table regclass, i_row record) returns void
language c volatile strict as 'MODULE_PATHNAME', 'put_frozen_wrapper';

-- pgcascade.compact_positions()
--     Rewrite the tables of positions that have grown. Returns how many were rewritten: none also when somebody is in the way, since it
--     is called again soon, by the background worker and as an entry of pgq.maint_operations().
--     Errors: not READ COMMITTED.
--     Locks each of them against everybody without waiting for anybody. Assigns a transaction id only when it rewrites.
create function pgcascade.compact_positions() returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    grown regclass;
    positions pgq.subscription[];
    standbys pgcascade.gate_standby[];
    compacted integer := 0;
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
    -- saves. It looks at the extensions before it locks tables, and keeps that lock. The plain version (plain.sql) cannot store frozen rows.
    if exists (select from pg_locks
                where relation = 'pg_catalog.pg_extension'::regclass and pid is distinct from pg_backend_pid()
                  and database = (select oid from pg_database where datname = current_database()))
       or exists (select from pg_stat_activity where datname = current_database() and application_name like 'pg_dump%')
       or exists (select from pg_proc p join pg_language l on l.oid = p.prolang
                   where p.oid = 'pgcascade.put_frozen(regclass, record)'::regprocedure and l.lanname <> 'c')
    then
        return 0;
    end if;
    foreach grown in array pgcascade.position_bloat() loop
        -- A trigger might be somebody else's.
        continue when exists (select from pg_trigger where tgrelid = grown and not tgisinternal);
        begin
            execute format('lock table %s in access exclusive mode nowait', grown);
        exception when lock_not_available then
            continue;
        end;
        if grown = 'pgq.subscription'::regclass then
            positions := array(select s from pgq.subscription s order by s.sub_queue, s.sub_consumer);
            truncate pgq.subscription;
            perform pgcascade.put_frozen(grown, p) from unnest(positions) p;
        else
            standbys := array(select s from pgcascade.gate_standby s order by s.standby_id);
            truncate pgcascade.gate_standby;
            perform pgcascade.put_frozen(grown, s) from unnest(standbys) s;
        end if;
        compacted := compacted + 1;
    end loop;
    return compacted;
end
$$;

comment on function pgcascade.position_bloat() is 'tables of positions that are much bigger than their rows need';
comment on function pgcascade.positions_bloated() is 'whether a table of positions is much bigger than its rows need';
comment on function pgcascade.put_frozen(regclass, record) is 'store a row in a table just truncated, for every snapshot to see';
comment on function pgcascade.compact_positions() is 'rewrite the tables of positions that have grown; how many were';
