//! Trigger arguments that are SQL: `when=EXPR`, `ev_data=EXPR` and their like, over the columns of the row.
//!
//! They run with the rights of the table's owner, restricted as in index expressions, and with a fixed search_path, so that
//! whoever writes to the table can neither gain rights nor lend theirs. An event trigger sees to it that nobody but the owner
//! brings expressions, since the TRIGGER privilege alone lets a role make triggers (sql/capture.sql).
//!
//! The expression sees the row's columns by name as SQL does. A name with capital letters is also found without quotes,
//! unless that would be another column: PgQ matches names to the letter.

use std::ffi::{CStr, CString};

use pgrx::{PgSqlErrorCode, pg_sys};

use super::row::Row;
use crate::guc;
use crate::pg::{self, ActingAs, SettingsNest};

/// What expressions run under when output is fixed, on top of the search_path.
const FIXED: [(&CStr, &CStr); 6] = [
    (c"datestyle", c"ISO"),
    (c"intervalstyle", c"postgres"),
    (c"timezone", c"GMT"),
    (c"extra_float_digits", c"1"),
    (c"bytea_output", c"hex"),
    (c"lc_monetary", c"C"),
];

/// A prepared expression.
pub(crate) struct Expression {
    /// `None` for an empty expression, whose value is NULL.
    plan: Option<pg_sys::SPIPlanPtr>,
    /// Attribute indexes of the columns it uses, in the order of its parameters.
    columns: Vec<usize>,
    owner: pg_sys::Oid,
}

/// A column as expressions see it.
pub(crate) struct Visible<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) index: usize,
    pub(crate) type_oid: pg_sys::Oid,
}

impl Expression {
    /// Prepares `text`. Raises the parser's own errors.
    pub(crate) fn prepare(text: &[u8], columns: &[Visible], owner: pg_sys::Oid) -> Self {
        if text.iter().all(u8::is_ascii_whitespace) {
            return Self {
                plan: None,
                columns: Vec::new(),
                owner,
            };
        }
        let lower = text.to_ascii_lowercase();
        // A column that the text does not mention need not be passed; one too many does no harm.
        let used: Vec<&Visible> = columns
            .iter()
            .filter(|column| contains(&lower, &spelled(column.name)))
            .collect();
        let mut query = b"select (".to_vec();
        query.extend_from_slice(text);
        // The line end closes a comment at the end of the text.
        query.extend_from_slice(b"\n)");
        for (number, column) in used.iter().enumerate() {
            query.extend_from_slice(if number == 0 { b" from (select " } else { b", " });
            query.extend_from_slice(format!("${} as ", number + 1).as_bytes());
            push_identifier(&mut query, column.name);
            let folded = column.name.to_ascii_lowercase();
            if folded != column.name && !columns.iter().any(|other| other.name == folded) {
                query.extend_from_slice(format!(", ${} as ", number + 1).as_bytes());
                push_identifier(&mut query, &folded);
            }
        }
        if !used.is_empty() {
            query.extend_from_slice(b") as \"row\"");
        }
        let Ok(query) = CString::new(query) else {
            unreachable!("trigger arguments and names are NUL-terminated in the catalog");
        };
        let mut types: Vec<pg_sys::Oid> = used.iter().map(|column| column.type_oid).collect();
        let _settings = settings();
        let _acting = ActingAs::role(owner, true);
        // SAFETY: the strings and arrays live through the calls, which copy them; SPI is opened and closed here.
        let plan = unsafe {
            pg_sys::SPI_connect();
            let plan = pg_sys::SPI_prepare(query.as_ptr(), types.len() as i32, types.as_mut_ptr());
            if plan.is_null() || pg_sys::SPI_keepplan(plan) != 0 {
                unusable(text);
            }
            pg_sys::SPI_finish();
            plan
        };
        Self {
            plan: Some(plan),
            columns: used.iter().map(|column| column.index).collect(),
            owner,
        }
    }

    /// The value as text by its type's output function; `None` is NULL.
    pub(crate) fn text(&self, row: &Row) -> Option<Vec<u8>> {
        let plan = self.plan?;
        // SAFETY: called with SPI connected and one result row; the text is copied before SPI closes.
        self.run(plan, row, |tuple, descriptor| unsafe {
            let text = pg_sys::SPI_getvalue(tuple, descriptor, 1);
            (!text.is_null()).then(|| CStr::from_ptr(text).to_bytes().to_vec())
        })
    }

    /// The value of a condition. Raises an ERROR unless it is a boolean that is not null.
    pub(crate) fn holds(&self, row: &Row) -> bool {
        let Some(plan) = self.plan else {
            not_boolean(pg_sys::InvalidOid)
        };
        // SAFETY: as in `text`.
        self.run(plan, row, |tuple, descriptor| unsafe {
            let type_oid = pg_sys::SPI_gettypeid(descriptor, 1);
            if type_oid != pg_sys::BOOLOID {
                not_boolean(type_oid);
            }
            let mut null = false;
            let value = pg_sys::SPI_getbinval(tuple, descriptor, 1, &mut null);
            if null {
                pg::raise(
                    PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
                    "when= should not be NULL",
                    "Write the condition so that it is true or false for every row, for example with coalesce().",
                );
            }
            value.value() & 1 == 1
        })
    }

    fn run<R>(
        &self,
        plan: pg_sys::SPIPlanPtr,
        row: &Row,
        read: impl FnOnce(pg_sys::HeapTuple, pg_sys::TupleDesc) -> R,
    ) -> R {
        let mut values: Vec<pg_sys::Datum> = self.columns.iter().map(|index| row.values[*index]).collect();
        let mut nulls: Vec<std::ffi::c_char> = self
            .columns
            .iter()
            .map(|index| if row.nulls[*index] { b'n' as _ } else { b' ' as _ })
            .collect();
        let _settings = settings();
        let _acting = ActingAs::role(self.owner, true);
        // SAFETY: the plan was kept; the arrays have one element per parameter; SPI is opened and closed here.
        unsafe {
            pg_sys::SPI_connect();
            let done = pg_sys::SPI_execute_plan(plan, values.as_mut_ptr(), nulls.as_mut_ptr(), false, 0);
            let rows = pg_sys::SPI_processed;
            if done != pg_sys::SPI_OK_SELECT as i32 || rows != 1 {
                pg::raise(
                    PgSqlErrorCode::ERRCODE_CARDINALITY_VIOLATION,
                    format!("Expect 1 row from override query, got {rows}"),
                    "Write the expression of the trigger argument so that it has one value.",
                );
            }
            let table = &*pg_sys::SPI_tuptable;
            let result = read(*table.vals, table.tupdesc);
            pg_sys::SPI_finish();
            result
        }
    }
}

impl Drop for Expression {
    fn drop(&mut self) {
        if let Some(plan) = self.plan.take()
            && !std::thread::panicking()
        {
            // SAFETY: kept by us, freed once; the server frees it later if it is in use.
            unsafe { pg_sys::SPI_freeplan(plan) };
        }
    }
}

fn settings() -> SettingsNest {
    let nest = SettingsNest::open();
    nest.set(c"search_path", c"pg_catalog, pg_temp");
    if guc::fixed_output() {
        for (name, value) in FIXED {
            nest.set(name, value);
        }
    }
    nest
}

/// A name as it stands in an expression, quoted or not, in lower case: quotes inside it are doubled.
fn spelled(name: &[u8]) -> Vec<u8> {
    let mut spelled = Vec::with_capacity(name.len());
    for byte in name {
        if *byte == b'"' {
            spelled.push(b'"');
        }
        spelled.push(byte.to_ascii_lowercase());
    }
    spelled
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && text.windows(part.len()).any(|window| window == part)
}

fn push_identifier(query: &mut Vec<u8>, name: &[u8]) {
    query.push(b'"');
    for byte in name {
        if *byte == b'"' {
            query.push(b'"');
        }
        query.push(*byte);
    }
    query.push(b'"');
}

fn unusable(text: &[u8]) -> ! {
    pg::raise(
        PgSqlErrorCode::ERRCODE_SYNTAX_ERROR,
        format!("cannot use expression of trigger argument: {}", pg::shown(text)),
        "Write an SQL expression over the columns of the table.",
    )
}

fn not_boolean(type_oid: pg_sys::Oid) -> ! {
    pg::raise(
        PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
        format!("when= query result must be boolean, got={}", type_oid.to_u32()),
        "Write a condition after when=.",
    )
}
