//! What a partitioned table is cut along: each chunk is of one partition, and is read from that.
//!
//! A partition that comes while the table is copied gets its chunk when the copy goes on, as it may have been attached with
//! rows. Where there is a default partition it may have its rows from there, of which some are copied; and of one that goes
//! some may be. Then the copy begins again.

use std::collections::HashSet;

use tokio_postgres::Client;

use super::super::position::Who;
use super::super::table::{Name, Table};
use super::super::table_state;
use crate::error::{Doing, Error, Result};

/// Where some of the rows are.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// None: in the table itself.
    pub(super) partition: Option<Name>,
    pub(super) bytes: u64,
    readable: bool,
    in_default: bool,
}

/// All of them; in the transaction that has the table locked. None: the role cannot read them one by one.
pub(super) async fn readable(provider: &Client, table: &Table) -> Result<Option<Vec<Part>>> {
    if table.kind != "p" {
        return Ok(Some(vec![Part {
            partition: None,
            bytes: table.bytes,
            readable: true,
            in_default: false,
        }]));
    }
    let parts = all(provider, table).await?;
    Ok(parts.iter().all(|part| part.readable).then_some(parts))
}

async fn all(provider: &Client, table: &Table) -> Result<Vec<Part>> {
    let rows = provider
        .query(include_str!("../sql/parts.sql"), &[&table.oid])
        .await
        .doing(|| format!("read the partitions of table {} of the provider", table.name))?;
    let part = |row: &tokio_postgres::Row| Part {
        partition: Some(Name::new(row.get::<_, &str>("schema"), row.get::<_, &str>("name"))),
        bytes: u64::try_from(row.get::<_, Option<i64>>("bytes").unwrap_or(0)).unwrap_or(0),
        readable: row.get("readable"),
        in_default: row.get("in_default"),
    };
    Ok(rows.iter().map(part).collect())
}

/// Whether the partition is one of the table, which it stays while it is locked.
pub(super) async fn check(provider: &Client, table: &Table, partition: &Name) -> Result<()> {
    let row = provider
        .query_one(
            "select pg_catalog.pg_partition_root(pg_catalog.to_regclass($1)) = pg_catalog.to_regclass($2)",
            &[&partition.quoted(), &table.name.quoted()],
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

/// Brings the chunks in line with the partitions that there are now: those that came get one.
pub(super) async fn bring_up_to_date((p, s): (&Client, &Client), who: &Who, table: &Table) -> Result<()> {
    if table.kind != "p" {
        return Ok(());
    }
    let name = &table.name;
    let what = || format!("look at the chunks of table {name} on the subscriber");
    let rows = s
        .query(
            "select partition_schema, partition_table, bool_and(copied_rows is not null), max(max(chunk)) over ()
               from pgcascade_replay.copy_chunk
              where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4
                and partition_table is not null
              group by 1, 2",
            &[&who.consumer, &who.queue, &name.schema, &name.table],
        )
        .await
        .doing(what)?;
    let mut last = rows.first().map_or(0, |row| row.get::<_, i32>(3));
    let cut: Vec<(Name, bool)> = rows
        .iter()
        .map(|row| (Name::new(row.get::<_, &str>(0), row.get::<_, &str>(1)), row.get(2)))
        .collect();
    let parts = all(p, table).await?;
    let there: HashSet<&Name> = parts.iter().filter_map(|part| part.partition.as_ref()).collect();
    let known: HashSet<&Name> = cut.iter().map(|(partition, _)| partition).collect();
    let came: Vec<&Name> = there.difference(&known).copied().collect();
    let lost = cut.iter().find(|(partition, done)| !done && !there.contains(partition));
    if lost.is_some() || !came.is_empty() && parts.iter().any(|part| part.in_default) {
        let number = table_state::begin_change(s, who).await?;
        table_state::start_over(s, who, name, number).await?;
        s.batch_execute("commit").await.doing(what)?;
        // Said here, as replay may see first that the set is another one.
        tracing::warn!("the partitions of table {name} changed while it was copied, so that begins again");
        return Err(table_state::changed(name));
    }
    for partition in came {
        last += 1;
        s.execute(
            "insert into pgcascade_replay.copy_chunk
               (consumer, queue, provider_schema, provider_table, chunk, partition_schema, partition_table)
             values ($1, $2, $3, $4, $5, $6, $7)",
            &[
                &who.consumer,
                &who.queue,
                &name.schema,
                &name.table,
                &last,
                &partition.schema,
                &partition.table,
            ],
        )
        .await
        .doing(what)?;
    }
    Ok(())
}
