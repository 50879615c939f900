//! The ticker's locks: one per database for the background ticker, one per queue for all who tick it; and what the ticker
//! asks about the locks of writers (those are taken in [`crate::queue`]).
//!
//! The ticker's are not advisory locks: those anybody who may connect could take, and so keep a queue from being ticked.
//! They are locks on parts of extensions, which do not exist otherwise: in `pg_locks`, locktype `object`, classid
//! `pg_extension`, objsubid 1, and the queue's id, or 0 for the database, as objid. One more, of objid 2^32 - 1, makes a session the
//! only one that delivers delayed events: SQL takes it as that of queue -1.

use pgrx::{FromDatum, pg_sys};

use crate::pg::native;

/// `objid` of the lock that makes a ticker the only one of its database. Queue ids begin at 1.
const DATABASE: u32 = 0;

/// Takes the lock of this database's ticker for the rest of the session; `false` if another process has it.
pub(crate) fn try_database() -> bool {
    acquire(DATABASE, true, true)
}

native!(lock_queue_wrapper, pg_finfo_lock_queue_wrapper, lock_queue);

/// `pgcascade.lock_queue(queue_id)`: waits for the queue's ticker lock and holds it until the end of the transaction.
fn lock_queue(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: declared strict with one integer argument.
    let queue = unsafe { i32::from_datum((*(*call).args.as_ptr()).value, false) }.unwrap_or(0);
    acquire(queue.cast_unsigned(), false, false);
    pg_sys::Datum::from(0usize)
}

/// The method of locks on tables.
const DEFAULT_LOCKMETHOD: u8 = 1;
/// The method of advisory locks. One of the default method would not do for a session: it would be lost when any
/// transaction of it fails, and stay behind when the process ends.
const USER_LOCKMETHOD: u8 = 2;

fn acquire(object: u32, for_session: bool, at_once: bool) -> bool {
    // SAFETY: a tag of the object kind in this database; the server copies it. A transaction's lock goes with its end, the
    // session's with the process.
    unsafe {
        let tag = pg_sys::LOCKTAG {
            locktag_field1: pg_sys::MyDatabaseId.to_u32(),
            locktag_field2: pg_sys::ExtensionRelationId.to_u32(),
            locktag_field3: object,
            locktag_field4: 1,
            locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
            locktag_lockmethodid: USER_LOCKMETHOD,
        };
        let mode = pg_sys::ExclusiveLock as pg_sys::LOCKMODE;
        pg_sys::LockAcquire(&raw const tag, mode, for_session, at_once)
            != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL
    }
}

native!(has_writers_wrapper, pg_finfo_has_writers_wrapper, has_writers);

/// `pgcascade.has_writers(regclass)`: whether another transaction, a prepared one included, holds the writers' lock on a
/// queue's parent table. The ticker asks before it takes its snapshot (sql/tick.sql): a writer's lock goes after the writer
/// has become visible, so whoever has none here is in that snapshot.
fn has_writers(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    let mut others = 0;
    // SAFETY: declared strict with one regclass argument. The tag is that of a relation of this database; only the number of
    // holders is looked at, the list of them belongs to the current memory context.
    unsafe {
        let relation = pg_sys::Oid::from_datum((*(*call).args.as_ptr()).value, false).unwrap_or(pg_sys::InvalidOid);
        let tag = pg_sys::LOCKTAG {
            locktag_field1: pg_sys::MyDatabaseId.to_u32(),
            locktag_field2: relation.to_u32(),
            locktag_field3: 0,
            locktag_field4: 0,
            locktag_type: pg_sys::LockTagType::LOCKTAG_RELATION as u8,
            locktag_lockmethodid: DEFAULT_LOCKMETHOD,
        };
        pg_sys::GetLockConflicts(&raw const tag, pg_sys::ShareLock as pg_sys::LOCKMODE, &mut others);
    }
    pg_sys::Datum::from(others > 0)
}
