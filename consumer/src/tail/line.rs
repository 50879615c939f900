//! One event as one line of JSON.
//!
//! Always there: ev_id, ev_time, ev_txid, tick, ev_type, ev_extra1 to ev_extra4. An event that a capture trigger wrote
//! in the format of logutriga also has table, operation, key and columns (values as text, null for NULL; of an update
//! the new ones); any other event has ev_data as it is. What only looks like that format, or decodes to bytes that are
//! not UTF-8, is printed as it is.

use serde_json::{Map, Value};
use wire::event_type::{self, Operation};
use wire::{name, urlenc};

/// The columns of an event.
pub(super) struct Event<'a> {
    pub(super) id: i64,
    pub(super) time: Option<&'a str>,
    pub(super) txid: i64,
    pub(super) kind: Option<&'a str>,
    pub(super) data: Option<&'a str>,
    pub(super) extra: [Option<&'a str>; 4],
}

/// The line, with its end. `tick` is the one that made the event visible.
pub(super) fn line(event: &Event<'_>, tick: i64) -> String {
    let mut object = Map::new();
    object.insert("ev_id".to_owned(), event.id.into());
    object.insert("ev_time".to_owned(), event.time.into());
    object.insert("ev_txid".to_owned(), event.txid.into());
    object.insert("tick".to_owned(), tick.into());
    object.insert("ev_type".to_owned(), event.kind.into());
    match captured(event) {
        Some(captured) => object.extend(captured),
        None => {
            object.insert("ev_data".to_owned(), event.data.into());
        }
    }
    for (number, extra) in event.extra.iter().enumerate() {
        object.insert(format!("ev_extra{}", number + 1), (*extra).into());
    }
    let mut line = Value::Object(object).to_string();
    line.push('\n');
    line
}

/// What the trigger captured, if this is a row change in logutriga's format.
fn captured(event: &Event<'_>) -> Option<Map<String, Value>> {
    let (kind, data, table) = (event.kind?, event.data?, event.extra[0]?);
    let parsed = event_type::parse(kind.as_bytes()).ok()?;
    name::split(table.as_bytes(), b'.').ok()?;
    let mut columns = Map::new();
    for pair in urlenc::pairs(data.as_bytes()) {
        let (column, value) = pair.ok()?;
        let value = match value {
            Some(value) => Value::String(text(&value)?),
            None => Value::Null,
        };
        columns.insert(text(&column)?, value);
    }
    let key: Option<Vec<Value>> = parsed
        .key
        .iter()
        .map(|column| text(column).map(Value::String))
        .collect();
    let operation = match parsed.operation {
        Operation::Insert => "insert",
        Operation::Update => "update",
        Operation::Delete => "delete",
        Operation::Truncate => "truncate",
    };
    // sqltriga's types have no key list, and its data is no list of pairs; a truncate has neither.
    if columns.is_empty() != matches!(parsed.operation, Operation::Truncate) {
        return None;
    }
    let mut captured = Map::new();
    captured.insert("table".to_owned(), table.into());
    captured.insert("operation".to_owned(), operation.into());
    captured.insert("key".to_owned(), key?.into());
    captured.insert("columns".to_owned(), columns.into());
    Some(captured)
}

fn text(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(kind: &str, data: &str, table: Option<&str>) -> String {
        let event = Event {
            id: 7,
            time: Some("2026-01-02T03:04:05+00:00"),
            txid: 9,
            kind: Some(kind),
            data: Some(data),
            extra: [table, None, None, Some("x\"")],
        };
        line(&event, 3)
    }

    #[test]
    fn a_captured_row_is_decoded() {
        assert_eq!(
            shown("U:id,b", "id=1&b=a+b%26&c&d=", Some("public.t")),
            "{\"ev_id\":7,\"ev_time\":\"2026-01-02T03:04:05+00:00\",\"ev_txid\":9,\"tick\":3,\"ev_type\":\"U:id,b\",\
             \"table\":\"public.t\",\"operation\":\"update\",\"key\":[\"id\",\"b\"],\
             \"columns\":{\"id\":\"1\",\"b\":\"a b&\",\"c\":null,\"d\":\"\"},\
             \"ev_extra1\":\"public.t\",\"ev_extra2\":null,\"ev_extra3\":null,\"ev_extra4\":\"x\\\"\"}\n"
        );
    }

    #[test]
    fn anything_else_is_printed_as_it_is() {
        for (kind, data, table) in [
            ("order", "{\"id\": 1}", None),
            ("I:id", "id=%ff", Some("public.t")),
            ("I:id", "id=%zz", Some("public.t")),
            ("I:id", "", Some("public.t")),
            ("I:id", "id=1", None),
        ] {
            let line = shown(kind, data, table);
            assert!(
                line.contains("\"ev_data\":") && !line.contains("\"columns\":"),
                "{line}"
            );
        }
        assert!(shown("R", "", Some("public.t")).contains("\"operation\":\"truncate\""));
    }
}
