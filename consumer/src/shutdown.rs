//! Stopping when told to.
//!
//! The first SIGTERM or SIGINT is a request: the replay loop sees it between two batches, copies end with their sessions,
//! and the process exits 0. The second one ends the process at once, with 128 plus the number of the signal, whatever
//! it is doing; as the position commits with the data, that loses nothing. Nothing here cancels a database future: a
//! future that is dropped half way leaves its connection in the middle of an answer.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// A request to stop, seen by every clone.
#[derive(Clone)]
pub(crate) struct Shutdown {
    requested: watch::Receiver<bool>,
}

impl Shutdown {
    /// Listens for the two signals from now on. Must be called inside the runtime.
    pub(crate) fn on_signals() -> io::Result<Self> {
        let (sender, requested) = watch::channel(false);
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::spawn(async move {
            loop {
                // Both are cancel-safe: a signal that is not taken here is reported by the next call.
                let (name, code) = tokio::select! {
                    _ = terminate.recv() => ("SIGTERM", 143),
                    _ = interrupt.recv() => ("SIGINT", 130),
                };
                if sender.send_replace(true) {
                    tracing::warn!(signal = name, "second signal: exiting at once");
                    std::process::exit(code);
                }
                tracing::info!(
                    signal = name,
                    "stopping after the work at hand; a second signal exits at once"
                );
            }
        });
        Ok(Self { requested })
    }

    /// Whether somebody asked to stop.
    pub(crate) fn requested(&self) -> bool {
        *self.requested.borrow()
    }

    /// Returns when somebody asks to stop (at once, if that has happened). Dropping the future loses nothing, so it may
    /// stand in a `select!` beside a timer or a notification.
    pub(crate) async fn wait(&self) {
        let mut requested = self.requested.clone();
        // An error means that the task above is gone, which happens only while the runtime is taken down.
        let _ = requested.wait_for(|requested| *requested).await;
    }
}
