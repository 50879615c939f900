//! Where a database is and how to get into it.
//!
//! [`ConnInfo::parse`] reads a libpq connection string (keywords or URI), fills what it leaves out from a service file, libpq's
//! environment variables and defaults, and checks it all, so that what comes later can only fail at the network. Two
//! things differ from libpq on purpose: to a TCP host that is not this machine sslmode is verify-full unless something
//! else is asked for, and an attempt to connect ends after 30 seconds unless connect_timeout says otherwise. `connect`
//! takes one [`Attempt`] per host from here.
//!
//! A password is a [`Secret`]: neither this module nor anything that prints a [`ConnInfo`] shows it.

mod host;
mod keywords;
mod parameters;
mod passfile;
mod service;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::config::SslMode as Negotiation;

use crate::error::{Error, Result};
use host::{DEFAULT_PORT, Host, Place};
#[cfg(test)]
pub(crate) use keywords::reference;

/// A text that is not for printing.
#[derive(Clone)]
struct Secret(String);

impl Secret {
    fn new(text: String) -> Self {
        Self(text)
    }

    /// For the protocol only.
    fn reveal(&self) -> &str {
        &self.0
    }
}

/// One database's address and credentials, complete and checked.
#[derive(Clone)]
pub(crate) struct ConnInfo {
    hosts: Vec<Host>,
    user: String,
    dbname: String,
    password: Option<Secret>,
    passfile: Option<PathBuf>,
    sslmode: Option<SslMode>,
    certificates: Certificates,
    connect_timeout: Option<Duration>,
    /// What `tokio_postgres` understands by itself: keepalives, target_session_attrs and so on.
    rest: tokio_postgres::Config,
}

/// libpq's sslmode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// What a TLS session is checked with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Certificates {
    /// The authorities that are trusted; without a file, those that the machine trusts.
    pub(crate) authorities: Option<PathBuf>,
    /// Our own certificate and its key.
    pub(crate) own: Option<(PathBuf, PathBuf)>,
}

/// How much of the server's certificate is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verify {
    /// Nothing: the session is encrypted, but to whom nobody knows.
    Nothing,
    /// That a trusted authority signed it.
    Authority,
    /// And that it is this host's.
    Full,
}

/// One try at one host.
pub(crate) struct Attempt {
    /// Everything for `tokio_postgres`, with exactly one host.
    pub(crate) settings: tokio_postgres::Config,
    /// What a TLS session, if there is one, must prove.
    pub(crate) verify: Verify,
    /// For messages.
    pub(crate) place: String,
}

const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Whether a connection string holds a password itself.
pub(crate) fn mentions_password(text: &str) -> Result<bool> {
    Ok(parameters::parse(text)?
        .iter()
        .any(|(keyword, value)| keyword == "password" && !value.is_empty()))
}

/// Refuses one that holds a password and is to be stored, or comes from where others may read it. `what` it is, as the sentence's
/// beginning.
pub(crate) fn refuse_password(what: &str, text: &str) -> Result<()> {
    if !mentions_password(text)? {
        return Ok(());
    }
    Err(
        Error::usage(format!("{what} holds a password, which every node of the cascade would store"))
            .hint("Keep passwords in ~/.pgpass of the users that run replay and the commands; an address names it with passfile=FILE if it is another file."),
    )
}

impl ConnInfo {
    /// Reads a connection string. An error never holds a value that may be a password.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        Self::parse_with(text, &|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn parse_with(text: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let given = parameters::parse(text)?;
        keywords::check(&given)?;
        // As in libpq, an empty value is like none.
        let written = |keyword: &str| {
            let last = given.iter().rev().find(|(given, _)| given == keyword);
            last.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
        };
        let service = match written("service").or_else(|| environment(keywords::variable("service")?)) {
            Some(name) => service::look_up(&name, environment)?,
            None => parameters::Parameters::new(),
        };
        let get = |keyword: &str| -> Option<String> {
            let of_service = || service.iter().find(|(known, _)| known == keyword);
            written(keyword)
                .or_else(|| {
                    of_service()
                        .map(|(_, value)| value.clone())
                        .filter(|value| !value.is_empty())
                })
                .or_else(|| environment(keywords::variable(keyword)?))
        };
        let home = environment("HOME").map(PathBuf::from);
        let in_home = |name: &str| home.as_ref().map(|home| home.join(name));

        let hosts = host::hosts(get("host"), get("hostaddr"), get("port"))?;
        let user = match get("user") {
            Some(user) => user,
            None => whoami::username().map_err(|error| {
                Error::usage(format!(
                    "no user is given, and the system does not say who runs this: {error}"
                ))
                .hint("Add user=NAME to the connection string.")
            })?,
        };
        let dbname = get("dbname").unwrap_or_else(|| user.clone());
        for (keyword, value) in [
            ("user", Some(&user)),
            ("dbname", Some(&dbname)),
            ("password", get("password").as_ref()),
        ] {
            if value.is_some_and(|value| value.contains('\0')) {
                return Err(Error::usage(format!("{keyword} holds a zero byte")));
            }
        }
        let sslmode = get("sslmode").map(|mode| SslMode::parse(&mode)).transpose()?;
        let authorities = match get("sslrootcert").as_deref() {
            Some("system") => None,
            Some(file) => Some(PathBuf::from(file)),
            None => in_home(".postgresql/root.crt").filter(|file| file.exists()),
        };
        let own = match (get("sslcert"), get("sslkey")) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
            _ => return Err(Error::usage("sslcert and sslkey must be given together")),
        };
        let mut info = Self {
            hosts,
            user,
            dbname,
            password: get("password").map(Secret::new),
            passfile: get("passfile").map(PathBuf::from).or_else(|| in_home(".pgpass")),
            sslmode,
            certificates: Certificates { authorities, own },
            connect_timeout: match get("connect_timeout") {
                None => Some(DEFAULT_CONNECT_TIMEOUT),
                Some(seconds) => match seconds.trim().parse::<u64>() {
                    Ok(0) => None,
                    Ok(seconds) => Some(Duration::from_secs(seconds)),
                    Err(_) => return Err(invalid("connect_timeout", "a number of seconds, 0 for no limit")),
                },
            },
            rest: tokio_postgres::Config::new(),
        };
        info.rest = keywords::theirs(&get)?;
        Ok(info)
    }

    /// The database's name.
    pub(crate) fn dbname(&self) -> &str {
        &self.dbname
    }

    /// The role that logs in.
    pub(crate) fn user(&self) -> &str {
        &self.user
    }

    /// Where the password comes from, as the beginning of a piece of advice.
    pub(crate) fn password_source(&self) -> String {
        match (&self.password, &self.passfile) {
            (Some(_), _) => "It was taken from the connection string or from PGPASSWORD".to_owned(),
            (None, Some(file)) => format!(
                "It is looked up in {} (mode 600; a line host:port:database:user:password)",
                file.display()
            ),
            (None, None) => "Set PGPASSFILE to a password file".to_owned(),
        }
    }

    /// The name that a consumer gets when nobody gave it one: `replay_`, then host, port unless it is 5432, and
    /// database of the subscriber, with every character that is no letter, digit, - or _ replaced by _. The same
    /// subscriber gives the same name.
    pub(crate) fn default_consumer(&self) -> String {
        let mut name = String::from("replay");
        if let Some(host) = self.hosts.first() {
            let place = match &host.place {
                Place::Socket(_) => "local".to_owned(),
                Place::Tcp { name: Some(name), .. } => name.clone(),
                Place::Tcp { address, .. } => address.map(|address| address.to_string()).unwrap_or_default(),
            };
            name = format!("{name}_{place}");
            if host.port != DEFAULT_PORT {
                name = format!("{name}_{}", host.port);
            }
        }
        let plain = |c: char| {
            if c.is_alphanumeric() || c == '-' || c == '_' {
                c
            } else {
                '_'
            }
        };
        format!("{name}_{}", self.dbname).chars().map(plain).collect()
    }

    /// The limit for one attempt, from the look-up of the name to the end of authentication; None for no limit.
    pub(crate) fn connect_timeout(&self) -> Option<Duration> {
        self.connect_timeout
    }

    /// What TLS sessions are checked with.
    pub(crate) fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// What to try, in order. Reads the password file, if no password was given.
    pub(crate) fn attempts(&self) -> Vec<Attempt> {
        let mut attempts = Vec::new();
        for host in &self.hosts {
            let mode = self.sslmode.unwrap_or(if host.is_local() {
                SslMode::Prefer
            } else {
                SslMode::VerifyFull
            });
            let verify = match mode {
                SslMode::Disable | SslMode::Allow | SslMode::Prefer => Verify::Nothing,
                // As in libpq: an authority that is named is there to be asked.
                SslMode::Require if self.certificates.authorities.is_none() => Verify::Nothing,
                SslMode::Require | SslMode::VerifyCa => Verify::Authority,
                SslMode::VerifyFull => Verify::Full,
            };
            let negotiations: &[Negotiation] = match mode {
                // TLS does not exist on a socket.
                _ if matches!(host.place, Place::Socket(_)) => &[Negotiation::Disable],
                SslMode::Disable => &[Negotiation::Disable],
                SslMode::Allow => &[Negotiation::Disable, Negotiation::Require],
                SslMode::Prefer => &[Negotiation::Prefer],
                SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Negotiation::Require],
            };
            for negotiation in negotiations {
                attempts.push(Attempt {
                    settings: self.settings(host, *negotiation),
                    verify,
                    place: host.to_string(),
                });
            }
        }
        attempts
    }

    fn settings(&self, host: &Host, negotiation: Negotiation) -> tokio_postgres::Config {
        let mut settings = self.rest.clone();
        settings
            .user(&self.user)
            .dbname(&self.dbname)
            .port(host.port)
            .ssl_mode(negotiation);
        match &host.place {
            Place::Socket(folder) => settings.host_path(folder),
            Place::Tcp { name, address } => {
                if let Some(address) = address {
                    settings.hostaddr(*address);
                }
                // TLS checks the name; an address is a name as well.
                match (name, address) {
                    (Some(name), _) => settings.host(name),
                    (None, Some(address)) => settings.host(address.to_string()),
                    (None, None) => &mut settings,
                }
            }
        };
        let from_file = || {
            let login = passfile::Login {
                host: &host.passfile_name(),
                port: host.port,
                dbname: &self.dbname,
                user: &self.user,
            };
            passfile::look_up(self.passfile.as_deref()?, &login)
        };
        if let Some(password) = self.password.clone().or_else(from_file) {
            settings.password(password.reveal());
        }
        settings
    }
}

/// Without the password, as a connection string.
impl fmt::Display for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places: Vec<String> = self.hosts.iter().map(Host::place).collect();
        let ports: Vec<String> = self.hosts.iter().map(|host| host.port.to_string()).collect();
        let (host, port) = (quoted(&places.join(",")), ports.join(","));
        write!(
            f,
            "host={host} port={port} dbname={} user={}",
            quoted(&self.dbname),
            quoted(&self.user)
        )
    }
}

impl fmt::Debug for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnInfo({self})")
    }
}

fn quoted(value: &str) -> String {
    if !value.is_empty() && !value.contains(|c: char| c.is_whitespace() || c == '\'' || c == '\\') {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

impl SslMode {
    fn parse(text: &str) -> Result<Self> {
        Ok(match text {
            "disable" => Self::Disable,
            "allow" => Self::Allow,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => {
                return Err(invalid(
                    "sslmode",
                    "disable, allow, prefer, require, verify-ca or verify-full",
                ));
            }
        })
    }
}

fn invalid(keyword: &str, wanted: &str) -> Error {
    Error::usage(format!(
        "{keyword} of the connection string (or its environment variable) must be {wanted}"
    ))
}

#[cfg(test)]
mod tests;
