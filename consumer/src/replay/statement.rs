//! The statements that apply rows of one shape, one by one or many at once, and their parameters.
//!
//! Values are text in the provider's fixed formats, and the subscriber reads them with its own columns' input
//! functions: parameters are sent as text, without a type, so that a column of any type takes them. What is not
//! written: columns that the subscriber generates. A column that is GENERATED ALWAYS AS IDENTITY can only be inserted, as
//! UPDATE takes nothing but DEFAULT for it: where one may change, outside the key, an update is a delete and an insert.

use std::error::Error as StdError;

use bytes::{BufMut, BytesMut};
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};
use wire::event_type::Operation;

use super::chunk::{Chunk, Row, Shape, Value};
use super::displaced;
use super::table::{Table, quoted};
use crate::connect::flow::PIECE;

/// A parameter: a value as text, of whatever type the server wants there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Text<'a>(pub(super) Option<Value<'a>>);

impl ToSql for Text<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        match self.0 {
            None => Ok(IsNull::Yes),
            Some(value) => {
                out.reserve(length(value) + ROOM_BEHIND);
                push_value(out, value);
                Ok(IsNull::No)
            }
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

/// A parameter: an array of one column's values in many rows, as text. In the binary format, which escapes nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Texts<'a> {
    pub(super) chunk: &'a Chunk,
    pub(super) rows: &'a [Row],
    pub(super) column: usize,
}

/// `pg_type.oid` of text, which never changes.
const TEXT_OID: i32 = 25;

impl ToSql for Texts<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        // Dimensions, whether there are nulls, element type, length, lower bound; then the elements.
        for number in [1, 1, TEXT_OID, i32::try_from(self.rows.len())?, 1] {
            out.put_i32(number);
        }
        for row in self.rows {
            match self.chunk.value(row, self.column) {
                None => out.put_i32(-1),
                Some(value) => {
                    let length = length(value);
                    out.reserve(4 + length + ROOM_BEHIND);
                    out.put_i32(i32::try_from(length)?);
                    push_value(out, value);
                }
            }
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// Room for what follows a value in its statement, as a buffer that has to grow for it doubles.
pub(super) const ROOM_BEHIND: usize = 1024;

fn length(value: Value<'_>) -> usize {
    match value {
        Value::Here(value) => value.len(),
        Value::Large(value) => value.decoded_len(),
    }
}

fn push_value(out: &mut BytesMut, value: Value<'_>) {
    match value {
        Value::Here(value) => out.extend_from_slice(value),
        Value::Large(value) => {
            let (mut next, mut piece) = (value.pieces(PIECE), Vec::with_capacity(PIECE));
            while next(&mut piece) {
                out.extend_from_slice(&piece);
            }
        }
    }
}

/// A statement for one row or many: its text, and which of the shape's columns are its parameters.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RowSql {
    pub(super) sql: String,
    pub(super) parameters: Vec<usize>,
}

/// The statement that applies one row. Truncates are not rows: None.
pub(super) fn row_sql(shape: &Shape, table: &Table) -> Option<RowSql> {
    match shape.operation {
        Operation::Insert => Some(insert(shape, table)),
        Operation::Update => Some(update(shape, table)),
        Operation::Delete => Some(delete(shape, table)),
        Operation::Truncate => None,
    }
}

/// The COPY that stores many rows of a shape.
pub(super) fn copy_sql(shape: &Shape, table: &Table) -> String {
    let columns: Vec<String> = shape.columns.iter().map(|column| quoted(column)).collect();
    format!("copy {} ({}) from stdin", table.name.quoted(), columns.join(", "))
}

/// The statement that applies many updates or deletes of a shape at once: each parameter is an array with one column's
/// values as text, in the order of the rows. None where a value could be read differently that way than as a parameter
/// of its own, and for other operations.
///
/// `= any` of one value, for `=`: with that the planner has no way to join but to look up each value by the key's index. With `=` it
/// would read a table of few rows from end to end, in the order of the key, and compare each with all of the set's; and the
/// plan is kept, however the table grows. Few is also what a large table is thought to have that autovacuum visited while
/// its first rows were not committed: 20 changes of 2,000,000 rows took 25 s. A column of arrays is compared
/// by `=`, as an array of arrays is one of their elements; so a key that begins with one can still meet this.
pub(super) fn set_sql(shape: &Shape, table: &Table) -> Option<RowSql> {
    let types: Vec<(&str, bool)> = shape
        .columns
        .iter()
        .map(|name| {
            let column = table.column(name)?;
            Some((column.cast_type.as_deref()?, column.is_array))
        })
        .collect::<Option<_>>()?;
    if rewrites(shape, table) {
        return None;
    }
    let value = |at: usize, number: usize| format!("s.c{}::{}", number + 1, types[at].0);
    let wanted = |at: usize, number: usize| {
        let value = value(at, number);
        let (_, is_array) = types[at];
        if is_array {
            value
        } else {
            format!("any (array[{value}])")
        }
    };
    let (parameters, verb) = match shape.operation {
        Operation::Update => {
            let (parameters, set) = update_parameters(shape, table);
            if set.is_empty() {
                return None;
            }
            let assignments: Vec<String> = set
                .iter()
                .map(|&(column, number)| format!("{} = {}", quoted(&shape.columns[column]), value(column, number)))
                .collect();
            let verb = format!("update {} as t set {} from", table.own_rows(), assignments.join(", "));
            (parameters, verb)
        }
        Operation::Delete => {
            let verb = format!("delete from {} as t using", table.own_rows());
            (shape.key.clone(), verb)
        }
        Operation::Insert | Operation::Truncate => return None,
    };
    let numbers = 1..=parameters.len();
    let arrays: Vec<String> = numbers
        .clone()
        .map(|i| format!("pg_catalog.unnest(${i}::pg_catalog.text[])"))
        .collect();
    let names: Vec<String> = numbers.map(|i| format!("c{i}")).collect();
    let sql = format!(
        "{verb} rows from ({}) as s ({}) where {}",
        arrays.join(", "),
        names.join(", "),
        condition(shape, table, "t.", wanted)
    );
    Some(RowSql { sql, parameters })
}

fn insert(shape: &Shape, table: &Table) -> RowSql {
    let columns: Vec<String> = shape.columns.iter().map(|column| quoted(column)).collect();
    let values: Vec<String> = (1..=columns.len()).map(|i| format!("${i}")).collect();
    let values = values.join(", ");
    let (with, first) = match &shape.makes_way {
        Some(keys) if shape.by_primary_key => displaced::with_insert(shape, table, keys),
        _ => (String::new(), None),
    };
    let source = match first {
        Some(first) => format!("select {values} from {first} as first"),
        None => format!("values ({values})"),
    };
    let sql = if columns.is_empty() {
        format!("insert into {} default values", table.name.quoted())
    } else {
        format!(
            "{with}insert into {} ({}) overriding system value {}{}",
            table.name.quoted(),
            columns.join(", "),
            source,
            if shape.settling {
                or_replace(shape, table)
            } else {
                String::new()
            }
        )
    };
    RowSql {
        sql,
        parameters: (0..shape.columns.len()).collect(),
    }
}

/// Whether an update has a value for a column that no UPDATE can set. (That of a key does not change: the trigger makes
/// a delete and an insert of it.)
fn rewrites(shape: &Shape, table: &Table) -> bool {
    shape.operation == Operation::Update
        && (0..shape.columns.len()).any(|i| {
            let column = table.column(&shape.columns[i]);
            !shape.key.contains(&i) && column.is_some_and(|column| column.identity == "a")
        })
}

/// An update that replaces the row. What only the subscriber has in it stays.
fn rewrite(shape: &Shape, table: &Table) -> RowSql {
    let mut parameters = shape.key.clone();
    parameters.extend((0..shape.columns.len()).filter(|i| !shape.key.contains(i)));
    let ours = table
        .columns
        .iter()
        .filter(|column| !column.generated && !shape.columns.contains(&column.name));
    let ours: Vec<String> = ours.map(|column| quoted(&column.name)).collect();
    let columns = parameters.iter().map(|&i| quoted(&shape.columns[i]));
    let values = (1..=parameters.len()).map(|i| format!("${i}"));
    let sql = format!(
        "with gone as (delete from {0} where {2} returning *)
         insert into {1} ({3}) overriding system value select {4} from gone",
        table.own_rows(),
        table.name.quoted(),
        condition(shape, table, "", |_, number| format!("${}", number + 1)),
        columns.chain(ours.iter().cloned()).collect::<Vec<_>>().join(", "),
        values
            .chain(ours.iter().map(|column| format!("gone.{column}")))
            .collect::<Vec<_>>()
            .join(", "),
    );
    RowSql { sql, parameters }
}

fn update(shape: &Shape, table: &Table) -> RowSql {
    if rewrites(shape, table) {
        return rewrite(shape, table);
    }
    let (parameters, set) = update_parameters(shape, table);
    let assignments: Vec<String> = set
        .iter()
        .map(|&(column, number)| format!("{} = ${}", quoted(&shape.columns[column]), number + 1))
        .collect();
    let condition = condition(shape, table, "", |_, number| format!("${}", number + 1));
    let sql = if assignments.is_empty() {
        // Its key is GENERATED ALWAYS: there is nothing that may be set, only a row to be found.
        format!("select from {} where {condition} for update", table.own_rows())
    } else {
        format!(
            "update {} set {} where {condition}",
            table.own_rows(),
            assignments.join(", ")
        )
    };
    RowSql { sql, parameters }
}

/// What makes an insert replace the row that is there.
fn or_replace(shape: &Shape, table: &Table) -> String {
    let key: Vec<String> = shape.key.iter().map(|&i| quoted(&shape.columns[i])).collect();
    let (_, set) = update_parameters(shape, table);
    let set: Vec<String> = set
        .iter()
        .map(|&(column, _)| quoted(&shape.columns[column]))
        .map(|column| format!("{column} = excluded.{column}"))
        .collect();
    let action = if set.is_empty() {
        "nothing".to_owned()
    } else {
        format!("update set {}", set.join(", "))
    };
    format!(" on conflict ({}) do {action}", key.join(", "))
}

/// The columns that are an update's parameters, the key's first; and which of them it sets, by which parameter.
fn update_parameters(shape: &Shape, table: &Table) -> (Vec<usize>, Vec<(usize, usize)>) {
    let settable = |&i: &usize| {
        table
            .column(&shape.columns[i])
            .is_some_and(|column| column.identity != "a")
    };
    let mut set: Vec<usize> = (0..shape.columns.len())
        .filter(|i| !shape.key.contains(i))
        .filter(settable)
        .collect();
    // A table of nothing but its key: the row must be there all the same, so something has to be set.
    if set.is_empty() {
        set = shape.key.iter().copied().filter(settable).collect();
    }
    let mut parameters = shape.key.clone();
    let numbered = set
        .into_iter()
        .map(|column| {
            let number = parameters.iter().position(|&i| i == column).unwrap_or_else(|| {
                parameters.push(column);
                parameters.len() - 1
            });
            (column, number)
        })
        .collect();
    (parameters, numbered)
}

fn delete(shape: &Shape, table: &Table) -> RowSql {
    let with = match &shape.makes_way {
        Some(_) if shape.by_primary_key => displaced::with_delete(shape, table),
        _ => String::new(),
    };
    let sql = format!(
        "{with}delete from {} where {}",
        table.own_rows(),
        condition(shape, table, "", |_, number| format!("${}", number + 1))
    );
    RowSql {
        sql,
        parameters: shape.key.clone(),
    }
}

/// The key equals the first parameters. `value` writes what stands behind the operator, given the column and the parameter's number, from 0.
fn condition(shape: &Shape, table: &Table, prefix: &str, value: impl Fn(usize, usize) -> String) -> String {
    let names: Vec<String> = shape.key.iter().map(|&i| shape.columns[i].clone()).collect();
    let index = table.key_over(&names);
    let terms: Vec<String> = names
        .iter()
        .enumerate()
        .map(|(i, name)| {
            let at = index.and_then(|index| index.columns.iter().position(|column| column == name));
            let operator = index
                .zip(at)
                .and_then(|(index, at)| index.operators.get(at)?.as_deref())
                .unwrap_or("pg_catalog.=");
            format!(
                "{prefix}{} operator({operator}) {}",
                quoted(name),
                value(shape.key[i], i)
            )
        })
        .collect();
    terms.join(" and ")
}

/// Appends a value, or a piece of one, in COPY's text format.
pub(super) fn push_copy_value(out: &mut BytesMut, value: &[u8]) {
    let mut start = 0;
    for (i, byte) in value.iter().enumerate() {
        let escaped = match byte {
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            _ => continue,
        };
        out.extend_from_slice(&value[start..i]);
        out.extend_from_slice(escaped);
        start = i + 1;
    }
    out.extend_from_slice(&value[start..]);
}
