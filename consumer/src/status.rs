//! `consumer status`: how far the consumers of a subscriber are, and how far that is behind.
//!
//! The subscriber knows the positions and the tables' states, the provider the ticks after them; each is asked on its
//! own, so that what one end knows is shown when the other cannot be reached (exit code 1 then). Nothing is written on
//! either end.
//!
//! Lag in ticks and events is what the provider has beyond the position; events are counted by their sequence, so
//! rolled back ones count. Lag in seconds is the age of the position's tick, and 0 when there is nothing after it: an
//! idle queue is not late.

mod cascade;
mod show;

pub(crate) use show::{print, waiting};

use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use tokio_postgres::Client;

use crate::cli::StatusArgs;
use crate::config::conninfo;
use crate::connect::{End, Session, connect, exists};
use crate::conninfo::ConnInfo;
use crate::error::{Doing, Error, Result};
use crate::shutdown::Shutdown;
use crate::tail::absent_extension;

/// Everything that is shown; the shape of --json.
#[derive(Serialize)]
struct Status {
    provider: Reached,
    subscriber: Reached,
    consumers: Vec<Consumer>,
}

/// One end.
#[derive(Serialize)]
struct Reached {
    address: String,
    reachable: bool,
    error: Option<String>,
    hint: Option<String>,
}

/// One consumer of one queue.
#[derive(Serialize)]
struct Consumer {
    queue: String,
    consumer: String,
    /// What the subscriber says; null when it could not be asked.
    position: Option<Position>,
    /// What the provider says; null when it could not be asked or does not know the consumer.
    registration: Option<Registration>,
    lag: Option<Lag>,
    /// Why this consumer cannot go on, if that can be seen from here.
    error: Option<String>,
    /// Why its last attempt failed; null while it goes well.
    failure: Option<Failure>,
    tables: Vec<Table>,
}

#[derive(Serialize)]
struct Position {
    /// Null until the consumer is registered.
    tick: Option<i64>,
    epoch: i64,
    updated: Option<String>,
    provider_identity: String,
}

#[derive(Serialize)]
struct Failure {
    error: String,
    /// The first failure in a row.
    since: Option<String>,
    attempts: Option<i32>,
    /// Null: replay gave up, and ended.
    next_attempt: Option<String>,
}

#[derive(Serialize)]
struct Registration {
    last_tick: Option<i64>,
    /// The end of the batch that is open.
    open_batch: Option<i64>,
    /// The provider's newest tick.
    newest_tick: Option<i64>,
}

#[derive(Serialize)]
struct Lag {
    ticks: i64,
    events: i64,
    seconds: f64,
}

#[derive(Serialize)]
struct Table {
    table: String,
    subscriber_table: String,
    state: String,
    copied_rows: Option<i64>,
    /// Conflicts that a policy answered, as far as they are still in pgcascade_replay.conflict.
    conflicts: i64,
    updated: Option<String>,
    error: Option<String>,
    /// Why its copy could not go on when it was tried last; null: nothing keeps it waiting.
    waits_for: Option<String>,
    waits_since: Option<String>,
}

/// Which consumers are wanted.
struct Wanted {
    queue: Option<String>,
    consumer: Option<String>,
}

/// Shows the state and says by the exit code whether both ends answered.
pub(crate) async fn run(args: StatusArgs, quiet: bool, shutdown: Shutdown) -> Result<ExitCode> {
    let settings = args.ends.settings(args.queue, args.consumer)?;
    if let (None, Some(subscriber), Some(queue)) = (&settings.provider, &settings.subscriber, &settings.queue) {
        let wanted = cascade::Wanted {
            database: conninfo("subscriber", Some(subscriber))?,
            queue: queue.clone(),
            json: args.json,
            quiet,
            watch: args.watch.map(Duration::from_secs),
            timeout: Duration::from_secs(args.timeout),
            max_lag: args.max_lag.map(Duration::from_secs),
        };
        return cascade::run(wanted, &shutdown).await;
    }
    let provider = conninfo("provider", settings.provider.as_deref())?;
    let subscriber = conninfo("subscriber", settings.subscriber.as_deref())?;
    let wanted = Wanted {
        queue: settings.queue,
        consumer: settings.consumer,
    };
    let looking = look(&provider, &subscriber, &wanted);
    // Only reads are under way, and both connections end with the process: nothing is cut off that anybody waits for.
    let status = tokio::select! {
        status = looking => status,
        () = shutdown.wait() => return Ok(ExitCode::SUCCESS),
    };
    let text = if args.json {
        serde_json::to_string(&status).map_err(|error| Error::failure(format!("could not write JSON: {error}")))? + "\n"
    } else {
        show::text(&status)
    };
    if !quiet {
        print(&text)?;
    }
    let complete = status.provider.error.is_none() && status.subscriber.error.is_none();
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn look(provider: &ConnInfo, subscriber: &ConnInfo, wanted: &Wanted) -> Status {
    let (at_provider, at_subscriber) = tokio::join!(
        connect(provider, End::Provider, "consumer status"),
        connect(subscriber, End::Subscriber, "consumer status")
    );
    let mut consumers = Vec::new();
    let mut subscriber = Reached::new(subscriber, &at_subscriber);
    let mut provider = Reached::new(provider, &at_provider);
    if let Ok(session) = &at_subscriber {
        match positions(&session.client, wanted).await {
            Ok(found) => consumers = found,
            Err(error) => subscriber.failed(&error),
        }
    }
    if let Ok(session) = &at_provider {
        let asked = async {
            if subscriber.error.is_some() {
                consumers = registrations(&session.client, wanted).await?;
            }
            for consumer in &mut consumers {
                compare(&session.client, consumer).await?;
            }
            Ok(())
        };
        if let Err(error) = asked.await {
            provider.failed(&absent_extension(error));
        }
    }
    Status {
        provider,
        subscriber,
        consumers,
    }
}

impl Reached {
    fn new(target: &ConnInfo, session: &Result<Session>) -> Self {
        let mut reached = Self {
            address: target.to_string(),
            reachable: session.is_ok(),
            error: None,
            hint: None,
        };
        if let Err(error) = session {
            reached.failed(error);
        }
        reached
    }

    fn failed(&mut self, error: &Error) {
        self.error = Some(error.to_string());
        self.hint = error.get_hint().map(str::to_owned);
    }
}

/// What the subscriber knows. A subscriber that nothing was ever replayed into knows no consumers, which is no error.
async fn positions(subscriber: &Client, wanted: &Wanted) -> Result<Vec<Consumer>> {
    let reading = || "read the positions on the subscriber".to_owned();
    if !exists(subscriber, "pgcascade_replay.position").await? {
        return Ok(Vec::new());
    }
    let rows = subscriber
        .query(include_str!("status/positions.sql"), &[&wanted.queue, &wanted.consumer])
        .await
        .doing(reading)?;
    let mut consumers = Vec::new();
    for row in rows {
        let mut consumer = Consumer::new(row.get("queue"), row.get("consumer"));
        consumer.position = Some(Position {
            tick: row.get("tick"),
            epoch: row.get("epoch"),
            updated: row.get("updated"),
            provider_identity: row.get("provider_identity"),
        });
        consumer.failure = row.get::<_, Option<String>>("error").map(|error| Failure {
            error,
            since: row.get("failing_since"),
            attempts: row.get("attempts"),
            next_attempt: row.get("next_attempt"),
        });
        let tables = subscriber
            .query(
                include_str!("status/tables.sql"),
                &[&consumer.queue, &consumer.consumer],
            )
            .await
            .doing(|| "read the states of the tables on the subscriber".to_owned())?;
        consumer.tables = tables
            .iter()
            .map(|row| Table {
                table: row.get("provider_table"),
                subscriber_table: row.get("subscriber_table"),
                state: row.get("state"),
                copied_rows: row.get("copied_rows"),
                updated: row.get("updated"),
                error: row.get("error"),
                waits_for: row.get("waits_for"),
                waits_since: row.get("waits_since"),
                conflicts: 0,
            })
            .collect();
        if row.get("has_conflicts") {
            conflicts(subscriber, &mut consumer).await?;
        }
        consumers.push(consumer);
    }
    Ok(consumers)
}

/// Counts the conflicts of each table.
async fn conflicts(subscriber: &Client, consumer: &mut Consumer) -> Result<()> {
    let rows = subscriber
        .query(
            "select pg_catalog.format('%I.%I', provider_schema, provider_table), count(*)
               from pgcascade_replay.conflict where queue = $1 and consumer = $2 group by 1",
            &[&consumer.queue, &consumer.consumer],
        )
        .await
        .doing(|| "count the conflicts on the subscriber".to_owned())?;
    for row in rows {
        let name: &str = row.get(0);
        for table in consumer.tables.iter_mut().filter(|table| table.table == name) {
            table.conflicts = row.get(1);
        }
    }
    Ok(())
}

async fn registrations(provider: &Client, wanted: &Wanted) -> Result<Vec<Consumer>> {
    let rows = provider
        .query(include_str!("status/consumers.sql"), &[&wanted.queue, &wanted.consumer])
        .await
        .doing(|| "read the consumers on the provider".to_owned())?;
    Ok(rows.iter().map(|row| Consumer::new(row.get(0), row.get(1))).collect())
}

/// Adds what the provider knows.
async fn compare(provider: &Client, consumer: &mut Consumer) -> Result<()> {
    let tick = consumer.position.as_ref().and_then(|position| position.tick);
    let row = provider
        .query_opt(
            include_str!("status/provider.sql"),
            &[&consumer.queue, &consumer.consumer, &tick],
        )
        .await
        .doing(|| format!("read queue \"{}\" on the provider", consumer.queue))?;
    let Some(row) = row else {
        consumer.error = Some(format!("the provider has no queue \"{}\"", consumer.queue));
        return Ok(());
    };
    let last_tick: Option<i64> = row.get("last_tick");
    let registration = Registration {
        last_tick,
        open_batch: row.get("next_tick"),
        newest_tick: row.get("newest_tick"),
    };
    consumer.error = consumer.position.as_ref().and_then(|position| {
        let identity: String = row.get("identity");
        let tick = position.tick?;
        if position.provider_identity != identity {
            Some(format!(
                "the position was reached on another provider (identity {})",
                position.provider_identity
            ))
        } else if last_tick.is_none() {
            Some("the consumer is not registered on the provider any more".to_owned())
        } else if !row.get::<_, bool>("tick_is_there") {
            Some(format!("the provider has no tick {tick} any more"))
        } else {
            None
        }
    });
    if consumer.error.is_none()
        && let (Some(events), Some(age)) = (
            row.get::<_, Option<i64>>("lag_events"),
            row.get::<_, Option<f64>>("age"),
        )
    {
        let ticks: i64 = row.get("lag_ticks");
        let seconds = if ticks == 0 && events == 0 {
            0.0
        } else {
            (age * 1000.0).round() / 1000.0
        };
        consumer.lag = Some(Lag { ticks, events, seconds });
    }
    consumer.registration = last_tick.is_some().then_some(registration);
    Ok(())
}

impl Consumer {
    fn new(queue: String, consumer: String) -> Self {
        Self {
            queue,
            consumer,
            position: None,
            registration: None,
            lag: None,
            error: None,
            failure: None,
            tables: Vec::new(),
        }
    }
}
