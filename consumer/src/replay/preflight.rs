//! The checks before anything is changed: rights, tables, columns and keys on both ends.
//!
//! Each adds to the findings what would make replay fail later, half way; none of them changes anything. Called by
//! survey.rs for replay's start, also after every lost connection, as much can happen meanwhile, and for `consumer check`,
//! which adds more of its own (check.rs).

pub(super) mod names;
pub(super) mod subscriber;

use std::collections::HashMap;
use std::fmt::Display;

use tokio_postgres::Client;

use super::create::{self, Missing};
use super::filter::Filter;
use super::findings::{Findings, Kind, Remedy};
use super::position::Who;
use super::table::{Name, Table, literal, quoted};
use super::table_state::{Entry, State};
use super::triggers::{self, Capture, Found};
use crate::cascade::{Node, Role};
use crate::connect::End;
use crate::error::{Doing, Result};

/// A table that is at both ends.
pub(super) struct Pair<'a> {
    pub(super) entry: &'a Entry,
    /// The part of the provider's that is replayed.
    pub(super) provider: &'a Table,
    pub(super) subscriber: &'a Table,
}

/// Whether the role can make, read and fill the queue, and read the tables. Returns the queue's id if it exists.
pub(super) async fn provider(
    client: &Client,
    role: &str,
    who: &Who,
    node: Option<&Node>,
    entries: &[Entry],
    tables: &HashMap<Name, Table>,
    findings: &mut Findings,
) -> Result<Option<i32>> {
    let row = client
        .query_one(include_str!("sql/rights.sql"), &[&who.queue])
        .await
        .doing(|| format!("look for queue \"{}\" on the provider", who.queue))?;
    let queue_id: Option<i32> = row.get("queue_id");
    let role_name = quoted(role);
    let role_object = format!("role {role_name}");
    let grant = |what: &str| Remedy::run(End::Provider, format!("grant {what} to {role_name}"));
    if queue_id.is_none() && !row.get::<_, bool>("may_create") {
        findings.add(
            Kind::QueueRight,
            (End::Provider, &role_object),
            format!(
                "queue \"{}\" does not exist on the provider, and role \"{role}\" may not make it",
                who.queue
            ),
            grant("pgq_admin").words(format!(
                "select pgq.create_queue({}) as an administrator, or",
                literal(&who.queue)
            )),
        );
    }
    if !row.get::<_, bool>("may_read") {
        findings.add(
            Kind::ReaderRight,
            (End::Provider, &role_object),
            format!("role \"{role}\" may not read queues on the provider"),
            grant("pgq_reader"),
        );
    }
    // A queue whose ticks come from elsewhere gets its events from there, too, and not from triggers.
    let external: bool = row.get("external");
    let captured = triggers::found(client, End::Provider, who, tables.values()).await?;
    let mut all_captured = true;
    for entry in entries {
        let name = &entry.provider;
        let object: (End, &dyn Display) = (End::Provider, name);
        findings.about(Some(name));
        let Some(table) = tables.get(name) else {
            findings.add(
                Kind::TableMissing,
                object,
                format!("table {name} does not exist on the provider any more"),
                format!("take it out: consumer table remove {}", literal(&name.quoted())),
            );
            continue;
        };
        if !table.schema_usage {
            findings.add(
                Kind::SchemaRight,
                (End::Provider, &format!("schema {}", quoted(&name.schema))),
                format!(
                    "role \"{role}\" may not use schema {} of the provider",
                    quoted(&name.schema)
                ),
                grant(&format!("usage on schema {}", quoted(&name.schema))),
            );
        }
        if table.primary_key().is_empty() {
            findings.add(
                Kind::NoKey,
                object,
                format!(
                    "table {name} of the provider has no primary key: inserts and TRUNCATE are replayed, UPDATE and DELETE fail \
                     there"
                ),
                no_key(table),
            );
        }
        if entry.to_copy() && !table.may("select") {
            findings.add(
                Kind::TableRight,
                object,
                format!("role \"{role}\" may not read table {name} of the provider"),
                grant(&format!("select on {}", name.quoted())),
            );
        }
        if entry.to_copy() && table.row_security {
            findings.add(
                Kind::RowSecurity,
                object,
                format!("row security hides rows of table {name} of the provider from role \"{role}\""),
                bypass(End::Provider, role),
            );
        }
        let found = captured.get(&table.oid).map_or(&[][..], Vec::as_slice);
        all_captured &= external || capture(entry, &entry.captures(table, node), table, found, role, findings);
    }
    findings.about(None);
    if !all_captured && !row.get::<_, bool>("may_capture") {
        findings.add(
            Kind::CaptureRight,
            (End::Provider, &role_object),
            format!("role \"{role}\" may not use the capture function pgq.logutriga() of the provider"),
            grant("pgq_writer"),
        );
    }
    Ok(queue_id)
}

/// Whether the table's triggers are there. If not: whether they may be missing, and can be made.
fn capture(
    entry: &Entry,
    wanted: &[Capture],
    table: &Table,
    found: &[Found],
    role: &str,
    findings: &mut Findings,
) -> bool {
    let name = &table.name;
    let object: (End, &dyn Display) = (End::Provider, name);
    let foreign = triggers::foreign(wanted, found);
    for trigger in &foreign {
        let wanted = wanted
            .iter()
            .find(|wanted| wanted.events & trigger.capture.events != 0)
            .map_or_else(|| "none".to_owned(), ToString::to_string);
        findings.add(
            Kind::TriggerArguments,
            object,
            format!(
                "trigger {} captures table {name} of the provider into the queue with other arguments ({}) than wanted ({wanted})",
                quoted(&trigger.name),
                trigger.capture
            ),
            Remedy::run(
                End::Provider,
                format!("drop trigger {} on {}", quoted(&trigger.name), name.quoted()),
            )
            .words(
                "the consumers of a queue share its triggers: add the table with the same --only, --except and --where, or \
                 replay it through another queue; or, if nobody needs that one",
            ),
        );
    }
    if !foreign.is_empty() || triggers::lacking(wanted, found).is_empty() {
        return true;
    }
    if entry.needs_capture() {
        findings.add(
            Kind::CaptureLost,
            object,
            format!("table {name} of the provider has lost its capture triggers, and changes made since are not in the queue"),
            format!("copy it again: consumer table resync {}", literal(&name.quoted())),
        );
    } else if !table.may("trigger") {
        findings.add(
            Kind::TriggerRight,
            object,
            format!("role \"{role}\" may not make triggers on table {name} of the provider"),
            Remedy::run(
                End::Provider,
                format!("grant trigger on {} to {}", name.quoted(), quoted(role)),
            ),
        );
    }
    false
}

/// The nodes of a cascade share the root's triggers, and a branch's tables may be the root's some day.
pub(super) fn whole(node: &Node, entry: &Entry, findings: &mut Findings) {
    let name = &entry.provider;
    let mut refuse = |what: &str, why: &str| {
        findings.add(
            Kind::Filter,
            (End::Provider, name),
            format!("table {name} cannot be replayed {what} to {}, {why}", node.title()),
            format!(
                "take it out: consumer table remove {}; then add it whole",
                literal(&name.quoted())
            ),
        );
    };
    if node.role == Role::Branch {
        if entry.filter != Filter::default() {
            refuse("in part", "a branch, which has every table whole");
        }
        if entry.provider != entry.subscriber {
            refuse(
                "under another name",
                "a branch, whose events have the names of its tables",
            );
        }
    } else if entry.filter.rows.is_some() {
        refuse(
            "with --where",
            "as all nodes share the root's triggers, which capture every row",
        );
    }
}

/// What a branch needs beside that: its tables are the root's some day, whole and with triggers. `more`: some are to be made.
pub(super) async fn branch(
    client: &Client,
    role: &str,
    who: &Who,
    node: &Node,
    pairs: &[Pair<'_>],
    more: bool,
    findings: &mut Findings,
) -> Result<()> {
    let row = client
        .query_one(include_str!("sql/rights.sql"), &[&who.queue])
        .await
        .doing(|| format!("look for queue \"{}\" on the subscriber", who.queue))?;
    let grant = |what: &str| Remedy::run(End::Subscriber, format!("grant {what} to {}", quoted(role)));
    let captured = triggers::found(client, End::Subscriber, who, pairs.iter().map(|pair| pair.subscriber)).await?;
    let mut may_capture = !more || row.get("may_capture");
    for Pair { entry, subscriber, .. } in pairs {
        let found = captured.get(&subscriber.oid).map_or(&[][..], Vec::as_slice);
        if triggers::lacking(&entry.captures(subscriber, Some(node)), found).is_empty() {
            continue;
        }
        may_capture &= row.get::<_, bool>("may_capture");
        findings.about(Some(&entry.provider));
        if !subscriber.may("trigger") {
            let name = &subscriber.name;
            findings.add(
                Kind::TriggerRight,
                (End::Subscriber, name),
                format!("role \"{role}\" may not make triggers on table {name} of the subscriber, which is a branch"),
                grant(&format!("trigger on {}", name.quoted())),
            );
        }
    }
    findings.about(None);
    if !may_capture {
        findings.add(
            Kind::CaptureRight,
            (End::Subscriber, &format!("role {}", quoted(role))),
            format!(
                "role \"{role}\" may not use the capture function pgq.logutriga() of the subscriber, which is a branch"
            ),
            grant("pgq_writer"),
        );
    }
    Ok(())
}

/// The unique key that could be the primary one, if there is one.
fn no_key(table: &Table) -> Remedy {
    let not_null = |name: &String| table.column(name).is_some_and(|column| column.not_null);
    match table
        .indexes
        .iter()
        .find(|index| index.is_key && index.columns.iter().all(not_null))
    {
        Some(index) => Remedy::run(End::Provider, add_primary_key(&table.name, &index.columns)),
        None => "give it a primary key, or a capture trigger of your own with pkey=".into(),
    }
}

fn add_primary_key(name: &Name, columns: &[String]) -> String {
    let list: Vec<String> = columns.iter().map(|column| quoted(column)).collect();
    format!("alter table {} add primary key ({})", name.quoted(), list.join(", "))
}

fn bypass(end: End, role: &str) -> Remedy {
    Remedy::run(end, format!("alter role {} bypassrls", quoted(role))).words("use the table's owner, or")
}

/// Those that the subscriber lacks: whether they may be, and are to be made.
pub(super) fn missing(missing: &[Missing], entries: &[Entry], create: bool, findings: &mut Findings) {
    for missing in missing {
        let name = &missing.table.name;
        let object: (End, &dyn Display) = (End::Subscriber, name);
        let Some(entry) = entries.iter().find(|entry| entry.subscriber == *name) else {
            continue;
        };
        findings.about(Some(&entry.provider));
        let make = Remedy::run(End::Subscriber, create::statement(missing));
        // One that had rows must not come back without them.
        if !entry.is_new && entry.state != State::InCopy {
            let name_there = literal(&entry.provider.quoted());
            findings.add(
                Kind::TableMissing,
                object,
                format!("table {name} does not exist on the subscriber any more"),
                make.words("make it there")
                    .then(format!("consumer table resync {name_there}")),
            );
        } else if !create {
            findings.add(
                Kind::TableMissing,
                object,
                format!("table {name} does not exist on the subscriber"),
                make.words("let replay make it with --create, or"),
            );
        }
    }
    findings.about(None);
}

/// Those that are left out until they are copied again.
pub(super) fn broken(entries: &[Entry], findings: &mut Findings) {
    for entry in entries.iter().filter(|entry| entry.state == State::Broken) {
        let name = &entry.provider;
        findings.add(
            Kind::TableBroken,
            (End::Subscriber, &entry.subscriber),
            format!(
                "table {name} is broken, so its events are left out: {}",
                entry.error.as_deref().unwrap_or("its error was removed")
            ),
            format!(
                "put that right, then: consumer table resync {}",
                literal(&name.quoted())
            ),
        );
    }
}

/// Whether the queue's ticks and events come from elsewhere, as on a branch of a cascade.
pub(super) async fn external(provider: &Client, who: &Who) -> Result<bool> {
    let row = provider
        .query_one(include_str!("sql/rights.sql"), &[&who.queue])
        .await
        .doing(|| format!("look for queue \"{}\" on the provider", who.queue))?;
    Ok(row.get("external"))
}
