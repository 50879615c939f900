//! The password file (~/.pgpass): which password belongs to a host, port, database and user.
//!
//! libpq's format and rules: `host:port:database:user:password` a line, `*` for any, a backslash before a `:` or a
//! backslash, and a file that others may read is not used at all. Read anew for every attempt to connect, so that a
//! password that was changed is found without a restart. There is no kept-up crate for it that would not bring a second
//! PostgreSQL client along.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Secret;

/// What a line must match.
pub(super) struct Login<'a> {
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) dbname: &'a str,
    pub(super) user: &'a str,
}

/// The password for this login, if the file has one. A file that is not there is like an empty one.
pub(super) fn look_up(path: &Path, login: &Login) -> Option<Secret> {
    let text = match read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(file = %path.display(), "password file not used: {error}");
            return None;
        }
    };
    find(&text, login)
}

fn read(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a plain file"));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(io::Error::other(
            "others than its owner may read it; chmod 600 makes it usable",
        ));
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

fn find(text: &str, login: &Login) -> Option<Secret> {
    let port = login.port.to_string();
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut rest = line.trim_end_matches('\r');
        for wanted in [login.host, &port, login.dbname, login.user] {
            let (field, literal) = next_field(&mut rest)?;
            // Only a bare star is a pattern; \* is a name.
            if !(literal && field == "*") && field != wanted {
                return None;
            }
        }
        let password = unescape_to_colon(rest);
        (!password.is_empty()).then(|| Secret::new(password))
    })
}

/// The next field and whether it had no backslash; None if the line has no further colon.
fn next_field(rest: &mut &str) -> Option<(String, bool)> {
    let mut end = None;
    let mut escaped = false;
    for (at, c) in rest.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ':' => {
                end = Some(at);
                break;
            }
            _ => {}
        }
    }
    let end = end?;
    let (field, after) = rest.split_at(end);
    *rest = after.get(1..)?;
    Some((unescape_to_colon(field), !field.contains('\\')))
}

fn unescape_to_colon(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            ':' => break,
            '\\' => plain.push(rest.next().unwrap_or('\\')),
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &str, host: &str, user: &str) -> Option<String> {
        let login = Login {
            host,
            port: 5432,
            dbname: "app",
            user,
        };
        find(text, &login).map(|secret| secret.reveal().to_owned())
    }

    #[test]
    fn the_first_line_that_matches_counts() {
        let text = "# db:5432:app:u:comment\n\nother:*:*:*:1\ndb:5433:*:*:2\ndb:5432:app:u:3\r\n*:*:*:*:4\n";
        assert_eq!(password(text, "db", "u").as_deref(), Some("3"));
        assert_eq!(password(text, "db", "v").as_deref(), Some("4"));
        assert_eq!(password(text, "other", "v").as_deref(), Some("1"));
        assert_eq!(password("db:5432:app:u", "db", "u"), None);
        assert_eq!(password("db:5432:app:u:", "db", "u"), None);
        assert_eq!(password("", "db", "u"), None);
    }

    #[test]
    fn backslashes_and_odd_names() {
        assert_eq!(
            password(r"\:\:1:*:*:u\\:p\:\\x", "::1", r"u\").as_deref(),
            Some(r"p:\x")
        );
        assert_eq!(
            password("*:*:*:ü ':a b&%?@\"\u{20ac}", "h", "ü '").as_deref(),
            Some("a b&%?@\"\u{20ac}")
        );
        assert_eq!(password(r"*:*:*:\*:x", "h", "u"), None);
        assert_eq!(password(r"*:*:*:\*:x", "h", "*").as_deref(), Some("x"));
        assert_eq!(password(r"*:*:*:u:x\", "h", "u").as_deref(), Some(r"x\"));
    }
}
