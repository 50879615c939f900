//! Whether a database is the node that it says it is, or a copy of it: restored from a dump, a base backup, an older state.
//!
//! A copy knows everything that the node knows, its name at its provider included. Were it replayed, it would read in the
//! node's place, and what it has read the provider keeps for the node no longer. So replay asks at its start
//! ([`check`]): whoever answers at the node's own location has to be this database. Where nobody answers, the database has to be the
//! one that was replayed last; `pgcascade_replay.position.home` says which that was. Used by `node adopt`, too.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::Client;

use super::{Node, Role, load};
use crate::connect::{End, connect};
use crate::conninfo::ConnInfo;
use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;

/// How long the node's location is waited for: longer than for a connection, as who is slow for once is not nobody.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether two sessions lead to one database: only there the one sees the lock of the other. Nothing else tells a base backup
/// from what it was taken of.
pub(crate) async fn same_database(here: &Client, there: &Client) -> Result<bool> {
    let key: i64 = rand::random();
    let what = || "see whether two connections lead to one database".to_owned();
    here.execute("select pg_catalog.pg_advisory_lock($1)", &[&key])
        .await
        .doing(what)?;
    let free = there
        .query_one("select pg_catalog.pg_try_advisory_xact_lock($1)", &[&key])
        .await
        .doing(what);
    here.execute("select pg_catalog.pg_advisory_unlock($1)", &[&key])
        .await
        .doing(what)?;
    Ok(!free?.get::<_, bool>(0))
}

/// What is found at a node's location.
enum Found {
    /// This database.
    Here,
    /// Another one that says that it is the node, too.
    Another,
    /// Nobody who could tell.
    Nobody,
}

async fn look(client: &Client, node: &Node, place: &ConnInfo) -> Result<Found> {
    let session = connect(place, End::Node, "pgcascade replay").await?;
    failpoint("home_asked");
    if same_database(client, &session.client).await? {
        return Ok(Found::Here);
    }
    let there = load(&session.client, &node.queue).await?;
    Ok(match there {
        Some(there) if there.name == node.name => Found::Another,
        _ => Found::Nobody,
    })
}

/// Refuses a copy. `ask`: whether to look at the node's location; false is returned if that told nothing, which need not be
/// waited for again.
pub(crate) async fn check(client: &Client, node: &Node, ask: bool) -> Result<bool> {
    let mut found = Found::Nobody;
    if ask && let Some(at) = node.find(client, &node.name).await? {
        let place = ConnInfo::parse(&at)
            .map_err(|error| error.within(format_args!("the location of node \"{}\"", node.name)))?;
        found = match timeout(PATIENCE, look(client, node, &place)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::debug!("{error}");
                Found::Nobody
            }
            Err(_) => Found::Nobody,
        };
        if matches!(found, Found::Another) {
            return Err(Error::failure(format!(
                "the database is a copy of {}, which is at {place}",
                node.title()
            ))
            .hint("Make it a node of its own: consumer node adopt NAME. Replaying it in the place of that one would lose what that one has not read."));
        }
    }
    let known = matches!(found, Found::Here);
    if node.role == Role::Root {
        return Ok(known);
    }
    let row = client
        .query_opt(
            "select home, (select system_identifier::text from pg_catalog.pg_control_system()) || ':' ||
                          (select oid::text from pg_catalog.pg_database where datname = pg_catalog.current_database())
               from pgcascade_replay.position where consumer = $1 and queue = $2",
            &[&node.worker, &node.queue],
        )
        .await
        .doing(|| format!("read which database {} is", node.title()))?;
    let Some(row) = row else { return Ok(known) };
    let (home, here): (Option<String>, String) = (row.get(0), row.get(1));
    match home {
        Some(home) if home == here => {}
        Some(home) if !known => {
            return Err(Error::failure(format!(
                "{} was replayed in another database (identity {home}, this one is {here}), and who has its location now does not say that it is this one",
                node.title()
            ))
            .hint("If this is a copy, make it a node of its own: consumer node adopt NAME. If it took the place of that one, say where it is: consumer node change-location."));
        }
        _ => note(client, node, &here).await?,
    }
    Ok(known)
}

async fn note(client: &Client, node: &Node, here: &str) -> Result<()> {
    client
        .execute(
            "update pgcascade_replay.position set home = $3 where consumer = $1 and queue = $2",
            &[&node.worker, &node.queue, &here],
        )
        .await
        .doing(|| format!("note which database {} is", node.title()))?;
    Ok(())
}
