//! Where the events of a batch are, remembered by the session for `pgq.event_retry()`.
//!
//! A client that cannot deal with a batch retries its events one call at a time, and an event is known by its id alone,
//! on which event tables have no index: one would be paid for by every insert and serve hardly any. So the session
//! remembers the rows' places: [`look_for`] says when that pays, [`remember`] takes them, [`place`] gives one back.
//!
//! It promises nothing. A place is a hint: `sql/retry.sql` fetches the row there, checks again that it is that event and of
//! that batch, and looks for it in the whole batch if not. So nothing invalidates this, and nobody can be harmed by it.

use std::cell::RefCell;

use pgrx::{FromDatum, IntoDatum, pg_sys};

use crate::pg::native;

/// Batches remembered at a time; the one not used for longest is forgotten for another.
const BATCHES: usize = 4;
/// Events remembered of a batch, 16 bytes each. `sql/retry.sql` reads as many.
const EVENTS: usize = 1 << 20;
/// Look-ups that a part of a bigger batch must have served before another part is read for one that it did not serve.
const WORTH: usize = 1000;

/// The events of one batch, or as many as may be remembered.
struct Batch {
    id: i64,
    /// Event id, block, offset.
    places: Vec<(i64, u32, u16)>,
    /// Whether `places` is in order. It is put in order when it is first searched.
    sorted: bool,
    served: usize,
    /// Whether it was asked for before; one retry is no reason to read the whole batch.
    asked: bool,
}

thread_local! {
    /// The batch used last is the last.
    static BATCHES_KNOWN: RefCell<Vec<Batch>> = const { RefCell::new(Vec::new()) };
}

/// Runs `work` on what is remembered of the batch `id`, made empty if there is nothing. `work` does not call the server.
fn with<R>(id: i64, work: impl FnOnce(&mut Batch) -> R) -> R {
    BATCHES_KNOWN.with_borrow_mut(|batches| {
        let mut batch = match batches.iter().position(|batch| batch.id == id) {
            Some(known) => batches.remove(known),
            None => Batch {
                id,
                places: Vec::new(),
                sorted: false,
                served: 0,
                asked: false,
            },
        };
        let result = work(&mut batch);
        if batches.len() == BATCHES {
            batches.remove(0);
        }
        batches.push(batch);
        result
    })
}

native!(recall_event_wrapper, pg_finfo_recall_event_wrapper, place);
native!(recall_wanted_wrapper, pg_finfo_recall_wanted_wrapper, look_for);
native!(remember_event_wrapper, pg_finfo_remember_event_wrapper, remember);

/// An argument of the functions here, which are strict and pass bigint by value.
fn number(call: pg_sys::FunctionCallInfo, index: usize) -> i64 {
    // SAFETY: declared strict with at least that many arguments, this one bigint.
    unsafe { i64::from_datum((*(*call).args.as_ptr().add(index)).value, false) }.unwrap_or(0)
}

/// `pgcascade.recall_event(batch, event)`: where the event was seen; NULL if that is not known.
fn place(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    let event = number(call, 1);
    let found = with(number(call, 0), |batch| {
        if !batch.sorted {
            batch.places.sort_unstable();
            batch.sorted = true;
        }
        let known = batch.places.binary_search_by_key(&event, |place| place.0).ok()?;
        batch.served += 1;
        Some(batch.places[known])
    });
    match found {
        Some((_, block, offset)) => {
            let mut tid = pg_sys::ItemPointerData::default();
            pgrx::itemptr::item_pointer_set_all(&mut tid, block, offset);
            tid.into_datum().unwrap_or(pg_sys::Datum::null())
        }
        None => {
            // SAFETY: the server passes a live call frame.
            unsafe { (*call).isnull = true };
            pg_sys::Datum::null()
        }
    }
}

/// `pgcascade.recall_wanted(batch)`: an event of that batch was looked for and its place is not known; whether places should be
/// remembered now. What was remembered of the batch is then forgotten.
fn look_for(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    let wanted = with(number(call, 0), |batch| {
        let wanted = batch.asked && (batch.places.is_empty() || batch.served >= WORTH);
        batch.asked = true;
        if wanted {
            batch.places = Vec::new();
            batch.served = 0;
        }
        wanted
    });
    pg_sys::Datum::from(wanted)
}

/// `pgcascade.remember_event(batch, event, place)`: this event of the batch is there.
fn remember(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: declared strict with a tid as third argument, which lives as long as the call.
    let tid = unsafe {
        *(*(*call).args.as_ptr().add(2))
            .value
            .cast_mut_ptr::<pg_sys::ItemPointerData>()
    };
    let (block, offset) = pgrx::itemptr::item_pointer_get_both(tid);
    let event = number(call, 1);
    with(number(call, 0), |batch| {
        if batch.places.len() < EVENTS {
            batch.places.push((event, block, offset));
            batch.sorted = false;
        }
    });
    pg_sys::Datum::from(true)
}
