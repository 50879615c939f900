//! The sequences that columns of captured tables draw from, as replay finds them (replay/sequences.rs): where they stand, and where they are to
//! stand on a new root.

use std::collections::BTreeMap;

use tokio_postgres::error::SqlState;

use crate::error::{Doing, Error, Result};
use crate::node::tree::Reached;
use crate::replay::donated;
use crate::replay::sequences::{MARGIN, OF_TABLES, PLACE};
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
    let row = match new.client().query_one(&furthest, &[]).await.doing(what) {
        Ok(row) => row,
        // A large table without an index. It would take as long at the next attempt.
        Err(error) if error.sqlstate() == Some(&SqlState::QUERY_CANCELED) => {
            return move_on(new, sequence, &error).await;
        }
        Err(error) => return Err(error),
    };
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

/// Moves it on by more than the events that came could have drawn from it, unless somebody draws many values at once: replay has kept it ahead of all
/// that came before.
async fn move_on(new: &Reached, sequence: &Sequence, why: &Error) -> Result<()> {
    let what = || format!("move sequence {} on", sequence.name);
    let came = donated::events(&new.client(), &new.node.queue).await?;
    let steps = MARGIN.saturating_add(came);
    let row = new
        .client()
        .query_one(
            "select pg_catalog.setval(q.seqrelid, greatest(q.seqmin, least(q.seqmax,
                        coalesce(pg_catalog.pg_sequence_last_value(q.seqrelid), q.seqstart) + q.seqincrement::numeric * $2::int8))::int8)
               from pg_catalog.pg_sequence q where q.seqrelid = $1",
            &[&sequence.oid, &steps],
        )
        .await
        .doing(what)?;
    let (schema, table) = &sequence.table;
    tracing::warn!(
        "sequence {} was moved on by {steps} values to {}, as it could not be seen in time what stands in column {} of table {schema}.{table} \
         ({why}); when there is time, see whether that is beyond all of it",
        sequence.name,
        row.get::<_, i64>(0),
        sequence.column,
    );
    Ok(())
}
