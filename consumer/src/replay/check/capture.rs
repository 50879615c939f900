//! Whether the triggers and settings of the provider let every change into the queue, once, and in a form that replay reads.
//!
//! Preflight knows which kinds of change of a table are captured, and how; replay makes what is missing. Found here is what it
//! would not mend: its trigger disabled, or its name taken; changes that come twice; triggers that fire BEFORE (rule R5 of
//! docs/rules.md), or write another format; and writers whose changes fire no trigger.

use std::collections::HashMap;

use tokio_postgres::{Client, Row};

use super::super::findings::{Findings, Kind, Remedy};
use super::super::position::Who;
use super::super::survey::Survey;
use super::super::table::{Table, quoted};
use super::super::triggers::{self, ROW, TRUNCATE};
use crate::connect::End;
use crate::error::{Doing, Result};

const OF_ROWS: i32 = 1;
const BEFORE: i32 = 2;
const INSTEAD: i32 = 64;

pub(super) struct Trigger {
    name: String,
    /// `tgenabled`.
    enabled: String,
    /// `tgtype`.
    bits: i32,
    /// Has a condition, or a list of columns.
    partial: bool,
    function: String,
    pub(super) of_queue: bool,
    /// After the queue's name.
    pub(super) arguments: Vec<String>,
}

impl Trigger {
    fn new(row: &Row) -> Self {
        let arguments: &[u8] = row.get("arguments");
        Self {
            name: row.get("name"),
            enabled: row.get("enabled"),
            bits: row.get("type"),
            partial: row.get::<_, bool>("conditional") || row.get("of_columns"),
            function: row.get("function"),
            of_queue: row.get("of_queue"),
            arguments: arguments
                .split(|&byte| byte == 0)
                .skip(1)
                .filter(|argument| !argument.is_empty())
                .map(|argument| String::from_utf8_lossy(argument).into_owned())
                .collect(),
        }
    }

    /// The kinds of change that it puts into the queue.
    fn captures(&self) -> i32 {
        self.bits & if self.bits & OF_ROWS != 0 { ROW } else { TRUNCATE }
    }

    fn fires(&self) -> bool {
        matches!(self.enabled.as_str(), "O" | "A")
    }

    /// What replay counts as capture: see sql/triggers.sql.
    fn counts(&self) -> bool {
        self.fires()
            && !self.partial
            && self.bits & (BEFORE | INSTEAD) == 0
            && self.of_queue
            && self.function == "pgq.logutriga"
    }
}

/// Looks at the triggers of every table, and returns them.
pub(super) async fn triggers(
    provider: &Client,
    who: &Who,
    survey: &Survey,
    findings: &mut Findings,
) -> Result<HashMap<u32, Vec<Trigger>>> {
    let oids: Vec<u32> = survey.at_provider.values().map(|table| table.oid).collect();
    let rows = provider
        .query(include_str!("triggers.sql"), &[&oids, &who.queue])
        .await
        .doing(|| "read the triggers of the tables on the provider".to_owned())?;
    let mut by_table: HashMap<u32, Vec<Trigger>> = HashMap::new();
    for row in &rows {
        by_table.entry(row.get("table")).or_default().push(Trigger::new(row));
    }
    let own = ["", "_update", "_truncate"].map(|suffix| triggers::name(who, suffix));
    for table in survey.tables(End::Provider) {
        if let Some(triggers) = by_table.get(&table.oid) {
            of_table(table, triggers, &own, &who.queue, findings);
        }
    }
    Ok(by_table)
}

fn of_table(table: &Table, triggers: &[Trigger], own: &[String], queue: &str, findings: &mut Findings) {
    let name = &table.name;
    let complete = triggers
        .iter()
        .filter(|trigger| trigger.counts())
        .fold(0, |bits, trigger| bits | trigger.captures())
        == ROW | TRUNCATE;
    // Replay's own first, so that of two it is the other one that is too many.
    let mut ordered: Vec<&Trigger> = triggers.iter().collect();
    ordered.sort_by_key(|trigger| !own.contains(&trigger.name));
    let mut seen = 0;
    for trigger in ordered {
        let mut add = |kind: Kind, what: String, remedy: Remedy| {
            findings.add(
                kind,
                (End::Provider, name),
                format!(
                    "trigger {} of table {name} of the provider {what}",
                    quoted(&trigger.name)
                ),
                remedy,
            );
        };
        let drop = || {
            Remedy::run(
                End::Provider,
                format!("drop trigger {} on {}", quoted(&trigger.name), name.quoted()),
            )
        };
        let is_own = own.contains(&trigger.name);
        let format = matches!(trigger.function.as_str(), "pgq.sqltriga" | "pgq.jsontriga");
        if !trigger.of_queue || !format && trigger.function != "pgq.logutriga" {
            if is_own {
                let what = format!(
                    "has the name of the trigger that captures into queue \"{queue}\", and does something else"
                );
                add(
                    Kind::TriggerForeign,
                    what,
                    drop().words("drop it, and replay makes its own"),
                );
            }
            continue;
        }
        if !trigger.fires() {
            if is_own || !complete {
                let what = if trigger.enabled == "D" {
                    "is disabled"
                } else {
                    "fires in replica mode only"
                };
                let enable = format!("alter table {} enable trigger {}", name.quoted(), quoted(&trigger.name));
                add(
                    Kind::TriggerDisabled,
                    format!("{what}, so that changes are not captured"),
                    Remedy::run(End::Provider, enable),
                );
            }
            continue;
        }
        if format {
            let what = format!("writes the format of {}, which replay does not read", trigger.function);
            add(Kind::TriggerFormat, what, drop());
        } else if trigger.bits & (BEFORE | INSTEAD) != 0 {
            add(
                Kind::TriggerBefore,
                "fires BEFORE: its events can come in an order that did not happen, and beside replay's trigger they come twice"
                    .to_owned(),
                drop(),
            );
        } else if trigger.partial || trigger.captures() & seen != 0 {
            add(
                Kind::TriggerTwice,
                "captures changes that another trigger puts into the same queue, too, so that they come twice"
                    .to_owned(),
                drop(),
            );
        } else {
            seen |= trigger.captures();
            key(table, trigger, &mut add, drop);
        }
    }
}

/// Whether the trigger finds rows by the key that replay does. What other arguments do is preflight's.
fn key(table: &Table, trigger: &Trigger, add: &mut impl FnMut(Kind, String, Remedy), drop: impl Fn() -> Remedy) {
    for argument in &trigger.arguments {
        if let Some(value) = argument.strip_prefix("pkey=")
            && !table.primary_key().is_empty()
            && value.split(',').ne(table.primary_key())
        {
            let what = format!("names another key ({argument}) than the primary key, by which replay finds rows");
            add(Kind::TriggerFormat, what, drop());
        }
    }
}

/// Looks at the settings of roles and of the database.
pub(super) async fn settings(provider: &Client, findings: &mut Findings) -> Result<()> {
    let rows = provider
        .query(include_str!("role_settings.sql"), &[])
        .await
        .doing(|| "read the settings of roles on the provider".to_owned())?;
    for row in rows {
        let (role, database): (Option<&str>, Option<&str>) = (row.get("role"), row.get("database"));
        let (name, value): (&str, &str) = (row.get("name"), row.get("value"));
        let object = match (role, database) {
            (Some(role), _) => format!("role {}", quoted(role)),
            (None, Some(database)) => format!("database {}", quoted(database)),
            (None, None) => "role all".to_owned(),
        };
        let place = match (role, database) {
            (Some(_), Some(database)) => format!("{object} in database {}", quoted(database)),
            _ => object.clone(),
        };
        let (kind, effect) = if name == "session_replication_role" {
            (Kind::WritersUncaptured, "nothing that it writes is captured")
        } else {
            (
                Kind::OutputNotFixed,
                "its changes are captured in the formats of its session",
            )
        };
        findings.add(
            kind,
            (End::Provider, &object),
            format!("{place} of the provider has {name} = {value}: {effect}"),
            Remedy::run(End::Provider, format!("alter {place} reset {name}")),
        );
    }
    Ok(())
}
