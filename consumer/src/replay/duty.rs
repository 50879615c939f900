//! What replay does for a node of a cascade beside applying the data.
//!
//! The node itself says what it is and who its provider is (cascade.rs), and may say something else tomorrow: so it is
//! asked at the start, in each batch's transaction and at each poll, and when the answer is another one all begins again
//! ([`Ended::NodeChanged`]). A worker that has seen a change says so (`uptodate`), and an administrator who asked it to
//! pause waits for that: nothing is committed between the two.
//!
//! - Any node: at the start it takes its place at its provider ([`attach`]). The position is a tick, which is the same on every
//!   node, so the provider's opinion is corrected, not asked; that is what makes a change of provider one write on the node.
//! - A branch: each tick is a batch of its own, and its transaction also stores the batch's events, with their ids and times,
//!   and the tick ([`Duty::store`]). The tick comes first, since its lock is before that of the event table wherever both are taken.
//! - A branch has its provider's confirm gate (gate.rs).
//! - A node learns of the others, and of the watermark, from events of the root ([`Duty::tell`]), and reports its own
//!   watermark to its provider ([`Duty::publish`]).
//! - A root has nothing to read; its worker keeps the watermark moving, and looks whether it still is the root ([`learn`]).

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, TryStreamExt};
use tokio::time::{Instant, timeout};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::gate::{self, Gate};
use super::policy::Policies;
use super::position::Who;
use super::table::{Name, literal};
use super::table_state::Entry;
use super::wish::Wish;
use super::{Ended, Memory, merge, session, state};
use crate::cascade::{self, Node, Role, ask, home};
use crate::config::{NodeConfig, ReplayConfig};
use crate::connect::{End, Session, connect};
use crate::conninfo::ConnInfo;
use crate::error::{Doing, Error, Result};
use crate::progress::Progress;
use crate::shutdown::Shutdown;

/// How long the worker's lock is waited for before it is looked again whether it is needed.
const LOCK_PATIENCE: Duration = Duration::from_millis(200);

/// How long a root waits for another node's answer.
const EPOCH_PATIENCE: Duration = Duration::from_secs(5);

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
    let node = cascade::load(&session.client, &config.checked.queue)
        .await?
        .ok_or_else(|| not_a_node(config))?;
    memory.node_reached = true;
    if node.role != Role::Root {
        state::install(&session.client).await?;
    }
    if node.role == Role::Root {
        // First: it may be a copy of the one that is the root now.
        learn(&session.client, &node).await?;
    }
    memory.home_silent |= !home::check(&session.client, &node, !memory.home_silent).await?;
    if node.paused || node.role == Role::Root {
        memory.connected = true;
        return stand_by(session, node, config, shutdown, memory).await;
    }
    merge::check_position(&node)?;
    if merge::is_behind(&node) {
        return merge::stand_behind(session, node, config, shutdown, memory).await;
    }
    if node.role == Role::Branch {
        // What it waits for is another replay of the node.
        memory.another_runs = true;
        settle(&session.client, &node).await?;
        memory.another_runs = false;
    }
    drop(session);
    let hop = config.hop(&node)?;
    let outcome = Box::pin(super::attempt(&hop, wish, policies, shutdown, progress, memory)).await;
    match outcome {
        // What it was about may be over: its provider may know it no more, and it may be the root.
        Err(error) if changed(config, &node).await => {
            tracing::info!("{error}; but the node was changed meanwhile");
            Ok(Ended::NodeChanged)
        }
        Err(error) if merge::is_closed(&node, &error) => Err(error.transient()),
        // A takeover has it wait; what ends that changes the node.
        Err(error) if waits(config, &node, &error).await => Err(error.transient()),
        outcome => outcome,
    }
}

/// Whether the node has promised to take no ticks for a while.
async fn waits(config: &NodeConfig, node: &Node, error: &Error) -> bool {
    if node.role != Role::Branch || error.sqlstate() != Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE) {
        return false;
    }
    let look = async {
        let session = connect(&config.checked.subscriber, End::Subscriber, "pgcascade replay").await?;
        let query = "select frozen from pgcascade.node_state where queue_name = $1";
        let row = session
            .client
            .query_one(query, &[&node.queue])
            .await
            .doing(|| format!("read what {} has promised", node.title()))?;
        Ok::<bool, Error>(row.get(0))
    };
    look.await.is_ok_and(|frozen| frozen)
}

/// Until the node is told something else, for who waits for its provider to come back.
pub(super) async fn told(config: &NodeConfig) {
    let load = async || {
        let session = connect(&config.checked.subscriber, End::Subscriber, "pgcascade replay").await?;
        cascade::load(&session.client, &config.checked.queue).await
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
        node.reload(&session.client).await
    };
    look.await.is_ok_and(|now| node.differs(&now))
}

/// The hop that a node's replay is about now; None: it is the root. Changes nothing.
pub(crate) async fn hop(config: &NodeConfig) -> Result<Option<ReplayConfig>> {
    let session = connect(&config.checked.subscriber, End::Subscriber, "consumer check").await?;
    let node = cascade::load(&session.client, &config.checked.queue)
        .await?
        .ok_or_else(|| not_a_node(config))?;
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
async fn lock(client: &Client, node: &Node, memory: &mut Memory) -> Result<()> {
    memory.another_runs = true;
    session::lock(client, End::Subscriber, &who(node), session::LOCK_PATIENCE_AGAIN).await?;
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
    lock(client, &node, memory).await?;
    tracing::info!(
        node = node.name,
        queue = node.queue,
        "{}",
        if node.paused {
            "paused"
        } else {
            "this is the root: there is nothing to read"
        }
    );
    let mut publish_at = Instant::now();
    let mut now = node.clone();
    loop {
        if !now.uptodate {
            now.set_uptodate(client).await?;
        }
        if node.role == Role::Root && !node.paused {
            if config.checked.until_caught_up {
                return Ok(Ended::Done);
            }
            if Instant::now() >= publish_at {
                publish_at = Instant::now() + config.checked.watermark_interval;
                learn(client, &node).await?;
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

/// A root that was away asks the others whether it still is one; where a newer epoch is in force, it closes itself.
async fn learn(client: &Client, node: &Node) -> Result<()> {
    let rows = client
        .query(
            "select l.node_name, l.node_location, s.epoch from pgq_node.node_location l join pgcascade.node_state s using (queue_name)
              where l.queue_name = $1 and l.node_name <> $2 and not l.dead",
            &[&node.queue, &node.name],
        )
        .await
        .doing(|| format!("read where the other nodes of queue \"{}\" are", node.queue))?;
    for row in rows {
        let (name, location, epoch): (String, String, i64) = (row.get(0), row.get(1), row.get(2));
        let look = async {
            let other = connect(&ConnInfo::parse(&location)?, End::Node, "pgcascade replay").await?;
            // A promoted root that was never opened proves nothing: its takeover may have been given up for lost.
            let query = "select role = 'branch' or open from pgcascade.node_state where queue_name = $1";
            let row = other
                .client
                .query_opt(query, &[&node.queue])
                .await
                .doing(|| format!("look at node \"{name}\""))?;
            if !row.is_some_and(|row| row.get(0)) {
                return Ok(None);
            }
            cascade::newer_epochs(&other.client, &node.queue, epoch).await
        };
        match timeout(EPOCH_PATIENCE, look).await {
            Ok(Ok(Some(epochs))) => {
                client
                    .execute(
                        "select pgcascade.learn_epochs($1, $2::text::jsonb)",
                        &[&node.queue, &epochs],
                    )
                    .await
                    .doing(|| format!("have {} learn the epochs of node \"{name}\"", node.title()))?;
                tracing::warn!(
                    node = node.name,
                    from = name,
                    "this node is not the root any more: there is a newer epoch, and it was closed for writers; docs/takeover.md"
                );
                return Ok(());
            }
            Ok(Ok(None)) | Err(_) => {}
            Ok(Err(error)) => tracing::debug!("{error}"),
        }
    }
    Ok(())
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

/// What [`attach`] will refuse, for `consumer check`. Changes nothing.
pub(super) async fn check_place(provider: &Client, subscriber: &Client, node: &Node) -> Result<()> {
    let node = node.reload(subscriber).await?;
    if !was_root(subscriber, &node).await? {
        position(subscriber, &node).await?;
    }
    place(provider, subscriber, &node, node.tick).await.map(drop)
}

/// Checks that the provider is the node that it should be, and has it keep what comes after the tick.
pub(crate) async fn subscribe(provider: &Client, subscriber: &Client, node: &Node, tick: i64) -> Result<()> {
    if !place(provider, subscriber, node, tick).await? {
        register(provider, subscriber, node, tick).await?;
    }
    Ok(())
}

/// Checks that the provider is the node that it should be, and returns it.
pub(super) async fn upstream(provider: &Client, node: &Node) -> Result<Node> {
    let upstream = cascade::load(provider, &node.queue).await?.ok_or_else(|| {
        Error::failure(format!(
            "the location of node \"{}\" leads to a database that is no node of queue \"{}\"",
            node.provider, node.queue
        ))
        .hint("Correct it on the root: select * from pgq_node.register_location(queue, node, location, false)")
    })?;
    if !cascade::is_called(provider, &upstream, &node.provider).await? {
        return Err(Error::failure(format!(
            "the location of node \"{}\" leads to {}",
            node.provider,
            upstream.title()
        ))
        .hint("Correct it on the root: select * from pgq_node.register_location(queue, node, location, false)"));
    }
    Ok(upstream)
}

/// Checks that the provider can go on after the tick. Returns whether it knows the node there.
async fn place(provider: &Client, subscriber: &Client, node: &Node, tick: i64) -> Result<bool> {
    let upstream = upstream(provider, node).await?;
    let row = provider
        .query_one(include_str!("sql/attach.sql"), &[&node.queue, &node.worker, &tick])
        .await
        .doing(|| format!("look for tick {tick} of {}", upstream.title()))?;
    let (time, top): (Option<String>, Option<i64>) = (row.get("tick_time"), row.get("top"));
    match (&time, &node.tick_time) {
        (None, _) if top.is_none_or(|top| top < tick) => {
            return Err(Error::failure(format!(
                "{} is at tick {tick}, and its provider \"{}\" at tick {}: it has to catch up first",
                node.title(),
                node.provider,
                top.unwrap_or(0)
            ))
            .transient());
        }
        (None, _) => {
            return Err(who(node).lost(&format!(
                "the node is at tick {tick}, which node \"{}\" does not have any more",
                node.provider
            )));
        }
        (Some(there), Some(here)) if there != here => {
            return Err(Error::failure(format!(
                "{} and its provider \"{}\" do not have the same ticks: tick {tick} was made at {here} here and at {there} there",
                node.title(),
                node.provider
            ))
            .hint("One of them was restored, or is of another cascade. Make the node anew: consumer node drop, then create it."));
        }
        _ => {}
    }
    let (last, next): (Option<i64>, Option<i64>) = (row.get("last_tick"), row.get("next_tick"));
    let known = last == Some(tick) || next == Some(tick);
    if !known {
        let copying = cascade::in_copy(subscriber, node).await?;
        if !copying.is_empty() {
            // What a copy holds is known by the transaction ids of the provider that it was made from.
            return Err(Error::failure(format!(
                "{} began to copy tables from another provider than \"{}\", and can end that only with it: {}",
                node.title(),
                node.provider,
                copying.join(", ")
            ))
            .hint("Let it read from that one until its tables are ok; or have them copied anew: delete their rows from pgcascade_replay.table_state, then start with --truncate."));
        }
    }
    Ok(known)
}

/// Done again, it only moves the worker to the tick.
async fn register(provider: &Client, subscriber: &Client, node: &Node, tick: i64) -> Result<()> {
    let location = cascade::location(subscriber, node, &node.name).await?;
    let known = provider
        .query_opt(
            "select node_location from pgq_node.node_location where queue_name = $1 and node_name = $2 and not dead",
            &[&node.queue, &node.name],
        )
        .await
        .doing(|| format!("look up where node \"{}\" is", node.provider))?;
    // A root tells all nodes, and cannot while it is closed.
    if known.map(|row| row.get::<_, String>(0)) != location {
        ask(
            provider,
            &node.title(),
            "pgq_node.register_location($1, $2, $3, false)",
            &[&node.queue, &node.name, &location],
        )
        .await?;
    }
    ask(
        provider,
        &node.title(),
        "pgq_node.register_subscriber($1, $2, $3, $4)",
        &[&node.queue, &node.name, &node.worker, &tick],
    )
    .await?;
    tracing::info!(node = node.name, provider = node.provider, tick, "subscribed");
    Ok(())
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
    state::install(client).await?;
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
    for record in [
        include_str!("sql/captured_tables.sql"),
        include_str!("sql/captured_partitions.sql"),
    ] {
        client
            .execute(record, &[&who.queue, &who.consumer])
            .await
            .doing(|| format!("record the tables of consumer \"{}\"", who.consumer))?;
    }
    Ok(())
}

/// A copy from a branch must not begin before the branch has the whole table itself.
pub(super) async fn check_source(provider: &Client, node: &Node, entries: &[Entry]) -> Result<()> {
    if !entries.iter().any(Entry::to_copy) {
        return Ok(());
    }
    let upstream = cascade::load(provider, &node.queue).await?;
    let Some(upstream) = upstream.filter(|upstream| upstream.role == Role::Branch) else {
        return Ok(());
    };
    for entry in entries.iter().filter(|entry| entry.to_copy()) {
        check_has(provider, &upstream, &entry.provider).await?;
    }
    Ok(())
}

/// Whether a branch has the whole table.
pub(super) async fn check_has(client: &Client, branch: &Node, name: &Name) -> Result<()> {
    let state = client
        .query_opt(
            "select case when exists (select from pgcascade_replay.held_event h
                                            where (h.consumer, h.queue, h.provider_schema, h.provider_table)
                                                = (t.consumer, t.queue, t.provider_schema, t.provider_table))
                               then 'catching-up' else t.state end
                   from pgcascade_replay.table_state t
                  where consumer = $1 and queue = $2 and subscriber_schema = $3 and subscriber_table = $4",
            &[&branch.worker, &branch.queue, &name.schema, &name.table],
        )
        .await
        .doing(|| format!("read the state of table {name} of {}", branch.title()))?
        .map(|row| row.get::<_, String>(0));
    match state.as_deref() {
        Some("ok") => Ok(()),
        Some(state) => Err(Error::failure(format!(
            "table {name} of the provider, {}, is {state} itself; it can be copied from there when it is ok",
            branch.title()
        ))
        .transient()),
        None => Err(Error::failure(format!(
            "the provider, {}, does not replay table {name}",
            branch.title()
        ))
        .hint("Have that node replay the table first, with --table, or read from another one.")),
    }
}

/// What a worker of a node has to do at each batch.
pub(super) struct Duty {
    node: Node,
    /// The provider's encoding, as events travel.
    encoding: &'static str,
    publish_at: Instant,
    every: Duration,
    published: Option<i64>,
    gate: Gate,
}

/// What of a batch a node needs to know beside its events.
pub(super) struct Tick<'a> {
    pub(super) id: i64,
    pub(super) time: &'a str,
    pub(super) event_seq: i64,
    /// The query for its events; None when there can be none.
    pub(super) events: Option<&'a str>,
}

impl Duty {
    pub(super) fn new(node: Node, encoding: &str, every: Duration) -> Self {
        Self {
            node,
            // From SQL_ASCII nobody can convert.
            encoding: if encoding == "SQL_ASCII" { "SQL_ASCII" } else { "UTF8" },
            publish_at: Instant::now() + every,
            every,
            published: None,
            gate: Gate::default(),
        }
    }

    pub(super) fn node(&self) -> &Node {
        &self.node
    }

    /// Whether the batch is read once more, to be stored in a queue here.
    pub(super) fn stores(&self) -> bool {
        self.node.role == Role::Branch || self.node.combined.is_some()
    }

    /// Each tick of a branch is one of the root's, and they are as many.
    pub(super) fn tick_by_tick(&self) -> bool {
        self.node.role == Role::Branch
    }

    /// Whether the node was asked for something else meanwhile.
    pub(super) async fn changed(&self, subscriber: &Client) -> Result<bool> {
        let now = self.node.reload(subscriber).await?;
        if self.node.differs(&now) {
            return Ok(true);
        }
        if !now.uptodate {
            // Changed, and changed back.
            now.set_uptodate(subscriber).await?;
        }
        Ok(false)
    }

    /// In the batch's transaction, before its data: the tick, and the events as they are.
    pub(super) async fn store(&self, provider: &Client, subscriber: &Client, tick: &Tick<'_>) -> Result<()> {
        if self.node.role != Role::Branch {
            return Ok(());
        }
        let what = || format!("store tick {} in {}", tick.id, self.node.title());
        subscriber
            .execute(
                "select pgq.ticker($1, $2, $3::text::timestamptz, $4)",
                &[&self.node.queue, &tick.id, &tick.time, &tick.event_seq],
            )
            .await
            .doing(what)?;
        let Some(events) = tick.events else { return Ok(()) };
        const COLUMNS: &str = "ev_id, ev_time, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4";
        let table: String = subscriber
            .query_one("select pgq.current_event_table($1)", &[&self.node.queue])
            .await
            .doing(what)?
            .get(0);
        // What comes out of the one goes into the other as it is; at no time is there more of it here than one message.
        let source = provider
            .copy_out(&format!(
                "copy (select {COLUMNS} from ({}) batch order by ev_id) to stdout (format binary)",
                events.trim_end().trim_end_matches(';')
            ))
            .await
            .doing(|| "read the batch from the provider".to_owned())?;
        let sink = subscriber
            .copy_in::<_, Bytes>(&format!(
                "copy {table} ({COLUMNS}) from stdin (format binary, encoding '{}')",
                self.encoding
            ))
            .await
            .doing(what)?;
        let (mut source, mut sink) = (pin!(source), pin!(sink));
        while let Some(bytes) = source
            .try_next()
            .await
            .doing(|| "read the batch from the provider".to_owned())?
        {
            if let Err(error) = sink.send(bytes).await {
                // The reason comes with the answer to the end.
                let reason = sink.finish().await.err();
                return Err(reason.unwrap_or(error)).doing(what);
            }
        }
        sink.finish().await.doing(what)?;
        Ok(())
    }

    /// What the root says about the cascade, in the same transaction. Only for batches in which there is such an event.
    pub(super) async fn tell(&self, provider: &Client, subscriber: &Client, tick: &Tick<'_>) -> Result<()> {
        let Some(events) = tick.events else { return Ok(()) };
        let rows = provider
            .query(
                &format!(
                    "select ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3 from ({}) batch
                      where ev_type like 'pgq.%' order by ev_id",
                    events.trim_end().trim_end_matches(';')
                ),
                &[],
            )
            .await
            .doing(|| "read the cascade's own events from the provider".to_owned())?;
        for row in rows {
            let text = |column: usize| row.get::<_, Option<String>>(column);
            let queue = &self.node.queue;
            let (Some(data), Some(of_queue)) = (text(1), text(2)) else {
                continue;
            };
            let ours = of_queue == *queue;
            match (text(0).as_deref(), self.node.role) {
                (Some("pgq.location-info"), _) if ours => {
                    let dead = text(4).is_some_and(|dead| dead == "true" || dead == "t");
                    if let Some(location) = text(3) {
                        cascade::set_location(subscriber, &self.node, &data, &location, dead).await?;
                    }
                }
                (Some("pgq.unregister-location"), _) if ours => {
                    if data == self.node.name || data == self.node.provider {
                        tracing::warn!(
                            node = data,
                            "the root has dropped this node, or the one that it reads from; nothing is forgotten here"
                        );
                    } else {
                        cascade::forget_location(subscriber, &self.node, &data).await?;
                    }
                }
                (Some("pgq.global-watermark"), Role::Branch) if ours => {
                    if let Ok(tick) = data.parse::<i64>() {
                        let call = "pgq_node.set_global_watermark($1, $2)";
                        ask(subscriber, &self.node.title(), call, &[queue, &tick]).await?;
                    }
                }
                (Some("pgq.tick-id"), Role::Branch) => {
                    if let Ok(tick) = data.parse::<i64>() {
                        let (time, tables) = (text(3), text(4));
                        merge::arrived(subscriber, queue, &of_queue, tick, time.as_deref(), tables.as_deref()).await?;
                        let call = "pgq_node.set_partition_watermark($1, $2, $3)";
                        ask(subscriber, &self.node.title(), call, &[queue, &of_queue, &tick]).await?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What is written with the position, in one message with the commit.
    pub(super) fn commit(&self, tick: i64, time: &str) -> String {
        let (queue, worker) = (literal(&self.node.queue), literal(&self.node.worker));
        if self.node.role == Role::Leaf {
            let time = literal(time);
            format!("update pgcascade_replay.node set tick_time = {time}, error = null where queue = {queue};")
        } else {
            format!("select pgq_node.set_consumer_completed({queue}, {worker}, {tick});")
        }
    }

    /// Tells the provider which tick is still needed here and below, and asks for its gate. Called between batches.
    pub(super) async fn publish(&mut self, provider: &Client, subscriber: &Client) -> Result<()> {
        let due = Instant::now() >= self.publish_at;
        if due || self.gate.moves() {
            self.gate.follow(provider, subscriber, &self.node).await?;
        }
        if !due {
            return Ok(());
        }
        self.publish_at = Instant::now() + self.every;
        let title = self.node.title();
        let needed = match self.node.role {
            Role::Leaf => Some(self.node.reload(subscriber).await?.tick),
            _ => subscriber
                .query_one(
                    "select local_watermark from pgq_node.get_node_info($1)",
                    &[&self.node.queue],
                )
                .await
                .doing(|| format!("read the watermark of {title}"))?
                .get(0),
        };
        if needed.is_none() || needed == self.published {
            return Ok(());
        }
        // Backwards is refused, and is no reason to stop: the provider keeps more than is needed.
        let call = "pgq_node.set_subscriber_watermark($1, $2, $3)";
        match ask(provider, &title, call, &[&self.node.queue, &self.node.name, &needed]).await {
            Ok(_) => self.published = needed,
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => tracing::warn!("{error}"),
        }
        Ok(())
    }
}
