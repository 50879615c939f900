//! The settings `pgcascade.*`: each is a documented static with a getter, and nobody else touches the static.
//! `docs/settings.md` is checked against `pg_settings` by the regress test `settings`.
//!
//! SQL reads a setting by `pgcascade.setting()` below and never by `current_setting()`: in a session that has not loaded
//! the library yet the setting is a mere placeholder, which anybody may `SET` to anything. Loading defines it, and the
//! server then drops a value that who set it had no right to.

use std::ffi::CString;
use std::time::Duration;

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use pgrx::{PgSqlErrorCode, pg_sys};

use crate::pg::{self, native};

static TICKER: GucSetting<bool> = GucSetting::<bool>::new(true);
static TICK_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(10);
static MAINT_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(120);
static RETRY_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(30);
static FIXED_OUTPUT: GucSetting<bool> = GucSetting::<bool>::new(true);
static MAX_BATCH_EVENTS: GucSetting<i32> = GucSetting::<i32>::new(0);
static MAX_BATCH_BYTES: GucSetting<i32> = GucSetting::<i32>::new(0);
static CONSUMER_OWNERSHIP: GucSetting<bool> = GucSetting::<bool>::new(true);
static QUEUE_NAME_PATTERN: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static MAX_QUEUES: GucSetting<i32> = GucSetting::<i32>::new(0);

pub(crate) fn init() {
    GucRegistry::define_bool_guc(
        c"pgcascade.ticker",
        c"Runs the background ticker in this database.",
        c"Off keeps the ticker out of the databases it is set for (ALTER DATABASE ... SET); pgq.ticker() can then be called from outside.",
        &TICKER,
        GucContext::Suset,
        GucFlags::empty(),
    );
    GucRegistry::define_int_guc(
        c"pgcascade.tick_interval",
        c"Shortest time between two looks of the ticker at the queues of a database.",
        c"A commit that put events into a queue wakes the ticker, which then waits until this much has passed since its last look.",
        &TICK_INTERVAL,
        1,
        60_000,
        GucContext::Suset,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"pgcascade.maint_interval",
        c"Time between two rounds of maintenance (rotation of event tables and what pgq.maint_operations() lists).",
        c"",
        &MAINT_INTERVAL,
        1,
        86_400,
        GucContext::Suset,
        GucFlags::UNIT_S,
    );
    GucRegistry::define_int_guc(
        c"pgcascade.retry_interval",
        c"Time after which retried and delayed events that could not be put into their queues when they were due are tried again.",
        c"",
        &RETRY_INTERVAL,
        1,
        86_400,
        GucContext::Suset,
        GucFlags::UNIT_S,
    );
    GucRegistry::define_bool_guc(
        c"pgcascade.fixed_output",
        c"Renders captured values in fixed text formats, whatever the session has set.",
        c"On: DateStyle ISO, IntervalStyle postgres, TimeZone UTC, extra_float_digits 1, bytea_output hex, lc_monetary C. Off: the session's settings, as PgQ does.",
        &FIXED_OUTPUT,
        GucContext::Userset,
        GucFlags::empty(),
    );
    GucRegistry::define_bool_guc(
        c"pgcascade.consumer_ownership",
        c"Lets only the role that registered a consumer act for it.",
        c"Off: everybody who may read queues may read and finish the batches of every consumer, as in PgQ.",
        &CONSUMER_OWNERSHIP,
        GucContext::Suset,
        GucFlags::empty(),
    );
    GucRegistry::define_string_guc(
        c"pgcascade.queue_name_pattern",
        c"Regular expression that the whole name of a new queue must match; empty: any name.",
        c"",
        &QUEUE_NAME_PATTERN,
        GucContext::Suset,
        GucFlags::empty(),
    );
    GucRegistry::define_int_guc(
        c"pgcascade.max_queues",
        c"Number of queues that a database may have before no more can be made; 0: no limit.",
        c"",
        &MAX_QUEUES,
        0,
        1_000_000,
        GucContext::Suset,
        GucFlags::empty(),
    );
    GucRegistry::define_int_guc(
        c"pgcascade.max_batch_events",
        c"Most events that one read of a batch may return; 0: any number.",
        c"A read that would return more is an error; pgcascade.get_batch_page() reads such a batch in parts.",
        &MAX_BATCH_EVENTS,
        0,
        i32::MAX,
        GucContext::Suset,
        GucFlags::empty(),
    );
    GucRegistry::define_int_guc(
        c"pgcascade.max_batch_bytes",
        c"Most bytes of text that one read of a batch may return; 0: any number.",
        c"As pgcascade.max_batch_events. The texts of an event count, not the client's overhead.",
        &MAX_BATCH_BYTES,
        0,
        i32::MAX,
        GucContext::Suset,
        GucFlags::UNIT_KB,
    );
    // SAFETY: the prefix is a NUL-terminated literal, and all settings under it are defined above.
    unsafe {
        #[cfg(feature = "pg14")]
        pg_sys::EmitWarningsOnPlaceholders(c"pgcascade".as_ptr());
        #[cfg(not(feature = "pg14"))]
        pg_sys::MarkGUCPrefixReserved(c"pgcascade".as_ptr());
    }
}

/// Whether the background ticker is wanted in this database.
pub(crate) fn ticker() -> bool {
    TICKER.get()
}

/// The shortest time between two looks at the queues.
pub(crate) fn tick_interval() -> Duration {
    Duration::from_millis(u64::from(TICK_INTERVAL.get().unsigned_abs()))
}

/// The time between two rounds of maintenance.
pub(crate) fn maint_interval() -> Duration {
    Duration::from_secs(u64::from(MAINT_INTERVAL.get().unsigned_abs()))
}

/// How long events that could not be put into their queues when they were due are left alone.
pub(crate) fn retry_interval() -> Duration {
    Duration::from_secs(u64::from(RETRY_INTERVAL.get().unsigned_abs()))
}

/// Whether captured values are rendered in fixed formats.
pub(crate) fn fixed_output() -> bool {
    FIXED_OUTPUT.get()
}

native!(setting_wrapper, pg_finfo_setting_wrapper, setting);

/// `pgcascade.setting(name)`: the value as SHOW writes it.
fn setting(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: declared strict with one text argument, which lives as long as the call.
    let name = unsafe { pg::text_bytes((*(*call).args.as_ptr()).value) };
    let value = name
        .starts_with(b"pgcascade.")
        .then(|| CString::new(name).ok())
        .flatten()
        .map(|name| {
            // SAFETY: a NUL-terminated name; null means that there is no such setting, else a string that the caller owns.
            unsafe { pg_sys::GetConfigOptionByName(name.as_ptr(), std::ptr::null_mut(), true) }
        })
        .filter(|value| !value.is_null());
    match value {
        // SAFETY: a NUL-terminated string in the current memory context.
        Some(value) => pg::text_datum(unsafe { pg::name_bytes(value) }),
        None => pg::raise(
            PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            format!("\"{}\" is not a setting of pgcascade", pg::shown(name)),
            "SELECT name FROM pg_settings WHERE name LIKE 'pgcascade.%' lists them.",
        ),
    }
}
