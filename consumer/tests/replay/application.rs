//! Whole applications under load, with replay killed and started again meanwhile, and the tables changed by `consumer
//! execute`: equal at the end, and sound whenever somebody looks.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::cluster::{Pair, Running, eventually, pair};

const SHOP: &str = include_str!("application.sql");

/// Sessions of the application, and how many transactions each has after the last change of the tables.
const SESSIONS: usize = 3;
const STEPS: usize = 60;

/// Changes of the tables while they are in use, each in a file.
const CHANGES: [(&str, &str); 6] = [
    (
        "1.sql",
        "alter table app.orders add column note text not null default 'none'; update app.orders set note = 'old ' || id",
    ),
    (
        "2.sql",
        "alter table app.line alter column quantity type bigint; create index line_sku on app.line (sku)",
    ),
    (
        "3.sql",
        "alter table app.payment add column currency char(3) default 'EUR'",
    ),
    (
        "4.sql",
        "create table app.payment_2027 partition of app.payment for values from ('2027-01-01') to ('2028-01-01')",
    ),
    (
        "5.sql",
        "alter table app.product rename column description to \"Beschreibung\"; alter table app.product add column description text",
    ),
    (
        "6.sql",
        "alter table app.orders drop column note; alter type app.status rename value 'sent' to 'shipped'",
    ),
];

/// What holds in every state of the provider.
const SOUND: &str = "select coalesce(string_agg(what, ', '), 'sound') from (
    select 'total of ' || o.id as what from app.orders o
     where o.total <> (select coalesce(sum(quantity * price), 0) from app.line l where l.orders = o.id)
    union all select 'line without order ' || orders from app.line where orders not in (select id from app.orders)
    union all select 'payment without amount ' || id from app.payment where amount is null) wrong";

fn execute(pair: &Pair, folder: &std::path::Path, (name, sql): (&str, &str)) {
    let path = folder.join(name);
    std::fs::write(&path, sql).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_consumer"))
        .args(["execute", "--queue", "q", "--retries", "100", "--provider"])
        .arg(pair.provider_cluster.conninfo(&pair.database))
        .arg(&path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{name}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Looks at the subscriber, all the time: whatever it shows was a state of the provider.
fn watch(pair: &Pair, over: Arc<AtomicBool>) -> tokio::task::JoinHandle<u32> {
    let (side, database) = (Arc::clone(&pair.subscriber_cluster), pair.database.clone());
    tokio::spawn(async move {
        let db = side.connect(&database).await;
        let mut looks = 0;
        while !over.load(Ordering::Relaxed) {
            // A change of the tables may keep them for a moment.
            if let Ok(text) = db.try_text(SOUND).await {
                assert_eq!(text, "sound");
                looks += 1;
            }
        }
        looks
    })
}

/// Ends it; until then it had nothing to complain of.
async fn killed(running: Running) {
    let output = running.kill().await;
    assert!(
        output.code().is_none() && !output.stderr.contains("ERROR"),
        "{}",
        output.stderr
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shop_whose_tables_change() {
    let pair = pair().await;
    pair.provider.run(SHOP).await;
    pair.provider
        .run("select setseed(0.7); select app.step(0) from generate_series(1, 100)")
        .await;
    pair.subscriber
        .run("create schema app; create type app.status as enum ('new', 'paid', 'sent', 'cancelled')")
        .await;
    let arguments = ["--table", "app.*", "--create", "--execute-as", "postgres"];
    pair.catch_up(&arguments).await;
    // As an operator would have them, and replay must not be stopped by them.
    pair.subscriber
        .run(
            "alter table app.line add foreign key (orders) references app.orders on delete cascade, add foreign key (sku) references app.product;
             alter table app.orders add foreign key (customer) references app.customer",
        )
        .await;
    let over = Arc::new(AtomicBool::new(false));
    let watched = watch(&pair, Arc::clone(&over));
    let changed = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for who in 1..=SESSIONS {
        let db = pair.provider_cluster.connect(&pair.database).await;
        let changed = Arc::clone(&changed);
        writers.push(tokio::spawn(async move {
            let mut left = STEPS;
            while left > 0 {
                left -= usize::from(changed.load(Ordering::Relaxed));
                // Given up by the server where two sessions or a change of the tables meet; an application tries again.
                let _ = db.try_text(&format!("select app.step({who})")).await;
                tokio::time::sleep(Duration::from_millis(5)).await; // what its user thinks meanwhile
            }
        }));
    }
    let folder = tempfile::tempdir().unwrap();
    let mut running: Option<Running> = None;
    for (i, change) in CHANGES.into_iter().enumerate() {
        if let Some(running) = running.take() {
            killed(running).await;
        }
        let point = ["after_read", "before_commit", "after_commit"][i % 3];
        running = Some(
            pair.replay()
                .args(&arguments)
                .failpoints(&format!("{point}=kill:40"))
                .spawn(),
        );
        execute(&pair, folder.path(), change);
    }
    changed.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    if let Some(running) = running {
        killed(running).await;
    }
    let output = pair.catch_up(&arguments).await;
    assert!(!output.stderr.contains("ERROR"), "{}", output.stderr);
    for table in [
        "customer",
        "product",
        "orders",
        "line",
        "document",
        "payment",
        "payment_2027",
        "job",
        "log",
    ] {
        assert_ne!(
            pair.provider.text(&format!("select count(*) from app.{table}")).await,
            "0",
            "{table}"
        );
        pair.assert_equal(&format!("app.{table}")).await;
    }
    assert_eq!(pair.provider.text(SOUND).await, "sound");
    over.store(true, Ordering::Relaxed);
    assert!(watched.await.unwrap() > 0);
    // They hold for what came without them.
    pair.subscriber
        .run("alter table app.line add foreign key (orders) references app.orders, add foreign key (sku) references app.product")
        .await;
    pair.drop().await;
}

#[tokio::test]
async fn pgbench_at_full_speed() {
    let pair = pair().await;
    let pgbench = |arguments: &str| {
        pair.provider_cluster
            .shell(&format!("\"$PGBIN/pgbench\" {arguments} {}", pair.database));
    };
    pgbench("-i -q -s 1");
    let arguments = ["--table", "pgbench_*", "--create"];
    pair.catch_up(&arguments).await;
    let running = pair.replay().args(&arguments).spawn();
    pgbench("-n -c 3 -t 400 -b tpcb-like@8 -b simple-update@2");
    let balance =
        "select (select sum(abalance) from pgbench_accounts) = (select coalesce(sum(delta), 0) from pgbench_history)
                      and (select sum(tbalance) from pgbench_tellers) = (select sum(bbalance) from pgbench_branches)";
    eventually("all transactions have arrived", async || {
        assert_eq!(pair.subscriber.text(balance).await, "t", "a state that never was");
        pair.subscriber.text("select count(*) from pgbench_history").await == "1200"
    })
    .await;
    for table in ["accounts", "tellers", "branches", "history"] {
        pair.assert_equal(&format!("pgbench_{table}")).await;
    }
    running.stop().await;
    pair.drop().await;
}
