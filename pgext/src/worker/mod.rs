//! The background workers: a launcher, and one ticker for each database that has the extension.
//!
//! They exist only where the library is in `shared_preload_libraries`. The launcher starts after recovery, so a standby
//! has none and gets one at promotion.

pub(crate) mod launcher;
pub(crate) mod ticker;
pub(crate) mod wake;

use pgrx::pg_sys;

pub(crate) fn init() {
    // SAFETY: reads a variable of the server that is set while it loads the preloaded libraries.
    if unsafe { pg_sys::process_shared_preload_libraries_in_progress } {
        wake::init();
        crate::wait::init();
        launcher::register();
    }
}

/// What both workers do first: let the server's own handlers serve SIGTERM and SIGHUP (they act inside lock waits and
/// long statements too), then accept signals.
fn accept_signals() {
    // SAFETY: the handlers are the server's own; signals are blocked until the last line.
    unsafe {
        crate::pg::handle_signal(SIGTERM, crate::pg::handlers::die);
        crate::pg::handle_signal(SIGHUP, crate::pg::handlers::SignalHandlerForConfigReload);
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

const SIGHUP: i32 = 1;
const SIGTERM: i32 = 15;

/// Re-reads the configuration files if a SIGHUP asked for it; returns whether it did.
fn reload_configuration() -> bool {
    // SAFETY: a worker's main loop is where the server expects this; the flag is set by the signal handler only.
    unsafe {
        if (&raw const pg_sys::ConfigReloadPending).read_volatile() == 0 {
            return false;
        }
        (&raw mut pg_sys::ConfigReloadPending).write_volatile(0);
        pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
    }
    true
}

/// Waits until this process's latch is set or `timeout` is over, serving interrupts (shutdown, barriers of DROP
/// DATABASE) meanwhile. Returns whether the latch was set. Ends the process if the postmaster is gone.
fn wait(timeout: std::time::Duration) -> bool {
    let milliseconds = timeout.as_millis().min(3_600_000) as std::ffi::c_long;
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // SAFETY: waits for and resets our own latch.
    let woken = unsafe {
        let happened = pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, milliseconds, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
        happened as u32 & pg_sys::WL_LATCH_SET != 0
    };
    pgrx::check_for_interrupts!();
    woken
}
