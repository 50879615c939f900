//! The schema pgcascade_replay, on the subscriber and wherever else something is to be recorded: made at the first start, and brought
//! up to date by whichever start is the first of a newer version.
//!
//! It is made in steps, one file each ([`STEPS`]). A step that was ever released never changes; what is new becomes the next
//! step, and the version, which is the number of steps that were taken, stands in the schema's comment. Everything happens
//! in one transaction, under a lock, since replays of several consumers may start at once. Called by setup.rs, and when a
//! node of a cascade is made.

use tokio_postgres::Client;

use super::position::Who;
use super::session::{self, SubscriberFacts};
use crate::connect::{End, exists};
use crate::error::{Doing, Error, Result};

/// What each version adds to the one before.
const STEPS: [&str; 22] = [
    include_str!("sql/state.sql"),
    include_str!("sql/state_2.sql"),
    include_str!("sql/state_3.sql"),
    include_str!("sql/state_4.sql"),
    include_str!("sql/state_5.sql"),
    include_str!("sql/state_6.sql"),
    include_str!("sql/state_7.sql"),
    include_str!("sql/state_8.sql"),
    include_str!("sql/state_9.sql"),
    include_str!("sql/state_10.sql"),
    include_str!("sql/state_11.sql"),
    include_str!("sql/state_12.sql"),
    include_str!("sql/state_13.sql"),
    include_str!("sql/state_14.sql"),
    include_str!("sql/state_15.sql"),
    include_str!("sql/state_16.sql"),
    include_str!("sql/state_17.sql"),
    include_str!("sql/state_18.sql"),
    include_str!("sql/state_19.sql"),
    include_str!("sql/state_20.sql"),
    include_str!("sql/state_21.sql"),
    include_str!("sql/state_22.sql"),
];

/// The version stands in the comment as "(version 7)"; without a comment, nothing was added yet.
const VERSION: &str = "select coalesce(pg_catalog.substring(pg_catalog.obj_description(n.oid, 'pg_namespace'), 'version (\\d+)')::int4, 1)
                         from pg_catalog.pg_namespace n where n.nspname = 'pgcascade_replay'";

/// For a database that is to be a node of a cascade, or that files are executed in.
pub(crate) async fn install(database: &Client, end: End) -> Result<()> {
    let found = session::subscriber_facts(database, end).await?;
    bring_up_to_date(database, end, &found).await
}

/// Takes the steps that are missing. `found` says whether the schema is there, as the role sees it.
pub(super) async fn bring_up_to_date(database: &Client, end: End, found: &SubscriberFacts) -> Result<()> {
    let known = i32::try_from(STEPS.len()).unwrap_or(i32::MAX);
    if found.installed && version(database, end).await? == Some(known) {
        return Ok(());
    }
    let what = || {
        if found.installed {
            format!("bring the schema pgcascade_replay on the {end} up to date")
        } else {
            format!("make the schema pgcascade_replay on the {end}")
        }
    };
    let lock = Who {
        consumer: String::new(),
        queue: String::new(),
    }
    .lock_key();
    database
        .batch_execute(&format!("begin; select pg_catalog.pg_advisory_xact_lock({lock})"))
        .await
        .doing(what)?;
    // Read again: whoever had the lock may have done it.
    let version = version(database, end).await?.unwrap_or(0);
    if version > known {
        return Err(Error::failure(format!(
            "the schema pgcascade_replay on the {end} is of version {version}, and this consumer knows no later one than {known}"
        ))
        .hint("A newer consumer made it: install that version here, too."));
    }
    for step in STEPS.iter().skip(usize::try_from(version).unwrap_or(0)) {
        database.batch_execute(step).await.doing(what).map_err(|error| {
            if error.sqlstate().is_some_and(|state| state.code() == "42501") {
                error.hint("Let the role that owns the schema start replay once; it only has to get this far.")
            } else {
                error
            }
        })?;
    }
    database
        .batch_execute(&format!(
            "comment on schema pgcascade_replay is
               'positions of pgcascade''s consumers (version {known}); without it they have to start over';
             commit"
        ))
        .await
        .doing(what)?;
    if version < known {
        tracing::info!(version = known, "schema pgcascade_replay made on the {end}");
    }
    Ok(())
}

/// Everything that is kept for a consumer is kept for the one of the new name, in the caller's transaction, which has locked
/// the position. One statement, at whose end the keys fit again.
pub(crate) async fn rename(subscriber: &Client, old: &Who, new: &str) -> Result<()> {
    if old.consumer == new {
        return Ok(());
    }
    let what = || format!("keep the state of consumer \"{}\" as that of \"{new}\"", old.consumer);
    let statement: String = subscriber
        .query_one(include_str!("sql/rename.sql"), &[&old.consumer, &old.queue, &new])
        .await
        .doing(what)?
        .get(0);
    subscriber.batch_execute(&statement).await.doing(what)
}

/// The database is no leaf of the queue any more.
pub(crate) async fn forget_journal(database: &Client, queue: &str) -> Result<()> {
    if exists(database, "pgcascade_replay.journal").await? {
        super::journal::drop_all(database, queue).await?;
    }
    Ok(())
}

/// Whether it is of this program's version, for who may only look.
pub(super) async fn check_version(subscriber: &Client) -> Result<()> {
    let (version, known) = (version(subscriber, End::Subscriber).await?.unwrap_or(0), STEPS.len());
    if usize::try_from(version) == Ok(known) {
        return Ok(());
    }
    Err(Error::failure(format!(
        "the schema pgcascade_replay on the subscriber is of version {version}, and this consumer's is {known}"
    ))
    .hint("An older one is brought up to date by the next start of replay; for a newer one, install the consumer that made it."))
}

async fn version(database: &Client, end: End) -> Result<Option<i32>> {
    let row = database
        .query_opt(VERSION, &[])
        .await
        .doing(|| format!("read the version of the schema pgcascade_replay on the {end}"))?;
    Ok(row.map(|row| row.get(0)))
}
