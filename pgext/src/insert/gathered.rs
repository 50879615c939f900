//! Event rows of capture triggers on their way into the event table: gathered, and stored many at a time.
//!
//! One by one, a row costs the opening of the table and of its index, and a WAL record with a header; together, a page's rows
//! are one record. What is promised:
//! - The rows of a statement are in the table when the statement ends; those of a trigger that the server fires at another
//!   time (deferred, or by the apply worker of native replication) before the transaction commits or is prepared.
//! - A row belongs to the subtransaction whose change it is: it is stored by that one, and rolled back with it. So rows are
//!   kept apart by subtransaction, and a subtransaction stores its own before it commits.
//! - Where the queue is packed, events that follow each other and differ in id and data only are one row (`wire::pack`), as long as
//!   it stays within a page's quarter. Their ids are drawn when they are made, as all are: a pack is how they are stored, and says
//!   nothing of their order.
//! - What a row needs to be right (docs/concurrency.md) is done when it is made: the transaction has its id and the lock on the
//!   queue's parent, the event id is drawn, and the event table is locked. When it is stored changes nothing, as nobody else
//!   sees it before the commit.
//!
//! No call into the server is made while the list is borrowed: a row that is stored may raise an ERROR, and what is being
//! stored has been taken out of the list by then.

use std::cell::{Cell, RefCell};
use std::ffi::{c_char, c_int, c_void};
use std::rc::Rc;

use pgrx::prelude::*;
use pgrx::{PgSqlErrorCode, pg_sys};

use super::WIDTH;
use super::packed::{Packable, Packed};
use crate::pg::{self, LongLived, Relation};
use crate::queue::{self, Queue};

/// As many rows are stored at a time: several pages of small ones.
const SLOTS: usize = 128;

/// No more bytes of rows than this are kept for a queue and subtransaction, but for the last row's.
const MOST_BYTES: usize = 64 * 1024;

/// Rows of this size are stored at once: the server may move parts of them elsewhere, and then does not say where the row
/// itself is. Below a quarter of a page, less its head, it never does.
pub(super) const LARGE: usize = pg_sys::BLCKSZ as usize / 4 - 64;

pub(super) type Values = [pg_sys::Datum; WIDTH];
pub(super) type Nulls = [bool; WIDTH];

/// The rows of one queue that one subtransaction has made and not stored yet.
struct Gathered {
    level: pg_sys::SubTransactionId,
    queue: Rc<Queue>,
    rows: Vec<pg_sys::HeapTuple>,
    bytes: usize,
    /// What becomes the next row.
    packed: Option<Packed>,
}

/// What a store needs besides the rows; made once and kept as long as the backend.
struct Kept {
    /// Of an event table: all that are plain have the same columns.
    descriptor: pg_sys::TupleDesc,
    slots: Vec<*mut pg_sys::TupleTableSlot>,
}

thread_local! {
    static GATHERED: RefCell<Vec<Gathered>> = const { RefCell::new(Vec::new()) };
    static KEPT: RefCell<Option<Kept>> = const { RefCell::new(None) };
    /// What stood in the server's hooks before us.
    static FINISH_BEFORE: Cell<pg_sys::ExecutorFinish_hook_type> = const { Cell::new(None) };
    static UTILITY_BEFORE: Cell<pg_sys::ProcessUtility_hook_type> = const { Cell::new(None) };
    /// The library was loaded in the middle of this transaction, perhaps by the first trigger of a statement, whose end no hook
    /// will see: rows are stored at once.
    static LOADED_LATE: Cell<bool> = const { Cell::new(false) };
}

pub(super) fn init() {
    // SAFETY: the callbacks and hooks stay valid as long as the library, which the server never unloads.
    unsafe {
        LOADED_LATE.set(pg_sys::IsTransactionState());
        pg_sys::RegisterXactCallback(Some(transaction_event), pg::NO_ARGUMENT);
        pg_sys::RegisterSubXactCallback(Some(subtransaction_event), pg::NO_ARGUMENT);
        FINISH_BEFORE.set(pg_sys::ExecutorFinish_hook);
        pg_sys::ExecutorFinish_hook = Some(statement_finished);
        UTILITY_BEFORE.set(pg_sys::ProcessUtility_hook);
        pg_sys::ProcessUtility_hook = Some(utility_finished);
    }
}

fn level() -> pg_sys::SubTransactionId {
    // SAFETY: reads the state of the present transaction.
    unsafe { pg_sys::GetCurrentSubTransactionId() }
}

/// The queue `name`, if this subtransaction has rows for it and nothing was said about it since: then the lock is held, and
/// what was read under it holds.
pub(super) fn known_queue(name: &[u8]) -> Option<Rc<Queue>> {
    GATHERED.with_borrow(|gathered| {
        let last = gathered.last()?;
        (last.queue.name == name && !last.queue.is_stale() && last.level == level()).then(|| Rc::clone(&last.queue))
    })
}

/// Adds a row for `queue`, which is plain and whose event table this transaction has locked.
///
/// # Safety
/// The values must be of the types of an event table's columns, and those of an event: neither retried nor of one owner only.
pub(super) unsafe fn add(queue: &Rc<Queue>, values: Values, nulls: Nulls) {
    let level = level();
    let packs = queue.packs && !LOADED_LATE.get();
    // SAFETY: as promised.
    let packable = packs.then(|| unsafe { Packable::of(&values, &nulls) }).flatten();
    let is_packed = packable.is_some();
    let ended = with_gathered(level, queue, |there| {
        let Some(event) = packable else {
            return there.packed.take();
        };
        match &mut there.packed {
            Some(packed) if packed.takes(&event) => {
                packed.add(&event);
                None
            }
            before => before.replace(Packed::begin(&event, values, nulls)),
        }
    });
    // SAFETY: as promised.
    let rows = unsafe {
        [
            ended.map(|ended| row_of(ended, queue)),
            (!is_packed).then(|| form(queue, values, nulls)),
        ]
    };
    for row in rows.into_iter().flatten() {
        let full = with_gathered(level, queue, |there| {
            // SAFETY: just made.
            let length = unsafe { (*row).t_len as usize };
            there.rows.push(row);
            there.bytes += length;
            let full = LOADED_LATE.get() || length >= LARGE || there.rows.len() >= SLOTS || there.bytes >= MOST_BYTES;
            full.then(|| {
                let mut empty = Gathered::new(level, queue);
                empty.packed = there.packed.take();
                std::mem::replace(there, empty)
            })
        });
        if let Some(full) = full {
            full.store();
        }
    }
}

/// What this subtransaction has gathered for the queue.
fn with_gathered<R>(level: pg_sys::SubTransactionId, queue: &Rc<Queue>, look: impl FnOnce(&mut Gathered) -> R) -> R {
    GATHERED.with_borrow_mut(|gathered| {
        let place = gathered
            .iter()
            .rposition(|there| there.level == level && Rc::ptr_eq(&there.queue, queue));
        let place = place.unwrap_or_else(|| {
            gathered.push(Gathered::new(level, queue));
            gathered.len() - 1
        });
        look(&mut gathered[place])
    })
}

fn row_of(packed: Packed, queue: &Queue) -> pg_sys::HeapTuple {
    let (values, nulls) = packed.row();
    // SAFETY: what a pack gives are values of an event table's columns.
    unsafe { form(queue, values, nulls) }
}

/// Makes a row in memory that lives until the transaction ends. Not in the subtransaction's own, which the server keeps as long if
/// it has ever been used.
///
/// # Safety
/// The values must be of the types of an event table's columns.
unsafe fn form(queue: &Queue, mut values: Values, mut nulls: Nulls) -> pg_sys::HeapTuple {
    let descriptor = descriptor(queue);
    // SAFETY: the arrays are as promised.
    unsafe {
        let before = pg_sys::CurrentMemoryContext;
        pg_sys::CurrentMemoryContext = pg_sys::TopTransactionContext;
        let row = pg_sys::heap_form_tuple(descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
        pg_sys::CurrentMemoryContext = before;
        row
    }
}

/// Stores what the present subtransaction has gathered. Called where there may be no snapshot, which storing a row may need.
fn store_all() {
    // SAFETY: inside a transaction; what is pushed is popped below, or by the abort.
    let pushed = unsafe { !pg_sys::ActiveSnapshotSet() };
    if pushed {
        // SAFETY: as above.
        unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) }
    }
    store_level();
    if pushed {
        // SAFETY: as above.
        unsafe { pg_sys::PopActiveSnapshot() }
    }
}

fn store_level() {
    let level = level();
    loop {
        let next = GATHERED.with_borrow_mut(|gathered| {
            let place = gathered.iter().position(|there| there.level == level)?;
            Some(gathered.remove(place))
        });
        match next {
            Some(gathered) => gathered.store(),
            None => return,
        }
    }
}

fn is_empty() -> bool {
    GATHERED.with_borrow(Vec::is_empty)
}

/// The shape of event rows.
fn descriptor(queue: &Queue) -> pg_sys::TupleDesc {
    if let Some(descriptor) = KEPT.with_borrow(|kept| kept.as_ref().map(|kept| kept.descriptor)) {
        return descriptor;
    }
    let table = Relation::open(queue.table, pg_sys::RowExclusiveLock);
    // SAFETY: copies the descriptor of an open relation, and makes slots that refer to the copy, all in memory that stays.
    let kept = unsafe {
        let before = pg_sys::CurrentMemoryContext;
        pg_sys::CurrentMemoryContext = pg_sys::TopMemoryContext;
        let descriptor = pg_sys::CreateTupleDescCopy(table.descriptor());
        let slots = (0..SLOTS)
            .map(|_| pg_sys::MakeSingleTupleTableSlot(descriptor, &raw const pg_sys::TTSOpsHeapTuple))
            .collect();
        pg_sys::CurrentMemoryContext = before;
        Kept { descriptor, slots }
    };
    let descriptor = kept.descriptor;
    KEPT.set(Some(kept));
    descriptor
}

impl Gathered {
    fn new(level: pg_sys::SubTransactionId, queue: &Rc<Queue>) -> Self {
        Self {
            level,
            queue: Rc::clone(queue),
            rows: Vec::new(),
            bytes: 0,
            packed: None,
        }
    }

    fn store(mut self) {
        // Without a row there is nothing to store; without a table this transaction has dropped the queue.
        if self.rows.is_empty() && self.packed.is_none() {
            return;
        }
        let Some(table) = Relation::try_open(self.queue.table, pg_sys::RowExclusiveLock) else {
            return;
        };
        // Others cannot have changed the table since it was locked; this transaction can.
        if self.queue.is_stale() && !queue::has_event_columns(&table) {
            pg::raise(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!(
                    "the columns of event table {} were changed while a statement made events for it",
                    pg::shown(&self.queue.table_name)
                ),
                "Leave the columns of event tables as they are.",
            );
        }
        // What the server allocates on the way it gives back only with its memory context, and that of the caller may be one
        // which lives as long as a query that calls a function for each of its rows.
        LongLived::new(c"pgcascade events").during(|| {
            let last = self.packed.take().map(|packed| row_of(packed, &self.queue));
            self.rows.extend(last);
            self.insert(&table);
        });
    }

    fn insert(&self, table: &Relation) {
        let mut slots = KEPT.with_borrow(|kept| kept.as_ref().map_or_else(Vec::new, |kept| kept.slots.clone()));
        // SAFETY: an open table and rows of its shape; nothing in these functions depends on the table being a catalog. The rows
        // outlive the call, and the slots are empty again after it.
        unsafe {
            let indexes = pg_sys::CatalogOpenIndexes(table.raw());
            let mut together = 0;
            for &row in &self.rows {
                let large = (*row).t_len as usize >= LARGE;
                if large || self.rows.len() == 1 {
                    pg_sys::CatalogTupleInsertWithInfo(table.raw(), row, indexes);
                } else {
                    pg_sys::ExecStoreHeapTuple(row, slots[together], false);
                    together += 1;
                }
            }
            pg_sys::CatalogTuplesMultiInsertWithInfo(table.raw(), slots.as_mut_ptr(), together as c_int, indexes);
            // The server has put copies of the rows into the slots.
            for slot in slots.into_iter().take(together) {
                pg_sys::ExecClearTuple(slot);
            }
            pg_sys::CatalogCloseIndexes(indexes);
        }
    }
}

impl Drop for Gathered {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            for &row in &self.rows {
                // SAFETY: made by `add` and freed only here; the transaction, with whose memory they would end, has not ended.
                unsafe { pg_sys::heap_freetuple(row) }
            }
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn transaction_event(event: pg_sys::XactEvent::Type, _argument: *mut c_void) {
    use pg_sys::XactEvent::{XACT_EVENT_PRE_COMMIT, XACT_EVENT_PRE_PREPARE};
    let ends = !matches!(event, XACT_EVENT_PRE_COMMIT | XACT_EVENT_PRE_PREPARE);
    if ends {
        LOADED_LATE.set(false);
    }
    if is_empty() {
        return;
    }
    if ends {
        GATHERED.with_borrow_mut(Vec::clear);
    } else {
        store_all();
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn subtransaction_event(
    event: pg_sys::SubXactEvent::Type,
    ended: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _argument: *mut c_void,
) {
    use pg_sys::SubXactEvent::{SUBXACT_EVENT_ABORT_SUB, SUBXACT_EVENT_PRE_COMMIT_SUB};
    if is_empty() {
        return;
    }
    match event {
        SUBXACT_EVENT_PRE_COMMIT_SUB => store_all(),
        SUBXACT_EVENT_ABORT_SUB => GATHERED.with_borrow_mut(|gathered| gathered.retain(|there| there.level != ended)),
        _ => {}
    }
}

/// Executor hook: the AFTER triggers of the statement have fired. One that only reads has none, and ends in the middle of others
/// that write: the server checks each foreign key by such a one.
///
/// Not guarded, as every error of every statement passes here and a guard would strip it of its position and of the names of
/// constraints: an ERROR jumps across this frame, in which nothing is to be dropped.
unsafe extern "C-unwind" fn statement_finished(query: *mut pg_sys::QueryDesc) {
    // SAFETY: what the server passed is passed on; it is alive for all of the call.
    unsafe {
        match FINISH_BEFORE.get() {
            Some(before) => before(query),
            None => pg::unguarded::standard_ExecutorFinish(query),
        }
        if (*query).operation != pg_sys::CmdType::CMD_SELECT || (*(*query).plannedstmt).hasModifyingCTE {
            store_guarded();
        }
    }
}

/// Utility hook, for COPY, which fires its triggers itself. Not guarded either.
#[allow(clippy::too_many_arguments, reason = "the server's signature")]
unsafe extern "C-unwind" fn utility_finished(
    statement: *mut pg_sys::PlannedStmt,
    text: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    let process = UTILITY_BEFORE.get().unwrap_or(pg::unguarded::standard_ProcessUtility);
    // SAFETY: what the server passed is passed on.
    unsafe {
        process(
            statement,
            text,
            read_only_tree,
            context,
            parameters,
            environment,
            destination,
            completion,
        );
        store_guarded();
    }
}

/// Where there is nothing, there may be no transaction either: a statement can end it.
#[pg_guard]
unsafe extern "C-unwind" fn store_guarded() {
    if !is_empty() {
        store_all();
    }
}
