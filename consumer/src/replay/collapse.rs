//! The net effect of a chunk: what its changes come to, row by row of each table, in an order that makes few and large
//! sets of it.
//!
//! A batch is one transaction, so nobody sees what happened in between; an event holds the whole row, so of several changes
//! of one row only the last counts. What is left of a row is at most one delete and then one insert, or one update. For
//! each table all deletes come first, then all updates, then all inserts, and apply.rs makes one statement of each.
//! (It is also what keeps hot rows cheap: inside a transaction the n-th update of a row has to pass the n - 1 versions
//! before it.)
//!
//! The order matters to nobody only where nobody looks: [`Freedom`] says which tables those are. Nothing of this is done
//! in the careful mode, nor to a table whose changes in this chunk do not fit together (two inserts of one key): those
//! are applied as they came, and the server says what is wrong.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem;

use wire::event_type::Operation;

use super::chunk::{Chunk, Row, Shape};
use super::table::Table;

/// What may be done with the order of a table's changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Freedom {
    /// Only the state at the end counts.
    Net,
    /// Its rows may stand in each other's way by more than the key (another unique or exclusion constraint: two rows may
    /// have swapped values), or it has no key: its changes stay as they are, but other tables' may come before or after.
    Ordered,
    /// It has triggers that fire during replay, which may look at any table: nothing moves past its changes.
    Watched,
}

impl Freedom {
    /// That of a table on the subscriber whose rows the provider names by `key`.
    pub(super) fn of(table: &Table, key: &[String]) -> Self {
        let the_key = table.key_over(key).map(|index| &index.name);
        if table.fires_triggers {
            Self::Watched
        } else if the_key.is_none()
            || table.constrains_below
            || table
                .indexes
                .iter()
                .any(|index| index.constrains && Some(&index.name) != the_key)
        {
            Self::Ordered
        } else {
            Self::Net
        }
    }
}

/// Does the work; kept between chunks for its memory.
#[derive(Debug, Default)]
pub(super) struct Collapse {
    /// Changes since the last that nothing may move past, of each table whose order is free.
    pending: Vec<Vec<Row>>,
    /// The tables that have any, as they came.
    touched: Vec<usize>,
    net: Net,
}

impl Collapse {
    /// Puts the net effect in the place of the chunk's rows. `freedom` has an entry for each table.
    pub(super) fn run(&mut self, chunk: &mut Chunk, freedom: &[Freedom]) {
        let rows = mem::take(&mut chunk.rows);
        let mut out = Vec::with_capacity(rows.len());
        chunk.net = freedom.iter().map(|freedom| *freedom == Freedom::Net).collect();
        self.pending.resize_with(freedom.len(), Vec::new);
        for row in rows {
            let shape = chunk.shape(&row);
            match freedom[shape.table] {
                _ if shape.operation == Operation::Truncate => {
                    self.flush(chunk, &mut out);
                    out.push(row);
                }
                Freedom::Net => {
                    let pending = &mut self.pending[shape.table];
                    if pending.is_empty() {
                        self.touched.push(shape.table);
                    }
                    pending.push(row);
                }
                Freedom::Ordered => out.push(row),
                Freedom::Watched => {
                    self.flush(chunk, &mut out);
                    out.push(row);
                }
            }
        }
        self.flush(chunk, &mut out);
        chunk.rows = out;
    }

    fn flush(&mut self, chunk: &mut Chunk, out: &mut Vec<Row>) {
        for table in mem::take(&mut self.touched) {
            let rows = &mut self.pending[table];
            if !self.net.of(chunk, rows, out) {
                chunk.net[table] = false;
                out.append(rows);
            }
            rows.clear();
        }
    }
}

/// The net effect of the changes of one table.
#[derive(Debug, Default)]
struct Net {
    /// By the hash of the key: where in `changes`.
    by_key: HashMap<u64, usize>,
    changes: Vec<Change>,
}

/// What the changes of one row come to.
#[derive(Debug, Clone, Copy)]
struct Change {
    /// The row was there before, and is not any more.
    delete: Option<Row>,
    /// How it is now.
    last: Option<Row>,
    /// One of its events, to compare keys with.
    witness: Row,
}

impl Net {
    /// Appends the net effect to `out`. False, with nothing appended, when the changes do not fit together.
    fn of(&mut self, chunk: &Chunk, rows: &[Row], out: &mut Vec<Row>) -> bool {
        if rows.iter().all(|row| chunk.shape(row).operation == Operation::Insert) {
            out.extend_from_slice(rows);
            return true;
        }
        self.by_key.clear();
        self.changes.clear();
        for row in rows {
            if self.add(chunk, row).is_none() {
                return false;
            }
        }
        out.extend(self.changes.iter().filter_map(|change| change.delete));
        // By shape, so that rows which lack a column do not cut the others into pieces.
        let from = out.len();
        out.extend(self.changes.iter().filter_map(|change| change.last));
        out[from..].sort_by_key(|row| (chunk.shape(row).operation == Operation::Insert, row.shape));
        true
    }

    fn add(&mut self, chunk: &Chunk, row: &Row) -> Option<()> {
        let shape = chunk.shape(row);
        if !shape.by_primary_key {
            return None;
        }
        let next = self.changes.len();
        let at = *self.by_key.entry(hash(chunk, row, shape)).or_insert(next);
        if at == next {
            let change = Change {
                delete: None,
                last: None,
                witness: *row,
            };
            self.changes.push(change);
        }
        let change = self.changes.get_mut(at)?;
        // Two keys with the same hash.
        if !key(chunk, &change.witness, chunk.shape(&change.witness)).eq(key(chunk, row, shape)) {
            return None;
        }
        match (shape.operation, change.last) {
            // It is there already, or was never seen to go: an update is no reason to believe that it is gone.
            (Operation::Insert, None) if change.delete.is_some() || at == next => change.last = Some(*row),
            (Operation::Update, None) if change.delete.is_none() => change.last = Some(*row),
            (Operation::Update, Some(before)) => {
                let was = chunk.shape(&before);
                if was.columns != shape.columns {
                    return None;
                }
                change.last = Some(row.with_shape(before.shape));
            }
            (Operation::Delete, None) if change.delete.is_none() => change.delete = Some(*row),
            (Operation::Delete, Some(before)) => {
                if chunk.shape(&before).operation == Operation::Update {
                    change.delete = Some(*row);
                }
                change.last = None;
                // Inserted and deleted: nothing is left of it, and it may be inserted again.
                if change.delete.is_none() {
                    self.by_key.remove(&hash(chunk, row, shape));
                }
            }
            _ => return None,
        }
        Some(())
    }
}

/// The key's values in the order of the primary key, which all shapes share although their columns differ.
fn key<'a>(chunk: &'a Chunk, row: &'a Row, shape: &'a Shape) -> impl Iterator<Item = Option<&'a [u8]>> {
    shape.key.iter().map(|&column| chunk.key_value(row, column))
}

fn hash(chunk: &Chunk, row: &Row, shape: &Shape) -> u64 {
    let mut hasher = DefaultHasher::new();
    for value in key(chunk, row, shape) {
        value.hash(&mut hasher);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::super::chunk::tests::chunk;
    use super::*;

    /// What is left: operation, key and value, and the event that they are from.
    fn left(events: &[&str], freedom: Freedom) -> Vec<String> {
        let mut chunk = chunk(events);
        Collapse::default().run(&mut chunk, &[freedom]);
        chunk
            .rows
            .iter()
            .map(|row| {
                let shape = chunk.shape(row);
                let letter = match shape.operation {
                    Operation::Insert => "I",
                    Operation::Update => "U",
                    Operation::Delete => "D",
                    Operation::Truncate => "R",
                };
                let values = (0..shape.columns.len())
                    .filter_map(|column| chunk.key_value(row, column))
                    .flatten();
                letter.to_owned() + &values.map(|&byte| char::from(byte)).collect::<String>()
            })
            .collect()
    }

    fn net(events: &[&str]) -> Vec<String> {
        left(events, Freedom::Net)
    }

    #[test]
    fn the_last_of_the_changes_of_a_row_is_left() {
        assert_eq!(net(&["U1a", "U2a", "U1b", "U1c", "U2b"]), ["U1c", "U2b"]);
        assert_eq!(net(&["U1a"]), ["U1a"]);
        assert_eq!(net(&["I1a", "U1b", "U1c"]), ["I1c"]);
        assert_eq!(net(&["U1a", "D1-"]), ["D1"]);
        assert_eq!(net(&["D1-", "I1b", "U1c", "D1-"]), ["D1"]);
        assert_eq!(net(&["U1a", "D1-", "I1b", "U1c", "U1d"]), ["D1", "I1d"]);
    }

    #[test]
    fn what_comes_and_goes_leaves_nothing() {
        assert!(net(&["I1a", "U1b", "D1-"]).is_empty());
        assert_eq!(net(&["I1a", "D1-", "I1b"]), ["I1b"]);
        assert_eq!(net(&["I1a", "D1-", "I1b", "D1-", "I2c"]), ["I2c"]);
    }

    #[test]
    fn deletes_come_first_and_inserts_last() {
        assert_eq!(
            net(&["I3a", "U2b", "D1-", "I4b", "U5c", "D6-"]),
            ["D1", "D6", "U2b", "U5c", "I3a", "I4b"]
        );
    }

    #[test]
    fn changes_that_do_not_fit_together_stay_as_they_are() {
        for events in [
            &["I1a", "I1b"][..],
            &["D1-", "U1a"],
            &["D1-", "D1-"],
            &["U1a", "I1b"],
            &["I2a", "U1b", "I2c"],
        ] {
            assert_eq!(
                net(events),
                events
                    .iter()
                    .map(|event| event.trim_end_matches('-'))
                    .collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn not_across_a_truncate() {
        assert_eq!(net(&["U1a", "U1b", "R--", "I1b", "U1c"]), ["U1b", "R", "I1c"]);
    }

    #[test]
    fn only_where_it_is_free() {
        for freedom in [Freedom::Ordered, Freedom::Watched] {
            assert_eq!(left(&["U1a", "D2-", "U1b"], freedom), ["U1a", "D2", "U1b"]);
        }
    }

    /// Against the obvious: a map that the events are applied to one by one.
    #[test]
    fn the_state_at_the_end_is_the_same() {
        use std::collections::BTreeMap;
        let mut random = 1_u64;
        let mut next = |below: u8| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            random.to_be_bytes()[0] % below
        };
        for _ in 0..2_000 {
            let before: BTreeMap<char, char> = (0..next(5)).map(|i| (char::from(b'0' + i), 'x')).collect();
            let mut after = before.clone();
            let mut events = Vec::new();
            for i in 0..next(20) {
                let (row, value) = (char::from(b'0' + next(6)), char::from(b'a' + i));
                events.push(match (after.contains_key(&row), next(3)) {
                    (true, 0) => {
                        after.remove(&row);
                        format!("D{row}-")
                    }
                    (there, _) => {
                        after.insert(row, value);
                        format!("{}{row}{value}", if there { "U" } else { "I" })
                    }
                });
            }
            let texts: Vec<&str> = events.iter().map(String::as_str).collect();
            let mut state = before;
            for change in net(&texts) {
                let letters: Vec<char> = change.chars().collect();
                let was = match letters[0] {
                    'D' => state.remove(&letters[1]),
                    _ => state.insert(letters[1], letters[2]),
                };
                assert_eq!(was.is_some(), letters[0] != 'I', "{change} of {events:?}");
            }
            assert_eq!(state, after, "{events:?}");
        }
    }
}
