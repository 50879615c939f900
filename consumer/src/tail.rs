//! `consumer tail`: the events of a queue as JSON lines.
//!
//! It reads the queue between two ticks at a time, with the SELECT that the server gives for that
//! (`pgcascade.tick_event_sql`), beside every consumer: it registers none and writes nothing, so nothing waits for it
//! either, and rotation may remove what it has not read. That is noticed: every window is read in a transaction that
//! first locks the event tables and then looks whether the window's first tick is still there. Rotation forgets ticks
//! in the transaction that empties a table, and cannot empty one that is locked; so what is printed is complete, or the
//! command stops and says so.
//!
//! Where it begins: after the tick of --from; without it, like tail(1), it prints the last N events (10 unless -n says
//! otherwise) and then, with --follow, what comes after them. With --from, -n is where it stops.

mod line;
mod ticks;

use std::collections::VecDeque;
use std::io::{self, BufWriter, ErrorKind, StdoutLock, Write};
use std::ops::ControlFlow;
use std::pin::pin;
use std::time::Duration;

use futures_util::TryStreamExt;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

use crate::cli::TailArgs;
use crate::config::{ReplaySettings, conninfo};
use crate::connect::{End, Session, connect};
use crate::error::{Doing, Error, Result};
use crate::shutdown::Shutdown;

/// How many events without --from and -n.
const LAST_EVENTS: u64 = 10;

/// A look at the queue when no notification came, for a ticker that sends none.
const POLL: Duration = Duration::from_secs(1);

/// Prints events until there are enough, or no more, or until told to stop.
pub(crate) async fn run(args: TailArgs, shutdown: Shutdown) -> Result<()> {
    let flags = ReplaySettings {
        provider: args.provider.clone(),
        ..ReplaySettings::default()
    };
    let settings = flags.with_file(args.config.as_deref())?;
    let provider = conninfo("provider", settings.provider.as_deref())?;
    // A connection that is given up while it is being made is gone with its socket.
    let session = tokio::select! {
        session = connect(&provider, End::Provider, "consumer tail") => session?,
        () = shutdown.wait() => return Ok(()),
    };
    let mut tail = Tail::open(session, &args.queue, shutdown).await?;
    let mut out = BufWriter::with_capacity(64 << 10, io::stdout().lock());
    let printed = tail.print(&args, &mut out).await.and_then(|()| flush(&mut out));
    match printed {
        Err(Stop::Error(error)) => Err(error),
        // Whoever read the lines (head, less) has enough.
        Err(Stop::NobodyReads) | Ok(()) => Ok(()),
    }
}

/// Why printing ends early.
enum Stop {
    NobodyReads,
    Error(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Error(error)
    }
}

type Printed<T = ()> = std::result::Result<T, Stop>;

fn flush(out: &mut BufWriter<StdoutLock<'_>>) -> Printed {
    written(out.flush())
}

fn written(outcome: io::Result<()>) -> Printed {
    match outcome {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Stop::NobodyReads),
        Err(error) => Err(Stop::Error(Error::failure(format!(
            "could not write to stdout: {error}"
        )))),
    }
}

/// One queue, seen from beside.
struct Tail {
    session: Session,
    shutdown: Shutdown,
    queue: String,
    queue_id: i32,
}

impl Tail {
    async fn open(session: Session, queue: &str, shutdown: Shutdown) -> Result<Self> {
        let row = session
            .client
            .query_opt("select queue_id from pgq.queue where queue_name = $1", &[&queue])
            .await
            .doing(|| format!("look up queue \"{queue}\""))
            .map_err(absent_extension)?
            .ok_or_else(|| {
                Error::failure(format!("queue \"{queue}\" does not exist on the provider"))
                    .hint("select queue_name from pgq.get_queue_info() lists the queues of that database.")
            })?;
        Ok(Self {
            session,
            shutdown,
            queue: queue.to_owned(),
            queue_id: row.get(0),
        })
    }

    async fn print(&mut self, args: &TailArgs, out: &mut BufWriter<StdoutLock<'_>>) -> Printed {
        if args.follow {
            // Before the first look at the ticks, so that none falls in between.
            self.session
                .client
                .batch_execute("listen pgcascade_tick")
                .await
                .doing(|| "listen for ticks".to_owned())?;
        }
        let (mut at, mut left) = match args.from {
            Some(from) => (self.start(from).await?, args.lines),
            None => (self.print_last(args.lines.unwrap_or(LAST_EVENTS), out).await?, None),
        };
        if args.from.is_none() && !args.follow {
            return Ok(());
        }
        loop {
            while let Some(next) = self.tick_after(at).await? {
                let flow = self
                    .events(at, next, |line| {
                        if left == Some(0) {
                            return Ok(ControlFlow::Break(()));
                        }
                        left = left.map(|left| left - 1);
                        written(out.write_all(line.as_bytes()))?;
                        Ok(ControlFlow::Continue(()))
                    })
                    .await?;
                at = next;
                if flow.is_break() || left == Some(0) || self.shutdown.requested() {
                    return Ok(());
                }
            }
            if !args.follow {
                return Ok(());
            }
            flush(out)?;
            self.wait().await?;
            if self.shutdown.requested() {
                return Ok(());
            }
        }
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
    /// not enough.
    async fn print_last(&mut self, count: u64, out: &mut BufWriter<StdoutLock<'_>>) -> Printed<i64> {
        let (Some(oldest), Some(newest)) = (self.edge("min").await?, self.edge("max").await?) else {
            return Err(Stop::Error(self.no_ticks()));
        };
        let mut back = i64::try_from(count).unwrap_or(i64::MAX);
        if count == 0 {
            return Ok(newest.id);
        }
        loop {
            let start = self
                .tick_before(newest.event_seq.saturating_sub(back))
                .await?
                .unwrap_or(oldest.id);
            let mut lines = VecDeque::new();
            let mut at = start;
            while at < newest.id
                && let Some(next) = self.tick_after(at).await?
            {
                let flow = self
                    .events(at, next, |line| {
                        if u64::try_from(lines.len()).is_ok_and(|kept| kept == count) {
                            lines.pop_front();
                        }
                        lines.push_back(line);
                        Ok(ControlFlow::Continue(()))
                    })
                    .await?;
                at = next;
                if flow.is_break() || self.shutdown.requested() {
                    break;
                }
            }
            let enough = u64::try_from(lines.len()).is_ok_and(|kept| kept == count);
            if enough || start <= oldest.id || self.shutdown.requested() {
                for line in lines {
                    written(out.write_all(line.as_bytes()))?;
                }
                return Ok(at);
            }
            back = back.saturating_mul(8);
        }
    }

    /// Gives every event after `prev` up to `cur` to `each`, as a line.
    async fn events(
        &self,
        prev: i64,
        cur: i64,
        mut each: impl FnMut(String) -> Printed<ControlFlow<()>>,
    ) -> Printed<ControlFlow<()>> {
        let client = &self.session.client;
        let reading = || self.reading();
        client
            .batch_execute("begin isolation level read committed read only")
            .await
            .doing(reading)?;
        let sql: String = client
            .query_one(
                "select pgcascade.tick_event_sql($1, $2, $3, null)",
                &[&self.queue_id, &prev, &cur],
            )
            .await
            .doing(reading)
            .map_err(|error| match error.sqlstate() {
                Some(code) if *code == SqlState::UNDEFINED_OBJECT => self.overtaken(prev),
                _ => absent_extension(error),
            })?
            .get(0);
        // Parsing it locks the event tables until the transaction ends; a tick that is there now stays to its end.
        let events = client
            .prepare(&format!(
                "select e.ev_id, pg_catalog.to_json(e.ev_time) #>> '{{}}', e.ev_txid, e.ev_type, e.ev_data,
                        e.ev_extra1, e.ev_extra2, e.ev_extra3, e.ev_extra4 from ({sql}) e"
            ))
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
            return Err(Stop::Error(self.overtaken(prev)));
        }
        let mut rows = pin!(client.query_raw(&events, NO_PARAMETERS).await.doing(reading)?);
        while let Some(row) = rows.try_next().await.doing(reading)? {
            if each(line::line(&event(&row).doing(reading)?, cur))?.is_break() || self.shutdown.requested() {
                // The caller is done with this session: what is left of the answer does not matter.
                return Ok(ControlFlow::Break(()));
            }
        }
        client.batch_execute("commit").await.doing(reading)?;
        Ok(ControlFlow::Continue(()))
    }

    fn reading(&self) -> String {
        format!("read queue \"{}\"", self.queue)
    }

    fn overtaken(&self, tick: i64) -> Error {
        Error::failure(format!(
            "tick {tick} of queue \"{}\" is gone: rotation removed the events after it before they were read",
            self.queue
        ))
        .hint("--from oldest prints what is left. A registered consumer holds rotation back; tail does not.")
    }
}

const NO_PARAMETERS: [&(dyn tokio_postgres::types::ToSql + Sync); 0] = [];

fn event(row: &Row) -> std::result::Result<line::Event<'_>, tokio_postgres::Error> {
    Ok(line::Event {
        id: row.try_get(0)?,
        time: row.try_get(1)?,
        txid: row.try_get(2)?,
        kind: row.try_get(3)?,
        data: row.try_get(4)?,
        extra: [row.try_get(5)?, row.try_get(6)?, row.try_get(7)?, row.try_get(8)?],
    })
}

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
