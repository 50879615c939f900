//! `consumer repair`: what is to be done to the subscriber's rows, and doing it.
//!
//! Rows that differ are looked at once more in the transaction that mends them. It locks the position first, which replay
//! does as well in each of its transactions: so nothing comes by replay from then on, and the subscriber stays at its tick.
//! A row without an event between this tick and the provider's snapshot gets the values that the provider has, which are those
//! that it had at the tick; so what replay applies next finds what it expects. A row with one is left for later. Locks are
//! taken in replay's order, position before rows.
//!
//! Written to a file instead, each statement is bound to the row as it was seen, by its checksum, so that it does nothing to a
//! row that was changed meanwhile; an insert does nothing if the row is there.

use std::collections::HashMap;

use tokio_postgres::{Client, SimpleQueryMessage};

use super::Mend;
use super::Scope;
use super::ends::Ends;
use super::piece::{self, Found};
use super::report::{Difference, Kind};
use super::shape::{Part, Shape};
use crate::error::{Doing, Error, Result};
use crate::replay::table::{literal, quoted};

/// A statement for the subscriber, and how many rows it must change.
struct Statement {
    sql: String,
    rows: u64,
}

/// Mends these rows, or writes down how to. Leaves the sessions inside their transactions.
pub(super) async fn fix(
    ends: &Ends,
    scope: &Scope,
    shape: &Shape,
    suspects: &[Vec<String>],
    again: bool,
) -> Result<Found> {
    let apply = matches!(scope.mend, Mend::Apply);
    let moment = if apply {
        ends.begin_mending(scope, shape).await?
    } else {
        ends.begin(scope, shape, true).await?
    };
    let mut found = piece::look(ends, scope, shape, &moment, suspects, &Part::Range(None, None)).await?;
    found.tick = moment.tick;
    let differences = &found.differences;
    if differences.is_empty() {
        return Ok(found);
    }
    let values = provider_values(&ends.provider, shape, differences).await?;
    let statements = statements(shape, differences, &values, apply, again)?;
    if apply {
        for statement in &statements {
            run(&ends.subscriber, shape, statement).await?;
        }
        ends.commit(shape).await?;
    } else {
        found.script = statements.into_iter().map(|statement| statement.sql).collect();
    }
    for difference in differences {
        match difference.kind {
            Kind::Changed => found.mended.updated += 1,
            Kind::Missing => found.mended.inserted += difference.copies,
            Kind::Extra => found.mended.deleted += difference.copies,
        }
    }
    Ok(found)
}

async fn run(subscriber: &Client, shape: &Shape, statement: &Statement) -> Result<()> {
    let name = &shape.subscriber.name;
    let outcome = subscriber.simple_query(&statement.sql).await;
    let messages = outcome
        .doing(|| format!("repair table {name} on the subscriber"))
        .map_err(|error| match error.sqlstate().map(|state| state.code()) {
            // Another row that is to be repaired may hold the value.
            Some("23505" | "23P01") => error.transient(),
            _ => error,
        })?;
    let rows = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::CommandComplete(rows) => Some(*rows),
        _ => None,
    });
    if rows == Some(statement.rows) {
        return Ok(());
    }
    Err(Error::failure(format!(
        "a row of table {name} on the subscriber was changed by somebody else while it was repaired"
    ))
    .transient())
}

type Values = HashMap<Vec<String>, Vec<Option<String>>>;

/// The compared columns of the provider's rows, as text.
async fn provider_values(provider: &Client, shape: &Shape, differences: &[Difference]) -> Result<Values> {
    let wanted: Vec<Vec<String>> = differences
        .iter()
        .filter(|difference| difference.kind != Kind::Extra)
        .map(|difference| difference.identity.clone())
        .collect();
    let mut values = HashMap::new();
    if wanted.is_empty() {
        return Ok(values);
    }
    // The simple protocol: every value as its type's output function writes it.
    let messages = provider
        .simple_query(&shape.provider.values(&Part::Rows(wanted)))
        .await
        .doing(|| format!("read table {} of the provider", shape.provider.name))?;
    let identity_columns = shape.key.len().max(1);
    for message in messages {
        let SimpleQueryMessage::Row(row) = message else {
            continue;
        };
        let text = |at: usize| row.get(at).map(str::to_owned);
        let identity = (0..identity_columns).map(|at| text(at).unwrap_or_default()).collect();
        let columns = (identity_columns..row.len()).map(text).collect();
        values.insert(shape.identity(identity), columns);
    }
    Ok(values)
}

/// Deletes first, then updates, then inserts.
fn statements(
    shape: &Shape,
    differences: &[Difference],
    values: &Values,
    apply: bool,
    again: bool,
) -> Result<Vec<Statement>> {
    let side = &shape.subscriber;
    let (mut deletes, mut updates, mut inserts) = (Vec::new(), Vec::new(), Vec::new());
    let quoted_columns: Vec<String> = shape.columns.iter().map(|name| quoted(name)).collect();
    for difference in differences {
        let identity = &difference.identity;
        let row = Part::Rows(vec![identity.clone()]);
        let guard = |sql: String| match difference.subscriber_number {
            Some(number) if !apply => format!("{sql} and {}", side.unchanged(number)),
            _ => sql,
        };
        let delete = || Statement {
            sql: guard(side.delete(&row)),
            rows: difference.subscriber_rows,
        };
        if difference.kind == Kind::Extra {
            deletes.push(if shape.key.is_empty() {
                Statement {
                    sql: side.delete_copies(&row, difference.subscriber_rows - difference.copies),
                    rows: difference.copies,
                }
            } else {
                delete()
            });
            continue;
        }
        let values = values.get(identity).ok_or_else(|| {
            Error::failure(format!(
                "a row of table {} on the provider came and went",
                shape.provider.name
            ))
            .transient()
        })?;
        let value = |at: usize| match values.get(at) {
            Some(Some(text)) => literal(text),
            _ => "null".to_owned(),
        };
        // Not VALUES, so that it can be bound to the row's absence.
        let insert = || {
            let values: Vec<String> = (0..shape.columns.len()).map(value).collect();
            let wanted = if shape.key.is_empty() {
                difference.subscriber_rows + difference.copies
            } else {
                1
            };
            Statement {
                sql: format!(
                    "insert into {} ({}) overriding system value select {} where {}",
                    side.name.quoted(),
                    quoted_columns.join(", "),
                    values.join(", "),
                    side.fewer_than(&row, wanted)
                ),
                rows: 1,
            }
        };
        if difference.kind == Kind::Missing {
            inserts.extend((0..difference.copies).map(|_| insert()));
            continue;
        }
        let changed: Vec<usize> = (0..shape.columns.len())
            .filter(|&at| difference.columns.contains(&shape.columns[at]))
            .collect();
        let cannot_be_set = changed.is_empty()
            || changed
                .iter()
                .any(|&at| shape.not_updatable.contains(&shape.columns[at]));
        // Rows that hold each other's values of a unique column: first all go, then all come.
        let in_the_way = again || (!apply && shape.constrained);
        if cannot_be_set || (in_the_way && !shape.has_own_columns()) {
            deletes.push(delete());
            inserts.push(insert());
            continue;
        }
        let sets: Vec<String> = changed
            .iter()
            .map(|&at| format!("{} = {}", quoted_columns[at], value(at)))
            .collect();
        updates.push(Statement {
            sql: guard(side.update(&sets.join(", "), &row)),
            rows: 1,
        });
    }
    deletes.append(&mut updates);
    deletes.append(&mut inserts);
    Ok(deletes)
}
