//! `consumer status` of a cascade: the tree of nodes, from any one of them.
//!
//! The node that is asked first knows where the others are; all of them are then asked at once, each within the same time
//! limit, and those that only they know of after that. So one that does not answer costs one time limit, and is shown as
//! what it is. Lag is counted at the root, or, when that cannot be reached, at the node that is furthest: what a node has
//! not applied of what is there.

mod epoch;
mod gate;
mod look;
mod show;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::Client;

use crate::connect::{End, connect};
use crate::conninfo::ConnInfo;
use crate::error::{Doing, Error, Result};
use crate::node::change::{BEGINS_ANEW, is_replayed};
use crate::shutdown::Shutdown;
use epoch::Epoch;
use gate::Gate;

/// What is wanted.
pub(super) struct Wanted {
    /// Any node.
    pub(super) database: ConnInfo,
    pub(super) queue: String,
    pub(super) json: bool,
    /// Print nothing.
    pub(super) quiet: bool,
    /// Do it again after so long.
    pub(super) watch: Option<Duration>,
    /// The time limit for each node.
    pub(super) timeout: Duration,
    /// More lag than this is a failure.
    pub(super) max_lag: Option<Duration>,
}

/// Everything that is shown; the shape of --json.
#[derive(Serialize)]
struct Cascade {
    queue: String,
    /// Every node is reached, applies what it gets, and is not further behind than --max-lag says.
    healthy: bool,
    /// With --watch: why the node that is asked first could not say where the others are.
    error: Option<String>,
    nodes: Vec<Shown>,
}

/// One node.
#[derive(Serialize, Default)]
struct Shown {
    node: String,
    /// Where it is for programs, and for administrators if that is another way.
    location: String,
    admin_location: Option<String>,
    reachable: bool,
    /// Declared dead by somebody.
    dead: bool,
    /// Root, branch or leaf; null if it could not be asked.
    role: Option<String>,
    provider: Option<String>,
    #[serde(flatten)]
    epoch: Epoch,
    tick: Option<i64>,
    /// When that was made on the root.
    tick_time: Option<String>,
    lag: Option<Lag>,
    paused: bool,
    /// Its replay has seen the last change of its state.
    uptodate: bool,
    /// Whether a replay of it runs now.
    replaying: bool,
    /// The oldest tick that it and those below it need, and that any node needs, as it knows.
    local_watermark: Option<i64>,
    global_watermark: Option<i64>,
    /// How many tables are in which state.
    tables: BTreeMap<String, i64>,
    /// What it keeps from leaves and plain consumers until branches and standbys have it; null: nothing.
    gate: Option<Gate>,
    /// Nodes that are registered as reading from here.
    subscribers: Vec<String>,
    /// Why it could not be asked, or why its replay does not get on.
    error: Option<String>,
    /// What does not fit together.
    warnings: Vec<String>,
}

impl Shown {
    /// It should be replayed, and is not.
    fn lacks_replay(&self) -> bool {
        let reads = self.role.as_deref().is_some_and(|role| role != "root");
        reads && self.reachable && !self.replaying && !self.paused
    }
}

#[derive(Serialize)]
struct Lag {
    ticks: i64,
    events: Option<i64>,
    seconds: Option<f64>,
}

/// Shows it, once or again and again: whoever watches wants to see what goes wrong, and that it is over. Only what fails at once
/// fails the command, as that is more often a wrong address.
pub(super) async fn run(wanted: Wanted, shutdown: &Shutdown) -> Result<ExitCode> {
    let mut seen = false;
    loop {
        // Only reads are under way, on connections that end with them.
        let looked = tokio::select! {
            looked = look(&wanted) => looked,
            () = shutdown.wait() => return Ok(ExitCode::SUCCESS),
        };
        let cascade = match looked {
            Err(error) if seen => Cascade {
                queue: wanted.queue.clone(),
                healthy: false,
                error: Some(error.to_string()),
                nodes: Vec::new(),
            },
            looked => looked?,
        };
        seen = true;
        if !wanted.quiet {
            let text = if wanted.json {
                serde_json::to_string(&cascade)
                    .map_err(|error| Error::failure(format!("could not write JSON: {error}")))?
                    + "\n"
            } else {
                show::text(&cascade)
            };
            super::show::print(&text)?;
        }
        let code = if cascade.healthy {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
        let Some(pause) = wanted.watch else { return Ok(code) };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.wait() => return Ok(ExitCode::SUCCESS),
        }
    }
}

/// The nodes that the first one knows, itself among them.
async fn enter(wanted: &Wanted) -> Result<look::Known> {
    let queue = &wanted.queue;
    let entry = connect(&wanted.database, End::Node, "consumer status").await?;
    let Some(node) = crate::cascade::load(&entry.client, queue).await? else {
        return Err(Error::usage(format!(
            "the database ({}) is no node of queue \"{queue}\"",
            wanted.database
        ))
        .hint("Name any node of its cascade; or, for a replay without a cascade, both --provider and --subscriber."));
    };
    let mut known = look::Known::new();
    look::locations(&entry.client, queue, &mut known).await?;
    // The way by which it was reached is one that works.
    known.entry(node.name).or_default().given = Some(wanted.database.clone());
    Ok(known)
}

async fn look(wanted: &Wanted) -> Result<Cascade> {
    let queue = &wanted.queue;
    let mut known = timeout(wanted.timeout, enter(wanted)).await.unwrap_or_else(|_| {
        Err(Error::failure(format!(
            "the node ({}) gave no answer within {} seconds",
            wanted.database,
            wanted.timeout.as_secs_f64()
        ))
        .hint("Name another node of the cascade, or wait longer with --timeout."))
    })?;
    let mut nodes = all(wanted, &mut known).await;
    if begun_anew(wanted, &nodes).await {
        // All of them, as what one says is compared with what others say.
        nodes = all(wanted, &mut known).await;
    }
    let mut nodes: Vec<Shown> = nodes.into_iter().map(|found| found.shown).collect();
    compare(&mut nodes);
    let late = |node: &Shown| {
        let seconds = node.lag.as_ref().and_then(|lag| lag.seconds).unwrap_or(0.0);
        wanted.max_lag.is_some_and(|most| seconds > most.as_secs_f64())
    };
    let healthy = nodes
        .iter()
        .all(|node| node.dead || (node.reachable && node.error.is_none() && node.warnings.is_empty() && !late(node)));
    Ok(Cascade {
        queue: queue.clone(),
        healthy,
        error: None,
        nodes,
    })
}

/// What all nodes say now, of those that are known and those that they know.
async fn all(wanted: &Wanted, known: &mut look::Known) -> Vec<look::Found> {
    let mut nodes: BTreeMap<String, look::Found> = BTreeMap::new();
    // Each round asks those that the rounds before heard of.
    loop {
        let new: Vec<_> = known.iter().filter(|(name, _)| !nodes.contains_key(*name)).collect();
        if new.is_empty() {
            break;
        }
        let found = join_all(new.into_iter().map(|(name, place)| look::ask(wanted, name, place))).await;
        for one in found {
            for (name, place) in &one.known {
                known.entry(name.clone()).or_insert_with(|| place.clone());
            }
            nodes.insert(one.shown.node.clone(), one);
        }
    }
    let mut nodes: Vec<look::Found> = nodes.into_values().collect();
    count_lag(wanted, &mut nodes).await;
    nodes
}

/// Whether a node is replayed now that was not when it was asked.
async fn begun_anew(wanted: &Wanted, nodes: &[look::Found]) -> bool {
    let idle = nodes.iter().filter(|node| node.shown.lacks_replay());
    let patience = BEGINS_ANEW.min(wanted.timeout / 2);
    let looks = join_all(idle.filter_map(|node| Some(is_replayed(node.at.as_ref()?, patience))));
    let looked = timeout(wanted.timeout, looks).await.unwrap_or_default();
    looked.into_iter().any(|found| found.unwrap_or(false))
}

/// Asks one node how far behind it all the others are.
async fn count_lag(wanted: &Wanted, nodes: &mut [look::Found]) {
    let best = nodes
        .iter()
        .filter(|node| node.at.is_some() && node.shown.role.as_deref() != Some("leaf"))
        .max_by_key(|node| (node.shown.role.as_deref() == Some("root"), node.shown.tick));
    let Some(client) = best.and_then(|node| Some(&node.at.as_ref()?.session.client)) else {
        return;
    };
    let ticks: Vec<i64> = nodes.iter().filter_map(|node| node.shown.tick).collect();
    let deadline = Instant::now() + wanted.timeout;
    let Ok(Ok(lags)) = timeout_at(deadline, lags(client, &wanted.queue, &ticks)).await else {
        return;
    };
    for node in nodes {
        let at = node
            .shown
            .tick
            .and_then(|tick| ticks.iter().position(|other| *other == tick));
        node.shown.lag = at.and_then(|at| lags.get(at)).map(|(ticks, events, seconds)| Lag {
            ticks: *ticks,
            events: *events,
            seconds: *seconds,
        });
    }
}

async fn lags(client: &Client, queue: &str, ticks: &[i64]) -> Result<Vec<(i64, Option<i64>, Option<f64>)>> {
    let rows = client
        .query(include_str!("cascade/lag.sql"), &[&queue, &ticks])
        .await
        .doing(|| format!("count the lag in queue \"{queue}\""))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
}

/// What one node says of another must be what that one says of itself.
fn compare(nodes: &mut [Shown]) {
    let reading: BTreeMap<String, (Option<String>, bool)> = nodes
        .iter()
        .map(|node| (node.node.clone(), (node.provider.clone(), node.reachable)))
        .collect();
    let roots: BTreeSet<String> = nodes
        .iter()
        .filter(|node| node.role.as_deref() == Some("root"))
        .map(|node| node.node.clone())
        .collect();
    let branches: Vec<Option<String>> = nodes
        .iter()
        .filter(|node| node.role.as_deref() == Some("branch"))
        .map(|node| node.provider.clone())
        .collect();
    let mut epochs = epoch::warnings(nodes);
    for node in nodes.iter_mut() {
        node.warnings.extend(epochs.remove(&node.node).unwrap_or_default());
        for subscriber in &node.subscribers {
            match reading.get(subscriber) {
                Some((Some(provider), true)) if *provider != node.node => node.warnings.push(format!(
                    "keeps events for node {subscriber}, which reads from {provider}: consumer node change-provider {subscriber} --provider {provider}"
                )),
                None => node
                    .warnings
                    .push(format!("keeps events for node {subscriber}, whose location nobody knows")),
                Some(_) => {}
            }
        }
        if roots.len() > 1 && roots.contains(&node.node) {
            node.warnings.push("is not the only root".to_owned());
        }
        if let Some(gate) = node.gate.as_ref().filter(|_| roots.contains(&node.node)) {
            node.warnings.extend(gate.warnings(&node.node, &branches));
        }
        if let Some(state) = ["broken"].iter().find(|state| node.tables.contains_key(**state)) {
            node.warnings.push(format!("has tables that are {state}"));
        }
        if node.lacks_replay() {
            node.warnings.push("is not being replayed".to_owned());
        }
    }
}
