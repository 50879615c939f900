//! What we need of the server beyond pgrx: guards around things that must be given back, functions pgrx does not bind,
//! and, here only, what differs between PostgreSQL 14 and 18.
//!
//! A guard gives its thing back when dropped. While an ERROR unwinds it does nothing: the server's own resource owner
//! releases everything at abort, and a server call in the middle of that helps nobody.

use std::ffi::{CStr, c_char, c_int, c_void};

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::{PgSqlErrorCode, pg_sys};

/// Declares `$name` as a function that SQL can call by that symbol (version-1 calling convention).
/// `$body` is a safe `fn(pg_sys::FunctionCallInfo) -> pg_sys::Datum`.
macro_rules! native {
    ($name:ident, $info:ident, $body:path) => {
        #[doc(hidden)]
        #[allow(unreachable_pub, reason = "the server finds it by its symbol")]
        #[unsafe(no_mangle)]
        pub extern "C" fn $info() -> &'static pgrx::pg_sys::Pg_finfo_record {
            static RECORD: pgrx::pg_sys::Pg_finfo_record = pgrx::pg_sys::Pg_finfo_record { api_version: 1 };
            &RECORD
        }

        #[doc(hidden)]
        #[allow(unreachable_pub, reason = "the server finds it by its symbol")]
        #[unsafe(no_mangle)]
        #[pgrx::pg_guard]
        pub extern "C-unwind" fn $name(call: pgrx::pg_sys::FunctionCallInfo) -> pgrx::pg_sys::Datum {
            $body(call)
        }
    };
}
pub(crate) use native;

// Declared here because pgrx does not bind their headers. Called through `pg_guard_ffi_boundary`, which turns an ERROR
// into unwinding.
unsafe extern "C-unwind" {
    fn nextval_internal(sequence: pg_sys::Oid, check_permissions: bool) -> i64;
    fn datum_image_eq(a: pg_sys::Datum, b: pg_sys::Datum, by_value: bool, length: c_int) -> bool;
}

unsafe extern "C" {
    /// The session's `bytea_output`; pgrx does not bind `utils/bytea.h`.
    pub(crate) static mut bytea_output: c_int;
    /// The session's `lc_monetary`.
    pub(crate) static mut locale_monetary: *mut c_char;
}

/// Raises an ERROR: `message` in the server's style, the remedy as HINT.
pub(crate) fn raise(code: PgSqlErrorCode, message: impl Into<String>, hint: impl Into<String>) -> ! {
    let hint = hint.into();
    let report = ErrorReport::new(code, message.into(), "");
    let report = if hint.is_empty() { report } else { report.set_hint(hint) };
    report.report(PgLogLevel::ERROR);
    unreachable!("an ERROR does not return")
}

/// Bytes of the server's encoding for a message, where an odd character may be shown as a replacement mark.
pub(crate) fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Text of a message as the database can store it: where its encoding is not UTF-8, letters beyond ASCII become question marks.
pub(crate) fn stored(message: &str) -> Vec<u8> {
    // SAFETY: reads the encoding of the connected database.
    if unsafe { pg_sys::GetDatabaseEncoding() } == pg_sys::pg_enc::PG_UTF8 as i32 {
        return message.as_bytes().to_vec();
    }
    let ascii = |letter: char| u8::try_from(letter).ok().filter(u8::is_ascii).unwrap_or(b'?');
    message.chars().map(ascii).collect()
}

/// An open relation. Its lock stays until the end of the transaction.
pub(crate) struct Relation(pg_sys::Relation);

impl Relation {
    /// Opens `oid` and takes `lock` on it. Raises an ERROR if it is gone.
    pub(crate) fn open(oid: pg_sys::Oid, lock: u32) -> Self {
        // SAFETY: table_open checks the oid itself and never returns null.
        Self(unsafe { pg_sys::table_open(oid, lock as pg_sys::LOCKMODE) })
    }

    /// The same, but `None` if it is gone: dropped while we waited for the lock.
    pub(crate) fn try_open(oid: pg_sys::Oid, lock: u32) -> Option<Self> {
        // SAFETY: try_relation_open checks the oid itself; null means that there is no such relation.
        let relation = unsafe { pg_sys::try_relation_open(oid, lock as pg_sys::LOCKMODE) };
        (!relation.is_null()).then(|| Self(relation))
    }

    /// Closes it and gives `lock` back at once, for a look that nothing later relies on.
    pub(crate) fn release(self, lock: u32) {
        // SAFETY: opened by us with this lock; not closed again by Drop.
        unsafe { pg_sys::table_close(self.0, lock as pg_sys::LOCKMODE) }
        std::mem::forget(self);
    }

    pub(crate) fn raw(&self) -> pg_sys::Relation {
        self.0
    }

    pub(crate) fn descriptor(&self) -> pg_sys::TupleDesc {
        // SAFETY: an open relation has a descriptor for as long as it is open.
        unsafe { (*self.0).rd_att }
    }

    /// Calls `visit` with each row that a fresh snapshot sees, in the order of the heap. A row is there until the call ends.
    pub(crate) fn each_row(&self, mut visit: impl FnMut(pg_sys::HeapTuple)) {
        let snapshot = FreshSnapshot::take();
        // SAFETY: a plain heap scan of an open relation with a registered snapshot.
        unsafe {
            let none = pg_sys::InvalidOid;
            let scan = pg_sys::systable_beginscan(self.0, none, false, snapshot.0, 0, std::ptr::null_mut());
            loop {
                let row = pg_sys::systable_getnext(scan);
                if row.is_null() {
                    break;
                }
                visit(row);
            }
            pg_sys::systable_endscan(scan);
        }
    }
}

impl Drop for Relation {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: opened by us, closed once; NoLock keeps the lock to the end of the transaction.
            unsafe { pg_sys::table_close(self.0, pg_sys::NoLock as pg_sys::LOCKMODE) }
        }
    }
}

/// The newest snapshot, whatever isolation level the transaction has, registered for as long as this lives.
struct FreshSnapshot(pg_sys::Snapshot);

impl FreshSnapshot {
    fn take() -> Self {
        // SAFETY: called inside a transaction, as all our entry points are.
        Self(unsafe { pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot()) })
    }
}

impl Drop for FreshSnapshot {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: registered by us, given back once.
            unsafe { pg_sys::UnregisterSnapshot(self.0) }
        }
    }
}

/// Runs as another role until dropped, with what SECURITY_RESTRICTED_OPERATION forbids forbidden if asked.
/// The server itself puts the role back when a transaction aborts.
pub(crate) struct ActingAs {
    user: pg_sys::Oid,
    context: c_int,
}

impl ActingAs {
    pub(crate) fn role(role: pg_sys::Oid, restricted: bool) -> Self {
        let mut before = Self {
            user: pg_sys::InvalidOid,
            context: 0,
        };
        let mut flags = pg_sys::SECURITY_LOCAL_USERID_CHANGE as c_int;
        if restricted {
            flags |= pg_sys::SECURITY_RESTRICTED_OPERATION as c_int;
        }
        // SAFETY: plain reads and writes of the backend's current user.
        unsafe {
            pg_sys::GetUserIdAndSecContext(&mut before.user, &mut before.context);
            pg_sys::SetUserIdAndSecContext(role, before.context | flags);
        }
        before
    }
}

impl Drop for ActingAs {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: puts back what `role` read.
            unsafe { pg_sys::SetUserIdAndSecContext(self.user, self.context) }
        }
    }
}

/// Settings changed until dropped; an abort puts them back too. What is run meanwhile cannot leave settings behind either
/// (`set_config(..., false)` in somebody else's function), which a function's SET clause would let it do.
pub(crate) struct SettingsNest(c_int);

impl SettingsNest {
    pub(crate) fn open() -> Self {
        // SAFETY: counts a level up; paired with AtEOXact_GUC below or at abort.
        Self(unsafe { pg_sys::NewGUCNestLevel() })
    }

    pub(crate) fn set(&self, name: &CStr, value: &CStr) {
        // SAFETY: both strings live through the call, which copies them.
        unsafe {
            pg_sys::set_config_option(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_USERSET,
                pg_sys::GucSource::PGC_S_SESSION,
                pg_sys::GucAction::GUC_ACTION_SAVE,
                true,
                0,
                false,
            );
        }
    }
}

impl Drop for SettingsNest {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: closes the level opened by `open`; `false` undoes everything set in it.
            unsafe { pg_sys::AtEOXact_GUC(false, self.0) }
        }
    }
}

/// A memory context that lives until dropped, for what a cache entry keeps on the server's side.
pub(crate) struct LongLived(pg_sys::MemoryContext);

impl LongLived {
    /// Belongs to the current memory context until [`keep`](Self::keep): an ERROR while the entry is made frees it.
    pub(crate) fn new(name: &'static CStr) -> Self {
        // SAFETY: the context keeps the pointer to the name, which is static.
        Self(unsafe {
            pg_sys::AllocSetContextCreateInternal(
                pg_sys::CurrentMemoryContext,
                name.as_ptr(),
                pg_sys::ALLOCSET_SMALL_MINSIZE as usize,
                pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
                pg_sys::ALLOCSET_SMALL_MAXSIZE as usize,
            )
        })
    }

    pub(crate) fn raw(&self) -> pg_sys::MemoryContext {
        self.0
    }

    /// From here on it lives until dropped.
    pub(crate) fn keep(&self) {
        // SAFETY: both contexts are alive.
        unsafe { pg_sys::MemoryContextSetParent(self.0, pg_sys::TopMemoryContext) }
    }

    /// Runs `work` with this as the current memory context. If it raises an ERROR, the server sets the current context.
    pub(crate) fn during<R>(&self, work: impl FnOnce() -> R) -> R {
        // SAFETY: the context lives as long as self, and the one before is put back.
        unsafe {
            let before = pg_sys::CurrentMemoryContext;
            pg_sys::CurrentMemoryContext = self.0;
            let result = work();
            pg_sys::CurrentMemoryContext = before;
            result
        }
    }
}

impl Drop for LongLived {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: made by us, deleted once; nothing in it is used after its owner is gone.
            unsafe { pg_sys::MemoryContextDelete(self.0) }
        }
    }
}

/// The transaction id (64 bits, top level) of this transaction; assigns one if there is none yet.
pub(crate) fn transaction_id() -> u64 {
    // SAFETY: called inside a transaction; raises an ERROR itself in parallel workers and in recovery.
    unsafe { pg_sys::GetTopFullTransactionId().value }
}

/// The next value of a sequence we own, without looking at the caller's privileges.
pub(crate) fn next_value(sequence: pg_sys::Oid) -> i64 {
    // SAFETY: raises an ERROR if the oid is not a sequence.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| nextval_internal(sequence, false)) }
}

/// Whether two values are the same to the bit, after detoasting: no operator of the type is asked.
///
/// # Safety
/// Both must be non-null values of a type with this `by_value` and `length`.
pub(crate) unsafe fn same_image(a: pg_sys::Datum, b: pg_sys::Datum, by_value: bool, length: i16) -> bool {
    // SAFETY: as promised by the caller.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| datum_image_eq(a, b, by_value, c_int::from(length))) }
}

/// The bytes of a text value. Detoasts if needed; the copy belongs to the current memory context.
///
/// # Safety
/// `value` must be a non-null varlena (text, varchar, bytea, ...), and the result must not outlive the current
/// memory context or the tuple the value is in.
pub(crate) unsafe fn text_bytes<'a>(value: pg_sys::Datum) -> &'a [u8] {
    // SAFETY: as promised by the caller.
    unsafe {
        let value = value.cast_mut_ptr();
        let plain = pgrx::varatt_is_4b_u(value) || pgrx::varatt_is_1b(value) && !pgrx::varatt_is_1b_e(value);
        // A call for each field of each row costs more than looking.
        let packed = if plain {
            value
        } else {
            pg_sys::pg_detoast_datum_packed(value)
        };
        pgrx::varlena_to_byte_slice(packed)
    }
}

/// A text argument of a statement; `None` is null.
pub(crate) fn text_argument(bytes: Option<&[u8]>) -> DatumWithOid<'static> {
    // SAFETY: a text datum in the current memory context, which outlives the statement.
    unsafe { DatumWithOid::new(bytes.map(text_datum), pg_sys::TEXTOID) }
}

/// Makes a text value in the current memory context.
pub(crate) fn text_datum(bytes: &[u8]) -> pg_sys::Datum {
    // What a varlena may hold, less some room for the tuple around it.
    const LIMIT: usize = 0x3fff_ffff - 1024;
    if bytes.len() > LIMIT {
        raise(
            PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            format!(
                "event field of {} bytes is larger than the server can store ({LIMIT})",
                bytes.len()
            ),
            "Leave the large column out of the trigger with ignore=COLUMN, or store it in parts.",
        );
    }
    // SAFETY: the length is within the limit above; the bytes are copied.
    unsafe { pg_sys::cstring_to_text_with_len(bytes.as_ptr().cast::<c_char>(), bytes.len() as c_int).into() }
}

/// The bytes of a name as the catalogs keep it.
///
/// # Safety
/// `name` must be a NUL-terminated string that outlives the result.
pub(crate) unsafe fn name_bytes<'a>(name: *const c_char) -> &'a [u8] {
    // SAFETY: as promised by the caller.
    unsafe { CStr::from_ptr(name).to_bytes() }
}

/// The oid of a relation in schema `pgq`, or `None`.
pub(crate) fn relation_in_pgq(name: &CStr) -> Option<pg_sys::Oid> {
    relation_in(c"pgq", name)
}

/// The same in another schema of the extension.
pub(crate) fn relation_in(schema: &CStr, name: &CStr) -> Option<pg_sys::Oid> {
    // SAFETY: look-ups by NUL-terminated names; the schema exists for as long as the extension does.
    let oid = unsafe {
        let schema = pg_sys::get_namespace_oid(schema.as_ptr(), true);
        if schema == pg_sys::InvalidOid {
            return None;
        }
        pg_sys::get_relname_relid(name.as_ptr(), schema)
    };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// Sends a relcache invalidation for `relation` to all backends when this transaction commits.
pub(crate) fn invalidate_relation(relation: pg_sys::Oid) {
    // SAFETY: raises an ERROR if the relation is gone.
    unsafe { pg_sys::CacheInvalidateRelcacheByRelid(relation) }
}

/// What `look` says of each index of a relation, which is open for the look; it stops at the first that is not `None`.
///
/// # Safety
/// `relation` must be open.
pub(crate) unsafe fn first_index<R>(
    relation: pg_sys::Relation,
    mut look: impl FnMut(pg_sys::Relation) -> Option<R>,
) -> Option<R> {
    // SAFETY: as promised by the caller. The lock is not held on: nothing later relies on the index.
    unsafe {
        let indexes = pg_sys::RelationGetIndexList(relation);
        pgrx::PgList::<c_void>::from_pg(indexes).iter_oid().find_map(|oid| {
            let index = pg_sys::index_open(oid, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
            let said = look(index);
            pg_sys::index_close(index, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
            said
        })
    }
}

/// The attribute numbers of the primary key, in the key's order; empty without one.
///
/// Not RelationGetPrimaryKeyIndex(): before PostgreSQL 18 it does not know of a deferrable primary key.
///
/// # Safety
/// `relation` must be open.
pub(crate) unsafe fn primary_key(relation: pg_sys::Relation) -> Vec<i16> {
    // SAFETY: as promised by the caller; the index is open while its description is read.
    unsafe {
        first_index(relation, |index| {
            let description = &*(*index).rd_index;
            let width = usize::from(description.indnkeyatts.unsigned_abs());
            let numbers = std::slice::from_raw_parts(description.indkey.values.as_ptr(), width);
            description.indisprimary.then(|| numbers.to_vec())
        })
        .unwrap_or_default()
    }
}

/// Column `index` (from 0) of a descriptor.
///
/// # Safety
/// `descriptor` must be live for `'a`, and `index` below its number of attributes.
pub(crate) unsafe fn attribute<'a>(descriptor: pg_sys::TupleDesc, index: usize) -> &'a pg_sys::FormData_pg_attribute {
    // SAFETY: as promised by the caller.
    unsafe {
        #[cfg(feature = "pg18")]
        return &*pg_sys::TupleDescAttr(descriptor, index as c_int);
        #[cfg(not(feature = "pg18"))]
        return &*(*descriptor).attrs.as_ptr().add(index);
    }
}

/// Installs a signal handler of the server's own.
///
/// # Safety
/// `handler` must be one of the server's handlers, which do only what a signal handler may.
pub(crate) unsafe fn handle_signal(signal: c_int, handler: unsafe extern "C-unwind" fn(c_int)) {
    // SAFETY: as promised by the caller.
    unsafe {
        #[cfg(feature = "pg18")]
        pg_sys::pqsignal_be(signal, Some(handler));
        #[cfg(not(feature = "pg18"))]
        pg_sys::pqsignal(signal, Some(handler));
    }
}

/// The server's handlers as C function pointers; pgrx only has guarded Rust wrappers of them.
pub(crate) mod handlers {
    use std::ffi::c_int;
    unsafe extern "C-unwind" {
        pub(crate) fn die(signal: c_int);
        pub(crate) fn SignalHandlerForConfigReload(signal: c_int);
    }
}

/// The server's functions that our hooks stand before, without pgrx's guards: an ERROR goes on through them as the server raised it.
pub(crate) mod unguarded {
    use std::ffi::c_char;

    use pgrx::pg_sys;

    unsafe extern "C-unwind" {
        pub(crate) fn standard_ExecutorFinish(query: *mut pg_sys::QueryDesc);
        pub(crate) fn standard_ProcessUtility(
            statement: *mut pg_sys::PlannedStmt,
            text: *const c_char,
            read_only_tree: bool,
            context: pg_sys::ProcessUtilityContext::Type,
            parameters: pg_sys::ParamListInfo,
            environment: *mut pg_sys::QueryEnvironment,
            destination: *mut pg_sys::DestReceiver,
            completion: *mut pg_sys::QueryCompletion,
        );
    }
}

/// A pointer for callbacks that want an argument they do not use.
pub(crate) const NO_ARGUMENT: *mut c_void = std::ptr::null_mut();
