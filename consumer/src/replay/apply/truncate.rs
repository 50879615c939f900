//! TRUNCATE: tables and partitions that were emptied together on the provider are emptied together here, where their events come
//! one behind the other.
//!
//! They need not come so: another session's event may stand between them, a chunk may end there, or one of the tables is being
//! copied. And the server refuses to truncate a table that a foreign key of another one refers to, whether or not that one has
//! rows or triggers fire, unless both are emptied by one statement. So such a table has its rows deleted instead, which nothing stands
//! against: triggers of foreign keys do not fire during replay, unless somebody said so.

use tokio_postgres::Client;

use super::super::chunk::{Chunk, Part, Row};
use super::super::displaced;
use super::super::sources;
use super::{Applier, Failure};
use crate::config::Policy;
use crate::error::{Doing, Result};

impl Applier {
    /// Whether a table, or a part of it, may be emptied as these events say. If that is only not to be done, it is left out in the
    /// careful mode, where it is recorded.
    pub(super) async fn may_empty(
        &mut self,
        client: &Client,
        table: usize,
        events: &[i64],
        careful: bool,
    ) -> Result<bool, Failure> {
        let event = events.first().copied().unwrap_or_default();
        let of_table = |error| Failure {
            table: Some(table),
            ..Failure::from(error)
        };
        let refusal = sources::refuses_truncate(client, &self.tables[table].name, event).await;
        match refusal.map_err(of_table)? {
            None => Ok(true),
            Some(_) if careful && self.policies[table] == Policy::Skip => {
                self.left_out.extend(events);
                Ok(false)
            }
            Some(error) => Err(of_table(error)),
        }
    }

    /// Empties the tables and partitions of these events, none of which makes one.
    pub(super) async fn truncate(
        &mut self,
        client: &Client,
        chunk: &Chunk,
        rows: &[Row],
        careful: bool,
    ) -> Result<(), Failure> {
        let event = rows.first().map_or(0, |row| row.ev_id);
        let of = |table: Option<usize>, error| Failure {
            table,
            ..Failure::from(error)
        };
        let mut tables: Vec<(usize, String)> = rows
            .iter()
            .map(|row| {
                let shape = chunk.shape(row);
                let name = match &shape.part {
                    Some(Part::Truncate(name)) => name,
                    _ => &self.tables[shape.table].name,
                };
                (shape.table, name.quoted())
            })
            .collect();
        tables.sort_unstable();
        tables.dedup();
        let mut asked: Vec<usize> = tables.iter().map(|(table, _)| *table).collect();
        asked.dedup();
        for table in asked {
            let of_table = rows.iter().filter(|row| chunk.shape(row).table == table);
            let events: Vec<i64> = of_table.map(|row| row.ev_id).collect();
            if !self.may_empty(client, table, &events, careful).await? {
                tables.retain(|(other, _)| *other != table);
            }
        }
        let Some(&(first, _)) = tables.first() else {
            return Ok(());
        };
        let names: Vec<&str> = tables.iter().map(|(_, name)| name.as_str()).collect();
        let rows_of = |place: usize| {
            let (table, name) = &tables[place];
            let whole = &self.tables[*table];
            // A partition that is emptied has no rows of others below it.
            if *name == whole.name.quoted() {
                whole.own_rows()
            } else {
                name.clone()
            }
        };
        let what = || format!("apply event {event}, which truncates {}", names.join(", "));
        if careful && tables.len() > 1 {
            // Which of them is gone, or not ours to empty, the statement for all would not say.
            for (place, (table, _)) in tables.iter().enumerate() {
                client
                    .batch_execute(&format!("lock table {} in access exclusive mode", rows_of(place)))
                    .await
                    .doing(what)
                    .map_err(|error| of(Some(*table), error))?;
            }
        }
        let empty = async {
            let referred = referred(client, &names).await?;
            let (deleted, truncated): (Vec<_>, Vec<_>) = (0..names.len()).partition(|place| referred.contains(place));
            let mut statements = Vec::new();
            if !truncated.is_empty() {
                let truncated: Vec<String> = truncated.into_iter().map(rows_of).collect();
                statements.push(format!("truncate {}", truncated.join(", ")));
            }
            if !deleted.is_empty() {
                // In one statement: foreign keys that are enforced during replay are checked at its end.
                let deletes: Vec<String> = deleted
                    .iter()
                    .map(|&place| format!("d{place} as (delete from {})", rows_of(place)))
                    .collect();
                statements.push(format!("with {} select", deletes.join(", ")));
            }
            client.batch_execute(&statements.join("; ")).await
        };
        empty.await.doing(what).map_err(|error| Failure {
            unclear: !careful && tables.len() > 1 && !error.is_transient(),
            ..of(Some(first), error)
        })?;
        for row in rows {
            let shape = chunk.shape(row);
            if shape.makes_way.is_some() && shape.part.is_none() {
                displaced::forget(client, &self.tables[shape.table].name).await?;
            }
        }
        Ok(())
    }
}

/// The places of those that TRUNCATE would refuse.
async fn referred(client: &Client, names: &[&str]) -> Result<Vec<usize>, tokio_postgres::Error> {
    let rows = client.query(include_str!("../sql/referred.sql"), &[&names]).await?;
    let place = |row: &tokio_postgres::Row, column| {
        let place: Option<i64> = row.get(column);
        place.and_then(|place| usize::try_from(place).ok())
    };
    let mut referred = Vec::new();
    loop {
        // By one that is not truncated with it, be it that this one is referred to itself.
        let more: Vec<usize> = rows
            .iter()
            .filter(|row| place(row, "by").is_none_or(|by| referred.contains(&by)))
            .filter_map(|row| place(row, "place"))
            .filter(|place| !referred.contains(place))
            .collect();
        if more.is_empty() {
            return Ok(referred);
        }
        referred.extend(more);
    }
}
