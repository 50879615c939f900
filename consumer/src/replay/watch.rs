//! Whether the provider's tables are still captured as they were when replay looked at them.
//!
//! A table whose triggers were dropped or disabled, or that was renamed or replaced by another one, sends no events any more, and nothing else
//! says so: the two ends would drift apart in silence until the next start. So replay looks again once a second, and when something is
//! another, all begins again with setup.rs, which names what was lost.
//!
//! Taken by setup.rs before it makes sure that the triggers are there, so what is lost after that is seen here. Not on a branch, where
//! nobody writes: its events come from its provider.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::error::{Doing, Result};

/// Often enough to hear of it before much is lost; it takes a few index lookups for each table.
const EVERY: Duration = Duration::from_secs(1);

/// The provider's tables and their triggers, in short.
#[derive(Debug)]
pub(super) struct Watch {
    /// By oid.
    tables: Vec<u32>,
    seen: Option<String>,
    next: Instant,
}

impl Watch {
    /// Of no table.
    pub(super) fn nothing() -> Self {
        Self {
            tables: Vec::new(),
            seen: None,
            next: Instant::now(),
        }
    }

    /// As they are now. Takes no locks on them.
    pub(super) async fn take(provider: &Client, tables: Vec<u32>) -> Result<Self> {
        Ok(Self {
            seen: seen(provider, &tables).await?,
            tables,
            next: Instant::now() + EVERY,
        })
    }

    /// Whether they are no more what they were; looks only now and then.
    pub(super) async fn is_over(&mut self, provider: &Client) -> Result<bool> {
        if self.tables.is_empty() || Instant::now() < self.next {
            return Ok(false);
        }
        self.next = Instant::now() + EVERY;
        Ok(seen(provider, &self.tables).await? != self.seen)
    }
}

async fn seen(provider: &Client, tables: &Vec<u32>) -> Result<Option<String>> {
    let row = provider
        .query_typed_one(include_str!("sql/watch.sql"), &[(tables, Type::OID_ARRAY)])
        .await
        .doing(|| "see whether the tables of the provider are still captured".to_owned())?;
    Ok(row.get(0))
}
