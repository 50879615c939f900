//! Servers that do not answer.
//!
//! A command that must end gives its statements a [`Patience`]. The server ends those that wait for a lock or take too long; but one that
//! hangs (stopped, or behind a network that swallows everything) says nothing, and its socket stays as it is. So whoever asks
//! something holds an [`Asking`] meanwhile, and when it is held for too long the task that drives the connection ends it: what was asked fails as
//! with any connection that breaks, and [`noticed`] says why. What the server makes of the statement nobody knows then.

use std::future;
use std::ops::Deref;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::Client;

/// How much longer an answer is waited for than the server may take for it.
const ON_THE_WAY: Duration = Duration::from_secs(2);

/// How long a server may take for what it is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// For each lock.
    pub(crate) lock: Duration,
    /// For each statement.
    pub(crate) statement: Duration,
}

impl Patience {
    /// How long an answer is waited for.
    pub(super) fn answer(&self) -> Duration {
        self.statement + ON_THE_WAY
    }

    /// What the session is told of it.
    pub(super) fn settings(&self) -> String {
        let (lock, statement) = (self.lock.as_millis(), self.statement.as_millis());
        format!("set lock_timeout = {lock}; set statement_timeout = {statement}")
    }
}

/// Who asks something of a session, and since when.
#[derive(Debug, Default)]
struct Asked {
    by: usize,
    since: Option<Instant>,
}

/// The session's side.
#[derive(Debug, Default)]
pub(super) struct Asks(watch::Sender<Asked>);

impl Asks {
    /// Somebody asks something.
    pub(super) fn begin<'a>(&'a self, client: &'a Client) -> Asking<'a> {
        self.0.send_modify(|asked| {
            asked.by += 1;
            asked.since.get_or_insert_with(Instant::now);
        });
        Asking { client, asks: self }
    }

    /// For the task that drives the connection.
    pub(super) fn watch(&self, patience: Option<Patience>) -> Silence {
        Silence {
            asked: self.0.subscribe(),
            patience,
        }
    }
}

/// The client, while something is asked: to be held no longer than until the answer is there.
pub(crate) struct Asking<'a> {
    client: &'a Client,
    asks: &'a Asks,
}

impl Deref for Asking<'_> {
    type Target = Client;

    fn deref(&self) -> &Client {
        self.client
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.asks.0.send_modify(|asked| {
            asked.by -= 1;
            if asked.by == 0 {
                asked.since = None;
            }
        });
    }
}

/// The connection's side.
pub(super) struct Silence {
    asked: watch::Receiver<Asked>,
    patience: Option<Patience>,
}

impl Silence {
    /// Returns when an answer is overdue. Dropping the future loses nothing.
    pub(super) async fn overdue(&mut self) {
        let Some(patience) = self.patience else {
            return future::pending().await;
        };
        let limit = patience.answer();
        loop {
            let since = self.asked.borrow_and_update().since;
            let changed = match since {
                Some(since) => match timeout_at(since + limit, self.asked.changed()).await {
                    Ok(changed) => changed,
                    Err(_) => break,
                },
                None => self.asked.changed().await,
            };
            if changed.is_err() {
                return future::pending().await;
            }
        }
        *NOTICED.lock().unwrap_or_else(PoisonError::into_inner) = Some(limit);
    }
}

/// Of the connection that was ended last, until somebody asked why it ended: who waits for an answer does so at once.
static NOTICED: Mutex<Option<Duration>> = Mutex::new(None);

/// How long an answer was waited for in vain, if that is why a connection was ended.
pub(crate) fn noticed() -> Option<Duration> {
    NOTICED.lock().unwrap_or_else(PoisonError::into_inner).take()
}
