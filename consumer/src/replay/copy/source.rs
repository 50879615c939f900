//! Where the rows of a copy are read: at the provider, or at another node that has them (`--copy-from`).
//!
//! What a copy holds is known by snapshots of the provider (copy.rs), so what is read elsewhere has to be brought down to these.
//!
//! A branch of the cascade commits a tick, the tick's events and what they change together. So what a transaction reads there is the
//! state at the last tick that it sees, and the snapshot of that tick is at the provider. It must not be before the subscriber's
//! own position: the events up to there are not kept.
//!
//! A standby of the provider shows transactions of the provider, but cannot say exactly which: its snapshots do not list those
//! that are in progress. So only tables that are cut into chunks are read there: what the snapshot from before the first chunk
//! sees, each chunk holds, as the standby has to get that far first; and as the one from after the last counts all
//! transactions that the standby had heard of by then, seen or not. Others are read at the provider, and those without a key, where
//! each chunk's own snapshot counts.

use std::time::Duration;

use tokio_postgres::Client;

use super::super::setup::Ready;
use super::super::table::Name;
use super::super::{duty, session};
use super::plan::By;
use crate::cascade::{self, Node, Role};
use crate::config::ReplayConfig;
use crate::connect::{End, connect};
use crate::conninfo::ConnInfo;
use crate::error::{Doing, Error, Result};
use crate::shutdown::Shutdown;

/// How often a standby is asked whether it is there yet.
const ASK_AGAIN: Duration = Duration::from_millis(100);

#[derive(Clone)]
pub(super) enum Source {
    Provider,
    Standby(ConnInfo),
    Branch(ConnInfo, Box<Node>),
}

impl Source {
    /// What `--copy-from` leads to.
    pub(super) async fn find(ready: &Ready, config: &ReplayConfig) -> Result<Self> {
        let Some(text) = &config.copy_from else {
            return Ok(Self::Provider);
        };
        let at = place(ready, config, text).await?;
        let node = connect(&at, End::Node, "pgcascade copy").await?.client;
        let facts = session::provider_facts(&node).await?;
        if facts.standby {
            if facts.identity == ready.identity {
                return Ok(Self::Standby(at));
            }
            return Err(
                Error::failure("--copy-from leads to a standby of another server than the provider")
                    .hint("Name a standby of the provider, or a branch of the cascade."),
            );
        }
        if facts.identity == ready.identity {
            tracing::warn!(
                "--copy-from leads to no standby: to the provider itself, or one that was promoted; tables are copied from the provider"
            );
            return Ok(Self::Provider);
        }
        let Some(branch) = cascade::load(&node, &ready.who.queue)
            .await?
            .filter(|node| node.role == Role::Branch)
        else {
            return Err(Error::failure(format!(
                "--copy-from leads to a database that is neither a standby of the provider nor a branch of queue \"{}\"",
                ready.who.queue
            ))
            .hint("Leave it out: then tables are copied from the provider."));
        };
        for target in &ready.targets {
            if target.state.to_copy() {
                duty::check_has(&node, &branch, &target.provider.name).await?;
            }
        }
        Ok(Self::Branch(at, Box::new(branch)))
    }

    /// Where that is.
    pub(super) fn at<'a>(&'a self, config: &'a ReplayConfig) -> &'a ConnInfo {
        match self {
            Self::Provider => &config.provider,
            Self::Standby(at) | Self::Branch(at, _) => at,
        }
    }

    /// Whether it is read at the same place, in the same way.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Provider, Self::Provider) => true,
            (Self::Standby(at), Self::Standby(other)) => at.to_string() == other.to_string(),
            (Self::Branch(at, node), Self::Branch(other, node_there)) => {
                at.to_string() == other.to_string() && node.name == node_there.name
            }
            _ => false,
        }
    }

    /// The least number of chunks that make it worth while to cut a table.
    pub(super) fn least_chunks(&self, by: By) -> usize {
        match (self, by) {
            (Self::Standby(_), By::Key) => 0,
            _ => 2,
        }
    }
}

async fn place(ready: &Ready, config: &ReplayConfig, text: &str) -> Result<ConnInfo> {
    if text.contains('=') || text.contains("://") {
        return ConnInfo::parse(text).map_err(|error| error.within(format_args!("--copy-from")));
    }
    let location = match &config.node {
        Some(node) => node.find(&ready.subscriber.client, text).await?,
        None => None,
    };
    let location = location.ok_or_else(|| {
        Error::failure(format!(
            "--copy-from names node \"{text}\" of queue \"{}\", which is not known here",
            ready.who.queue
        ))
        .hint("Give a connection string; nodes have names in a cascade.")
    })?;
    ConnInfo::parse(&location)
}

/// Waits until a standby has all that is on the provider now. False: a shutdown came in between.
pub(super) async fn wait_for_standby(provider: &Client, standby: &Client, shutdown: &Shutdown) -> Result<bool> {
    let what = || "see how far the standby is that is copied from".to_owned();
    // Where the commits of all that anybody sees are, also of those that did not wait for the disk.
    let there: String = provider
        .query_one("select pg_catalog.pg_current_wal_insert_lsn()::text", &[])
        .await
        .doing(what)?
        .get(0);
    loop {
        let row = standby
            .query_one(
                "select pg_catalog.pg_last_wal_replay_lsn() >= $1::text::pg_lsn, pg_catalog.pg_is_in_recovery()",
                &[&there],
            )
            .await
            .doing(what)?;
        if !row.get::<_, bool>(1) {
            return Err(promoted());
        }
        if row.get::<_, Option<bool>>(0) == Some(true) {
            return Ok(true);
        }
        tokio::select! {
            () = tokio::time::sleep(ASK_AGAIN) => {}
            () = shutdown.wait() => return Ok(false),
        }
    }
}

fn promoted() -> Error {
    Error::failure("the standby that tables are copied from was promoted")
        .hint("Start replay again without --copy-from.")
}

/// In a transaction that reads there.
pub(super) async fn check_standby(standby: &Client) -> Result<()> {
    let row = standby
        .query_one("select pg_catalog.pg_is_in_recovery()", &[])
        .await
        .doing(|| "look at the standby that is copied from".to_owned())?;
    if row.get(0) { Ok(()) } else { Err(promoted()) }
}

/// A snapshot that sees all that was read on the standby so far, and more.
pub(super) async fn beyond_standby(provider: &Client, standby: &Client) -> Result<String> {
    let what = || "end a copy from a standby".to_owned();
    let mut beyond = 0;
    for client in [standby, provider] {
        let row = client
            .query_one(
                "select pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::int8",
                &[],
            )
            .await
            .doing(what)?;
        beyond = i64::max(beyond, row.get(0));
    }
    Ok(format!("{beyond}:{beyond}:"))
}

/// The provider's snapshot of what a branch has; in the transaction that reads the table there. `position` is the tick up to which
/// the subscriber has kept no events: that it stays, however long the branch takes to get there, as the stream goes on beside it.
pub(super) async fn of_branch(
    provider: &Client,
    (branch, node): (&Client, &Node),
    table: &Name,
    position: i64,
) -> Result<String> {
    let queue = &node.queue;
    duty::check_has(branch, node, table).await?;
    let what = || "look for the branch's tick that is copied".to_owned();
    let tick: Option<i64> = branch
        .query_one(include_str!("../sql/last_tick.sql"), &[&queue])
        .await
        .doing(what)?
        .get(0);
    let tick = tick.unwrap_or(0);
    if tick < position {
        return Err(Error::failure(format!(
            "the branch to copy from is at tick {tick}, and the subscriber was at tick {position}: it has to catch up first"
        ))
        .waits());
    }
    let row = provider
        .query_opt(
            "select t.tick_snapshot::text from pgq.queue q join pgq.tick t on t.tick_queue = q.queue_id
              where q.queue_name = $1 and t.tick_id = $2",
            &[&queue, &tick],
        )
        .await
        .doing(what)?;
    row.map(|row| row.get(0)).ok_or_else(|| {
        Error::failure(format!(
            "the provider does not have tick {tick}, at which the branch to copy from is"
        ))
        .transient()
    })
}
