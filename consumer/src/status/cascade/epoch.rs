//! What a node knows of changes of root: its epoch, whether it is closed, and what it has promised to a takeover.

use std::collections::BTreeMap;

use serde::Serialize;
use tokio_postgres::Client;

use super::Shown;
use crate::cascade::{Node, Role};
use crate::connect::exists;
use crate::error::{Doing, Result};

#[derive(Serialize, Default)]
pub(super) struct Epoch {
    /// Null: not known, or a node of PgQ's, which has none.
    pub(super) epoch: Option<i64>,
    /// Of a root: it takes writes.
    pub(super) open: Option<bool>,
    /// Of a node that was closed: why, if anybody said.
    pub(super) fence_reason: Option<String>,
    /// The takeover that it has promised its part in, and the epoch that that begins.
    pub(super) promised_to: Option<String>,
    promised_epoch: Option<i64>,
    /// It takes no ticks until that takeover ends.
    pub(super) frozen: bool,
}

impl Epoch {
    /// "epoch 2 to takeover ...", if something is promised.
    pub(super) fn promise(&self) -> Option<String> {
        let (epoch, takeover) = self.promised_epoch.zip(self.promised_to.as_ref())?;
        Some(format!("epoch {epoch} to takeover {takeover}"))
    }
}

pub(super) async fn epoch(client: &Client, node: &Node) -> Result<Epoch> {
    let query = if node.role == Role::Leaf {
        include_str!("leaf_epoch.sql")
    } else if exists(client, "pgcascade.node_state").await? {
        "select epoch, case when role = 'root' then open end as open, fence_reason, promised_op::text as promised_to, promised_epoch, frozen
           from pgcascade.node_state where queue_name = $1"
    } else {
        return Ok(Epoch::default());
    };
    let row = client
        .query_one(query, &[&node.queue])
        .await
        .doing(|| format!("read the epoch of {}", node.title()))?;
    Ok(Epoch {
        epoch: row.get("epoch"),
        open: row.get("open"),
        fence_reason: row.get("fence_reason"),
        promised_to: row.get("promised_to"),
        promised_epoch: row.get("promised_epoch"),
        frozen: row.get("frozen"),
    })
}

/// What keeps a cascade from going on after a change of root, or in the middle of one: warnings by node.
pub(super) fn warnings(nodes: &[Shown]) -> BTreeMap<String, Vec<String>> {
    let newest = nodes
        .iter()
        .filter(|node| !node.dead && node.role.as_deref() != Some("leaf"))
        .max_by_key(|node| (node.epoch.epoch, node.epoch.open))
        .and_then(|node| node.epoch.epoch.map(|epoch| (epoch, &node.node)));
    let mut warnings = BTreeMap::new();
    for node in nodes {
        let name = &node.node;
        let of = &node.epoch;
        let mut found = Vec::new();
        if of.open == Some(false) {
            let reason = of
                .fence_reason
                .as_deref()
                .unwrap_or("by hand, or by pgq_node.demote_root()");
            found.push(format!(
                "is closed for writers: {reason}; consumer takeover {name} --plan shows a takeover that is under way, docs/takeover.md what opens it"
            ));
        }
        if let Some(promise) = of.promise().filter(|_| of.frozen) {
            found.push(format!(
                "takes no ticks, as it has promised {promise}: consumer takeover --resume finishes that, --abort gives it up"
            ));
        }
        // Who has promised its part in a takeover learns of the epoch from that.
        if let (Some(epoch), Some((newest, knows)), None) = (of.epoch, newest, &of.promised_to)
            && epoch < newest
        {
            let remedy = if of.open.is_some() {
                "docs/takeover.md says how an old root joins again".to_owned()
            } else {
                let heard =
                    |other: &&Shown| Some(&other.node) == node.provider.as_ref() && other.epoch.epoch == Some(newest);
                let provider = nodes.iter().find(heard).map_or(knows, |provider| &provider.node);
                format!("consumer node change-provider {name} --provider {provider}")
            };
            found.push(format!(
                "is in epoch {epoch}, and node {knows} in epoch {newest}: {remedy}"
            ));
        }
        warnings.insert(name.clone(), found);
    }
    warnings
}
