//! What there is around the tables that acts on their rows, or fails them: triggers and rules that fire in replica mode,
//! foreign keys, other consumers, and tables that a crash empties or that have children.

use std::collections::{HashMap, HashSet};

use tokio_postgres::Client;

use super::super::findings::{Findings, Kind, Remedy};
use super::super::position::Who;
use super::super::preflight::Pair;
use super::super::survey::Survey;
use super::super::table::{Name, Table, quoted};
use super::super::table_state::State;
use crate::config::ReplayConfig;
use crate::connect::End;
use crate::error::{Doing, Result};

/// Tables whose rows are not, or not for good, where they seem to be.
pub(super) async fn storage(client: &Client, end: End, survey: &Survey, findings: &mut Findings) -> Result<()> {
    let stored = survey.stored(end);
    let oids: Vec<u32> = stored.keys().copied().collect();
    let rows = client
        .query(
            "select oid from pg_catalog.pg_class where oid = any ($1::oid[]) and relpersistence = 'u'",
            &[&oids],
        )
        .await
        .doing(|| format!("look for unlogged tables on the {end}"))?;
    for name in rows.iter().filter_map(|row| stored.get(&row.get(0))) {
        let loss = if end == End::Provider {
            "a crash empties it without an event"
        } else {
            "a crash empties it, and replay goes on behind the lost rows"
        };
        findings.add(
            Kind::Unlogged,
            (end, name),
            format!("table {name} of the {end} is unlogged: {loss}"),
            Remedy::run(end, format!("alter table {} set logged", name.quoted())),
        );
    }
    for table in survey.tables(end) {
        let name = &table.name;
        if table.kind == "r" && table.has_children {
            findings.add(
                Kind::Inheritance,
                (end, name),
                format!("table {name} of the {end} has tables that inherit from it, whose rows are not replayed with its own"),
                "replay those tables, too, each by its name",
            );
        }
    }
    Ok(())
}

/// Triggers and rules of the subscriber that act on what is replayed.
pub(super) async fn acting(subscriber: &Client, survey: &Survey, findings: &mut Findings) -> Result<()> {
    let mut by_oid = survey.stored(End::Subscriber);
    by_oid.extend(
        survey
            .tables(End::Subscriber)
            .iter()
            .map(|table| (table.oid, &table.name)),
    );
    let oids: Vec<u32> = by_oid.keys().copied().collect();
    let rows = subscriber
        .query(include_str!("acting.sql"), &[&oids])
        .await
        .doing(|| "look for triggers and rules on the subscriber".to_owned())?;
    for row in rows {
        let Some(table) = by_oid.get(&row.get("table")) else {
            continue;
        };
        let (kind, name): (&str, &str) = (row.get("kind"), row.get("name"));
        findings.add(
            Kind::ActsInReplica,
            (End::Subscriber, table),
            format!(
                "{kind} {} of table {table} on the subscriber acts on what is replayed, as it is ENABLE ALWAYS or REPLICA",
                quoted(name)
            ),
            Remedy::run(
                End::Subscriber,
                format!("alter table {} enable {kind} {}", table.quoted(), quoted(name)),
            )
            .words("if that is not meant"),
        );
    }
    Ok(())
}

/// Foreign keys of the subscriber. Replay's session does not enforce them, as the provider has.
pub(super) async fn foreign_keys(
    subscriber: &Client,
    config: &ReplayConfig,
    survey: &Survey,
    findings: &mut Findings,
) -> Result<()> {
    let ours: HashMap<u32, &Table> = survey.at_subscriber.values().map(|table| (table.oid, table)).collect();
    let emptied: HashSet<u32> = survey
        .pairs()
        .iter()
        .filter(|pair| config.truncate && pair.entry.state == State::InCopy && !pair.entry.replace_rows)
        .map(|pair| pair.subscriber.oid)
        .collect();
    let parked = |name: &Name| survey.parked.iter().any(|entry| entry.subscriber == *name);
    let oids: Vec<u32> = ours.keys().copied().collect();
    let rows = subscriber
        .query(include_str!("foreign_keys.sql"), &[&oids])
        .await
        .doing(|| "read the foreign keys of the subscriber".to_owned())?;
    for row in rows {
        let (child, parent): (u32, u32) = (row.get("child"), row.get("parent"));
        let name = quoted(row.get("name"));
        let child_name = Name::new(row.get::<_, &str>("child_schema"), row.get::<_, &str>("child_table"));
        let parent_name = Name::new(row.get::<_, &str>("parent_schema"), row.get::<_, &str>("parent_table"));
        let drop = Remedy::run(
            End::Subscriber,
            format!("alter table {} drop constraint {name}", child_name.quoted()),
        );
        let what = format!("foreign key {name} of table {child_name} on the subscriber");
        if child != parent && emptied.contains(&parent) {
            findings.add(
                Kind::TruncateReferenced,
                (End::Subscriber, &parent_name),
                format!("{what} keeps table {parent_name} from being emptied for its copy (--truncate)"),
                drop.words("drop it until the tables are copied"),
            );
        } else if parked(&child_name) || parked(&parent_name) {
            // That is what is said of the table.
        } else if !ours.contains_key(&child) {
            findings.add(
                Kind::ForeignKey,
                (End::Subscriber, &parent_name),
                format!(
                    "{what}, which is not replayed, is not looked at when replay changes \
                 or deletes rows of table {parent_name}"
                ),
                drop.words("replay that table, too, or"),
            );
        } else if !ours.contains_key(&parent) {
            findings.add(
                Kind::ForeignKey,
                (End::Subscriber, &child_name),
                format!(
                    "{what} refers to table {parent_name}, which is not replayed, so that rows \
                     may come without what they refer to"
                ),
                drop.words("replay that table, too, or"),
            );
        }
    }
    Ok(())
}

/// Tables that another consumer fills, too.
pub(super) async fn other_consumers(
    subscriber: &Client,
    who: &Who,
    pairs: &[Pair<'_>],
    findings: &mut Findings,
) -> Result<()> {
    let rows = subscriber
        .query(include_str!("other_consumers.sql"), &[&who.consumer, &who.queue])
        .await
        .doing(|| "read the states of the tables on the subscriber".to_owned())?;
    for row in rows {
        let name = Name::new(row.get::<_, &str>(0), row.get::<_, &str>(1));
        if pairs.iter().any(|pair| pair.subscriber.name == name) {
            let (consumer, queue): (&str, &str) = (row.get(2), row.get(3));
            findings.add(
                Kind::TwoConsumers,
                (End::Subscriber, &name),
                format!(
                    "table {name} on the subscriber is filled by consumer \"{consumer}\" of queue \"{queue}\", too"
                ),
                "take it out of one of the two: consumer table remove",
            );
        }
    }
    Ok(())
}
