//! One event as one line of JSON, in the format `debezium`: the envelope that Debezium puts around a row change.
//!
//! before, after, source, op (c, u, d, t), ts_ms, transaction, and source.cursor for `--from`. Values are typed by their
//! columns (value.rs). An event that is no row change is Debezium's message, op m. docs/tail.md describes every field.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use wire::event_type::Operation;

use super::columns::Kinds;
use super::event::{Change, Event};

/// Where the events come from.
pub(super) struct Source {
    pub(super) database: String,
    pub(super) queue: String,
}

/// How many events of each transaction came so far in this window, in which all of them are: in all, and by table.
#[derive(Default)]
pub(super) struct Transactions {
    seen: HashMap<i64, (u64, HashMap<String, u64>)>,
}

/// An event's place in its transaction.
#[derive(Clone, Copy)]
pub(super) struct Place {
    total: u64,
    in_table: u64,
}

impl Transactions {
    pub(super) fn forget(&mut self) {
        self.seen.clear();
    }

    /// To be called for every event of a window, printed or not, in their order.
    pub(super) fn count(&mut self, event: &Event<'_>) -> Place {
        let (total, tables) = self.seen.entry(event.txid).or_default();
        *total += 1;
        let table = event.extra[0].unwrap_or_default();
        let in_table = match tables.get_mut(table) {
            Some(in_table) => {
                *in_table += 1;
                *in_table
            }
            None => *tables.entry(table.to_owned()).or_insert(1),
        };
        Place {
            total: *total,
            in_table,
        }
    }
}

impl Source {
    /// The line, with its end. `tick` is the one that made the event visible.
    pub(super) fn line(
        &self,
        event: &Event<'_>,
        tick: i64,
        place: Place,
        change: Option<Change>,
        kinds: &Kinds,
    ) -> String {
        let table = event.table();
        let (schema, name) = table.unzip();
        let key = change.as_ref().map(|change| change.key.clone());
        let source = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "connector": "pgcascade",
            "name": self.queue,
            "ts_ms": event.milliseconds,
            "snapshot": "false",
            "db": self.database,
            "sequence": json!([tick.to_string(), event.id.to_string()]).to_string(),
            "schema": schema,
            "table": name,
            "txId": event.txid,
            "tick": tick,
            "eventId": event.id,
            "cursor": event.cursor(tick),
            "key": key,
        });
        let mut before = Value::Null;
        let mut after = Value::Null;
        let mut message = None;
        let op = match change {
            Some(change) => {
                let row = Some(change.row);
                let (op, old, new) = match change.operation {
                    Operation::Insert => ("c", None, row),
                    Operation::Update => ("u", change.old, row),
                    Operation::Delete => ("d", row, None),
                    Operation::Truncate => ("t", None, None),
                };
                before = typed(old, kinds);
                after = typed(new, kinds);
                op
            }
            None => {
                message = Some(json!({
                    "prefix": event.kind,
                    "content": event.data.map(|data| STANDARD.encode(data)),
                    "extra": event.extra,
                }));
                "m"
            }
        };
        let mut object = Map::new();
        object.insert("before".to_owned(), before);
        object.insert("after".to_owned(), after);
        object.insert("source".to_owned(), source);
        object.insert("op".to_owned(), op.into());
        object.insert("ts_ms".to_owned(), now().into());
        object.insert(
            "transaction".to_owned(),
            json!({
                "id": event.txid.to_string(),
                "total_order": place.total,
                "data_collection_order": place.in_table,
            }),
        );
        if let Some(message) = message {
            object.insert("message".to_owned(), message);
        }
        super::ended(object)
    }
}

fn typed(row: Option<Vec<(String, Option<String>)>>, kinds: &Kinds) -> Value {
    let Some(row) = row else { return Value::Null };
    row.into_iter()
        .map(|(column, value)| {
            let kind = kinds.get(&column).copied().unwrap_or_default();
            let value = value.map_or(Value::Null, |value| kind.value(value));
            (column, value)
        })
        .collect::<Map<_, _>>()
        .into()
}

/// When this line was made, in milliseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
