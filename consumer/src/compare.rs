//! `consumer compare`: whether the rows of both ends are the same, while both are in use; and `consumer repair`, which
//! puts right what is not (fix.rs).
//!
//! Compare writes nothing and locks nobody out, and replay goes on. Parts of a table are compared by count and checksum,
//! computed inside each server, several at once (walk.rs); those that differ are cut smaller, down to rows (piece.rs).
//!
//! Why a row that is reported does differ, and none that does is missed. Let p be the tick that the subscriber's snapshot
//! shows, and S its rows; let Q be a snapshot of the provider that was taken after it, and P its rows. Position and rows
//! commit together, so S is the provider at tick p, plus whatever damage there is. The tick was there before Q was taken,
//! so Q sees all that the tick sees. Between the two lie the events whose transaction Q sees and the tick does not; a row
//! and its event commit together, so the transaction that reads P sees exactly these (ends.rs). Then
//! - a row without such an event is the same in P as it was at p. If it is not the same in S, it differs for good: no
//!   event that would change that is on its way. It is reported; and of the events none can be missed: while the tick is
//!   there, rotation has not taken any after it.
//! - of a row with such events the first tells whether there was a row at p: one that makes the row says no, any other
//!   yes. If it is not so in S, replay cannot get past that event: it is reported. Else nothing can be said, and the row is
//!   looked up again whenever the subscriber has moved on, until --wait is over. What is left then is reported as
//!   unsettled, which is neither.
//! - where P and S have the same rows, nothing is left to find there, events or not: each event carries the whole row,
//!   so rows that it will touch end as P has them.
//!
//! Each comparison has its own pair of snapshots and needs no other: a row is in exactly one of the parts that a part is
//! cut into, as its key does not change, and where the ends do not sort keys alike it is in at least one. A table that
//! was just copied is ahead of the tick, at the copy's snapshot, which then takes the tick's place. One in copy, one
//! that is behind with the events kept meanwhile, or a broken one is not what the provider had at any moment; that is an
//! error and no difference.

mod ends;
mod fix;
mod piece;
mod report;
mod script;
mod shape;
mod spelling;
mod walk;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cascade;
use crate::cli::{CompareArgs, RepairArgs};
use crate::config::conninfo;
use crate::connect::{End, exists};
use crate::conninfo::ConnInfo;
use crate::error::{Doing, Error, Result};
use crate::progress::Progress;
use crate::replay::pattern::Pattern;
use crate::replay::position::{CASCADE, Who};
use crate::replay::table::{self, Name};
use crate::shutdown::Shutdown;
use crate::status::print;
use crate::tail::absent_extension;
use ends::Ends;
use report::{Mended, Outcome, Report, TableReport};
use script::Script;
use shape::{Common, Filter, Part, Shape};
use walk::{Table, Walk};

/// About so many rows are summed up at once.
const ROWS_PER_PART: u64 = 20_000;

/// No table is cut into more parts at first.
const MOST_PARTS: u64 = 10_000;

/// A guess where the planner has none.
const BYTES_PER_ROW: u64 = 100;

const PAGE_BYTES: u64 = 8192;

/// What is compared, and how.
struct Scope {
    provider: ConnInfo,
    subscriber: ConnInfo,
    who: Who,
    /// Who the provider is, as in the position.
    identity: String,
    queue_id: i32,
    /// The event table, for SQL.
    events: String,
    /// Events are in UTF-8.
    utf8: bool,
    jobs: usize,
    wait: Duration,
    /// How many differences of a table are named.
    rows: usize,
    mend: Mend,
}

/// What is done about differences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mend {
    No,
    Apply,
    Write,
}

/// Brings the subscriber's rows to what the provider has, or writes down how; says by the exit code whether that is all.
pub(crate) async fn repair(args: RepairArgs, shutdown: Shutdown, progress: Progress) -> Result<ExitCode> {
    let script = args.fix.output.as_deref().map(Script::open).transpose()?;
    let mend = if script.is_some() { Mend::Write } else { Mend::Apply };
    work(args.compare, mend, script, shutdown, progress).await
}

/// Compares, prints, and says by the exit code whether all is equal.
pub(crate) async fn run(args: CompareArgs, shutdown: Shutdown, progress: Progress) -> Result<ExitCode> {
    work(args, Mend::No, None, shutdown, progress).await
}

async fn work(
    args: CompareArgs,
    mend: Mend,
    mut script: Option<Script>,
    shutdown: Shutdown,
    progress: Progress,
) -> Result<ExitCode> {
    let started = Instant::now();
    let patterns = args
        .table
        .iter()
        .map(|text| Pattern::parse(text))
        .collect::<Result<Vec<_>>>()?;
    let settings = args.ends.settings(args.queue, args.consumer)?;
    let mut scope = Scope {
        provider: conninfo("provider", settings.provider.as_deref())?,
        subscriber: conninfo("subscriber", settings.subscriber.as_deref())?,
        who: Who {
            consumer: settings.consumer.unwrap_or_default(),
            queue: settings.queue.unwrap_or_default(),
        },
        identity: String::new(),
        queue_id: 0,
        events: String::new(),
        utf8: true,
        jobs: usize::from(args.jobs),
        wait: Duration::from_secs(args.wait),
        rows: args.rows,
        mend,
    };
    let first = tokio::select! {
        // Only a connection in the making is dropped, with its socket.
        ends = Ends::open(&scope) => ends?,
        () = shutdown.wait() => return Err(Error::failure("stopped before anything was compared")),
    };
    let common = find(&first, &mut scope).await?;
    let pairs = tables(&first, &scope, &patterns).await?;
    let mut failures = Vec::new();
    let scope = Arc::new(scope);
    let mut walk = Walk::new(Arc::clone(&scope), first, &shutdown, &progress);
    let mut parts = Vec::new();
    let wanted: Vec<Name> = pairs.iter().map(|(theirs, ..)| theirs.clone()).collect();
    let at_provider = table::inspect(&walk.first()?.provider, End::Provider, &wanted).await?;
    let wanted: Vec<Name> = pairs.iter().map(|(_, ours, _)| ours.clone()).collect();
    let at_subscriber = table::inspect(&walk.first()?.subscriber, End::Subscriber, &wanted).await?;
    for (theirs, ours, filter) in pairs {
        let mut report = TableReport::new(theirs.to_string(), ours.to_string());
        let absent = |name: &Name, end| Error::failure(format!("table {name} does not exist on the {end}"));
        let (there, here) = match (at_provider.get(&theirs), at_subscriber.get(&ours)) {
            (None, _) => {
                report.failed(&absent(&theirs, End::Provider));
                failures.push(report);
                continue;
            }
            (_, None) => {
                report.failed(&absent(&ours, End::Subscriber));
                failures.push(report);
                continue;
            }
            (Some(there), Some(here)) => (there, here),
        };
        let shape = Shape::new(&Arc::new(there.clone()), here, &filter, common);
        report.leave_out(&shape);
        report.repair = (mend != Mend::No).then(Mended::default);
        match cut(walk.first()?, &shape).await {
            Ok(cut) => {
                progress.copy_started(&report.table, there.rows, Some(there.bytes));
                parts.push(cut);
                walk.tables.push(Table::new(shape, report));
            }
            Err(error) if walk.first()?.closed() => return Err(error),
            Err(error) => {
                report.failed(&error);
                failures.push(report);
            }
        }
    }
    if let Some(script) = &mut script {
        script.begin(&scope)?;
    }
    walk.script = script;
    walk.open().await?;
    walk.compare(parts).await?;
    let to_stdout = walk.script.as_ref().is_some_and(Script::is_stdout);
    if let Some(script) = walk.script.take() {
        let statements = script.end()?;
        tracing::info!(statements, "the repair is written");
    }
    let mut tables: Vec<TableReport> = walk.tables.into_iter().map(|table| table.report).collect();
    tables.append(&mut failures);
    tables.sort_by(|one, other| one.table.cmp(&other.table));
    tables.iter_mut().for_each(|table| table.conclude(mend == Mend::Apply));
    let report = Report {
        equal: tables.iter().all(|table| table.result == Outcome::Equal),
        applied: mend == Mend::Apply,
        queue: scope.who.queue.clone(),
        consumer: scope.who.consumer.clone(),
        seconds: (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0,
        tables,
    };
    progress.finish();
    let text = if args.json {
        serde_json::to_string(&report).map_err(|error| Error::failure(format!("could not write JSON: {error}")))? + "\n"
    } else {
        report::text(&report)
    };
    if to_stdout {
        // stdout has the script.
        crate::progress::aside(|| eprint!("{text}"));
    } else {
        print(&text)?;
    }
    let done = |table: &TableReport| match table.result {
        Outcome::Equal | Outcome::Repaired => true,
        Outcome::Different => mend == Mend::Write,
        Outcome::Unsettled | Outcome::Failed => false,
    };
    Ok(if report.tables.iter().all(done) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Completes the scope: which consumer, and who its provider is.
async fn find(ends: &Ends, scope: &mut Scope) -> Result<Common> {
    let reading = || "read the positions on the subscriber".to_owned();
    if !exists(&ends.subscriber, "pgcascade_replay.position").await? {
        return Err(Error::failure("nothing is replayed into the subscriber").hint(
            "Is --subscriber the right database? The role must be allowed to use schema pgcascade_replay there.",
        ));
    }
    let given = |name: &String| (!name.is_empty()).then(|| name.clone());
    let rows = ends
        .subscriber
        .query(
            include_str!("status/positions.sql"),
            &[&given(&scope.who.queue), &given(&scope.who.consumer)],
        )
        .await
        .doing(reading)?;
    let row = match &rows[..] {
        [row] => row,
        [] => {
            return Err(Error::failure("the subscriber has no such consumer")
                .hint("`consumer status` lists those that it has."));
        }
        rows => {
            let names: Vec<String> = rows
                .iter()
                .map(|row| format!("--queue {} --consumer {}", row.get::<_, &str>(0), row.get::<_, &str>(1)))
                .collect();
            return Err(Error::usage("the subscriber has several consumers")
                .hint(format!("Give one of: {}.", names.join("; "))));
        }
    };
    scope.who = Who {
        queue: row.get(0),
        consumer: row.get(1),
    };
    scope.identity = row.get("provider_identity");
    let queue = ends
        .provider
        .query_opt(include_str!("compare/queue.sql"), &[&scope.who.queue])
        .await
        .doing(|| format!("look up queue \"{}\" on the provider", scope.who.queue))
        .map_err(absent_extension)?;
    let row = queue
        .filter(|row| scope.identity == CASCADE || row.get::<_, &str>("identity") == scope.identity)
        .ok_or_else(|| {
            Error::failure(format!(
                "consumer \"{}\" replays queue \"{}\" of another database than this provider (identity {})",
                scope.who.consumer, scope.who.queue, scope.identity
            ))
            .hint("Correct --provider.")
        })?;
    if scope.identity == CASCADE {
        cascade::check_same(&ends.provider, &ends.subscriber, &scope.who.queue).await?;
    }
    scope.queue_id = row.get("queue_id");
    scope.events = row.get("queue_data_pfx");
    let (theirs, ours) = ends
        .both(include_str!("compare/texts.sql"), "find out how texts are stored")
        .await?;
    let encoding = |row: &tokio_postgres::Row| row.get::<_, String>("encoding");
    scope.utf8 = matches!(encoding(&theirs).as_str(), "UTF8" | "SQL_ASCII");
    Ok(Common {
        collation: theirs.get::<_, String>("collation") == ours.get::<_, String>("collation"),
        hash: encoding(&theirs) == encoding(&ours)
            && theirs.get::<_, Vec<i64>>("numbers") == ours.get::<_, Vec<i64>>("numbers"),
    })
}

/// The names of the tables that are to be compared, on both ends.
async fn tables(ends: &Ends, scope: &Scope, patterns: &[Pattern]) -> Result<Vec<(Name, Name, Filter)>> {
    let rows = ends
        .subscriber
        .query(
            include_str!("compare/tables.sql"),
            &[&scope.who.queue, &scope.who.consumer],
        )
        .await
        .doing(|| "read the states of the tables on the subscriber".to_owned())?;
    let all: Vec<(Name, Name, Filter)> = rows
        .iter()
        .map(|row| {
            let name = |at| Name::new(row.get::<_, &str>(at), row.get::<_, &str>(at + 1));
            let filter = Filter {
                rows: row.get("row_filter"),
                only: row.get("only_columns"),
                except: row.get("except_columns"),
            };
            (name(0), name(2), filter)
        })
        .collect();
    for pattern in patterns {
        if !all.iter().any(|(name, ..)| pattern.matches(name)) {
            return Err(Error::usage(format!("no table that is replayed matches \"{pattern}\""))
                .hint("`consumer status` lists them. A pattern without a schema means schema public."));
        }
    }
    let wanted =
        |(name, ..): &(Name, Name, Filter)| patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(name));
    Ok(all.into_iter().filter(wanted).collect())
}

/// The parts that a table is compared in at first: only about equal, and whatever they are, they cover it.
async fn cut(ends: &Ends, shape: &Shape) -> Result<Vec<Part>> {
    let table = &shape.provider_table;
    let rows = table.rows.unwrap_or(table.bytes / BYTES_PER_ROW);
    let wanted = (rows / ROWS_PER_PART).min(MOST_PARTS);
    let whole = Part::Range(None, None);
    if !shape.ordered || wanted < 2 || table.bytes == 0 {
        return Ok(vec![whole]);
    }
    let pages = (table.bytes / PAGE_BYTES).max(1);
    let percent = (100 * wanted * 4).div_ceil(pages).clamp(1, 100);
    let what = || format!("find out how to cut table {} of the provider", table.name);
    let mut sample = Vec::new();
    for row in ends
        .provider
        .query(&shape.provider.sample(percent), &[])
        .await
        .doing(what)?
    {
        sample.push(row.try_get::<_, Vec<String>>(0).doing(what)?);
    }
    let pieces = usize::try_from(wanted).unwrap_or(2).min(sample.len());
    let borders = (1..pieces).map(|i| sample[i * sample.len() / pieces].clone()).collect();
    Ok(piece::ranges(&whole, borders))
}
