//! Whether the subscriber's columns and constraints take every row that the provider's let in.
//!
//! Preflight refuses what fits at no time. Found here is what depends on the values, and types that hardly share a value.

use std::collections::HashMap;
use std::fmt::Display;

use tokio_postgres::Client;

use super::super::findings::{Findings, Kind, Remedy};
use super::super::preflight::Pair;
use super::super::table::{Column, Table, literal, quoted};
use super::fit::{Fit, fit};
use crate::connect::End;
use crate::error::{Doing, Result};

/// What a column's type is, beyond its name.
struct Type {
    category: String,
    name: String,
    labels: Option<Vec<String>>,
}

type Types = HashMap<(u32, String), Type>;

/// Compares columns and constraints of every pair.
pub(super) async fn shapes(
    provider: &Client,
    subscriber: &Client,
    pairs: &[Pair<'_>],
    findings: &mut Findings,
) -> Result<()> {
    let theirs: Vec<u32> = pairs.iter().map(|pair| pair.provider.oid).collect();
    let ours: Vec<u32> = pairs.iter().map(|pair| pair.subscriber.oid).collect();
    let their_types = types(provider, End::Provider, &theirs).await?;
    let our_types = types(subscriber, End::Subscriber, &ours).await?;
    let their_checks = checks(provider, End::Provider, &theirs).await?;
    let our_checks = checks(subscriber, End::Subscriber, &ours).await?;
    for pair in pairs {
        let (from, to) = (pair.provider, pair.subscriber);
        for column in &from.columns {
            let Some(there) = to.column(&column.name) else { continue };
            let types = their_types
                .get(&(from.oid, column.name.clone()))
                .zip(our_types.get(&(to.oid, column.name.clone())));
            columns(to, column, there, types, findings);
        }
        uniques(from, to, findings);
        let known: Vec<&str> = their_checks
            .iter()
            .filter(|check| check.0 == from.oid)
            .map(|check| check.2.as_str())
            .collect();
        for (_, name, definition) in our_checks.iter().filter(|check| check.0 == to.oid) {
            if !known.contains(&definition.as_str()) {
                findings.add(
                    Kind::CheckExtra,
                    (End::Subscriber, &to.name),
                    format!(
                        "constraint {} of table {} on the subscriber, {definition}, is not one of the provider's, which may have \
                         rows that break it",
                        quoted(name),
                        to.name
                    ),
                    alter(to, format!("drop constraint {}", quoted(name))),
                );
            }
        }
    }
    Ok(())
}

async fn types(client: &Client, end: End, oids: &[u32]) -> Result<Types> {
    let rows = client
        .query(include_str!("columns.sql"), &[&oids])
        .await
        .doing(|| format!("read the types of the columns on the {end}"))?;
    let read = |row: &tokio_postgres::Row| {
        let found = Type {
            category: row.get("category"),
            name: row.get("type"),
            labels: row.get("labels"),
        };
        ((row.get("table"), row.get("name")), found)
    };
    Ok(rows.iter().map(read).collect())
}

/// Table, name and definition.
async fn checks(client: &Client, end: End, oids: &[u32]) -> Result<Vec<(u32, String, String)>> {
    let rows = client
        .query(include_str!("constraints.sql"), &[&oids])
        .await
        .doing(|| format!("read the constraints of the tables on the {end}"))?;
    Ok(rows
        .iter()
        .map(|row| (row.get("table"), row.get("name"), row.get("definition")))
        .collect())
}

fn alter(table: &Table, what: String) -> Remedy {
    Remedy::run(End::Subscriber, format!("alter table {} {what}", table.name.quoted()))
}

fn columns(to: &Table, column: &Column, there: &Column, types: Option<(&Type, &Type)>, findings: &mut Findings) {
    let object: (End, &dyn Display) = (End::Subscriber, &to.name);
    let name = quoted(&column.name);
    let what = format!("column {name} of table {} on the subscriber", to.name);
    if there.generated && !column.generated {
        findings.add(
            Kind::GeneratedThere,
            object,
            format!("{what} is generated there only, so that the provider's values are not stored"),
            alter(to, format!("alter column {name} drop expression")),
        );
        return;
    }
    if there.not_null && !column.not_null && !there.generated {
        let in_key = to.primary_key().contains(&column.name);
        findings.add(
            Kind::NotNull,
            object,
            format!("{what} is NOT NULL, and the provider's may be null"),
            if in_key {
                "make it NOT NULL on the provider, too: it is part of the subscriber's primary key".into()
            } else {
                alter(to, format!("alter column {name} drop not null"))
            },
        );
    }
    let Some((theirs, ours)) = types else { return };
    let retype = || {
        let using = format!("alter column {name} type {} using {name}::text::{0}", column.type_name);
        alter(to, using)
    };
    match fit(
        (&column.type_name, &theirs.category),
        (&there.type_name, &ours.category),
    ) {
        Fit::Yes => {}
        Fit::Some => findings.add(
            Kind::TypeNarrower,
            object,
            format!(
                "{what} is {}, and the provider's is {}: some values may be refused, rounded or cut",
                there.type_name, column.type_name
            ),
            retype(),
        ),
        Fit::No => findings.add(
            Kind::TypeOther,
            object,
            format!(
                "{what} is {}, which hardly takes a value of the provider's {}",
                there.type_name, column.type_name
            ),
            retype(),
        ),
    }
    if let (Some(labels), Some(known)) = (&theirs.labels, &ours.labels) {
        let missing: Vec<&String> = labels.iter().filter(|label| !known.contains(label)).collect();
        if !missing.is_empty() {
            let list: Vec<String> = missing.iter().map(|label| literal(label)).collect();
            let statements: Vec<String> = list
                .iter()
                .map(|label| format!("alter type {} add value if not exists {label}", ours.name))
                .collect();
            findings.add(
                Kind::EnumLabel,
                object,
                format!(
                    "the type of {what}, {}, lacks the provider's values {}",
                    ours.name,
                    list.join(", ")
                ),
                Remedy::run(End::Subscriber, statements.join("; ")),
            );
        }
    }
}

/// Unique and exclusion constraints of the subscriber that rows of the provider may break. A primary key that is not the provider's is not
/// found here, unless the provider's table has none: else replay does not start (`key-missing`).
fn uniques(from: &Table, to: &Table, findings: &mut Findings) {
    let keyless = from.primary_key().is_empty();
    for index in to
        .indexes
        .iter()
        .filter(|index| index.constrains && (keyless || !index.is_primary))
    {
        // Unique over some of the columns is unique over all of them.
        let implied = index.is_key
            && !index.definition.contains("NULLS NOT DISTINCT")
            && from
                .indexes
                .iter()
                .any(|one| one.is_key && one.columns.iter().all(|column| index.columns.contains(column)));
        let same = from
            .indexes
            .iter()
            .any(|one| one.constrains && one.definition == index.definition);
        if !implied && !same {
            findings.add(
                Kind::UniqueExtra,
                (End::Subscriber, &to.name),
                format!(
                    "index {} of table {} on the subscriber is unique, and the provider's table, without such a one, may have rows \
                     that break it",
                    quoted(&index.name),
                    to.name
                ),
                match &index.constraint {
                    Some((name, _)) => alter(to, format!("drop constraint {}", quoted(name))),
                    None => Remedy::run(
                        End::Subscriber,
                        format!("drop index {}.{}", quoted(&to.name.schema), quoted(&index.name)),
                    ),
                },
            );
        }
    }
}
