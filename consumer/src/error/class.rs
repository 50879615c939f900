//! What an error means for replay: try again, park the table, or stop.
//!
//! [`SQLSTATES`] is the one place that decides it for the server's errors, [`of_io`] for those of the network; what the
//! consumer itself finds says so where it is found. docs/errors.md shows both lists, and a test below compares it with
//! them.

use std::io;

/// Who has to do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Nobody: the same work, tried again on a new connection, may succeed.
    Retry,
    /// Another node, which will: it is looked again until that is so. A copy waits beside the stream.
    Wait,
    /// Somebody, but only for the table whose event failed: without it, the others could go on. See `--on-error`.
    Park,
    /// Somebody, before anything can go on.
    Stop,
}

/// The start of a SQLSTATE, what it means, and in words. The longest start that fits counts; none: stop.
const SQLSTATES: &[(&str, Class, &str)] = &[
    ("08", Class::Retry, "the connection broke, or a pooler ended it"),
    ("0A", Class::Park, "the subscriber's table does not allow it"),
    (
        "21",
        Class::Park,
        "a query of a trigger or an expression returned too many rows",
    ),
    (
        "22",
        Class::Park,
        "a value that the subscriber's column does not take: too long, out of range, not of its type",
    ),
    (
        "23",
        Class::Park,
        "a constraint of the subscriber's table: unique, foreign key, check, not null, exclusion, partition",
    ),
    (
        "25006",
        Class::Retry,
        "a read-only transaction: after a failover the address may still lead to the standby",
    ),
    (
        "25P03",
        Class::Retry,
        "the server ended a transaction that was idle for too long",
    ),
    (
        "25P04",
        Class::Retry,
        "the server ended a transaction that took too long",
    ),
    (
        "26000",
        Class::Retry,
        "a prepared statement is gone: a pooler gave the transaction another session",
    ),
    ("27", Class::Park, "a trigger changed the row that was being changed"),
    ("2F", Class::Park, "a function of a trigger or an expression failed"),
    ("38", Class::Park, "a function of a trigger or an expression failed"),
    ("39", Class::Park, "a function of a trigger or an expression failed"),
    ("3F", Class::Park, "the table's schema is gone"),
    ("40001", Class::Retry, "serialization failure"),
    (
        "40003",
        Class::Retry,
        "nobody knows whether the statement was completed; the position does",
    ),
    ("40P01", Class::Retry, "deadlock"),
    (
        "42",
        Class::Park,
        "a table, column, type or function is missing or another, or the role may not use it",
    ),
    (
        "42P05",
        Class::Retry,
        "a prepared statement exists already: a pooler gave the transaction another session",
    ),
    ("44", Class::Park, "the check option of a view"),
    ("53", Class::Retry, "the server is short of memory, disk or connections"),
    (
        "53400",
        Class::Stop,
        "a limit of the server's configuration, which stays until somebody changes it",
    ),
    (
        "54",
        Class::Park,
        "a row or an index entry that is too large, or another of PostgreSQL's own limits",
    ),
    (
        "55",
        Class::Park,
        "the subscriber's table is in use or in a state that does not allow it",
    ),
    ("55P03", Class::Retry, "a lock could not be had in time"),
    ("57014", Class::Retry, "somebody cancelled the statement"),
    (
        "57P01",
        Class::Retry,
        "the server is being shut down, or somebody ended the session",
    ),
    ("57P02", Class::Retry, "the server crashed"),
    ("57P03", Class::Retry, "the server is starting or in recovery"),
    ("57P05", Class::Retry, "the server ended an idle session"),
    ("HV", Class::Park, "a foreign table"),
    ("P0", Class::Park, "a trigger raised an error"),
];

/// Everything else that a network can do, by the name that the standard library has for it.
const NETWORK: &[(&str, io::ErrorKind)] = &[
    ("connection refused", io::ErrorKind::ConnectionRefused),
    ("connection reset", io::ErrorKind::ConnectionReset),
    ("connection aborted", io::ErrorKind::ConnectionAborted),
    ("not connected", io::ErrorKind::NotConnected),
    ("broken pipe", io::ErrorKind::BrokenPipe),
    ("timed out", io::ErrorKind::TimedOut),
    ("unexpected end of file", io::ErrorKind::UnexpectedEof),
    ("host unreachable", io::ErrorKind::HostUnreachable),
    ("network unreachable", io::ErrorKind::NetworkUnreachable),
    ("network down", io::ErrorKind::NetworkDown),
    ("operation interrupted", io::ErrorKind::Interrupted),
    ("address not available", io::ErrorKind::AddrNotAvailable),
];

/// The class of a server's error.
pub(super) fn of_sqlstate(code: &str) -> Class {
    SQLSTATES
        .iter()
        .filter(|(start, ..)| code.starts_with(start))
        .max_by_key(|(start, ..)| start.len())
        .map_or(Class::Stop, |&(_, class, _)| class)
}

/// The class of the operating system's error.
pub(super) fn of_io(error: &io::Error) -> Class {
    // A name that cannot be looked up arrives without a kind of its own; a refused certificate carries rustls' error.
    let no_address = || {
        error
            .get_ref()
            .is_some_and(|inner| inner.to_string().contains("lookup address"))
    };
    if NETWORK.iter().any(|&(_, kind)| kind == error.kind()) || no_address() {
        Class::Retry
    } else {
        Class::Stop
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]
    use std::fmt::Write as _;

    use super::*;

    const BEGIN: &str = "<!-- generated from the code: begin -->";
    const END: &str = "<!-- generated from the code: end -->";

    fn word(class: Class) -> &'static str {
        match class {
            Class::Retry => "retry",
            Class::Wait => "wait",
            Class::Park => "park",
            Class::Stop => "stop",
        }
    }

    fn rows() -> String {
        let mut out = "| error | class | what it is |\n|---|---|---|\n".to_owned();
        for (name, _) in NETWORK {
            let _ = writeln!(
                out,
                "| {name} | retry | the connection, without a word of the server's |"
            );
        }
        out.push_str("| a host's name without an address | retry | the connection, without a word of the server's |\n");
        out.push_str("| any other error of the operating system | stop | a file, a certificate, a protocol |\n");
        for (start, class, words) in SQLSTATES {
            let dots = if start.len() == 2 { "xxx" } else { "" };
            let _ = writeln!(out, "| `{start}{dots}` | {} | {words} |", word(*class));
        }
        out.push_str(
            "| any other SQLSTATE | stop | among them 28xxx (not let in), 58xxx (the server's disk), XXxxx (a damaged \
             table, a defect) |\n",
        );
        out
    }

    /// docs/errors.md has the table that the code has, and each row of it is what the function says.
    #[test]
    fn the_table_in_docs_is_what_the_code_does() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/errors.md");
        let text = std::fs::read_to_string(&path).unwrap();
        let (head, rest) = text.split_once(BEGIN).unwrap();
        let (found, tail) = rest.split_once(END).unwrap();
        let wanted = format!("\n{}", rows());
        if std::env::var_os("PGCASCADE_UPDATE_DOCS").is_some() {
            std::fs::write(&path, format!("{head}{BEGIN}{wanted}{END}{tail}")).unwrap();
            return;
        }
        assert!(
            found == wanted,
            "docs/errors.md is not what the code does; rewrite it with:\n  \
             PGCASCADE_UPDATE_DOCS=1 cargo test -p pgcascade-consumer the_table_in_docs"
        );
        let codes: Vec<(&str, &str)> = found
            .lines()
            .filter_map(|line| {
                let mut cells = line.split('|').map(str::trim);
                let code = cells.nth(1)?.strip_prefix('`')?.strip_suffix('`')?;
                Some((code, cells.next()?))
            })
            .collect();
        assert_eq!(codes.len(), SQLSTATES.len());
        for (code, class) in codes {
            // A class stands for the codes of it that have no row of their own.
            assert_eq!(word(of_sqlstate(&code.replace("xxx", "999"))), class, "{code}");
        }
    }

    #[test]
    fn what_must_not_change_by_accident() {
        let of = |code: &str| word(of_sqlstate(code));
        for code in [
            "08006", "40001", "40P01", "53100", "53200", "53300", "55P03", "57014", "57P01", "57P02", "57P03", "25006",
            "25P03", "26000", "42P05",
        ] {
            assert_eq!(of(code), "retry", "{code}");
        }
        for code in [
            "23505", "23503", "23514", "22001", "42703", "42P01", "42501", "54000", "P0001",
        ] {
            assert_eq!(of(code), "park", "{code}");
        }
        for code in [
            "28P01", "28000", "3D000", "53400", "57P04", "58030", "XX000", "XX001", "25P02", "00000", "",
        ] {
            assert_eq!(of(code), "stop", "{code}");
        }
    }

    #[test]
    fn no_start_is_listed_twice() {
        let mut starts: Vec<&str> = SQLSTATES.iter().map(|(start, ..)| *start).collect();
        let sorted = starts.clone();
        starts.sort_unstable();
        starts.dedup();
        assert_eq!(starts, sorted);
    }

    #[test]
    fn a_broken_connection_is_tried_again_and_a_broken_disk_is_not() {
        for (name, kind) in NETWORK {
            assert_eq!(of_io(&io::Error::from(*kind)), Class::Retry, "{name}");
        }
        for kind in [
            io::ErrorKind::PermissionDenied,
            io::ErrorKind::NotFound,
            io::ErrorKind::InvalidData,
        ] {
            assert_eq!(of_io(&io::Error::from(kind)), Class::Stop, "{kind:?}");
        }
    }
}
