//! The control row of a queue as writers see it: which table takes events now, whether inserting is allowed.
//!
//! Called by [`crate::insert`] for every event, so it is cached. The promise, on which rotation and the fence rest
//! (docs/concurrency.md): a writer holds a transaction id **first**, then takes a RowExclusiveLock on the queue's parent
//! event table, held to the end of its transaction, and **only then** believes a control row that was read with a
//! fresh snapshot and not invalidated since.
//!
//! - What the lock protects: a fence takes a conflicting lock, so it waits for all writers and is seen by all later ones.
//! - What invalidates the cache: a trigger on `pgq.queue` ([`control_changed`]) sends a relcache message for the queue's
//!   parent table. Messages are sent after the change became visible and before its locks are released; taking our lock
//!   reads them. A writer that missed one therefore had its transaction id before the rotation's second step got its
//!   own, which orders after the first by a lock (sql/maint.sql): its events belong to the table it chose.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::CString;
use std::rc::Rc;

use pgrx::prelude::*;
use pgrx::{PgSqlErrorCode, pg_sys};

use crate::pg::{self, Relation, native};
use crate::promoted;

/// What writers need of a row of `pgq.queue`, with names resolved.
pub(crate) struct Queue {
    /// `queue_name`, in the server's encoding.
    pub(crate) name: Vec<u8>,
    /// `pgq.event_N`, the parent of the event tables: the thing to lock.
    pub(crate) parent: pg_sys::Oid,
    /// The event table that takes events now.
    pub(crate) table: pg_sys::Oid,
    /// `queue_data_pfx` and `queue_cur_table` joined: the table's name as SQL writes it.
    pub(crate) table_name: Vec<u8>,
    /// The sequence of event ids.
    pub(crate) sequence: pg_sys::Oid,
    /// Whether the event table has only what we gave it, so that a row can be inserted without the executor.
    pub(crate) plain: bool,
    /// Whether events of a statement are stored together (`pgcascade.pack_events()`).
    pub(crate) packs: bool,
    /// `queue_disable_insert`.
    disable_insert: bool,
    /// `queue_per_tx_limit`.
    per_tx_limit: Option<i32>,
    /// Value of `GENERATION` when reading began; another value now means that this may be stale.
    generation: u64,
    /// The transaction that last inserted, and how many events it has inserted.
    inserted: Cell<(u64, i64)>,
}

thread_local! {
    /// Queues by name. Entries are valid while their generation is the current one.
    static QUEUES: RefCell<HashMap<Vec<u8>, Rc<Queue>>> = RefCell::new(HashMap::new());
    /// The parents, event tables and sequences of the cached queues, for the callback to recognise.
    static WATCHED: RefCell<Vec<pg_sys::Oid>> = const { RefCell::new(Vec::new()) };
    /// Goes up with each message about a cached queue; it invalidates all of them, which is rare enough.
    static GENERATION: Cell<u64> = const { Cell::new(0) };
}

pub(crate) fn init() {
    // SAFETY: the callback stays valid as long as the library, which the server never unloads.
    unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), pg_sys::Datum::from(0usize)) }
}

/// Relcache callback: only raises a number, since it can run inside any call into the server.
#[pg_guard]
unsafe extern "C-unwind" fn relation_changed(_argument: pg_sys::Datum, relation: pg_sys::Oid) {
    let ours = relation == pg_sys::InvalidOid
        || WATCHED.with(|watched| watched.try_borrow().map_or(true, |watched| watched.contains(&relation)));
    if ours {
        GENERATION.with(|generation| generation.set(generation.get() + 1));
    }
}

fn generation() -> u64 {
    GENERATION.with(Cell::get)
}

/// The queue `name` for writing, by the rule at the top of this file. Does not look at the disable flag or the limit.
/// Assigns a transaction id; locks the parent table RowExclusive until the end of the transaction.
/// `None` if there is no such queue.
pub(crate) fn for_writing(name: &[u8]) -> Option<Rc<Queue>> {
    pg::transaction_id();
    loop {
        let cached = QUEUES.with(|queues| queues.borrow().get(name).cloned());
        let queue = match cached {
            Some(queue) if !queue.is_stale() => queue,
            _ => read(name)?,
        };
        // SAFETY: locks an oid; if the table is gone the lock is on nothing, and the message that said so comes with it.
        unsafe { pg_sys::LockRelationOid(queue.parent, pg_sys::RowExclusiveLock as pg_sys::LOCKMODE) };
        if !queue.is_stale() {
            return Some(queue);
        }
        // A message came while we waited for the lock: read again, now under the lock.
    }
}

impl Queue {
    /// Whether a message came since this was read: the event table may have another shape by now.
    pub(crate) fn is_stale(&self) -> bool {
        self.generation != generation()
    }

    /// Counts one more event of `transaction`, the present one, after checking that it may be inserted.
    pub(crate) fn admit(&self, transaction: u64) {
        if self.is_closed() {
            self.refuse("Insert into queue disallowed");
        }
        let (last, count) = self.inserted.get();
        let count = if last == transaction { count } else { 0 };
        if let Some(limit) = self.per_tx_limit
            && count >= i64::from(limit)
        {
            pg::raise(
                PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
                format!(
                    "Queue '{}' allows max {limit} events from one TX",
                    pg::shown(&self.name)
                ),
                "Write in smaller transactions, or raise queue_per_tx_limit in pgq.queue.",
            );
        }
        self.inserted.set((transaction, count + 1));
    }

    /// Whether inserting is switched off for this session; sessions that replicate may always.
    pub(crate) fn is_closed(&self) -> bool {
        // SAFETY: reads a setting of this backend.
        let role = unsafe { pg_sys::SessionReplicationRole };
        self.disable_insert && role != pg_sys::SESSION_REPLICATION_ROLE_REPLICA as i32
    }

    /// Raises `message` with what to do about a closed queue.
    pub(crate) fn refuse(&self, message: &str) -> ! {
        pg::raise(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            message,
            format!(
                "Queue '{}' has queue_disable_insert set: write at the root of its cascade, or clear the flag in pgq.queue.",
                pg::shown(&self.name)
            ),
        )
    }
}

/// The types of the columns of `pgq.event_template`.
pub(crate) const EVENT_COLUMNS: [pg_sys::Oid; 11] = [
    pg_sys::INT8OID,
    pg_sys::TIMESTAMPTZOID,
    pg_sys::INT8OID,
    pg_sys::INT4OID,
    pg_sys::INT4OID,
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
];

/// Columns of `pgq.queue` that writers need, in the order in which [`read`] takes them.
const COLUMNS: [&std::ffi::CStr; 7] = [
    c"queue_id",
    c"queue_name",
    c"queue_data_pfx",
    c"queue_event_seq",
    c"queue_cur_table",
    c"queue_disable_insert",
    c"queue_per_tx_limit",
];

/// Reads the control row with a fresh snapshot and puts it into the cache.
fn read(name: &[u8]) -> Option<Rc<Queue>> {
    read_behind(name, None)
}

/// `incomplete`: the queue of that name that lacked a table or sequence when its row was read before.
fn read_behind(name: &[u8], incomplete: Option<i32>) -> Option<Rc<Queue>> {
    let generation = generation();
    let Some(control) = pg::relation_in_pgq(c"queue") else {
        pg::raise(
            PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
            "table pgq.queue does not exist",
            "Run CREATE EXTENSION pgcascade in this database.",
        );
    };
    let table = Relation::open(control, pg_sys::AccessShareLock);
    let columns = COLUMNS.map(|column| {
        // SAFETY: a look-up by NUL-terminated name; 0 means that there is none.
        let number = unsafe { pg_sys::get_attnum(control, column.as_ptr()) };
        if number <= 0 {
            pg::raise(
                PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
                format!("table pgq.queue has no column {}", column.to_string_lossy()),
                "Run ALTER EXTENSION pgcascade UPDATE.",
            );
        }
        usize::from(number.unsigned_abs()) - 1
    });

    let mut found = None;
    // SAFETY: an open relation has its descriptor.
    let width = usize::try_from(unsafe { (*table.descriptor()).natts }).unwrap_or(0);
    let mut values = vec![pg_sys::Datum::from(0usize); width];
    let mut nulls = vec![true; width];
    // There are few queues, and the result is cached, so no index is used and with it no question of collations.
    table.each_row(|row| {
        // SAFETY: a row of this table, and arrays of its width; values are copied out before the next row. The types are
        // those of sql/schema.sql.
        unsafe {
            pg_sys::heap_deform_tuple(row, table.descriptor(), values.as_mut_ptr(), nulls.as_mut_ptr());
            let [id, queue_name, prefix, sequence, current, disabled, limit] =
                columns.map(|column| (!nulls[column]).then_some(values[column]));
            if queue_name.is_none_or(|value| pg::text_bytes(value) != name) {
                return;
            }
            let text =
                |value: Option<pg_sys::Datum>| value.map_or_else(Vec::new, |value| pg::text_bytes(value).to_vec());
            found = Some((
                id.map_or(0, |value| value.value() as i32),
                text(prefix),
                text(sequence),
                current.map_or(0, |value| value.value() as i32),
                disabled.is_some_and(|value| value.value() & 1 == 1),
                limit.map(|value| value.value() as i32),
            ));
        }
    });

    let (id, prefix, sequence, current, disable_insert, per_tx_limit) = found?;
    check_restored(name, id);
    if !disable_insert {
        promoted::check(name);
    }
    let table_name = [prefix.as_slice(), format!("_{current}").as_bytes()].concat();
    let names = [&prefix, &table_name, &sequence];
    let [Some(parent), Some(table), Some(sequence)] = names.map(|relation| resolve(relation)) else {
        // It may have been dropped since its row was read. What is gone then is gone for a newer snapshot with its row.
        if incomplete != Some(id) {
            return read_behind(name, Some(id));
        }
        let missing = names.into_iter().find(|relation| resolve(relation).is_none());
        lacks(name, missing.unwrap_or(&prefix));
    };
    // Watched before it is looked at: a change during the look makes the entry stale.
    WATCHED.with(|watched| {
        let mut watched = watched.borrow_mut();
        for relation in [parent, table, sequence] {
            if !watched.contains(&relation) {
                watched.push(relation);
            }
        }
    });
    check_uncached(name, sequence);
    // Not held on: whoever drops the queue locks the parent before its children, and our lock on the parent is still to come.
    // If it is gone, the queue was dropped just now, and the control row with it.
    let Some(event_table) = Relation::try_open(table, pg_sys::AccessShareLock) else {
        return read(name);
    };
    let plain = is_plain(&event_table);
    let packs = is_packed(id);
    event_table.release(pg_sys::AccessShareLock);
    let queue = Rc::new(Queue {
        name: name.to_vec(),
        parent,
        table,
        table_name,
        sequence,
        plain,
        packs,
        disable_insert,
        per_tx_limit,
        generation,
        // The count of this transaction must survive a re-read of the row.
        inserted: Cell::new(QUEUES.with(|queues| queues.borrow().get(name).map_or((0, 0), |old| old.inserted.get()))),
    });
    QUEUES.with(|queues| queues.borrow_mut().insert(name.to_vec(), Rc::clone(&queue)));
    Some(queue)
}

/// Whether an event table has the columns of `pgq.event_template` and no others, and is without rules, triggers, row security,
/// checks, and partial or expression indexes.
pub(crate) fn is_plain(table: &Relation) -> bool {
    // SAFETY: reads the relcache entries of an open relation and of its indexes, each open while it is read.
    unsafe {
        let relation = table.raw();
        let class = &*(*relation).rd_rel;
        if class.relhastriggers || class.relrowsecurity || class.relhasrules {
            return false;
        }
        let descriptor = table.descriptor();
        let constraints = (*descriptor).constr;
        if !has_event_columns(table)
            || !(constraints.is_null() || ((*constraints).num_check == 0 && !(*constraints).has_generated_stored))
        {
            return false;
        }
        let odd = pg::first_index(relation, |index| {
            let plain = pg_sys::RelationGetIndexExpressions(index).is_null()
                && pg_sys::RelationGetIndexPredicate(index).is_null();
            (!plain).then_some(())
        });
        odd.is_none()
    }
}

/// Whether a table has the columns of `pgq.event_template`, by their types, and no others.
pub(crate) fn has_event_columns(table: &Relation) -> bool {
    let descriptor = table.descriptor();
    // SAFETY: the descriptor of an open relation, and indexes below its number of attributes.
    unsafe {
        let given = usize::try_from((*descriptor).natts).unwrap_or(0);
        (0..given)
            .map(|index| pg::attribute(descriptor, index).atttypid)
            .eq(EVENT_COLUMNS)
    }
}

/// The oid behind a name such as `pgq.event_1_0` from a control row; none if nothing has that name.
fn resolve(name: &[u8]) -> Option<pg_sys::Oid> {
    let bare = CString::new(name.strip_prefix(b"pgq.")?).ok()?;
    pg::relation_in_pgq(&bare)
}

fn lacks(queue: &[u8], name: &[u8]) -> ! {
    pg::raise(
        PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
        format!(
            "relation {} of queue '{}' does not exist",
            pg::shown(name),
            pg::shown(queue)
        ),
        "Restore it, or drop the queue with pgq.drop_queue() and create it again.",
    )
}

/// Refuses a queue that was loaded from a dump and is still marked so: transaction ids of here may be ones that its ticks
/// take for seen (sql/restore.sql). A mark is set together with the queue's row and only ever taken off, so what is cached
/// needs no look.
fn check_restored(queue: &[u8], id: i32) {
    let Some(marks) = pg::relation_in(c"pgcascade", c"restored_queue") else {
        return; // a library newer than the installed extension
    };
    let table = Relation::open(marks, pg_sys::AccessShareLock);
    let mut marked = false;
    table.each_row(|row| {
        let mut missing = false;
        // SAFETY: a row of this table, whose first column is the id, an int4.
        let value = unsafe { pg_sys::heap_getattr(row, 1, table.descriptor(), &mut missing) };
        marked |= !missing && value.value() as i32 == id;
    });
    if marked {
        pg::raise(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!(
                "queue '{}' was restored from a dump and takes no events yet",
                pg::shown(queue)
            ),
            "The ticker clears it within a second after the restore, or says in the server's log what is wrong with it. \
             Where no ticker runs, or where it says so, run SELECT pgcascade.mend_restored().",
        );
    }
}

/// Whether the queue is to be packed. Whoever changes that changes the queue's row with it, so that what is cached is read again.
fn is_packed(id: i32) -> bool {
    let Some(packed) = pg::relation_in(c"pgcascade", c"packed_queue") else {
        return false; // a library newer than the installed extension
    };
    let table = Relation::open(packed, pg_sys::AccessShareLock);
    let mut packs = false;
    table.each_row(|row| {
        let mut missing = false;
        // SAFETY: a row of this table, whose columns are the id, an int4, and a bool, both not null.
        let [of, on] =
            unsafe { [1, 2].map(|column| pg_sys::heap_getattr(row, column, table.descriptor(), &mut missing)) };
        packs |= of.value() as i32 == id && on.value() & 1 == 1;
    });
    packs
}

/// pg_sequence (SequenceRelationId).
const SEQUENCE_CATALOG: pg_sys::Oid = pg_sys::Oid::from_u32(2224);

/// Event ids must be drawn one at a time: a sequence that hands out blocks would put a later change of a row before an
/// earlier one of another session.
fn check_uncached(queue: &[u8], sequence: pg_sys::Oid) {
    // SAFETY: reads the catalog row of a sequence and gives it back; the column is an int8, not null.
    let cache = unsafe {
        let row = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::SEQRELID as i32, sequence.into());
        if row.is_null() {
            return;
        }
        let column = pg_sys::get_attnum(SEQUENCE_CATALOG, c"seqcache".as_ptr());
        let mut missing = false;
        let cache = pg_sys::SysCacheGetAttr(pg_sys::SysCacheIdentifier::SEQRELID as i32, row, column, &mut missing);
        pg_sys::ReleaseSysCache(row);
        cache.value() as i64
    };
    if cache != 1 {
        pg::raise(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!(
                "the event sequence of queue '{}' has CACHE {cache}, which would reorder events",
                pg::shown(queue)
            ),
            "Set it back with ALTER SEQUENCE ... CACHE 1 (its name is queue_event_seq in pgq.queue).",
        );
    }
}

native!(
    control_changed_wrapper,
    pg_finfo_control_changed_wrapper,
    control_changed
);

/// Trigger `pgcascade.control_changed()` on `pgq.queue`: tells all backends to forget what they know of the queue.
fn control_changed(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: the server calls a trigger function with TriggerData as its context; anything else is refused.
    let (relation, rows) = unsafe {
        if !pgrx::called_as_trigger(call) {
            pg::raise(
                PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
                "pgcascade.control_changed() must be called as a trigger",
                "",
            );
        }
        let data = (*call).context.cast::<pg_sys::TriggerData>();
        ((*data).tg_relation, [(*data).tg_trigtuple, (*data).tg_newtuple])
    };
    for row in rows.into_iter().filter(|row| !row.is_null()) {
        let mut missing = false;
        // SAFETY: the row belongs to the relation the trigger fired for.
        let prefix = unsafe {
            let descriptor = (*relation).rd_att;
            let number = pg_sys::get_attnum((*relation).rd_id, c"queue_data_pfx".as_ptr());
            let value = pg_sys::heap_getattr(row, i32::from(number), descriptor, &mut missing);
            (!missing).then(|| pg::text_bytes(value).to_vec())
        };
        // A row that is being inserted has no parent table yet, and nobody can have cached it.
        let parent = prefix
            .and_then(|prefix| CString::new(prefix.strip_prefix(b"pgq.")?).ok())
            .and_then(|bare| pg::relation_in_pgq(&bare));
        if let Some(parent) = parent {
            pg::invalidate_relation(parent);
        }
    }
    pg_sys::Datum::from(0usize)
}
