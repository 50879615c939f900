//! A database as a node of a cascade: what it is, who it reads from, and whether it is to pause.
//!
//! A root or branch keeps that in pgq_node, as PgQ's own programs expect it; a leaf needs no extension and keeps it in
//! pgcascade_replay. [`Node`] is one reading of either; the functions here write to the one that it came from.
//! Used by the `node` commands, by replay for the duties of the node, and by `status`.

mod address;
pub(crate) mod home;
pub(crate) mod leaf;

use std::sync::Arc;

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

use crate::connect::exists;
use crate::error::{Doing, Error, Result};
pub(crate) use address::{
    ADMIN_LOCATIONS, forget_location, is_called, location, set_admin_location, set_location, tell_admin_location,
};

const NODE: &str = include_str!("cascade/node.sql");
const LEAF_NODE: &str = include_str!("cascade/leaf_node.sql");

/// What a database is in a cascade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Written by applications; makes the ticks.
    Root,
    /// Has its own copy of the queue, with the root's ticks.
    Branch,
    /// Has no queue.
    Leaf,
}

impl Role {
    /// The word of pgq_node.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Branch => "branch",
            Self::Leaf => "leaf",
        }
    }

    fn parse(word: &str) -> Result<Self> {
        match word {
            "root" => Ok(Self::Root),
            "branch" => Ok(Self::Branch),
            "leaf" => Ok(Self::Leaf),
            _ => Err(Error::failure(format!("a node of an unknown type: {word}"))),
        }
    }
}

/// A node, as it was when it was read.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) queue: String,
    pub(crate) name: String,
    pub(crate) role: Role,
    /// Its name as a consumer of its provider.
    pub(crate) worker: String,
    /// The node that it reads from; a root's is itself.
    pub(crate) provider: String,
    /// Where that is; None if nobody told.
    pub(crate) provider_location: Option<String>,
    /// The last tick that is applied.
    pub(crate) tick: i64,
    /// When that tick was made on the root, as text; the same on every node. None: not known.
    pub(crate) tick_time: Option<String>,
    /// Somebody wants it to pause.
    pub(crate) paused: bool,
    /// Its worker has seen the last change of its state.
    pub(crate) uptodate: bool,
    /// Of a leaf: the queue of its database that its events are merged into.
    pub(crate) combined: Option<Combined>,
    /// What is asked where nodes are, before what is stored; see address.rs.
    pub(crate) address_query: Option<Arc<str>>,
    /// Of a leaf: it has promised a takeover to take no ticks.
    pub(crate) frozen: bool,
}

/// A queue that others are merged into, on the leaf's side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Combined {
    pub(crate) queue: String,
    /// What the database is in the cascade of that queue.
    pub(crate) role: Role,
    /// Where that is a branch, it has told how far the leaf is.
    pub(crate) position_known: bool,
}

/// Which of the two places a database has. Both may be there, for different queues.
async fn places(client: &Client) -> Result<(bool, bool)> {
    let row = client
        .query_one(
            "select pg_catalog.to_regclass('pgq_node.node_info') is not null,
                    pg_catalog.to_regclass('pgcascade_replay.node') is not null",
            &[],
        )
        .await
        .doing(|| "see whether the database is a node".to_owned())?;
    Ok((row.get(0), row.get(1)))
}

/// What this database is in the cascade of a queue; None if it is not in it.
pub(crate) async fn load(client: &Client, queue: &str) -> Result<Option<Node>> {
    let (extension, leaves) = places(client).await?;
    for (there, query) in [(extension, NODE), (leaves, LEAF_NODE)] {
        if !there {
            continue;
        }
        if let Some(node) = read(client, query, queue).await? {
            return Ok(Some(node));
        }
    }
    Ok(None)
}

async fn read(client: &Client, query: &str, queue: &str) -> Result<Option<Node>> {
    let row = client
        .query_opt(query, &[&queue])
        .await
        .doing(|| format!("read what the database is in the cascade of queue \"{queue}\""))?;
    let Some(row) = row else { return Ok(None) };
    let role = Role::parse(row.get("node_type"))?;
    let combined = match role {
        Role::Leaf => combined(client, row.get("combined_queue"), row.get("position_known")).await?,
        Role::Root | Role::Branch => None,
    };
    Ok(Some(Node {
        queue: queue.to_owned(),
        role,
        combined,
        address_query: None,
        name: row.get("node_name"),
        worker: row.get("worker_name"),
        provider: row.get("provider_node"),
        provider_location: row.get("provider_location"),
        tick: row.get("last_tick"),
        tick_time: row.get("tick_time"),
        paused: row.get("paused"),
        uptodate: row.get("uptodate"),
        frozen: row.get("frozen"),
    }))
}

async fn combined(client: &Client, queue: Option<String>, position_known: bool) -> Result<Option<Combined>> {
    let Some(queue) = queue else { return Ok(None) };
    let row = client
        .query_opt(
            "select node_type from pgq_node.node_info where queue_name = $1",
            &[&queue],
        )
        .await
        .doing(|| format!("read what the database is in the cascade of queue \"{queue}\""))?;
    let Some(row) = row else {
        return Err(Error::failure(format!(
            "a leaf of this database is merged into queue \"{queue}\", and the database is no node of that"
        ))
        .hint("Make it one with consumer node, or drop the leaf and make it anew."));
    };
    let role = Role::parse(row.get(0))?;
    Ok(Some(Combined {
        queue,
        role,
        position_known,
    }))
}

impl Node {
    /// The same node as it is now. The address query is not asked, as this may be a batch's transaction: what it said last stands,
    /// until [`Node::look_again`].
    pub(crate) async fn reload(&self, client: &Client) -> Result<Self> {
        let mut now = self.stored(client).await?;
        now.address_query.clone_from(&self.address_query);
        if now.address_query.is_some() && now.provider == self.provider {
            now.provider_location.clone_from(&self.provider_location);
        }
        Ok(now)
    }

    /// The same, with the address query asked. Not in a transaction.
    pub(crate) async fn look_again(&self, client: &Client) -> Result<Self> {
        let now = self.stored(client).await?;
        now.asking(client, self.address_query.clone()).await
    }

    async fn stored(&self, client: &Client) -> Result<Self> {
        let query = if self.role == Role::Leaf { LEAF_NODE } else { NODE };
        read(client, query, &self.queue).await?.ok_or_else(|| {
            Error::failure(format!("{} was dropped", self.title()))
                .hint("Make it again with consumer node, or stop its replay.")
        })
    }

    /// Whether a later reading asks something else of the worker.
    pub(crate) fn differs(&self, now: &Self) -> bool {
        self.role != now.role
            || self.provider != now.provider
            || self.provider_location != now.provider_location
            || self.paused != now.paused
            || self.name != now.name
            || self.worker != now.worker
            || self.combined != now.combined
            || self.frozen != now.frozen
    }

    /// "node \"a\" of queue \"q\"", for messages.
    pub(crate) fn title(&self) -> String {
        format!("node \"{}\" of queue \"{}\"", self.name, self.queue)
    }

    /// The worker says that it has seen this state of the node; which is not true any more if it was changed since.
    pub(crate) async fn set_uptodate(&self, client: &Client) -> Result<()> {
        if self.role == Role::Leaf {
            let what = "uptodate = true where queue = $1 and provider = $2 and paused = $3";
            return self.update_leaf(client, what, &[&self.provider, &self.paused]).await;
        }
        client
            .execute(
                "with state as (select from pgq_node.local_state
                                 where queue_name = $1 and consumer_name = $4 and provider_node = $2 and paused = $3 for update)
                 select pgq_node.set_consumer_uptodate($1, $4, true) from state",
                &[&self.queue, &self.provider, &self.paused, &self.worker],
            )
            .await
            .doing(|| format!("write the state of {}", self.title()))?;
        Ok(())
    }

    /// Asks the worker to pause or to go on. False: it was so already.
    pub(crate) async fn set_paused(&self, client: &Client, paused: bool) -> Result<bool> {
        if self.role == Role::Leaf {
            self.update_leaf(
                client,
                "uptodate = uptodate and paused = $2, paused = $2 where queue = $1",
                &[&paused],
            )
            .await?;
            Ok(self.paused != paused)
        } else {
            let call = "pgq_node.set_consumer_paused($1, $2, $3)";
            let code = ask(client, &self.title(), call, &[&self.queue, &self.worker, &paused]).await?;
            Ok(code == 200)
        }
    }

    /// Has the node read from another one.
    pub(crate) async fn set_provider(&self, client: &Client, provider: &str) -> Result<()> {
        if self.role == Role::Leaf {
            self.update_leaf(client, "provider = $2, uptodate = false where queue = $1", &[&provider])
                .await
        } else {
            let call = "pgq_node.change_consumer_provider($1, $2, $3)";
            ask(client, &self.title(), call, &[&self.queue, &self.worker, &provider]).await?;
            Ok(())
        }
    }

    /// Why the worker does not get on, for `status`.
    pub(crate) async fn set_error(&self, client: &Client, error: &str) -> Result<()> {
        if self.role == Role::Leaf {
            self.update_leaf(client, "error = $2 where queue = $1", &[&error]).await
        } else {
            let call = "pgq_node.set_consumer_error($1, $2, $3)";
            ask(client, &self.title(), call, &[&self.queue, &self.worker, &error]).await?;
            Ok(())
        }
    }

    async fn update_leaf(&self, client: &Client, what: &str, values: &[&(dyn ToSql + Sync)]) -> Result<()> {
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&self.queue];
        parameters.extend_from_slice(values);
        client
            .execute(&format!("update pgcascade_replay.node set {what}"), &parameters)
            .await
            .doing(|| format!("write the state of {}", self.title()))?;
        Ok(())
    }
}

/// Whether two databases are nodes of one cascade, where the one that reads has a tick that the other one has.
pub(crate) async fn check_same(provider: &Client, subscriber: &Client, queue: &str) -> Result<()> {
    let (Some(above), Some(node)) = (load(provider, queue).await?, load(subscriber, queue).await?) else {
        return Err(Error::failure(format!(
            "the provider is no node of queue \"{queue}\", as the subscriber is"
        ))
        .hint("Correct --provider."));
    };
    let row = provider
        .query_opt(
            "select t.tick_time::text from pgq.queue q join pgq.tick t on t.tick_queue = q.queue_id
              where q.queue_name = $1 and t.tick_id = $2",
            &[&queue, &node.tick],
        )
        .await
        .doing(|| format!("look for tick {} of {}", node.tick, above.title()))?;
    match row.map(|row| row.get::<_, String>(0)) {
        None => Err(Error::failure(format!(
            "{} is at tick {}, which node \"{}\" does not have",
            node.title(),
            node.tick,
            above.name
        ))
        .hint("Name another node in --provider, or try again.")),
        Some(there) if node.tick_time.as_ref().is_some_and(|here| *here != there) => Err(Error::failure(format!(
            "{} and node \"{}\" do not have the same ticks: tick {} was made at another time there",
            node.title(),
            above.name,
            node.tick
        ))
        .hint("Correct --provider: it is a node of another cascade, or was restored.")),
        Some(_) => Ok(()),
    }
}

/// What a root or branch knows of epochs, as others have to learn it, if it is in a newer one than this. A database that is
/// something else knows nothing.
pub(crate) async fn newer_epochs(client: &Client, queue: &str, epoch: i64) -> Result<Option<String>> {
    if !exists(client, "pgcascade.epoch_history").await? {
        return Ok(None);
    }
    let row = client
        .query_one(
            "select pg_catalog.jsonb_agg(pg_catalog.to_jsonb(h) order by h.epoch)::text
               from pgcascade.epoch_history h
              where h.queue_name = $1 and (select max(epoch) from pgcascade.epoch_history where queue_name = $1) > $2",
            &[&queue, &epoch],
        )
        .await
        .doing(|| format!("read the epochs of queue \"{queue}\""))?;
    Ok(row.get(0))
}

/// A table that has no copy yet, or of which not all events are applied.
pub(crate) struct Unfinished {
    pub(crate) schema: String,
    pub(crate) table: String,
    /// Both, quoted.
    pub(crate) title: String,
    /// The node that its copy was begun from, if it was begun, and not by an old version.
    pub(crate) copied_from: Option<String>,
}

/// The tables of a node that are not all what its position says.
pub(crate) async fn unfinished(client: &Client, node: &Node) -> Result<Vec<Unfinished>> {
    if !exists(client, "pgcascade_replay.held_event").await? {
        return Ok(Vec::new());
    }
    let rows = client
        .query(include_str!("cascade/in_copy.sql"), &[&node.worker, &node.queue])
        .await
        .doing(|| format!("read the states of the tables of {}", node.title()))?;
    let table = |row: &Row| Unfinished {
        schema: row.get(0),
        table: row.get(1),
        title: row.get(2),
        copied_from: row.get(3),
    };
    Ok(rows.iter().map(table).collect())
}

/// The same, by what they are called.
pub(crate) async fn in_copy(client: &Client, node: &Node) -> Result<Vec<String>> {
    let tables = unfinished(client, node).await?;
    Ok(tables.into_iter().map(|table| table.title).collect())
}

/// Calls a function of pgq_node, which answers with a code and a sentence: below 400 is done, or nothing to do.
pub(crate) async fn ask(client: &Client, about: &str, call: &str, values: &[&(dyn ToSql + Sync)]) -> Result<i32> {
    let function = call.split('(').next().unwrap_or(call);
    let row = client
        .query_one(&format!("select ret_code, ret_note from {call}"), values)
        .await
        .doing(|| format!("call {function} for {about}"))?;
    let code: i32 = row.get(0);
    if code >= 400 {
        return Err(Error::failure(format!(
            "{function} refuses {about}: {}",
            row.get::<_, &str>(1)
        )));
    }
    Ok(code)
}
