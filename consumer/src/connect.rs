//! Opening a session on either end.
//!
//! [`connect`] tries the hosts of a [`ConnInfo`] in order, each within its time limit (which covers the look-up of the
//! name, the TCP and TLS handshakes and authentication), and returns a session whose settings do not depend on the
//! role's or the database's own: what is read and written as text means the same on both ends. The connection is driven
//! by a task of its own, so that notifications arrive while no statement runs.

pub(crate) mod flow;
mod pooler;
pub(crate) mod silence;
mod tls;

use std::fmt;
use std::future::poll_fn;
use std::task::ready;
use std::time::Duration;

use rand::seq::SliceRandom;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_postgres::config::LoadBalanceHosts;
use tokio_postgres::error::{Severity, SqlState};
use tokio_postgres::{AsyncMessage, CancelToken, Client, Connection, Notification};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::conninfo::{Attempt, ConnInfo};
use crate::error::{Doing, Error, Result};
use flow::Valve;
use silence::{Asking, Asks, Patience, Silence};

/// Which end of the hop a session belongs to; names it in messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum End {
    /// The database that changes are captured in.
    Provider,
    /// The database that they are replayed into.
    Subscriber,
    /// A node of a cascade, whatever it is to others.
    Node,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            End::Provider => "provider",
            End::Subscriber => "subscriber",
            End::Node => "node",
        })
    }
}

/// An open session. Dropping the client ends the connection, and the task that drives it.
pub(crate) struct Session {
    /// Runs statements.
    pub(crate) client: Client,
    /// What LISTEN brought. When the channel is full the newest is dropped: a notification says "look again", not what
    /// there is to see. Closed when the connection is.
    pub(crate) notifications: mpsc::Receiver<Notification>,
    /// Closed while too much is kept of what a COPY brought.
    valve: Valve,
    asks: Asks,
    cancel: Cancel,
}

/// Has the server cancel what a session of ours does, by a connection of its own.
#[derive(Clone)]
pub(crate) struct Cancel {
    token: CancelToken,
    tls: MakeRustlsConnect,
}

impl Cancel {
    /// Asks for it. Nobody hears whether that came to anything; a session that is dropped next ends either way, and this is sooner.
    pub(crate) async fn send(self) {
        if let Err(error) = self.token.cancel_query(self.tls).await {
            tracing::debug!("a statement could not be cancelled: {error}");
        }
    }
}

impl Session {
    /// For whoever has to end what it does.
    pub(crate) fn cancel(&self) -> Cancel {
        self.cancel.clone()
    }

    /// Asks something, which is waited for as long as the session's patience lasts, if it has one.
    pub(crate) fn ask(&self) -> Asking<'_> {
        self.asks.begin(&self.client)
    }
}

/// Notifications kept for a session that is busy.
const NOTIFICATIONS_KEPT: usize = 256;

/// Every session's settings, whatever the role's or the database's are. Values travel as text, so the formats must be
/// the same on both ends. row_security off turns rows that are hidden from us into an error instead of a silent gap.
/// The time limits would end a copy that takes long for good reason (lock_timeout is left to the administrator: running
/// into it is retried); not every version has all of them. quote_all_identifiers: names of types are compared. jit: event tables are never analyzed, so the planner may believe
/// that compiling a batch's query pays.
pub(crate) const SETTINGS: &str = "\
set client_encoding = 'UTF8';
set search_path = '';
set DateStyle = 'ISO, MDY';
set IntervalStyle = 'postgres';
set TimeZone = 'UTC';
set extra_float_digits = 1;
set bytea_output = 'hex';
set lc_monetary = 'C';
set xmloption = 'content';
set standard_conforming_strings = on;
set quote_all_identifiers = off;
set row_security = off;
set jit = off;
set default_transaction_isolation = 'read committed';
select set_config(name, '0', false) from pg_catalog.pg_settings
 where name in ('statement_timeout', 'transaction_timeout', 'idle_session_timeout',
                'idle_in_transaction_session_timeout')";

/// Opens a session. The error names the end, the place and the cause, and is transient if every host's was.
pub(crate) async fn connect(target: &ConnInfo, end: End, application_name: &str) -> Result<Session> {
    connect_within(target, end, application_name, None).await
}

/// The same with an end to what is asked by [`Session::ask`], and to each attempt.
pub(crate) async fn connect_within(
    target: &ConnInfo,
    end: End,
    application_name: &str,
    patience: Option<Patience>,
) -> Result<Session> {
    let mut attempts = target.attempts();
    if attempts
        .first()
        .is_some_and(|one| one.settings.get_load_balance_hosts() == LoadBalanceHosts::Random)
    {
        attempts.shuffle(&mut rand::rng());
    }
    let mut failures = Vec::new();
    for mut attempt in attempts {
        attempt.settings.application_name(application_name);
        match open(target, end, &attempt, patience).await {
            Ok(session) => return Ok(session),
            Err(error) => failures.push(error),
        }
    }
    Err(gather(failures, end, target))
}

/// Whether a relation is there: those of schema pgcascade_replay come with what needs them first, those of pgcascade with the extension.
pub(crate) async fn exists(client: &Client, relation: &str) -> Result<bool> {
    let row = client
        .query_one("select pg_catalog.to_regclass($1) is not null", &[&relation])
        .await
        .doing(|| format!("look for {relation}"))?;
    Ok(row.get(0))
}

async fn open(target: &ConnInfo, end: End, attempt: &Attempt, patience: Option<Patience>) -> Result<Session> {
    let tls = tls::connector(target.certificates(), attempt.verify)?;
    let what = || {
        format!(
            "connect to the {end} at {} (database {})",
            attempt.place,
            target.dbname()
        )
    };
    let connecting = attempt.settings.connect(tls.clone());
    let limits = [target.connect_timeout(), patience.map(|patience| patience.lock)];
    let connected = match limits.into_iter().flatten().min() {
        // The future is dropped on timeout together with its socket: nothing is left half done on a connection that
        // lives on.
        Some(limit) => match timeout(limit, connecting).await {
            Ok(connected) => connected,
            Err(_) => return Err(too_slow(&what(), limit)),
        },
        None => connecting.await,
    };
    let (client, connection) = connected.doing(what).map_err(|error| advise(error, target))?;
    let (sender, notifications) = mpsc::channel(NOTIFICATIONS_KEPT);
    let valve = Valve::default();
    let asks = Asks::default();
    tokio::spawn(drive(connection, end, sender, valve.clone(), asks.watch(patience)));
    let session = Session {
        cancel: Cancel {
            token: client.cancel_token(),
            tls,
        },
        client,
        notifications,
        valve,
        asks,
    };
    pooler::refuse(&session.client, target, end, attempt).await?;
    let limits = patience.map(|patience| patience.settings()).unwrap_or_default();
    session
        .ask()
        .batch_execute(&format!("{SETTINGS};{limits}"))
        .await
        .doing(|| format!("set up the session on the {end} at {}", attempt.place))?;
    Ok(session)
}

fn too_slow(what: &str, limit: Duration) -> Error {
    Error::failure(format!(
        "could not {what}: no answer within {} seconds",
        limit.as_secs()
    ))
    .hint("Check host, port and firewalls; connect_timeout=SECONDS in the connection string changes the limit.")
    .transient()
}

/// Of many hosts' failures, the one that somebody can act on: a refused password says more than a host that is down.
fn gather(mut failures: Vec<Error>, end: End, target: &ConnInfo) -> Error {
    let last = failures.len().saturating_sub(1);
    let telling = failures.iter().position(|error| !error.is_transient()).unwrap_or(last);
    if failures.is_empty() {
        return Error::usage(format!("no host to connect to for the {end} ({target})"));
    }
    let first = failures.remove(telling);
    if failures.is_empty() {
        return first;
    }
    let others: Vec<String> = failures.iter().map(ToString::to_string).collect();
    first.detail(format!("The other attempts: {}.", others.join("; ")))
}

/// What to do about the usual reasons.
fn advise(error: Error, target: &ConnInfo) -> Error {
    let sentence = error.to_string();
    let hint = match error.sqlstate() {
        Some(code) if *code == SqlState::INVALID_PASSWORD => {
            format!("Check the password of {}: {}.", target.user(), target.password_source())
        }
        Some(code) if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            "The server's pg_hba.conf must let this user in from this machine.".to_owned()
        }
        Some(code) if *code == SqlState::UNDEFINED_DATABASE => "Check dbname in the connection string.".to_owned(),
        Some(_) => return error,
        None if sentence.contains("password missing") => {
            format!("The server asks for a password. {}.", target.password_source())
        }
        None if sentence.contains("does not support TLS") => {
            "Turn on ssl on the server, or, where nobody can listen, add sslmode=disable to the connection string."
                .to_owned()
        }
        None if sentence.contains("invalid peer certificate") => {
            "sslrootcert=FILE names the authority that signed the server's \
             certificate, whose subjectAltName must have the host's name; sslmode=verify-ca leaves the name aside."
                .to_owned()
        }
        None if error.is_transient() => "Is the server running there, and does it accept TCP connections?".to_owned(),
        None => return error,
    };
    error.hint(hint)
}

/// Moves bytes between the socket and the client until either ends.
async fn drive<S, T>(
    mut connection: Connection<S, T>,
    end: End,
    sender: mpsc::Sender<Notification>,
    valve: Valve,
    mut silence: Silence,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let message = poll_fn(|context| {
            ready!(valve.poll_open(context));
            connection.poll_message(context)
        });
        let message = tokio::select! {
            biased;
            message = message => message,
            () = silence.overdue() => return,
        };
        match message {
            Some(Ok(AsyncMessage::Notification(notification))) => {
                // Full or closed: see the field.
                let _ = sender.try_send(notification);
            }
            Some(Ok(AsyncMessage::Notice(notice))) => {
                if matches!(notice.parsed_severity(), Some(Severity::Warning)) {
                    tracing::warn!(%end, hint = notice.hint(), "the server warns: {}", notice.message());
                } else {
                    tracing::debug!(%end, severity = notice.severity(), "the server says: {}", notice.message());
                }
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                // Whoever waits for an answer gets "connection closed"; the server's reason is known only here.
                if let Err(cause) = Err::<(), _>(error).doing(|| format!("keep the connection to the {end}")) {
                    tracing::warn!(%end, "{cause}");
                }
                return;
            }
            None => return,
        }
    }
}
