//! Asking one node.

use std::collections::BTreeMap;

use tokio::time::{Instant, timeout_at};
use tokio_postgres::Client;

use super::epoch::epoch;
use super::gate::gate;
use super::{Shown, Wanted};
use crate::cascade::{self, Role};
use crate::connect::{End, connect, exists};
use crate::conninfo::ConnInfo;
use crate::error::{Doing, Error, Result};
use crate::node::tree::Reached;
use crate::replay::Who;

/// Where a node is, as others have it stored.
#[derive(Clone, Default)]
pub(super) struct Place {
    location: String,
    admin_location: Option<String>,
    /// The way by which it was reached already.
    pub(super) given: Option<ConnInfo>,
    /// It was declared dead.
    dead: bool,
}

/// Nodes by name.
pub(super) type Known = BTreeMap<String, Place>;

/// What came of it.
pub(super) struct Found {
    pub(super) shown: Shown,
    /// The nodes that it knows.
    pub(super) known: Known,
    /// Still open, if it was reached.
    pub(super) at: Option<Reached>,
}

/// All the nodes that a database knows.
pub(super) async fn locations(client: &Client, queue: &str, known: &mut Known) -> Result<()> {
    for (table, query) in [
        (
            "pgq_node.node_location",
            "select node_name, node_location, dead, null from pgq_node.node_location where queue_name = $1",
        ),
        (
            "pgcascade_replay.node_location",
            // Versions before 13 have no such column.
            "select node, location, dead, pg_catalog.to_jsonb(l) ->> 'admin_location' from pgcascade_replay.node_location l where queue = $1",
        ),
        (
            "pgcascade.node_admin_location",
            "select node_name, node_location, dead, a.location
               from pgq_node.node_location join pgcascade.node_admin_location a using (queue_name, node_name)
              where queue_name = $1",
        ),
    ] {
        if exists(client, table).await? {
            let rows = client
                .query(query, &[&queue])
                .await
                .doing(|| format!("read where the nodes of queue \"{queue}\" are"))?;
            for row in rows {
                let place = Place {
                    location: row.get(1),
                    dead: row.get(2),
                    admin_location: row.get(3),
                    given: None,
                };
                known.insert(row.get(0), place);
            }
        }
    }
    Ok(())
}

/// Asks a node, within the time limit, and never fails: what went wrong is part of the answer.
pub(super) async fn ask(wanted: &Wanted, name: &str, place: &Place) -> Found {
    let mut found = Found {
        shown: Shown {
            node: name.to_owned(),
            location: shown(&place.location),
            admin_location: place.admin_location.as_deref().map(shown),
            dead: place.dead,
            ..Shown::default()
        },
        known: Known::new(),
        at: None,
    };
    let deadline = Instant::now() + wanted.timeout;
    let asking = async {
        let place = match &place.given {
            Some(given) => given.clone(),
            None => ConnInfo::parse(place.admin_location.as_ref().unwrap_or(&place.location))?,
        };
        let session = connect(&place, End::Node, "consumer status").await?;
        let client = &session.client;
        let node = cascade::load(client, &wanted.queue)
            .await?
            .ok_or_else(|| Error::failure(format!("the database is no node of queue \"{}\"", wanted.queue)))?;
        if node.name != name {
            return Err(Error::failure(format!("the location leads to node \"{}\"", node.name)));
        }
        locations(client, &wanted.queue, &mut found.known).await?;
        let who = Who {
            consumer: node.worker.clone(),
            queue: node.queue.clone(),
        };
        let query = if node.role == Role::Leaf {
            include_str!("leaf.sql")
        } else {
            include_str!("node.sql")
        };
        let row = client
            .query_one(query, &[&wanted.queue, &who.lock_key()])
            .await
            .doing(|| format!("read the state of {}", node.title()))?;
        found.shown.replaying = row.get("replaying");
        found.shown.error = row.get("error");
        found.shown.local_watermark = row.get("local_watermark");
        found.shown.global_watermark = row.get("global_watermark");
        found.shown.subscribers = row.get("subscribers");
        found.shown.tables = tables(client, &who).await?;
        found.shown.gate = gate(client, &wanted.queue).await?;
        found.shown.epoch = epoch(client, &node).await?;
        found.shown.role = Some(node.role.word().to_owned());
        found.shown.provider = (node.role != Role::Root).then(|| node.provider.clone());
        found.shown.tick = Some(node.tick);
        found.shown.tick_time.clone_from(&node.tick_time);
        found.shown.paused = node.paused;
        found.shown.uptodate = node.uptodate;
        Ok(Reached { session, node })
    };
    match timeout_at(deadline, asking).await {
        Ok(Ok(at)) => {
            found.shown.reachable = true;
            found.at = Some(at);
        }
        Ok(Err(error)) => found.shown.error = Some(error.to_string()),
        Err(_) => {
            found.shown.error = Some(format!("no answer within {} seconds", wanted.timeout.as_secs_f64()));
        }
    }
    found
}

/// Without the password that somebody may have stored, and with what a service stands for.
fn shown(location: &str) -> String {
    ConnInfo::parse(location).map_or_else(|error| format!("nowhere: {error}"), |place| place.to_string())
}

/// How many tables are in which state.
async fn tables(client: &Client, who: &Who) -> Result<BTreeMap<String, i64>> {
    if !exists(client, "pgcascade_replay.table_state").await? {
        return Ok(BTreeMap::new());
    }
    let rows = client
        .query(
            "select state, count(*) from pgcascade_replay.table_state where consumer = $1 and queue = $2 group by 1",
            &[&who.consumer, &who.queue],
        )
        .await
        .doing(|| "read the states of the tables".to_owned())?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
