//! The subscriber's side: what the role needs there, and whether each pair of tables fits together.

use std::fmt::Display;

use tokio_postgres::Client;

use super::{Pair, add_primary_key, bypass};
use crate::connect::End;
use crate::error::{Doing, Result};
use crate::replay::findings::{Findings, Kind, Remedy};
use crate::replay::session::SubscriberFacts;
use crate::replay::table::{Column, Table, literal, quoted};
use crate::replay::table_state::Entry;

/// What the role needs on the subscriber whatever the tables. Leaves the session in replica mode: no trigger of an
/// ordinary kind and no foreign key acts on what is applied, as the provider's have acted already.
pub(in crate::replay) async fn session(
    client: &Client,
    facts: &SubscriberFacts,
    findings: &mut Findings,
) -> Result<()> {
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
pub(in crate::replay) fn tables(role: &str, pending: bool, pairs: &[Pair<'_>], findings: &mut Findings) {
    for Pair {
        entry,
        provider,
        subscriber,
    } in pairs
    {
        let name = &subscriber.name;
        let object: (End, &dyn Display) = (End::Subscriber, name);
        findings.about(Some(&entry.provider));
        if !matches!(subscriber.kind.as_str(), "r" | "p") {
            findings.add(
                Kind::NotATable,
                object,
                format!("{name} on the subscriber is a {}", subscriber.kind_name()),
                "replace it by a table",
            );
            continue;
        }
        // What is pending may make them fit; if not, the first event that does not fit stops replay.
        if !pending {
            columns(entry, provider, subscriber, findings);
        }
        let key = provider.primary_key();
        if !pending && !key.is_empty() && subscriber.key_over(key).is_none() {
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
        if entry.filter.rows.is_some() && subscriber.key_over(key).is_some_and(|index| !index.is_immediate) {
            findings.add(
                Kind::Filter,
                object,
                format!("the key of table {name} on the subscriber is deferrable, and --where needs one that is not"),
                format!("make the key of {} not deferrable", name.quoted()),
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
    }
    findings.about(None);
}

fn columns(entry: &Entry, provider: &Table, subscriber: &Table, findings: &mut Findings) {
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
                column_missing(entry, provider, subscriber, column),
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
                format!("column \"{}\" of table {name} on the subscriber is NOT NULL without a default, and no value for it comes from the provider", column.name),
                alter(format!("alter column {} drop not null", quoted(&column.name))),
            );
        }
    }
}

/// The rows that are there have to get what they have on the provider, where the new column's default, and a new name, make no events.
fn column_missing(entry: &Entry, provider: &Table, subscriber: &Table, column: &Column) -> Remedy {
    let alter = |what: String| {
        let statement = format!("alter table {} {what}", subscriber.name.quoted());
        Remedy::run(End::Subscriber, statement)
    };
    let name = quoted(&column.name);
    let mut add = format!("add column {name} {}", column.type_name);
    if entry.to_copy() {
        return alter(add);
    }
    let former = provider
        .columns
        .iter()
        .zip(&subscriber.columns)
        .find(|(new, old)| new.name == column.name && new.keeps_place && old.type_name == new.type_name)
        .filter(|(_, old)| provider.column(&old.name).is_none());
    if let Some((_, old)) = former {
        return alter(format!("rename column {} to {name}", quoted(&old.name)))
            .words(format!("if it was column \"{}\" before", old.name));
    }
    let Some(value) = &column.missing_value else {
        let table = literal(&entry.provider.quoted());
        if let Some(expression) = column.expression.as_ref().filter(|_| column.portable) {
            add.push_str(&format!(" default {expression}"));
        }
        return alter(add).then(format!(
            "consumer table resync {table}, if rows have values there that are older than the events that are on their way"
        ));
    };
    // The default may be another by now, or another at each time.
    let default = match column.expression.as_ref().filter(|_| column.portable) {
        Some(expression) => format!("set default {expression}"),
        None => "drop default".to_owned(),
    };
    alter(format!(
        "{add} default {}; alter table {} alter column {name} {default}",
        literal(value),
        subscriber.name.quoted()
    ))
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
