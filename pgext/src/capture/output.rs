//! Values as text: the types' output functions, and the settings that they obey.
//!
//! With `pgcascade.fixed_output` on, the settings that change the text of a value are put to fixed ones around the output
//! functions of a row, but only those that matter for the table's types. The plain variables behind DateStyle and its
//! like are swapped directly (a settings level costs more than a whole event); they are put back on every way out.

use std::cell::UnsafeCell;
use std::ffi::{CStr, c_int};

use pgrx::pg_sys;

use crate::pg::{self, SettingsNest};

/// Settings that the text of a type depends on, as a set of bits.
pub(crate) type Settings = u8;
const DATE_STYLE: Settings = 1;
const INTERVAL_STYLE: Settings = 2;
const FLOAT_DIGITS: Settings = 4;
const BYTEA_OUTPUT: Settings = 8;
const TIME_ZONE: Settings = 16;
const MONETARY: Settings = 32;
const SEARCH_PATH: Settings = 64;
const ALL: Settings = 127;

/// The settings that a type's text depends on. Types we do not know may depend on all of them.
pub(crate) fn settings_of(type_oid: pg_sys::Oid) -> Settings {
    // SAFETY: look-ups in the catalog caches by type oid.
    let base = unsafe { pg_sys::getBaseType(type_oid) };
    match base {
        pg_sys::BOOLOID
        | pg_sys::CHAROID
        | pg_sys::NAMEOID
        | pg_sys::INT2OID
        | pg_sys::INT4OID
        | pg_sys::INT8OID
        | pg_sys::TEXTOID
        | pg_sys::VARCHAROID
        | pg_sys::BPCHAROID
        | pg_sys::NUMERICOID
        | pg_sys::OIDOID
        | pg_sys::UUIDOID
        | pg_sys::JSONOID
        | pg_sys::JSONBOID
        | pg_sys::XMLOID
        | pg_sys::INETOID
        | pg_sys::CIDROID
        | pg_sys::MACADDROID
        | pg_sys::MACADDR8OID
        | pg_sys::BITOID
        | pg_sys::VARBITOID
        | pg_sys::TIMEOID
        | pg_sys::TIMETZOID
        | pg_sys::TSVECTOROID
        | pg_sys::TSQUERYOID
        | pg_sys::JSONPATHOID
        | pg_sys::PG_LSNOID
        | pg_sys::XIDOID
        | pg_sys::XID8OID
        | pg_sys::CIDOID
        | pg_sys::TIDOID
        | pg_sys::TXID_SNAPSHOTOID
        | pg_sys::PG_SNAPSHOTOID
        | pg_sys::REFCURSOROID => 0,
        pg_sys::DATEOID | pg_sys::TIMESTAMPOID => DATE_STYLE,
        pg_sys::TIMESTAMPTZOID => DATE_STYLE | TIME_ZONE,
        pg_sys::INTERVALOID => INTERVAL_STYLE,
        pg_sys::FLOAT4OID
        | pg_sys::FLOAT8OID
        | pg_sys::POINTOID
        | pg_sys::LSEGOID
        | pg_sys::PATHOID
        | pg_sys::BOXOID
        | pg_sys::POLYGONOID
        | pg_sys::LINEOID
        | pg_sys::CIRCLEOID => FLOAT_DIGITS,
        pg_sys::BYTEAOID => BYTEA_OUTPUT,
        pg_sys::MONEYOID => MONETARY,
        pg_sys::REGPROCOID
        | pg_sys::REGPROCEDUREOID
        | pg_sys::REGOPEROID
        | pg_sys::REGOPERATOROID
        | pg_sys::REGCLASSOID
        | pg_sys::REGTYPEOID
        | pg_sys::REGCONFIGOID
        | pg_sys::REGDICTIONARYOID
        | pg_sys::REGCOLLATIONOID => SEARCH_PATH,
        _ => {
            // SAFETY: as above.
            let (element, kind) = unsafe { (pg_sys::get_base_element_type(base), pg_sys::get_typtype(base) as u8) };
            if element != pg_sys::InvalidOid && element != base {
                settings_of(element)
            } else if kind == pg_sys::TYPTYPE_ENUM {
                0
            } else {
                ALL
            }
        }
    }
}

/// Settings held at fixed values until dropped, also when an ERROR unwinds.
pub(crate) struct Fixed {
    date_style: c_int,
    interval_style: c_int,
    float_digits: c_int,
    bytea: c_int,
    zone: *mut pg_sys::pg_tz,
    quote_all: bool,
    _nest: Option<SettingsNest>,
}

impl Fixed {
    /// Fixes those of `settings` that the session has otherwise.
    pub(crate) fn hold(settings: Settings) -> Self {
        let has = |setting| settings & setting != 0;
        // SAFETY: plain variables of this backend, read and written between calls into the server, with values that their
        // settings allow. The strings of the nest are literals.
        unsafe {
            let mut nest = None;
            if has(MONETARY) && CStr::from_ptr(pg::locale_monetary) != c"C" {
                nest.get_or_insert_with(SettingsNest::open).set(c"lc_monetary", c"C");
            }
            if has(SEARCH_PATH) {
                nest.get_or_insert_with(SettingsNest::open)
                    .set(c"search_path", c"pg_catalog");
            }
            let before = Self {
                date_style: pg_sys::DateStyle,
                interval_style: pg_sys::IntervalStyle,
                float_digits: pg_sys::extra_float_digits,
                bytea: pg::bytea_output,
                zone: pg_sys::session_timezone,
                quote_all: pg_sys::quote_all_identifiers,
                _nest: nest,
            };
            pg_sys::DateStyle = pg_sys::USE_ISO_DATES as c_int;
            pg_sys::IntervalStyle = pg_sys::INTSTYLE_POSTGRES as c_int;
            pg_sys::extra_float_digits = 1;
            pg::bytea_output = BYTEA_OUTPUT_HEX;
            pg_sys::quote_all_identifiers = false;
            if has(TIME_ZONE) {
                // Built into the server, so it needs no file; it is found in a hash table after the first time.
                let gmt = pg_sys::pg_tzset(c"GMT".as_ptr());
                if !gmt.is_null() {
                    pg_sys::session_timezone = gmt;
                }
            }
            before
        }
    }
}

impl Drop for Fixed {
    fn drop(&mut self) {
        // SAFETY: puts back what `hold` read. No call into the server, so also right while an ERROR unwinds.
        unsafe {
            pg_sys::DateStyle = self.date_style;
            pg_sys::IntervalStyle = self.interval_style;
            pg_sys::extra_float_digits = self.float_digits;
            pg::bytea_output = self.bytea;
            pg_sys::session_timezone = self.zone;
            pg_sys::quote_all_identifiers = self.quote_all;
        }
    }
}

/// BYTEA_OUTPUT_HEX of the server's `ByteaOutputType`.
const BYTEA_OUTPUT_HEX: c_int = 1;

/// How values of a type become text: common types without a call, all others by their output function.
pub(crate) enum Output {
    Bool,
    Int2,
    Int4,
    Int8,
    /// text, varchar, bpchar, json, xml: the bytes are the text.
    Bytes,
    Function(UnsafeCell<pg_sys::FmgrInfo>),
}

impl Output {
    /// `context` keeps what the output function remembers between calls; it must live as long as the result.
    pub(crate) fn of(type_oid: pg_sys::Oid, context: pg_sys::MemoryContext) -> Self {
        match type_oid {
            pg_sys::BOOLOID => Self::Bool,
            pg_sys::INT2OID => Self::Int2,
            pg_sys::INT4OID => Self::Int4,
            pg_sys::INT8OID => Self::Int8,
            pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::BPCHAROID | pg_sys::JSONOID => Self::Bytes,
            _ => {
                let mut function = pg_sys::InvalidOid;
                let mut varlena = false;
                let mut info = pg_sys::FmgrInfo::default();
                // SAFETY: look-ups by type oid; they raise an ERROR if it is unknown or has no output function.
                unsafe {
                    pg_sys::getTypeOutputInfo(type_oid, &mut function, &mut varlena);
                    pg_sys::fmgr_info_cxt(function, &mut info, context);
                }
                Self::Function(UnsafeCell::new(info))
            }
        }
    }

    /// Calls `sink` with the text of `value`.
    ///
    /// # Safety
    /// `value` must be a non-null value of the type that this was made for.
    pub(crate) unsafe fn text<R>(&self, value: pg_sys::Datum, sink: impl FnOnce(&[u8]) -> R) -> R {
        let number = |number: i64, sink: &mut dyn FnMut(&[u8])| {
            let mut digits = [0u8; 20];
            let mut rest: &mut [u8] = &mut digits;
            // Twenty bytes hold any i64.
            let _ = std::io::Write::write_fmt(&mut rest, format_args!("{number}"));
            let left = rest.len();
            sink(&digits[..20 - left]);
        };
        let mut sink = Some(sink);
        let mut result = None;
        let mut give = |text: &[u8]| result = sink.take().map(|sink| sink(text));
        match self {
            Self::Bool => give(if value.value() & 1 == 1 { b"t" } else { b"f" }),
            Self::Int2 => number(i64::from(value.value() as i16), &mut give),
            Self::Int4 => number(i64::from(value.value() as i32), &mut give),
            Self::Int8 => number(value.value() as i64, &mut give),
            // SAFETY: a varlena, as promised by the caller; read before anything can free it.
            Self::Bytes => give(unsafe { pg::text_bytes(value) }),
            Self::Function(info) => {
                // SAFETY: the function belongs to the value's type. Nobody else uses the cell while the call runs: an output
                // function that writes to this table would come with another row's trigger call, after this one.
                unsafe {
                    let text = pg_sys::OutputFunctionCall(info.get(), value);
                    let bytes = CStr::from_ptr(text).to_bytes();
                    give(bytes);
                    // The per-row context frees small strings; a big one should not wait for its row's others.
                    if bytes.len() > 8192 {
                        pg_sys::pfree(text.cast());
                    }
                }
            }
        }
        match result {
            Some(result) => result,
            None => unreachable!("every arm gives its text once"),
        }
    }
}
