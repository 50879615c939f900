//! The numbers behind the bars and the lines: what was copied and replayed, how fast, and how far behind.
//!
//! Time comes in as an argument, so that tests need not wait for it.

use std::time::{Duration, Instant};

use super::BatchReport;

/// A number that a person reads: three decimals.
pub(super) fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

/// One table on its way.
pub(super) struct Copying {
    pub(super) table: String,
    pub(super) rows: u64,
    pub(super) bytes: u64,
    rows_estimate: Option<u64>,
    started: Instant,
    last_line: Instant,
}

impl Copying {
    pub(super) fn new(table: &str, rows_estimate: Option<u64>, now: Instant) -> Self {
        Self {
            table: table.to_owned(),
            rows: 0,
            bytes: 0,
            rows_estimate,
            started: now,
            last_line: now,
        }
    }

    pub(super) fn add(&mut self, rows: u64, bytes: u64) {
        self.rows += rows;
        self.bytes += bytes;
    }

    /// None where bytes are not counted.
    pub(super) fn bytes_if_any(&self) -> Option<u64> {
        (self.bytes > 0).then_some(self.bytes)
    }

    pub(super) fn seconds(&self, now: Instant) -> f64 {
        now.saturating_duration_since(self.started).as_secs_f64()
    }

    pub(super) fn rows_per_second(&self, now: Instant) -> f64 {
        per_second(self.rows, self.seconds(now))
    }

    /// From the rate so far; None before there is one, without an estimate, and beyond it.
    pub(super) fn seconds_left(&self, now: Instant) -> Option<f64> {
        let left = self.rows_estimate?.checked_sub(self.rows)?;
        let rate = self.rows_per_second(now);
        (rate > 0.0).then(|| left as f64 / rate)
    }

    pub(super) fn line_due(&mut self, now: Instant, interval: Duration) -> bool {
        let due = now.saturating_duration_since(self.last_line) >= interval;
        if due {
            self.last_line = now;
        }
        due
    }
}

/// All batches since the start.
pub(super) struct Tally {
    pub(super) batches: u64,
    pub(super) events: u64,
    pub(super) bytes: u64,
    pub(super) last: BatchReport,
    started: Instant,
    lag: Lag,
    shown: Shown,
}

/// What the last line covered.
struct Shown {
    at: Option<Instant>,
    batches: u64,
    events: u64,
}

/// What came since the last line.
pub(super) struct Since {
    pub(super) batches: u64,
    pub(super) events: u64,
    pub(super) events_per_second: f64,
}

impl Tally {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            batches: 0,
            events: 0,
            bytes: 0,
            last: BatchReport::default(),
            started: now,
            lag: Lag::new(),
            shown: Shown {
                at: None,
                batches: 0,
                events: 0,
            },
        }
    }

    pub(super) fn add(&mut self, report: BatchReport) {
        self.batches += 1;
        self.events += report.events;
        self.bytes += report.bytes;
        self.last = report;
        // An idle tick says nothing of how long a change takes.
        if report.events > 0 {
            self.lag.add(report.lag_seconds);
        }
    }

    pub(super) fn seconds(&self, now: Instant) -> f64 {
        now.saturating_duration_since(self.started).as_secs_f64()
    }

    /// The lag that this share of the batches with events stayed under.
    pub(super) fn lag(&self, share: f64) -> Option<f64> {
        self.lag.percentile(share)
    }

    /// Whether nothing came for so long after the last line that its rate is history.
    pub(super) fn quiet(&self, now: Instant, interval: Duration) -> bool {
        let shown = self
            .shown
            .at
            .is_none_or(|at| now.saturating_duration_since(at) > interval);
        shown && self.events == self.shown.events
    }

    /// What to say, if there are events that no line has told of and the last line is long enough ago. Starts the next
    /// interval.
    pub(super) fn line_due(&mut self, now: Instant, interval: Duration) -> Option<Since> {
        if self.events == self.shown.events {
            return None;
        }
        let elapsed = now.saturating_duration_since(self.shown.at.unwrap_or(self.started));
        if self.shown.at.is_some() && elapsed < interval {
            return None;
        }
        let since = Since {
            batches: self.batches - self.shown.batches,
            events: self.events - self.shown.events,
            events_per_second: per_second(self.events - self.shown.events, elapsed.as_secs_f64()),
        };
        self.shown = Shown {
            at: Some(now),
            batches: self.batches,
            events: self.events,
        };
        Some(since)
    }
}

fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

/// How many batches had which lag, in steps of five per cent from a tenth of a millisecond to a month: the error of a
/// percentile is that of a step, the size does not depend on how long the process runs.
struct Lag {
    bounds: Vec<f64>,
    counts: Vec<u64>,
    total: u64,
}

impl Lag {
    fn new() -> Self {
        let bounds: Vec<f64> = std::iter::successors(Some(1e-4), |bound| Some(bound * 1.05))
            .take_while(|bound| *bound < 2.7e6)
            .collect();
        let counts = vec![0; bounds.len() + 1];
        Self {
            bounds,
            counts,
            total: 0,
        }
    }

    fn add(&mut self, seconds: f64) {
        let step = self.bounds.partition_point(|bound| *bound < seconds);
        if let Some(count) = self.counts.get_mut(step) {
            *count += 1;
            self.total += 1;
        }
    }

    fn percentile(&self, share: f64) -> Option<f64> {
        let mut seen = 0;
        let at = self.counts.iter().position(|count| {
            seen += count;
            *count > 0 && seen as f64 >= self.total as f64 * share
        })?;
        self.bounds.get(at).or(self.bounds.last()).copied()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
    use super::*;

    fn report(events: u64, lag_seconds: f64) -> BatchReport {
        BatchReport {
            events,
            lag_seconds,
            ..BatchReport::default()
        }
    }

    #[test]
    fn a_line_comes_at_once_then_rarely_and_only_with_news() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let interval = Duration::from_secs(5);
        let mut tally = Tally::new(start);
        assert!(tally.line_due(start, interval).is_none());
        tally.add(report(0, 0.0));
        assert!(tally.line_due(after(1), interval).is_none(), "an idle tick is no news");
        tally.add(report(10, 0.1));
        let since = tally.line_due(after(2), interval).unwrap();
        assert_eq!((since.batches, since.events), (2, 10));
        tally.add(report(30, 0.1));
        assert!(tally.line_due(after(3), interval).is_none());
        let since = tally.line_due(after(7), interval).unwrap();
        assert_eq!((since.batches, since.events), (1, 30));
        assert!((since.events_per_second - 6.0).abs() < 1e-9);
        assert!(tally.line_due(after(60), interval).is_none());
        assert!(!tally.quiet(after(8), interval) && tally.quiet(after(60), interval));
    }

    #[test]
    fn percentiles_are_right_to_a_step() {
        let mut tally = Tally::new(Instant::now());
        assert_eq!(tally.lag(0.5), None);
        for milliseconds in 1..=1000_u32 {
            tally.add(report(1, f64::from(milliseconds) / 1000.0));
        }
        for (share, wanted) in [(0.5, 0.5), (0.99, 0.99), (1.0, 1.0)] {
            let lag = tally.lag(share).unwrap();
            assert!((wanted..wanted * 1.06).contains(&lag), "{share}: {lag}");
        }
        tally.add(report(1, 1e12));
        assert!(tally.lag(1.0).unwrap() > 2e6);
    }

    #[test]
    fn the_time_left_needs_an_estimate_and_a_rate() {
        let start = Instant::now();
        let later = start + Duration::from_secs(10);
        let mut copying = Copying::new("t", Some(1000), start);
        assert_eq!(copying.seconds_left(start), None);
        copying.add(100, 5000);
        assert!((copying.seconds_left(later).unwrap() - 90.0).abs() < 1e-9);
        copying.add(2000, 0);
        assert_eq!(copying.seconds_left(later), None);
        assert_eq!(Copying::new("t", None, start).seconds_left(later), None);
    }
}
