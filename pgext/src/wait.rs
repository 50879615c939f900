//! Waiting for a batch: the procedure `pgcascade.wait_batch()` (sql/wait.sql), and who wakes it.
//!
//! It commits, looks for a batch, and if there is none commits again and sleeps: between two looks it has no transaction id, no
//! snapshot and no lock, so it keeps back neither vacuum nor a rotation. It sleeps until a transaction that made a tick
//! commits, whoever made it.
//!
//! Shared memory has [`BUCKETS`] pairs of a count and a condition variable; a queue belongs to one of them, and what wakes one
//! queue's waiters wakes a neighbour's for a look in vain. No wake-up is lost: the count is read before the look, a
//! commit is visible before it moves the count, and the waiter sleeps only while the count is what it read. A condition variable
//! keeps its waiters in the server's own list, so there is no limit on their number.
//!
//! What no tick announces (an administrator's UPDATE) is found after [`LOOK`]. Without shared memory, that is without
//! preloading, there is nobody to wake us: then it looks every [`BLIND_LOOK`].

use std::cell::{Cell, UnsafeCell};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, PgAtomic, PgSqlErrorCode, pg_shmem_init, pg_sys};

use crate::pg::{self, native};
use crate::worker::wake;

/// One bit each of the word that a transaction remembers them in.
const BUCKETS: usize = 128;
/// Longest time between two looks.
const LOOK: Duration = Duration::from_secs(300);
/// The same where nobody can wake us.
const BLIND_LOOK: Duration = Duration::from_millis(100);

struct Bucket {
    /// Goes up with each commit that may have made a batch for somebody who waits here.
    commits: AtomicU64,
    waiters: UnsafeCell<pg_sys::ConditionVariable>,
}

// SAFETY: an atomic, and a condition variable, which the server protects by the spinlock in it. Neither has a pointer in it.
unsafe impl PGRXSharedMemory for Bucket {}

impl Bucket {
    fn new() -> Self {
        // SAFETY: the initializer fills all of it in; it is moved before anybody can wait on it.
        let waiters = unsafe {
            let mut waiters = std::mem::zeroed();
            pg_sys::ConditionVariableInit(&mut waiters);
            waiters
        };
        Self {
            commits: AtomicU64::new(0),
            waiters: UnsafeCell::new(waiters),
        }
    }

    fn commits(&self) -> u64 {
        self.commits.load(Ordering::Acquire)
    }
}

// SAFETY: the name is ours alone.
static WAITING: PgAtomic<[Bucket; BUCKETS]> = unsafe { PgAtomic::new(c"pgcascade waiters") };

thread_local! {
    /// Whether the shared memory above exists: the library was preloaded. Inherited by fork.
    static SHARED: Cell<bool> = const { Cell::new(false) };
    /// The buckets that this transaction wakes at its commit.
    static AT_COMMIT: Cell<u128> = const { Cell::new(0) };
}

/// Called while the library is preloaded.
pub(crate) fn init() {
    pg_shmem_init!(WAITING = std::array::from_fn(|_| Bucket::new()));
    SHARED.with(|shared| shared.set(true));
}

/// Queue ids count from 1 in each database.
fn bucket_number(queue: i32) -> usize {
    // SAFETY: reads this backend's database.
    let database = unsafe { pg_sys::MyDatabaseId }.to_u32() as usize;
    database.wrapping_mul(31).wrapping_add(queue.unsigned_abs() as usize) % BUCKETS
}

native!(wake_waiters_wrapper, pg_finfo_wake_waiters_wrapper, wake_waiters);

/// `pgcascade.wake_waiters(queue_id)`: once this transaction commits, those who wait for a batch of the queue look again.
fn wake_waiters(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: declared strict with one integer argument.
    let queue = unsafe { (*(*call).args.as_ptr()).value.value() as i32 };
    AT_COMMIT.with(|buckets| buckets.set(buckets.get() | 1 << bucket_number(queue)));
    wake::listen();
    pg_sys::Datum::from(0usize)
}

/// From the transaction callback. At COMMIT the changes are already visible to others, so a waiter that wakes now sees them.
pub(crate) fn transaction_ended(committed: bool) {
    let mut buckets = AT_COMMIT.with(|buckets| buckets.replace(0));
    if !committed || !SHARED.with(Cell::get) {
        return;
    }
    while buckets != 0 {
        let bucket = &WAITING.get()[buckets.trailing_zeros() as usize];
        buckets &= buckets - 1;
        bucket.commits.fetch_add(1, Ordering::AcqRel);
        // SAFETY: an initialized condition variable in shared memory; broadcasting raises no ERROR.
        unsafe { pg_sys::ConditionVariableBroadcast(bucket.waiters.get()) }
    }
}

native!(wait_batch_wrapper, pg_finfo_wait_batch_wrapper, wait_batch);

/// `pgcascade.wait_batch(queue_name, consumer_name, timeout, inout batch_id)`.
fn wait_batch(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    refuse_inside_transaction(call);
    // Copied: a commit may free what they point to.
    let queue = text_argument(call, 0);
    let consumer = text_argument(call, 1);
    let deadline = timeout_argument(call, 2).map(|timeout| Instant::now().checked_add(timeout));

    // SAFETY: called from CALL in a non-atomic context, in which SPI may commit; an ERROR unwinds this level at abort.
    unsafe { pg_sys::SPI_connect_ext(pg_sys::SPI_OPT_NONATOMIC as i32) };
    commit();
    let batch = loop {
        let bucket = queue_id(queue.as_deref()).map(bucket_number);
        // Before the look: see the top of this file.
        let seen = bucket.filter(|_| SHARED.with(Cell::get)).map(|number| {
            let bucket = &WAITING.get()[number];
            (bucket, bucket.commits())
        });
        if let Some(batch) = next_batch(queue.as_deref(), consumer.as_deref()) {
            break Some(batch);
        }
        let left = match deadline {
            Some(Some(deadline)) => deadline.saturating_duration_since(Instant::now()),
            // No time-out, or one beyond what a clock can count to.
            _ => LOOK,
        };
        if left.is_zero() {
            break None;
        }
        commit();
        sleep(seen, left);
    };
    // SAFETY: leaves the level entered above.
    unsafe { pg_sys::SPI_finish() };
    result(batch)
}

/// In a transaction block, a function or a subtransaction there is something that a commit would take from the caller.
fn refuse_inside_transaction(call: pg_sys::FunctionCallInfo) {
    // SAFETY: CALL passes a CallContext; whatever else the context is has another tag.
    let atomic = unsafe {
        let context = (*call).context;
        !pgrx::is_a(context, pg_sys::NodeTag::T_CallContext)
            || (*context.cast::<pg_sys::CallContext>()).atomic
            || pg_sys::IsSubTransaction()
    };
    if atomic {
        pg::raise(
            PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION,
            "wait_batch cannot run inside a transaction block",
            "It commits before it waits. Use CALL outside of BEGIN and COMMIT (with autocommit on), or from a procedure or DO \
             block that is called so, and there not below an EXCEPTION clause.",
        );
    }
}

fn argument(call: pg_sys::FunctionCallInfo, index: usize) -> Option<pg_sys::Datum> {
    // SAFETY: the SQL declaration has four arguments.
    let argument = unsafe { &*(*call).args.as_ptr().add(index) };
    (!argument.isnull).then_some(argument.value)
}

fn text_argument(call: pg_sys::FunctionCallInfo, index: usize) -> Option<Vec<u8>> {
    // SAFETY: the SQL declaration says text; copied at once.
    argument(call, index).map(|value| unsafe { pg::text_bytes(value) }.to_vec())
}

/// `None`: wait for ever. Months have 30 days, as in all arithmetic of intervals with seconds.
fn timeout_argument(call: pg_sys::FunctionCallInfo, index: usize) -> Option<Duration> {
    // SAFETY: the SQL declaration says interval, which is passed by reference.
    let interval = unsafe { &*argument(call, index)?.cast_mut_ptr::<pg_sys::Interval>() };
    let days = i128::from(interval.month) * 30 + i128::from(interval.day);
    let microseconds = days * 86_400_000_000 + i128::from(interval.time);
    Some(Duration::from_micros(
        u64::try_from(microseconds.max(0)).unwrap_or(u64::MAX),
    ))
}

fn commit() {
    // SAFETY: in the non-atomic SPI level of `wait_batch`. Begins a new transaction, without a snapshot.
    unsafe { pg_sys::SPI_commit() }
}

fn queue_id(queue: Option<&[u8]>) -> Option<i32> {
    one(
        "select q.queue_id from pgq.queue q where q.queue_name operator(pg_catalog.=) $1",
        &[pg::text_argument(queue)],
    )
}

/// Opens the batch, with the caller's rights and all the errors of `pgq.next_batch()`.
fn next_batch(queue: Option<&[u8]>, consumer: Option<&[u8]>) -> Option<i64> {
    one(
        "select n.batch_id from pgq.next_batch_custom($1, $2, null, null, null) n",
        &[pg::text_argument(queue), pg::text_argument(consumer)],
    )
}

fn one<T: pgrx::FromDatum + pgrx::IntoDatum>(statement: &str, arguments: &[DatumWithOid]) -> Option<T> {
    // As a statement that may write: it gets a snapshot of its own, and the portal gets back the one that a commit took.
    Spi::connect_mut(|client| {
        let rows = client.update(statement, Some(1), arguments)?;
        if rows.is_empty() {
            Ok(None)
        } else {
            rows.first().get_one::<T>()
        }
    })
    .unwrap_or_else(|error: spi::Error| {
        pg::raise(
            PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            format!("could not look for a batch: {error}"),
            "",
        )
    })
}

/// Sleeps until the bucket's count is not what was `seen`, or for `longest`, serving interrupts: a cancel or a time-out of the
/// server ends the procedure with its ERROR, a shutdown the process; either takes us off the list of waiters.
fn sleep(seen: Option<(&Bucket, u64)>, longest: Duration) {
    let deadline = Instant::now() + longest.min(if seen.is_some() { LOOK } else { BLIND_LOOK });
    // What starting the transaction may have looked up in catalogs would hold xmin.
    // SAFETY: plain calls inside a transaction that has no snapshot; the condition variable is in shared memory.
    unsafe {
        pg_sys::InvalidateCatalogSnapshotConditionally();
        let event = wait_event();
        let left = || deadline.saturating_duration_since(Instant::now()).as_millis() as std::ffi::c_long + 1;
        let Some((bucket, seen)) = seen else {
            let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
            pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, left(), event);
            pg_sys::ResetLatch(pg_sys::MyLatch);
            pgrx::check_for_interrupts!();
            return;
        };
        pg_sys::ConditionVariablePrepareToSleep(bucket.waiters.get());
        while bucket.commits() == seen && Instant::now() < deadline {
            pg_sys::ConditionVariableTimedSleep(bucket.waiters.get(), left(), event);
        }
        pg_sys::ConditionVariableCancelSleep();
    }
}

/// What pg_stat_activity shows meanwhile: a name of its own where extensions can have one, else `Extension`.
fn wait_event() -> u32 {
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    {
        thread_local!(static EVENT: Cell<u32> = const { Cell::new(0) });
        if EVENT.get() == 0 {
            // SAFETY: registers the name once per process; the server gives the same number for the same name.
            EVENT.set(unsafe { pg_sys::WaitEventExtensionNew(c"PgcascadeWaitBatch".as_ptr()) });
        }
        EVENT.get()
    }
    #[cfg(not(any(feature = "pg17", feature = "pg18")))]
    pg_sys::PG_WAIT_EXTENSION
}

/// The row of output arguments that CALL expects.
fn result(batch: Option<i64>) -> pg_sys::Datum {
    // SAFETY: a row type of one bigint, made and blessed in the caller's memory context, and a row of it.
    unsafe {
        let descriptor = pg_sys::CreateTemplateTupleDesc(1);
        pg_sys::TupleDescInitEntry(descriptor, 1, c"batch_id".as_ptr(), pg_sys::INT8OID, -1, 0);
        let descriptor = pg_sys::BlessTupleDesc(descriptor);
        let mut value = [pg_sys::Datum::from(batch.unwrap_or(0))];
        let mut null = [batch.is_none()];
        let row = pg_sys::heap_form_tuple(descriptor, value.as_mut_ptr(), null.as_mut_ptr());
        pg_sys::HeapTupleHeaderGetDatum((*row).t_data)
    }
}
