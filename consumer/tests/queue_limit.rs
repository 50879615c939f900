//! Queue limits as the background worker enforces them: a dead consumer is dropped, loudly, and the disk is given back while
//! the queue is written and another consumer reads on; with the other policy it is warned of once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![allow(dead_code, reason = "the other test program uses the rest of the module")]

mod cluster;

use cluster::{Cluster, Db, eventually};

/// A queue `q` with a consumer that reads and one that does not, on a server whose rounds of maintenance are short.
async fn queue(cluster: &Cluster) -> Db {
    let postgres = cluster.connect("postgres").await;
    postgres.run("create database limits").await;
    let db = cluster.connect("limits").await;
    cluster.create_extension(&db).await;
    db.run("select pgq.create_queue('q'); select pgq.set_queue_config('q', 'ticker_max_lag', '0')")
        .await;
    // No rotation before a consumer can have moved on from the last one; half a second is less than a round.
    db.run("select pgq.set_queue_config('q', 'rotation_period', '500 milliseconds')")
        .await;
    db.run("select pgq.register_consumer('q', 'dead'); select pgq.register_consumer('q', 'alive')")
        .await;
    db
}

/// Writes events of about five kilobytes.
async fn write(db: &Db, events: i64) -> i64 {
    db.run(&format!(
        "select count(pgq.insert_event('q', 't',
                    (select string_agg(md5(i::text || j::text), '') from generate_series(1, 150) j)))
           from generate_series(1, {events}) i"
    ))
    .await;
    events
}

/// Lets `alive` read all that is there. Returns how many events it got.
async fn read_all(db: &Db) -> i64 {
    let mut events = 0;
    loop {
        let batch = db.text("select pgq.next_batch('q', 'alive')").await;
        if batch == "<null>" {
            return events;
        }
        events += db
            .text(&format!("select count(*) from pgq.get_batch_events({batch})"))
            .await
            .parse::<i64>()
            .unwrap();
        db.run(&format!("select pgq.finish_batch({batch})")).await;
    }
}

async fn bytes(db: &Db) -> i64 {
    db.text("select pgcascade.event_bytes(queue_data_pfx) from pgq.queue")
        .await
        .parse()
        .unwrap()
}

const LIMIT: i64 = 4 << 20;

#[tokio::test]
async fn a_dead_consumer_is_dropped_and_the_disk_given_back() {
    let cluster = Cluster::start("drop", &["-o", "pgcascade.maint_interval=1"]);
    let db = queue(&cluster).await;
    let (mut written, mut read, mut most) = (0, 0, 0);
    let deadline = std::time::Instant::now() + cluster::PATIENCE;
    // The one that reads may come to stand still for once, and is not to be dropped for that: it is past the rotation that there is, and
    // no other comes as long as the dead one is there; and then the limit goes with that.
    let in_the_way = "select string_agg(name, ' ') from pgcascade.rotation_blockers() where blocker = 'consumer'";
    while db.text(in_the_way).await != "dead" {
        assert!(std::time::Instant::now() < deadline, "no rotation: {}", cluster.log());
        written += write(&db, 1).await;
        read += read_all(&db).await;
    }
    db.run(
        "create function lift() returns trigger language plpgsql as $$ begin
             update pgcascade.queue_config set max_bytes = null;
             return null;
         end $$;
         create trigger lift after insert on pgcascade.dropped_consumer for each row execute function lift()",
    )
    .await;
    db.run(&format!("select pgcascade.set_queue_limit('q', null, {LIMIT}, 'drop')"))
        .await;
    let counts = "select count(*) from pgq.get_consumer_info('q', 'dead')";
    while db.text(counts).await == "1" {
        assert!(std::time::Instant::now() < deadline, "not dropped: {}", cluster.log());
        written += write(&db, 100).await;
        read += read_all(&db).await;
        most = most.max(bytes(&db).await);
    }
    // What it held goes with the next rotations, while the queue is written and read. Small events, so that however fast
    // they are written they do not reach the limit themselves.
    while bytes(&db).await > LIMIT {
        assert!(std::time::Instant::now() < deadline, "not truncated: {}", cluster.log());
        db.run("select pgq.insert_event('q', 't', 'small')").await;
        written += 1;
        read += read_all(&db).await;
    }
    assert!(most > LIMIT, "the limit was reached: {most}");

    // Loudly.
    assert_eq!(
        cluster
            .log()
            .matches("consumer \"dead\" of queue \"q\" was dropped")
            .count(),
        1
    );
    assert_eq!(
        db.text(&format!(
            "select queue_name, consumer_name, bytes > {LIMIT}, last_tick >= 1, returned_at is null
               from pgcascade.dropped_consumer"
        ))
        .await,
        "q|dead|t|t|t"
    );
    let said = cluster.psql("limits", "select pgq.next_batch('q', 'dead')");
    assert!(said.contains("ERROR:  Not subscriber to queue: q/dead"), "{said}");
    assert!(said.contains("because it kept the queue from being rotated"), "{said}");

    // The other one missed nothing.
    while read < written {
        assert!(std::time::Instant::now() < deadline, "{read} of {written} events");
        read += read_all(&db).await;
    }
    assert_eq!(read, written);
}

#[tokio::test]
async fn a_dead_consumer_is_warned_of_once() {
    let cluster = Cluster::start("warn", &["-o", "pgcascade.maint_interval=1"]);
    let db = queue(&cluster).await;
    db.run("select pgcascade.set_queue_limit('q', '1 second', null, 'warn')")
        .await;
    let warning = "consumer \"dead\" keeps queue \"q\" from being rotated: the tick it stands at is";
    let deadline = std::time::Instant::now() + cluster::PATIENCE;
    while !cluster.log().contains(warning) {
        assert!(std::time::Instant::now() < deadline, "no warning: {}", cluster.log());
        write(&db, 1).await;
        read_all(&db).await;
    }
    // More rounds: each of them runs what somebody put into extra_maint.
    db.run(
        "create table rounds (queue text);
         grant insert on rounds to pgq_admin;
         create function public.round(queue text) returns int language plpgsql as $$
         begin insert into public.rounds values (queue); return 1; end $$;
         update pgq.queue set queue_extra_maint = '{public.round}'",
    )
    .await;
    eventually("three more rounds", || async {
        db.text("select count(*) >= 3 from rounds").await == "t"
    })
    .await;
    assert_eq!(cluster.log().matches(warning).count(), 1, "one line for one cause");
    assert_eq!(
        db.text("select over_limit, blocks_rotation from pgcascade.consumer_stats where consumer_name = 'dead'")
            .await,
        "t|t"
    );
    assert_eq!(
        db.text("select count(*) from pgq.get_consumer_info('q', 'dead')").await,
        "1"
    );
    // Said again when warn_interval is over.
    db.run("update pgcascade.queue_config set warn_interval = '1 millisecond'")
        .await;
    eventually("the second warning", || async {
        cluster.log().matches(warning).count() > 1
    })
    .await;
}
