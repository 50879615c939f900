//! What `--until-caught-up` waits for.
//!
//! The goal is a snapshot of the provider, taken when streaming begins. It is reached by the first tick that shows
//! everything which that snapshot shows. Comparing event ids instead would miss a transaction that drew its ids before
//! a tick and committed after it.

use tokio_postgres::Client;
use wire::snapshot::Snapshot;

use super::setup::Ready;
use crate::error::{Doing, Error, Result};

/// What there is to catch up with: everything that is committed now. Makes a tick for it, if the role may.
pub(super) async fn goal(provider: &Client, queue: &str) -> Result<Snapshot> {
    let what = || format!("make a tick of queue \"{queue}\" on the provider");
    let row = provider
        .query_one("select pg_catalog.pg_current_snapshot()::text", &[])
        .await
        .doing(what)?;
    let goal = row
        .get::<_, &str>(0)
        .parse()
        .map_err(|error| Error::failure(format!("the provider's snapshot cannot be read: {error}")))?;
    force_tick(provider, queue).await?;
    Ok(goal)
}

/// The same for a node of a cascade: its ticks are the provider's, so the provider's last one is what there is.
pub(crate) async fn goal_tick(provider: &Client, queue: &str) -> Result<i64> {
    force_tick(provider, queue).await?;
    let row = provider
        .query_one(include_str!("sql/last_tick.sql"), &[&queue])
        .await
        .doing(|| format!("read the last tick of queue \"{queue}\" on the provider"))?;
    Ok(row.get::<_, Option<i64>>(0).unwrap_or(0))
}

/// Makes a tick for what is committed now, where that can be done.
pub(super) async fn force_tick(provider: &Client, queue: &str) -> Result<()> {
    let what = || format!("make a tick of queue \"{queue}\" on the provider");
    let row = provider
        .query_one(include_str!("sql/rights.sql"), &[&queue])
        .await
        .doing(what)?;
    if row.get("external") {
        return Ok(());
    }
    if row.get("may_tick") {
        let forced = async {
            let tick: Option<i64> = provider.query_one("select pgq.ticker($1)", &[&queue]).await?.get(0);
            if tick.is_none() {
                provider.execute("select pgq.force_tick($1)", &[&queue]).await?;
                provider.execute("select pgq.ticker($1)", &[&queue]).await?;
            }
            Ok::<(), tokio_postgres::Error>(())
        };
        if let Err(error) = forced.await.doing(what) {
            if error.is_transient() {
                return Err(error);
            }
            tracing::warn!("{error}; waiting for somebody else's");
        }
    } else {
        tracing::info!("waiting for the ticker's next tick, as the role may not make one");
    }
    Ok(())
}

/// The snapshot of the tick that the subscriber has reached; None if the provider has dropped that tick.
pub(super) async fn reached(provider: &Client, ready: &Ready) -> Result<Option<Snapshot>> {
    let row = provider
        .query_opt(
            "select tick_snapshot::text from pgq.tick where tick_queue = $1 and tick_id = $2",
            &[&ready.queue_id, &ready.tick],
        )
        .await
        .doing(|| format!("look up tick {} on the provider", ready.tick))?;
    Ok(row.and_then(|row| row.get::<_, &str>(0).parse().ok()))
}
