//! R13: who has seen a tick may rely on it, and on every event before it, after a crash. The database commits asynchronously
//! and the WAL writer sleeps, so what nobody forces to disk is lost by SIGKILL: the control in each test shows that it is.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::cluster::{Cluster, Db, PATIENCE, eventually, pause_ticks};
use crate::{queue, tick};

/// At least; and more, until the control was lost in one.
const ROUNDS: usize = 8;

fn sleepy(name: &str) -> Cluster {
    Cluster::start(
        name,
        &[
            "-o",
            "wal_writer_delay=10s",
            "-o",
            "wal_writer_flush_after=1GB",
            "-o",
            "autovacuum=off",
            "-o",
            "bgwriter_delay=10s",
            "-o",
            "checkpoint_timeout=1h",
            "-o",
            "pgcascade.maint_interval=3600",
        ],
    )
}

/// Every tick: its row, and the events between it and the one before, as another session sees them now.
async fn ticks(db: &Db) -> BTreeMap<i64, String> {
    let text = db
        .text("select tick_id, tick_time || ' ' || tick_snapshot || ' ' || tick_event_seq || ' [' || events(tick_id) || ']' from pgq.tick")
        .await;
    text.lines()
        .map(|line| {
            let (tick, rest) = line.split_once('|').unwrap();
            (tick.parse().unwrap(), rest.to_owned())
        })
        .collect()
}

/// The database: asynchronous commits; `events(tick)` lists the events of the batch that ends there; and a table that
/// a ticker without that care would write to.
async fn prepare(cluster: &Cluster, ticker: &str) -> Db {
    let db = queue(
        cluster,
        "d",
        &["synchronous_commit = off", &format!("pgcascade.ticker = {ticker}")],
    )
    .await;
    db.run(
        "update pgq.queue set queue_rotation_period = '1 day', queue_ticker_idle_period = '1 hour';
         create table careless (like pgq.tick);
         create function events(i_tick bigint) returns text language plpgsql as $$
         declare
             sql text;
             result text;
         begin
             select pgcascade.tick_event_sql(1, max(tick_id), i_tick, null) into sql from pgq.tick where tick_id < i_tick having max(tick_id) > 0;
             if sql is not null then
                 execute format('select string_agg(ev_id || '' '' || ev_data, '','' order by ev_id) from (%s) e', sql) into result;
             end if;
             return coalesce(result, '');
         end $$",
    )
    .await;
    db.text("checkpoint").await;
    db
}

/// Kills the server right after another session saw a tick with the event of this round, and a row of the careless ticker.
async fn rounds(cluster: &Cluster, by_hand: bool) {
    let mut db = prepare(cluster, if by_hand { "off" } else { "on" }).await;
    let (mut lost, mut round) = (0, 0);
    let deadline = Instant::now() + PATIENCE;
    while round < ROUNDS || (lost == 0 && Instant::now() < deadline) {
        round += 1;
        db.run("update pgq.queue set queue_ticker_paused = false").await;
        let observer = cluster.connect("d").await;
        assert_eq!(db.text("show synchronous_commit").await, "off");
        for i in 0..5 {
            db.run(&format!("select pgq.insert_event('q', 't', 'round {round} event {i}')"))
                .await;
        }
        if by_hand {
            tick(&db).await;
        }
        let last = format!("round {round} event 4");
        let before = db.text("select count(*) from careless").await;
        eventually("the tick is seen", async || {
            ticks(&observer).await.values().any(|tick| tick.contains(&last))
        })
        .await;
        // One more tick would force the careless one to disk as well.
        pause_ticks(&db).await;
        let seen = ticks(&observer).await;
        db.run("insert into careless select * from pgq.tick order by tick_id desc limit 1")
            .await;
        let careless = observer.text("select count(*) from careless").await;
        assert_ne!(careless, before, "the careless tick is seen too");
        cluster.crash();
        db = cluster.connect("d").await;
        let after = ticks(&db).await;
        for (id, tick) in &seen {
            assert_eq!(
                after.get(id),
                Some(tick),
                "tick {id} was seen before the crash of round {round}"
            );
        }
        // No id that was seen is issued again.
        let (next, top) = (
            db.text("select nextval('pgq.event_1_tick_seq')")
                .await
                .parse::<i64>()
                .unwrap(),
            *seen.keys().max().unwrap(),
        );
        assert!(next > top, "tick {next} comes after {top}");
        if db.text("select count(*) from careless").await != careless {
            lost += 1;
        }
    }
    println!("{lost} of {round} commits that nobody forced to disk were lost");
    assert!(
        lost > 0,
        "the kill came when everything was on disk, so it showed nothing"
    );
}

#[tokio::test]
async fn a_tick_that_was_seen_survives_kill_9() {
    rounds(&sleepy("durable-worker"), false).await;
}

#[tokio::test]
async fn a_tick_made_by_hand_survives_kill_9() {
    rounds(&sleepy("durable-by-hand"), true).await;
}
