//! `consumer tail`: the events of a queue as JSON lines.
//!
//! It reads the queue between two ticks at a time, with the SELECT that the server gives for that
//! (`pgcascade.tick_event_sql`), beside every consumer: unless told to it registers none and writes nothing, so nothing
//! waits for it either, and rotation may remove what it has not read. That is noticed: every window is read in a
//! transaction that first locks the event tables and then looks whether the window's first tick is still there. Rotation
//! forgets ticks in the transaction that empties a table, and cannot empty one that is locked; so what is printed is
//! complete, or the command stops and says so. With --consumer rotation waits (consumer.rs).
//!
//! Where it begins: after the tick or the event of --from; without it, like tail(1), it prints the last N events (10
//! unless -n says otherwise) and then, with --follow, what comes after them. With --from, -n is where it stops.
//!
//! A lost connection: all state is the [`Place`] of the last line, here and in every line as its cursor. Events come in
//! an order that never changes, by tick and by event id in it, so --follow connects again and goes on after that line,
//! as does a new process with --from CURSOR: no event twice, none missing.

mod columns;
mod consumer;
mod debezium;
mod event;
mod line;
mod ticks;
mod value;

use std::collections::VecDeque;
use std::io::{self, BufWriter, ErrorKind, StdoutLock, Write};
use std::ops::ControlFlow;
use std::pin::pin;
use std::time::Duration;

use futures_util::TryStreamExt;
use serde_json::{Map, Value};
use tokio_postgres::error::SqlState;

use crate::backoff::Backoff;
use crate::cli::{self, TailArgs, TailFormat};
use crate::config::{ReplaySettings, conninfo};
use crate::connect::{End, Session, connect};
use crate::conninfo::ConnInfo;
use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;
use crate::replay::{Name, Pattern};
use crate::shutdown::Shutdown;
use columns::{Columns, Kinds};
use consumer::Registered;
use ticks::Place;

/// How many events without --from and -n.
const LAST_EVENTS: u64 = 10;

/// A look at the queue when no notification came, for a ticker that sends none.
const POLL: Duration = Duration::from_secs(1);

/// The longest pause between two attempts to connect again.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// What is to be printed.
struct Wanted {
    args: TailArgs,
    provider: ConnInfo,
    patterns: Vec<Pattern>,
}

/// What outlives a lost connection.
struct Printed {
    out: BufWriter<StdoutLock<'static>>,
    /// None: nothing is printed yet.
    place: Option<Place>,
    /// How many more, if there is a limit.
    left: Option<u64>,
    connected: bool,
    /// Something was read since the last failure.
    advanced: bool,
}

/// Prints events until there are enough, or no more, or until told to stop.
pub(crate) async fn run(args: TailArgs, shutdown: Shutdown) -> Result<()> {
    let flags = ReplaySettings {
        provider: args.provider.clone(),
        ..ReplaySettings::default()
    };
    let settings = flags.with_file(args.config.as_deref())?;
    let wanted = Wanted {
        provider: conninfo("provider", settings.provider.as_deref())?,
        patterns: args
            .table
            .iter()
            .map(|text| Pattern::parse(text))
            .collect::<Result<_>>()?,
        args,
    };
    let mut printed = Printed {
        out: BufWriter::with_capacity(64 << 10, io::stdout().lock()),
        place: None,
        left: wanted.args.lines,
        connected: false,
        advanced: false,
    };
    let mut backoff = Backoff::new(RETRY_MAX);
    loop {
        let outcome = print(&wanted, &shutdown, &mut printed).await;
        // Also after a failure: what was read is whole, and whoever reads it need not wait for the next connection.
        let error = match (outcome, printed.flush()) {
            // Whoever read the lines (head, less) has enough.
            (Err(Stop::NobodyReads), _) | (_, Err(Stop::NobodyReads)) | (Ok(()), Ok(())) => return Ok(()),
            (Err(Stop::Overtaken(error) | Stop::Error(error)), _)
            | (_, Err(Stop::Overtaken(error) | Stop::Error(error))) => error,
        };
        if !wanted.args.follow || !printed.connected || !error.is_transient() {
            return Err(error);
        }
        if std::mem::take(&mut printed.advanced) {
            backoff.reset();
        }
        let pause = backoff.next_pause();
        tracing::warn!(
            retry_in_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            "{error}"
        );
        // Both are cancel-safe.
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.wait() => return Ok(()),
        }
    }
}

/// One life of the connection.
async fn print(wanted: &Wanted, shutdown: &Shutdown, printed: &mut Printed) -> Outcome {
    // A connection that is given up while it is being made is gone with its socket.
    let mut tail = tokio::select! {
        tail = Tail::open(wanted, shutdown) => tail?,
        () = shutdown.wait() => return Ok(()),
    };
    let again = std::mem::replace(&mut printed.connected, true);
    if wanted.args.follow {
        // Before the first look at the ticks, so that none falls in between.
        tail.session
            .client
            .batch_execute("listen pgcascade_tick")
            .await
            .doing(|| "listen for ticks".to_owned())?;
    }
    let mut consumer = match &wanted.args.consumer {
        Some(name) => Some(Registered::open(&tail, name, again).await?),
        None => None,
    };
    // Whatever is left is the oldest, as long as nothing is printed.
    let mut anew = printed.place.is_none() && consumer.is_none() && matches!(wanted.args.from, Some(cli::From::Oldest));
    let mut place = match (printed.place, &mut consumer, wanted.args.from) {
        (Some(place), ..) => place,
        (None, Some(consumer), from) => consumer.begin(&tail, from).await?,
        (None, None, Some(from)) => tail.start(from).await?,
        (None, None, None) => {
            let last = tail.print_last(printed.left.unwrap_or(LAST_EVENTS), printed).await?;
            printed.left = None;
            if !wanted.args.follow {
                return Ok(());
            }
            last
        }
    };
    loop {
        printed.place = Some(place);
        if let Some(consumer) = &mut consumer
            && consumer.is_done(place)
        {
            printed.flush()?;
            consumer.finish(&tail).await?;
        }
        if printed.left == Some(0) || shutdown.requested() {
            return Ok(());
        }
        let ready = match &mut consumer {
            Some(consumer) => consumer.has_batch(&tail).await?,
            None => true,
        };
        let next = if ready {
            tail.tick_after(place.tick).await?
        } else {
            None
        };
        let Some(next) = next else {
            if !wanted.args.follow {
                return Ok(());
            }
            printed.flush()?;
            tail.wait().await?;
            continue;
        };
        let owner = consumer.as_ref().map(|consumer| consumer.owner);
        let window = tail.events(place, next, owner, |event, line| printed.line(event, &line));
        match window.await {
            Err(Stop::Overtaken(_)) if anew => {
                tail.leave_window().await?;
                place = tail.start(cli::From::Oldest).await?;
                continue;
            }
            flow => {
                if flow?.is_break() {
                    return Ok(());
                }
            }
        }
        anew = false;
        printed.advanced = true;
        place = Place {
            tick: next,
            event: None,
        };
    }
}

impl Printed {
    /// Prints a line, unless there are enough.
    fn line(&mut self, event: i64, line: &str) -> Outcome<ControlFlow<()>> {
        if self.left == Some(0) {
            return Ok(ControlFlow::Break(()));
        }
        self.left = self.left.map(|left| left - 1);
        written(self.out.write_all(line.as_bytes()))?;
        if let Some(place) = &mut self.place {
            place.event = Some(event);
        }
        Ok(ControlFlow::Continue(()))
    }

    fn flush(&mut self) -> Outcome {
        written(self.out.flush())
    }
}

/// Why printing ends early.
enum Stop {
    NobodyReads,
    /// Rotation removed events before they were read.
    Overtaken(Error),
    Error(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Error(error)
    }
}

type Outcome<T = ()> = std::result::Result<T, Stop>;

fn written(outcome: io::Result<()>) -> Outcome {
    match outcome {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Stop::NobodyReads),
        Err(error) => Err(Stop::Error(Error::failure(format!(
            "could not write to stdout: {error}"
        )))),
    }
}

/// An object as a line.
fn ended(object: Map<String, Value>) -> String {
    let mut line = Value::Object(object).to_string();
    line.push('\n');
    line
}

/// One queue, seen from beside.
struct Tail<'a> {
    session: Session,
    shutdown: &'a Shutdown,
    patterns: &'a [Pattern],
    queue_id: i32,
    source: debezium::Source,
    format: TailFormat,
    /// None where nothing has to be asked: format json in a UTF-8 database.
    columns: Option<Columns>,
    transactions: debezium::Transactions,
}

impl<'a> Tail<'a> {
    async fn open(wanted: &'a Wanted, shutdown: &'a Shutdown) -> Result<Self> {
        let queue = &wanted.args.queue;
        let session = connect(&wanted.provider, End::Provider, "consumer tail").await?;
        let row = session
            .client
            .query_opt(
                "select queue_id, pg_catalog.current_database()::text, pg_catalog.getdatabaseencoding()::text
                   from pgq.queue where queue_name = $1",
                &[queue],
            )
            .await
            .doing(|| format!("look up queue \"{queue}\""))
            .map_err(absent_extension)?
            .ok_or_else(|| {
                Error::failure(format!("queue \"{queue}\" does not exist on the provider"))
                    .hint("select queue_name from pgq.get_queue_info() lists the queues of that database.")
            })?;
        // Whoever put bytes into an SQL_ASCII database knows what they mean; UTF-8 is the best guess.
        let utf8 = matches!(row.get(2), "UTF8" | "SQL_ASCII");
        let columns = if utf8 && wanted.args.format == TailFormat::Json {
            None
        } else {
            let second = connect(&wanted.provider, End::Provider, "consumer tail (columns)").await?;
            Some(Columns::new(second, utf8))
        };
        Ok(Self {
            session,
            shutdown,
            patterns: &wanted.patterns,
            queue_id: row.get(0),
            source: debezium::Source {
                database: row.get(1),
                queue: queue.clone(),
            },
            format: wanted.args.format,
            columns,
            transactions: debezium::Transactions::default(),
        })
    }

    fn queue(&self) -> &str {
        &self.source.queue
    }

    /// Until a tick is announced, or a while is over, or somebody asks to stop. Each of the three may be dropped
    /// without loss.
    async fn wait(&mut self) -> Result<()> {
        tokio::select! {
            notification = self.session.notifications.recv() => {
                if notification.is_none() {
                    return Err(Error::failure("the connection to the provider was lost").transient());
                }
            }
            () = tokio::time::sleep(POLL) => {}
            () = self.shutdown.wait() => {}
        }
        Ok(())
    }

    /// Prints the last `count` events and returns the tick that they end at. The ticks say how many event ids were
    /// drawn, which is at least how many events there are; so it looks back that far first, and further while that was
    /// not enough. Nothing is written before all are there.
    async fn print_last(&mut self, count: u64, printed: &mut Printed) -> Outcome<Place> {
        let mut back = i64::try_from(count).unwrap_or(i64::MAX);
        'look: loop {
            let (oldest, newest) = self.edges().await?;
            if count == 0 {
                return Ok(Place::after(newest.id));
            }
            let start = self
                .tick_before(newest.event_seq.saturating_sub(back))
                .await?
                .unwrap_or(oldest.id);
            let mut lines = VecDeque::new();
            let mut at = start;
            while at < newest.id
                && let Some(next) = self.tick_after(at).await?
            {
                let window = self.events(Place::after(at), next, None, |_, line| {
                    if u64::try_from(lines.len()).is_ok_and(|kept| kept == count) {
                        lines.pop_front();
                    }
                    lines.push_back(line);
                    Ok(ControlFlow::Continue(()))
                });
                let flow = match window.await {
                    // The last ones are among those that are left.
                    Err(Stop::Overtaken(_)) => {
                        self.leave_window().await?;
                        continue 'look;
                    }
                    flow => flow?,
                };
                at = next;
                if flow.is_break() || self.shutdown.requested() {
                    break;
                }
            }
            let enough = u64::try_from(lines.len()).is_ok_and(|kept| kept == count);
            if enough || start <= oldest.id || self.shutdown.requested() {
                for line in lines {
                    written(printed.out.write_all(line.as_bytes()))?;
                }
                return Ok(Place::after(at));
            }
            back = back.saturating_mul(8);
        }
    }

    /// Ends the transaction of a window that was overtaken.
    async fn leave_window(&self) -> Result<()> {
        let client = &self.session.client;
        client
            .batch_execute("rollback")
            .await
            .doing(|| format!("read queue \"{}\"", self.queue()))
    }

    /// Gives every event after `from` up to tick `cur`, the next one, to `each`, as its id and its line.
    async fn events(
        &mut self,
        from: Place,
        cur: i64,
        owner: Option<i32>,
        mut each: impl FnMut(i64, String) -> Outcome<ControlFlow<()>>,
    ) -> Outcome<ControlFlow<()>> {
        let prev = from.tick;
        let what = format!("read queue \"{}\"", self.queue());
        let reading = || what.clone();
        let client = &self.session.client;
        failpoint("before_window");
        client
            .batch_execute("begin isolation level read committed read only")
            .await
            .doing(reading)?;
        let sql: String = client
            .query_one(
                "select pgcascade.tick_event_sql($1, $2, $3, $4)",
                &[&self.queue_id, &prev, &cur, &owner],
            )
            .await
            .doing(reading)
            .map_err(|error| match error.sqlstate() {
                Some(code) if *code == SqlState::UNDEFINED_OBJECT => Stop::Overtaken(self.overtaken(prev)),
                _ => Stop::Error(absent_extension(error)),
            })?
            .get(0);
        // Parsing it locks the event tables until the transaction ends; a tick that is there now stays to its end.
        let events = client
            .prepare(&format!("select {} from ({sql}) e", event::COLUMNS))
            .await
            .doing(reading)?;
        let there = client
            .query_opt(
                "select from pgq.tick where tick_queue = $1 and tick_id = $2",
                &[&self.queue_id, &prev],
            )
            .await
            .doing(reading)?;
        if there.is_none() {
            return Err(Stop::Overtaken(self.overtaken(prev)));
        }
        let mut rows = pin!(client.query_raw(&events, NO_PARAMETERS).await.doing(reading)?);
        self.transactions.forget();
        if let Some(columns) = &mut self.columns {
            columns.forget();
        }
        while let Some(row) = rows.try_next().await.doing(reading)? {
            let event = event::event(&row).doing(reading)?;
            let Some(line) = self.line(&event, from, cur).await? else {
                continue;
            };
            if each(event.id, line)?.is_break() || self.shutdown.requested() {
                // The caller is done with this session: what is left of the answer does not matter.
                return Ok(ControlFlow::Break(()));
            }
        }
        self.session.client.batch_execute("commit").await.doing(reading)?;
        Ok(ControlFlow::Continue(()))
    }

    /// The event as a line, if it is wanted.
    async fn line(&mut self, event: &event::Event<'_>, from: Place, tick: i64) -> Result<Option<String>> {
        let place = match self.format {
            TailFormat::Debezium => Some(self.transactions.count(event)),
            TailFormat::Json => None,
        };
        if from.event.is_some_and(|printed| event.id <= printed) {
            return Ok(None);
        }
        let table = event.table();
        if !self.patterns.is_empty() {
            let Some((schema, table)) = &table else { return Ok(None) };
            let name = Name::new(schema, table);
            if !self.patterns.iter().any(|pattern| pattern.matches(&name)) {
                return Ok(None);
            }
        }
        let change = match (event.raw_change(), &self.columns) {
            (Some(raw), Some(columns)) => columns.decode(raw).await?,
            (Some(raw), None) => raw.utf8(),
            (None, _) => None,
        };
        let Some(place) = place else {
            return Ok(Some(line::line(event, tick, change)));
        };
        let none = Kinds::new();
        let kinds = match (&change, table, &mut self.columns) {
            (Some(_), Some(table), Some(columns)) => columns.kinds(table).await?,
            _ => &none,
        };
        Ok(Some(self.source.line(event, tick, place, change, kinds)))
    }

    fn overtaken(&self, tick: i64) -> Error {
        Error::failure(format!(
            "tick {tick} of queue \"{}\" is gone: rotation removed the events after it before they were read",
            self.queue()
        ))
        .hint("--from oldest prints what is left. A registered consumer holds rotation back: see --consumer.")
    }
}

const NO_PARAMETERS: [&(dyn tokio_postgres::types::ToSql + Sync); 0] = [];

/// A schema, table or function that is not there means that the extension is not, or is an old one.
pub(crate) fn absent_extension(error: Error) -> Error {
    let absent = [
        SqlState::UNDEFINED_TABLE,
        SqlState::INVALID_SCHEMA_NAME,
        SqlState::UNDEFINED_FUNCTION,
    ];
    if error.sqlstate().is_some_and(|code| absent.contains(code)) {
        return error.hint(
            "Connect to the right database, or there, as a superuser: CREATE EXTENSION pgcascade \
             (or ALTER EXTENSION pgcascade UPDATE).",
        );
    }
    error
}
