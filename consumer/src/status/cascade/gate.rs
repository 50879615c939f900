//! The confirm gate of a node (sql/gate.sql): what it wants, up to where it gives, and the standbys that were named for it.

use serde::Serialize;
use tokio_postgres::Client;

use crate::connect::exists;
use crate::error::{Doing, Result};

#[derive(Serialize)]
pub(super) struct Gate {
    /// How many branches and standbys have to have a tick.
    pub(super) candidates: i32,
    /// Up to where that is so; null: everything that is here.
    pub(super) released_tick: Option<i64>,
    /// Those of the node's own server that were named for it.
    pub(super) standbys: Vec<Standby>,
}

#[derive(Serialize)]
pub(super) struct Standby {
    pub(super) name: String,
    /// The last tick that it is known to have.
    pub(super) tick: i64,
    /// It streams from the server now.
    pub(super) streams: bool,
    /// Who has to know of it before it counts.
    unknown_to: Vec<String>,
}

impl Gate {
    /// What keeps a root's gate from releasing ticks, or from counting what it was told to; `branches` has the provider of each.
    pub(super) fn warnings(&self, root: &str, branches: &[Option<String>]) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut there = branches.iter().flatten().filter(|of| *of == root).count();
        for Standby {
            name,
            tick,
            streams,
            unknown_to,
        } in &self.standbys
        {
            // One that was never there may be the server itself, under the name that it has when it is a standby.
            if *tick == 0 && !streams {
                continue;
            }
            if !unknown_to.is_empty() {
                let who = unknown_to.join(", ");
                warnings.push(format!(
                    "standby {name} does not count for its confirm gate yet: not known to {who}"
                ));
            } else if *streams {
                there += 1;
            }
            if !streams {
                warnings.push(format!("standby {name} of its confirm gate does not stream from it"));
            }
        }
        let wanted = self.candidates;
        if there < usize::try_from(wanted).unwrap_or(0) {
            warnings.push(format!(
                "its confirm gate wants {wanted} branches and standbys to have each tick, and {there} read from it: leaves and consumers get none"
            ));
        }
        warnings
    }
}

/// A leaf has none, nor has a node of PgQ's.
pub(super) async fn gate(client: &Client, queue: &str) -> Result<Option<Gate>> {
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
    let Some(row) = row else { return Ok(None) };
    let standbys = client
        .query(
            "select standby_name, tick_id, streams, unknown_to from pgcascade.gate_standbys() where queue_name = $1",
            &[&queue],
        )
        .await
        .doing(|| "read the standbys of the confirm gate".to_owned())?;
    Ok(Some(Gate {
        candidates: row.get(0),
        released_tick: row.get(1),
        standbys: standbys
            .iter()
            .map(|row| Standby {
                name: row.get(0),
                tick: row.get(1),
                streams: row.get(2),
                unknown_to: row.get(3),
            })
            .collect(),
    }))
}
