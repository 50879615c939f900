//! The keywords of a connection string: which there are, what each means, and which environment variable stands in for
//! it.
//!
//! One table for what is read in `conninfo` itself, one for what `tokio_postgres` reads; together they are the
//! reference in docs/configuration.md. Messages name keywords, never values.

use std::time::Duration;

use super::{invalid, parameters, quoted};
use crate::error::{Error, Result};

/// A keyword, the environment variable that stands in for it ("" if none), and what it means, for the reference.
type Keyword = (&'static str, &'static str, &'static str);

/// Keywords that are read here.
const OURS: &[Keyword] = &[
    (
        "host",
        "PGHOST",
        "name or address of the server, or the folder of its socket; several with commas, tried in order",
    ),
    (
        "hostaddr",
        "PGHOSTADDR",
        "address to connect to without looking up the name",
    ),
    ("port", "PGPORT", "5432 unless given; one for all hosts, or one each"),
    ("dbname", "PGDATABASE", "database; the user's name unless given"),
    (
        "user",
        "PGUSER",
        "role; the name of the operating system's user unless given",
    ),
    ("password", "PGPASSWORD", "password; better kept in the password file"),
    (
        "passfile",
        "PGPASSFILE",
        "password file, `~/.pgpass` unless given; ignored if others can read it",
    ),
    (
        "service",
        "PGSERVICE",
        "section of a service file (PGSERVICEFILE or `~/.pg_service.conf`, then `pg_service.conf` in PGSYSCONFDIR) that says \
         what is left out here",
    ),
    (
        "sslmode",
        "PGSSLMODE",
        "`disable`, `allow`, `prefer`, `require`, `verify-ca` or `verify-full`; \
         unless given `verify-full`, and `prefer` to this machine",
    ),
    (
        "sslrootcert",
        "PGSSLROOTCERT",
        "file with the trusted authorities, or `system`; \
         unless given `~/.postgresql/root.crt` if it exists, else the system's",
    ),
    (
        "sslcert",
        "PGSSLCERT",
        "file with the client's certificate; with sslkey",
    ),
    ("sslkey", "PGSSLKEY", "file with the client's key"),
    (
        "connect_timeout",
        "PGCONNECT_TIMEOUT",
        "seconds for one attempt at one host, TLS and authentication included; 30 unless given, 0 for no limit",
    ),
];

/// Keywords that `tokio_postgres` reads.
const THEIRS: &[Keyword] = &[
    (
        "options",
        "PGOPTIONS",
        "settings for the session, such as `-c lock_timeout=10s`",
    ),
    (
        "target_session_attrs",
        "PGTARGETSESSIONATTRS",
        "`any`, `read-write` or `read-only`: which of the hosts will do",
    ),
    (
        "channel_binding",
        "PGCHANNELBINDING",
        "`disable`, `prefer` or `require`",
    ),
    (
        "load_balance_hosts",
        "PGLOADBALANCEHOSTS",
        "`disable` or `random`: the order in which hosts are tried",
    ),
    (
        "sslnegotiation",
        "PGSSLNEGOTIATION",
        "`postgres` or `direct` (PostgreSQL 17 and later)",
    ),
    ("keepalives", "", "0 turns TCP keepalives off"),
    (
        "keepalives_idle",
        "",
        "seconds of silence before the first one; 30 unless given",
    ),
    ("keepalives_interval", "", "seconds between them; 10 unless given"),
    // libpq's name; what follows gives it tokio_postgres' own, keepalives_retries.
    ("keepalives_count", "", "how many may go unanswered; 3 unless given"),
    (
        "tcp_user_timeout",
        "",
        "milliseconds that sent data may go unacknowledged",
    ),
];

/// Every keyword, for the reference.
#[cfg(test)]
pub(crate) fn reference() -> impl Iterator<Item = Keyword> {
    OURS.iter().chain(THEIRS).copied()
}

/// Keywords that strings made for libpq often hold, and that change nothing here.
const IGNORED: &[&str] = &[
    "application_name",
    "fallback_application_name",
    "client_encoding",
    "gssencmode",
    "krbsrvname",
];

/// The environment variable that stands in for a keyword.
pub(super) fn variable(keyword: &str) -> Option<&'static str> {
    let (_, variable, _) = OURS.iter().chain(THEIRS).find(|(known, ..)| *known == keyword)?;
    (!variable.is_empty()).then_some(*variable)
}

/// Refuses a keyword that is in no table.
pub(super) fn check(given: &[parameters::Parameter]) -> Result<()> {
    let mut after_password = false;
    for (keyword, _) in given {
        let known =
            OURS.iter().chain(THEIRS).any(|(known, ..)| known == keyword) || IGNORED.contains(&keyword.as_str());
        if !known {
            // After a password that should have been quoted, what looks like a keyword may be a piece of it.
            let looks_like_one = keyword.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            let named = if looks_like_one && !after_password {
                format!("\"{keyword}\"")
            } else {
                "a keyword".to_owned()
            };
            let keywords: Vec<&str> = OURS.iter().chain(THEIRS).map(|(known, ..)| *known).collect();
            return Err(
                Error::usage(format!("{named} of the connection string is not known")).hint(format!(
                    "A value with spaces must be in single quotes. The keywords are {}.",
                    keywords.join(", ")
                )),
            );
        }
        after_password = keyword == "password";
    }
    Ok(())
}

/// Hands over what `tokio_postgres` judges itself, as keywords that its own parser reads.
pub(super) fn theirs(get: &dyn Fn(&str) -> Option<String>) -> Result<tokio_postgres::Config> {
    let mut config = tokio_postgres::Config::new();
    // A daemon's connection is silent for long: a peer that is gone should be noticed within a minute.
    config
        .keepalives_idle(Duration::from_secs(30))
        .keepalives_interval(Duration::from_secs(10))
        .keepalives_retries(3);
    for (keyword, ..) in THEIRS {
        let Some(value) = get(keyword) else { continue };
        // Its unit is seconds, libpq's milliseconds.
        if *keyword == "tcp_user_timeout" {
            let milliseconds = value
                .parse()
                .map_err(|_| invalid(keyword, "a number of milliseconds"))?;
            config.tcp_user_timeout(Duration::from_millis(milliseconds));
            continue;
        }
        let theirs = if *keyword == "keepalives_count" {
            "keepalives_retries"
        } else {
            keyword
        };
        let one: tokio_postgres::Config = format!("{theirs}={}", quoted(&value)).parse().map_err(|_| {
            invalid(
                keyword,
                match *keyword {
                    "target_session_attrs" => "any, read-write or read-only",
                    "channel_binding" => "disable, prefer or require",
                    "load_balance_hosts" => "disable or random",
                    "sslnegotiation" => "postgres or direct",
                    _ => "a number",
                },
            )
        })?;
        match *keyword {
            "options" => one.get_options().map(|options| config.options(options)),
            "target_session_attrs" => Some(config.target_session_attrs(one.get_target_session_attrs())),
            "channel_binding" => Some(config.channel_binding(one.get_channel_binding())),
            "load_balance_hosts" => Some(config.load_balance_hosts(one.get_load_balance_hosts())),
            "sslnegotiation" => Some(config.ssl_negotiation(one.get_ssl_negotiation())),
            "keepalives" => Some(config.keepalives(one.get_keepalives())),
            "keepalives_idle" => Some(config.keepalives_idle(one.get_keepalives_idle())),
            "keepalives_interval" => one
                .get_keepalives_interval()
                .map(|interval| config.keepalives_interval(interval)),
            _ => one
                .get_keepalives_retries()
                .map(|retries| config.keepalives_retries(retries)),
        };
    }
    Ok(config)
}
