//! The launcher: keeps one ticker running in each database that wants one.
//!
//! It cannot see into other databases, so it starts a ticker in each that it does not know, and the ticker itself ends
//! if it is not wanted there (no extension, or `pgcascade.ticker` off). Such a database is tried again when somebody asks
//! (CREATE EXTENSION does, at commit), when the configuration is reloaded, and once a minute.
//!
//! | event | what happens |
//! |---|---|
//! | CREATE EXTENSION commits | wake-up; a ticker starts at once |
//! | DROP EXTENSION commits | the ticker notices at its next look and ends |
//! | CREATE DATABASE from a template with the extension | found at the next look, within [`LOOK`] |
//! | DROP DATABASE WITH (FORCE) | the ticker is terminated; it is not restarted before [`PAUSE`], by a list read anew |
//! | launcher killed | the postmaster starts another; it sees the running tickers in shared memory ([`wake`]), and each holds a lock in its database, so there are never two |
//! | no free worker slot | logged once, tried again at the next look |

use std::collections::HashMap;
use std::time::{Duration, Instant};

use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime, DynamicBackgroundWorker};
use pgrx::prelude::*;
use pgrx::{IntoDatum, pg_sys};

use super::wake::{self, Ticker};
use crate::pg::Relation;

/// Longest time between two looks at the list of databases.
const LOOK: Duration = Duration::from_secs(5);
/// Shortest time between the end of a ticker and the start of the next one in the same database.
const PAUSE: Duration = Duration::from_secs(1);
/// When a database without a wish for a ticker is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(60);

pub(super) fn register() {
    BackgroundWorkerBuilder::new("pgcascade launcher")
        .set_type("pgcascade launcher")
        .set_library("pgcascade")
        .set_function("pgcascade_launcher_main")
        .enable_spi_access()
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(PAUSE))
        .load();
}

/// A ticker that this launcher started, or what came of it.
struct Started {
    worker: DynamicBackgroundWorker,
    ended: Option<Instant>,
    /// The count of requests when it was started: a later request asks again.
    requests: u64,
}

#[doc(hidden)]
#[allow(unreachable_pub, reason = "the server finds it by its symbol")]
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn pgcascade_launcher_main(_argument: pg_sys::Datum) {
    super::accept_signals();
    // SAFETY: once, before anything else; no database, shared catalogs only.
    unsafe { pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0) };
    wake::launcher_started();

    let mut started: HashMap<pg_sys::Oid, Started> = HashMap::new();
    let mut reloads = 0;
    let mut out_of_slots = false;
    loop {
        let requests = wake::requests() + reloads;
        let databases = databases();
        wake::keep_only(&databases);
        started.retain(|database, _| databases.contains(database));

        let mut next = LOOK;
        let mut refused = false;
        for database in databases {
            match due_in(started.get_mut(&database), wake::state(database), requests) {
                Some(Duration::ZERO) => match start(database, requests) {
                    Some(ticker) => {
                        started.insert(database, ticker);
                    }
                    None => refused = true,
                },
                Some(pause) => next = next.min(pause),
                None => {}
            }
        }
        if refused && !out_of_slots {
            pgrx::warning!("no free background worker slot for a pgcascade ticker; raise max_worker_processes");
        }
        out_of_slots = refused;

        super::wait(next);
        if super::reload_configuration() {
            reloads += 1;
        }
    }
}

/// When a ticker should be started in a database; `None` while one runs or is not wanted.
fn due_in(started: Option<&mut Started>, state: Ticker, requests: u64) -> Option<Duration> {
    let Some(started) = started else {
        // A ticker that an earlier launcher started is left alone; it is looked at again at the next look.
        return (state != Ticker::Running).then_some(Duration::ZERO);
    };
    if started.worker.pid().is_ok() || state == Ticker::Running {
        started.ended = None;
        return None;
    }
    let ended = *started.ended.get_or_insert_with(Instant::now);
    let pause = if state == Ticker::NotWanted && started.requests == requests {
        ASK_AGAIN
    } else {
        PAUSE
    };
    Some(pause.saturating_sub(ended.elapsed()))
}

fn start(database: pg_sys::Oid, requests: u64) -> Option<Started> {
    // SAFETY: reads our own process id.
    let launcher = unsafe { pg_sys::MyProcPid };
    let worker = BackgroundWorkerBuilder::new("pgcascade ticker")
        .set_type("pgcascade ticker")
        .set_library("pgcascade")
        .set_function("pgcascade_ticker_main")
        .enable_spi_access()
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(None)
        .set_argument(database.into_datum())
        .set_notify_pid(launcher)
        .load_dynamic()
        .ok()?;
    // Wait until it runs: its state must not be read before.
    let _ = worker.wait_for_startup();
    Some(Started {
        worker,
        ended: None,
        requests,
    })
}

/// All databases that take connections and are no templates.
fn databases() -> Vec<pg_sys::Oid> {
    let mut found = Vec::new();
    // SAFETY: a transaction of its own around the scan of a shared catalog, as autovacuum's launcher does it.
    unsafe { pg_sys::StartTransactionCommand() };
    Relation::open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock).each_row(|row| {
        // SAFETY: a row of pg_database, whose first columns are fixed-width and not null.
        let form = unsafe { &*pg_sys::GETSTRUCT(row).cast::<pg_sys::FormData_pg_database>() };
        if form.datallowconn && !form.datistemplate && form.datconnlimit != INVALID_DATABASE {
            found.push(form.oid);
        }
    });
    // SAFETY: commits what was started above; the relation is closed.
    unsafe { pg_sys::CommitTransactionCommand() };
    found
}

/// `datconnlimit` of a database whose DROP was interrupted (DATCONNLIMIT_INVALID_DB).
const INVALID_DATABASE: i32 = -2;
