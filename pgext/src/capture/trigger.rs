//! A capture trigger as it stands in the catalog: its table's columns and key, its arguments, and all that can be made
//! ready once instead of for every row.
//!
//! Cached per trigger. Invalidated by a relcache message for its table (columns, key, trigger changed), and altogether by
//! any message about schemas, whose renaming sends nothing about the tables in them. (The output function of a type cannot
//! change.) The callbacks only set
//! flags; an entry is made again when it is next used. One that is in use while it goes stale stays alive (`Rc`) to the end
//! of its row.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::mem::ManuallyDrop;
use std::rc::Rc;

use pgrx::prelude::*;
use pgrx::{PgSqlErrorCode, pg_sys};
use wire::event_type::Operation;

use super::arguments::{self, Arguments, Wrong};
use super::expression::{Expression, Visible};
use super::format::Format;
use super::output::{self, Output, Settings};
use super::row::Row;
use crate::pg::{self, LongLived};

/// A column that is captured or looked at.
pub(crate) struct Column {
    /// Position among all attributes, dropped ones included, from 0.
    pub(crate) index: usize,
    pub(crate) name: Vec<u8>,
    /// The name as `wire::urlenc` writes it.
    pub(crate) url_name: Vec<u8>,
    /// The name as a JSON string.
    pub(crate) json_name: Vec<u8>,
    pub(crate) type_oid: pg_sys::Oid,
    pub(crate) output: Output,
    by_value: bool,
    length: i16,
    /// Left out of the data: named by `ignore=`.
    ignored: bool,
    /// A deprecated `_pgq_...` column: never in the data.
    magic: bool,
}

impl Column {
    /// Whether the column is in an event's data.
    pub(crate) fn in_data(&self) -> bool {
        !self.ignored && !self.magic
    }

    /// Whether the two rows have another value here, to the bit: a numeric 1.50 that becomes 1.5 has changed.
    pub(crate) fn differs(&self, old: &Row, new: &Row) -> bool {
        match (old.get(self.index), new.get(self.index)) {
            (None, None) => false,
            // SAFETY: both are values of this column.
            (Some(old), Some(new)) => unsafe { !pg::same_image(old, new, self.by_value, self.length) },
            _ => true,
        }
    }
}

/// A trigger made ready.
pub(crate) struct Capture {
    relation: pg_sys::Oid,
    valid: Cell<bool>,
    pub(crate) arguments: Arguments,
    /// `schema.table` for messages.
    pub(crate) table_name: String,
    /// All live columns in the table's order.
    pub(crate) columns: Vec<Column>,
    /// Positions in `columns` of the key's columns, in the key's order.
    pub(crate) key: Vec<usize>,
    /// The settings that the text of some column depends on.
    pub(crate) settings: Settings,
    /// Ready text datums: the event type of each operation, and ev_extra1.
    types: [pg_sys::Datum; 4],
    pub(crate) table: pg_sys::Datum,
    pub(crate) when: Option<Expression>,
    /// Expressions that replace a field of the event.
    pub(crate) fields: [Option<Expression>; 6],
    /// Magic columns that replace a field of the event: positions in `columns`.
    pub(crate) magic: [Option<usize>; 6],
    /// Keeps the datums above and what output functions remember.
    _context: LongLived,
}

thread_local! {
    // Not dropped when the backend ends: that would call into a server that has already shut down.
    static CAPTURES: ManuallyDrop<RefCell<HashMap<pg_sys::Oid, Rc<Capture>>>> =
        ManuallyDrop::new(RefCell::new(HashMap::new()));
    /// Goes up when all entries are to be made again, and when a message came while nobody could look at the map.
    static GENERATION: Cell<u64> = const { Cell::new(0) };
    static FILLED_AT: Cell<u64> = const { Cell::new(0) };
}

pub(crate) fn init() {
    // SAFETY: the callbacks stay valid as long as the library, which the server never unloads.
    unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), pg_sys::Datum::from(0usize));
        for cache in [
            pg_sys::SysCacheIdentifier::NAMESPACEOID,
            pg_sys::SysCacheIdentifier::TYPEOID,
        ] {
            pg_sys::CacheRegisterSyscacheCallback(cache as i32, Some(all_changed), pg_sys::Datum::from(0usize));
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn relation_changed(_argument: pg_sys::Datum, relation: pg_sys::Oid) {
    let seen = relation != pg_sys::InvalidOid
        && CAPTURES.with(|captures| {
            captures.try_borrow().is_ok_and(|captures| {
                for capture in captures.values().filter(|capture| capture.relation == relation) {
                    capture.valid.set(false);
                }
                true
            })
        });
    // A message that arrives while an entry is being made finds nothing in the map to mark: count it, so that the maker
    // knows. Only then, since a count makes all entries stale.
    if !seen || MAKING.with(|making| making.get() == relation) {
        GENERATION.with(|generation| generation.set(generation.get() + 1));
    }
}

thread_local! {
    /// The table whose trigger is being made ready.
    static MAKING: Cell<pg_sys::Oid> = const { Cell::new(pg_sys::InvalidOid) };
}

#[pg_guard]
unsafe extern "C-unwind" fn all_changed(_argument: pg_sys::Datum, _cache: i32, _hash: u32) {
    GENERATION.with(|generation| generation.set(generation.get() + 1));
}

/// The trigger of this call, from the cache or made ready. Raises what is wrong with its arguments.
pub(crate) fn of(data: &pg_sys::TriggerData, format: Format) -> Rc<Capture> {
    // SAFETY: the server passes the trigger and the open relation it fired for.
    let (trigger, relation) = unsafe { (&*data.tg_trigger, (*data.tg_relation).rd_id) };
    let generation = GENERATION.with(Cell::get);
    if FILLED_AT.with(|filled| filled.replace(generation)) != generation {
        let stale = CAPTURES.with(|captures| std::mem::take(&mut *captures.borrow_mut()));
        drop(stale);
    }
    let cached = CAPTURES.with(|captures| captures.borrow().get(&trigger.tgoid).cloned());
    if let Some(capture) = cached
        && capture.valid.get()
    {
        return capture;
    }
    MAKING.with(|making| making.set(relation));
    // SAFETY: as above; the trigger's strings and the relation stay for the call.
    let capture = Rc::new(unsafe { make(data, trigger, format) });
    MAKING.with(|making| making.set(pg_sys::InvalidOid));
    let replaced = CAPTURES.with(|captures| captures.borrow_mut().insert(trigger.tgoid, Rc::clone(&capture)));
    drop(replaced);
    capture
}

/// # Safety
/// `data` and `trigger` must be those of the present trigger call.
unsafe fn make(data: &pg_sys::TriggerData, trigger: &pg_sys::Trigger, format: Format) -> Capture {
    // SAFETY: as promised by the caller: an open relation, its descriptor, and NUL-terminated arguments.
    unsafe {
        let relation = data.tg_relation;
        let descriptor = (*relation).rd_att;
        let class = &*(*relation).rd_rel;
        let schema = pg_sys::get_namespace_name(class.relnamespace);
        let schema = if schema.is_null() {
            Vec::new()
        } else {
            pg::name_bytes(schema).to_vec()
        };
        let table = pg::name_bytes(class.relname.data.as_ptr()).to_vec();

        let given = (0..usize::from(trigger.tgnargs.unsigned_abs()))
            .map(|index| pg::name_bytes((*trigger.tgargs.add(index)).cast_const()));
        let arguments = arguments::parse(given).unwrap_or_else(|wrong| refuse(wrong));
        if super::is_truncate(data.tg_event) {
            check_truncate(&arguments);
        }

        let context = LongLived::new(c"pgcascade trigger");
        let mut columns = Vec::new();
        let mut settings = 0;
        let mut magic = [None; 6];
        for index in 0..usize::try_from((*descriptor).natts).unwrap_or(0) {
            let attribute = pg::attribute(descriptor, index);
            // A virtual generated column has no value in the row.
            if attribute.attisdropped || attribute.attgenerated as u8 == b'v' {
                continue;
            }
            let name = pg::name_bytes(attribute.attname.data.as_ptr()).to_vec();
            let is_magic = name.starts_with(b"_pgq_");
            if let Some(field) = name
                .strip_prefix(b"_pgq_")
                .and_then(|field| arguments::FIELDS.iter().position(|known| *known == field))
            {
                magic[field] = Some(columns.len());
            }
            let mut url_name = Vec::new();
            wire::urlenc::push_encoded(&mut url_name, &name);
            let mut json_name = Vec::new();
            wire::json::push_string(&mut json_name, &name);
            settings |= output::settings_of(attribute.atttypid);
            columns.push(Column {
                index,
                url_name,
                json_name,
                type_oid: attribute.atttypid,
                output: Output::of(attribute.atttypid, context.raw()),
                by_value: attribute.attbyval,
                length: attribute.attlen,
                ignored: arguments.ignore.as_ref().is_some_and(|ignore| ignore.contains(&name)),
                magic: is_magic,
                name,
            });
        }
        let key = match &arguments.pkey {
            Some(names) => names.iter().map(|name| position(&columns, name, &table)).collect(),
            None => primary_key(relation, &columns),
        };
        let key_names: Vec<&[u8]> = key
            .iter()
            .map(|position: &usize| columns[*position].name.as_slice())
            .collect();

        let visible: Vec<Visible> = columns
            .iter()
            .map(|column| Visible {
                name: &column.name,
                index: column.index,
                type_oid: column.type_oid,
            })
            .collect();
        let prepare = |text: &Option<Vec<u8>>| {
            text.as_ref()
                .map(|text| Expression::prepare(text, &visible, class.relowner))
        };
        let when = prepare(&arguments.when);
        let fields = std::array::from_fn(|field| prepare(&arguments.fields[field]));

        let mut qualified = Vec::new();
        wire::name::push_qualified(&mut qualified, &schema, &table);
        let (types, table_datum) = context.during(|| {
            let types = [
                Operation::Insert,
                Operation::Update,
                Operation::Delete,
                Operation::Truncate,
            ]
            .map(|operation| pg::text_datum(&format.event_type(operation, &schema, &table, &key_names)));
            (types, pg::text_datum(&qualified))
        });
        // Nothing below raises an ERROR.
        context.keep();
        Capture {
            relation: (*relation).rd_id,
            valid: Cell::new(true),
            table_name: pg::shown(&[schema.as_slice(), b".", table.as_slice()].concat()),
            columns,
            key,
            settings,
            types,
            table: table_datum,
            when,
            fields,
            magic,
            arguments,
            _context: context,
        }
    }
}

impl Capture {
    /// The ready text of ev_type.
    pub(crate) fn event_type(&self, operation: Operation) -> pg_sys::Datum {
        self.types[operation as usize]
    }

    /// Whether an update changed the key.
    pub(crate) fn key_differs(&self, old: &Row, new: &Row) -> bool {
        self.key
            .iter()
            .any(|position| self.columns[*position].differs(old, new))
    }

    /// Whether an update changed ignored columns and no others, which makes no event. One that changes nothing makes one.
    pub(crate) fn only_ignored_differ(&self, old: &Row, new: &Row) -> bool {
        self.arguments.ignore.is_some()
            && self
                .columns
                .iter()
                .any(|column| column.ignored && column.differs(old, new))
            && !self
                .columns
                .iter()
                .any(|column| !column.ignored && column.differs(old, new))
    }
}

fn position(columns: &[Column], name: &[u8], table: &[u8]) -> usize {
    columns
        .iter()
        .position(|column| column.name == name)
        .unwrap_or_else(|| {
            pg::raise(
                PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
                format!(
                    "column \"{}\" of pkey= does not exist in table \"{}\"",
                    pg::shown(name),
                    pg::shown(table)
                ),
                "Correct the pkey= argument of the trigger.",
            )
        })
}

/// The primary key by attribute numbers: the index's own attribute names stay behind when a column is renamed.
///
/// # Safety
/// `relation` must be open.
unsafe fn primary_key(relation: pg_sys::Relation, columns: &[Column]) -> Vec<usize> {
    // SAFETY: as promised by the caller.
    let numbers = unsafe { pg::primary_key(relation) };
    let position = |number: &i16| {
        let index = usize::from(number.unsigned_abs());
        columns.iter().position(|column| column.index + 1 == index)
    };
    numbers.iter().filter_map(position).collect()
}

fn refuse(wrong: Wrong) -> ! {
    let (message, hint) = match wrong {
        Wrong::NoQueue => (
            "pgq trigger must have destination queue as argument",
            "Create the trigger with EXECUTE FUNCTION ...('queue name').".to_owned(),
        ),
        Wrong::Unknown(argument) => (
            "bad param to pgq trigger",
            format!(
                "'{}' is not known: use SKIP, backup, deny, place, ignore=, pkey=, when=, ev_type=, ev_data= or ev_extra1= to ev_extra4=.",
                pg::shown(&argument)
            ),
        ),
    };
    pg::raise(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message, hint)
}

/// Arguments about rows make no sense where there is no row.
fn check_truncate(arguments: &Arguments) {
    let message = if arguments.ignore.is_some() {
        "Column ignore does not make sense for truncate trigger"
    } else if arguments.pkey.is_some() {
        "Custom pkey_list does not make sense for truncate trigger"
    } else if arguments.backup {
        "Backup does not make sense for truncate trigger"
    } else if arguments.place {
        "Place does not make sense for truncate trigger"
    } else if arguments.when.is_some() || arguments.fields.iter().any(Option::is_some) {
        // The typing error is upstream's; programs may look for it.
        "Custom expressions do not make sense for truncater trigger"
    } else {
        return;
    };
    pg::raise(
        PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
        message,
        "Make a trigger of its own for TRUNCATE, without this argument.",
    )
}
