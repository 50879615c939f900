//! One event as one line of JSON, in the format `json`.
//!
//! Always there: cursor, ev_id, ev_time, ev_txid, tick, ev_type, ev_extra1 to ev_extra4. A row change that a capture
//! trigger wrote also has table, operation, key and columns (values as text, null for NULL; of an update the new ones);
//! any other event has ev_data as it is.

use serde_json::{Map, Value};
use wire::event_type::Operation;

use super::event::{Change, Event};

/// The line, with its end. `tick` is the one that made the event visible.
pub(super) fn line(event: &Event<'_>, tick: i64, change: Option<Change>) -> String {
    let mut object = Map::new();
    object.insert("cursor".to_owned(), event.cursor(tick).into());
    object.insert("ev_id".to_owned(), event.id.into());
    object.insert("ev_time".to_owned(), event.time.into());
    object.insert("ev_txid".to_owned(), event.txid.into());
    object.insert("tick".to_owned(), tick.into());
    object.insert("ev_type".to_owned(), event.kind.into());
    match change {
        Some(change) => {
            let operation = match change.operation {
                Operation::Insert => "insert",
                Operation::Update => "update",
                Operation::Delete => "delete",
                Operation::Truncate => "truncate",
            };
            let columns: Map<String, Value> = change
                .row
                .into_iter()
                .map(|(column, value)| (column, value.into()))
                .collect();
            object.insert("table".to_owned(), event.extra[0].into());
            object.insert("operation".to_owned(), operation.into());
            object.insert("key".to_owned(), change.key.into());
            object.insert("columns".to_owned(), columns.into());
        }
        None => {
            object.insert("ev_data".to_owned(), event.data.into());
        }
    }
    for (number, extra) in event.extra.iter().enumerate() {
        object.insert(format!("ev_extra{}", number + 1), (*extra).into());
    }
    super::ended(object)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::super::event::tests::event;
    use super::*;

    #[test]
    fn a_captured_row_is_decoded() {
        let event = event("U:id,b", Some("id=1&b=a+b%26&c&d="), Some("public.t"));
        let change = event.raw_change().and_then(|raw| raw.utf8());
        assert_eq!(
            line(&event, 3, change),
            "{\"cursor\":\"3/7\",\"ev_id\":7,\"ev_time\":\"2026-01-02T03:04:05+00:00\",\"ev_txid\":9,\"tick\":3,\
             \"ev_type\":\"U:id,b\",\"table\":\"public.t\",\"operation\":\"update\",\"key\":[\"id\",\"b\"],\
             \"columns\":{\"id\":\"1\",\"b\":\"a b&\",\"c\":null,\"d\":\"\"},\
             \"ev_extra1\":\"public.t\",\"ev_extra2\":null,\"ev_extra3\":null,\"ev_extra4\":\"x\\\"\"}\n"
        );
    }

    #[test]
    fn anything_else_is_printed_as_it_is() {
        let line = line(&event("order", Some("{\"id\": 1}"), None), 3, None);
        assert!(
            line.contains("\"ev_data\":\"{\\\"id\\\": 1}\"") && !line.contains("\"columns\":"),
            "{line}"
        );
    }
}
