//! Storing an event: the end of `pgq.insert_event()`, `pgq.insert_event_raw()` and of the capture triggers.
//!
//! The row is formed and inserted without the executor (the event tables are ours: no rules, no defaults to compute),
//! at the price of what a user might have added to them: a table with triggers, row security, generated columns or
//! partial and expression indexes is written by an ordinary INSERT instead.

mod gathered;
mod packed;

use std::cell::Cell;
use std::rc::Rc;

use pgrx::prelude::*;
use pgrx::{PgSqlErrorCode, pg_sys};

use crate::pg::{self, ActingAs, Relation, SettingsNest, native};
use crate::queue::{self, Queue};
use crate::worker;

/// An event to be stored; the fields are the columns of `pgq.event_template`. `None` is NULL.
/// Text fields are text datums that live until the call ends.
#[derive(Default)]
pub(crate) struct Event {
    /// `ev_id`; `None` takes the next value of the queue's sequence.
    pub(crate) id: Option<i64>,
    /// `ev_time`; `None` is the start of the transaction.
    pub(crate) time: Option<pg_sys::TimestampTz>,
    /// `ev_owner`: the subscription (`sub_id`) that alone gets this event.
    pub(crate) owner: Option<i32>,
    /// `ev_retry`: how many times it was retried.
    pub(crate) retry: Option<i32>,
    /// `ev_type`, `ev_data`, `ev_extra1` to `ev_extra4`.
    pub(crate) texts: [Option<pg_sys::Datum>; 6],
}

/// Columns of an event table: the five below and six texts.
const WIDTH: usize = queue::EVENT_COLUMNS.len();

thread_local! {
    /// Whether `pgq.insert_event` with seven arguments is still the extension's own; `None` when not known.
    /// Invalidated by any message about pg_proc.
    static OURS: Cell<Option<bool>> = const { Cell::new(None) };
}

pub(crate) fn init() {
    // SAFETY: the callback stays valid as long as the library, which the server never unloads.
    unsafe {
        pg_sys::CacheRegisterSyscacheCallback(
            pg_sys::SysCacheIdentifier::PROCOID as i32,
            Some(function_changed),
            pg_sys::Datum::from(0usize),
        );
    }
    gathered::init();
}

/// Syscache callback: only sets a flag.
#[pg_guard]
unsafe extern "C-unwind" fn function_changed(_argument: pg_sys::Datum, _cache: i32, _hash: u32) {
    OURS.with(|ours| ours.set(None));
}

/// Stores `event` in the queue `name` and returns its id. Locks and errors as in [`queue::for_writing`], then
/// `Insert into queue disallowed` and `Queue '...' allows max ... events from one TX`.
pub(crate) fn store(name: &[u8], event: &Event) -> i64 {
    let queue = writable(name);
    let (id, mut values, mut nulls) = row(&queue, event);
    match plain_table(&queue) {
        None => insert_by_statement(&queue, &values, &nulls),
        // SAFETY: the arrays have as many elements as the table has columns (it is plain), of their types.
        // CatalogTupleInsert toasts, inserts and maintains plain indexes; nothing in it depends on the table being a catalog.
        Some(table) => unsafe {
            let row = pg_sys::heap_form_tuple(table.descriptor(), values.as_mut_ptr(), nulls.as_mut_ptr());
            pg_sys::CatalogTupleInsert(table.raw(), row);
            pg_sys::heap_freetuple(row);
        },
    }
    id
}

/// The same for the event of a capture trigger, whose row is in the table when the statement ends (gathered.rs).
fn gather(name: &[u8], event: &Event) {
    let known = gathered::known_queue(name);
    let is_known = known.is_some();
    let queue = known.unwrap_or_else(|| writable(name));
    let (_, values, nulls) = row(&queue, event);
    if is_known || plain_table(&queue).is_some() {
        // SAFETY: of the types of the columns; the table is locked, for this row or for one that was gathered before it.
        unsafe { gathered::add(&queue, values, nulls) };
    } else {
        insert_by_statement(&queue, &values, &nulls);
    }
}

/// The queue, locked for writing.
fn writable(name: &[u8]) -> Rc<Queue> {
    queue::for_writing(name).unwrap_or_else(|| no_queue("No such queue", name))
}

/// Admits an event to a queue that is locked for writing, and makes its id and row.
fn row(queue: &Rc<Queue>, event: &Event) -> (i64, [pg_sys::Datum; WIDTH], [bool; WIDTH]) {
    let transaction = pg::transaction_id();
    queue.admit(transaction);
    // Drawn even if the event brings its id: the ticker sees by this sequence that there is something to tick.
    let next = pg::next_value(queue.sequence);
    let id = event.id.unwrap_or(next);
    let time = event.time.unwrap_or_else(|| {
        // SAFETY: called inside a transaction.
        unsafe { pg_sys::GetCurrentTransactionStartTimestamp() }
    });
    let mut values = [pg_sys::Datum::from(0usize); WIDTH];
    let mut nulls = [false; WIDTH];
    values[0] = id.into();
    values[1] = time.into();
    values[2] = transaction.cast_signed().into();
    let mut optional = |column: usize, value: Option<pg_sys::Datum>| match value {
        Some(value) => values[column] = value,
        None => nulls[column] = true,
    };
    optional(3, event.owner.map(Into::into));
    optional(4, event.retry.map(Into::into));
    for (offset, text) in event.texts.iter().enumerate() {
        optional(5 + offset, *text);
    }
    worker::wake::at_commit();
    (id, values, nulls)
}

/// The event table, locked, if a row can be inserted into it without the executor. The lock of `for_writing` is on the parent: an
/// ALTER TABLE of this table alone may have committed while we waited for the table's. More columns than a row has would be read
/// from beyond its end.
fn plain_table(queue: &Queue) -> Option<Relation> {
    let table = Relation::open(queue.table, pg_sys::RowExclusiveLock);
    (queue.plain && (!queue.is_stale() || queue::is_plain(&table))).then_some(table)
}

fn no_queue(message: &str, name: &[u8]) -> ! {
    pg::raise(
        PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
        message,
        format!(
            "There is no queue '{}': create it with pgq.create_queue(), or correct the name.",
            pg::shown(name)
        ),
    )
}

fn insert_by_statement(queue: &Queue, values: &[pg_sys::Datum; WIDTH], nulls: &[bool; WIDTH]) {
    let statement = format!(
        "insert into {} (ev_id, ev_time, ev_txid, ev_owner, ev_retry, ev_type, ev_data, \
         ev_extra1, ev_extra2, ev_extra3, ev_extra4) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        pg::shown(&queue.table_name)
    );
    let arguments: Vec<_> = (0..WIDTH)
        .map(|column| {
            // SAFETY: each value is of the type beside it.
            unsafe {
                pgrx::datum::DatumWithOid::new((!nulls[column]).then_some(values[column]), queue::EVENT_COLUMNS[column])
            }
        })
        .collect();
    // As the owner of the queue's tables: writers have no privileges on them.
    // SAFETY: an open relation has its catalog row.
    let owner = unsafe { (*(*Relation::open(queue.table, pg_sys::RowExclusiveLock).raw()).rd_rel).relowner };
    let _acting = ActingAs::role(owner, false);
    if let Err(error) = Spi::connect_mut(|client| client.update(statement.as_str(), None, &arguments).map(|_| ())) {
        pg::raise(
            PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            format!("could not insert event: {error}"),
            "",
        );
    }
}

/// Stores the event of a capture trigger: by the SQL function `pgq.insert_event(queue, type, data, extra1..extra4)` if users
/// have replaced it.
pub(crate) fn capture(queue: &[u8], texts: [Option<pg_sys::Datum>; 6]) {
    if is_ours() {
        let event = Event {
            texts,
            ..Event::default()
        };
        gather(queue, &event);
    } else {
        store_as_users_wish(queue, texts);
    }
}

/// Stores an event by the SQL function that users have put in the place of `pgq.insert_event(queue, type, data,
/// extra1..extra4)`. Returns what that returns: the event's id.
fn store_as_users_wish(queue: &[u8], texts: [Option<pg_sys::Datum>; 6]) -> Option<i64> {
    let all = std::iter::once(Some(pg::text_datum(queue))).chain(texts);
    // SAFETY: all seven are text datums.
    let arguments: Vec<_> = all
        .map(|text| unsafe { pgrx::datum::DatumWithOid::new(text, pg_sys::TEXTOID) })
        .collect();
    // The replacement runs as its owner, who alone could make it: a table's writers need no privilege on the queue. So it
    // must not look names up in a search_path that the writer chose.
    let settings = SettingsNest::open();
    settings.set(c"search_path", c"pg_catalog, pg_temp");
    let _acting = insert_event_function().map(|(_, owner)| ActingAs::role(owner, false));
    let call = "select pgq.insert_event($1, $2, $3, $4, $5, $6, $7)";
    Spi::connect_mut(|client| client.update(call, None, &arguments)?.first().get_one::<i64>()).unwrap_or_else(|error| {
        pg::raise(
            PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            format!("pgq.insert_event failed: {error}"),
            "",
        )
    })
}

fn is_ours() -> bool {
    if let Some(known) = OURS.with(Cell::get) {
        return known;
    }
    // Set before the look-up: a message that arrives during it leaves "not known".
    OURS.with(|ours| ours.set(Some(false)));
    let found = insert_event_function().is_some_and(|(ours, _)| ours);
    OURS.with(|ours| {
        if ours.get().is_some() {
            ours.set(Some(found));
        }
    });
    found
}

/// The language `c` in pg_language (ClanguageId).
const C_LANGUAGE: pg_sys::Oid = pg_sys::Oid::from_u32(13);

/// Whether `pgq.insert_event` of seven texts is our C function, and its owner.
fn insert_event_function() -> Option<(bool, pg_sys::Oid)> {
    // SAFETY: a syscache look-up whose row is given back; prosrc is copied before.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"pgq".as_ptr(), true);
        let types = [pg_sys::TEXTOID; 7];
        let signature = pg_sys::buildoidvector(types.as_ptr(), 7);
        let row = pg_sys::SearchSysCache3(
            pg_sys::SysCacheIdentifier::PROCNAMEARGSNSP as i32,
            pg_sys::Datum::from(c"insert_event".as_ptr()),
            signature.into(),
            schema.into(),
        );
        if row.is_null() {
            return None;
        }
        let form: *const pg_sys::FormData_pg_proc = pg_sys::GETSTRUCT(row).cast();
        let (language, owner) = ((*form).prolang, (*form).proowner);
        let mut missing = false;
        let source = pg_sys::SysCacheGetAttr(
            pg_sys::SysCacheIdentifier::PROCNAMEARGSNSP as i32,
            row,
            pg_sys::Anum_pg_proc_prosrc as pg_sys::AttrNumber,
            &mut missing,
        );
        let ours = language == C_LANGUAGE && !missing && pg::text_bytes(source) == b"insert_event_wrapper";
        pg_sys::ReleaseSysCache(row);
        Some((ours, owner))
    }
}

native!(insert_event_wrapper, pg_finfo_insert_event_wrapper, insert_event);
native!(
    insert_event_raw_wrapper,
    pg_finfo_insert_event_raw_wrapper,
    insert_event_raw
);
native!(
    current_event_table_wrapper,
    pg_finfo_current_event_table_wrapper,
    current_event_table
);

/// Argument `index` of a call, `None` if NULL or not given.
fn argument(call: pg_sys::FunctionCallInfo, index: usize) -> Option<pg_sys::Datum> {
    // SAFETY: the server passes a call frame with `nargs` arguments.
    unsafe {
        let frame = &*call;
        if index >= usize::from(frame.nargs.unsigned_abs()) {
            return None;
        }
        let argument = &*frame.args.as_ptr().add(index);
        (!argument.isnull).then_some(argument.value)
    }
}

/// The queue's name, which every function here has as its first argument.
fn queue_name<'a>(call: pg_sys::FunctionCallInfo) -> &'a [u8] {
    match argument(call, 0) {
        // SAFETY: the SQL declaration says text; the argument lives as long as the call.
        Some(name) => unsafe { pg::text_bytes(name) },
        None => pg::raise(
            PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
            "Queue name must not be NULL",
            "Give the name of a queue.",
        ),
    }
}

/// `pgq.insert_event(queue, type, data)` and `(queue, type, data, extra1, extra2, extra3, extra4)`. The first calls the
/// second if users have replaced that.
fn insert_event(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    let queue = queue_name(call);
    let texts = std::array::from_fn(|index| argument(call, 1 + index));
    // SAFETY: the server passes a live call frame.
    let short = unsafe { (*call).nargs } == 3;
    if !short || is_ours() {
        let event = Event {
            texts,
            ..Event::default()
        };
        return store(queue, &event).into();
    }
    match store_as_users_wish(queue, texts) {
        Some(id) => id.into(),
        None => {
            // SAFETY: as above.
            unsafe { (*call).isnull = true };
            pg_sys::Datum::from(0usize)
        }
    }
}

/// `pgq.insert_event_raw(queue, id, time, owner, retry, type, data, extra1, extra2, extra3, extra4)`.
fn insert_event_raw(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    let retry = argument(call, 4).map(|value| value.value() as i32);
    if retry.is_some_and(|retry| retry < 0) {
        pg::raise(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!(
                "an event for queue '{}' cannot have been retried a negative number of times",
                pg::shown(queue_name(call))
            ),
            "Give how often it was retried in ev_retry, or NULL.",
        );
    }
    let event = Event {
        id: argument(call, 1).map(|value| value.value() as i64),
        time: argument(call, 2).map(|value| value.value() as i64),
        owner: argument(call, 3).map(|value| value.value() as i32),
        retry,
        texts: std::array::from_fn(|index| argument(call, 5 + index)),
    };
    store(queue_name(call), &event).into()
}

/// `pgq.current_event_table(queue)`: the name of the table that takes events now, valid for direct INSERT or COPY until
/// the end of this transaction, which from here on counts as a writer of the queue.
fn current_event_table(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    let name = argument(call, 0).map_or_else(Vec::new, |name| {
        // SAFETY: the SQL declaration says text; the argument lives as long as the call.
        unsafe { pg::text_bytes(name) }.to_vec()
    });
    let Some(queue) = queue::for_writing(&name) else {
        no_queue("Event queue not found", &name);
    };
    if queue.is_closed() {
        queue.refuse("Writing to queue disabled");
    }
    worker::wake::at_commit();
    pg::text_datum(&queue.table_name)
}
