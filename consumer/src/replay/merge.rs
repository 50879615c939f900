//! Combined queues: a leaf of one cascade whose events go on into a queue of its own database, so that the nodes below have what
//! several roots wrote.
//!
//! - Where the combined queue has its root, the leaf applies its events, as any leaf, and in the same transaction puts those of
//!   its tables into the combined queue, and after them an event `pgq.tick-id` with its tick ([`pass_on`]). The queue takes them as it
//!   takes an application's: a root that is closed for a takeover refuses them, and the batch waits ([`is_closed`]).
//! - Where the combined queue has a branch, the same rows arrive through that. The leaf there *stands behind* ([`stand_behind`]): it
//!   applies nothing, and its position is what the last `pgq.tick-id` event said ([`arrived`]), written in the transaction
//!   of the branch's tick. So when that branch becomes the root, its leaf goes on exactly where the merged events end. It is moved
//!   also while it has promised a takeover of its own queue to take no ticks: it gets no further than the leaf that passed the events on,
//!   which has promised, too, and says how far it is. If that one was given up (`--lost`), what it alone had is in the combined
//!   queue for good; a leaf behind that is moved beyond the fork by it finds that its provider lacks its tick, and stops.
//!
//! A copy goes into a table unseen by the combined queue, so it has to come first: a table that is captured into the combined queue
//! is not copied here ([`check_tables`]), and the nodes below do not copy one that is still being copied here
//! ([`check_source`]).

use std::collections::HashMap;
use std::pin::pin;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::duty::{self, Duty, Tick};
use super::position::Who;
use super::setup::Target;
use super::table::{Name, Table, literal};
use super::table_state::{Entry, State};
use super::{Ended, Memory, session, triggers};
use crate::cascade::{Combined, Node, Role};
use crate::config::NodeConfig;
use crate::connect::flow::{LARGE, Reading, relay};
use crate::connect::{End, Session, connect};
use crate::error::{Doing, Error, Result};
use crate::shutdown::Shutdown;

/// Whether the leaf only stands behind a branch of the combined queue.
pub(super) fn is_behind(node: &Node) -> bool {
    node.combined
        .as_ref()
        .is_some_and(|combined| combined.role == Role::Branch)
}

/// The combined queue that the leaf's events go into, here and now.
fn combined(node: &Node) -> Option<&Combined> {
    node.combined.as_ref().filter(|combined| combined.role == Role::Root)
}

/// Refuses to go on from a position that is none.
pub(super) fn check_position(node: &Node) -> Result<()> {
    let Some(combined) = combined(node).filter(|combined| !combined.position_known) else {
        return Ok(());
    };
    Err(Error::failure(format!(
        "{} does not know how far it is: queue \"{}\" has become the root here before it told",
        node.title(),
        combined.queue
    ))
    .hint("Make the leaf anew, with the rows of its source: consumer node drop, create-leaf."))
}

/// Whether a failure is that the combined queue is closed, which ends with the takeover that closed it.
pub(super) fn is_closed(node: &Node, error: &Error) -> bool {
    combined(node).is_some() && error.sqlstate() == Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE)
}

/// Puts a batch's events into the combined queue, in the batch's transaction. `caught_up` are those targets that the batch
/// makes whole: a branch may copy them as soon as it is committed, and has to hear of that.
pub(super) async fn pass_on(
    provider: &Session,
    subscriber: &Client,
    node: &Node,
    targets: &[Target],
    caught_up: &[usize],
    tick: &Tick<'_>,
) -> Result<()> {
    let Some(combined) = combined(node) else { return Ok(()) };
    let what = || format!("pass tick {} on into queue \"{}\"", tick.id, combined.queue);
    // As an application: what replicates may write into a closed queue.
    let role: String = subscriber
        .query_one("select pg_catalog.current_setting('session_replication_role')", &[])
        .await
        .doing(what)?
        .get(0);
    let set_role = async |role: &str| {
        subscriber
            .execute(
                "select pg_catalog.set_config('session_replication_role', $1, true)",
                &[&role],
            )
            .await
            .doing(what)
    };
    set_role("origin").await?;
    let table: String = subscriber
        .query_one("select pgq.current_event_table($1)", &[&combined.queue])
        .await
        .doing(what)?
        .get(0);
    if let Some(events) = tick.events {
        copy_events(provider, subscriber, &table, targets, events).await?;
    }
    let whole: Vec<[&str; 2]> = targets
        .iter()
        .enumerate()
        .filter(|(at, target)| target.state == State::Ok || caught_up.contains(at))
        .map(|(_, target)| {
            [
                target.provider.name.schema.as_str(),
                target.provider.name.table.as_str(),
            ]
        })
        .collect();
    subscriber
        .execute(
            "select pgq.insert_event($1, 'pgq.tick-id', $2, $3, $4, $5, null)",
            &[
                &combined.queue,
                &tick.id.to_string(),
                &node.queue,
                &tick.time,
                &serde_json::json!(whole).to_string(),
            ],
        )
        .await
        .doing(what)?;
    set_role(&role).await?;
    Ok(())
}

async fn copy_events(
    provider: &Session,
    subscriber: &Client,
    table: &str,
    targets: &[Target],
    events: &str,
) -> Result<()> {
    const COLUMNS: &str = "ev_time, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4";
    let names: Vec<String> = targets
        .iter()
        .map(|target| literal(&String::from_utf8_lossy(&target.provider.name.on_the_wire())))
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    let read = || "read the batch from the provider".to_owned();
    let write = || format!("write the batch into {table}");
    let query = format!(
        "copy (select {COLUMNS} from ({events}) batch where ev_extra1 in ({}) order by ev_id) to stdout (format binary)",
        names.join(", ")
    );
    let mut source = Reading::begin(provider, &query, LARGE).await.doing(read)?;
    let sink = subscriber
        .copy_in::<_, Bytes>(&format!(
            "copy {table} ({COLUMNS}) from stdin (format binary, encoding 'UTF8')"
        ))
        .await
        .doing(write)?;
    relay(&mut source, pin!(sink), read, write).await
}

/// A branch of the combined queue has got what a leaf passed on up to a tick: that is the position of the leaf here.
pub(super) async fn arrived(
    subscriber: &Client,
    combined: &str,
    part: &str,
    tick: i64,
    time: Option<&str>,
    tables: Option<&str>,
) -> Result<()> {
    let what = || format!("move the leaf of queue \"{part}\" that stands behind queue \"{combined}\"");
    let leaf = subscriber
        .query_opt(
            "update pgcascade_replay.node set tick_time = $3::text::timestamptz, position_known = true
              where queue = $1 and combined_queue = $2 returning worker",
            &[&part, &combined, &time],
        )
        .await
        .doing(what)?;
    let Some(leaf) = leaf else { return Ok(()) };
    let who = Who {
        consumer: leaf.get(0),
        queue: part.to_owned(),
    };
    who.set(subscriber, tick).await?;
    let Some(tables) = tables else { return Ok(()) };
    // The tables that the leaf at the root has whole, which is what the branch has of it.
    subscriber
        .execute(
            "with whole as (
                 select t ->> 0 as schema, t ->> 1 as name from pg_catalog.jsonb_array_elements($3::text::jsonb) t
             ), gone as (
                 delete from pgcascade_replay.table_state s
                  where s.consumer = $1 and s.queue = $2
                    and not exists (select from whole w where (w.schema, w.name) = (s.provider_schema, s.provider_table))
             )
             insert into pgcascade_replay.table_state
                 (consumer, queue, provider_schema, provider_table, subscriber_schema, subscriber_table, state)
             select $1, $2, w.schema, w.name, w.schema, w.name, 'ok' from whole w
                 on conflict do nothing",
            &[&who.consumer, &who.queue, &tables],
        )
        .await
        .doing(what)?;
    Ok(())
}

/// What replay does for a leaf that stands behind: it keeps the leaf's place at its provider, and learns what that says about
/// the cascade.
pub(super) async fn stand_behind(
    session: Session,
    node: Node,
    config: &NodeConfig,
    shutdown: &Shutdown,
    memory: &mut Memory,
) -> Result<Ended> {
    let who = duty::who(&node);
    let hop = config.hop(&node)?;
    let provider = connect(&hop.provider, End::Provider, "pgcascade replay").await?;
    memory.another_runs = true;
    for (client, end) in [(&provider.client, End::Provider), (&session.client, End::Subscriber)] {
        session::lock_unless_stopped(client, end, &who, session::LOCK_PATIENCE_AGAIN, shutdown).await?;
    }
    memory.another_runs = false;
    memory.connected = true;
    let (p, s) = (&provider.client, &session.client);
    let mut reached = duty::attach(p, s, &node).await?;
    tracing::info!(
        node = node.name,
        queue = node.queue,
        tick = reached,
        "stands behind the combined queue, whose branch this is"
    );
    let mut duty = Duty::new(node.clone(), "UTF8", config.checked.watermark_interval, 0);
    let mut now = node.clone();
    loop {
        if !now.uptodate {
            now.set_uptodate(s).await?;
        }
        while reached < now.tick {
            let Some(tick) = pass(p, s, &duty, &who, now.tick).await? else {
                break;
            };
            reached = tick;
        }
        duty.publish(p, s).await?;
        if config.checked.until_caught_up {
            return Ok(Ended::Done);
        }
        let started = Instant::now();
        // Both are cancel-safe.
        tokio::select! {
            () = tokio::time::sleep_until(started + config.checked.poll_interval) => {}
            () = shutdown.wait() => {
                tracing::info!("stopped");
                return Ok(Ended::Done);
            }
        }
        now = node.look_again(s).await?;
        if node.differs(&now) {
            return Ok(Ended::NodeChanged);
        }
    }
}

/// Passes over one tick that came another way. None: there is none up to there.
async fn pass(provider: &Client, subscriber: &Client, duty: &Duty, who: &Who, upto: i64) -> Result<Option<i64>> {
    let what = || format!("get the next tick of queue \"{}\"", who.queue);
    let row = provider
        .query_opt(include_str!("sql/next_tick.sql"), &[&who.queue, &who.consumer, &0_i32])
        .await
        .doing(what)?;
    let Some(row) = row else { return Ok(None) };
    let (id, to): (i64, i64) = (row.get(0), row.get(2));
    if to > upto {
        return Ok(None);
    }
    let events = format!("select * from pgq.get_batch_events({id})");
    let tick = Tick {
        id: to,
        from: 0,
        time: "",
        event_seq: 0,
        events: Some(&events),
    };
    duty.tell(provider, subscriber, &tick).await?;
    provider
        .execute("select pgq.finish_batch($1)", &[&id])
        .await
        .doing(what)?;
    Ok(Some(to))
}

/// What a leaf that passes its events on cannot have among its tables.
pub(super) async fn check_tables(
    subscriber: &Client,
    node: &Node,
    entries: &[Entry],
    at_provider: &HashMap<Name, Table>,
) -> Result<()> {
    let Some(combined) = &node.combined else { return Ok(()) };
    if is_behind(node) {
        return Err(Error::failure(format!(
            "{} stands behind queue \"{}\", whose branch the database is, and has the tables that come with that",
            node.title(),
            combined.queue
        ))
        .hint(format!(
            "Change the tables of the leaf where queue \"{}\" has its root.",
            combined.queue
        )));
    }
    let refused = |entry: &Entry, what: &str| {
        Error::failure(format!(
            "table {} {what}, and {} passes its events on into queue \"{}\" as they are",
            entry.provider,
            node.title(),
            combined.queue
        ))
        .hint("Give a table its own name and all of its columns; take a partitioned one out: consumer table remove")
    };
    for entry in entries {
        if entry.subscriber != entry.provider {
            return Err(refused(entry, "has another name here"));
        }
        if at_provider.get(&entry.provider).is_some_and(|table| table.kind == "p") {
            return Err(refused(entry, "is partitioned"));
        }
        if entry.filter.columns != super::filter::Columns::All {
            return Err(refused(entry, "is replayed in part"));
        }
    }
    let captured = triggers::captured(subscriber, &combined.queue).await?;
    let copied = entries.iter().filter(|entry| entry.to_copy());
    for entry in copied {
        if captured.iter().any(|(_, name)| *name == entry.subscriber) {
            return Err(Error::failure(format!(
                "table {} is to be copied, and is captured into queue \"{}\" already: its branches would not get the rows that are copied",
                entry.provider, combined.queue
            ))
            .hint("Add it with --no-copy, if its provider has no rows yet. Otherwise take it out of the branches of the combined queue, drop its triggers here, let it be copied, then add it to the branches again."));
        }
    }
    Ok(())
}

/// A node does not copy a table from a provider where a leaf has not all of it yet.
pub(super) async fn check_source(provider: &Client, queue: &str, entries: &[Entry]) -> Result<()> {
    let there = provider
        .query_one(
            "select exists (select from pg_catalog.pg_attribute a
                             where a.attrelid = pg_catalog.to_regclass('pgcascade_replay.node') and a.attname = 'combined_queue')",
            &[],
        )
        .await
        .doing(|| "see whether other queues are merged into the provider's".to_owned())?;
    if !there.get::<_, bool>(0) {
        return Ok(());
    }
    for entry in entries.iter().filter(|entry| entry.to_copy()) {
        let row = provider
            .query_opt(
                "select t.queue from pgcascade_replay.node n
                   join pgcascade_replay.table_state t on t.consumer = n.worker and t.queue = n.queue
                  where n.combined_queue = $1 and (t.subscriber_schema, t.subscriber_table) = ($2, $3)
                    and (t.state <> 'ok'
                         or exists (select from pgcascade_replay.held_event h
                                     where (h.consumer, h.queue, h.provider_schema, h.provider_table)
                                         = (t.consumer, t.queue, t.provider_schema, t.provider_table)))
                  limit 1",
                &[&queue, &entry.provider.schema, &entry.provider.table],
            )
            .await
            .doing(|| format!("look at table {} of the provider", entry.provider))?;
        if let Some(row) = row {
            return Err(Error::failure(format!(
                "table {} of the provider does not have all rows of queue \"{}\" yet, which is merged into \"{queue}\"",
                entry.provider,
                row.get::<_, &str>(0)
            ))
            .transient());
        }
    }
    Ok(())
}
