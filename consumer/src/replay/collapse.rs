//! Leaves out updates that a later update of the same row in the same chunk makes superfluous.
//!
//! A batch is one transaction, and inside a transaction the n-th update of a row has to pass the n - 1 versions before
//! it. With a row that every transaction of the provider updates (a counter, a balance), a batch of an hour would take
//! days. An update event holds the whole row, so only the last of them counts; what is left of a chunk has at most one
//! update of a row between two other events of it.
//!
//! That changes what can be seen in between, so it is done only where nobody looks: not for tables with another unique
//! or exclusion constraint than the key (two rows may have swapped values), nor with triggers that fire during replay;
//! and not in the careful mode.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use wire::event_type::Operation;

use super::chunk::{Chunk, Row, Shape};
use super::table::Table;

/// Whether updates of this table may be left out.
pub(super) fn is_safe(table: &Table, key: &[String]) -> bool {
    let the_key = table.key_over(key).map(|index| &index.name);
    !table.fires_triggers
        && table
            .indexes
            .iter()
            .all(|index| !index.constrains || Some(&index.name) == the_key)
}

/// Does the work; kept between chunks for its memory.
#[derive(Debug, Default)]
pub(super) struct Collapse {
    /// By the hash of table and key: where the last update is. A clash of two hashes costs a missed chance, and nothing
    /// else.
    last_update: HashMap<u64, usize>,
    superfluous: Vec<bool>,
}

impl Collapse {
    /// Removes rows from the chunk. `safe` says for each table whether that may be done.
    pub(super) fn run(&mut self, chunk: &mut Chunk, safe: &[bool]) {
        self.last_update.clear();
        self.superfluous.clear();
        self.superfluous.resize(chunk.rows.len(), false);
        for (i, row) in chunk.rows.iter().enumerate() {
            let shape = chunk.shape(row);
            if !safe[shape.table] {
                continue;
            }
            match shape.operation {
                // Found by something else than the key: which of the remembered rows it is, nobody knows.
                Operation::Update | Operation::Delete if !shape.by_primary_key => self.last_update.clear(),
                Operation::Update => {
                    if let Some(before) = self.last_update.insert(hash(chunk, row, shape), i)
                        && same_row(chunk, &chunk.rows[before], row, shape)
                    {
                        self.superfluous[before] = true;
                    }
                }
                // What comes after it is another row with the same key.
                Operation::Delete => {
                    self.last_update.remove(&hash(chunk, row, shape));
                }
                Operation::Truncate => self.last_update.clear(),
                // Its key was free, so no update of it is remembered.
                Operation::Insert => {}
            }
        }
        let mut superfluous = self.superfluous.iter();
        chunk.rows.retain(|_| !superfluous.next().is_some_and(|flag| *flag));
    }
}

/// The key's values in the order of the key, which an update and a delete share although their columns differ.
fn key<'a>(chunk: &'a Chunk, row: &'a Row, shape: &'a Shape) -> impl Iterator<Item = Option<&'a [u8]>> {
    shape.key.iter().map(|&column| chunk.value(row, column))
}

fn hash(chunk: &Chunk, row: &Row, shape: &Shape) -> u64 {
    let mut hasher = DefaultHasher::new();
    shape.table.hash(&mut hasher);
    for value in key(chunk, row, shape) {
        value.hash(&mut hasher);
    }
    hasher.finish()
}

fn same_row(chunk: &Chunk, before: &Row, row: &Row, shape: &Shape) -> bool {
    before.shape == row.shape && key(chunk, before, shape).eq(key(chunk, row, shape))
}

#[cfg(test)]
mod tests {
    use super::super::chunk::tests::chunk;
    use super::*;

    /// What is left of `U1a`: operation, key, value.
    fn left(events: &[&str]) -> Vec<i64> {
        let mut chunk = chunk(events);
        Collapse::default().run(&mut chunk, &[true]);
        chunk.rows.iter().map(|row| row.ev_id).collect()
    }

    #[test]
    fn the_last_update_of_a_row_is_left() {
        assert_eq!(left(&["U1a", "U2a", "U1b", "U1c", "U2b"]), [3, 4]);
        assert_eq!(left(&["U1a"]), [0]);
        assert_eq!(left(&["I1a", "U1b", "U1c", "D1-"]), [0, 2, 3]);
    }

    #[test]
    fn not_across_a_delete_or_a_truncate() {
        assert_eq!(left(&["U1a", "D1-", "I1b", "U1c", "U1d"]), [0, 1, 2, 4]);
        assert_eq!(left(&["U1a", "R--", "I1b", "U1c"]), [0, 1, 2, 3]);
        assert_eq!(left(&["U1a", "D2-", "U1c"]), [1, 2]);
    }

    #[test]
    fn only_where_it_is_safe() {
        let mut chunk = chunk(&["U1a", "U1b"]);
        Collapse::default().run(&mut chunk, &[false]);
        assert_eq!(chunk.rows.len(), 2);
    }
}
