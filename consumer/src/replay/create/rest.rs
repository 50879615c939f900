//! What a table has beside what replay needs and a reader expects (`--create-full`): triggers, policies, grants, comments, statistics
//! objects, options of storage. Made with the table, in its transaction. What cannot be made, as a function or a role is not there, is left out and
//! told when the table is committed. Called by create.rs.

use std::collections::HashMap;

use tokio_postgres::Client;

use super::Missing;
use crate::error::{Doing, Error, Result};

use super::super::table::Name;

/// One thing that a table has.
#[derive(Debug)]
pub(super) struct Part {
    table: Name,
    /// For messages.
    what: String,
    /// Or why there is none.
    statement: Result<String, String>,
}

/// All that the tables on the provider have, in an order in which it can be made.
pub(super) async fn of(provider: &Client, missing: &[Missing]) -> Result<Vec<Part>> {
    let mut names = HashMap::new();
    for Missing { table, parts } in missing {
        names.insert(table.oid, (&table.name, table));
        names.extend(parts.iter().map(|part| (part.oid, (&part.name, table))));
    }
    let oids: Vec<u32> = names.keys().copied().collect();
    let schemas: Vec<&str> = names.values().map(|(name, _)| name.schema.as_str()).collect();
    let tables: Vec<&str> = names.values().map(|(name, _)| name.table.as_str()).collect();
    let rows = provider
        .query(include_str!("../sql/rest.sql"), &[&oids, &schemas, &tables])
        .await
        .doing(|| "read what the missing tables have on the provider".to_owned())?;
    let part = |row: &tokio_postgres::Row| {
        let (name, table) = names.get(&row.get::<_, u32>("oid"))?;
        let column: Option<&str> = row.get("column");
        let is_there = column.is_none_or(|column| table.column(column).is_some());
        is_there.then(|| Part {
            table: (*name).clone(),
            what: row.get("what"),
            statement: row
                .get::<_, Option<String>>("statement")
                .ok_or_else(|| row.get("reason")),
        })
    };
    Ok(rows.iter().filter_map(part).collect())
}

/// Makes it, inside the transaction that makes the tables. Returns what is left out, and why.
pub(super) async fn make(subscriber: &Client, parts: &[Part]) -> Result<Vec<Error>> {
    let mut left_out = Vec::new();
    for Part { table, what, statement } in parts {
        let what = || format!("make {what} of table {table} on the subscriber");
        let statement = match statement {
            Ok(statement) => statement,
            Err(reason) => {
                left_out.push(Error::failure(format!("could not {}: {reason}", what())));
                continue;
            }
        };
        subscriber.batch_execute("savepoint part").await.doing(what)?;
        let end = match subscriber.batch_execute(statement).await.doing(what) {
            Ok(()) => "release part",
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => {
                left_out.push(error);
                "rollback to part; release part"
            }
        };
        subscriber.batch_execute(end).await.doing(what)?;
    }
    Ok(left_out)
}
