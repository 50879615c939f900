//! The bars on a terminal. indicatif redraws at most some twenty times a second, however often a position is set.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, HumanDuration, MultiProgress, ProgressBar, ProgressStyle};
use once_cell::sync::Lazy;

use super::Work;
use super::tally::{Copying, Tally};

/// There is one stderr, so there is one set of bars; log lines find it here.
static ON_SCREEN: Lazy<Mutex<Option<MultiProgress>>> = Lazy::new(|| Mutex::new(None));

fn on_screen() -> Option<MultiProgress> {
    ON_SCREEN.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Runs something that writes to stderr while the bars step aside.
pub(crate) fn aside<T>(write: impl FnOnce() -> T) -> T {
    match on_screen() {
        Some(bars) => bars.suspend(write),
        None => write(),
    }
}

/// Takes the bars away.
pub(crate) fn clear() {
    let bars = ON_SCREEN.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(bars) = bars {
        // What cannot be cleared stays.
        let _ = bars.clear();
    }
}

/// The lines that are shown.
pub(super) struct Bars {
    work: Work,
    all: MultiProgress,
    /// By table.
    copies: HashMap<String, ProgressBar>,
    replay: Option<ProgressBar>,
    rate: f64,
}

impl Bars {
    pub(super) fn new(work: Work) -> Self {
        let all = MultiProgress::new();
        *ON_SCREEN.lock().unwrap_or_else(PoisonError::into_inner) = Some(all.clone());
        Self {
            work,
            all,
            copies: HashMap::new(),
            replay: None,
            rate: 0.0,
        }
    }

    pub(super) fn copy_started(&mut self, table: &str, rows_estimate: Option<u64>) {
        let bar = match rows_estimate {
            Some(rows) => ProgressBar::new(rows).with_style(style("{prefix} [{bar:24}] {msg}")),
            None => ProgressBar::new_spinner().with_style(style("{prefix} {spinner} {msg}")),
        };
        let bar = self.all.add(bar.with_prefix(format!("{} {table}", self.work.verb())));
        if let Some(old) = self.copies.insert(table.to_owned(), bar) {
            self.all.remove(&old);
        }
    }

    pub(super) fn copied(&mut self, copying: &Copying, now: Instant) {
        let Some(bar) = self.copies.get(&copying.table) else {
            return;
        };
        if bar.length().is_some_and(|length| length < copying.rows) {
            bar.set_length(copying.rows);
        }
        bar.set_position(copying.rows);
        let left = match copying.seconds_left(now) {
            Some(seconds) => format!(
                ", {} left",
                HumanDuration(Duration::try_from_secs_f64(seconds).unwrap_or_default())
            ),
            None => String::new(),
        };
        bar.set_message(format!("{}{left}", amount(copying, now)));
    }

    pub(super) fn copy_done(&mut self, copying: &Copying, now: Instant) {
        if let Some(bar) = self.copies.remove(&copying.table) {
            self.all.remove(&bar);
        }
        // A table that is done becomes a line above the bars.
        let took = HumanDuration(Duration::try_from_secs_f64(copying.seconds(now)).unwrap_or_default());
        let _ = self.all.println(format!(
            "{} {}: {} in {took}",
            self.work.past(),
            copying.table,
            amount(copying, now)
        ));
    }

    pub(super) fn replaying(&mut self, tally: &mut Tally, now: Instant) {
        let bar = self.replay.get_or_insert_with(|| {
            let bar = ProgressBar::new_spinner().with_style(style("{spinner} replay {msg}"));
            let bar = self.all.add(bar);
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        if let Some(since) = tally.line_due(now, Duration::from_secs(1)) {
            self.rate = since.events_per_second;
        } else if tally.quiet(now, Duration::from_secs(2)) {
            self.rate = 0.0;
        }
        let last = &tally.last;
        bar.set_message(format!(
            "tick {}, behind by {} ticks, {} events, {:.3} s; {} events applied, {:.0} events/s",
            last.tick,
            HumanCount(last.lag_ticks),
            HumanCount(last.lag_events),
            last.lag_seconds,
            HumanCount(tally.events),
            self.rate
        ));
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        for bar in self.copies.drain().map(|(_, bar)| bar).chain(self.replay.take()) {
            bar.finish_and_clear();
        }
    }
}

fn amount(copying: &Copying, now: Instant) -> String {
    let bytes = copying
        .bytes_if_any()
        .map_or_else(String::new, |bytes| format!("{}, ", HumanBytes(bytes)));
    format!(
        "{} rows, {bytes}{:.0} rows/s",
        HumanCount(copying.rows),
        copying.rows_per_second(now)
    )
}

/// The templates are constants of this file; should one be wrong, the default look will do.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
