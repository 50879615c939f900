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
//! provider that has the same key over columns of the same types ([`other_keys`]): any unique index or exclusion constraint, as all that is needed is an
//! operator which says that two rows may not be beside each other, whichever of them comes first. Deferrable ones of the subscriber's are in nobody's
//! way. A table with any other constraint between rows is copied whole.
//!
//! A row that no such event comes for was never the provider's: somebody wrote it here. So what is removed is written down, and
//! forgotten when its event comes; what is left then is told and kept, or if it is the provider's after all, the table is copied again
//! ([`left`]): its key was dropped meanwhile, say, or is deferrable there, and within a transaction another row had the value, too, which
//! then gave it up again.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio_postgres::Client;

use super::chunk::Shape;
use super::position::Who;
use super::sources;
use super::table::{Index, Name, Table, literal, quoted};
use crate::error::{Doing, Result};

/// The keys besides the primary one by which rows may be removed.
pub(super) type OtherKeys = Arc<[OtherKey]>;

/// A unique index: two rows that it is about may not have the same terms.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OtherKey {
    terms: Vec<Term>,
    /// Whether NULL counts as equal to NULL.
    nulls_equal: bool,
    /// Which rows it is about, likewise; None: all.
    predicate: Option<String>,
    /// The columns that both need.
    needed: Vec<String>,
}

/// What a key is over.
#[derive(Debug, PartialEq, Eq)]
struct Term {
    /// SQL over the table's columns, which have no prefix there.
    sql: String,
    collation: Option<String>,
    operator: String,
}

impl OtherKey {
    /// None: it is not known what it compares.
    fn of(index: &Index) -> Option<Self> {
        let terms = index.terms.iter().zip(&index.collations).zip(&index.operators);
        let terms = terms.map(|((sql, collation), operator)| {
            Some(Term {
                sql: sql.clone(),
                collation: collation.clone(),
                operator: operator.clone()?,
            })
        });
        Some(Self {
            terms: terms.collect::<Option<_>>().filter(|_| index.is_whole)?,
            nulls_equal: index.nulls_equal,
            predicate: index.predicate.clone(),
            needed: index.needed.clone(),
        })
    }

    /// Whether no two rows stand in each other's way by it that do not by the other.
    fn is_implied_by(&self, other: &Self) -> bool {
        self.predicate == other.predicate
            && (other.nulls_equal || !self.nulls_equal)
            && self.terms.len() == other.terms.len()
            && self.terms.iter().all(|term| other.terms.contains(term))
    }

    /// Holds for a row of the table that may not be beside another one, of which `of` gives what SQL over its columns is.
    fn in_the_way(&self, of: impl Fn(&str) -> String) -> String {
        let terms = self.terms.iter().map(|term| {
            let (sql, operator, value) = (&term.sql, &term.operator, of(&term.sql));
            let collated = term.collation.iter().map(|name| format!(" collate {name}"));
            let collated = collated.collect::<String>();
            let equal = format!("{sql}{collated} operator({operator}) {value}");
            if self.nulls_equal {
                // IS NULL would hold for a composite value of nulls.
                format!("({equal} or {sql} is not distinct from null and {value} is not distinct from null)")
            } else {
                equal
            }
        });
        let about = self.predicate.iter().map(|sql| format!("({sql}) and {}", of(sql)));
        format!("({})", terms.chain(about).collect::<Vec<_>>().join(" and "))
    }
}

/// The keys of the subscriber's table besides the provider's primary one, if these are all that its rows can be in each other's way by, and the
/// provider sees to it that they are not.
pub(super) fn other_keys(provider: &Table, subscriber: &Table) -> Option<OtherKeys> {
    let the_key = subscriber.key_over(provider.primary_key())?;
    let others = subscriber.indexes.iter();
    // What is deferrable is looked at by a trigger of the server's, which does not fire during replay.
    let others = others.filter(|index| index.constrains && index.is_immediate && index.name != the_key.name);
    let is_same = |name: &String| {
        let columns = provider.column(name).zip(subscriber.column(name));
        columns.is_some_and(|(there, here)| {
            !there.generated
                && !here.generated
                && there.type_name == here.type_name
                && there.collation == here.collation
        })
    };
    let there: Vec<OtherKey> = provider.indexes.iter().filter_map(OtherKey::of).collect();
    let key = |index: &Index| {
        OtherKey::of(index)
            .filter(|key| key.needed.iter().all(is_same))
            .filter(|key| there.iter().any(|there| key.is_implied_by(there)))
    };
    let keys = others.map(key);
    keys.collect::<Option<Vec<_>>>()
        .filter(|_| !subscriber.constrains_below)
        .map(Into::into)
}

/// Whether the index is unique, and needs nothing but the table's columns, so that it can be made with a table of these.
pub(super) fn is_of_columns(index: &Index) -> bool {
    let is_equality = |operator: &Option<String>| operator.as_deref() == Some("pg_catalog.=");
    // What belongs to a schema has a dot in it.
    let needs_more = [".", " INCLUDE ", " COLLATE "];
    index.is_unique
        && index.is_whole
        && index.operators.iter().all(is_equality)
        && !needs_more.iter().any(|word| index.definition.contains(word))
}

/// `t.x = b.x and t.y = b.y`
fn equal<'a>(columns: impl IntoIterator<Item = &'a String>, value: impl Fn(&str) -> String) -> String {
    let terms: Vec<String> = columns
        .into_iter()
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

/// The table's name, as two values.
fn place(table: &Name) -> String {
    format!("{}, {}", literal(&table.schema), literal(&table.table))
}

/// Holds while all rows of the table come from one source: another one's would not come back.
fn has_one_source(table: &Name) -> String {
    format!(
        "(select count(distinct s.queue) from pgcascade_replay.table_state s where (s.subscriber_schema, s.subscriber_table) = ({})) < 2",
        place(table)
    )
}

/// What removes the rows `t` that are in the way of others and not these themselves, and what writes them down: parts of a WITH.
fn make_way(table: &Table, key: &[String], others: &str, in_the_way: &str, the_same: &str) -> [String; 2] {
    [
        format!(
            "blocker as (delete from {} as t{others} where ({in_the_way}) and not ({the_same}) and {}
                         returning {} as key, (t.*)::pg_catalog.text as row)",
            table.own_rows(),
            has_one_source(&table.name),
            key_of_row(key),
        ),
        format!(
            "insert into pgcascade_replay.displaced_row (table_schema, table_name, key, row) select {}, b.key, b.row from blocker b",
            place(&table.name)
        ),
    ]
}

/// What forgets that the shape's row was removed, as it is here again, or is to be gone. `parameters` are the columns that are.
fn forget_own(shape: &Shape, table: &Table, parameters: &[usize]) -> String {
    let texts: Vec<String> = shape
        .key
        .iter()
        .filter_map(|at| {
            let number = parameters.iter().position(|other| other == at)? + 1;
            let type_name = &table.column(&shape.columns[*at])?.type_name;
            Some(format!("${number}::{type_name}::pg_catalog.text"))
        })
        .collect();
    format!(
        "delete from pgcascade_replay.displaced_row d
          where (d.table_schema, d.table_name) = ({}) and d.key = array[{}] and not d.told",
        place(&table.name),
        texts.join(", ")
    )
}

/// Before the delete of a row that is settling: the WITH.
pub(super) fn with_delete(shape: &Shape, table: &Table) -> String {
    format!("with own as ({}) ", forget_own(shape, table, &shape.key))
}

/// Before the insert of one, whose parameters are all its columns: the WITH, and what is to be read before anything is stored.
pub(super) fn with_insert(shape: &Shape, table: &Table, keys: &[OtherKey]) -> (String, Option<&'static str>) {
    let parameters: Vec<usize> = (0..shape.columns.len()).collect();
    let own = forget_own(shape, table, &parameters);
    if keys.is_empty() {
        return (format!("with own as ({own}) "), None);
    }
    let key: Vec<String> = shape.key.iter().map(|&at| shape.columns[at].clone()).collect();
    // Every column that a term needs is in it: it would be taken for that of the row in the table.
    let needed: BTreeSet<&String> = keys.iter().flat_map(|key| &key.needed).chain(&key).collect();
    let given: Vec<String> = needed
        .into_iter()
        .filter_map(|name| {
            let at = shape.columns.iter().position(|column| column == name);
            let value = at.map_or_else(|| "null".to_owned(), |at| format!("${}", at + 1));
            let column = table.column(name)?;
            let collation = column.collation.iter().map(|collation| format!(" collate {collation}"));
            let value = format!("{value}::{}{}", column.type_name, collation.collect::<String>());
            Some(format!("{value} as {}", quoted(name)))
        })
        .collect();
    let of_given = |sql: &str| format!("(select {sql} from given)");
    let same: Vec<String> = keys.iter().map(|key| key.in_the_way(of_given)).collect();
    let the_same = equal(&key, |name| of_given(&quoted(name)));
    let [blocker, write_down] = make_way(table, &key, "", &same.join(" or "), &the_same);
    let with = format!(
        "with given as (select {}), {blocker}, kept as ({write_down}), own as ({own}) ",
        given.join(", ")
    );
    (with, Some("(select count(*) from blocker)"))
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

/// Stores the rows from there, and returns how many. Nobody else may store any until this is committed, as they would be in the way unseen.
pub(super) async fn store_aside(
    subscriber: &Client,
    provider: &Table,
    table: &Table,
    columns: &str,
    keys: &[OtherKey],
) -> Result<u64> {
    let what = || format!("copy into table {} of the subscriber", table.name);
    subscriber
        .batch_execute(&format!("lock table {} in share row exclusive mode", table.own_rows()))
        .await
        .doing(what)?;
    let key = provider.primary_key();
    let mut removed = 0;
    for other in keys {
        let key_columns = key.iter().map(|name| quoted(name));
        let read: Vec<String> = other
            .terms
            .iter()
            .map(|term| &term.sql)
            .chain(&other.predicate)
            .cloned()
            .chain(key_columns)
            .collect();
        // By names that no column of the table has, as the terms are read with the table's beside them.
        let names: Vec<String> = (0..read.len()).map(|at| format!("\"of aside {at}\"")).collect();
        let using = format!(
            " using (select {} from {ASIDE}) a ({})",
            read.join(", "),
            names.join(", ")
        );
        let of_aside = |sql: &str| {
            let at = read.iter().take_while(|other| *other != sql).count();
            format!("a.\"of aside {at}\"")
        };
        let the_same = equal(key, |name| of_aside(&quoted(name)));
        let [blocker, write_down] = make_way(table, key, &using, &other.in_the_way(of_aside), &the_same);
        let sql = format!("with {blocker} {write_down}");
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

/// Nothing is to come any more for the rows that were removed: the table was truncated, or its copy begins. Whether there were any.
pub(super) async fn forget(subscriber: &Client, table: &Name) -> Result<bool> {
    let forgotten = subscriber
        .execute(
            "delete from pgcascade_replay.displaced_row where table_schema = $1 and table_name = $2 and not told",
            &[&table.schema, &table.table],
        )
        .await
        .doing(|| format!("forget the rows of table {table} that made way"))?;
    Ok(forgotten > 0)
}

/// So many rows that did not come back are looked for at the provider.
const LOOKED_FOR: i64 = 1_000;

/// To be called when the table's copy is settled: tells of the rows that were removed and did not come back. True: some of them are the
/// provider's, so it has to be copied again.
pub(super) async fn left(subscriber: &Client, provider: &Client, there: &Table, table: &Table) -> Result<bool> {
    let name = &table.name;
    let what = || format!("look for rows of table {name} that made way");
    let rows = subscriber
        .query(
            "select key from pgcascade_replay.displaced_row where table_schema = $1 and table_name = $2 and not told order by id limit $3",
            &[&name.schema, &name.table, &LOOKED_FOR],
        )
        .await
        .doing(what)?;
    if rows.is_empty() {
        return Ok(false);
    }
    let columns = there.primary_key();
    let has = async |client: &Client, table: &Table, key: &[String]| {
        let value = |name: &str| {
            let at = columns.iter().position(|column| column == name);
            at.and_then(|at| key.get(at))
                .map_or_else(|| "null".to_owned(), |text| literal(text))
        };
        let sql = format!(
            "select exists (select from {} as t where {})",
            table.own_rows(),
            equal(columns, value)
        );
        client
            .query_one(&sql, &[])
            .await
            .doing(what)
            .map(|row| row.get::<_, bool>(0))
    };
    let mut missing = 0;
    for row in &rows {
        let key: Vec<String> = row.get(0);
        if has(subscriber, table, &key).await? {
            // It is back, with another text of the same value.
            let sql = "delete from pgcascade_replay.displaced_row where table_schema = $1 and table_name = $2 and key = $3 and not told";
            subscriber
                .execute(sql, &[&name.schema, &name.table, &key])
                .await
                .doing(what)?;
            continue;
        }
        if has(provider, there, &key).await? {
            tracing::warn!(
                table = %name,
                key = key.join(", "),
                "a row that was removed during the copy did not come back, as a key of the table was changed meanwhile; the table is copied again"
            );
            return Ok(true);
        }
        missing += 1;
    }
    if missing == 0 {
        return Ok(false);
    }
    tracing::warn!(
        table = %name,
        rows = missing,
        "rows that were in the way of the provider's during the table's copy were removed and did not come back: somebody wrote them on the \
         subscriber, or a partition was truncated; they are kept in pgcascade_replay.displaced_row"
    );
    subscriber
        .execute(
            "update pgcascade_replay.displaced_row set told = true where table_schema = $1 and table_name = $2 and not told",
            &[&name.schema, &name.table],
        )
        .await
        .doing(what)?;
    Ok(false)
}
