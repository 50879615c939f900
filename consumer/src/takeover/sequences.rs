//! The sequences that columns of captured tables draw from, as replay finds them (replay/sequences.rs): where they stand, and where they are to
//! stand on a new root.

use std::collections::BTreeMap;

use crate::error::{Doing, Result};
use crate::node::tree::Reached;
use crate::replay::sequences::{OF_TABLES, PLACE};
use crate::replay::table::{Name, quoted};

/// A column, and the sequence that it draws from.
pub(super) struct Sequence {
    pub(super) table: (String, String),
    pub(super) column: String,
    pub(super) name: Name,
    pub(super) may_set: bool,
    oid: u32,
    /// Null: nothing was drawn from it.
    last: Option<i64>,
    increment: i64,
    least: i64,
    most: i64,
    is_integer: bool,
}

/// Those of a node.
pub(super) async fn all(at: &Reached) -> Result<Vec<Sequence>> {
    let what = || format!("read the sequences of {}", at.node.title());
    let tables: BTreeMap<u32, (String, String)> = at
        .client()
        .query(include_str!("captured_tables.sql"), &[&at.node.queue])
        .await
        .doing(what)?
        .iter()
        .map(|row| (row.get(0), (row.get(1), row.get(2))))
        .collect();
    let oids: Vec<u32> = tables.keys().copied().collect();
    let rows = at
        .client()
        .query(
            &format!("select q.*, pg_catalog.pg_sequence_last_value(q.oid) as last from ({OF_TABLES}) q"),
            &[&oids],
        )
        .await
        .doing(what)?;
    let mut all: Vec<Sequence> = rows
        .iter()
        .filter_map(|row| {
            Some(Sequence {
                table: tables.get(&row.get("table"))?.clone(),
                column: row.get("column"),
                name: Name::new(row.get::<_, String>("schema"), row.get::<_, String>("name")),
                may_set: row.get("may_set"),
                oid: row.get("oid"),
                last: row.get("last"),
                increment: row.get("increment"),
                least: row.get("least"),
                most: row.get("most"),
                is_integer: row.get("is_integer"),
            })
        })
        .collect();
    all.sort_by(|a, b| (&a.table, &a.column).cmp(&(&b.table, &b.column)));
    Ok(all)
}

/// Sets those of the new root to where they stand on the old one. Replay kept them ahead of that; nothing has drawn from them for a
/// row, as the tables were closed here until now. In one go: nobody can write meanwhile.
pub(super) async fn set(new: &Reached, old: &Reached) -> Result<()> {
    let (ours, theirs) = tokio::try_join!(all(new), all(old))?;
    let mut places = BTreeMap::new();
    for there in theirs {
        let counterpart = |here: &&Sequence| (&here.table, &here.column) == (&there.table, &there.column);
        if let Some(here) = ours.iter().find(counterpart)
            && let Some(last) = there.last
            && here.last != Some(last)
        {
            places.insert(here.oid, last);
        }
    }
    let (oids, places): (Vec<u32>, Vec<i64>) = places.into_iter().unzip();
    new.client()
        .execute(PLACE, &[&oids, &places])
        .await
        .doing(|| format!("set the sequences of {} to where they stood", new.node.title()))?;
    Ok(())
}

/// Moves those of the new root beyond what stands in its tables: no provider's were read while it fetched. Forward only.
pub(super) async fn move_beyond_rows(new: &Reached) -> Result<()> {
    for sequence in all(new).await?.into_iter().filter(|sequence| sequence.is_integer) {
        if let Err(error) = move_one(new, &sequence).await {
            if error.is_transient() {
                // Not left to anybody: it comes again with the step.
                return Err(error);
            }
            tracing::warn!("{error}; see to it by hand before applications write");
        }
    }
    Ok(())
}

async fn move_one(new: &Reached, sequence: &Sequence) -> Result<()> {
    let table = Name::new(sequence.table.0.as_str(), sequence.table.1.as_str());
    let what = || format!("move the sequence of column {} of table {table}", sequence.column);
    let furthest = format!(
        "select pg_catalog.{}({})::int8 from {}",
        if sequence.increment > 0 { "max" } else { "min" },
        quoted(&sequence.column),
        table.quoted(),
    );
    let row = new.client().query_one(&furthest, &[]).await.doing(what)?;
    let value = row.get::<_, Option<i64>>(0);
    let Some(value) = value.filter(|value| (sequence.least..=sequence.most).contains(value)) else {
        return Ok(());
    };
    // Several columns may draw from it.
    new.client()
        .execute(
            "select pg_catalog.setval(s.oid, $2) from (select $1::oid::pg_catalog.regclass as oid) s
              where coalesce(case when $3 then pg_catalog.pg_sequence_last_value(s.oid) < $2
                                  else pg_catalog.pg_sequence_last_value(s.oid) > $2 end, true)",
            &[&sequence.oid, &value, &(sequence.increment > 0)],
        )
        .await
        .doing(what)?;
    Ok(())
}
