//! What is said of the tables, as text and as JSON.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Map, Value};

use super::shape::{Part, Shape};

/// How a row differs, seen from the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// It has other values on the subscriber.
    Changed,
    /// It is not on the subscriber, or not as often.
    Missing,
    /// It is on the subscriber only, or more often.
    Extra,
}

/// A row that differs.
#[derive(Debug, Clone)]
pub(super) struct Difference {
    pub(super) kind: Kind,
    pub(super) identity: Vec<String>,
    /// Those with different values; empty unless it is changed.
    pub(super) columns: Vec<String>,
    /// Of a row without a key: how many more there are on one end.
    pub(super) copies: u64,
    /// Of a row without a key: what it looks like.
    pub(super) shown: Option<String>,
    pub(super) part: Part,
    /// How many rows the subscriber has instead of one.
    pub(super) subscriber_rows: u64,
    /// The number of the subscriber's row, if it is one.
    pub(super) subscriber_number: Option<i64>,
}

/// What was done to the subscriber's rows, or written down.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub(super) struct Mended {
    pub(super) inserted: u64,
    pub(super) updated: u64,
    pub(super) deleted: u64,
}

/// What came of one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    Equal,
    Different,
    /// It was different, and has been put right.
    Repaired,
    /// Nothing that was compared differs, but some rows had events on their way at every look.
    Unsettled,
    /// It could not be compared.
    Failed,
}

/// One table.
#[derive(Debug, Serialize)]
pub(super) struct TableReport {
    pub(super) table: String,
    pub(super) subscriber_table: String,
    pub(super) result: Outcome,
    pub(super) error: Option<String>,
    pub(super) hint: Option<String>,
    /// Rows of the provider's.
    pub(super) rows: u64,
    /// Rows that had to be read one by one, on both ends together.
    pub(super) rows_read: u64,
    pub(super) changed: u64,
    pub(super) missing: u64,
    pub(super) extra: u64,
    pub(super) unsettled: u64,
    /// Only when that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) repair: Option<Mended>,
    pub(super) ranges: Vec<Range>,
    pub(super) differences: Vec<Row>,
    /// The list of differences, or that of ranges, has not all of them.
    pub(super) truncated: bool,
    pub(super) columns_left_out: Vec<LeftOut>,
    #[serde(skip)]
    parts: Vec<Part>,
}

/// A range of keys with differing rows.
#[derive(Debug, Serialize)]
pub(super) struct Range {
    /// Null: from the first row.
    above: Option<Vec<String>>,
    /// Null: to the last row.
    upto: Option<Vec<String>>,
    rows: u64,
}

/// A differing row.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    row: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    copies: Option<u64>,
    columns: Vec<String>,
}

/// A column that is not compared.
#[derive(Debug, Serialize)]
pub(super) struct LeftOut {
    column: String,
    reason: &'static str,
}

/// The whole comparison.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) equal: bool,
    pub(super) queue: String,
    pub(super) consumer: String,
    pub(super) seconds: f64,
    #[serde(skip)]
    pub(super) applied: bool,
    pub(super) tables: Vec<TableReport>,
}

impl TableReport {
    pub(super) fn new(table: String, subscriber_table: String) -> Self {
        Self {
            table,
            subscriber_table,
            result: Outcome::Equal,
            error: None,
            hint: None,
            rows: 0,
            rows_read: 0,
            changed: 0,
            missing: 0,
            extra: 0,
            unsettled: 0,
            repair: None,
            ranges: Vec::new(),
            differences: Vec::new(),
            truncated: false,
            columns_left_out: Vec::new(),
            parts: Vec::new(),
        }
    }

    pub(super) fn leave_out(&mut self, shape: &Shape) {
        self.columns_left_out = shape
            .left_out
            .iter()
            .map(|(column, reason)| LeftOut {
                column: column.clone(),
                reason,
            })
            .collect();
    }

    pub(super) fn failed(&mut self, error: &crate::error::Error) {
        self.error = Some(error.to_string());
        self.hint = error.get_hint().map(str::to_owned);
    }

    /// Counts a difference, and keeps it if there is room for it.
    pub(super) fn add(&mut self, shape: &Shape, difference: Difference, most: usize) {
        match difference.kind {
            Kind::Changed => self.changed += 1,
            Kind::Missing => self.missing += difference.copies,
            Kind::Extra => self.extra += difference.copies,
        }
        if let Part::Range(above, upto) = &difference.part
            && !shape.key.is_empty()
        {
            if let Some(at) = self.parts.iter().position(|part| *part == difference.part) {
                self.ranges[at].rows += 1;
            } else if self.parts.len() < most {
                self.ranges.push(Range {
                    above: above.clone(),
                    upto: upto.clone(),
                    rows: 1,
                });
                self.parts.push(difference.part.clone());
            } else {
                self.truncated = true;
            }
        }
        if self.differences.len() >= most {
            self.truncated = true;
            return;
        }
        let keyless = shape.key.is_empty();
        let pairs = shape
            .key
            .iter()
            .cloned()
            .zip(difference.identity.into_iter().map(Value::String));
        self.differences.push(Row {
            kind: difference.kind,
            key: (!keyless).then(|| pairs.collect()),
            row: difference.shown,
            copies: keyless.then_some(difference.copies),
            columns: difference.columns,
        });
    }

    pub(super) fn conclude(&mut self, applied: bool) {
        self.result = if self.error.is_some() {
            Outcome::Failed
        } else if applied {
            match self.changed + self.missing + self.extra {
                _ if self.unsettled > 0 => Outcome::Unsettled,
                0 => Outcome::Equal,
                _ => Outcome::Repaired,
            }
        } else if self.changed + self.missing + self.extra > 0 {
            Outcome::Different
        } else if self.unsettled > 0 {
            Outcome::Unsettled
        } else {
            Outcome::Equal
        };
    }
}

/// For a person. (Writing into a String cannot fail, so the outcome of each `write!` is dropped.)
pub(super) fn text(report: &Report) -> String {
    let mut out = String::new();
    for table in &report.tables {
        one(&mut out, table, report.applied);
    }
    let count = |outcome| report.tables.iter().filter(|table| table.result == outcome).count();
    let _ = writeln!(
        out,
        "{} tables: {} equal, {} {}, {} unsettled, {} failed",
        report.tables.len(),
        count(Outcome::Equal),
        count(Outcome::Different) + count(Outcome::Repaired),
        if report.applied { "repaired" } else { "different" },
        count(Outcome::Unsettled),
        count(Outcome::Failed)
    );
    out
}

fn one(out: &mut String, table: &TableReport, applied: bool) {
    let _ = write!(out, "{}", table.table);
    if table.subscriber_table != table.table {
        let _ = write!(out, " into {}", table.subscriber_table);
    }
    let rows = table.rows;
    let _ = match table.result {
        Outcome::Equal => writeln!(out, ": equal, {rows} rows"),
        Outcome::Different => writeln!(
            out,
            ": DIFFERENT, {rows} rows: {} changed, {} missing on the subscriber, {} extra there",
            table.changed, table.missing, table.extra
        ),
        Outcome::Repaired => writeln!(out, ": repaired, {rows} rows"),
        Outcome::Unsettled => writeln!(out, ": UNSETTLED, {rows} rows"),
        Outcome::Failed => writeln!(
            out,
            ": FAILED: {}",
            table.error.as_deref().unwrap_or("for an unknown reason")
        ),
    };
    if let Some(Mended {
        inserted,
        updated,
        deleted,
    }) = &table.repair
    {
        let _ = if applied {
            writeln!(out, "    {inserted} inserted, {updated} updated, {deleted} deleted")
        } else {
            writeln!(
                out,
                "    {inserted} to insert, {updated} to update, {deleted} to delete"
            )
        };
    }
    if let Some(hint) = &table.hint {
        let _ = writeln!(out, "    HINT: {hint}");
    }
    if !table.columns_left_out.is_empty() {
        let columns: Vec<String> = table
            .columns_left_out
            .iter()
            .map(|left_out| format!("{} ({})", left_out.column, left_out.reason))
            .collect();
        let _ = writeln!(out, "    not compared: {}", columns.join(", "));
    }
    for range in &table.ranges {
        let limit = |values: &Option<Vec<String>>| values.as_ref().map(|values| values.join(", "));
        let rows = if range.rows == 1 { "row" } else { "rows" };
        let _ = match (limit(&range.above), limit(&range.upto)) {
            (None, None) => Ok(()),
            (Some(above), None) => writeln!(out, "    range above ({above}): {} {rows}", range.rows),
            (None, Some(upto)) => writeln!(out, "    range up to ({upto}): {} {rows}", range.rows),
            (Some(above), Some(upto)) => {
                writeln!(out, "    range above ({above}) up to ({upto}): {} {rows}", range.rows)
            }
        };
    }
    for row in &table.differences {
        let kind = match row.kind {
            Kind::Changed => "changed",
            Kind::Missing => "missing",
            Kind::Extra => "extra",
        };
        let _ = write!(out, "    {kind}");
        for (name, value) in row.key.iter().flatten() {
            let _ = write!(out, " {name}={}", value.as_str().unwrap_or(""));
        }
        if let Some(text) = &row.row {
            let _ = write!(out, " {text}");
        }
        if let Some(copies) = row.copies.filter(|copies| *copies > 1) {
            let _ = write!(out, " ({copies} times)");
        }
        if !row.columns.is_empty() {
            let _ = write!(out, ": {}", row.columns.join(", "));
        }
        out.push('\n');
    }
    if table.truncated {
        out.push_str("    ... (--rows N shows more of them)\n");
    }
    if table.unsettled > 0 {
        let _ = writeln!(
            out,
            "    {} rows could not be compared: their events were on the way at every look",
            table.unsettled
        );
    }
}
