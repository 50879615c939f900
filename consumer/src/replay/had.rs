//! The events of a tick that a node has had all along, though it lacks the tick: a copy of a root has a part of what comes after its
//! last tick, be it a promoted standby (sql/takeover_standby.sql) or one that was adopted as a branch (sql/node_name.sql). They are stored with their tick as the provider has it, and their
//! rows are left alone.

use tokio_postgres::Client;

use crate::cascade::{Node, Role};
use crate::error::{Doing, Result};

/// Whether the node may have such events. It gets none while it is a branch.
pub(super) async fn any(subscriber: &Client, node: Option<&Node>) -> Result<bool> {
    let Some(node) = node.filter(|node| node.role == Role::Branch) else {
        return Ok(false);
    };
    let query = "select exists (select from pgcascade.takeover where queue_name = $1 and kind = 'standby'
                                   and step not in ('done', 'aborted'))
                         or exists (select from pgcascade.adoption where queue_name = $1)";
    let row = subscriber
        .query_one(query, &[&node.queue])
        .await
        .doing(|| format!("look whether {} was a copy of the root", node.title()))?;
    Ok(row.get(0))
}

/// Which ones of a tick whose events the transaction has stored.
pub(super) async fn of_tick(subscriber: &Client, queue: &str, tick: i64) -> Result<Vec<i64>> {
    let row = subscriber
        .query_one("select pgcascade.takeover_had($1, $2)", &[&queue, &tick])
        .await
        .doing(|| format!("see which events of tick {tick} were here before"))?;
    Ok(row.get(0))
}

/// The query for the events of a batch without them.
pub(super) fn without(events: &str, had: &[i64]) -> String {
    if had.is_empty() {
        return events.to_owned();
    }
    let ids: Vec<String> = had.iter().map(i64::to_string).collect();
    format!(
        "select * from ({}) fetched where not exists (select from pg_catalog.unnest('{{{}}}'::pg_catalog.int8[]) had (id) where had.id = fetched.ev_id)",
        events,
        ids.join(",")
    )
}
