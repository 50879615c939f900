//! Events of tables that are being copied, kept on the subscriber until the copy is there.
//!
//! The stream does not wait for a copy: the events of a table in copy go into `pgcascade_replay.held_event`, in the
//! transaction of their batch, and are applied when the copy is complete, in their order, each in the transaction that
//! deletes it here. So an event that the position has passed is either applied or here, and never both. As long as there is
//! one here, the table's later events go behind it. What the copy holds already is left out when they are applied, by
//! the same rule as for those that come from the provider (table_state.rs).
//!
//! They leave in portions of whole batches, so that a portion is never a part of a transaction of the provider's, and
//! other tables do not wait for long.

use std::collections::HashSet;
use std::pin::{Pin, pin};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::SinkExt;
use tokio_postgres::{Client, CopyInSink};

use super::chunk::{Chunk, Held};
use super::event;
use super::position::Who;
use super::table::{Name, literal};
use crate::connect::flow::{self, LARGE, PIECE, end};
use crate::error::{Doing, Result};

/// About how many events one portion has.
const PORTION: i64 = 20_000;

/// Stores the chunk's events of tables in copy; `names` are those of all tables. A large one goes from where it is, in pieces.
pub(super) async fn keep(subscriber: &Client, who: &Who, tick: i64, names: &[&Name], chunk: &Chunk) -> Result<()> {
    let what = || "keep the events of tables in copy on the subscriber".to_owned();
    let sink = subscriber
        .copy_in::<_, Bytes>(
            "copy pgcascade_replay.held_event (consumer, queue, provider_schema, provider_table, tick, ev_id, ev_txid,
                                               ev_type, ev_data, ev_extra1, ev_extra2, ev_extra4) from stdin (format binary)",
        )
        .await
        .doing(what)?;
    let mut sink = pin!(sink);
    let written = write(sink.as_mut(), who, tick, names, &chunk.held).await;
    end(sink, written).await.doing(what)
}

async fn write(
    mut sink: Pin<&mut CopyInSink<Bytes>>,
    who: &Who,
    tick: i64,
    names: &[&Name],
    held: &[Held],
) -> Result<(), tokio_postgres::Error> {
    let mut out = BytesMut::with_capacity(2 * PIECE);
    out.put_slice(event::SIGNATURE);
    // No flags, no extension.
    out.put_bytes(0, 8);
    for event in held {
        let name = names[event.table];
        out.put_i16(12);
        for text in [&who.consumer, &who.queue, &name.schema, &name.table] {
            put(&mut out, Some(text.as_bytes()));
        }
        for number in [tick, event.id, event.txid.cast_signed()] {
            put(&mut out, Some(&number.to_be_bytes()));
        }
        put(&mut out, Some(&event.event_type));
        match &event.data {
            Some(data) if data.len() >= LARGE => {
                out.put_i32(i32::try_from(data.len()).unwrap_or(i32::MAX));
                sink.send(out.split().freeze()).await?;
                flow::send(sink.as_mut(), data.clone()).await?;
            }
            data => put(&mut out, data.as_deref()),
        }
        put(&mut out, Some(&event.name));
        put(&mut out, event.extra2.as_deref());
        put(&mut out, event.place.as_deref());
        if out.len() >= PIECE {
            sink.send(out.split().freeze()).await?;
            out.reserve(2 * PIECE);
        }
    }
    out.put_i16(-1);
    sink.send(out.freeze()).await
}

/// A field of a binary COPY.
fn put(out: &mut BytesMut, field: Option<&[u8]>) {
    // A message is shorter than that, and so is a part of it.
    out.put_i32(field.map_or(-1, |field| i32::try_from(field.len()).unwrap_or(i32::MAX)));
    out.put_slice(field.unwrap_or_default());
}

/// The tables of which events are kept.
pub(super) async fn tables(subscriber: &Client, who: &Who) -> Result<HashSet<Name>> {
    let rows = subscriber
        .query(
            "select s.provider_schema, s.provider_table from pgcascade_replay.table_state s
              where s.consumer = $1 and s.queue = $2
                and exists (select from pgcascade_replay.held_event h
                             where h.consumer = s.consumer and h.queue = s.queue
                               and h.provider_schema = s.provider_schema and h.provider_table = s.provider_table)",
            &[&who.consumer, &who.queue],
        )
        .await
        .doing(|| "look for kept events on the subscriber".to_owned())?;
    Ok(rows
        .iter()
        .map(|row| Name::new(row.get::<_, &str>(0), row.get::<_, &str>(1)))
        .collect())
}

/// The last tick of the table's next portion; None when nothing is kept.
pub(super) async fn portion(subscriber: &Client, who: &Who, table: &Name) -> Result<Option<i64>> {
    let row = subscriber
        .query_one(
            "select max(first.tick) from (
               select h.tick from pgcascade_replay.held_event h
                where h.consumer = $1 and h.queue = $2 and h.provider_schema = $3 and h.provider_table = $4
                order by h.tick, h.ev_id limit $5) first",
            &[&who.consumer, &who.queue, &table.schema, &table.table, &PORTION],
        )
        .await
        .doing(|| format!("look for kept events of table {table} on the subscriber"))?;
    Ok(row.get(0))
}

/// The COPY that gives the portion in the form of the provider's events (event.rs).
pub(super) fn portion_query(who: &Who, table: &Name, upto: i64) -> String {
    let name: String = table.on_the_wire().iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "copy (select ev_id, ev_txid, ev_type, ev_data, coalesce(ev_extra1, '\\x{name}'), ev_extra2, ev_extra4,
                        null::int4
                 from pgcascade_replay.held_event
                where {} order by tick, ev_id) to stdout (format binary)",
        condition(who, table, upto)
    )
}

/// Forgets the portion; in the transaction that applies it.
pub(super) async fn applied(subscriber: &Client, who: &Who, table: &Name, upto: i64) -> Result<()> {
    subscriber
        .batch_execute(&format!(
            "delete from pgcascade_replay.held_event where {}",
            condition(who, table, upto)
        ))
        .await
        .doing(|| format!("forget kept events of table {table} on the subscriber"))
}

fn condition(who: &Who, table: &Name, upto: i64) -> String {
    format!(
        "consumer = {} and queue = {} and provider_schema = {} and provider_table = {} and tick <= {upto}",
        literal(&who.consumer),
        literal(&who.queue),
        literal(&table.schema),
        literal(&table.table)
    )
}
