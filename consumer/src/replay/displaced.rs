//! Rows that stand in each other's way while their table is copied in chunks.
//!
//! The chunks of a table are of different moments (copy.rs). Where it has another unique key than the primary one, a value of that
//! may have gone from one row to another in between, and both are here. The one that is in the way is then removed:
//! - When a chunk is stored: a row of another chunk. The value went from the one to the other between the two moments, so both changed.
//! - When an event from before the end of the copy is applied: a row from a chunk that is younger than the event. The provider had room for
//!   the event's row, so that row got the value later, by another event.
//!
//! Either way an event is still to come that brings the removed row back, whole, or tells that it was deleted: all that stands between the
//! first snapshot and the last is applied, in its order, and an update is applied as an insert that replaces the row. That takes a
//! provider that has the same key, checked at every row, over columns of the same types ([`other_keys`]); a table with any other constraint between
//! rows is copied whole.
//!
//! A row that no such event comes for was never the provider's: somebody wrote it here. So what is removed is written down, and
//! forgotten when its event comes; what is left then is told and kept ([`left`]).

use tokio_postgres::Client;

use super::chunk::Shape;
use super::position::Who;
use super::sources;
use super::table::{Index, Name, Table, literal, quoted};
use crate::error::{Doing, Result};

/// The keys of the subscriber's table besides the provider's primary one, if these are all that its rows can be in each other's way by, and the
/// provider sees to it that they are not.
pub(super) fn other_keys<'a>(provider: &Table, subscriber: &'a Table) -> Option<Vec<&'a Index>> {
    let others = others(subscriber, provider.primary_key())?;
    let same = |name: &String| {
        let (there, here) = (provider.column(name)?, subscriber.column(name)?);
        let stored = !there.generated && !here.generated;
        (stored && there.type_name == here.type_name && there.collation == here.collation).then_some(())
    };
    let fits = |index: &&Index| {
        is_plain(index)
            && index.columns.iter().all(|name| same(name).is_some())
            && provider.key_over(&index.columns).is_some_and(is_plain)
    };
    (!subscriber.constrains_below && others.iter().all(fits)).then_some(others)
}

/// All that constrains rows besides the key over these columns. None: there is no such key.
fn others<'a>(subscriber: &'a Table, key: &[String]) -> Option<Vec<&'a Index>> {
    let the_key = subscriber.key_over(key)?;
    let others = subscriber.indexes.iter();
    Some(
        others
            .filter(|index| index.constrains && index.name != the_key.name)
            .collect(),
    )
}

/// A key that rows are compared by as by `=`, where NULL is not equal to NULL.
pub(super) fn is_plain(index: &Index) -> bool {
    let is_equality = |operator: &Option<String>| operator.as_deref() == Some("pg_catalog.=");
    index.is_key
        && index.is_immediate
        && index.operators.iter().all(is_equality)
        && !index.definition.contains("NULLS NOT DISTINCT")
}

/// `a.x = b.x and a.y = b.y`
fn equal(columns: &[String], value: impl Fn(&str) -> String) -> String {
    let terms: Vec<String> = columns
        .iter()
        .map(|name| format!("t.{} operator(pg_catalog.=) {}", quoted(name), value(name)))
        .collect();
    terms.join(" and ")
}

/// `array[t.id::text]`
fn key_of_row(key: &[String]) -> String {
    let texts: Vec<String> = key
        .iter()
        .map(|name| format!("t.{}::pg_catalog.text", quoted(name)))
        .collect();
    format!("array[{}]", texts.join(", "))
}

/// Where a removed row of the table is written down.
fn place(table: &Name) -> String {
    format!("{}, {}", literal(&table.schema), literal(&table.table))
}

const WRITE_DOWN: &str = "insert into pgcascade_replay.displaced_row (table_schema, table_name, key, row)";

/// What of the shape's rows is the key, in SQL over its parameters.
fn own_key(shape: &Shape, table: &Table, parameters: &[usize]) -> String {
    let texts: Vec<String> = shape
        .key
        .iter()
        .map(|&at| {
            let number = parameters.iter().position(|&other| other == at).unwrap_or(at) + 1;
            let type_name = table
                .column(&shape.columns[at])
                .map_or("pg_catalog.text", |column| &column.type_name);
            format!("${number}::{type_name}::pg_catalog.text")
        })
        .collect();
    format!("array[{}]", texts.join(", "))
}

/// That the row is here again, or is to be gone.
fn forget_own(shape: &Shape, table: &Table, parameters: &[usize]) -> String {
    format!(
        "delete from pgcascade_replay.displaced_row d where (d.table_schema, d.table_name) = ({}) and d.key = {}",
        place(&table.name),
        own_key(shape, table, parameters)
    )
}

/// Before the delete of a row: parts of a WITH.
pub(super) fn with_delete(shape: &Shape, table: &Table, parameters: &[usize]) -> String {
    format!("with own as ({}) ", forget_own(shape, table, parameters))
}

/// Before the insert of a row whose parameters are all its columns: parts of a WITH, of which `blocker` has to be read before anything is stored.
pub(super) fn with_insert(shape: &Shape, table: &Table) -> String {
    let key: Vec<String> = shape.key.iter().map(|&at| shape.columns[at].clone()).collect();
    let parameters: Vec<usize> = (0..shape.columns.len()).collect();
    let value = |name: &str| {
        let at = shape.columns.iter().position(|column| column == name);
        at.map_or_else(|| "null".to_owned(), |at| format!("${}", at + 1))
    };
    let same: Vec<String> = others(table, &key)
        .unwrap_or_default()
        .iter()
        .map(|index| equal(&index.columns, value))
        .collect();
    format!(
        "with blocker as (delete from {} as t where ({}) and not ({}) returning {} as key, (t.*)::pg_catalog.text as row),
              kept as ({WRITE_DOWN} select {}, b.key, b.row from blocker b on conflict do nothing),
              own as ({}) ",
        table.own_rows(),
        same.join(" or "),
        equal(&key, value),
        key_of_row(&key),
        place(&table.name),
        forget_own(shape, table, &parameters),
    )
}

/// Whether rows of the table may be removed: another source's would not come back. And whether the role may make what is needed for that.
pub(super) async fn is_allowed(subscriber: &Client, who: &Who, table: &Name) -> Result<bool> {
    let row = subscriber
        .query_one(
            "select pg_catalog.has_database_privilege(pg_catalog.current_database(), 'temporary')",
            &[],
        )
        .await
        .doing(|| "see whether temporary tables may be made on the subscriber".to_owned())?;
    Ok(row.get(0) && !sources::are_several(subscriber, who, table).await?)
}

/// What a chunk's rows are stored in first, where rows of the table are in their way: dropped at the end of the transaction.
pub(super) const ASIDE: &str = "pg_temp.pgcascade_aside";

/// Makes that, with the columns that are copied.
pub(super) async fn make_aside(subscriber: &Client, table: &Table, columns: &str) -> Result<()> {
    let sql = format!(
        "create temporary table pgcascade_aside on commit drop as select {columns} from {} with no data",
        table.own_rows()
    );
    subscriber.batch_execute(&sql).await.doing(|| {
        format!(
            "make a temporary table for rows of table {} on the subscriber",
            table.name
        )
    })
}

/// Stores the rows from there. Nobody else may store any until this is committed, as they would be in the way unseen.
pub(super) async fn store_aside(subscriber: &Client, provider: &Table, table: &Table, columns: &str) -> Result<u64> {
    let what = || format!("copy into table {} of the subscriber", table.name);
    subscriber
        .batch_execute(&format!("lock table {} in share row exclusive mode", table.own_rows()))
        .await
        .doing(what)?;
    let key = provider.primary_key();
    let of_aside = |name: &str| format!("a.{}", quoted(name));
    let mut removed = 0;
    for index in others(table, key).unwrap_or_default() {
        let sql = format!(
            "with blocker as (delete from {} as t using {ASIDE} a where {} and not ({}) returning {} as key, (t.*)::pg_catalog.text as row)
             {WRITE_DOWN} select {}, b.key, b.row from blocker b on conflict do nothing",
            table.own_rows(),
            equal(&index.columns, of_aside),
            equal(key, of_aside),
            key_of_row(key),
            place(&table.name),
        );
        removed += subscriber.execute(&sql, &[]).await.doing(what)?;
    }
    let sql = format!(
        "insert into {} ({columns}) overriding system value select {columns} from {ASIDE}",
        table.name.quoted()
    );
    let stored = subscriber.execute(&sql, &[]).await.doing(what)?;
    tracing::info!(table = %table.name, rows = removed, "rows of other chunks made way for those of this one");
    Ok(stored)
}

/// A TRUNCATE is all that was still to come for the rows that were removed.
pub(super) async fn forget(subscriber: &Client, table: &Name) -> Result<()> {
    subscriber
        .execute(
            "delete from pgcascade_replay.displaced_row where table_schema = $1 and table_name = $2",
            &[&table.schema, &table.table],
        )
        .await
        .doing(|| format!("forget the rows of table {table} that made way"))?;
    Ok(())
}

/// To be called when the table's copy is settled: tells of the rows that were removed and did not come back.
pub(super) async fn left(subscriber: &Client, table: &Name) -> Result<()> {
    let rows: i64 = subscriber
        .query_one(
            "select count(*) from pgcascade_replay.displaced_row where table_schema = $1 and table_name = $2",
            &[&table.schema, &table.table],
        )
        .await
        .doing(|| format!("look for rows of table {table} that made way"))?
        .get(0);
    if rows > 0 {
        tracing::warn!(
            %table,
            rows,
            "rows that somebody wrote into the subscriber's table during its copy had a value of a unique key that the provider's rows have; \
             they were removed, and are kept in pgcascade_replay.displaced_row"
        );
    }
    Ok(())
}
