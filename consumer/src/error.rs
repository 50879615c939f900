//! What went wrong, for the person who has to act on it.
//!
//! An [`Error`] is one sentence that names the object and what the consumer was doing with it, the cause that the
//! server or the operating system gave (each link of the chain once, with the SQLSTATE), and, where there is one, a
//! hint. Its kind decides the exit code, its class (class.rs) whether replay tries again, parks a table, or stops.
//! Every module returns this type; `main` prints it.
//!
//! Since version 0.7.15 the `Display` of a `tokio_postgres::Error` leaves out its cause ("db error" and nothing else),
//! so the chain is walked here, and only here.

mod class;

use std::error::Error as StdError;
use std::fmt;
use std::io;

use tokio_postgres::error::{DbError, SqlState};

use crate::connect::silence;

pub(crate) use class::Class;

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
    table: Option<(String, String)>,
    class: Class,
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
        self.0.class = Class::Retry;
        self
    }

    /// Marks what is no failure yet: another node has to get on first.
    pub(crate) fn waits(mut self) -> Self {
        self.0.class = Class::Wait;
        self
    }

    /// Marks a failure that keeps only the table from going on whose event it is.
    pub(crate) fn of_one_table(mut self) -> Self {
        self.0.class = Class::Park;
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
        self.0.class == Class::Retry
    }

    /// What it means for replay.
    pub(crate) fn class(&self) -> Class {
        self.0.class
    }

    /// Schema and name of the table whose constraint or column the server named.
    pub(crate) fn table(&self) -> Option<(&str, &str)> {
        let (schema, table) = self.0.table.as_ref()?;
        Some((schema, table))
    }

    /// The server's code, when a server reported the failure.
    pub(crate) fn sqlstate(&self) -> Option<&SqlState> {
        self.0.sqlstate.as_ref()
    }

    /// With what to do about it, if it is a value that a subscriber's column or its encoding does not take.
    pub(crate) fn of_a_value(self) -> Self {
        if self.0.hint.is_none() && self.sqlstate().is_some_and(|state| state.code().starts_with("22")) {
            return self.hint(NOT_TAKEN);
        }
        self
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
            table: None,
            class: Class::Stop,
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
            ours.0.class = class::of_io(&error);
            ours
        })
    }
}

fn from_postgres(what: &str, error: &tokio_postgres::Error) -> Error {
    let Some(db) = error.as_db_error() else {
        if error.is_closed()
            && let Some(limit) = silence::noticed()
        {
            return Error::failure(format!(
                "could not {what}: its server gave no answer within {} seconds",
                limit.as_secs()
            ))
            .hint("The server hangs, or the network to it does: see to that; --timeout says how long it is waited for.")
            .transient();
        }
        let mut ours = Error::failure(format!("could not {what}: {}", chain(error)));
        ours.0.class = match io_cause(error) {
            _ if error.is_closed() => Class::Retry,
            Some(cause) => class::of_io(cause),
            None => Class::Stop,
        };
        return ours;
    };
    let mut ours = Error::failure(format!(
        "could not {what}: {} (SQLSTATE {})",
        db.message(),
        db.code().code()
    ));
    ours.0.detail = db_detail(db);
    ours.0.hint = db.hint().or_else(|| hint_of(db.code())).map(str::to_owned);
    ours.0.table = db
        .schema()
        .zip(db.table())
        .map(|(schema, table)| (schema.to_owned(), table.to_owned()));
    ours.0.class = class::of_sqlstate(db.code().code());
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

const NOT_TAKEN: &str = "Give the subscriber's column the type of the provider's, and its database an encoding with the same letters; \
                         consumer check shows where they differ. If the value is broken on the provider, too: mend it there, go on \
                         with --on-error park, and copy the table again: consumer table resync";

/// What to do about an error that has the same cause wherever it is met.
fn hint_of(code: &SqlState) -> Option<&'static str> {
    match code.code() {
        // What only happens when the sessions are not our own.
        "26000" | "42P05" => Some(
            "Is there a pooler in between that gives each transaction another session? Connect to the server itself, or \
             have the pooler keep sessions.",
        ),
        "25006" => Some(
            "That server is a standby: name its primary. Or default_transaction_read_only is on there: alter role ... in \
             database ... set default_transaction_read_only = off",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
    use super::*;

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
        assert_eq!(error.class(), Class::Stop);
        assert!(Error::failure("x").transient().is_transient());
    }
}
