//! How far the work is, for a person who looks on and for a log.
//!
//! On a terminal: one bar for each table that is being copied (rows, bytes, rate, time left) and one line for replay
//! (lag in ticks, events and seconds, events per second). Otherwise: log lines, at most one every few seconds however
//! many batches there are, so that a log of a busy day stays readable. At the end one line sums up. Called by the
//! replay engine from any thread; a call costs a lock and no more, and never fails: progress that cannot be shown must
//! not stop the work.

mod bars;
mod tally;

use std::io::{self, IsTerminal};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::cli::{LogArgs, LogFormat};
use bars::Bars;
pub(crate) use bars::{aside, clear};
use tally::{Copying, Tally};

/// What one batch was, and how far behind its end was when it was applied.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct BatchReport {
    /// The tick that the subscriber has reached.
    pub(crate) tick: i64,
    /// Events in the batch.
    pub(crate) events: u64,
    /// Bytes of the events' payload.
    pub(crate) bytes: u64,
    /// Ticks on the provider after this one.
    pub(crate) lag_ticks: u64,
    /// Events on the provider after this tick.
    pub(crate) lag_events: u64,
    /// Age of this tick.
    pub(crate) lag_seconds: f64,
}

/// What is done with the rows of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// They are brought to the subscriber.
    Copy,
    /// They are read on both ends.
    Compare,
}

impl Work {
    const fn verb(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Compare => "compare",
        }
    }

    const fn going(self) -> &'static str {
        match self {
            Self::Copy => "copying",
            Self::Compare => "comparing",
        }
    }

    const fn past(self) -> &'static str {
        match self {
            Self::Copy => "copied",
            Self::Compare => "compared",
        }
    }
}

/// At most one line about replay, and one about a copy, in this time.
const BETWEEN_LINES: Duration = Duration::from_secs(5);

/// Shows progress; clones show the same.
#[derive(Clone)]
pub(crate) struct Progress {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    work: Work,
    bars: Option<Bars>,
    /// Lines are wanted as well; never together with bars.
    lines: bool,
    copying: Vec<Copying>,
    tally: Tally,
}

impl Progress {
    /// Bars on a terminal, lines elsewhere, nothing with --quiet.
    pub(crate) fn new(args: &LogArgs, work: Work) -> Self {
        let bars = !args.quiet && args.log_format == LogFormat::Text && io::stderr().is_terminal();
        let shared = Shared {
            work,
            bars: bars.then(|| Bars::new(work)),
            lines: !bars && !args.quiet,
            copying: Vec::new(),
            tally: Tally::new(Instant::now()),
        };
        Self {
            shared: Arc::new(Mutex::new(shared)),
        }
    }

    /// Nothing is shown, and lines only where something else logs them.
    pub(crate) fn silent() -> Self {
        let shared = Shared {
            work: Work::Copy,
            bars: None,
            lines: false,
            copying: Vec::new(),
            tally: Tally::new(Instant::now()),
        };
        Self {
            shared: Arc::new(Mutex::new(shared)),
        }
    }

    /// The work on one table begins. The estimates are the planner's (reltuples, relation size); None or 0 when
    /// unknown.
    pub(crate) fn copy_started(&self, table: &str, rows_estimate: Option<u64>, bytes_estimate: Option<u64>) {
        let mut shared = self.lock();
        let rows_estimate = rows_estimate.filter(|rows| *rows > 0);
        if let Some(bars) = &mut shared.bars {
            bars.copy_started(table, rows_estimate);
        }
        if shared.lines {
            tracing::info!(table, rows_estimate, bytes_estimate, "{} starts", shared.work.verb());
        }
        shared.copying.retain(|copying| copying.table != table);
        shared.copying.push(Copying::new(table, rows_estimate, Instant::now()));
    }

    /// So many more rows and bytes of that table arrived (since the last call, not in all).
    pub(crate) fn copied(&self, table: &str, rows: u64, bytes: u64) {
        let mut shared = self.lock();
        let Shared {
            work,
            bars,
            lines,
            copying,
            ..
        } = &mut *shared;
        let Some(copying) = copying.iter_mut().find(|copying| copying.table == table) else {
            return;
        };
        let now = Instant::now();
        copying.add(rows, bytes);
        if let Some(bars) = bars {
            bars.copied(copying, now);
        } else if *lines && copying.line_due(now, BETWEEN_LINES) {
            tracing::info!(
                table = copying.table,
                rows = copying.rows,
                bytes = copying.bytes_if_any(),
                rows_per_second = tally::rounded(copying.rows_per_second(now)),
                seconds_left = copying.seconds_left(now).map(tally::rounded),
                "{}",
                work.going()
            );
        }
    }

    /// The table is there.
    pub(crate) fn copy_done(&self, table: &str) {
        let mut shared = self.lock();
        let Some(at) = shared.copying.iter().position(|copying| copying.table == table) else {
            return;
        };
        let copying = shared.copying.remove(at);
        let now = Instant::now();
        if let Some(bars) = &mut shared.bars {
            bars.copy_done(&copying, now);
        } else if shared.lines {
            tracing::info!(
                table = copying.table,
                rows = copying.rows,
                bytes = copying.bytes_if_any(),
                seconds = tally::rounded(copying.seconds(now)),
                rows_per_second = tally::rounded(copying.rows_per_second(now)),
                "{} done",
                shared.work.verb()
            );
        }
    }

    /// A batch is committed on the subscriber.
    pub(crate) fn batch(&self, report: BatchReport) {
        let mut shared = self.lock();
        shared.tally.add(report);
        shared.show(Instant::now());
    }

    /// There is nothing to do at the moment.
    pub(crate) fn idle(&self) {
        self.lock().show(Instant::now());
    }

    /// The work is over: takes the bars away and sums up what there was.
    pub(crate) fn finish(&self) {
        let mut shared = self.lock();
        shared.bars = None;
        clear();
        let tally = &shared.tally;
        if tally.batches == 0 {
            return;
        }
        let lag = |share| tally.lag(share).map(tally::rounded);
        tracing::info!(
            tick = tally.last.tick,
            batches = tally.batches,
            events = tally.events,
            bytes = tally.bytes,
            seconds = tally::rounded(tally.seconds(Instant::now())),
            lag_p50_seconds = lag(0.50),
            lag_p99_seconds = lag(0.99),
            "replayed in all"
        );
    }

    /// A thread that died while it counted leaves counts that are good enough to look at.
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn show(&mut self, now: Instant) {
        if let Some(bars) = &mut self.bars {
            bars.replaying(&mut self.tally, now);
        } else if self.lines
            && let Some(since) = self.tally.line_due(now, BETWEEN_LINES)
        {
            let last = &self.tally.last;
            tracing::info!(
                tick = last.tick,
                batches = since.batches,
                events = since.events,
                events_per_second = tally::rounded(since.events_per_second),
                lag_ticks = last.lag_ticks,
                lag_events = last.lag_events,
                lag_seconds = tally::rounded(last.lag_seconds),
                "replaying"
            );
        }
    }
}
