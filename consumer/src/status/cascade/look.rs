//! Asking one node.

use std::collections::BTreeMap;

use tokio::time::{Instant, timeout_at};
use tokio_postgres::Client;

use super::{Gate, Shown, Wanted};
use crate::cascade::{self, Role};
use crate::connect::{End, connect};
use crate::conninfo::ConnInfo;
use crate::error::{Doing, Error, Result};
use crate::replay::Who;

/// Where a node is, as a connection string that was stored, or as one that was given.
#[derive(Clone)]
pub(super) enum Place {
    Stored(String),
    Given(Box<ConnInfo>),
}

impl From<ConnInfo> for Place {
    fn from(place: ConnInfo) -> Self {
        Self::Given(Box::new(place))
    }
}

/// Nodes by name: where they are, and whether they were declared dead.
pub(super) type Known = BTreeMap<String, (Place, bool)>;

/// What came of it.
pub(super) struct Found {
    pub(super) shown: Shown,
    /// The nodes that it knows.
    pub(super) known: Known,
    /// Still open, if it was reached.
    pub(super) client: Option<Client>,
}

/// All the nodes that a database knows.
pub(super) async fn locations(client: &Client, queue: &str, known: &mut Known) -> Result<()> {
    for (table, query) in [
        (
            "pgq_node.node_location",
            "select node_name, node_location, dead from pgq_node.node_location where queue_name = $1",
        ),
        (
            "pgcascade_replay.node_location",
            "select node, location, dead from pgcascade_replay.node_location where queue = $1",
        ),
    ] {
        if exists(client, table).await? {
            let rows = client
                .query(query, &[&queue])
                .await
                .doing(|| format!("read where the nodes of queue \"{queue}\" are"))?;
            for row in rows {
                known.insert(row.get(0), (Place::Stored(row.get(1)), row.get(2)));
            }
        }
    }
    Ok(())
}

/// Asks a node, within the time limit, and never fails: what went wrong is part of the answer.
pub(super) async fn ask(wanted: &Wanted, name: &str, place: &Place, dead: bool) -> Found {
    let mut found = Found {
        shown: Shown {
            node: name.to_owned(),
            dead,
            ..Shown::default()
        },
        known: Known::new(),
        client: None,
    };
    let deadline = Instant::now() + wanted.timeout;
    let asking = async {
        let place = match place {
            Place::Given(place) => (**place).clone(),
            Place::Stored(text) => {
                found.shown.location.clone_from(text);
                ConnInfo::parse(text)?
            }
        };
        found.shown.location = place.to_string();
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
        found.shown.role = Some(node.role.word().to_owned());
        found.shown.provider = (node.role != Role::Root).then_some(node.provider);
        found.shown.tick = Some(node.tick);
        found.shown.tick_time = node.tick_time;
        found.shown.paused = node.paused;
        found.shown.uptodate = node.uptodate;
        Ok(session.client)
    };
    match timeout_at(deadline, asking).await {
        Ok(Ok(client)) => {
            found.shown.reachable = true;
            found.client = Some(client);
        }
        Ok(Err(error)) => found.shown.error = Some(error.to_string()),
        Err(_) => {
            found.shown.error = Some(format!("no answer within {} seconds", wanted.timeout.as_secs_f64()));
        }
    }
    found
}

async fn exists(client: &Client, relation: &str) -> Result<bool> {
    let row = client
        .query_one("select pg_catalog.to_regclass($1) is not null", &[&relation])
        .await
        .doing(|| format!("look for {relation}"))?;
    Ok(row.get(0))
}

/// A leaf has none, nor has a node of PgQ's.
async fn gate(client: &Client, queue: &str) -> Result<Option<Gate>> {
    if !exists(client, "pgcascade.gate_state").await? {
        return Ok(None);
    }
    let row = client
        .query_opt(
            "select candidates, released_tick from pgcascade.gate_state where queue_name = $1",
            &[&queue],
        )
        .await
        .doing(|| "read the confirm gate".to_owned())?;
    Ok(row.map(|row| Gate {
        candidates: row.get(0),
        released_tick: row.get(1),
    }))
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
