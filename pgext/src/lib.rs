//! The part of pgcascade that runs inside the server: an index of its modules, and what happens when the library is loaded.
//!
//! - [`queue`] and [`insert`] put an event into a queue; `pgq.insert_event` and the capture triggers end there.
//! - [`capture`] turns a row change into an event.
//! - [`worker`] runs the ticker of each database; it needs the library in `shared_preload_libraries`.
//! - [`wait`] lets a consumer wait for its next batch.
//! - [`lock`] has the ticker's locks.
//! - [`compact`] puts rows back into a table that maintenance rewrites.
//! - [`recall`] remembers where the events of a batch are, for retrying them one by one.
//! - [`guc`] holds the settings, [`pg`] what we need of the server beyond pgrx and what differs between its versions.
//!
//! Everything else is SQL: see `sql/` at the top of the repository.

#[cfg(not(panic = "unwind"))]
compile_error!("a server ERROR passes through this library as a panic: build it with panic = \"unwind\"");

mod capture;
mod compact;
mod guc;
mod insert;
mod lock;
mod pg;
mod promoted;
mod queue;
mod recall;
mod wait;
mod worker;

use pgrx::prelude::*;

pgrx::pg_module_magic!(name, version);

/// Called by the server when it loads the library: in the postmaster if preloaded, else in the backend that first needs it.
#[allow(non_snake_case)]
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    guc::init();
    queue::init();
    insert::init();
    capture::init();
    worker::init();
}
