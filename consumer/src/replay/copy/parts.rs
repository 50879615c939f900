//! What a partitioned table is cut along: each chunk is of one partition, and is read from that.
//!
//! A partition that comes while the table is copied gets its chunk when the copy goes on, as it may have been attached with
//! rows. Where there is a default partition it may have its rows from there, of which some are copied; and of one that goes
//! some may be. Then the copy begins again. So it does where a table without a key is not stored any more as it was (places.rs).

use std::collections::HashSet;

use tokio_postgres::Client;

use super::super::places::{self, Stored};
use super::super::position::Who;
use super::super::table::{Name, Table};
use super::super::table_state;
use super::begin_reading;
use super::plan::{self, By, Range};
use crate::error::{Doing, Error, Result};

/// Where some of the rows are.
pub(super) struct Part {
    oid: u32,
    /// None: in the table itself.
    pub(super) partition: Option<Name>,
    /// System identifier, oid of the database and of the partition, joined by colons.
    pub(super) place: Option<String>,
    pub(super) bytes: u64,
    readable: bool,
    in_default: bool,
    /// Of a table that is cut by places.
    pub(super) found: Option<places::Found>,
}

/// All of them; in the transaction that has the table locked. None: the role cannot read them one by one, or it cannot be cut in that way.
pub(super) async fn readable(provider: &Client, who: &Who, table: &Table, by: By) -> Result<Option<Vec<Part>>> {
    let parts = all(provider, who, table, by).await?;
    Ok(parts.filter(|parts| parts.iter().all(|part| part.readable)))
}

async fn all(provider: &Client, who: &Who, table: &Table, by: By) -> Result<Option<Vec<Part>>> {
    let mut parts = if table.kind == "p" {
        partitions(provider, table).await?
    } else {
        vec![Part {
            oid: table.oid,
            partition: None,
            place: None,
            bytes: table.bytes,
            readable: true,
            in_default: false,
            found: None,
        }]
    };
    if by == By::Place {
        let Some(mut found) = places::find(provider, &who.queue, table).await? else {
            return Ok(None);
        };
        for part in &mut parts {
            part.found = found.remove(&part.oid);
        }
        if !found.is_empty() || parts.iter().any(|part| part.found.is_none()) {
            return Ok(None);
        }
    }
    Ok(Some(parts))
}

async fn partitions(provider: &Client, table: &Table) -> Result<Vec<Part>> {
    let rows = provider
        .query(include_str!("../sql/parts.sql"), &[&table.oid])
        .await
        .doing(|| format!("read the partitions of table {} of the provider", table.name))?;
    let part = |row: &tokio_postgres::Row| Part {
        oid: row.get("oid"),
        partition: Some(Name::new(row.get::<_, &str>("schema"), row.get::<_, &str>("name"))),
        place: Some(row.get("place")),
        bytes: u64::try_from(row.get::<_, Option<i64>>("bytes").unwrap_or(0)).unwrap_or(0),
        readable: row.get("readable"),
        in_default: row.get("in_default"),
        found: None,
    };
    Ok(rows.iter().map(part).collect())
}

/// Whether the partition is one of the table, which it stays while it is locked; and the one that is at that place, if it is known. Where
/// a branch or another server is read, it is another one by the same name.
pub(super) async fn check(provider: &Client, table: &Table, partition: &Name, place: Option<&str>) -> Result<()> {
    let row = provider
        .query_one(
            "select pg_catalog.pg_partition_root(pg_catalog.to_regclass($1)) = pg_catalog.to_regclass($2)
                    and ($3::text is null or $3 not like i.identity || ':%'
                         or $3 = i.identity || ':' || pg_catalog.to_regclass($1)::oid)
               from (select s.system_identifier || ':' || d.oid from pg_catalog.pg_control_system() s, pg_catalog.pg_database d
                      where d.datname = pg_catalog.current_database()) i(identity)",
            &[&partition.quoted(), &table.name.quoted(), &place],
        )
        .await
        .doing(|| format!("look at partition {partition} of the provider"))?;
    if row.get::<_, Option<bool>>(0) == Some(true) {
        Ok(())
    } else {
        Err(gone(table, partition))
    }
}

pub(super) fn gone(table: &Table, partition: &Name) -> Error {
    Error::failure(format!(
        "{partition} is not a partition of table {} of the provider any more",
        table.name
    ))
    .transient()
}

/// Brings the chunks in line with the partitions that there are now: those that came get one. `by`: how the table would be cut now.
pub(super) async fn bring_up_to_date(
    (p, s): (&Client, &Client),
    who: &Who,
    table: &Table,
    by: Option<By>,
) -> Result<()> {
    let name = &table.name;
    let what = || format!("look at the chunks of table {name} on the subscriber");
    let rows = s
        .query(
            "select partition_schema, partition_table, bool_and(copied_rows is not null), max(max(chunk)) over (),
                    place, filenode, epoch, partition_place
               from pgcascade_replay.copy_chunk
              where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4
              group by 1, 2, 5, 6, 7, 8",
            &[&who.consumer, &who.queue, &name.schema, &name.table],
        )
        .await
        .doing(what)?;
    let last = rows.first().map_or(0, |row| row.get::<_, i32>(3));
    let cut: Vec<Cut> = rows.iter().map(cut).collect();
    let is_by_place = cut.iter().any(|cut| cut.stored.is_some());
    let cut_by = if is_by_place { By::Place } else { By::Key };
    if !is_by_place && by != Some(By::Place) && table.kind != "p" {
        return Ok(());
    }
    if by.is_some_and(|by| by != cut_by) {
        return begin_again(
            s,
            who,
            name,
            Again::Cut,
            "it got another key on the provider, or lost it",
        )
        .await;
    }
    // With the table locked, so that none comes or goes between the looks.
    begin_reading(p, name).await?;
    let parts = all(p, who, table, cut_by).await?;
    p.batch_execute("commit").await.doing(what)?;
    let Some(parts) = parts else {
        let why = "the provider's events do not tell any more where its rows are";
        return begin_again(s, who, name, Again::Whole, why).await;
    };
    let mut known = HashSet::new();
    let mut renamed = Vec::new();
    let mut is_lost = false;
    for cut in &cut {
        let part = parts.iter().find(|part| cut.is_of(part));
        known.extend(part.map(|part| part.oid));
        let Some(part) = part else {
            is_lost |= !cut.done;
            continue;
        };
        if cut
            .stored
            .as_ref()
            .is_some_and(|stored| !part.is_still(stored, cut.done))
        {
            let why = "its rows were moved or removed on the provider meanwhile, or that is not the same root any more";
            return begin_again(s, who, name, Again::Whole, why).await;
        }
        if part.partition != cut.partition {
            renamed.push((cut, part));
        }
    }
    let came: Vec<&Part> = parts.iter().filter(|part| !known.contains(&part.oid)).collect();
    if is_lost || !came.is_empty() && parts.iter().any(|part| part.in_default) {
        return begin_again(
            s,
            who,
            name,
            Again::Cut,
            "its partitions changed on the provider meanwhile",
        )
        .await;
    }
    // Together, as partitions may have exchanged their names.
    s.batch_execute("begin").await.doing(what)?;
    for (cut, part) in renamed {
        rename(s, who, name, cut, part).await?;
    }
    let ranges: Vec<Range> = came.into_iter().map(Range::of).collect();
    plan::add(s, who, name, last + 1, &ranges, None).await?;
    s.batch_execute("commit").await.doing(what)
}

/// What the chunks of a partition, or of the table itself, have in common.
struct Cut {
    partition: Option<Name>,
    /// All are copied.
    done: bool,
    /// Of a table that is cut by places.
    stored: Option<Stored>,
    /// As in [`Part`].
    place: Option<String>,
}

impl Cut {
    /// By its place, where that is known, as its name may be another one now. Another root has its partitions at others.
    fn is_of(&self, part: &Part) -> bool {
        if let (Some(stored), Some(found)) = (&self.stored, &part.found) {
            return stored.place == found.stored.place;
        }
        match (&self.place, &part.place) {
            (Some(was), Some(is)) if database(was) == database(is) => was == is,
            _ => self.partition == part.partition,
        }
    }
}

/// Which one a place is in.
fn database(place: &str) -> Option<&str> {
    place.rsplit_once(':').map(|(database, _)| database)
}

impl Part {
    /// Whether what was cut is right still. Where all chunks are read, it does not matter what becomes of the blocks: no snapshot of
    /// theirs sees a row that came later.
    fn is_still(&self, stored: &Stored, done: bool) -> bool {
        let now = self.found.as_ref().map(|found| &found.stored);
        now.is_some_and(|now| now.epoch == stored.epoch && (done || now.filenode == stored.filenode))
    }
}

fn cut(row: &tokio_postgres::Row) -> Cut {
    Cut {
        partition: plan::partition(row.get(0), row.get(1)),
        done: row.get(2),
        stored: Stored::of(row, (4, 5, 6)),
        place: row.get(7),
    }
}

/// The partition has another name than its chunks say.
async fn rename(s: &Client, who: &Who, name: &Name, cut: &Cut, part: &Part) -> Result<()> {
    let partition = part.partition.as_ref().map(|name| (&name.schema, &name.table));
    s.execute(
        "update pgcascade_replay.copy_chunk set partition_schema = $6, partition_table = $7
          where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4 and coalesce(place, partition_place) = $5",
        &[
            &who.consumer,
            &who.queue,
            &name.schema,
            &name.table,
            &cut.stored.as_ref().map(|stored| &stored.place).or(cut.place.as_ref()),
            &partition.map(|(schema, _)| schema),
            &partition.map(|(_, table)| table),
        ],
    )
    .await
    .doing(|| format!("rename the chunks of a partition of table {name} on the subscriber"))?;
    Ok(())
}

/// How a copy begins again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    /// As it did before.
    Cut,
    /// In one transaction, which keeps off what would move the rows once more.
    Whole,
}

/// Has the table copied anew. Always an error, as what is at hand is of no use.
async fn begin_again(s: &Client, who: &Who, name: &Name, again: Again, why: &str) -> Result<()> {
    let number = table_state::begin_change(s, who).await?;
    match again {
        Again::Cut => table_state::start_over(s, who, name, number).await.map(drop)?,
        Again::Whole => places::start_over(s, who, name, number).await?,
    }
    s.batch_execute("commit")
        .await
        .doing(|| format!("look at the chunks of table {name} on the subscriber"))?;
    // Said here, as replay may see first that the set is another one.
    let whole = if again == Again::Whole { ", whole" } else { "" };
    tracing::warn!("the copy of table {name} begins again{whole}, as {why}");
    Err(table_state::changed(name))
}

#[cfg(test)]
impl Part {
    /// A table of so many blocks.
    pub(super) fn of_blocks(blocks: u64) -> Self {
        Self {
            oid: 1,
            partition: None,
            place: None,
            bytes: blocks * 8192,
            readable: true,
            in_default: false,
            found: Some(places::Found {
                stored: Stored {
                    place: "7:5:1".to_owned(),
                    filenode: 1,
                    epoch: 0,
                },
                blocks,
            }),
        }
    }
}
