//! What keeps replay from going on, written on the subscriber where `consumer status` finds it.
//!
//! While an attempt fails, a session of its own writes why, since when, how often, and when the next attempt is; the
//! session that failed may be gone. Where that cannot be written (the subscriber is what cannot be reached), the log
//! has it alone. The first commit, or the first answer that there is nothing to apply, takes all of it away again.

use std::time::Duration;

use tokio_postgres::Client;

use super::duty;
use super::position::Who;
use super::table::Name;
use super::table_state;
use crate::cascade;
use crate::config::Job;
use crate::connect::{End, Session, connect};
use crate::conninfo::ConnInfo;
use crate::error::{Doing, Error, Result};

/// The failure itself is in the log already, and the next attempt, or look, says it again; to say it twice is not worth a longer wait.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Of a replay that ends with it: nobody says it later.
pub(super) const LAST_PATIENCE: Duration = Duration::from_secs(60);

/// Writes down a failure, and after which pause it is tried again; None: not at all. `table` is whose event it was. Whether it was
/// written within `patience`.
pub(super) async fn record(
    job: &Job,
    error: &Error,
    table: Option<&Name>,
    pause: Option<Duration>,
    patience: Duration,
) -> bool {
    let config = match job {
        Job::Hop(config) => config,
        Job::Node(config) => &config.checked,
    };
    let outcome = async {
        let session = begin(&config.subscriber, patience).await?;
        let mut who = config.who();
        if let Job::Node(_) = job {
            let Some(node) = cascade::load(&session.client, &config.queue).await? else {
                return Ok(());
            };
            if pause.is_none() {
                node.set_error(&session.client, &error.to_string()).await?;
            }
            who = duty::who(&node);
        }
        write(&session.client, &who, error, table, pause).await
    };
    // On a session that nobody else has, so nothing is lost when it takes too long.
    match tokio::time::timeout(patience, outcome).await {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => tracing::debug!("the reason could not be recorded: {error}"),
        Err(_) => tracing::debug!("the reason could not be recorded in time"),
    }
    false
}

/// A session that waits for no lock as long as that, so that the server does not wait for who has gone.
async fn begin(at: &ConnInfo, patience: Duration) -> Result<Session> {
    let session = connect(at, End::Subscriber, "pgcascade replay").await?;
    let limit = patience.saturating_sub(Duration::from_secs(3));
    session
        .client
        .batch_execute(&format!("set lock_timeout = {}", limit.as_millis()))
        .await
        .doing(|| "set lock_timeout on the subscriber".to_owned())?;
    Ok(session)
}

async fn write(
    subscriber: &Client,
    who: &Who,
    error: &Error,
    table: Option<&Name>,
    pause: Option<Duration>,
) -> Result<()> {
    let what = || "record the failure on the subscriber".to_owned();
    let (text, seconds) = (error.to_string(), pause.map(|pause| pause.as_secs_f64()));
    subscriber
        .execute(
            "update pgcascade_replay.position
                set error = $3, failing_since = coalesce(failing_since, pg_catalog.clock_timestamp()),
                    attempts = coalesce(attempts, 0) + 1,
                    next_attempt = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $4)
              where consumer = $1 and queue = $2",
            &[&who.consumer, &who.queue, &text, &seconds],
        )
        .await
        .doing(what)?;
    match table {
        Some(table) => table_state::set_error(subscriber, who, table, &text).await,
        None => Ok(()),
    }
}

/// Writes down what the copy of a table waits for, while its own session is in a transaction or gone; None: it goes on.
pub(super) async fn copy_waits(at: &ConnInfo, who: &Who, table: &Name, revision: i64, error: Option<&Error>) {
    let reason = error.map(ToString::to_string);
    let outcome = async {
        let session = begin(at, PATIENCE).await?;
        table_state::set_waits(&session.client, who, table, revision, reason.as_deref()).await
    };
    match tokio::time::timeout(PATIENCE, outcome).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("what a copy waits for could not be recorded: {error}"),
        Err(_) => tracing::debug!("what a copy waits for could not be recorded in time"),
    }
}

/// Nothing keeps replay from going on; parked tables keep their errors.
pub(super) async fn over(subscriber: &Client, who: &Who) -> Result<()> {
    let what = || "take the last failure off the state on the subscriber".to_owned();
    subscriber
        .execute(
            "update pgcascade_replay.position
                set error = null, failing_since = null, attempts = null, next_attempt = null
              where consumer = $1 and queue = $2 and error is not null",
            &[&who.consumer, &who.queue],
        )
        .await
        .doing(what)?;
    subscriber
        .execute(
            "update pgcascade_replay.table_state set error = null, updated = pg_catalog.clock_timestamp()
              where consumer = $1 and queue = $2 and error is not null and state <> 'broken'",
            &[&who.consumer, &who.queue],
        )
        .await
        .doing(what)?;
    Ok(())
}
