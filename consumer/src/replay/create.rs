//! Making tables that the subscriber lacks (`--create`).
//!
//! What is made is what replay needs and a reader of the copy expects: schema, columns with type, collation, NOT NULL,
//! default, identity or generation expression, the sequences of identity and serial columns, primary key, unique and check
//! constraints, unique indexes, exclusion constraints, and what is below a partitioned table; all missing tables in one transaction, before
//! anything is copied. The other indexes follow after the copy (copy.rs), because rows go into a table with few indexes faster,
//! and foreign keys when both tables are complete (foreign_keys.rs).
//! Left out: defaults, checks and indexes that need an object of the provider's own; and, but for `--create-full` (create/rest.rs), triggers
//! and what else a table may have. docs/tables.md has the whole list. For a copy that is like the original in everything, `pg_dump --schema-only` is the tool.

mod rest;

use std::collections::{BTreeSet, HashMap};

use tokio_postgres::Client;

use super::displaced;
use super::findings::{Findings, Kind, Remedy};
use super::partitions::{self, Partition};
use super::sequences::{self, Definition};
use super::session::SubscriberFacts;
use super::table::{Index, Name, Table, literal, quoted};
use crate::connect::End;
use crate::error::{Doing, Result};

/// Adds a finding for every type that the tables need and the subscriber lacks, and for every schema that the role may not make them in.
pub(super) async fn check(
    subscriber: &Client,
    facts: &SubscriberFacts,
    missing: &[Missing],
    findings: &mut Findings,
) -> Result<()> {
    rights(subscriber, facts, missing, findings).await?;
    let tables = || missing.iter().map(|missing| &missing.table);
    let mut types = BTreeSet::new();
    for column in tables().flat_map(|table| &table.columns) {
        types.insert(element(&column.bare_type));
    }
    let types: Vec<&str> = types.into_iter().collect();
    let lacking = subscriber
        .query("select t.name from pg_catalog.unnest($1::text[]) t(name) where pg_catalog.to_regtype(t.name) is null order by 1", &[&types])
        .await
        .doing(|| "look for the tables' types on the subscriber".to_owned())?;
    for row in lacking {
        let name: String = row.get(0);
        let user = tables().find(|table| table.columns.iter().any(|column| element(&column.bare_type) == name));
        let table = user.map_or_else(String::new, |table| {
            format!(", which table {} has a column of,", table.name)
        });
        findings.add(
            Kind::TypeMissing,
            (End::Subscriber, &format!("type {name}")),
            format!("type {name}{table} does not exist on the subscriber"),
            "make it there; --create makes tables, not types",
        );
    }
    Ok(())
}

/// What is to be made for a type: an array's comes with the one of its elements.
fn element(name: &str) -> &str {
    name.strip_suffix("[]").unwrap_or(name)
}

async fn rights(
    subscriber: &Client,
    facts: &SubscriberFacts,
    missing: &[Missing],
    findings: &mut Findings,
) -> Result<()> {
    let mut schemas = BTreeSet::new();
    for Missing { table, parts } in missing {
        schemas.insert(table.name.schema.as_str());
        schemas.extend(parts.iter().map(|part| part.name.schema.as_str()));
    }
    let schemas: Vec<&str> = schemas.into_iter().collect();
    let rows = subscriber
        .query(
            "select s.name, n.oid is not null as there from pg_catalog.unnest($1::text[]) s(name)
               left join pg_catalog.pg_namespace n on n.nspname = s.name
              where n.oid is null or not (pg_catalog.has_schema_privilege(n.oid, 'create') and pg_catalog.has_schema_privilege(n.oid, 'usage'))
              order by 1",
            &[&schemas],
        )
        .await
        .doing(|| "look at the schemas of the missing tables on the subscriber".to_owned())?;
    let role = &facts.role;
    for row in rows {
        let schema = quoted(row.get("name"));
        let (what, right) = if row.get("there") {
            ("make tables in", format!("usage, create on schema {schema}"))
        } else if facts.may_create {
            continue;
        } else {
            ("make", format!("create on database {}", quoted(&facts.database)))
        };
        findings.add(
            Kind::SchemaRight,
            (End::Subscriber, &format!("schema {schema}")),
            format!("role \"{role}\" may not {what} schema {schema} of the subscriber"),
            Remedy::run(End::Subscriber, format!("grant {right} to {}", quoted(role))),
        );
    }
    Ok(())
}

/// A table that the subscriber lacks.
#[derive(Debug)]
pub(super) struct Missing {
    /// The part of the provider's that is replayed, by its name on the subscriber.
    pub(super) table: Table,
    /// What is below it, from the top down.
    pub(super) parts: Vec<Partition>,
}

/// What belongs to missing tables beside what [`Table`] says.
#[derive(Debug, Default)]
pub(super) struct Extras {
    /// By table and column.
    sequences: HashMap<(u32, String), Definition>,
    /// Name and definition of each, by table.
    checks: HashMap<u32, Vec<(String, String)>>,
    /// With --create-full.
    rest: Vec<rest::Part>,
}

pub(super) async fn extras(provider: &Client, missing: &[Missing], with_sequences: bool, full: bool) -> Result<Extras> {
    let mut extras = Extras::default();
    if full {
        extras.rest = rest::of(provider, missing).await?;
    }
    let tables = || missing.iter().map(|missing| &missing.table);
    if with_sequences {
        extras.sequences = sequences::definitions(provider, tables()).await?;
    }
    let oids: Vec<u32> = tables().map(|table| table.oid).collect();
    let rows = provider
        .query(include_str!("sql/checks.sql"), &[&oids])
        .await
        .doing(|| "read the check constraints of the provider".to_owned())?;
    for row in rows {
        let (oid, columns): (u32, Vec<String>) = (row.get("table"), row.get("columns"));
        let has_them = |table: &Table| columns.iter().all(|column| table.column(column).is_some());
        if tables().any(|table| table.oid == oid && has_them(table)) {
            let checks = extras.checks.entry(oid).or_default();
            checks.push((row.get("name"), row.get("definition")));
        }
    }
    Ok(extras)
}

/// Makes the tables.
pub(super) async fn create(subscriber: &Client, tables: &[Missing], extras: &Extras) -> Result<()> {
    let what = || "make the missing tables on the subscriber".to_owned();
    subscriber.batch_execute("begin").await.doing(what)?;
    let schemas: BTreeSet<&str> = tables
        .iter()
        .map(|missing| missing.table.name.schema.as_str())
        .collect();
    for schema in schemas {
        make_schema(subscriber, schema).await?;
    }
    for Missing { table, parts } in tables {
        subscriber
            .batch_execute(&ddl(table, extras))
            .await
            .doing(|| format!("make table {} on the subscriber", table.name))?;
        partitions::make(subscriber, parts).await?;
        constrain(subscriber, table).await?;
    }
    let left_out = rest::make(subscriber, &extras.rest).await?;
    subscriber.batch_execute("commit").await.doing(what)?;
    for error in left_out {
        tracing::warn!("{error}; the table is made without");
    }
    for Missing { table, .. } in tables {
        tracing::info!(table = %table.name, "table made on the subscriber");
        for column in table
            .columns
            .iter()
            .filter(|column| !column.generated && !column.portable)
            .filter(|column| !extras.sequences.contains_key(&(table.oid, column.name.clone())))
        {
            if let Some(expression) = &column.expression {
                tracing::info!(
                    table = %table.name,
                    column = column.name,
                    "made without its default {expression}, which needs an object of the provider's"
                );
            }
        }
    }
    Ok(())
}

/// What makes a table like this one, for somebody to run.
pub(super) fn statement(missing: &Missing) -> String {
    let mut sql = in_schema(&missing.table.name) + &ddl(&missing.table, &Extras::default());
    for part in &missing.parts {
        sql.push_str(&format!("; {}", partitions::statement(part)));
    }
    sql
}

pub(super) fn in_schema(name: &Name) -> String {
    match name.schema.as_str() {
        "public" => String::new(),
        schema => format!("create schema if not exists {}; ", quoted(schema)),
    }
}

pub(super) fn partition_by(key: Option<&str>) -> String {
    key.map_or_else(String::new, |key| format!(" partition by {key}"))
}

/// Unless it is there.
pub(super) async fn make_schema(subscriber: &Client, schema: &str) -> Result<()> {
    subscriber
        .batch_execute(&format!(
            "do $$ begin if pg_catalog.to_regnamespace({0}) is null then create schema {1}; end if; end $$",
            literal(&quoted(schema)),
            quoted(schema)
        ))
        .await
        .doing(|| format!("make schema {} on the subscriber", quoted(schema)))
}

/// Makes those of its constraints between rows that may need more than the table's columns: an extension, say. The table may be copied in
/// chunks, so they are to be there from the start (displaced.rs). What cannot be made is tried again after the copy, and told of then.
async fn constrain(subscriber: &Client, table: &Table) -> Result<()> {
    let is_to_come = |index: &&Index| index.constrains && !is_in_ddl(index);
    for index in table.indexes.iter().filter(is_to_come) {
        let sql = sql(&table.name, index);
        let made = subscriber
            .batch_execute(&format!(
                "savepoint one_constraint; {sql}; release savepoint one_constraint"
            ))
            .await
            .doing(|| format!("make index {} on the subscriber", quoted(&index.name)));
        if let Err(error) = made {
            if error.is_transient() {
                return Err(error);
            }
            subscriber
                .batch_execute("rollback to savepoint one_constraint")
                .await
                .doing(|| format!("go on without index {}", quoted(&index.name)))?;
        }
    }
    Ok(())
}

/// Whether it is made in the same statement as its table.
fn is_in_ddl(index: &Index) -> bool {
    match index.constraint {
        Some(_) => index.is_key,
        None => displaced::is_of_columns(index),
    }
}

/// What makes the index for the table of that name.
fn sql(table: &Name, index: &Index) -> String {
    match &index.constraint {
        Some((name, definition)) => {
            format!(
                "alter table {} add constraint {} {definition}",
                table.quoted(),
                quoted(name)
            )
        }
        None => format!(
            "create {}index {} on {} {}",
            if index.is_unique { "unique " } else { "" },
            quoted(&index.name),
            table.quoted(),
            index.definition
        ),
    }
}

/// The statements for a table like this one.
fn ddl(table: &Table, extras: &Extras) -> String {
    let mut lines = Vec::new();
    let (mut before, mut after) = (String::new(), String::new());
    for column in &table.columns {
        let sequence = extras.sequences.get(&(table.oid, column.name.clone()));
        let sequence = sequence.map(|sequence| (sequence.name_beside(&table.name).quoted(), sequence));
        let identity = sequence.as_ref().map_or_else(String::new, |(name, sequence)| {
            format!(" (sequence name {name} {})", sequence.options)
        });
        let mut line = format!("{} {}", quoted(&column.name), column.type_name);
        if let Some(collation) = &column.collation {
            line.push_str(&format!(" collate {collation}"));
        }
        match (column.identity.as_str(), &column.expression) {
            ("a", _) => line.push_str(&format!(" generated always as identity{identity}")),
            ("d", _) => line.push_str(&format!(" generated by default as identity{identity}")),
            (_, Some(expression)) if column.generated => {
                let kind = if column.is_virtual { "virtual" } else { "stored" };
                line.push_str(&format!(" generated always as ({expression}) {kind}"))
            }
            (_, Some(expression)) if expression.contains("nextval(") && sequence.is_some() => {
                let Some((name, sequence)) = &sequence else { continue };
                let Definition {
                    type_name,
                    options,
                    is_owned,
                    ..
                } = sequence;
                // One that belongs to no column may have come with another table.
                let unless = if *is_owned { "" } else { "if not exists " };
                before.push_str(&format!("create sequence {unless}{name} as {type_name} {options}; "));
                line.push_str(&format!(" default pg_catalog.nextval({})", literal(name)));
                if *is_owned {
                    let column = format!("{}.{}", table.name.quoted(), quoted(&column.name));
                    after.push_str(&format!("; alter sequence {name} owned by {column}"));
                }
            }
            (_, Some(expression)) if column.portable => line.push_str(&format!(" default {expression}")),
            _ => {}
        }
        if column.not_null && column.identity.is_empty() {
            line.push_str(" not null");
        }
        lines.push(line);
    }
    for index in &table.indexes {
        if let Some((name, definition)) = &index.constraint
            && is_in_ddl(index)
        {
            lines.push(format!("constraint {} {definition}", quoted(name)));
        }
    }
    // Nor later than a constraint's: the table may be copied in chunks, see displaced.rs. (Not there after all if something else has its name.)
    let is_to_come = |index: &&Index| index.constraint.is_none() && is_in_ddl(index);
    for index in table.indexes.iter().filter(is_to_come) {
        after.push_str(&format!(
            "; create unique index if not exists {} on {} {}",
            quoted(&index.name),
            table.name.quoted(),
            index.definition
        ));
    }
    for (name, definition) in extras.checks.get(&table.oid).into_iter().flatten() {
        lines.push(format!("constraint {} {definition}", quoted(name)));
    }
    let by = partition_by(table.part_key.as_deref());
    let name = table.name.quoted();
    format!("{before}create table {name} ({}){by}{after}", lines.join(", "))
}

/// An index for the subscriber.
pub(super) struct Later {
    pub(super) name: Name,
    pub(super) constrains: bool,
    pub(super) sql: String,
}

/// The indexes of the provider's table that did not come with it, and that the subscriber's lacks.
pub(super) fn later_indexes<'a>(provider: &'a Table, subscriber: &'a Table) -> impl Iterator<Item = Later> + 'a {
    let table = &subscriber.name;
    provider
        .indexes
        .iter()
        .filter(|index| index.constraint.is_none() || !index.is_unique)
        .filter(|index| !subscriber.indexes.iter().any(|there| there.name == index.name))
        .map(|index| Later {
            name: Name::new(table.schema.as_str(), index.name.as_str()),
            constrains: index.constrains,
            sql: sql(table, index),
        })
}
