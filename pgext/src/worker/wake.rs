//! Who ticks which database, in shared memory: so that a commit can wake its ticker, and the launcher can see tickers
//! that an earlier launcher started.
//!
//! A slot belongs to a database from the first start of a ticker there. The latch in it is the address of the ticker's
//! latch, which lies in shared memory, is never freed and has one address in all processes; a stale one wakes some other
//! process for nothing, which every user of a latch must bear anyway. No locks: each word is atomic, a slot is claimed by
//! compare-and-swap, and whoever reads an old value only wakes or probes once too often.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use pgrx::prelude::*;
use pgrx::{PgAtomic, pg_shmem_init, pg_sys};

use crate::pg::{self, native};

/// How many databases of a cluster can have a ticker that commits wake; others are looked at once a second.
const SLOTS: usize = 256;

/// The database of each slot (0 is free), and its ticker: [`NOBODY`], [`NOT_WANTED`], or the address of a latch.
type Tickers = ([AtomicU32; SLOTS], [AtomicUsize; SLOTS]);

const NOBODY: usize = 0;
/// The last ticker ended because the database has no extension, or has the ticker switched off.
const NOT_WANTED: usize = 1;

// SAFETY: the names are ours alone.
static TICKERS: PgAtomic<Tickers> = unsafe { PgAtomic::new(c"pgcascade tickers") };
// SAFETY: as above. The launcher's latch, 0 when there is none.
static LAUNCHER: PgAtomic<AtomicUsize> = unsafe { PgAtomic::new(c"pgcascade launcher") };
// SAFETY: as above. Goes up each time somebody asks the launcher to look at all databases.
static REQUESTS: PgAtomic<AtomicU64> = unsafe { PgAtomic::new(c"pgcascade requests") };

thread_local! {
    /// Whether the shared memory above exists: the library was preloaded. Inherited by fork.
    static SHARED: Cell<bool> = const { Cell::new(false) };
    static CALLBACK: Cell<bool> = const { Cell::new(false) };
    /// What this transaction asks for, done at its commit.
    static TICKER_AT_COMMIT: Cell<bool> = const { Cell::new(false) };
    static LAUNCHER_AT_COMMIT: Cell<bool> = const { Cell::new(false) };
}

pub(crate) fn init() {
    pg_shmem_init!(
        TICKERS = (
            [const { AtomicU32::new(0) }; SLOTS],
            [const { AtomicUsize::new(NOBODY) }; SLOTS]
        )
    );
    pg_shmem_init!(LAUNCHER = AtomicUsize::new(0));
    pg_shmem_init!(REQUESTS = AtomicU64::new(0));
    SHARED.with(|shared| shared.set(true));
}

/// What the launcher can see of a database's ticker.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) enum Ticker {
    Unknown,
    Running,
    NotWanted,
}

/// Wakes this database's ticker when the current transaction commits. Cheap to call once per event.
pub(crate) fn at_commit() {
    if TICKER_AT_COMMIT.with(|flag| flag.replace(true)) {
        return;
    }
    listen();
}

/// Has [`transaction_ended`] called at the end of this and every later transaction of the process.
pub(crate) fn listen() {
    if !CALLBACK.with(|callback| callback.replace(true)) {
        // SAFETY: the callback stays valid as long as the library, which the server never unloads.
        unsafe { pg_sys::RegisterXactCallback(Some(transaction_ended), pg::NO_ARGUMENT) }
    }
}

/// Transaction callback. At COMMIT the changes are already visible to others, so a ticker that wakes now sees them.
#[pg_guard]
unsafe extern "C-unwind" fn transaction_ended(event: pg_sys::XactEvent::Type, _argument: *mut std::ffi::c_void) {
    use pg_sys::XactEvent::{XACT_EVENT_ABORT, XACT_EVENT_COMMIT, XACT_EVENT_PREPARE};
    if !matches!(event, XACT_EVENT_COMMIT | XACT_EVENT_ABORT | XACT_EVENT_PREPARE) {
        return;
    }
    crate::wait::transaction_ended(event == XACT_EVENT_COMMIT);
    let ticker = TICKER_AT_COMMIT.with(|flag| flag.replace(false));
    let launcher = LAUNCHER_AT_COMMIT.with(|flag| flag.replace(false));
    if event != XACT_EVENT_COMMIT || !SHARED.with(Cell::get) {
        return;
    }
    if ticker {
        // SAFETY: reads this backend's database.
        set(latch_of(unsafe { pg_sys::MyDatabaseId }));
    }
    if launcher {
        REQUESTS.get().fetch_add(1, Ordering::AcqRel);
        set(LAUNCHER.get().load(Ordering::Acquire));
    }
}

fn set(latch: usize) {
    if latch > NOT_WANTED {
        // SAFETY: see the top of this file: the address of a latch in shared memory that is never freed.
        unsafe { pg_sys::SetLatch(latch as *mut pg_sys::Latch) }
    }
}

fn slot_of(database: pg_sys::Oid) -> Option<usize> {
    TICKERS
        .get()
        .0
        .iter()
        .position(|slot| slot.load(Ordering::Acquire) == database.to_u32())
}

fn latch_of(database: pg_sys::Oid) -> usize {
    slot_of(database).map_or(NOBODY, |slot| TICKERS.get().1[slot].load(Ordering::Acquire))
}

/// What is known of the ticker of `database`.
pub(crate) fn state(database: pg_sys::Oid) -> Ticker {
    match latch_of(database) {
        NOBODY => Ticker::Unknown,
        NOT_WANTED => Ticker::NotWanted,
        _ => Ticker::Running,
    }
}

/// Enters this process as the ticker of `database`; the caller holds the database's ticker lock.
pub(crate) fn ticker_started(database: pg_sys::Oid) {
    // SAFETY: reads the address of our own latch.
    let latch = unsafe { pg_sys::MyLatch } as usize;
    put(database, latch);
}

/// Takes this process out again, saying whether a ticker is not wanted there.
pub(crate) fn ticker_ended(database: pg_sys::Oid, not_wanted: bool) {
    put(database, if not_wanted { NOT_WANTED } else { NOBODY });
}

fn put(database: pg_sys::Oid, state: usize) {
    let (databases, latches) = TICKERS.get();
    let slot = slot_of(database).or_else(|| {
        databases.iter().position(|slot| {
            slot.compare_exchange(0, database.to_u32(), Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        })
    });
    if let Some(slot) = slot {
        latches[slot].store(state, Ordering::Release);
    }
}

/// Gives back the slots of databases that are gone; called by the launcher with all there are.
pub(crate) fn keep_only(existing: &[pg_sys::Oid]) {
    let (databases, latches) = TICKERS.get();
    for (database, latch) in databases.iter().zip(latches) {
        let oid = database.load(Ordering::Acquire);
        if oid != 0 && !existing.iter().any(|kept| kept.to_u32() == oid) {
            latch.store(NOBODY, Ordering::Release);
            database.store(0, Ordering::Release);
        }
    }
}

/// Enters this process as the launcher.
pub(crate) fn launcher_started() {
    // SAFETY: reads the address of our own latch.
    LAUNCHER
        .get()
        .store(unsafe { pg_sys::MyLatch } as usize, Ordering::Release);
}

/// How often the launcher has been asked to look at all databases.
pub(crate) fn requests() -> u64 {
    REQUESTS.get().load(Ordering::Acquire)
}

native!(wake_ticker_wrapper, pg_finfo_wake_ticker_wrapper, wake_ticker);

/// Trigger `pgcascade.wake_ticker()`: at commit, this database's ticker looks when something falls due.
fn wake_ticker(_call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    at_commit();
    pg_sys::Datum::from(0usize)
}

native!(wake_launcher_wrapper, pg_finfo_wake_launcher_wrapper, wake_launcher);

/// `pgcascade.wake_launcher()`: at commit, the launcher looks again which databases want a ticker.
fn wake_launcher(_call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    LAUNCHER_AT_COMMIT.with(|flag| flag.set(true));
    listen();
    pg_sys::Datum::from(0usize)
}
