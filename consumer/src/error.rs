//! What went wrong, for the person who has to act on it.
//!
//! An [`Error`] is one sentence that names the object and what the consumer was doing with it, the cause that the
//! server or the operating system gave (each link of the chain once, with the SQLSTATE), and, where there is one, a
//! hint. Its kind decides the exit code. Whether trying again can help is answered by one table, at the end of this
//! file. Every module returns this type; `main` prints it, and the replay loop asks [`Error::is_transient`] before it
//! gives up.
//!
//! Since version 0.7.15 the `Display` of a `tokio_postgres::Error` leaves out its cause ("db error" and nothing else),
//! so the chain is walked here, and only here.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use tokio_postgres::error::{DbError, SqlState};

/// The outcome of nearly everything here.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Who has to act, and so which code the process exits with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Something failed at work: exit code 1.
    Failure,
    /// The command line or the configuration is wrong: exit code 2.
    Usage,
}

/// One failure, ready to be printed.
pub(crate) struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    sentence: String,
    detail: Option<String>,
    hint: Option<String>,
    sqlstate: Option<SqlState>,
    transient: bool,
}

impl Error {
    /// Work failed: exit code 1. `sentence` names the object, without a full stop.
    pub(crate) fn failure(sentence: impl Into<String>) -> Self {
        Self::new(Kind::Failure, sentence.into())
    }

    /// The command line or the configuration is wrong: exit code 2.
    pub(crate) fn usage(sentence: impl Into<String>) -> Self {
        Self::new(Kind::Usage, sentence.into())
    }

    /// What to do about it. Our hint says more of the situation than the server's, and replaces it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// More of the facts, printed below the sentence.
    pub(crate) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.0.detail = Some(detail.into());
        self
    }

    /// Marks a failure that may be gone at the next attempt.
    pub(crate) fn transient(mut self) -> Self {
        self.0.transient = true;
        self
    }

    /// Puts what was being done in front: `{what}: {the sentence so far}`.
    pub(crate) fn within(mut self, what: impl fmt::Display) -> Self {
        self.0.sentence = format!("{what}: {}", self.0.sentence);
        self
    }

    /// 1 or 2, see [`Kind`].
    pub(crate) fn exit_code(&self) -> u8 {
        match self.0.kind {
            Kind::Failure => 1,
            Kind::Usage => 2,
        }
    }

    /// Whether the same work, tried again on a new connection, may succeed.
    pub(crate) fn is_transient(&self) -> bool {
        self.0.transient
    }

    /// The server's code, when a server reported the failure.
    pub(crate) fn sqlstate(&self) -> Option<&SqlState> {
        self.0.sqlstate.as_ref()
    }

    /// What to do about it, if anything is known.
    pub(crate) fn get_hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// Further facts, if any are known.
    pub(crate) fn get_detail(&self) -> Option<&str> {
        self.0.detail.as_deref()
    }

    fn new(kind: Kind, sentence: String) -> Self {
        Self(Box::new(Inner {
            kind,
            sentence,
            detail: None,
            hint: None,
            sqlstate: None,
            transient: false,
        }))
    }
}

/// One sentence, with the causes; `{:#}` adds the detail and the hint on lines of their own.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.sentence)?;
        if f.alternate() {
            if let Some(detail) = &self.0.detail {
                write!(f, "\nDETAIL: {detail}")?;
            }
            if let Some(hint) = &self.0.hint {
                write!(f, "\nHINT: {hint}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self:#}", self.0.kind)
    }
}

impl StdError for Error {}

/// Says what was being done when a library reported an error. `what` is a verb phrase and names the object: `.doing(||
/// format!("read table {name}"))` gives "could not read table public.t: relation ... does not exist (SQLSTATE 42P01)".
pub(crate) trait Doing<T> {
    /// Turns the library's error into ours.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Doing<T> for std::result::Result<T, tokio_postgres::Error> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| from_postgres(&what(), &error))
    }
}

impl<T> Doing<T> for std::result::Result<T, io::Error> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| {
            let mut ours = Error::failure(format!("could not {}: {}", what(), chain(&error)));
            ours.0.transient = io_is_transient(&error);
            ours
        })
    }
}

fn from_postgres(what: &str, error: &tokio_postgres::Error) -> Error {
    let Some(db) = error.as_db_error() else {
        let mut ours = Error::failure(format!("could not {what}: {}", chain(error)));
        ours.0.transient = error.is_closed() || io_cause(error).is_some_and(io_is_transient);
        return ours;
    };
    let mut ours = Error::failure(format!(
        "could not {what}: {} (SQLSTATE {})",
        db.message(),
        db.code().code()
    ));
    ours.0.detail = db_detail(db);
    ours.0.hint = db.hint().map(str::to_owned);
    ours.0.transient = sqlstate_is_transient(db.code());
    ours.0.sqlstate = Some(db.code().clone());
    ours
}

/// The server's DETAIL and, for an error inside a function, where it was raised.
fn db_detail(db: &DbError) -> Option<String> {
    match (db.detail(), db.where_()) {
        (None, None) => None,
        (Some(detail), None) => Some(detail.to_owned()),
        (None, Some(place)) => Some(format!("in {}", first_line(place))),
        (Some(detail), Some(place)) => Some(format!("{detail} (in {})", first_line(place))),
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or("")
}

/// Every link of the chain once: a link that repeats the text of the one before adds nothing.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut last = text.clone();
    let mut cause = error.source();
    while let Some(link) = cause {
        let message = link.to_string();
        if message != last && !last.ends_with(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        last = message;
        cause = link.source();
    }
    text
}

fn io_cause<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a io::Error> {
    let mut cause = error.source();
    while let Some(link) = cause {
        if let Some(io) = link.downcast_ref::<io::Error>() {
            return Some(io);
        }
        cause = link.source();
    }
    None
}

/// The one place that decides which of the server's errors are worth another attempt. Everything else needs somebody to
/// look.
const TRANSIENT: &[(&str, &str)] = &[
    ("08", "the connection broke"),
    ("40001", "serialization failure"),
    (
        "40003",
        "nobody knows whether the statement was completed; the position does",
    ),
    ("40P01", "deadlock"),
    ("53", "the server is short of memory, disk or connections"),
    ("55P03", "a lock could not be had in time"),
    ("57P01", "the server is being shut down"),
    ("57P02", "the server crashed"),
    ("57P03", "the server is starting or in recovery"),
    ("57P05", "the server ended an idle session"),
    ("25P03", "the server ended a transaction that was idle for too long"),
];

fn sqlstate_is_transient(code: &SqlState) -> bool {
    // A limit from the configuration stays as it is until somebody changes it.
    code.code() != "53400" && TRANSIENT.iter().any(|(start, _)| code.code().starts_with(start))
}

fn io_is_transient(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    match error.kind() {
        K::ConnectionRefused
        | K::ConnectionReset
        | K::ConnectionAborted
        | K::NotConnected
        | K::BrokenPipe
        | K::TimedOut
        | K::UnexpectedEof
        | K::HostUnreachable
        | K::NetworkUnreachable
        | K::NetworkDown
        | K::Interrupted
        | K::AddrNotAvailable => true,
        // A name that cannot be looked up arrives without a kind of its own; a refused certificate carries rustls'
        // error.
        _ => error
            .get_ref()
            .is_some_and(|inner| inner.to_string().contains("lookup address")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
    use super::*;

    #[test]
    fn every_class_of_sqlstate_has_its_answer() {
        let transient = |code: &str| sqlstate_is_transient(&SqlState::from_code(code));
        for code in [
            "08006", "40001", "40P01", "53100", "53300", "55P03", "57P01", "57P02", "57P03", "25P03",
        ] {
            assert!(transient(code), "{code}");
        }
        for code in [
            "23505", "42P01", "42501", "28P01", "28000", "3D000", "53400", "57014", "57P04", "22021", "XX000",
        ] {
            assert!(!transient(code), "{code}");
        }
    }

    #[test]
    fn a_broken_connection_is_transient_and_a_broken_disk_is_not() {
        let doing = |kind: io::ErrorKind| {
            Err::<(), _>(io::Error::from(kind))
                .doing(|| "do it".to_owned())
                .unwrap_err()
        };
        for kind in [
            io::ErrorKind::ConnectionRefused,
            io::ErrorKind::UnexpectedEof,
            io::ErrorKind::TimedOut,
        ] {
            assert!(doing(kind).is_transient(), "{kind:?}");
        }
        for kind in [
            io::ErrorKind::PermissionDenied,
            io::ErrorKind::NotFound,
            io::ErrorKind::InvalidData,
        ] {
            assert!(!doing(kind).is_transient(), "{kind:?}");
        }
    }

    #[test]
    fn the_cause_is_told_once() {
        let wrong: std::result::Result<tokio_postgres::Config, _> = "port=x".parse();
        let error = wrong.doing(|| "read it".to_owned()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "could not read it: invalid connection string: invalid value for option `port`"
        );
        let inner = io::Error::other("the reason");
        let error = Err::<(), _>(io::Error::other(inner))
            .doing(|| "read it".to_owned())
            .unwrap_err();
        assert_eq!(error.to_string(), "could not read it: the reason");
    }

    #[test]
    fn sentence_detail_and_hint_have_their_lines() {
        let error = Error::usage("a is wrong")
            .detail("more of a")
            .hint("change a")
            .within("file f");
        assert_eq!(error.to_string(), "file f: a is wrong");
        assert_eq!(
            format!("{error:#}"),
            "file f: a is wrong\nDETAIL: more of a\nHINT: change a"
        );
        assert_eq!((error.exit_code(), Error::failure("x").exit_code()), (2, 1));
        assert!(!error.is_transient() && Error::failure("x").transient().is_transient());
    }
}
