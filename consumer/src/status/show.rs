//! The state as text for a person: one line per end, one block per consumer, one line per table.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Write as _};

use super::{Consumer, Reached, Status, Table};
use crate::error::{Error, Result};

/// Prints to stdout; nobody reading it is no error.
pub(crate) fn print(text: &str) -> Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::failure(format!("could not write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// The whole state. (Writing into a String cannot fail, so the outcome of each `write!` is dropped.)
pub(super) fn text(status: &Status) -> String {
    let mut out = String::new();
    end(&mut out, "provider", &status.provider);
    end(&mut out, "subscriber", &status.subscriber);
    for consumer in &status.consumers {
        out.push('\n');
        block(&mut out, consumer);
    }
    if status.consumers.is_empty() && status.subscriber.error.is_none() {
        out.push_str("\nNothing is replayed into this subscriber (or nothing that was asked for).\n");
    }
    out
}

fn end(out: &mut String, name: &str, reached: &Reached) {
    let _ = writeln!(
        out,
        "{name:<11} {}: {}",
        reached.address,
        if reached.error.is_none() { "reached" } else { "FAILED" }
    );
    if let Some(error) = &reached.error {
        let _ = writeln!(out, "            {error}");
    }
    if let Some(hint) = &reached.hint {
        let _ = writeln!(out, "            HINT: {hint}");
    }
}

fn block(out: &mut String, consumer: &Consumer) {
    let _ = writeln!(out, "consumer {} of queue {}", consumer.consumer, consumer.queue);
    match &consumer.position {
        Some(position) => {
            let tick = position
                .tick
                .map_or_else(|| "none yet".to_owned(), |tick| format!("tick {tick}"));
            let since = position.updated.as_deref().unwrap_or("an unknown time");
            let _ = writeln!(out, "  position  {tick}, since {since}");
        }
        None => out.push_str("  position  unknown\n"),
    }
    match &consumer.registration {
        Some(registration) => {
            let tick = |tick: Option<i64>| tick.map_or_else(|| "-".to_owned(), |tick| tick.to_string());
            let _ = write!(
                out,
                "  provider  at tick {} of {}",
                tick(registration.last_tick),
                tick(registration.newest_tick)
            );
            if let Some(open) = registration.open_batch {
                let _ = write!(out, ", a batch up to tick {open} is open");
            }
            out.push('\n');
        }
        None => out.push_str("  provider  not registered, or not known\n"),
    }
    match &consumer.lag {
        Some(lag) => {
            let _ = writeln!(
                out,
                "  lag       {} ticks, {} events, {} s",
                lag.ticks, lag.events, lag.seconds
            );
        }
        None => out.push_str("  lag       unknown\n"),
    }
    if let Some(error) = &consumer.error {
        let _ = writeln!(out, "  ERROR     {error}");
    }
    if let Some(failure) = &consumer.failure {
        let since = failure.since.as_deref().unwrap_or("an unknown time");
        let what = match &failure.next_attempt {
            Some(next) => {
                let attempts = failure.attempts.unwrap_or(0);
                format!("RETRYING  since {since}, {attempts} failed so far, next at {next}")
            }
            None => format!("STOPPED   since {since}"),
        };
        let _ = writeln!(out, "  {what}: {}", failure.error);
    }
    tables(out, &consumer.tables);
}

/// What a copy waits for, at the end of its table's line.
pub(crate) fn waiting(out: &mut String, reason: Option<&str>, since: Option<&str>) {
    if let Some(reason) = reason {
        let since = since.unwrap_or("an unknown time");
        let _ = write!(out, "  WAITING since {since}: {reason}");
    }
}

fn tables(out: &mut String, tables: &[Table]) {
    let width = tables
        .iter()
        .map(|table| table.table.chars().count())
        .max()
        .unwrap_or(0);
    for table in tables {
        let name = &table.table;
        let _ = write!(out, "  table     {name:<width$}  {:<11}", table.state);
        if let Some(rows) = table.copied_rows {
            let _ = write!(out, "  {rows} rows copied");
        }
        if table.conflicts > 0 {
            let _ = write!(out, "  {} conflicts", table.conflicts);
        }
        if table.subscriber_table != table.table {
            let _ = write!(out, "  into {}", table.subscriber_table);
        }
        if let Some(error) = &table.error {
            let _ = write!(out, "  ERROR: {error}");
        }
        waiting(out, table.waits_for.as_deref(), table.waits_since.as_deref());
        out.push('\n');
    }
}
