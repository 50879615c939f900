//! What a node's replay does at each batch: a branch stores the tick and its events, a leaf keeps them in its journal, every node
//! learns what the root says of the cascade and records where it is, and between batches it tells its provider which tick is still needed.
//!
//! Called by the loop over batches (replay/batch.rs), inside the transaction of each.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_postgres::Client;

use super::super::gate::Gate;
use super::super::journal::{self, Journal};
use super::super::merge;
use super::super::table::literal;
use crate::cascade::{self, Node, Role, ask};
use crate::connect::Session;
use crate::connect::flow::{LARGE, Reading, relay};
use crate::error::{Doing, Result};

/// What a worker of a node has to do at each batch.
pub(in crate::replay) struct Duty {
    node: Node,
    /// The provider's encoding, as events travel.
    encoding: &'static str,
    publish_at: Instant,
    every: Duration,
    published: Option<i64>,
    gate: Gate,
    /// A leaf's.
    journal: Option<Journal>,
}

/// What of a batch a node needs to know beside its events.
pub(in crate::replay) struct Tick<'a> {
    pub(in crate::replay) id: i64,
    /// The end of the batch before.
    pub(in crate::replay) from: i64,
    pub(in crate::replay) time: &'a str,
    pub(in crate::replay) event_seq: i64,
    /// The query for its events; None when there can be none.
    pub(in crate::replay) events: Option<&'a str>,
}

impl Duty {
    pub(in crate::replay) fn new(node: Node, encoding: &str, every: Duration, journal_bytes: u64) -> Self {
        Self {
            journal: (node.role == Role::Leaf).then(|| Journal::new(&node.queue, journal_bytes)),
            node,
            // From SQL_ASCII nobody can convert.
            encoding: if encoding == "SQL_ASCII" { "SQL_ASCII" } else { "UTF8" },
            publish_at: Instant::now() + every,
            every,
            published: None,
            gate: Gate::default(),
        }
    }

    pub(in crate::replay) fn node(&self) -> &Node {
        &self.node
    }

    /// Whether the batch is read once more, to be stored in a queue here, or in a journal.
    pub(in crate::replay) fn stores(&self) -> bool {
        self.node.role == Role::Branch
            || self.node.combined.is_some()
            || self.journal.as_ref().is_some_and(Journal::keeps)
    }

    /// Each tick of a branch is one of the root's, and they are as many.
    pub(in crate::replay) fn tick_by_tick(&self) -> bool {
        self.node.role == Role::Branch
    }

    /// Whether the node was asked for something else meanwhile.
    pub(in crate::replay) async fn changed(&self, subscriber: &Client) -> Result<bool> {
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

    /// Whether an address query says another place of the provider now. Between batches: it is not ours, and may take its time.
    pub(in crate::replay) async fn moved(&self, subscriber: &Client) -> Result<bool> {
        if self.node.address_query.is_none() {
            return Ok(false);
        }
        Ok(self.node.differs(&self.node.look_again(subscriber).await?))
    }

    /// In the batch's transaction, before its data: the tick, and the events as they are; where the queue here is packed, `rows` of
    /// the provider, packs among them.
    pub(in crate::replay) async fn store(
        &self,
        provider: &Session,
        subscriber: &Client,
        tick: &Tick<'_>,
        rows: Option<&str>,
    ) -> Result<()> {
        if let Some(journal) = &self.journal {
            return journal.keep(provider, subscriber, tick).await;
        }
        let what = || format!("store tick {} in {}", tick.id, self.node.title());
        subscriber
            .execute(
                "select pgq.ticker($1, $2, $3::text::timestamptz, $4)",
                &[&self.node.queue, &tick.id, &tick.time, &tick.event_seq],
            )
            .await
            .doing(what)?;
        let (Some(events), Some(rows)) = (tick.events, rows) else {
            return Ok(());
        };
        const COLUMNS: &str = "ev_id, ev_time, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4";
        let row = subscriber
            .query_one(
                "select pgq.current_event_table($1), exists (select from pgcascade.packed_queue p
                   join pgq.queue q on q.queue_id = p.queue_id where q.queue_name = $1 and p.packs)",
                &[&self.node.queue],
            )
            .await
            .doing(what)?;
        let (table, packs): (String, bool) = (row.get(0), row.get(1));
        let source = if packs { rows } else { events };
        let read = || "read the batch from the provider".to_owned();
        // What comes out of the one goes into the other as it is; at no time is there much of it here.
        let query = format!(
            "copy (select {COLUMNS}, case when ev_retry < 0 then ev_retry end from ({source}) batch order by ev_id) to stdout (format binary)"
        );
        let mut source = Reading::begin(provider, &query, LARGE).await.doing(read)?;
        let sink = subscriber
            .copy_in::<_, Bytes>(&format!(
                "copy {table} ({COLUMNS}, ev_retry) from stdin (format binary, encoding '{}')",
                self.encoding
            ))
            .await
            .doing(what)?;
        relay(&mut source, pin!(sink), read, what).await
    }

    /// What the root says about the cascade, in the same transaction. Only for batches in which there is such an event.
    pub(in crate::replay) async fn tell(&self, provider: &Client, subscriber: &Client, tick: &Tick<'_>) -> Result<()> {
        let Some(events) = tick.events else { return Ok(()) };
        let rows = provider
            .query(
                &format!(
                    "select ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4 from ({events}) batch
                      where ev_type like 'pgq.%' order by ev_id"
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
                        cascade::set_admin_location(subscriber, &self.node, &data, text(5).as_deref()).await?;
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
                (Some("pgq.global-watermark"), Role::Leaf) if ours => {
                    if let Ok(tick) = data.parse::<i64>() {
                        journal::forget(subscriber, queue, tick).await?;
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
    pub(in crate::replay) fn commit(&self, tick: i64, time: &str) -> String {
        let (queue, worker) = (literal(&self.node.queue), literal(&self.node.worker));
        if self.node.role == Role::Leaf {
            let time = literal(time);
            format!("update pgcascade_replay.node set tick_time = {time}, error = null where queue = {queue};")
        } else {
            format!("select pgq_node.set_consumer_completed({queue}, {worker}, {tick});")
        }
    }

    /// Tells the provider which tick is still needed here and below, and asks for its gate. Called between batches.
    pub(in crate::replay) async fn publish(&mut self, provider: &Client, subscriber: &Client) -> Result<()> {
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
