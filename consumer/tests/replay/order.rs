//! Large batches are read as they are stored, without a sort, and once more by event id where that turns out to be wrong.

use crate::cluster::{Pair, eventually, own_pair, pause_ticks};

const ARGUMENTS: [&str; 4] = ["--table", "big", "--table", "small"];

/// So many rows are a batch that is worth it.
const MANY: i32 = 25_000;

/// Two databases with copied tables; the provider logs what it is asked.
async fn tables() -> Pair {
    let pair = own_pair().await;
    for end in [&pair.provider, &pair.subscriber] {
        end.run("create table big (id int primary key, n int); create table small (id int primary key, v text)")
            .await;
    }
    pair.provider
        .run("insert into small values (1, 'at first'), (2, 'at first')")
        .await;
    pair.catch_up(&ARGUMENTS).await;
    for statement in ["alter system set log_statement = 'all'", "select pg_reload_conf()"] {
        pair.provider.run(statement).await;
    }
    pair
}

/// How often batches were read in either order: as stored, and by id.
fn reads(pair: &Pair) -> (usize, usize) {
    let log = pair.provider_cluster.log();
    let reads = log.lines().filter(|line| line.contains("copy (select ev_id, ev_txid"));
    let (by_id, as_stored): (Vec<&str>, Vec<&str>) = reads.partition(|line| line.contains("batch order by ev_id)"));
    (as_stored.len(), by_id.len())
}

/// Whether the ticker ticks: one in the middle of a transaction would have counted a part of its events.
async fn ticks(pair: &Pair, on: bool) {
    if on {
        pair.provider
            .run("update pgq.queue set queue_ticker_paused = false")
            .await;
    } else {
        pause_ticks(&pair.provider).await;
    }
}

async fn assert_same(pair: &Pair) {
    for table in ["big", "small"] {
        pair.assert_equal(table).await;
    }
}

#[tokio::test]
async fn what_one_transaction_wrote_is_read_as_it_is_stored() {
    let pair = tables().await;
    for statement in [
        format!("insert into big select i, 0 from generate_series(1, {MANY}) i"),
        "update big set n = n + id".to_owned(),
        "update big set id = -id where id % 2 = 0; update big set n = n + 1".to_owned(),
        "delete from big where id < -100; truncate small; insert into small values (3, 'new')".to_owned(),
    ] {
        ticks(&pair, false).await;
        pair.provider.run(&statement).await;
        ticks(&pair, true).await;
        pair.catch_up(&ARGUMENTS).await;
        assert_same(&pair).await;
    }
    // The last one is not worth it.
    assert_eq!(reads(&pair).0, 3);
    pair.drop().await;
}

/// The second transaction's page is full when it goes on, so it takes a new one, behind the last page of the first; which goes
/// on there, with what comes after that of the second.
#[tokio::test]
async fn what_is_stored_out_of_order_is_read_again_by_id() {
    for last in [
        // Wrong without an error: the second one's value would stay.
        "update small set v = 'last' where id = 1",
        // The second one's row would not be there yet.
        "update small set v = 'last' where id = 4",
        // And this would be found only at the end.
        "delete from small where id = 2",
    ] {
        let pair = tables().await;
        let other = pair.provider_cluster.connect(&pair.database).await;
        let first = &pair.provider;
        let running = pair.replay().args(&ARGUMENTS).spawn();
        running.until_it_says("streaming").await;
        // One batch of both.
        ticks(&pair, false).await;
        other.run("begin; insert into small values (3, 'second')").await;
        first
            .run(&format!(
                "begin; insert into big select i, 0 from generate_series(1, {MANY}) i"
            ))
            .await;
        other
            .run("insert into small values (4, 'second'); update small set v = 'second'; commit")
            .await;
        first.run(last).await;
        first.run("commit").await;
        let stored = "select count(*) from (select ev_id < lag(ev_id) over (order by ctid) as back from pgq.event_1_0) e where back";
        assert_ne!(first.text(stored).await, "0", "{last}: stored by id after all");
        ticks(&pair, true).await;
        until_same(&pair).await;
        running.until_it_says("is read again by event id").await;
        assert_eq!(reads(&pair).0, 1, "{last}");
        // The next ones of that size are sorted at once.
        first.run("update big set n = n + 1").await;
        until_same(&pair).await;
        assert_eq!(reads(&pair).0, 1, "{last}");
        running.stop().await;
        pair.drop().await;
    }
}

async fn until_same(pair: &Pair) {
    for table in ["big", "small"] {
        let rows = format!("select count(*) || ' ' || sum(hashtext(t::text)::bigint) from {table} t");
        eventually("both ends have the same rows", async || {
            pair.provider.text(&rows).await == pair.subscriber.text(&rows).await
        })
        .await;
    }
}
