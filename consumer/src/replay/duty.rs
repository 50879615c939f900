//! What replay does for a node of a cascade beside applying the data.
//!
//! The node itself says what it is and who its provider is (cascade.rs), and may say something else tomorrow: so it is
//! asked at the start, in each batch's transaction and at each poll (an address query only between batches, [`Duty::moved`]), and when the answer is another one all begins again
//! ([`Ended::NodeChanged`]). A worker that has seen a change says so (`uptodate`), and an administrator who asked it to
//! pause waits for that: nothing is committed between the two.
//!
//! - Any node: at the start it takes its place at its provider ([`attach`]). The position is a tick, which is the same on every
//!   node, so the provider's opinion is corrected, not asked; that is what makes a change of provider one write on the node.
//! - A branch: each tick is a batch of its own, and its transaction also stores the batch's events, with their ids and times,
//!   and the tick ([`Duty::store`], batch.rs). The tick comes first, since its lock is before that of the event table wherever both are taken.
//! - A branch has its provider's confirm gate (gate.rs).
//! - A node learns of the others, and of the watermark, from events of the root ([`Duty::tell`]), and reports its own
//!   watermark to its provider ([`Duty::publish`]).
//! - A leaf that has promised a takeover to take no ticks waits; a branch that is to fetch what only a leaf has does that (donated.rs).
//! - A root has nothing to read; its worker keeps the watermark moving, and looks whether it still is the root (epochs.rs).
//! - A node that has promised asks whether that takeover was given up while it was away (epochs.rs).

mod batch;
mod place;
mod waits;

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;

use super::adopted;
use super::donated::{self, Asked};
use super::epochs;
use super::gate;
use super::policy::Policies;
use super::position::Who;
use super::table::Name;
use super::wish::Wish;
use super::{Ended, Memory, merge, partitions, session, state, table_state};
use crate::cascade::{Node, Role, ask, home};
use crate::config::{NodeConfig, ReplayConfig};
use crate::connect::{End, Session, connect, exists};
use crate::error::{Doing, Error, Result};
use crate::progress::Progress;
use crate::shutdown::Shutdown;
pub(super) use batch::{Duty, Tick};
pub(crate) use place::subscribe;
pub(super) use place::{check_place, note_copies, start_copies_over, upstream};
pub(super) use waits::{check_has, check_source, not_yet};

/// How long the worker's lock is waited for before it is looked again whether it is needed.
const LOCK_PATIENCE: Duration = Duration::from_millis(200);

/// One life of a node's sessions.
pub(super) async fn attempt(
    config: &NodeConfig,
    wish: &Wish,
    policies: &Policies,
    shutdown: &Shutdown,
    progress: &Progress,
    memory: &mut Memory,
) -> Result<Ended> {
    let application_name = format!("pgcascade replay {}", config.checked.queue);
    let session = connect(&config.checked.subscriber, End::Subscriber, &application_name).await?;
    let node = config.load(&session.client).await?.ok_or_else(|| not_a_node(config))?;
    memory.node_reached = true;
    if node.role != Role::Root {
        state::install(&session.client, End::Subscriber).await?;
    }
    if node.role == Role::Root {
        // First: it may be a copy of the one that is the root now.
        epochs::learn(&session.client, &node).await?;
    }
    memory.home_silent |= !home::check(&session.client, &node, !memory.home_silent).await?;
    if node.paused || node.role == Role::Root || node.frozen {
        memory.connected = true;
        memory.stop_copies().await;
        return stand_by(session, node, config, shutdown, memory).await;
    }
    merge::check_position(&node)?;
    if merge::is_behind(&node) {
        memory.stop_copies().await;
        return merge::stand_behind(session, node, config, shutdown, memory).await;
    }
    if node.role == Role::Branch {
        // What it waits for is another replay of the node.
        memory.another_runs = true;
        settle(&session.client, &node).await?;
        memory.another_runs = false;
        epochs::released(&session.client, &node).await?;
        adopted::settle(&session.client, &node).await?;
    }
    // Whatever keeps it from that may be put right while the takeover waits: it is tried again.
    let donated = from_a_leaf(&session.client, &node).await.map_err(Error::transient)?;
    let hop = if donated {
        config.donated(&node)?
    } else {
        config.hop(&node)?
    };
    drop(session);
    let outcome = Box::pin(super::attempt(&hop, wish, policies, shutdown, progress, memory)).await;
    match outcome {
        // What it was about may be over: its provider may know it no more, and it may be the root.
        Err(error) if changed(config, &node).await => {
            tracing::info!("{error}; but the node was changed meanwhile");
            Ok(Ended::NodeChanged)
        }
        Err(error) if merge::is_closed(&node, &error) => Err(error.transient()),
        // A takeover has it wait, or had until a moment ago.
        Err(error) if error.sqlstate() == Some(&SqlState::OBJECT_IN_USE) => Err(error.transient()),
        outcome => outcome,
    }
}

/// Whether a takeover has the node fetch what a leaf alone has; then that is in its own database now.
async fn from_a_leaf(client: &Client, node: &Node) -> Result<bool> {
    if node.role != Role::Branch {
        return Ok(false);
    }
    let upto = match donated::asked(client, node).await? {
        Asked::Nothing => return Ok(false),
        Asked::Wait => None,
        Asked::Fetch(upto) => Some(upto),
    };
    let Some((session, leaf)) = donated::giver(node).await? else {
        return Ok(false);
    };
    match upto {
        Some(upto) if node.tick < upto => donated::fetch(client, node, &session.client, &leaf, upto).await?,
        Some(_) => {}
        None => {
            return Err(Error::failure(format!(
                "{} has promised to take no ticks until a takeover ends",
                node.title()
            ))
            .transient());
        }
    }
    Ok(true)
}

/// Until the node is told something else, for who waits for its provider to come back.
pub(super) async fn told(config: &NodeConfig) {
    let load = async || {
        let session = connect(&config.checked.subscriber, End::Subscriber, "pgcascade replay").await?;
        config.load(&session.client).await
    };
    let mut before = None;
    loop {
        if let Ok(Some(now)) = load().await {
            if before.as_ref().is_some_and(|before: &Node| before.differs(&now)) {
                return;
            }
            before.get_or_insert(now);
        }
        tokio::time::sleep(config.checked.poll_interval).await;
    }
}

/// Whether it is certain that the node is not what it was.
async fn changed(config: &NodeConfig, node: &Node) -> bool {
    let look = async {
        let session = connect(&config.checked.subscriber, End::Subscriber, "pgcascade replay").await?;
        node.look_again(&session.client).await
    };
    look.await.is_ok_and(|now| node.differs(&now))
}

/// The hop that a node's replay is about now; None: it is the root. Changes nothing.
pub(crate) async fn hop(config: &NodeConfig) -> Result<Option<ReplayConfig>> {
    let session = connect(&config.checked.subscriber, End::Subscriber, "consumer check").await?;
    let node = config.load(&session.client).await?.ok_or_else(|| not_a_node(config))?;
    (node.role != Role::Root).then(|| config.hop(&node)).transpose()
}

fn not_a_node(config: &NodeConfig) -> Error {
    Error::usage(format!(
        "--provider is missing, and the subscriber ({}) is no node of queue \"{}\"",
        config.checked.subscriber, config.checked.queue
    ))
    .hint("Give --provider; or make the subscriber a node: consumer node create-root, create-branch or create-leaf.")
}

pub(super) fn who(node: &Node) -> Who {
    Who {
        consumer: node.worker.clone(),
        queue: node.queue.clone(),
    }
}

/// Takes the worker's lock on the node.
async fn lock(client: &Client, node: &Node, shutdown: &Shutdown, memory: &mut Memory) -> Result<()> {
    memory.another_runs = true;
    let patience = session::LOCK_PATIENCE_AGAIN;
    session::lock_unless_stopped(client, End::Subscriber, &who(node), patience, shutdown).await?;
    memory.another_runs = false;
    Ok(())
}

/// Waits until the node has something to do.
async fn stand_by(
    session: Session,
    node: Node,
    config: &NodeConfig,
    shutdown: &Shutdown,
    memory: &mut Memory,
) -> Result<Ended> {
    let client = &session.client;
    lock(client, &node, shutdown, memory).await?;
    tracing::info!(
        node = node.name,
        queue = node.queue,
        "{}",
        if node.paused {
            "paused"
        } else if node.frozen {
            "promised to a takeover: no ticks are taken until that ends"
        } else {
            "this is the root: there is nothing to read"
        }
    );
    if node.role == Role::Root && exists(client, "pgcascade_replay.foreign_key").await? {
        // What was not made before it was the root.
        let who = who(&node);
        let revision = table_state::revision(client, &who).await?.unwrap_or(0);
        let checked = &config.checked;
        let keys = &mut memory.keys;
        keys.begin(client, &checked.subscriber, &who, revision, checked.poll_interval)
            .await?;
    }
    let mut publish_at = Instant::now();
    let mut now = node.clone();
    loop {
        if !now.uptodate {
            now.set_uptodate(client).await?;
        }
        let root = node.role == Role::Root && !node.paused;
        if root && config.checked.until_caught_up {
            return Ok(Ended::Done);
        }
        if Instant::now() >= publish_at {
            publish_at = Instant::now() + config.checked.watermark_interval;
            if root {
                epochs::learn(client, &node).await?;
            }
            epochs::released(client, &node).await?;
            if root {
                publish_global(client, &node).await?;
            }
        }
        // Both are cancel-safe.
        tokio::select! {
            () = tokio::time::sleep(config.checked.poll_interval) => {}
            () = shutdown.wait() => {
                tracing::info!("stopped");
                return Ok(Ended::Done);
            }
        }
        now = node.reload(client).await?;
        if node.differs(&now) {
            return Ok(Ended::NodeChanged);
        }
    }
}

/// The root tells every node which tick is still needed, if that is another one than before. Its event is an event like any
/// other, so an idle cascade is not told what only the telling moved.
async fn publish_global(client: &Client, node: &Node) -> Result<()> {
    let what = || format!("set the global watermark of {}", node.title());
    let row = client
        .query_opt(include_str!("sql/global_watermark.sql"), &[&node.queue])
        .await
        .doing(what)?;
    if !row.is_some_and(|row| row.get(0)) {
        return Ok(());
    }
    let call = "pgq_node.set_global_watermark($1, null)";
    match ask(client, &node.title(), call, &[&node.queue]).await {
        // Closed since it was looked at, by a takeover: what is left to do here the next look at the node tells.
        Err(error) if error.sqlstate() == Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE) => {
            tracing::debug!("{error}");
            Ok(())
        }
        outcome => outcome.map(drop),
    }
}

/// The node takes its place at its provider. Called with the worker's lock. Returns the position.
pub(super) async fn attach(provider: &Client, subscriber: &Client, node: &Node) -> Result<i64> {
    let now = node.reload(subscriber).await?;
    if node.differs(&now) {
        return Err(Error::failure(format!("{} was changed meanwhile", node.title())).transient());
    }
    let tick = position(subscriber, &now).await?;
    subscribe(provider, subscriber, &now, tick).await?;
    gate::join(provider, subscriber, &now).await?;
    if !now.uptodate {
        now.set_uptodate(subscriber).await?;
    }
    Ok(tick)
}

/// The node goes on with what it has fetched, without a place at a provider. Called with the worker's lock. Returns the position.
pub(super) async fn stay(subscriber: &Client, node: &Node) -> Result<i64> {
    let now = node.reload(subscriber).await?;
    if node.differs(&now) {
        return Err(Error::failure(format!("{} was changed meanwhile", node.title())).transient());
    }
    if !now.uptodate {
        now.set_uptodate(subscriber).await?;
    }
    position(subscriber, &now).await
}

/// The node's position; a branch has it three times, written together.
async fn position(subscriber: &Client, node: &Node) -> Result<i64> {
    if node.role == Role::Leaf {
        return Ok(node.tick);
    }
    let (found, top) = positions(subscriber, node).await?;
    if found == Some(node.tick) && top == Some(node.tick) {
        return Ok(node.tick);
    }
    let shown = |tick: Option<i64>| tick.map_or_else(|| "none".to_owned(), |tick| tick.to_string());
    Err(who(node).lost(&format!(
        "{} has applied tick {}, replay's position is {}, and the last tick in its queue is {}",
        node.title(),
        node.tick,
        shown(found),
        shown(top)
    )))
}

/// Replay's position, and the last tick in the queue.
async fn positions(subscriber: &Client, node: &Node) -> Result<(Option<i64>, Option<i64>)> {
    let found = who(node).load(subscriber).await?.and_then(|position| position.tick);
    let row = subscriber
        .query_one(include_str!("sql/last_tick.sql"), &[&node.queue])
        .await
        .doing(|| format!("read the last tick of {}", node.title()))?;
    Ok((found, row.get(0)))
}

/// Whether a branch has ticks that replay did not store, but this node made itself.
async fn was_root(client: &Client, node: &Node) -> Result<bool> {
    if node.role != Role::Branch {
        return Ok(false);
    }
    let (found, top) = positions(client, node).await?;
    Ok(top == Some(node.tick) && found != top)
}

/// A branch that was the root until a moment ago: everything up to its last tick was written there, into tables that were
/// captured. So that is the position, and they are in step.
///
/// Done by its replay, and by the command that made it a branch, whoever is first; under the worker's lock, so once.
pub(crate) async fn settle(client: &Client, node: &Node) -> Result<()> {
    state::install(client, End::Node).await?;
    let deadline = Instant::now() + session::LOCK_PATIENCE_AGAIN;
    loop {
        if !was_root(client, node).await? {
            return Ok(());
        }
        // Whoever was first keeps the lock if it is the replay, which goes on with it.
        match session::lock(client, End::Subscriber, &who(node), LOCK_PATIENCE).await {
            Ok(()) => break,
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => {}
        }
    }
    let node = node.reload(client).await?;
    if !was_root(client, &node).await? {
        return Ok(());
    }
    // Both or none: with a position it counts as settled.
    let what = || format!("record the tables of {}", node.title());
    client.batch_execute("begin").await.doing(what)?;
    who(&node).set(client, node.tick).await?;
    captured_tables(client, &who(&node)).await?;
    client.batch_execute("commit").await.doing(what)?;
    tracing::info!(
        node = node.name,
        tick = node.tick,
        "the node was the root; it goes on as a branch"
    );
    Ok(())
}

/// Tables that are captured here are in step with the queue; in the caller's transaction.
pub(crate) async fn captured_tables(client: &Client, who: &Who) -> Result<()> {
    let what = || format!("record the tables of consumer \"{}\"", who.consumer);
    let parameters: [&(dyn ToSql + Sync); 2] = [&who.queue, &who.consumer];
    client
        .execute(include_str!("sql/captured_tables.sql"), &parameters)
        .await
        .doing(what)?;
    let partitioned: Vec<Name> = client
        .query(include_str!("sql/captured_roots.sql"), &parameters)
        .await
        .doing(what)?
        .iter()
        .map(|row| Name::new(row.get::<_, String>(0), row.get::<_, String>(1)))
        .collect();
    partitions::lock(client, &partitioned).await.doing(what)?;
    client
        .execute(include_str!("sql/captured_partitions.sql"), &parameters)
        .await
        .doing(what)?;
    Ok(())
}
