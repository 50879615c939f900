//! The hosts of a connection string: where each server is, and whether that is this machine.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::invalid;
use crate::error::{Error, Result};

pub(super) const DEFAULT_PORT: u16 = 5432;

/// A server's place. At least one of name and address is there unless it is a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Socket(PathBuf),
    Tcp {
        name: Option<String>,
        address: Option<IpAddr>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) place: Place,
    pub(super) port: u16,
}

impl Host {
    /// Whether nothing leaves this machine on the way there.
    pub(super) fn is_local(&self) -> bool {
        match &self.place {
            Place::Socket(_) => true,
            Place::Tcp {
                address: Some(address), ..
            } => address.is_loopback(),
            Place::Tcp { name: Some(name), .. } => {
                name.eq_ignore_ascii_case("localhost")
                    || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
            }
            Place::Tcp { .. } => false,
        }
    }

    /// The name, address or folder.
    pub(super) fn place(&self) -> String {
        match &self.place {
            Place::Socket(folder) => folder.display().to_string(),
            Place::Tcp { name: Some(name), .. } => name.clone(),
            Place::Tcp { address, .. } => address.map(|address| address.to_string()).unwrap_or_default(),
        }
    }

    /// The password file calls the usual socket folders localhost.
    pub(super) fn passfile_name(&self) -> String {
        match &self.place {
            Place::Socket(folder) if SOCKET_FOLDERS.iter().any(|usual| folder == Path::new(usual)) => {
                "localhost".to_owned()
            }
            _ => self.place(),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} port {}", self.place(), self.port)
    }
}

/// Debian's and PostgreSQL's own.
const SOCKET_FOLDERS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// Puts the three lists together.
pub(super) fn hosts(host: Option<String>, hostaddr: Option<String>, port: Option<String>) -> Result<Vec<Host>> {
    let list = |text: Option<String>| -> Vec<String> {
        text.map(|text| text.split(',').map(|one| one.trim().to_owned()).collect())
            .unwrap_or_default()
    };
    let (names, addresses, ports) = (list(host), list(hostaddr), list(port));
    let count = names.len().max(addresses.len()).max(1);
    for (keyword, length) in [("host", names.len()), ("hostaddr", addresses.len())] {
        if length != 0 && length != count {
            return Err(Error::usage(format!(
                "host and hostaddr name different numbers of servers: {keyword} has {length}, not {count}"
            )));
        }
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(Error::usage(format!(
            "port has {} values for {count} servers; give one, or one for each",
            ports.len()
        )));
    }
    (0..count)
        .map(|at| {
            let port = match ports.get(at).or(ports.first()).map(String::as_str) {
                None | Some("") => DEFAULT_PORT,
                Some(text) => match text.parse() {
                    Ok(port) if port != 0 => port,
                    _ => return Err(invalid("port", "a number from 1 to 65535")),
                },
            };
            let present = |list: &[String]| list.get(at).filter(|one| !one.is_empty()).cloned();
            let address = match present(&addresses) {
                Some(text) => Some(text.parse().map_err(|_| invalid("hostaddr", "an IP address"))?),
                None => None,
            };
            let place = match (present(&names), address) {
                (Some(name), None) if name.starts_with('/') => Place::Socket(name.into()),
                (None, None) => usual_place(port),
                (name, address) => Place::Tcp { name, address },
            };
            Ok(Host { place, port })
        })
        .collect()
}

/// Where a server is when nobody said so: the socket folder that has its socket, else this machine.
fn usual_place(port: u16) -> Place {
    let socket = |folder: &&str| Path::new(folder).join(format!(".s.PGSQL.{port}")).exists();
    match SOCKET_FOLDERS.iter().find(|folder| socket(folder)) {
        Some(folder) => Place::Socket(folder.into()),
        None => Place::Tcp {
            name: Some("localhost".to_owned()),
            address: None,
        },
    }
}
