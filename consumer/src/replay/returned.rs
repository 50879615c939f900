//! The tables of a root that was given up and is a branch again (`consumer node rejoin`).
//!
//! They are what the fork says, but for what its lost events have changed. An event does not say what was there before, so
//! a table that has one is copied again from the provider, its rows replaced, and caught up with as any copy; all others are in
//! step at the fork, as after a takeover that was planned (duty.rs, `settle`).

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio_postgres::Client;

use super::duty::{captured_tables, who};
use super::execute::EVENT_TYPE;
use super::table::Name;
use super::{session, state, table_state};
use crate::backoff::Looks;
use crate::cascade::Node;
use crate::connect::End;
use crate::error::{Doing, Error, Result};

/// How often the lock is tried.
const POLL: Duration = Duration::from_millis(50);

/// Makes the place for what [`join`] writes, and keeps others from changing the set of tables, until the session ends.
pub(crate) async fn prepare(client: &Client, node: &Node) -> Result<()> {
    let key = who(node).tables_lock_key();
    // A replay that starts has it for a moment, and a command that was killed until its session has noticed.
    let locked = session::lock_soon(client, key, Looks::new(session::LOCK_PATIENCE, POLL))
        .await
        .doing(|| format!("lock the tables of {}", node.title()))?;
    if !locked {
        return Err(
            Error::failure(format!("another command changes the tables of {} now", node.title()))
                .hint("Wait until it has ended, then type this one again."),
        );
    }
    state::install(client, End::Node).await
}

/// In the transaction that makes the node a branch: its position is the fork, its captured tables are its set of tables,
/// those that lost events are of are to be copied. Returns these.
pub(crate) async fn join(client: &Client, node: &Node, fork: i64, op: &str) -> Result<Vec<String>> {
    let who = who(node);
    who.set(client, fork).await?;
    captured_tables(client, &who).await?;
    copy_again(client, node, op).await
}

/// In the caller's transaction: the tables that lost events are of are to be copied. Returns these.
pub(super) async fn copy_again(client: &Client, node: &Node, op: &str) -> Result<Vec<String>> {
    let who = who(node);
    let what = || format!("record the tables of {}", node.title());
    let rows = client
        .query(
            "select distinct ev_extra1 from pgcascade.lost_event
              where op_id = $1::text::uuid and queue_name = $2 and ev_extra1 is not null and ev_type not like 'pgq.%'",
            &[&op, &node.queue],
        )
        .await
        .doing(what)?;
    let mut names: HashSet<Vec<u8>> = rows.iter().map(|row| row.get::<_, String>(0).into_bytes()).collect();
    let parts = parts(client, &who).await?;
    let mut copied = Vec::new();
    let mut revision = None;
    for entry in table_state::load(client, &who).await? {
        let parts = parts.get(&entry.subscriber).map_or(&[][..], Vec::as_slice);
        let mut lost = names.remove(&entry.provider.on_the_wire());
        for part in parts {
            lost |= names.remove(&part.on_the_wire());
        }
        if lost {
            let number = match revision {
                Some(number) => number,
                None => *revision.insert(table_state::next_revision(client, &who).await?),
            };
            table_state::start_over(client, &who, &entry.provider, number).await?;
            copied.push(entry.provider.to_string());
        }
    }
    for name in names {
        tracing::warn!(
            name = %String::from_utf8_lossy(&name),
            "lost events are of something that is no captured table here: what they have changed stays as it is"
        );
    }
    Ok(copied)
}

/// The names that rows of partitioned tables have in their events.
async fn parts(client: &Client, who: &super::Who) -> Result<HashMap<Name, Vec<Name>>> {
    let rows = client
        .query(include_str!("sql/captured_parts.sql"), &[&who.consumer, &who.queue])
        .await
        .doing(|| "list the partitions of captured tables".to_owned())?;
    let mut parts = HashMap::<Name, Vec<Name>>::new();
    for row in rows {
        let part = Name::new(row.get::<_, &str>(2), row.get::<_, &str>(3));
        let table = Name::new(row.get::<_, &str>(0), row.get::<_, &str>(1));
        parts.entry(table).or_default().push(part);
    }
    Ok(parts)
}

/// Files that were executed on the node after the fork. What they have done to it nobody can take back.
pub(crate) async fn executed(client: &Client, node: &Node, op: &str) -> Result<Vec<String>> {
    let kind = String::from_utf8_lossy(EVENT_TYPE);
    let rows = client
        .query(
            "select coalesce(ev_extra1, '') from pgcascade.lost_event
              where op_id = $1::text::uuid and queue_name = $2 and ev_type = $3 order by number",
            &[&op, &node.queue, &kind],
        )
        .await
        .doing(|| format!("read the lost events of {}", node.title()))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
