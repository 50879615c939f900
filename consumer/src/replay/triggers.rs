//! The capture triggers: which there are, which a table needs, and making and dropping them. They are on the provider's tables;
//! a branch of a cascade has them, too, for the day on which it is the root.
//!
//! They belong to the queue: its consumers share them. One that captures at least the columns that this consumer wants serves
//! it, as the decoder leaves out the others; one that captures fewer, or other rows, is neither used nor replaced, but reported.

use std::collections::HashMap;
use std::fmt;

use tokio_postgres::{Client, Row};

use super::places;
use super::position::Who;
use super::table::{Name, Table, literal, quoted};
use crate::connect::End;
use crate::error::{Doing, Result};

/// Bits of `pg_trigger.tgtype`.
pub(super) const INSERT: i32 = 4;
pub(super) const DELETE: i32 = 8;
pub(super) const UPDATE: i32 = 16;
pub(super) const TRUNCATE: i32 = 32;

/// Of a row, and all of it.
pub(super) const ROW: i32 = INSERT | DELETE | UPDATE;

const EVENTS: [(i32, &str); 4] = [
    (INSERT, "insert"),
    (UPDATE, "update"),
    (DELETE, "delete"),
    (TRUNCATE, "truncate"),
];

/// A trigger of `pgq.logutriga`, wanted or found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Capture {
    /// Which changes.
    pub(super) events: i32,
    /// Columns of the table that are left out.
    pub(super) ignored: Vec<String>,
    /// What else comes after the queue.
    pub(super) arguments: Vec<String>,
}

/// What the argument begins with that leaves columns out.
const IGNORE: &str = "ignore=";

/// The argument that has an insert's event say where the row is, see places.rs.
const PLACE: &str = "place";

/// One that is there.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) name: String,
    /// Whether it fires for writers.
    enabled: bool,
    pub(super) capture: Capture,
}

/// What each table has, by oid.
pub(super) async fn found(
    client: &Client,
    end: End,
    who: &Who,
    tables: impl Iterator<Item = &Table>,
) -> Result<HashMap<u32, Vec<Found>>> {
    let tables: HashMap<u32, &Table> = tables.map(|table| (table.oid, table)).collect();
    let oids: Vec<u32> = tables.keys().copied().collect();
    let rows = client
        .query(include_str!("sql/triggers.sql"), &[&oids, &who.queue])
        .await
        .doing(|| format!("look for capture triggers on the {end}"))?;
    let mut found: HashMap<u32, Vec<Found>> = HashMap::new();
    for row in rows {
        let oid: u32 = row.get("table");
        let given: Option<Vec<String>> = row.get("arguments");
        let (ignore, arguments): (Vec<_>, Vec<_>) = given
            .unwrap_or_default()
            .into_iter()
            .partition(|argument| argument.starts_with(IGNORE));
        let list = ignore.last().and_then(|argument| argument.strip_prefix(IGNORE));
        let names = list.map(|list| wire::name::split(list.as_bytes(), b','));
        let ignored = names
            .and_then(Result::ok)
            .unwrap_or_default()
            .into_iter()
            .map(|name| String::from_utf8_lossy(&name).into_owned())
            // One that was dropped since is no loss.
            .filter(|name| tables.get(&oid).is_some_and(|table| table.column(name).is_some()))
            .collect();
        found.entry(oid).or_default().push(Found {
            name: row.get("name"),
            enabled: row.get("enabled"),
            capture: Capture {
                events: row.get("events"),
                ignored,
                arguments,
            },
        });
    }
    Ok(found)
}

/// The tables that have triggers of their own which capture rows into a queue, by oid.
pub(super) async fn captured(provider: &Client, queue: &str) -> Result<Vec<(u32, Name)>> {
    let rows = provider
        .query(include_str!("sql/captured.sql"), &[&queue])
        .await
        .doing(|| format!("look for the tables that are captured into queue \"{queue}\""))?;
    let read = |row: &Row| (row.get(0), Name::new(row.get::<_, &str>(1), row.get::<_, &str>(2)));
    Ok(rows.iter().map(read).collect())
}

impl Capture {
    /// Whether this trigger writes the events that the wanted one would, or events with more in them: more columns, fields
    /// that nobody here reads. It may also name the key.
    fn serves(&self, wanted: &Self) -> bool {
        let of_rows = |argument: &String| argument.starts_with("when=") || argument.starts_with("ev_extra2=");
        let by_rows = wanted.arguments.iter().any(of_rows);
        let more = |argument: &&String| {
            ["pkey=", "ev_extra3=", "ev_extra4="]
                .iter()
                .any(|start| argument.starts_with(start))
                || ["backup", PLACE].contains(&argument.as_str())
                || !by_rows && argument.starts_with("ev_extra2=")
        };
        let mine: Vec<&String> = self.arguments.iter().filter(|argument| !more(argument)).collect();
        mine.len() == wanted.arguments.len()
            && wanted.arguments.iter().all(|argument| mine.contains(&argument))
            && self.ignored.iter().all(|column| wanted.ignored.contains(column))
    }

    /// The arguments after the queue.
    fn all_arguments(&self) -> Vec<String> {
        let mut columns = Vec::new();
        for (i, column) in self.ignored.iter().enumerate() {
            if i > 0 {
                columns.push(b',');
            }
            wire::name::push(&mut columns, column.as_bytes());
        }
        let ignore = (!columns.is_empty()).then(|| format!("{IGNORE}{}", String::from_utf8_lossy(&columns)));
        ignore.into_iter().chain(self.arguments.iter().cloned()).collect()
    }
}

/// For messages.
impl fmt::Display for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arguments = self.all_arguments();
        f.write_str(if arguments.is_empty() { "none" } else { "" })?;
        f.write_str(&arguments.join(", "))
    }
}

/// What of the wanted nothing found serves for. No more than that: what two triggers capture would come twice.
pub(super) fn lacking(wanted: &[Capture], found: &[Found]) -> Vec<Capture> {
    let mut lacking = wanted.to_vec();
    for wanted in &mut lacking {
        for found in found.iter().filter(|found| found.enabled) {
            if found.capture.serves(wanted) {
                wanted.events &= !found.capture.events;
            }
        }
    }
    lacking.retain(|wanted| wanted.events != 0);
    lacking
}

/// The triggers that capture wanted changes, and otherwise than wanted.
pub(super) fn foreign<'a>(wanted: &[Capture], found: &'a [Found]) -> Vec<&'a Found> {
    let is_foreign = |found: &&Found| {
        found.enabled
            && wanted
                .iter()
                .any(|wanted| wanted.events & found.capture.events != 0 && !found.capture.serves(wanted))
    };
    found.iter().filter(is_foreign).collect()
}

/// Makes what a table lacks, in one transaction: CREATE TRIGGER keeps writers of the table out.
///
/// One of its name that is [`found`] and that somebody disabled is replaced; what else has the name is an error.
pub(super) async fn make(
    client: &Client,
    end: End,
    who: &Who,
    (table, has_key): (&Name, bool),
    lacking: &[Capture],
    found: &[Found],
) -> Result<()> {
    if lacking.is_empty() {
        return Ok(());
    }
    let mut sql = String::new();
    let with_places = !has_key && places::are_told(client, end).await?;
    for capture in lacking {
        let events: Vec<&str> = EVENTS
            .iter()
            .filter(|(bit, _)| capture.events & bit != 0)
            .map(|(_, name)| *name)
            .collect();
        let (level, suffix) = match capture.events {
            TRUNCATE => ("statement", "_truncate"),
            UPDATE => ("row", "_update"),
            _ => ("row", ""),
        };
        let arguments: Vec<String> = [who.queue.clone()]
            .into_iter()
            .chain(capture.all_arguments())
            .chain((with_places && capture.events & INSERT != 0).then(|| PLACE.to_owned()))
            .map(|argument| literal(&argument))
            .collect();
        let name = name(who, suffix);
        let or_replace = if found.iter().any(|found| !found.enabled && found.name == name) {
            "or replace "
        } else {
            ""
        };
        sql.push_str(&format!(
            "create {or_replace}trigger {} after {} on {} for each {level} execute function pgq.logutriga({});",
            quoted(&name),
            events.join(" or "),
            table.quoted(),
            arguments.join(", ")
        ));
    }
    // Writers queue up behind a CREATE TRIGGER that waits for a long transaction: better to give up and try again.
    client
        .batch_execute(&format!("begin; set local lock_timeout = '5s'; {sql} commit"))
        .await
        .doing(|| format!("make the capture triggers on table {table} of the {end}"))?;
    tracing::info!(%table, "capture triggers made on the {end}");
    Ok(())
}

/// Makes what a partition lacks: its row triggers come from the table above, the one for TRUNCATE does not.
pub(super) async fn make_of_partition(client: &Client, end: End, who: &Who, partition: &Name) -> Result<()> {
    let truncate = Capture {
        events: TRUNCATE,
        ignored: Vec::new(),
        arguments: Vec::new(),
    };
    // One that somebody disabled has the name.
    let disabled = Found {
        name: name(who, "_truncate"),
        enabled: false,
        capture: truncate.clone(),
    };
    make(client, end, who, (partition, true), &[truncate], &[disabled]).await
}

/// Drops what [`make`] makes, on partitions, too. Triggers of other names are somebody else's, and what came from a table
/// above is that one's.
pub(super) async fn drop(provider: &Client, who: &Who, table: &Table) -> Result<()> {
    let what = || format!("drop the capture triggers on table {} of the provider", table.name);
    let [row, update, truncate] = ["", "_update", "_truncate"].map(|suffix| name(who, suffix));
    let rows = provider
        .query(
            "select n.nspname::text, c.relname::text, t.tgname::text
               from pg_catalog.pg_trigger t
               join pg_catalog.pg_class c on c.oid = t.tgrelid
               join pg_catalog.pg_namespace n on n.oid = c.relnamespace
              where t.tgparentid = 0
                and (t.tgrelid = $1 and t.tgname in ($2, $3, $4)
                     or t.tgrelid in (select p.relid from pg_catalog.pg_partition_tree($1) p) and t.tgname = $4)
              order by c.oid = $1 desc, 1, 2, 3",
            &[&table.oid, &row, &update, &truncate],
        )
        .await
        .doing(what)?;
    let drop = |row: &Row| {
        let on = Name::new(row.get::<_, &str>(0), row.get::<_, &str>(1));
        format!("drop trigger if exists {} on {};", quoted(row.get(2)), on.quoted())
    };
    let sql: String = rows.iter().map(drop).collect();
    provider
        .batch_execute(&format!("begin; set local lock_timeout = '5s'; {sql} commit"))
        .await
        .doing(what)?;
    tracing::info!(table = %table.name, "capture triggers dropped on the provider");
    Ok(())
}

/// One set per queue and table. A name is at most 63 bytes.
pub(super) fn name(who: &Who, suffix: &str) -> String {
    let name = format!("pgcascade_capture_{}{suffix}", who.queue);
    if name.len() <= 63 {
        name
    } else {
        format!(
            "pgcascade_capture_{:016x}{suffix}",
            Who {
                consumer: String::new(),
                ..who.clone()
            }
            .lock_key()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture(events: i32, ignored: &[&str], arguments: &[&str]) -> Capture {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        Capture {
            events,
            ignored: owned(ignored),
            arguments: owned(arguments),
        }
    }

    fn found(events: i32, ignored: &[&str], arguments: &[&str]) -> Found {
        Found {
            enabled: true,
            name: "f".to_owned(),
            capture: capture(events, ignored, arguments),
        }
    }

    #[test]
    fn trigger_names_fit() {
        let who = |queue: &str| Who {
            consumer: "c".to_owned(),
            queue: queue.to_owned(),
        };
        assert_eq!(name(&who("q"), "_truncate"), "pgcascade_capture_q_truncate");
        let long = name(&who(&"x".repeat(60)), "_truncate");
        assert!(long.len() <= 63 && long.ends_with("_truncate"), "{long}");
        assert_ne!(long, name(&who(&"x".repeat(61)), "_truncate"));
    }

    #[test]
    fn several_triggers_may_serve_together() {
        let wanted = [capture(INSERT | DELETE | UPDATE, &[], &[]), capture(TRUNCATE, &[], &[])];
        let some = [
            found(INSERT, &[], &["backup"]),
            found(UPDATE | DELETE, &[], &["pkey=id"]),
        ];
        assert_eq!(lacking(&wanted, &some), [capture(TRUNCATE, &[], &[])]);
        assert_eq!(lacking(&wanted, &some[..1])[0].events, DELETE | UPDATE);
        assert!(foreign(&wanted, &some).is_empty());
        assert_eq!(lacking(&wanted, &[]).len(), 2);
    }

    #[test]
    fn more_columns_serve_and_fewer_do_not() {
        let wanted = [capture(INSERT, &["v", "w"], &[])];
        for (ignored, serves) in [
            (&[][..], true),
            (&["v"], true),
            (&["w", "v"], true),
            (&["v", "x"], false),
        ] {
            let there = [found(INSERT, ignored, &[])];
            assert_eq!(lacking(&wanted, &there).is_empty(), serves, "{ignored:?}");
            assert_eq!(foreign(&wanted, &there).is_empty(), serves, "{ignored:?}");
        }
    }

    #[test]
    fn other_rows_do_not_serve() {
        let wanted = [
            capture(INSERT, &[], &["when=a"]),
            capture(UPDATE, &[], &["ev_extra2=a"]),
        ];
        for arguments in [&[][..], &["when=b"], &["when=a", "ev_type=b"], &["when=a", "deny"]] {
            let there = [found(INSERT, &[], arguments)];
            assert_eq!(lacking(&wanted, &there).len(), 2, "{arguments:?}");
            assert_eq!(foreign(&wanted, &there).len(), 1, "{arguments:?}");
        }
        assert_eq!(foreign(&wanted, &[found(UPDATE, &[], &["ev_extra2=b"])]).len(), 1);
        assert!(foreign(&[capture(UPDATE, &[], &[])], &[found(INSERT, &[], &["when=a"])]).is_empty());
        assert!(foreign(&[capture(UPDATE, &[], &[])], &[found(UPDATE, &[], &["ev_extra2=b"])]).is_empty());
    }
}
