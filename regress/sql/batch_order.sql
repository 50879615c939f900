--
-- Every committed event is in exactly one batch, at the first tick that sees it; the batch query against a plain one.
--
set client_min_messages = warning;
\set SHOW_CONTEXT never
\pset null (null)
-- Other sessions, inside one script: prepared transactions stay open over ticks, are listed in snapshots as in progress,
-- and can be committed at any time.
select pgq.create_queue('batch_order');
select queue_id as id, queue_data_pfx as pfx from pgq.queue where queue_name = 'batch_order' \gset
update pgq.queue set queue_ticker_max_lag = '0', queue_ticker_idle_period = '0' where queue_id = :id;
select pgq.register_consumer('batch_order', 'batch_order_c');

create table batch_order (tick bigint, ev_id bigint, ev_data text);
create function batch_order_read() returns setof text language plpgsql as $$
declare
    batch bigint;
    cur bigint;
begin
    loop
        select batch_id, cur_tick_id into batch, cur from pgq.next_batch_info('batch_order', 'batch_order_c');
        exit when batch is null;
        insert into batch_order select cur, ev_id, ev_data from pgq.get_batch_events(batch);
        return query select format('tick %s: %s', cur, coalesce(string_agg(ev_data, ' ' order by ev_id), '-'))
                       from batch_order where tick = cur;
        perform pgq.finish_batch(batch);
    end loop;
end $$;

begin;
select pgq.insert_event('batch_order', 't', 'old1');
prepare transaction 'batch_order 1';
begin;
select pgq.insert_event('batch_order', 't', 'old2');
savepoint a;
select pgq.insert_event('batch_order', 't', 'old2-gone');
rollback to a;
savepoint b;
select pgq.insert_event('batch_order', 't', 'old2-sub');
prepare transaction 'batch_order 2';
select pgq.insert_event('batch_order', 't', 'now1');
select pgq.ticker('batch_order');
select batch_order_read();
-- One that began after the tick, one that ends before the next tick.
begin;
select pgq.insert_event('batch_order', 't', 'mid');
prepare transaction 'batch_order 3';
select pgq.insert_event('batch_order', 't', 'now2');
commit prepared 'batch_order 1';
select pgq.ticker('batch_order');
select batch_order_read();
select pgq.ticker('batch_order');
select batch_order_read();
-- Rotated twice while two of them are open; what they wrote is still found.
update pgq.queue set queue_rotation_period = '0' where queue_id = :id;
select pgq.maint_rotate_tables_step1('batch_order');
select pgq.maint_rotate_tables_step2();
commit prepared 'batch_order 2';
select pgq.insert_event('batch_order', 't', 'now3');
select pgq.ticker('batch_order');
begin;
select pgq.insert_event('batch_order', 't', 'rolled back');
prepare transaction 'batch_order 4';
commit prepared 'batch_order 3';
rollback prepared 'batch_order 4';
select pgq.ticker('batch_order');
select batch_order_read();
-- Each once.
select ev_data, count(*) from batch_order group by 1 having count(*) <> 1;
select count(*) as delivered, (select count(*) from :pfx) as stored from batch_order;

-- The batch query gives what the definition says, for every two ticks, in both its forms. "Naive" is the definition.
create function batch_order_naive(i_queue int, i_prev bigint, i_cur bigint) returns bigint[] language sql as $$
    select array_agg(ev.ev_id order by ev.ev_id)
      from pgq.event_template ev, pgq.tick p, pgq.tick c, pgq.queue q
     where q.queue_id = i_queue and p.tick_queue = i_queue and p.tick_id = i_prev and c.tick_queue = i_queue and c.tick_id = i_cur
       and ev.tableoid in (select inhrelid from pg_inherits where inhparent = q.queue_data_pfx::regclass)
       and txid_visible_in_snapshot(ev.ev_txid, c.tick_snapshot) and not txid_visible_in_snapshot(ev.ev_txid, p.tick_snapshot)
$$;
create function batch_order_ours(i_queue int, i_prev bigint, i_cur bigint) returns bigint[] language plpgsql as $$
declare
    result bigint[];
begin
    execute 'select array_agg(ev_id) from (' || pgcascade.tick_event_sql(i_queue, i_prev, i_cur, null) || ') e' into result;
    return result;
end $$;
select count(*) as pairs,
       count(*) filter (where batch_order_ours(:id, p.tick_id, c.tick_id) is distinct from batch_order_naive(:id, p.tick_id, c.tick_id)) as wrong
  from pgq.tick p, pgq.tick c
 where p.tick_queue = :id and c.tick_queue = :id and p.tick_id < c.tick_id;

-- The same with made up snapshots and events: 30 growing snapshots with many transactions in progress.
select setseed(0.5);
select pgq.create_queue('batch_order 2');
select queue_id as id, queue_data_pfx as pfx from pgq.queue where queue_name = 'batch_order 2' \gset
delete from pgq.tick where tick_queue = :id;
do $$
declare
    id int := (select queue_id from pgq.queue where queue_name = 'batch_order 2');
    done bool[] := '{}';
    horizon int := 10;
    running bigint[];
begin
    for x in 1 .. 2000 loop done[x] := false; end loop;
    for n in 1 .. 30 loop
        horizon := horizon + (random() * 60)::int;
        for x in 1 .. horizon - 1 loop
            if random() < 0.3 then done[x] := true; end if;
        end loop;
        running := array(select x from generate_series(1, horizon - 1) x where not done[x]);
        insert into pgq.tick (tick_queue, tick_id, tick_time, tick_event_seq, tick_snapshot)
        values (id, n, now(), n, format('%s:%s:%s', coalesce(running[1], horizon), horizon, array_to_string(running, ','))::txid_snapshot);
    end loop;
    execute format('insert into pgq.event_%s_%s (ev_time, ev_txid) select now(), x from generate_series(1, 2000) x where x %% 3 = 0', id, 0);
    execute format('insert into pgq.event_%s_%s (ev_time, ev_txid) select now(), x from generate_series(1, 2000) x where x %% 3 = 1', id, 1);
    execute format('insert into pgq.event_%s_%s (ev_time, ev_txid) select now(), x from generate_series(1, 2000) x where x %% 3 = 2', id, 2);
end $$;
select count(*) as pairs,
       count(*) filter (where ours is distinct from naive) as wrong,
       sum(cardinality(naive)) filter (where c = p + 1) as events_of_all_batches,
       count(*) filter (where sql like '%union all%') as with_late_ones
  from (select p.tick_id as p, c.tick_id as c, batch_order_ours(:id, p.tick_id, c.tick_id) as ours,
               batch_order_naive(:id, p.tick_id, c.tick_id) as naive, pgcascade.tick_event_sql(:id, p.tick_id, c.tick_id, null) as sql
          from pgq.tick p, pgq.tick c
         where p.tick_queue = :id and c.tick_queue = :id and p.tick_id < c.tick_id) pair;

-- Retried events are for their owner.
insert into :pfx (ev_id, ev_time, ev_txid, ev_owner) values (90001, now(), 10, 7), (90002, now(), 10, 8);
update pgq.tick set tick_snapshot = '5:5:' where tick_queue = :id and tick_id = 1;
update pgq.tick set tick_snapshot = '11:11:' where tick_queue = :id and tick_id = 2;
create function batch_order_retried(i_queue int, i_sub int) returns bigint[] language plpgsql as $$
declare
    result bigint[];
begin
    execute 'select array_agg(ev_id) from (' || pgcascade.tick_event_sql(i_queue, 1, 2, i_sub) || ') e where ev_id > 90000' into result;
    return result;
end $$;
select batch_order_retried(:id, 7) as seven, batch_order_retried(:id, 8) as eight, batch_order_retried(:id, 9) as nine, batch_order_retried(:id, null) as nobody;
select pgcascade.tick_event_sql(:id, 1, 999, null);
select pgcascade.tick_event_sql(-1, 1, 2, null);

-- The query uses the index on ev_txid, with 100,000 events of which 10 are wanted, with and without a list of late ones.
select pgq.create_queue('batch_order 3');
select queue_id as id, queue_data_pfx as pfx from pgq.queue where queue_name = 'batch_order 3' \gset
insert into pgq.tick (tick_queue, tick_id, tick_event_seq, tick_snapshot)
values (:id, 11, 1, '90000:90000:'), (:id, 12, 1, '90010:90010:'), (:id, 13, 1, '50:90010:50'), (:id, 14, 1, '90020:90020:');
do $$
declare
    pfx text := (select queue_data_pfx from pgq.queue where queue_name = 'batch_order 3');
begin
    for n in 0 .. 2 loop
        execute format('insert into %s_%s (ev_time, ev_txid, ev_data) select now(), x, repeat(''x'', 100) from generate_series(1, 100000) x', pfx, n);
    end loop;
end $$;
create function batch_order_plan(i_sql text) returns setof text language plpgsql as $$
declare
    line text;
begin
    for line in execute 'explain (costs off) ' || i_sql loop
        -- The parent, which is empty, is read as a whole.
        if line ~ 'Scan|Cond' and line !~ 'Seq Scan on event_\d+ ' then
            return next regexp_replace(regexp_replace(trim(line), 'event_\d+_\d', 'event_N_n'), 'ev_\d', 'ev_n');
        end if;
    end loop;
end $$;
select count(*), line from batch_order_plan(pgcascade.tick_event_sql(:id, 11, 12, null)) line group by 2 order by 2;
select count(*), line from batch_order_plan(pgcascade.tick_event_sql(:id, 13, 14, null)) line group by 2 order by 2;
select pgq.drop_queue('batch_order', true), pgq.drop_queue('batch_order 2'), pgq.drop_queue('batch_order 3');
drop table batch_order;
drop function batch_order_read, batch_order_naive, batch_order_ours, batch_order_retried, batch_order_plan;
