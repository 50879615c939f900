//! Whether a queue is the root of its cascade on another server or timeline than it was last seen on.
//!
//! A standby of a root becomes a second root when it is promoted, and the background worker closes it as soon as it notices
//! (`pgcascade.notice_promotion()`). What was written before that would be events that the root's other nodes know under the
//! same ids for something else, of transactions that have seen only a part of what those nodes have. So a writer looks by itself, when it
//! reads the control row ([`crate::queue`]); it costs nothing after that, since a server is promoted before anybody can write.
//! What opens the queue again updates the control row, so nothing that was cached outlives it.

use pgrx::{PgSqlErrorCode, pg_sys};

use crate::pg::{self, Relation};

/// Refuses to write to the queue `name`, which is not closed, if its root was promoted outside takeover.
pub(crate) fn check(name: &[u8]) {
    let Some(epochs) = pg::relation_in(c"pgcascade", c"node_epoch") else {
        return; // a library newer than the installed extension
    };
    let table = Relation::open(epochs, pg_sys::AccessShareLock);
    // SAFETY: look-ups by NUL-terminated names; 0 means that there is none.
    let [queue, system, timeline] = [c"queue_name", c"system_id", c"timeline"]
        .map(|column| i32::from(unsafe { pg_sys::get_attnum(epochs, column.as_ptr()) }));
    if queue <= 0 || system <= 0 || timeline <= 0 {
        return;
    }
    let mut elsewhere = false;
    table.each_row(|row| {
        let value = |column| {
            let mut missing = false;
            // SAFETY: a row of this table and a column of it.
            let value = unsafe { pg_sys::heap_getattr(row, column, table.descriptor(), &mut missing) };
            (!missing).then_some(value)
        };
        // SAFETY: queue_name and system_id are text; their bytes are used before the next row.
        let text = |column| value(column).map(|value| unsafe { pg::text_bytes(value) });
        if text(queue) != Some(name) {
            return;
        }
        if let (Some(system), Some(timeline)) = (text(system), value(timeline)) {
            // SAFETY: both read what the server has in memory; one that takes writes has ended its recovery.
            let here = unsafe { (pg_sys::GetSystemIdentifier(), pg_sys::GetWALInsertionTimeLine()) };
            elsewhere = system != here.0.to_string().as_bytes() || timeline.value() as u32 != here.1;
        }
    });
    if elsewhere {
        pg::raise(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!(
                "the root of queue '{}' was promoted outside takeover and takes no events yet",
                pg::shown(name)
            ),
            "Make it the root: consumer takeover NODE --promoted-standby. docs/takeover.md says what else can be done.",
        );
    }
}
