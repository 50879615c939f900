//! The checks before anything is changed: rights, tables, columns and keys on both ends.
//!
//! Each adds to the findings what would make replay fail later, half way; none of them changes anything. Called by
//! setup.rs for replay's start, also after every lost connection, as much can happen meanwhile, and for `consumer check`,
//! which adds more of its own (check.rs).

use std::collections::HashMap;
use std::fmt::Display;

use tokio_postgres::Client;

use super::findings::{Findings, Kind, Remedy};
use super::position::Who;
use super::session::SubscriberFacts;
use super::table::{Name, Table, literal, quoted};
use super::table_state::State;
use crate::config::ReplayConfig;
use crate::connect::End;
use crate::error::{Doing, Result};

/// Insert, delete and update, as bits of `pg_trigger.tgtype`.
pub(super) const ROW_EVENTS: i32 = 4 | 8 | 16;
/// Truncate.
pub(super) const TRUNCATE_EVENT: i32 = 32;

/// A table on the provider and its counterpart on the subscriber.
pub(super) type Pair<'a> = (&'a Table, &'a Table);

/// Whether the role can make, read and fill the queue, and read the tables. Returns the queue's id if it exists.
pub(super) async fn provider(
    client: &Client,
    role: &str,
    who: &Who,
    config: &ReplayConfig,
    tables: &HashMap<Name, Table>,
    states: &HashMap<Name, State>,
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
    let captured = captured(client, who, tables.values().map(|table| table.oid)).await?;
    let mut all_captured = true;
    for table in sorted(tables) {
        let name = &table.name;
        let object: (End, &dyn Display) = (End::Provider, name);
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
        let to_copy = match states.get(name) {
            None => config.copy,
            Some(state) => matches!(state, State::InCopy | State::InChunks(_)),
        };
        if to_copy && !table.may("select") {
            findings.add(
                Kind::TableRight,
                object,
                format!("role \"{role}\" may not read table {name} of the provider"),
                grant(&format!("select on {}", name.quoted())),
            );
        }
        if to_copy && table.row_security {
            findings.add(
                Kind::RowSecurity,
                object,
                format!("row security hides rows of table {name} of the provider from role \"{role}\""),
                bypass(End::Provider, role),
            );
        }
        let has = captured.get(&table.oid).copied().unwrap_or(0);
        if has & (ROW_EVENTS | TRUNCATE_EVENT) != ROW_EVENTS | TRUNCATE_EVENT {
            all_captured = false;
            if matches!(
                states.get(name),
                Some(State::Ok | State::CatchingUp(_) | State::InChunks(_))
            ) {
                findings.add(
                    Kind::CaptureLost,
                    object,
                    format!("table {name} of the provider has lost its capture triggers, and changes made since are not in the queue"),
                    Remedy::run(
                        End::Subscriber,
                        format!(
                            "delete from pgcascade_replay.table_state where consumer = {} and queue = {} and provider_schema = {} \
                             and provider_table = {}",
                            literal(&who.consumer),
                            literal(&who.queue),
                            literal(&name.schema),
                            literal(&name.table)
                        ),
                    )
                    .words("copy it again")
                    .then("start with --truncate"),
                );
            } else if !table.may("trigger") {
                findings.add(
                    Kind::TriggerRight,
                    object,
                    format!("role \"{role}\" may not make triggers on table {name} of the provider"),
                    grant(&format!("trigger on {}", name.quoted())),
                );
            }
        }
    }
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

/// The kinds of change that triggers put into the queue already, by table.
pub(super) async fn captured(client: &Client, who: &Who, oids: impl Iterator<Item = u32>) -> Result<HashMap<u32, i32>> {
    let oids: Vec<u32> = oids.collect();
    let rows = client
        .query(include_str!("sql/triggers.sql"), &[&oids, &who.queue])
        .await
        .doing(|| "look for capture triggers on the provider".to_owned())?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// What the role needs on the subscriber whatever the tables. Leaves the session in replica mode: no trigger of an
/// ordinary kind and no foreign key acts on what is applied, as the provider's have acted already.
pub(super) async fn subscriber_rights(client: &Client, facts: &SubscriberFacts, findings: &mut Findings) -> Result<()> {
    let SubscriberFacts { role, database, .. } = facts;
    let role_name = quoted(role);
    let object = format!("role {role_name}");
    let object: (End, &dyn Display) = (End::Subscriber, &object);
    let grant = |what: &str| Remedy::run(End::Subscriber, format!("grant {what} to {role_name}"));
    let replica = client
        .batch_execute("set session_replication_role = replica")
        .await
        .doing(|| "set session_replication_role on the subscriber".to_owned());
    if let Err(error) = replica {
        if error.sqlstate().is_none_or(|state| state.code() != "42501") {
            return Err(error);
        }
        findings.add(
            Kind::ReplicaRole,
            object,
            format!("role \"{role}\" may not set session_replication_role on the subscriber"),
            if facts.server < 150_000 {
                "let a superuser replay: before PostgreSQL 15 nobody else may set it".into()
            } else {
                grant("set on parameter session_replication_role").words("as a superuser")
            },
        );
    }
    if !facts.schema_exists {
        if !facts.may_create {
            findings.add(
                Kind::StateRight,
                object,
                format!("role \"{role}\" may not make the schema pgcascade_replay on the subscriber"),
                grant(&format!("create on database {}", quoted(database))),
            );
        }
    } else if !facts.may_state {
        findings.add(
            Kind::StateRight,
            object,
            format!("schema pgcascade_replay of the subscriber is not replay's, or role \"{role}\" may not use it"),
            Remedy::run(
                End::Subscriber,
                format!(
                    "grant usage on schema pgcascade_replay to {role_name}; \
                     grant all on all tables in schema pgcascade_replay to {role_name}"
                ),
            ),
        );
    }
    Ok(())
}

/// Whether every pair fits together, and whether the role may write the subscriber's table.
pub(super) async fn subscriber_tables(
    client: &Client,
    role: &str,
    config: &ReplayConfig,
    pairs: &[Pair<'_>],
    states: &HashMap<Name, State>,
    findings: &mut Findings,
) -> Result<()> {
    for (provider, subscriber) in pairs {
        let name = &subscriber.name;
        let object: (End, &dyn Display) = (End::Subscriber, name);
        if !matches!(subscriber.kind.as_str(), "r" | "p") {
            findings.add(
                Kind::NotATable,
                object,
                format!("{name} on the subscriber is a {}", subscriber.kind_name()),
                "replace it by a table",
            );
            continue;
        }
        columns(provider, subscriber, findings);
        let key = provider.primary_key();
        if !key.is_empty() && subscriber.key_over(key).is_none() {
            findings.add(
                Kind::KeyMissing,
                object,
                format!(
                    "table {name} on the subscriber has no unique key over ({}), the provider's primary key",
                    key.join(", ")
                ),
                Remedy::run(End::Subscriber, add_primary_key(name, key)),
            );
        }
        rights(role, provider, subscriber, findings);
        if subscriber.row_security {
            findings.add(
                Kind::RowSecurity,
                object,
                format!("row security of table {name} on the subscriber applies to role \"{role}\""),
                bypass(End::Subscriber, role),
            );
        }
        let to_copy = match states.get(&provider.name) {
            None => config.copy,
            Some(state) => *state == State::InCopy,
        };
        if to_copy
            && !config.truncate
            && subscriber.may("select")
            && subscriber.schema_usage
            && has_rows(client, name).await?
        {
            findings.add(
                Kind::TableNotEmpty,
                object,
                format!("table {name} on the subscriber has rows already"),
                Remedy::run(End::Subscriber, format!("truncate {}", name.quoted())).words(
                    "let replay empty it with --truncate; if the rows are equal to the provider's, use --no-copy; or",
                ),
            );
        }
    }
    Ok(())
}

pub(super) async fn has_rows(client: &Client, name: &Name) -> Result<bool> {
    let row = client
        .query_one(&format!("select exists (select from {})", name.quoted()), &[])
        .await
        .doing(|| format!("see whether table {name} on the subscriber is empty"))?;
    Ok(row.get(0))
}

fn columns(provider: &Table, subscriber: &Table, findings: &mut Findings) {
    let name = &subscriber.name;
    let object: (End, &dyn Display) = (End::Subscriber, name);
    let alter = |what: String| Remedy::run(End::Subscriber, format!("alter table {} {what}", name.quoted()));
    for column in &provider.columns {
        let sql_name = quoted(&column.name);
        match subscriber.column(&column.name) {
            None if column.generated => {}
            None => findings.add(
                Kind::ColumnMissing,
                object,
                format!(
                    "column \"{}\" of table {name} is missing on the subscriber",
                    column.name
                ),
                alter(format!("add column {sql_name} {}", column.type_name)),
            ),
            Some(there) if column.generated && !there.generated => findings.add(
                Kind::ColumnGenerated,
                object,
                format!(
                    "column \"{}\" of table {name} is generated on the provider, but not on the subscriber",
                    column.name
                ),
                match &column.expression {
                    Some(expression) => alter(format!(
                        "drop column {sql_name}, add column {sql_name} {} generated always as ({expression}) stored",
                        column.type_name
                    )),
                    None => "make it a generated column there, too, or drop it there".into(),
                },
            ),
            Some(_) => {}
        }
    }
    for column in &subscriber.columns {
        if provider.column(&column.name).is_none() && !column.is_optional() {
            findings.add(
                Kind::ColumnExtra,
                object,
                format!("column \"{}\" of table {name} on the subscriber is NOT NULL without a default, and the provider does not have it", column.name),
                alter(format!("alter column {} drop not null", quoted(&column.name))),
            );
        }
    }
}

fn rights(role: &str, provider: &Table, subscriber: &Table, findings: &mut Findings) {
    let name = &subscriber.name;
    let object: (End, &dyn Display) = (End::Subscriber, name);
    let grant = |what: String| Remedy::run(End::Subscriber, format!("grant {what} to {}", quoted(role)));
    if !subscriber.schema_usage {
        findings.add(
            Kind::SchemaRight,
            (End::Subscriber, &format!("schema {}", quoted(&name.schema))),
            format!(
                "role \"{role}\" may not use schema {} of the subscriber",
                quoted(&name.schema)
            ),
            grant(format!("usage on schema {}", quoted(&name.schema))),
        );
    }
    let needed: &[&str] = if provider.primary_key().is_empty() {
        &["select", "insert", "truncate"]
    } else {
        &["select", "insert", "update", "delete", "truncate"]
    };
    let missing: Vec<&str> = needed
        .iter()
        .copied()
        .filter(|privilege| !subscriber.may(privilege))
        .collect();
    if !missing.is_empty() {
        let list = missing.join(", ");
        findings.add(
            Kind::TableRight,
            object,
            format!("role \"{role}\" lacks {list} on table {name} of the subscriber"),
            grant(format!("{list} on {}", name.quoted())),
        );
    }
}

fn sorted(tables: &HashMap<Name, Table>) -> Vec<&Table> {
    let mut list: Vec<&Table> = tables.values().collect();
    list.sort_by(|a, b| a.name.cmp(&b.name));
    list
}
