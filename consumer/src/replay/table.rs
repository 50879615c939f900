//! What the catalogues of either end say about a table.
//!
//! [`inspect`] reads everything that setup, copy and apply need to know of a set of tables, in three queries however
//! many tables there are, and changes nothing. Names are kept as the catalogue has them and are quoted by [`quoted`],
//! the one function for that.

use std::collections::HashMap;
use std::fmt;

use tokio_postgres::{Client, Row};

use crate::connect::End;
use crate::error::{Doing, Result};

/// A table's name, as in the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Name {
    pub(crate) schema: String,
    pub(crate) table: String,
}

impl Name {
    pub(crate) fn new(schema: impl Into<String>, table: impl Into<String>) -> Self {
        Self {
            schema: schema.into(),
            table: table.into(),
        }
    }

    /// For SQL: both parts quoted, whatever they are.
    pub(crate) fn quoted(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.table))
    }

    /// As `ev_extra1` has it.
    pub(crate) fn on_the_wire(&self) -> Vec<u8> {
        let mut out = Vec::new();
        wire::name::push_qualified(&mut out, self.schema.as_bytes(), self.table.as_bytes());
        out
    }
}

/// For messages: quoted only where that is needed.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, part) in [&self.schema, &self.table].into_iter().enumerate() {
            if i > 0 {
                f.write_str(".")?;
            }
            let plain = part
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
                && !part.starts_with(|c: char| c.is_ascii_digit());
            if plain && !part.is_empty() {
                f.write_str(part)?
            } else {
                f.write_str(&quoted(part))?
            }
        }
        Ok(())
    }
}

/// An identifier for SQL. Always quoted: a list of reserved words would be one version's.
pub(crate) fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// A string for SQL, where no parameter can stand.
pub(crate) fn literal(text: &str) -> String {
    let mut out = Vec::new();
    wire::literal::push(&mut out, text.as_bytes());
    String::from_utf8_lossy(&out).into_owned()
}

/// One column.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    pub(crate) name: String,
    /// With its modifier, as in `numeric(10,2)`.
    pub(crate) type_name: String,
    /// Without it.
    pub(crate) bare_type: String,
    /// The type to cast a text to so that its input function reads it, as for a parameter; None when a cast would do
    /// something else.
    pub(crate) cast_type: Option<String>,
    /// Of arrays, or of what the server treats as one.
    pub(crate) is_array: bool,
    pub(crate) not_null: bool,
    /// `a` always, `d` by default, empty.
    pub(crate) identity: String,
    pub(crate) generated: bool,
    /// Generated when it is read.
    pub(crate) is_virtual: bool,
    /// The default, or the expression of a generated column.
    pub(crate) expression: Option<String>,
    /// Whether that depends on nothing but what every server has.
    pub(crate) portable: bool,
    /// What the rows have that are older than the column and were not written since, if it came with a default.
    pub(crate) missing_value: Option<String>,
    /// No column before it was dropped.
    pub(crate) keeps_place: bool,
    /// Only when it is not the type's own.
    pub(crate) collation: Option<String>,
}

impl Column {
    /// Whether a row can be stored without naming it.
    pub(crate) fn is_optional(&self) -> bool {
        !self.not_null || self.expression.is_some() || !self.identity.is_empty()
    }
}

/// One index.
#[derive(Debug, Clone)]
pub(crate) struct Index {
    pub(crate) name: String,
    pub(crate) is_primary: bool,
    /// Unique over plain columns of all rows: a row can be found by it.
    pub(crate) is_key: bool,
    /// Unique, if only in part, or an exclusion constraint's: rows may stand in each other's way.
    pub(crate) constrains: bool,
    /// Checked at every row, not deferrable: ON CONFLICT can use it.
    pub(crate) is_immediate: bool,
    pub(crate) columns: Vec<String>,
    /// The operator of each term by which two rows have the same, qualified: equality, but for an exclusion constraint. None for an access
    /// method that has none.
    pub(crate) operators: Vec<Option<String>>,
    /// What it is over, as SQL: columns, which for a key are all, and expressions.
    pub(crate) terms: Vec<String>,
    /// By which collation each is compared, quoted; None: its type has none.
    pub(crate) collations: Vec<Option<String>>,
    /// NULLS NOT DISTINCT.
    pub(crate) nulls_equal: bool,
    /// Of a partial index.
    pub(crate) predicate: Option<String>,
    /// The columns that terms and predicate need.
    pub(crate) needed: Vec<String>,
    /// Valid, and unique or an exclusion constraint's.
    pub(crate) is_whole: bool,
    pub(crate) constraint: Option<(String, String)>,
    pub(crate) is_unique: bool,
    /// What follows the table's name in CREATE INDEX.
    pub(crate) definition: String,
}

/// One table.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) oid: u32,
    pub(crate) name: Name,
    /// `pg_class.relkind`.
    pub(crate) kind: String,
    /// How it is partitioned, if it is.
    pub(crate) part_key: Option<String>,
    /// The columns that decide on a row's partition, on whatever level.
    pub(crate) part_columns: Vec<String>,
    pub(crate) has_children: bool,
    /// The planner's estimate; None when it has none.
    pub(crate) rows: Option<u64>,
    pub(crate) bytes: u64,
    pub(crate) row_security: bool,
    /// Has triggers that fire in replica mode, too.
    pub(crate) fires_triggers: bool,
    /// One of its partitions has a unique or exclusion constraint of its own.
    pub(crate) constrains_below: bool,
    privileges: Vec<String>,
    pub(crate) schema_usage: bool,
    pub(crate) columns: Vec<Column>,
    pub(crate) indexes: Vec<Index>,
}

impl Table {
    pub(crate) fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// The columns of the primary key; empty when there is none.
    pub(crate) fn primary_key(&self) -> &[String] {
        self.indexes
            .iter()
            .find(|index| index.is_primary)
            .map_or(&[], |index| &index.columns)
    }

    /// The unique index over exactly these columns, in whatever order.
    pub(crate) fn key_over(&self, columns: &[String]) -> Option<&Index> {
        self.indexes.iter().find(|index| {
            index.is_key
                && index.columns.len() == columns.len()
                && columns.iter().all(|column| index.columns.contains(column))
        })
    }

    /// What to call its own rows in a statement. Those of a partition are its own; those of a table that inherits from it are not, be it
    /// made after this one was looked at.
    pub(crate) fn own_rows(&self) -> String {
        let only = if self.kind == "p" { "" } else { "only " };
        format!("{only}{}", self.name.quoted())
    }

    pub(crate) fn may(&self, privilege: &str) -> bool {
        self.privileges.iter().any(|held| held == privilege)
    }

    /// What it is, when it is not a table that rows are stored in.
    pub(crate) fn kind_name(&self) -> &'static str {
        kind_name(&self.kind)
    }
}

/// The kind of a relation, for messages.
pub(crate) fn kind_name(kind: &str) -> &'static str {
    match kind {
        "r" => "table",
        "p" => "partitioned table",
        "v" => "view",
        "m" => "materialized view",
        "f" => "foreign table",
        _ => "relation of an unknown kind",
    }
}

/// The tables among `names` that exist.
pub(crate) async fn inspect(client: &Client, end: End, names: &[Name]) -> Result<HashMap<Name, Table>> {
    let what = || format!("read the catalogue of the {end}");
    let schemas: Vec<&str> = names.iter().map(|name| name.schema.as_str()).collect();
    let tables: Vec<&str> = names.iter().map(|name| name.table.as_str()).collect();
    let rows = client
        .query(include_str!("sql/tables.sql"), &[&schemas, &tables])
        .await
        .doing(what)?;
    let mut found: HashMap<u32, Table> = rows
        .iter()
        .map(|row| table(row).map(|table| (table.oid, table)))
        .collect::<Result<_, _>>()
        .doing(what)?;
    let oids: Vec<u32> = found.keys().copied().collect();
    for row in client
        .query(include_str!("sql/columns.sql"), &[&oids])
        .await
        .doing(what)?
    {
        let column = column(&row).doing(what)?;
        if let Some(table) = found.get_mut(&row.try_get::<_, u32>("table").doing(what)?) {
            table.columns.push(column);
        }
    }
    for row in client
        .query(include_str!("sql/indexes.sql"), &[&oids])
        .await
        .doing(what)?
    {
        let index = index(&row).doing(what)?;
        if let Some(table) = found.get_mut(&row.try_get::<_, u32>("table").doing(what)?) {
            table.indexes.push(index);
        }
    }
    Ok(found.into_values().map(|table| (table.name.clone(), table)).collect())
}

fn table(row: &Row) -> Result<Table, tokio_postgres::Error> {
    let rows: f64 = row.try_get("rows")?;
    Ok(Table {
        oid: row.try_get("oid")?,
        name: Name {
            schema: row.try_get("schema")?,
            table: row.try_get("name")?,
        },
        kind: row.try_get("kind")?,
        part_key: row.try_get("part_key")?,
        part_columns: row.try_get("part_columns")?,
        has_children: row.try_get("has_children")?,
        // -1: never analysed. An `as` from a float saturates.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked to be positive, and an estimate"
        )]
        rows: (rows >= 1.0).then_some(rows as u64),
        bytes: u64::try_from(row.try_get::<_, i64>("bytes")?).unwrap_or(0),
        row_security: row.try_get("row_security")?,
        fires_triggers: row.try_get("fires_triggers")?,
        constrains_below: row.try_get("constrains_below")?,
        privileges: row.try_get("privileges")?,
        schema_usage: row.try_get("schema_usage")?,
        columns: Vec::new(),
        indexes: Vec::new(),
    })
}

fn column(row: &Row) -> Result<Column, tokio_postgres::Error> {
    Ok(Column {
        name: row.try_get("name")?,
        type_name: row.try_get("type")?,
        bare_type: row.try_get("bare_type")?,
        cast_type: row.try_get("cast_type")?,
        is_array: row.try_get("is_array")?,
        not_null: row.try_get("not_null")?,
        identity: row.try_get("identity")?,
        generated: !row.try_get::<_, &str>("generated")?.is_empty(),
        is_virtual: row.try_get::<_, &str>("generated")? == "v",
        expression: row.try_get("expression")?,
        portable: row.try_get("portable")?,
        missing_value: row.try_get("missing_value")?,
        keeps_place: row.try_get("keeps_place")?,
        collation: row.try_get("collation")?,
    })
}

fn index(row: &Row) -> Result<Index, tokio_postgres::Error> {
    let constraint: Option<String> = row.try_get("constraint_name")?;
    let definition: Option<String> = row.try_get("constraint_definition")?;
    Ok(Index {
        name: row.try_get("name")?,
        is_primary: row.try_get("is_primary")?,
        is_key: row.try_get("is_key")?,
        constrains: row.try_get("constrains")?,
        is_immediate: row.try_get("is_immediate")?,
        columns: row.try_get::<_, Option<_>>("columns")?.unwrap_or_default(),
        operators: row.try_get::<_, Option<_>>("operators")?.unwrap_or_default(),
        terms: row.try_get("terms")?,
        collations: row.try_get("collations")?,
        nulls_equal: row.try_get("nulls_equal")?,
        predicate: row.try_get("predicate")?,
        needed: row.try_get::<_, Option<_>>("needed")?.unwrap_or_default(),
        is_whole: row.try_get("is_whole")?,
        constraint: constraint.zip(definition),
        is_unique: row.try_get("is_unique")?,
        definition: row.try_get("definition")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_for_people_and_for_sql() {
        assert_eq!(Name::new("public", "t1").to_string(), "public.t1");
        assert_eq!(Name::new("Odd", "a\"b").to_string(), "\"Odd\".\"a\"\"b\"");
        assert_eq!(Name::new("public", "t1").quoted(), "\"public\".\"t1\"");
        assert_eq!(Name::new("a.b", "c").on_the_wire(), b"\"a.b\".c");
    }
}
