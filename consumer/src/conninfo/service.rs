//! The service file: connection parameters under a name, so that `service=NAME` is a whole address.
//!
//! libpq's files, format and rules: PGSERVICEFILE or `~/.pg_service.conf`, then `pg_service.conf` in PGSYSCONFDIR; the first
//! section `[NAME]` counts, of a keyword its first line. What the connection string says itself goes before it, what the environment says
//! after it. Read anew for each address, so that a server that was moved needs one line on this machine. A general reader of ini files
//! would take quotes and comments behind values for something else than libpq does.

use std::io;
use std::path::{Path, PathBuf};

use super::{keywords, parameters::Parameters};
use crate::error::{Error, Result};

/// Where packages put the file of all users, if PGSYSCONFDIR does not say it: Debian's and Red Hat's.
const SYSTEM: [&str; 2] = ["/etc/postgresql-common", "/etc/sysconfig/pgsql"];

/// The parameters of a service. An error never holds a value.
pub(super) fn look_up(service: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<Parameters> {
    let named = environment("PGSERVICEFILE").map(PathBuf::from);
    let is_named = named.is_some();
    let own = named.or_else(|| environment("HOME").map(|home| Path::new(&home).join(".pg_service.conf")));
    let folders = match environment("PGSYSCONFDIR") {
        Some(folder) => vec![PathBuf::from(folder)],
        None => SYSTEM.iter().map(PathBuf::from).collect(),
    };
    let of_all = folders.into_iter().map(|folder| folder.join("pg_service.conf"));
    let mut looked = Vec::new();
    for (n, file) in own.into_iter().chain(of_all).enumerate() {
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !(is_named && n == 0) => continue,
            Err(error) => {
                return Err(Error::usage(format!(
                    "could not read service file {}, where service \"{service}\" is looked for: {error}",
                    file.display()
                )));
            }
        };
        let found = section(&text, service)
            .map_err(|error| error.within(format_args!("service \"{service}\" in {}", file.display())))?;
        if let Some(found) = found {
            return Ok(found);
        }
        looked.push(file.display().to_string());
    }
    let (sentence, hint) = if looked.is_empty() {
        (
            format!("service \"{service}\" is not known: there is no service file"),
            "Write ~/.pg_service.conf, or name a file in PGSERVICEFILE.".to_owned(),
        )
    } else {
        let files = looked.join(" and ");
        (
            format!("service \"{service}\" is not in {files}"),
            format!("Add a section [{service}] with lines like host=db1 and dbname=shop."),
        )
    };
    Err(Error::usage(sentence).hint(hint))
}

/// None: there is no such section.
fn section(text: &str, service: &str) -> Result<Option<Parameters>> {
    let mut found: Option<Parameters> = None;
    for (number, line) in text.lines().enumerate().map(|(n, line)| (n + 1, line.trim())) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            if name.strip_suffix(']') == Some(service) {
                found = Some(Parameters::new());
            }
            continue;
        }
        let Some(parameters) = &mut found else { continue };
        let Some((keyword, value)) = line.split_once('=') else {
            return Err(Error::usage(format!("line {number} is not keyword=value")));
        };
        if keyword == "service" {
            return Err(Error::usage(format!(
                "line {number} names another service, which is not possible"
            )));
        }
        let pair = (keyword.to_owned(), value.to_owned());
        keywords::check(std::slice::from_ref(&pair)).map_err(|error| error.within(format_args!("line {number}")))?;
        if !parameters.iter().any(|(known, _)| *known == pair.0) {
            parameters.push(pair);
        }
    }
    Ok(found)
}
