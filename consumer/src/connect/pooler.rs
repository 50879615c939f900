//! Refusing a pooler that gives each transaction another session of the server.
//!
//! [`refuse`] is called by `connect` with the first session at each address that a run of the program connects to, before anything is set
//! in it. Behind such a pooler our settings, locks and prepared statements would go to whoever gets that session of the server
//! next: an application that writes with our session_replication_role would not be captured, without a word. A pooler that keeps sessions
//! (and resets them) is as good as none.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::{End, tls};
use crate::conninfo::{Attempt, ConnInfo};
use crate::error::{Error, Result};

/// How long the look may take: who cannot be asked a second time within it is not suspected.
const PATIENCE: Duration = Duration::from_secs(5);

/// The addresses that were looked at. A run has few.
static LOOKED_AT: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Looks whether two sessions are two. What keeps it from looking (no connection is left, say) is left to who needs the session.
pub(super) async fn refuse(client: &Client, target: &ConnInfo, end: End, attempt: &Attempt) -> Result<()> {
    let address = format!("{} {} {}", attempt.place, target.dbname(), target.user());
    if looked_at().contains(&address) {
        return Ok(());
    }
    match timeout(PATIENCE, is_shared(client, target, attempt)).await {
        Ok(Ok(false)) => {
            looked_at().insert(address);
            Ok(())
        }
        Ok(Ok(true)) => Err(Error::failure(format!(
            "at {} there is not the {end} itself (database {}), but a connection pooler that gives each transaction another session",
            attempt.place,
            target.dbname()
        ))
        .hint("Connect to the server itself, or have the pooler keep sessions for this database (PgBouncer: pool_mode=session).")),
        Ok(Err(error)) => {
            tracing::debug!(%end, "could not look for a pooler: {error}");
            Ok(())
        }
        Err(_) => Ok(()),
    }
}

fn looked_at() -> std::sync::MutexGuard<'static, BTreeSet<String>> {
    LOOKED_AT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While a transaction of a second session keeps one of the server's, the first session, which is idle, cannot have had the same before,
/// nor get another now, unless somebody hands them out.
async fn is_shared(first: &Client, target: &ConnInfo, attempt: &Attempt) -> Result<bool, Box<dyn std::error::Error>> {
    let before = process(first).await?;
    let (second, connection) = attempt
        .settings
        .connect(tls::connector(target.certificates(), attempt.verify)?)
        .await?;
    tokio::spawn(connection);
    second.batch_execute("begin").await?;
    Ok(process(&second).await? == before || process(first).await? != before)
}

/// The server's process that answers. By the simple protocol, which leaves nothing prepared.
async fn process(client: &Client) -> Result<Option<String>, tokio_postgres::Error> {
    let answer = client.simple_query("select pg_catalog.pg_backend_pid()").await?;
    Ok(answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }))
}
