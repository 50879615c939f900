//! The journal of a leaf: the ticks that it applied last, with their events as they came, in its own database.
//!
//! If the root is lost, a leaf may have ticks that no branch has. With its journal it gives them to the branch that becomes the root
//! (donated.rs). A batch is written in the transaction that applies it, so the journal ends where the leaf stands; and it
//! has no gap: a batch that does not begin at its end begins it anew.
//!
//! What all nodes have, by the global watermark, leaves it ([`forget`]). Where that does not come, the oldest batches leave it once
//! it is larger than `--journal-bytes`: then it reaches less far back. The newest one stays, however large.
//!
//! A batch is kept as its provider's COPY, in a few large values: nobody reads them unless the root is lost, and a row for each event would cost
//! as much as applying it. All events are in it, also those of tables that the leaf does not have.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::future;
use tokio::sync::OnceCell;
use tokio_postgres::{Client, Statement};

use super::duty::Tick;
use crate::connect::flow::{LARGE, Reading};
use crate::connect::{Session, exists};
use crate::error::{Doing, Result};

/// A part is written when it is so large.
const PART: usize = 1 << 20;

/// What a batch costs beside its events.
const ROW: u64 = 256;

/// The events of a batch: what a branch stores, and the transaction, by which they are divided into ticks. As bytes, since the
/// leaf's encoding may be another one.
const COLUMNS: &str = "ev_id, ev_txid, ev_time, \
                       pg_catalog.convert_to(ev_type, pg_catalog.getdatabaseencoding()), \
                       pg_catalog.convert_to(ev_data, pg_catalog.getdatabaseencoding()), \
                       pg_catalog.convert_to(ev_extra1, pg_catalog.getdatabaseencoding()), \
                       pg_catalog.convert_to(ev_extra2, pg_catalog.getdatabaseencoding()), \
                       pg_catalog.convert_to(ev_extra3, pg_catalog.getdatabaseencoding()), \
                       pg_catalog.convert_to(ev_extra4, pg_catalog.getdatabaseencoding())";

/// Lives as long as the sessions.
pub(super) struct Journal {
    queue: String,
    /// How many bytes it may have; 0: none is kept.
    most: u64,
    /// What was written since it was last looked whether it is too large.
    written: AtomicU64,
    said: AtomicBool,
    statements: OnceCell<Statements>,
}

struct Statements {
    ticks: Statement,
    begin_anew: Statement,
    batch: Statement,
    part: Statement,
}

impl Journal {
    pub(super) fn new(queue: &str, most: u64) -> Self {
        Self {
            queue: queue.to_owned(),
            most,
            written: AtomicU64::new(u64::MAX / 2),
            said: AtomicBool::new(false),
            statements: OnceCell::new(),
        }
    }

    pub(super) fn keeps(&self) -> bool {
        self.most > 0
    }

    /// Writes the batch, in its transaction.
    pub(super) async fn keep(&self, provider: &Session, subscriber: &Client, tick: &Tick<'_>) -> Result<()> {
        if !self.keeps() {
            return self.drop(subscriber).await;
        }
        let prepare = || prepare(&provider.client, subscriber);
        let statements = self.statements.get_or_try_init(prepare).await?;
        let what = || format!("keep tick {} in the journal of queue \"{}\"", tick.id, self.queue);
        let read = || "read the batch from the provider".to_owned();
        let ticks = provider
            .client
            .query_one(&statements.ticks, &[&self.queue, &tick.from, &tick.id])
            .await
            .doing(read)?;
        let (from_time, ticks): (String, String) = (ticks.get(0), ticks.get(1));
        // In this order, whatever is answered first.
        let (anew, batch) = future::join(
            subscriber.execute(&statements.begin_anew, &[&self.queue, &tick.from]),
            subscriber.execute(
                &statements.batch,
                &[&self.queue, &tick.id, &tick.from, &from_time, &ticks],
            ),
        )
        .await;
        anew.doing(what)?;
        batch.doing(what)?;
        let mut written = ROW;
        if let Some(events) = tick.events {
            written += self
                .keep_events(provider, subscriber, statements, tick.id, events)
                .await?;
        }
        self.written.fetch_add(written, Ordering::Relaxed);
        self.trim(subscriber).await
    }

    async fn keep_events(
        &self,
        provider: &Session,
        subscriber: &Client,
        statements: &Statements,
        tick: i64,
        events: &str,
    ) -> Result<u64> {
        let read = || "read the batch from the provider".to_owned();
        let query = format!("copy (select {COLUMNS} from ({events}) batch) to stdout (format binary)");
        let mut source = Reading::begin(provider, &query, LARGE).await.doing(read)?;
        let (mut content, mut number, mut written) = (Vec::new(), 0_i32, 0);
        loop {
            let message = source.next().await.transpose().doing(read)?;
            let at_end = message.is_none();
            // Kept until all of it is written; a part may end anywhere.
            let (mut rest, _hold) = message.map_or((Bytes::new(), None), |message| (message.bytes, message.hold));
            loop {
                let next = rest.split_to(rest.len().min(PART - content.len()));
                content.extend_from_slice(&next);
                if content.len() >= PART || at_end && !content.is_empty() {
                    subscriber
                        .execute(&statements.part, &[&self.queue, &tick, &number, &content])
                        .await
                        .doing(|| {
                            format!(
                                "keep the events of tick {tick} in the journal of queue \"{}\"",
                                self.queue
                            )
                        })?;
                    written += content.len() as u64;
                    number += 1;
                    content.clear();
                }
                if rest.is_empty() {
                    break;
                }
            }
            if at_end {
                return Ok(written);
            }
        }
    }

    /// The oldest batches go where it has become too large. Looked at after each eighth of that.
    async fn trim(&self, subscriber: &Client) -> Result<()> {
        let written = self.written.load(Ordering::Relaxed);
        if written < self.most / 8 {
            return Ok(());
        }
        let most = i64::try_from(self.most).unwrap_or(i64::MAX);
        let row = subscriber
            .query_one(include_str!("sql/journal_trim.sql"), &[&self.queue, &most])
            .await
            .doing(|| format!("shorten the journal of queue \"{}\"", self.queue))?;
        // A batch that is larger than all of it stays while it is the newest, so the next one is looked at, too.
        let again = if written > self.most { self.most / 8 } else { 0 };
        self.written.store(again, Ordering::Relaxed);
        if let Some(tick) = row.get::<_, Option<i64>>(0)
            && !self.said.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                queue = self.queue,
                tick,
                bytes = self.most,
                "the journal is full, and forgets ticks that other nodes may lack: if the root were lost, this leaf could give what it has \
                 after this tick only to a branch that has the tick (said once); see --journal-bytes"
            );
        }
        Ok(())
    }

    /// None is kept; nor what is there from before, which would end before the leaf's position.
    async fn drop(&self, subscriber: &Client) -> Result<()> {
        if self.said.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        drop_all(subscriber, &self.queue).await
    }
}

/// Nothing of the journal is kept. The parts are deleted by name everywhere: in replay's sessions no foreign key cascades.
pub(super) async fn drop_all(subscriber: &Client, queue: &str) -> Result<()> {
    for table in ["journal_part", "journal"] {
        subscriber
            .execute(
                &format!("delete from pgcascade_replay.{table} where queue = $1"),
                &[&queue],
            )
            .await
            .doing(|| format!("drop the journal of queue \"{queue}\""))?;
    }
    Ok(())
}

async fn prepare(provider: &Client, subscriber: &Client) -> Result<Statements> {
    let what = || "prepare the statements for the journal".to_owned();
    // PgQ's own nodes know of no epochs.
    let epochs = exists(provider, "pgcascade.epoch_history").await?;
    let ticks = if epochs {
        include_str!("sql/journal_ticks.sql")
    } else {
        include_str!("sql/journal_ticks_pgq.sql")
    };
    Ok(Statements {
        ticks: provider.prepare(ticks).await.doing(what)?,
        begin_anew: subscriber
            .prepare(
                "with gone as (
                   delete from pgcascade_replay.journal
                    where queue = $1 and (select max(tick) from pgcascade_replay.journal where queue = $1) is distinct from $2
                   returning tick)
                 delete from pgcascade_replay.journal_part p using gone where p.queue = $1 and p.tick = gone.tick",
            )
            .await
            .doing(what)?,
        batch: subscriber
            .prepare(
                "insert into pgcascade_replay.journal (queue, tick, from_tick, from_time, ticks)
                 values ($1, $2, $3, $4::text::timestamptz, $5::text::jsonb)",
            )
            .await
            .doing(what)?,
        part: subscriber
            .prepare("insert into pgcascade_replay.journal_part (queue, tick, part, content) values ($1, $2, $3, $4)")
            .await
            .doing(what)?,
    })
}

/// All nodes have this tick and those before it, as the root says.
pub(super) async fn forget(subscriber: &Client, queue: &str, tick: i64) -> Result<()> {
    subscriber
        .execute(
            "with gone as (delete from pgcascade_replay.journal where queue = $1 and tick <= $2 returning tick)
             delete from pgcascade_replay.journal_part p using gone where p.queue = $1 and p.tick = gone.tick",
            &[&queue, &tick],
        )
        .await
        .doing(|| format!("forget ticks in the journal of queue \"{queue}\""))?;
    Ok(())
}
