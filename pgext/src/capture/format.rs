//! The three ways to write an event: logutriga (URL-encoded row), sqltriga (parts of SQL statements), jsontriga (JSON).
//! What the texts look like is fixed by the contract, section 2; the codecs are in the `wire` crate.

use std::ffi::{CStr, c_char};

use pgrx::pg_sys;
use wire::event_type::{self, Operation};
use wire::{json, literal};

use super::output::Output;
use super::row::Row;
use super::trigger::{Capture, Column};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Url,
    Sql,
    Json,
}

impl Format {
    /// The trigger function's name, for messages.
    pub(crate) fn function(self) -> &'static str {
        match self {
            Self::Url => "pgq.logutriga",
            Self::Sql => "pgq.sqltriga",
            Self::Json => "pgq.jsontriga",
        }
    }

    /// The text of ev_type.
    pub(crate) fn event_type(self, operation: Operation, schema: &[u8], table: &[u8], key: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Url => event_type::push(&mut out, operation, key),
            Self::Sql => out.push(operation.letter()),
            Self::Json => {
                out.extend_from_slice(b"{\"op\":");
                json::push_string(&mut out, super::operation_name(operation).as_bytes());
                out.extend_from_slice(b",\"table\":");
                push_json_list(&mut out, &[schema, table]);
                out.extend_from_slice(b",\"pkey\":");
                push_json_list(&mut out, key);
                out.push(b'}');
            }
        }
        out
    }

    /// Appends the text of ev_data for an operation on a row. `old` is read for updates and deletes, `new` for inserts
    /// and updates.
    pub(crate) fn push_data(self, out: &mut Vec<u8>, operation: Operation, capture: &Capture, old: &Row, new: &Row) {
        let row = if operation == Operation::Delete { old } else { new };
        match (self, operation) {
            (Self::Url | Self::Json, Operation::Insert | Operation::Update | Operation::Delete) => {
                self.push_row(out, capture, row);
            }
            (Self::Sql, Operation::Insert) => push_sql_insert(out, capture, row),
            (Self::Sql, Operation::Update) => push_sql_update(out, capture, old, new),
            (Self::Sql, Operation::Delete) => push_sql_where(out, capture, row),
            (Self::Json, Operation::Truncate) => out.extend_from_slice(b"{}"),
            (Self::Url | Self::Sql, Operation::Truncate) => {}
        }
    }

    /// Appends a whole row: JSON for jsontriga, URL-encoded for the others.
    pub(crate) fn push_row(self, out: &mut Vec<u8>, capture: &Capture, row: &Row) {
        let columns = capture.columns.iter().filter(|column| column.in_data());
        if self == Self::Json {
            out.push(b'{');
            for (number, column) in columns.enumerate() {
                if number > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(&column.json_name);
                out.push(b':');
                match row.get(column.index) {
                    // SAFETY: the value is one of this column.
                    Some(value) => unsafe { push_json_value(out, column, value) },
                    None => out.extend_from_slice(b"null"),
                }
            }
            out.push(b'}');
            return;
        }
        for (number, column) in columns.enumerate() {
            if number > 0 {
                out.push(b'&');
            }
            out.extend_from_slice(&column.url_name);
            if let Some(value) = row.get(column.index) {
                out.push(b'=');
                // SAFETY: the value is one of this column.
                unsafe { column.output.text(value, |text| wire::urlenc::push_encoded(out, text)) };
            }
        }
    }
}

fn push_json_list(out: &mut Vec<u8>, names: &[&[u8]]) {
    out.push(b'[');
    for (number, name) in names.iter().enumerate() {
        if number > 0 {
            out.push(b',');
        }
        json::push_string(out, name);
    }
    out.push(b']');
}

/// Numbers and booleans are native, dates and times in ISO form with a T, all else is a string of the type's text.
///
/// # Safety
/// `value` must be a non-null value of `column`.
unsafe fn push_json_value(out: &mut Vec<u8>, column: &Column, value: pg_sys::Datum) {
    // SAFETY: as promised by the caller.
    unsafe {
        match (&column.output, column.type_oid) {
            (Output::Bool, _) => {
                out.extend_from_slice(if value.value() & 1 == 1 {
                    b"true".as_slice()
                } else {
                    b"false"
                });
            }
            (Output::Int2 | Output::Int4 | Output::Int8, _) => {
                column.output.text(value, |text| out.extend_from_slice(text));
            }
            (_, pg_sys::DATEOID | pg_sys::TIMESTAMPOID | pg_sys::TIMESTAMPTZOID) => {
                let mut buffer = [0 as c_char; pg_sys::MAXDATELEN as usize + 1];
                pg_sys::JsonEncodeDateTime(buffer.as_mut_ptr(), value, column.type_oid, std::ptr::null());
                json::push_string(out, CStr::from_ptr(buffer.as_ptr()).to_bytes());
            }
            _ => column.output.text(value, |text| json::push_string(out, text)),
        }
    }
}

fn push_sql_insert(out: &mut Vec<u8>, capture: &Capture, row: &Row) {
    let columns = || capture.columns.iter().filter(|column| column.in_data());
    out.push(b'(');
    for (number, column) in columns().enumerate() {
        if number > 0 {
            out.push(b',');
        }
        push_identifier(out, column);
    }
    out.extend_from_slice(b") values (");
    for (number, column) in columns().enumerate() {
        if number > 0 {
            out.push(b',');
        }
        push_literal(out, column, row, b"null");
    }
    out.push(b')');
}

/// Sets what changed; an update that changed nothing sets the first column of the key.
fn push_sql_update(out: &mut Vec<u8>, capture: &Capture, old: &Row, new: &Row) {
    let mut changed: Vec<&Column> = capture
        .columns
        .iter()
        .filter(|column| column.in_data() && column.differs(old, new))
        .collect();
    if changed.is_empty() {
        changed.extend(key_in_table_order(capture).next());
    }
    for (number, column) in changed.into_iter().enumerate() {
        if number > 0 {
            out.push(b',');
        }
        push_identifier(out, column);
        out.push(b'=');
        push_literal(out, column, new, b"NULL");
    }
    out.extend_from_slice(b" where ");
    push_sql_where(out, capture, new);
}

fn push_sql_where(out: &mut Vec<u8>, capture: &Capture, row: &Row) {
    for (number, column) in key_in_table_order(capture).enumerate() {
        if number > 0 {
            out.extend_from_slice(b" and ");
        }
        push_identifier(out, column);
        // A key given by pkey= may hold NULL, which nothing equals.
        match row.get(column.index) {
            Some(_) => {
                out.push(b'=');
                push_literal(out, column, row, b"NULL");
            }
            None => out.extend_from_slice(b" is null"),
        }
    }
}

fn key_in_table_order(capture: &Capture) -> impl Iterator<Item = &Column> {
    capture
        .columns
        .iter()
        .enumerate()
        .filter(|(position, _)| capture.key.contains(position))
        .map(|(_, column)| column)
}

fn push_literal(out: &mut Vec<u8>, column: &Column, row: &Row, null: &[u8]) {
    match row.get(column.index) {
        // SAFETY: the value is one of this column.
        Some(value) => unsafe { column.output.text(value, |text| literal::push(out, text)) },
        None => out.extend_from_slice(null),
    }
}

/// As the server quotes names, keywords included.
fn push_identifier(out: &mut Vec<u8>, column: &Column) {
    let Ok(name) = std::ffi::CString::new(column.name.as_slice()) else {
        return;
    };
    // SAFETY: the name lives through the call; the result is it or a palloc'd string.
    unsafe {
        let quoted = pg_sys::quote_identifier(name.as_ptr());
        out.extend_from_slice(CStr::from_ptr(quoted).to_bytes());
    }
}
