//! Rows that are ready to be applied.
//!
//! A row's values lie one behind the other in its chunk's buffer, so that a row costs no allocation; its columns are
//! described by a [`Shape`], which all rows of the same table, operation and columns share. A large value stays in its event,
//! encoded as it came, until it is written. Made by stream.rs, used by apply.rs.

use std::sync::Arc;

use bytes::Bytes;
use wire::event_type::Operation;
use wire::urlenc::Encoded;

use super::displaced::OtherKeys;
use super::event::Event;
use super::table::Name;
use crate::connect::flow::{Hold, LARGE};

/// What an event of a partition comes to that is no change of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// This partition of the subscriber is emptied.
    Truncate(Name),
    /// This statement deletes its rows.
    Delete(String),
    /// This statement makes it.
    Make(String),
}

/// What rows of one table, one operation and one list of columns have in common.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    /// Counts from 0; an index into what the applier prepares per shape.
    pub(super) id: usize,
    /// Which target.
    pub(super) table: usize,
    pub(super) operation: Operation,
    /// The names of the columns whose values are in a row, in that order: the key's alone for a delete.
    pub(super) columns: Vec<String>,
    /// Where the key's columns are in `columns`: the key that an update or delete names, the primary key for an insert.
    /// In the order of the primary key when it is that one.
    pub(super) key: Vec<usize>,
    /// Whether it is the provider's primary key, which it is unless the trigger was told otherwise.
    pub(super) by_primary_key: bool,
    /// The copy may hold these changes already, and later ones too: an insert of a row that is there replaces it, and a
    /// row that is not there need not be updated or deleted.
    pub(super) settling: bool,
    /// And that because of a copy in chunks: by which other keys rows may be in its way, see displaced.rs.
    pub(super) makes_way: Option<OtherKeys>,
    /// Of the TRUNCATE of a partition: what is done for it; or what makes one.
    pub(super) part: Option<Part>,
    /// The event type as it came.
    pub(super) event_type: Vec<u8>,
    /// The names as they come in the event, and whether the value is kept.
    pub(super) names: Vec<(Vec<u8>, bool)>,
}

impl Shape {
    /// The same columns, to be applied by another operation.
    pub(super) fn with_operation(&self, operation: Operation) -> Self {
        Self {
            operation,
            ..self.clone()
        }
    }
}

/// One event; its values are `chunk.value(row, ..)`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) ev_id: i64,
    /// Index into the chunk's shapes.
    pub(super) shape: usize,
    first_field: usize,
}

impl Row {
    /// The same values as a row of another shape with the same columns.
    pub(super) fn with_shape(self, shape: usize) -> Self {
        Self { shape, ..self }
    }
}

/// An event that is not applied yet, because its table is being copied.
#[derive(Debug)]
pub(super) struct Held {
    /// Which target.
    pub(super) table: usize,
    /// Its name in the event: that of a partition.
    pub(super) name: Vec<u8>,
    pub(super) id: i64,
    pub(super) txid: u64,
    pub(super) event_type: Vec<u8>,
    pub(super) data: Option<Bytes>,
    pub(super) extra2: Option<Vec<u8>>,
    pub(super) place: Option<Vec<u8>>,
}

/// A value of a row.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    Here(&'a [u8]),
    Large(&'a Encoded<Bytes>),
}

/// Changes in the order in which they are to be applied.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    pub(super) rows: Vec<Row>,
    /// Events to be kept for later.
    pub(super) held: Vec<Held>,
    pub(super) shapes: Vec<Arc<Shape>>,
    /// Of each table: whether its rows are the net effect of a chunk, with at most one update or delete of a row.
    pub(super) net: Vec<bool>,
    /// In the careful mode with policies, the event that each row came as, by the row's place.
    originals: Vec<Option<Bytes>>,
    values: Vec<u8>,
    /// Start and end in `values`; [`NULL`], or [`IN_EVENT`] and an index into `large`.
    fields: Vec<(u32, u32)>,
    large: Vec<Encoded<Bytes>>,
    /// Whether the event that was added last is kept for the sake of a large part.
    refers: bool,
    /// Those of the events that are kept. After what they are for, as fields are dropped in this order.
    holds: Vec<Hold>,
    /// What it takes besides its values and rows.
    beside: usize,
}

const NULL: (u32, u32) = (u32::MAX, u32::MAX);

/// In the place of where a value starts.
const IN_EVENT: u32 = u32::MAX - 1;

impl Chunk {
    /// The row's shape.
    pub(super) fn shape(&self, row: &Row) -> &Arc<Shape> {
        &self.shapes[row.shape]
    }

    /// The row's value in one of its shape's columns; None is NULL.
    #[inline]
    pub(super) fn value(&self, row: &Row, column: usize) -> Option<Value<'_>> {
        match self.fields[row.first_field + column] {
            NULL => None,
            (IN_EVENT, at) => Some(Value::Large(&self.large[at as usize])),
            (start, end) => Some(Value::Here(&self.values[start as usize..end as usize])),
        }
    }

    /// The same of a column of the key, which never stays in its event.
    #[inline]
    pub(super) fn key_value(&self, row: &Row, column: usize) -> Option<&[u8]> {
        match self.value(row, column)? {
            Value::Here(value) => Some(value),
            Value::Large(value) => Some(value.bytes()),
        }
    }

    /// Whether any value stays in its event.
    pub(super) fn has_large(&self) -> bool {
        !self.large.is_empty()
    }

    /// How much memory it takes.
    pub(super) fn bytes(&self) -> usize {
        self.values.len() + size_of_val(&*self.fields) + size_of_val(&*self.rows) + self.beside
    }

    /// Adds an event to be kept.
    pub(super) fn hold(&mut self, held: Held) {
        let data = held.data.as_ref().map_or(0, Bytes::len);
        self.refers |= data >= LARGE;
        // A large one is counted with its event.
        let data = if data >= LARGE { 0 } else { data };
        self.beside += held.name.len() + held.event_type.len() + data + size_of::<Held>();
        self.held.push(held);
    }

    /// To be called behind each event: keeps it, if a part of it is needed.
    pub(super) fn keep(&mut self, hold: Option<Hold>) {
        if std::mem::take(&mut self.refers)
            && let Some(hold) = hold
        {
            self.beside += hold.bytes;
            self.holds.push(hold);
        }
    }

    /// How many events there are in it.
    pub(super) fn events(&self) -> usize {
        self.rows.len() + self.held.len()
    }

    /// Keeps what the row that was added last came as.
    pub(super) fn keep_original(&mut self, event: &Event<'_>) {
        let data = event.data.map(|data| event.keep(data));
        match data.as_ref().map_or(0, Bytes::len) {
            LARGE.. => self.refers = true,
            length => self.beside += length,
        }
        self.originals.push(data);
    }

    /// What the row at this place came as, if that was kept.
    pub(super) fn original(&self, at: usize) -> Option<&[u8]> {
        self.originals.get(at)?.as_deref()
    }

    /// Adds a value of the row that is being built.
    #[inline]
    pub(super) fn push(&mut self, value: Option<Encoded<&[u8]>>) -> Result<(), &'static str> {
        let Some(value) = value else {
            self.fields.push(NULL);
            return Ok(());
        };
        let start = self.values.len();
        value.decode_into(&mut self.values);
        let end = u32::try_from(self.values.len())
            .ok()
            .filter(|&end| end < IN_EVENT)
            .ok_or("row of more than four gigabytes")?;
        self.fields.push((u32::try_from(start).unwrap_or(end), end));
        Ok(())
    }

    /// The same of a large one, which stays in its event.
    pub(super) fn push_large(&mut self, value: Encoded<Bytes>) -> Result<(), &'static str> {
        let at = u32::try_from(self.large.len()).map_err(|_| "too many large values")?;
        self.large.push(value);
        self.refers = true;
        self.fields.push((IN_EVENT, at));
        Ok(())
    }

    /// Where the chunk stands before a row is built.
    pub(super) fn mark(&self) -> Mark {
        Mark {
            fields: self.fields.len(),
            values: self.values.len(),
            large: self.large.len(),
        }
    }

    /// Takes back what was built since.
    pub(super) fn take_back(&mut self, mark: Mark) {
        self.fields.truncate(mark.fields);
        self.values.truncate(mark.values);
        self.large.truncate(mark.large);
    }

    /// The values since the mark are a row.
    pub(super) fn add_row(&mut self, mark: Mark, ev_id: i64, shape: usize) {
        self.rows.push(Row {
            ev_id,
            shape,
            first_field: mark.fields,
        });
    }
}

/// A place in a chunk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    fields: usize,
    values: usize,
    large: usize,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
pub(super) mod tests {
    use wire::urlenc::raw_pairs;

    use super::*;

    fn push(chunk: &mut Chunk, value: &str) {
        let data = format!("name={value}");
        let (_, value) = raw_pairs(data.as_bytes()).next().unwrap().unwrap();
        chunk.push(value).unwrap();
    }

    /// A chunk of one table `(k, v)` with key k. Each event is operation, key, value: `U1a`; the index is its id.
    pub(in super::super) fn chunk(events: &[&str]) -> Chunk {
        let shape = |id, operation, columns: &[&str], key: &[usize]| {
            Arc::new(Shape {
                id,
                table: 0,
                operation,
                columns: columns.iter().map(|&name| name.to_owned()).collect(),
                key: key.to_vec(),
                by_primary_key: true,
                settling: false,
                makes_way: None,
                part: None,
                event_type: Vec::new(),
                names: Vec::new(),
            })
        };
        let mut chunk = Chunk {
            shapes: vec![
                shape(0, Operation::Insert, &["k", "v"], &[0]),
                shape(1, Operation::Update, &["k", "v"], &[0]),
                shape(2, Operation::Delete, &["k"], &[0]),
                shape(3, Operation::Truncate, &[], &[]),
            ],
            ..Chunk::default()
        };
        for (ev_id, event) in events.iter().enumerate() {
            let shape = match &event[..1] {
                "I" => 0,
                "U" => 1,
                "D" => 2,
                _ => 3,
            };
            let first_field = chunk.fields.len();
            for column in 0..chunk.shapes[shape].columns.len() {
                push(&mut chunk, &event[column + 1..column + 2]);
            }
            chunk.rows.push(Row {
                ev_id: i64::try_from(ev_id).unwrap(),
                shape,
                first_field,
            });
        }
        chunk
    }

    #[test]
    fn null_is_not_the_empty_string() {
        let mut chunk = chunk(&["I1a"]);
        chunk.push(None).unwrap();
        push(&mut chunk, "");
        let row = Row {
            ev_id: 1,
            shape: 0,
            first_field: 2,
        };
        assert_eq!(
            (chunk.key_value(&row, 0), chunk.key_value(&row, 1)),
            (None, Some(&b""[..]))
        );
        assert_eq!(chunk.key_value(&chunk.rows[0], 1), Some(&b"a"[..]));
    }

    /// A wide table of nulls is nothing but fields.
    #[test]
    fn fields_count() {
        let mut chunk = Chunk::default();
        for _ in 0..1_600 {
            chunk.push(None).unwrap();
        }
        assert!(chunk.bytes() >= 1_600 * 8);
    }
}
