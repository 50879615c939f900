//! The checks before anything is changed: rights, tables, columns and keys on both ends.
//!
//! Each adds to the findings what would make replay fail later, half way; none of them changes anything. Called by
//! setup.rs, also after every lost connection, as much can happen meanwhile.

use std::collections::HashMap;

use tokio_postgres::Client;

use super::findings::Findings;
use super::position::Who;
use super::table::{Name, Table, literal, quoted};
use super::table_state::State;
use crate::config::ReplayConfig;
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
    if queue_id.is_none() && !row.get::<_, bool>("may_create") {
        findings.add(
            format!(
                "queue \"{}\" does not exist on the provider, and role \"{role}\" may not make it",
                who.queue
            ),
            format!(
                "select pgq.create_queue({}) as an administrator, or: grant pgq_admin to {role_name}",
                literal(&who.queue)
            ),
        );
    }
    if !row.get::<_, bool>("may_read") {
        findings.add(
            format!("role \"{role}\" may not read queues on the provider"),
            format!("grant pgq_reader to {role_name}"),
        );
    }
    let captured = captured(client, who, tables.values().map(|table| table.oid)).await?;
    let mut all_captured = true;
    for table in sorted(tables) {
        let name = &table.name;
        if !table.schema_usage {
            findings.add(
                format!(
                    "role \"{role}\" may not use schema {} of the provider",
                    quoted(&name.schema)
                ),
                format!("grant usage on schema {} to {role_name}", quoted(&name.schema)),
            );
        }
        let to_copy = match states.get(name) {
            None => config.copy,
            Some(state) => matches!(state, State::InCopy | State::InChunks(_)),
        };
        if to_copy && !table.may("select") {
            findings.add(
                format!("role \"{role}\" may not read table {name} of the provider"),
                format!("grant select on {} to {role_name}", name.quoted()),
            );
        }
        if to_copy && table.row_security {
            findings.add(
                format!("row security hides rows of table {name} of the provider from role \"{role}\""),
                format!("let the table's owner copy it, or: alter role {role_name} bypassrls"),
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
                    format!("table {name} of the provider has lost its capture triggers, and changes made since are not in the queue"),
                    format!(
                        "copy it again: delete from pgcascade_replay.table_state where consumer = {} and queue = {} and \
                         provider_schema = {} and provider_table = {} on the subscriber, then start with --truncate",
                        literal(&who.consumer),
                        literal(&who.queue),
                        literal(&name.schema),
                        literal(&name.table)
                    ),
                );
            } else if !table.may("trigger") {
                findings.add(
                    format!("role \"{role}\" may not make triggers on table {name} of the provider"),
                    format!("grant trigger on {} to {role_name}", name.quoted()),
                );
            }
        }
    }
    if !all_captured && !row.get::<_, bool>("may_capture") {
        findings.add(
            format!("role \"{role}\" may not use the capture function pgq.logutriga() of the provider"),
            format!("grant pgq_writer to {role_name}"),
        );
    }
    Ok(queue_id)
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
pub(super) async fn subscriber_rights(
    client: &Client,
    role: &str,
    installed: bool,
    findings: &mut Findings,
) -> Result<()> {
    let replica = client
        .batch_execute("set session_replication_role = replica")
        .await
        .doing(|| "set session_replication_role on the subscriber".to_owned());
    if let Err(error) = replica {
        if error.sqlstate().is_none_or(|state| state.code() != "42501") {
            return Err(error);
        }
        findings.add(
            format!("role \"{role}\" may not set session_replication_role on the subscriber"),
            format!("as a superuser there: grant set on parameter session_replication_role to {} (before PostgreSQL 15: a superuser has to replay)", quoted(role)),
        );
    }
    let row = client
        .query_one(
            "select pg_catalog.has_database_privilege(pg_catalog.current_database(), 'create'),
                    pg_catalog.to_regnamespace('pgcascade_replay') is not null,
                    pg_catalog.current_database()::text",
            &[],
        )
        .await
        .doing(|| "read the role's rights on the subscriber".to_owned())?;
    let (may_create, schema_exists, database): (bool, bool, String) = (row.get(0), row.get(1), row.get(2));
    if !installed && schema_exists {
        // has_table_privilege cannot tell "not there" from "not visible": to_regclass needs USAGE on the schema.
        findings.add(
            format!("schema pgcascade_replay of the subscriber is not replay's, or role \"{role}\" may not use it"),
            format!(
                "grant usage on schema pgcascade_replay, and all on all tables in it, to {}",
                quoted(role)
            ),
        );
    } else if !installed && !may_create {
        findings.add(
            format!("role \"{role}\" may not make the schema pgcascade_replay on the subscriber"),
            format!("grant create on database {} to {}", quoted(&database), quoted(role)),
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
        if !matches!(subscriber.kind.as_str(), "r" | "p") {
            findings.add(
                format!("{name} on the subscriber is a {}", subscriber.kind_name()),
                "replace it by a table",
            );
            continue;
        }
        columns(provider, subscriber, findings);
        let key = provider.primary_key();
        if !key.is_empty() && subscriber.key_over(key).is_none() {
            let list: Vec<String> = key.iter().map(|column| quoted(column)).collect();
            findings.add(
                format!(
                    "table {name} on the subscriber has no unique key over ({}), the provider's primary key",
                    key.join(", ")
                ),
                format!("alter table {} add primary key ({})", name.quoted(), list.join(", ")),
            );
        }
        rights(role, provider, subscriber, findings);
        if subscriber.row_security {
            findings.add(
                format!("row security of table {name} on the subscriber applies to role \"{role}\""),
                format!(
                    "let the table's owner replay, or: alter role {} bypassrls",
                    quoted(role)
                ),
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
                format!("table {name} on the subscriber has rows already"),
                "empty it, or let replay do that with --truncate; if the rows are equal to the provider's: --no-copy",
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
    for column in &provider.columns {
        let sql_name = quoted(&column.name);
        match subscriber.column(&column.name) {
            None if column.generated => {}
            None => findings.add(
                format!(
                    "column \"{}\" of table {name} is missing on the subscriber",
                    column.name
                ),
                format!(
                    "alter table {} add column {sql_name} {}",
                    name.quoted(),
                    column.type_name
                ),
            ),
            Some(there) if column.generated && !there.generated => findings.add(
                format!(
                    "column \"{}\" of table {name} is generated on the provider, but not on the subscriber",
                    column.name
                ),
                "make it a generated column there, too, or drop it there",
            ),
            Some(_) => {}
        }
    }
    for column in &subscriber.columns {
        if provider.column(&column.name).is_none() && !column.is_optional() {
            findings.add(
                format!("column \"{}\" of table {name} on the subscriber is NOT NULL without a default, and the provider does not have it", column.name),
                format!("alter table {} alter column {} drop not null", name.quoted(), quoted(&column.name)),
            );
        }
    }
}

fn rights(role: &str, provider: &Table, subscriber: &Table, findings: &mut Findings) {
    let name = &subscriber.name;
    if !subscriber.schema_usage {
        findings.add(
            format!(
                "role \"{role}\" may not use schema {} of the subscriber",
                quoted(&name.schema)
            ),
            format!("grant usage on schema {} to {}", quoted(&name.schema), quoted(role)),
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
            format!("role \"{role}\" lacks {list} on table {name} of the subscriber"),
            format!("grant {list} on {} to {}", name.quoted(), quoted(role)),
        );
    }
}

fn sorted(tables: &HashMap<Name, Table>) -> Vec<&Table> {
    let mut list: Vec<&Table> = tables.values().collect();
    list.sort_by(|a, b| a.name.cmp(&b.name));
    list
}
