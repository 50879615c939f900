//! `consumer table list` and `consumer table missing`.

use std::fmt::Write as _;

use serde::Serialize;

use super::super::filter::Columns;
use super::super::pattern::{self, Relation};
use super::super::table::Name;
use super::super::table_state::Entry;
use super::{completed, open};
use crate::cli::table::{ListArgs, MissingArgs};
use crate::config::conninfo;
use crate::connect::{End, connect};
use crate::error::{Error, Result};
use crate::status::{print, waiting};

/// A table of the set; a line of `list --json`.
#[derive(Serialize)]
struct Listed<'a> {
    table: String,
    subscriber_table: String,
    state: &'a str,
    /// The only columns that are replayed; null: all of them, but for `except`.
    only: Option<&'a [String]>,
    except: Option<&'a [String]>,
    r#where: Option<&'a str>,
    error: Option<&'a str>,
    /// Why its copy could not go on when it was tried last; null: nothing keeps it waiting.
    waits_for: Option<&'a str>,
    waits_since: Option<&'a str>,
}

/// A table that is not replayed, or not complete; a line of `missing --json`.
#[derive(Serialize)]
struct Missing<'a> {
    table: String,
    /// Null: not in the set.
    state: Option<&'a str>,
    error: Option<&'a str>,
    waits_for: Option<&'a str>,
    waits_since: Option<&'a str>,
}

/// Shows the set.
pub(super) async fn list(args: ListArgs) -> Result<()> {
    let (settings, _) = completed(args.whose.settings()?).await?;
    let set = open(&settings, false).await?;
    let tables: Vec<Listed<'_>> = set
        .entries
        .iter()
        .map(|entry| Listed {
            table: entry.provider.to_string(),
            subscriber_table: entry.subscriber.to_string(),
            state: &entry.state_name,
            only: match &entry.filter.columns {
                Columns::Only(names) => Some(names),
                _ => None,
            },
            except: match &entry.filter.columns {
                Columns::Except(names) => Some(names),
                _ => None,
            },
            r#where: entry.filter.rows.as_deref(),
            error: entry.error.as_deref(),
            waits_for: entry.waits.as_ref().map(|waits| waits.reason.as_str()),
            waits_since: entry.waits.as_ref().map(|waits| waits.since.as_str()),
        })
        .collect();
    if args.json {
        return print(&json(&tables)?);
    }
    let width = width(tables.iter().map(|table| table.table.as_str()));
    let mut out = String::new();
    for table in &tables {
        let _ = write!(out, "{:<width$}  {:<11}", table.table, table.state);
        if table.subscriber_table != table.table {
            let _ = write!(out, "  into {}", table.subscriber_table);
        }
        for (what, columns) in [("only", table.only), ("except", table.except)] {
            if let Some(columns) = columns {
                let _ = write!(out, "  {what} {}", columns.join(", "));
            }
        }
        if let Some(condition) = table.r#where {
            let _ = write!(out, "  where {condition}");
        }
        if let Some(error) = table.error {
            let _ = write!(out, "  ERROR: {error}");
        }
        waiting(&mut out, table.waits_for, table.waits_since);
        line_end(&mut out);
    }
    print(&out)
}

/// Shows what is not replayed, or not yet.
pub(super) async fn missing(args: MissingArgs) -> Result<()> {
    let (settings, _) = completed(args.whose.settings()?).await?;
    let target = conninfo("provider", settings.provider.as_deref())?;
    let set = open(&settings, false).await?;
    let provider = connect(&target, End::Provider, "consumer table").await?;
    let relations = pattern::relations(&provider.client).await?;
    let in_set = |name: &Name| set.entries.iter().any(|entry| entry.provider == *name);
    // Tables of which some partitions are replayed by themselves: the others are missing then, and not the table.
    let in_parts = pattern::above(&relations, in_set);
    let is_missing = |relation: &&Relation| {
        let Relation { name, above, .. } = relation;
        relation.is_table()
            && !in_set(name)
            && !above.iter().any(in_set)
            && !in_parts.contains(name)
            && above.iter().all(|table| in_parts.contains(table))
    };
    let mut tables: Vec<(Name, Option<&Entry>)> = relations
        .iter()
        .filter(is_missing)
        .map(|relation| (relation.name.clone(), None))
        .collect();
    let incomplete = |entry: &&Entry| entry.state_name != "ok" || entry.error.is_some();
    let incomplete = set.entries.iter().filter(incomplete);
    tables.extend(incomplete.map(|entry| (entry.provider.clone(), Some(entry))));
    tables.sort_by(|(a, _), (b, _)| a.cmp(b));
    let tables: Vec<Missing<'_>> = tables
        .iter()
        .map(|(name, entry)| {
            let waits = entry.and_then(|entry| entry.waits.as_ref());
            Missing {
                table: name.to_string(),
                state: entry.map(|entry| entry.state_name.as_str()),
                error: entry.and_then(|entry| entry.error.as_deref()),
                waits_for: waits.map(|waits| waits.reason.as_str()),
                waits_since: waits.map(|waits| waits.since.as_str()),
            }
        })
        .collect();
    if args.json {
        return print(&json(&tables)?);
    }
    let width = width(tables.iter().map(|table| table.table.as_str()));
    let mut out = String::new();
    for table in &tables {
        let _ = write!(
            out,
            "{:<width$}  {}",
            table.table,
            table.state.unwrap_or("not replayed")
        );
        if let Some(error) = table.error {
            let _ = write!(out, "  ERROR: {error}");
        }
        waiting(&mut out, table.waits_for, table.waits_since);
        line_end(&mut out);
    }
    print(&out)
}

fn json(tables: &[impl Serialize]) -> Result<String> {
    let mut out = String::new();
    for table in tables {
        let line =
            serde_json::to_string(table).map_err(|error| Error::failure(format!("could not write JSON: {error}")))?;
        out.push_str(&line);
        out.push('\n');
    }
    Ok(out)
}

fn width<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    names.map(|name| name.chars().count()).max().unwrap_or(0)
}

fn line_end(out: &mut String) {
    out.truncate(out.trim_end_matches(' ').len());
    out.push('\n');
}
