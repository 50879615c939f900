//! Capture: the triggers `pgq.logutriga()`, `pgq.sqltriga()` and `pgq.jsontriga()`, which turn a row change into an event.
//!
//! A change of the key becomes two events, the delete of the old row and the insert of the new one, so that whoever replays
//! them by key gets it right. Everything else follows sql-contract.md, sections 1.4 and 2. A trigger fires with the table
//! writer's rights and needs none on the queue: making the trigger is what takes a right.

mod arguments;
mod expression;
mod format;
mod output;
mod row;
mod trigger;

use std::cell::Cell;

use pgrx::{PgSqlErrorCode, pg_sys};
use wire::event_type::Operation;

use self::format::Format;
use self::output::Fixed;
use self::row::Row;
use self::trigger::Capture;
use crate::pg::{self, native};
use crate::{guc, insert};

pub(crate) fn init() {
    trigger::init();
}

native!(logutriga_wrapper, pg_finfo_logutriga_wrapper, logutriga);
native!(sqltriga_wrapper, pg_finfo_sqltriga_wrapper, sqltriga);
native!(jsontriga_wrapper, pg_finfo_jsontriga_wrapper, jsontriga);

fn logutriga(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    fire(call, Format::Url)
}

fn sqltriga(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    fire(call, Format::Sql)
}

fn jsontriga(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    fire(call, Format::Json)
}

/// What one row needs while it is captured; kept from row to row for its memory.
#[derive(Default)]
struct Scratch {
    old: Row,
    new: Row,
    data: Vec<u8>,
}

/// A bigger buffer than this is not kept for the next row.
const KEPT: usize = 1 << 20;

thread_local! {
    /// Taken out while in use, so that a trigger that fires inside another one makes its own.
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

fn fire(call: pg_sys::FunctionCallInfo, format: Format) -> pg_sys::Datum {
    // SAFETY: the server calls a trigger function with TriggerData as its context; anything else is refused.
    let data = unsafe {
        if !pgrx::called_as_trigger(call) {
            pg::raise(
                PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
                format!("{} not called as trigger", format.function()),
                "Use it in CREATE TRIGGER ... EXECUTE FUNCTION.",
            );
        }
        &*(*call).context.cast::<pg_sys::TriggerData>()
    };
    let operation = operation(data.tg_event);
    check_level(data.tg_event, operation);
    let row = match operation {
        Operation::Truncate => std::ptr::null_mut(),
        Operation::Update => data.tg_newtuple,
        Operation::Insert | Operation::Delete => data.tg_trigtuple,
    };
    // SAFETY: reads a setting of this backend.
    if unsafe { pg_sys::SessionReplicationRole } == pg_sys::SESSION_REPLICATION_ROLE_LOCAL as i32 {
        return row.into();
    }

    let capture = trigger::of(data, format);
    if capture.arguments.skip && data.tg_event & pg_sys::TRIGGER_EVENT_TIMINGMASK == pg_sys::TRIGGER_EVENT_AFTER {
        pg::raise(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            "SKIP does not work in AFTER trigger.",
            "Make it a BEFORE trigger, or leave SKIP out.",
        );
    }
    if capture.arguments.deny {
        pg::raise(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!(
                "Table '{}' to queue '{}': change not allowed ({})",
                capture.table_name,
                pg::shown(&capture.arguments.queue),
                operation_name(operation)
            ),
            "The trigger's deny argument forbids it: change the table at the root of its cascade.",
        );
    }

    let mut scratch = SCRATCH.with(Cell::take).unwrap_or_default();
    // SAFETY: the tuples of this call are rows of its relation and stay until it ends.
    unsafe {
        let descriptor = (*data.tg_relation).rd_att;
        match operation {
            Operation::Insert => scratch.new.fill(data.tg_trigtuple, descriptor),
            Operation::Delete => scratch.old.fill(data.tg_trigtuple, descriptor),
            Operation::Update => {
                scratch.old.fill(data.tg_trigtuple, descriptor);
                scratch.new.fill(data.tg_newtuple, descriptor);
            }
            Operation::Truncate => {}
        }
    }
    let place = (capture.arguments.place && is_inserted(data.tg_event)).then(|| {
        // SAFETY: the row is the one of this call, whose table is open.
        unsafe { place(&*data.tg_trigtuple, (*data.tg_relation).rd_id) }
    });
    record(&capture, format, operation, place.as_deref(), &mut scratch);
    if scratch.data.capacity() > KEPT {
        scratch.data = Vec::new();
    }
    SCRATCH.with(|kept| kept.set(Some(scratch)));

    // A BEFORE trigger keeps the row out by returning nothing.
    if capture.arguments.skip {
        pg_sys::Datum::from(0usize)
    } else {
        row.into()
    }
}

/// Whether the row is in its table: a BEFORE trigger's is nowhere yet.
fn is_inserted(event: pg_sys::TriggerEvent) -> bool {
    operation(event) == Operation::Insert && event & pg_sys::TRIGGER_EVENT_TIMINGMASK == pg_sys::TRIGGER_EVENT_AFTER
}

/// Where a row is stored: system identifier, oid of the database, oid of the table and number of the block, between colons. So
/// that it means nothing anywhere but here, wherever the event is handed on to.
///
/// # Safety
/// To be called inside a transaction.
unsafe fn place(row: &pg_sys::HeapTupleData, table: pg_sys::Oid) -> String {
    let block = row.t_self.ip_blkid;
    let block = u32::from(block.bi_hi) << 16 | u32::from(block.bi_lo);
    // SAFETY: reads what stays the same as long as the backend.
    let (system, database) = unsafe { (pg_sys::GetSystemIdentifier(), pg_sys::MyDatabaseId) };
    format!("{system}:{}:{}:{block}", database.to_u32(), table.to_u32())
}

/// Stores the event or events of one change.
fn record(capture: &Capture, format: Format, operation: Operation, place: Option<&str>, scratch: &mut Scratch) {
    if matches!(operation, Operation::Update | Operation::Delete) && capture.key.is_empty() {
        pg::raise(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "Update/Delete on table without pkey",
            format!(
                "Give table {} a primary key, or name its key with pkey= in the trigger.",
                capture.table_name
            ),
        );
    }
    if operation == Operation::Update {
        if capture.only_ignored_differ(&scratch.old, &scratch.new) {
            return;
        }
        if capture.key_differs(&scratch.old, &scratch.new) {
            store(capture, format, Operation::Delete, None, scratch);
            store(capture, format, Operation::Insert, None, scratch);
            return;
        }
    }
    store(capture, format, operation, place, scratch);
}

/// Stores one event.
fn store(capture: &Capture, format: Format, operation: Operation, place: Option<&str>, scratch: &mut Scratch) {
    let Scratch { old, new, data } = scratch;
    let row = if operation == Operation::Delete { &*old } else { &*new };
    if let Some(when) = &capture.when
        && !when.holds(row)
    {
        return;
    }
    let mut texts = [None; 6];
    texts[0] = Some(capture.event_type(operation));
    texts[2] = Some(capture.table);
    texts[5] = place.map(|place| pg::text_datum(place.as_bytes()));
    // Expressions come first: they set settings of their own, and a setting that is stacked while `Fixed` holds other values
    // in its variable would be restored to those by an ERROR.
    if operation != Operation::Truncate {
        for (text, expression) in texts.iter_mut().zip(&capture.fields) {
            if let Some(expression) = expression {
                *text = expression.text(row).map(|value| pg::text_datum(&value));
            }
        }
    }
    let fixed = guc::fixed_output().then(|| Fixed::hold(capture.settings));
    // Fields that something else replaces are not made.
    let replaced = |field: usize| capture.fields[field].is_some() || capture.magic[field].is_some();
    if !replaced(1) {
        data.clear();
        format.push_data(data, operation, capture, old, new);
        texts[1] = Some(pg::text_datum(data));
    }
    if capture.arguments.backup && operation == Operation::Update && !replaced(3) {
        data.clear();
        format.push_row(data, capture, old);
        texts[3] = Some(pg::text_datum(data));
    }
    if operation != Operation::Truncate {
        for (field, position) in capture.magic.iter().enumerate() {
            if let Some(position) = position
                && capture.fields[field].is_none()
            {
                let column = &capture.columns[*position];
                texts[field] = row.get(column.index).map(|value| {
                    // SAFETY: the value is one of this column.
                    unsafe { column.output.text(value, pg::text_datum) }
                });
            }
        }
    }
    drop(fixed);
    insert::capture(&capture.arguments.queue, texts);
}

fn operation(event: pg_sys::TriggerEvent) -> Operation {
    match event & pg_sys::TRIGGER_EVENT_OPMASK {
        pg_sys::TRIGGER_EVENT_INSERT => Operation::Insert,
        pg_sys::TRIGGER_EVENT_DELETE => Operation::Delete,
        pg_sys::TRIGGER_EVENT_UPDATE => Operation::Update,
        _ => Operation::Truncate,
    }
}

fn is_truncate(event: pg_sys::TriggerEvent) -> bool {
    operation(event) == Operation::Truncate
}

/// The word for an operation in messages and in JSON.
fn operation_name(operation: Operation) -> &'static str {
    match operation {
        Operation::Insert => "INSERT",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Truncate => "TRUNCATE",
    }
}

fn check_level(event: pg_sys::TriggerEvent, operation: Operation) {
    let for_row = event & pg_sys::TRIGGER_EVENT_ROW != 0;
    let message = match (operation, for_row) {
        (Operation::Truncate, true) => "pgq tRuncate trigger must be fired FOR EACH STATEMENT",
        (Operation::Insert | Operation::Update | Operation::Delete, false) => {
            "pgq Ins/Upd/Del trigger must be fired FOR EACH ROW"
        }
        _ => return,
    };
    pg::raise(
        PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
        message,
        "Create the trigger again with the level that the message names.",
    );
}
