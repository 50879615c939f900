//! An event as it is read from the queue, and the row change in it.
//!
//! A row change is what a capture trigger wrote in the format of logutriga. What only looks like it, or decodes to bytes
//! that are no text, is not one. The data of such an event is escaped byte by byte in the database's encoding, so in a
//! database that is not UTF-8 the server has to say what the bytes mean (columns.rs); names and types outside the data
//! arrive as text.

use std::borrow::Cow;

use tokio_postgres::Row;
use wire::event_type::{self, Operation};
use wire::{name, urlenc};

/// The list of columns that [`event`] reads.
pub(super) const COLUMNS: &str = "\
    e.ev_id, pg_catalog.to_json(e.ev_time) #>> '{}', e.ev_txid, e.ev_type, e.ev_data, e.ev_extra1, e.ev_extra2,
    e.ev_extra3, e.ev_extra4,
    case when pg_catalog.isfinite(e.ev_time)
         then pg_catalog.floor(extract(epoch from e.ev_time) * 1000)::pg_catalog.int8 end";

/// The columns of an event.
pub(super) struct Event<'a> {
    pub(super) id: i64,
    pub(super) time: Option<&'a str>,
    pub(super) txid: i64,
    pub(super) kind: Option<&'a str>,
    pub(super) data: Option<&'a str>,
    pub(super) extra: [Option<&'a str>; 4],
    /// The time as milliseconds since 1970.
    pub(super) milliseconds: Option<i64>,
}

pub(super) fn event(row: &Row) -> Result<Event<'_>, tokio_postgres::Error> {
    Ok(Event {
        id: row.try_get(0)?,
        time: row.try_get(1)?,
        txid: row.try_get(2)?,
        kind: row.try_get(3)?,
        data: row.try_get(4)?,
        extra: [row.try_get(5)?, row.try_get(6)?, row.try_get(7)?, row.try_get(8)?],
        milliseconds: row.try_get(9)?,
    })
}

/// Columns and their values, in the row's order; no value is NULL.
type Columns<T> = Vec<(T, Option<T>)>;

/// A row change, its values still bytes.
pub(super) struct RawChange<'a> {
    operation: Operation,
    key: Vec<String>,
    row: Columns<Cow<'a, [u8]>>,
    old: Option<Columns<Cow<'a, [u8]>>>,
}

/// A row change.
pub(super) struct Change {
    pub(super) operation: Operation,
    pub(super) key: Vec<String>,
    /// The new row, of a delete the old one; empty for a truncate.
    pub(super) row: Columns<String>,
    /// An update's old row, if the trigger was told to keep it (`backup`).
    pub(super) old: Option<Columns<String>>,
}

impl<'a> Event<'a> {
    /// What `--from` takes to go on after this event. `tick` is the one that made it visible.
    pub(super) fn cursor(&self, tick: i64) -> String {
        format!("{tick}/{}", self.id)
    }

    /// Schema and table, if ev_extra1 is the name of a table, whatever the format of the rest.
    pub(super) fn table(&self) -> Option<(String, String)> {
        let parts = name::split(self.extra[0]?.as_bytes(), b'.').ok()?;
        let [schema, table] = parts.as_slice() else { return None };
        Some((text(schema)?, text(table)?))
    }

    /// What the trigger captured, if it did.
    pub(super) fn raw_change(&self) -> Option<RawChange<'a>> {
        let (kind, data) = (self.kind?, self.data?);
        self.table()?;
        let parsed = event_type::parse(kind.as_bytes()).ok()?;
        let row: Columns<_> = urlenc::pairs(data.as_bytes()).collect::<Result<_, _>>().ok()?;
        // sqltriga's types have no key list, and its data is no list of pairs; a truncate has neither.
        if row.is_empty() != matches!(parsed.operation, Operation::Truncate) {
            return None;
        }
        let old = match (parsed.operation, self.extra[1]) {
            (Operation::Update, Some(old)) => urlenc::pairs(old.as_bytes()).collect::<Result<_, _>>().ok(),
            _ => None,
        };
        Some(RawChange {
            operation: parsed.operation,
            key: parsed.key.iter().map(|column| text(column)).collect::<Option<_>>()?,
            row,
            old,
        })
    }
}

impl RawChange<'_> {
    /// The change, if its bytes are UTF-8.
    pub(super) fn utf8(self) -> Option<Change> {
        let mut texts = self.bytes().into_iter().map(|bytes| match bytes {
            Some(bytes) => text(bytes).map(Some),
            None => Some(None),
        });
        let texts: Option<Vec<_>> = texts.by_ref().collect();
        self.with(texts?)
    }

    /// Whether every encoding that a database can have says the same of the bytes.
    pub(super) fn is_ascii(&self) -> bool {
        self.bytes().into_iter().flatten().all(<[u8]>::is_ascii)
    }

    /// All names and values, one after the other.
    pub(super) fn bytes(&self) -> Vec<Option<&[u8]>> {
        self.row
            .iter()
            .chain(self.old.iter().flatten())
            .flat_map(|(name, value)| [Some(name.as_ref()), value.as_deref()])
            .collect()
    }

    /// The change, with these texts in place of [`Self::bytes`].
    pub(super) fn with(self, texts: Vec<Option<String>>) -> Option<Change> {
        let mut texts = texts.into_iter();
        let mut columns = |count: usize| {
            (0..count)
                .map(|_| Some((texts.next()??, texts.next()?)))
                .collect::<Option<Columns<String>>>()
        };
        Some(Change {
            operation: self.operation,
            row: columns(self.row.len())?,
            old: match self.old {
                Some(old) => Some(columns(old.len())?),
                None => None,
            },
            key: self.key,
        })
    }
}

fn text(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
pub(super) mod tests {
    use super::*;

    pub(in crate::tail) fn event<'a>(kind: &'a str, data: Option<&'a str>, table: Option<&'a str>) -> Event<'a> {
        Event {
            id: 7,
            time: Some("2026-01-02T03:04:05+00:00"),
            txid: 9,
            kind: Some(kind),
            data,
            extra: [table, None, None, Some("x\"")],
            milliseconds: Some(1_767_323_045_000),
        }
    }

    #[test]
    fn what_only_looks_like_a_change_is_none() {
        for (kind, data, table) in [
            ("order", "{\"id\": 1}", None),
            ("I:id", "id=%zz", Some("public.t")),
            ("I:id", "", Some("public.t")),
            ("I:id", "id=1", None),
            ("I:id", "id=1", Some("t")),
            ("R", "id=1", Some("public.t")),
        ] {
            assert!(event(kind, Some(data), table).raw_change().is_none(), "{kind} {data}");
        }
        let not_utf8 = event("I:id", Some("id=%ff"), Some("public.t"));
        assert!(!not_utf8.raw_change().unwrap().is_ascii());
        assert!(not_utf8.raw_change().unwrap().utf8().is_none());
        assert!(event("R", Some(""), Some("public.t")).raw_change().is_some());
    }

    #[test]
    fn the_old_row_of_an_update_is_kept_apart() {
        let mut event = event("U:id", Some("id=1&a=2"), Some("\"Odd.Name\".t"));
        event.extra[1] = Some("id=1&a");
        assert_eq!(event.table(), Some(("Odd.Name".to_owned(), "t".to_owned())));
        let change = event.raw_change().unwrap().utf8().unwrap();
        assert_eq!(change.old.unwrap()[1], ("a".to_owned(), None));
        assert_eq!(change.row[1], ("a".to_owned(), Some("2".to_owned())));
    }
}
