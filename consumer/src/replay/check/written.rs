//! A hint of changes that were not captured: triggers disabled for a while, a restore tool that works in replica mode.
//!
//! Nothing stores how many events a table ever had, but the server counts the rows of a table that were changed since it was
//! last analyzed. Where the queue still holds the events from before that on, and the table was replayed already, there must
//! be as many events at least. More changes than events mean that some were not captured; a TRUNCATE, which counts as none, is
//! not seen, nor what a crash of the provider made it forget to count. Only comparing the rows tells for certain.

use std::collections::HashMap;
use std::fmt::Display;

use tokio_postgres::Client;
use wire::snapshot::Snapshot;

use super::super::findings::{Findings, Kind, Remedy};
use super::super::position::Who;
use super::super::survey::Survey;
use super::super::table::{Name, Table};
use super::super::table_state::State;
use super::capture::Trigger;
use crate::connect::End;
use crate::error::{Doing, Error, Result};

/// How long counting the events of a long queue may take.
const PATIENCE: &str = "set statement_timeout = '30s'";

/// A table or partition, and what is known of its changes.
struct Written<'a> {
    name: &'a Name,
    changes: i64,
    since: String,
    snapshot: String,
}

/// Compares the changes of every table with its events.
pub(super) async fn written(
    provider: &Client,
    subscriber: &Client,
    who: &Who,
    survey: &Survey,
    triggers: &HashMap<u32, Vec<Trigger>>,
    findings: &mut Findings,
) -> Result<()> {
    let ages = ages(subscriber, who).await?;
    // Only tables all of whose changes make an event.
    let replayed = survey
        .entries
        .iter()
        .filter(|entry| !entry.is_new && entry.state == State::Ok)
        .filter_map(|entry| survey.at_provider.get(&entry.provider))
        .filter(|table| {
            let triggers = triggers.get(&table.oid).map_or(&[][..], Vec::as_slice);
            triggers
                .iter()
                .all(|trigger| !trigger.of_queue || trigger.arguments.is_empty())
        });
    // Where the rows are, and the table that they are replayed with.
    let mut stored: HashMap<u32, (&Name, &Table)> = HashMap::new();
    for table in replayed {
        stored.insert(table.oid, (&table.name, table));
        let parts = survey.partitions.below(End::Provider, table).iter();
        stored.extend(parts.map(|part| (part.oid, (&part.name, table))));
    }
    let oids: Vec<u32> = stored.keys().copied().collect();
    let rows = provider
        .query(include_str!("written.sql"), &[&oids, &who.queue])
        .await
        .doing(|| "read the counters of changes on the provider".to_owned())?;
    let mut events = String::new();
    let mut written = Vec::new();
    for row in &rows {
        let Some((name, table)) = stored.get(&row.get("table")).copied() else {
            continue;
        };
        let analyzed: f64 = row.get("age");
        if ages.get(&table.name).is_some_and(|&age| age > analyzed) {
            events = row.get("events");
            written.push(Written {
                name,
                changes: row.get("changes"),
                since: row.get("analyzed"),
                snapshot: row.get("snapshot"),
            });
        }
    }
    if written.is_empty() {
        return Ok(());
    }
    let counted = match count(provider, &events, &written).await {
        Err(error) if error.sqlstate().is_some_and(|state| state.code() == "57014") => {
            tracing::info!("{error}; changes and events are not compared");
            return Ok(());
        }
        counted => counted?,
    };
    for Written {
        name, changes, since, ..
    } in &written
    {
        let name = *name;
        let events = counted.get(&name.on_the_wire()).copied().unwrap_or(0);
        let object: (End, &dyn Display) = (End::Provider, name);
        if *changes > events {
            findings.add(
                Kind::WrittenUncaptured,
                object,
                format!("{changes} rows of table {name} of the provider were changed since {since}, and it has {events} events"),
                Remedy::from("find out what writes with triggers off; compare the table's rows, or copy it again"),
            );
        }
    }
    Ok(())
}

async fn ages(subscriber: &Client, who: &Who) -> Result<HashMap<Name, f64>> {
    let rows = subscriber
        .query(include_str!("state_ages.sql"), &[&who.consumer, &who.queue])
        .await
        .doing(|| "read the states of the tables on the subscriber".to_owned())?;
    let read = |row: &tokio_postgres::Row| (Name::new(row.get::<_, &str>(0), row.get::<_, &str>(1)), row.get(2));
    Ok(rows.iter().map(read).collect())
}

/// How many events of each table its snapshot does not see, by the table's name as events have it.
async fn count(provider: &Client, events: &str, written: &[Written<'_>]) -> Result<HashMap<Vec<u8>, i64>> {
    let what = || "count the events of the tables on the provider".to_owned();
    let mut oldest = u64::MAX;
    for one in written {
        let snapshot: Snapshot = one.snapshot.parse().map_err(|error| {
            Error::failure(format!(
                "the provider's snapshot \"{}\" cannot be read: {error}",
                one.snapshot
            ))
        })?;
        oldest = oldest.min(snapshot.xmin);
    }
    let names: Vec<String> = written
        .iter()
        .map(|one| String::from_utf8_lossy(&one.name.on_the_wire()).into_owned())
        .collect();
    let snapshots: Vec<&str> = written.iter().map(|one| one.snapshot.as_str()).collect();
    // Those of a pack (sql/pack.sql) count each. The name of the events' table is made by the extension from a number, and held to
    // that by a constraint.
    let query = format!(
        "select w.name, sum(case when e.ev_retry < 0 then -e.ev_retry else 1 end)
           from {events} e
           join unnest($1::text[], $2::text[]) w(name, snapshot) on w.name = e.ev_extra1
          where e.ev_txid >= $3
            and not pg_catalog.pg_visible_in_snapshot(e.ev_txid::text::xid8, w.snapshot::pg_catalog.pg_snapshot)
          group by 1"
    );
    provider.batch_execute(PATIENCE).await.doing(what)?;
    let oldest = i64::try_from(oldest).unwrap_or(i64::MAX);
    let rows = provider
        .query(&query, &[&names, &snapshots, &oldest])
        .await
        .doing(what)?;
    Ok(rows
        .iter()
        .map(|row| (row.get::<_, String>(0).into_bytes(), row.get(1)))
        .collect())
}
