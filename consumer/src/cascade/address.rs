//! Where the nodes of a cascade are, as one of them knows it.
//!
//! Each node has an address for programs, which replay uses, and may have one for administrators, which the commands use (node/tree.rs). A
//! root or branch keeps them in pgq_node.node_location and pgcascade.node_admin_location, a leaf in one table; the root's events tell
//! them to all. Replay may be told to ask a query of the administrator's own first (`--address-query`), which is run on the node's
//! database: then a row of that says where a node is.

use std::sync::Arc;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{Node, Role, ask};
use crate::connect::exists;
use crate::conninfo::{ConnInfo, refuse_password};
use crate::error::{Doing, Error, Result};

/// Where roots and branches of ours keep the addresses for administrators; PgQ's own have none.
pub(crate) const ADMIN_LOCATIONS: &str = "pgcascade.node_admin_location";

/// How many seconds the query may take.
const PATIENCE: u32 = 5;

impl Node {
    /// The same node, that asks a query where others are.
    pub(crate) async fn asking(mut self, client: &Client, query: Option<Arc<str>>) -> Result<Self> {
        self.address_query = query;
        if self.address_query.is_some()
            && self.role != Role::Root
            && let Some(found) = answer(client, &self, &self.provider).await?
        {
            self.provider_location = Some(found);
        }
        Ok(self)
    }

    /// Where another node is: what the query says, or what is stored.
    pub(crate) async fn find(&self, client: &Client, of: &str) -> Result<Option<String>> {
        match answer(client, self, of).await? {
            None => location(client, self, of).await,
            found => Ok(found),
        }
    }
}

/// What the query says. None: there is no query, or it knows nothing of that node. In a transaction of its own, since it is not ours: it
/// may take as long as [`PATIENCE`], and what it locks is free again.
async fn answer(client: &Client, node: &Node, of: &str) -> Result<Option<String>> {
    let Some(query) = &node.address_query else {
        return Ok(None);
    };
    let what = || format!("ask --address-query where node \"{of}\" of queue \"{}\" is", node.queue);
    client
        .batch_execute(&format!("begin; set local statement_timeout = '{PATIENCE}s'"))
        .await
        .doing(what)?;
    let told = run(client, node, query, of, what).await;
    let end = if told.is_ok() { "commit" } else { "rollback" };
    let ended = client.batch_execute(end).await.doing(what);
    let found = told?;
    ended?;
    let Some(found) = found else { return Ok(None) };
    let told = format!("the address that --address-query gives for node \"{of}\"");
    refuse_password(&told, &found)
        .and_then(|()| ConnInfo::parse(&found).map(drop))
        .map_err(|error| error.within(&told))?;
    Ok(Some(found))
}

/// The query's one text, or none.
async fn run(client: &Client, node: &Node, query: &str, of: &str, what: impl Fn() -> String) -> Result<Option<String>> {
    let wrong = |what: &str| {
        Error::failure(format!("--address-query {what}, when it is asked where node \"{of}\" is")).hint(
            "It is run on the node's own database, has the node's name as $1 and may have the queue's as $2, and gives one text, or no row \
             where the stored address is to be used. No schema is searched: write schema.table.",
        )
    };
    let late = |error: Error| {
        if error.sqlstate() == Some(&SqlState::QUERY_CANCELED) {
            error.hint(format!("It is given {PATIENCE} seconds."))
        } else {
            error
        }
    };
    let statement = client.prepare(query).await.doing(&what)?;
    let rows = match statement.params().len() {
        1 => client.query(&statement, &[&of]).await,
        2 => client.query(&statement, &[&of, &node.queue]).await,
        _ => return Err(wrong("does not have the parameter $1")),
    }
    .doing(&what)
    .map_err(late)?;
    if statement.columns().len() != 1 {
        return Err(wrong("does not give one column"));
    }
    let row = match rows.as_slice() {
        [] => return Ok(None),
        [row] => row,
        _ => return Err(wrong("gives more than one row")),
    };
    row.try_get(0).map_err(|_| wrong("gives something else than text"))
}

/// Where a node is for programs, as this one has it stored.
pub(crate) async fn location(client: &Client, node: &Node, of: &str) -> Result<Option<String>> {
    let query = if node.role == Role::Leaf {
        "select location from pgcascade_replay.node_location where queue = $1 and node = $2"
    } else {
        "select node_location from pgq_node.node_location where queue_name = $1 and node_name = $2"
    };
    let row = client
        .query_opt(query, &[&node.queue, &of])
        .await
        .doing(|| format!("look up where node \"{of}\" of queue \"{}\" is", node.queue))?;
    Ok(row.map(|row| row.get(0)))
}

/// Whether a node goes by that name: while it is being renamed it has two, at one location.
pub(crate) async fn is_called(client: &Client, node: &Node, name: &str) -> Result<bool> {
    if node.name == name {
        return Ok(true);
    }
    let there = location(client, node, name).await?;
    Ok(there.is_some() && there == location(client, node, &node.name).await?)
}

/// This node learns where another one is for programs. If that is somewhere else than before, it forgets where it is for
/// administrators, who may be led to where it was.
pub(crate) async fn set_location(client: &Client, node: &Node, of: &str, location: &str, dead: bool) -> Result<()> {
    if node.role != Role::Leaf {
        let call = "pgq_node.register_location($1, $2, $3, $4)";
        ask(client, &node.title(), call, &[&node.queue, &of, &location, &dead]).await?;
        return Ok(());
    }
    client
        .execute(
            "insert into pgcascade_replay.node_location as known (queue, node, location, dead) values ($1, $2, $3, $4)
             on conflict (queue, node) do update
                set location = excluded.location, dead = excluded.dead,
                    admin_location = case when known.location = excluded.location then known.admin_location end",
            &[&node.queue, &of, &location, &dead],
        )
        .await
        .doing(|| format!("write where node \"{of}\" of queue \"{}\" is", node.queue))?;
    Ok(())
}

/// And where it is for administrators; None: where it is for programs.
pub(crate) async fn set_admin_location(client: &Client, node: &Node, of: &str, location: Option<&str>) -> Result<()> {
    if node.role != Role::Leaf {
        return tell_admin_location(client, &node.queue, of, location).await;
    }
    client
        .execute(
            "update pgcascade_replay.node_location set admin_location = $3 where queue = $1 and node = $2",
            &[&node.queue, &of, &location],
        )
        .await
        .doing(|| {
            format!(
                "write where administrators reach node \"{of}\" of queue \"{}\"",
                node.queue
            )
        })?;
    Ok(())
}

/// The same of a root or branch, which need not be a node yet. One of PgQ's own has no place for it.
pub(crate) async fn tell_admin_location(client: &Client, queue: &str, of: &str, location: Option<&str>) -> Result<()> {
    if !exists(client, ADMIN_LOCATIONS).await? {
        if location.is_some() {
            tracing::warn!(
                "a node of PgQ's own does not keep where administrators reach node \"{of}\" of queue \"{queue}\""
            );
        }
        return Ok(());
    }
    client
        .execute(
            "select pgcascade.set_admin_location($1, $2, $3)",
            &[&queue, &of, &location],
        )
        .await
        .doing(|| format!("write where administrators reach node \"{of}\" of queue \"{queue}\""))?;
    Ok(())
}

/// This node forgets another one.
pub(crate) async fn forget_location(client: &Client, node: &Node, of: &str) -> Result<()> {
    if node.role != Role::Leaf {
        let call = "pgq_node.unregister_location($1, $2)";
        ask(client, &node.title(), call, &[&node.queue, &of]).await?;
        return Ok(());
    }
    client
        .execute(
            "delete from pgcascade_replay.node_location where queue = $1 and node = $2",
            &[&node.queue, &of],
        )
        .await
        .doing(|| format!("forget where node \"{of}\" of queue \"{}\" is", node.queue))?;
    Ok(())
}
