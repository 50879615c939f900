//! Bounded memory, whatever the size of a transaction; and values as large as PostgreSQL takes through a trigger.

use std::time::Instant;

use crate::cluster::pair;

const LIMIT_KB: u64 = 128 * 1024;

#[tokio::test]
async fn a_transaction_of_a_million_rows() {
    let pair = pair().await;
    pair.provider
        .run("create table big (id int primary key, a int, b text, c timestamptz, d numeric)")
        .await;
    pair.catch_up(&["--table", "big", "--create"]).await;
    pair.provider
        .run("insert into big select i, i, 'some text ' || i, now(), i * 1.5 from generate_series(1, 1000000) i")
        .await;
    let began = Instant::now();
    let output = pair.catch_up(&["--table", "big"]).await;
    println!(
        "1,000,000 inserts in one transaction: {:.1} s, peak resident memory {} kB",
        began.elapsed().as_secs_f64(),
        output.peak_kb
    );
    assert!(output.peak_kb > 0 && output.peak_kb < LIMIT_KB, "{} kB", output.peak_kb);
    let sum = "select count(*), sum(id::bigint), sum(hashtext(big::text)::bigint) from big";
    assert_eq!(pair.provider.text(sum).await, pair.subscriber.text(sum).await);

    pair.provider
        .run("update big set a = a + 1 where id <= 200000; delete from big where id > 900000")
        .await;
    let began = Instant::now();
    let output = pair.catch_up(&["--table", "big"]).await;
    println!(
        "200,000 updates, 100,000 deletes: {:.1} s, peak resident memory {} kB",
        began.elapsed().as_secs_f64(),
        output.peak_kb
    );
    assert!(output.peak_kb < LIMIT_KB, "{} kB", output.peak_kb);
    assert_eq!(pair.provider.text(sum).await, pair.subscriber.text(sum).await);

    // And by copy.
    pair.subscriber.run("delete from pgcascade_replay.position").await;
    pair.provider.run("select pgq.unregister_consumer('q', 'c')").await;
    let output = pair.catch_up(&["--table", "big", "--truncate"]).await;
    println!("copy of 900,000 rows: peak resident memory {} kB", output.peak_kb);
    assert!(output.peak_kb < LIMIT_KB, "{} kB", output.peak_kb);
    assert_eq!(pair.provider.text(sum).await, pair.subscriber.text(sum).await);
    pair.drop().await;
}

#[tokio::test]
async fn values_of_a_hundred_megabytes() {
    let pair = pair().await;
    pair.provider
        .run("create table v (id int primary key, t text, b bytea)")
        .await;
    pair.catch_up(&["--table", "v", "--create"]).await;
    pair.provider
        .run(
            "insert into v values (1, repeat('0123456789', 12000000), null), (2, null, decode(repeat('00ff', 30000000), 'hex'));
             update v set t = repeat('% +&', 25000000) where id = 2",
        )
        .await;
    let output = pair.catch_up(&["--table", "v"]).await;
    println!("values of 100 MB and more: peak resident memory {} kB", output.peak_kb);
    let sum = "select id, length(t), md5(t), length(b), md5(b) from v order by id";
    assert_eq!(pair.provider.text(sum).await, pair.subscriber.text(sum).await);
    pair.drop().await;
}

#[tokio::test]
async fn a_table_of_1600_columns() {
    let pair = pair().await;
    let columns: Vec<String> = (1..1600).map(|i| format!("c{i} int")).collect();
    pair.provider
        .run(&format!(
            "create table wide (id int primary key, {})",
            columns.join(", ")
        ))
        .await;
    pair.catch_up(&["--table", "wide", "--create"]).await;
    pair.provider.run("insert into wide (id, c1, c1599) select i, i, i from generate_series(1, 100) i; update wide set c2 = 5 where id = 3").await;
    pair.catch_up(&["--table", "wide"]).await;
    pair.assert_equal("wide").await;
    pair.drop().await;
}
