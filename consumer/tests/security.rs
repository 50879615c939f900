//! What the regress cases `roles`, `ownership`, `hostile` and `install` cannot show on their server: settings that a session
//! forges before the library is loaded. docs/security.md lists all tests.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![allow(dead_code, reason = "the other test program uses the rest of the module")]

mod cluster;

use cluster::{Cluster, Db};
use tokio_postgres::Config;

const VALUE: &str = "select pgcascade.setting('pgcascade.consumer_ownership')";

async fn login(cluster: &Cluster, role: &str, options: &str) -> Db {
    let mut settings: Config = cluster.conninfo_as("postgres", role, "secret").parse().unwrap();
    settings.options(options);
    cluster.session(&settings).await.expect("the role can log in")
}

/// The library is not preloaded, so a new session knows the setting as a placeholder only, which it may set to anything.
#[tokio::test]
async fn a_session_cannot_forge_a_setting() {
    let cluster = Cluster::start("security-setting", &["--no-preload"]);
    let admin = cluster.connect("postgres").await;
    cluster.create_extension(&admin).await;
    admin
        .run(
            "create role reader login password 'secret' in role pgq_reader; create role other login password 'secret' in role pgq_reader;
             select pgq.create_queue('q'); select pgq.register_consumer('q', 'c'); select pgcascade.set_consumer_owner('q', 'c', 'other')",
        )
        .await;

    for forge in [
        "set pgcascade.consumer_ownership = off",
        "select set_config('pgcascade.consumer_ownership', 'off', false)",
        "begin; set local pgcascade.consumer_ownership = off; savepoint s; set local pgcascade.consumer_ownership = off",
    ] {
        let session = login(&cluster, "reader", "").await;
        session.run(forge).await;
        // The server believes it so far; that is what the function is for.
        assert_eq!(
            session.text("show pgcascade.consumer_ownership").await.trim(),
            "off",
            "{forge}"
        );
        assert_eq!(session.text(VALUE).await.trim(), "on", "{forge}");
        let refused = session
            .try_text("select pgq.next_batch('q', 'c')")
            .await
            .expect_err(forge);
        assert_eq!(refused.code().unwrap().code(), "42501", "{forge}");
    }

    // As an option of the connection; and stored for the role, which the server refuses.
    let session = login(&cluster, "reader", "-c pgcascade.consumer_ownership=off").await;
    assert_eq!(session.text(VALUE).await.trim(), "on");
    let refused = session
        .try_text("alter role reader set pgcascade.consumer_ownership = off")
        .await;
    assert!(refused.is_err());

    // A superuser's word counts: for himself, and for the sessions of a role.
    let session = cluster.connect("postgres").await;
    session.run("set pgcascade.consumer_ownership = off").await;
    assert_eq!(session.text(VALUE).await.trim(), "off");
    admin
        .run("alter role reader set pgcascade.consumer_ownership = off")
        .await;
    let session = login(&cluster, "reader", "").await;
    assert_eq!(session.text(VALUE).await.trim(), "off");
    assert_eq!(
        session.text("select pgq.next_batch('q', 'c') is null").await.trim(),
        "t"
    );
}
