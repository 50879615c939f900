//! The text of a connection string, taken apart: libpq's grammar, both forms, into keyword and value.
//!
//! `tokio_postgres` has a parser of its own, but it refuses the keywords that it does not implement, and tells
//! sslmode=verify-full from none of the others. So the text is read here, with libpq's rules, and its values are judged
//! by the caller. No message quotes a part of the text that may be (a piece of) a password, for instance one with a
//! space that somebody forgot to quote.

use std::borrow::Cow;
use std::iter::Peekable;
use std::str::Chars;

use crate::error::{Error, Result};

/// Keywords and values in the order of the text; a keyword may come more than once, then the last one counts.
pub(super) type Parameters = Vec<Parameter>;

/// A keyword and its value.
pub(super) type Parameter = (String, String);

/// Reads either form.
pub(super) fn parse(text: &str) -> Result<Parameters> {
    match text
        .strip_prefix("postgresql://")
        .or_else(|| text.strip_prefix("postgres://"))
    {
        Some(rest) => uri(rest),
        None => keywords(text),
    }
}

/// `host=db1 dbname='my app'`: a backslash takes the next character as it is, in quotes and outside.
fn keywords(text: &str) -> Result<Parameters> {
    let mut found = Parameters::new();
    let mut rest = text.chars().peekable();
    loop {
        skip_space(&mut rest);
        if rest.peek().is_none() {
            return Ok(found);
        }
        let mut keyword = String::new();
        while let Some(c) = rest.next_if(|c| *c != '=' && !c.is_ascii_whitespace()) {
            keyword.push(c);
        }
        skip_space(&mut rest);
        if rest.next() != Some('=') {
            let sentence = format!("word {} of the connection string is not keyword=value", found.len() + 1);
            return Err(Error::usage(sentence).hint(
                "A value with spaces must be in single quotes, with \\' and \\\\ for ' and \\; \
                 or give a URI (postgresql://user@host/dbname).",
            ));
        }
        skip_space(&mut rest);
        let value = value(&mut rest)?;
        found.push((keyword, value));
    }
}

fn skip_space(rest: &mut Peekable<Chars>) {
    while rest.next_if(char::is_ascii_whitespace).is_some() {}
}

fn value(rest: &mut Peekable<Chars>) -> Result<String> {
    let quoted = rest.next_if_eq(&'\'').is_some();
    let mut value = String::new();
    loop {
        match rest.peek() {
            None if quoted => return Err(Error::usage("a quoted value of the connection string does not end")),
            None => return Ok(value),
            Some('\'') if quoted => {
                rest.next();
                return Ok(value);
            }
            Some(c) if !quoted && c.is_ascii_whitespace() => return Ok(value),
            Some('\\') => {
                rest.next();
                value.extend(rest.next());
            }
            Some(_) => value.extend(rest.next()),
        }
    }
}

/// `user:password@host:port,host:port/dbname?keyword=value&...`, without the scheme. Everything is optional and
/// percent-encoded.
fn uri(text: &str) -> Result<Parameters> {
    let mut found = Parameters::new();
    let mut rest = text;
    // As in libpq, credentials are what stands before the first @, if no / comes before that.
    if let Some(at) = rest.find(['@', '/']).filter(|at| rest[*at..].starts_with('@')) {
        let (credentials, after) = (&rest[..at], &rest[at + 1..]);
        let (user, password) = match credentials.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (credentials, None),
        };
        push_nonempty(&mut found, "user", user)?;
        push_nonempty(&mut found, "password", password.unwrap_or(""))?;
        rest = after;
    }
    let (authority, after) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    hosts(authority, &mut found)?;
    rest = after;
    if let Some(path) = rest.strip_prefix('/') {
        let (dbname, after) = path.split_at(path.find('?').unwrap_or(path.len()));
        push_nonempty(&mut found, "dbname", dbname)?;
        rest = after;
    }
    let query = rest.strip_prefix('?').unwrap_or("");
    let query = query.strip_suffix('&').unwrap_or(query);
    if !query.is_empty() {
        for (number, pair) in query.split('&').enumerate() {
            let Some((keyword, value)) = pair.split_once('=') else {
                return Err(Error::usage(format!(
                    "parameter {} after the ? of the connection string has no =",
                    number + 1
                ))
                .hint("Write & as %26 and = as %3D inside a value."));
            };
            let (keyword, value) = (decode(keyword)?, decode(value)?);
            match (&*keyword, &*value) {
                // How JDBC says it.
                ("ssl", "true") => found.push(("sslmode".to_owned(), "require".to_owned())),
                _ => found.push((keyword.into_owned(), value.into_owned())),
            }
        }
    }
    Ok(found)
}

/// `host:port,[v6]:port,...` into one `host` and one `port` with commas.
fn hosts(authority: &str, found: &mut Parameters) -> Result<()> {
    if authority.is_empty() {
        return Ok(());
    }
    let mut hosts = Vec::new();
    let mut ports = Vec::new();
    for one in authority.split(',') {
        let (host, port) = match one.strip_prefix('[') {
            Some(inner) => match inner.split_once(']') {
                Some((host, "")) => (host, ""),
                Some((host, port)) if port.starts_with(':') => (host, &port[1..]),
                _ => {
                    return Err(Error::usage(
                        "an IPv6 address of the connection string does not look like [address]:port",
                    ));
                }
            },
            None => one.split_once(':').unwrap_or((one, "")),
        };
        hosts.push(decode(host)?);
        ports.push(decode(port)?);
    }
    // A comma alone says as much as in libpq: so many servers, each at the usual place.
    for (keyword, values) in [("host", hosts.join(",")), ("port", ports.join(","))] {
        if !values.is_empty() {
            found.push((keyword.to_owned(), values));
        }
    }
    Ok(())
}

fn push_nonempty(found: &mut Parameters, keyword: &str, encoded: &str) -> Result<()> {
    if !encoded.is_empty() {
        found.push((keyword.to_owned(), decode(encoded)?.into_owned()));
    }
    Ok(())
}

/// Percent-decoding, strict: `%` and two hexadecimal digits, no zero byte, UTF-8 in the end.
fn decode(text: &str) -> Result<Cow<'_, str>> {
    if !text.contains('%') {
        return Ok(Cow::Borrowed(text));
    }
    let wrong = || Error::usage("a %-sequence of the connection string is wrong").hint("Write % itself as %25.");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || {
            rest.next()
                .and_then(|digit| char::from(digit).to_digit(16))
                .and_then(|digit| u8::try_from(digit).ok())
        };
        let (high, low) = (digit().ok_or_else(wrong)?, digit().ok_or_else(wrong)?);
        match high << 4 | low {
            0 => return Err(wrong()),
            decoded => bytes.push(decoded),
        }
    }
    String::from_utf8(bytes).map(Cow::Owned).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        parse(text).unwrap()
    }

    fn expect(text: &str, wanted: &[(&str, &str)]) {
        let wanted: Vec<_> = wanted.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        assert_eq!(pairs(text), wanted, "{text}");
    }

    #[test]
    fn keywords_as_libpq_reads_them() {
        expect("", &[]);
        expect("  \n ", &[]);
        expect("host=a port = 5433", &[("host", "a"), ("port", "5433")]);
        expect("password='' user=u", &[("password", ""), ("user", "u")]);
        expect(
            r"password='it\'s \\ here' user=u",
            &[("password", r"it's \ here"), ("user", "u")],
        );
        expect(r"password=a\ b\'c\\ user=u", &[("password", r"a b'c\"), ("user", "u")]);
        expect("password=%25&?@/:# user=ü", &[("password", "%25&?@/:#"), ("user", "ü")]);
        expect("password= user=u", &[("password", "user=u")]);
        expect("dbname='a''b'=c", &[("dbname", "a"), ("'b'", "c")]);
    }

    #[test]
    fn uris_as_libpq_reads_them() {
        expect("postgresql://", &[]);
        expect("postgres:///", &[]);
        expect("postgresql://h", &[("host", "h")]);
        expect(
            "postgresql://h:1,i:2/d",
            &[("host", "h,i"), ("port", "1,2"), ("dbname", "d")],
        );
        expect("postgresql://h,i:2", &[("host", "h,i"), ("port", ",2")]);
        expect("postgresql://h,i", &[("host", "h,i"), ("port", ",")]);
        expect("postgresql://u@/d", &[("user", "u"), ("dbname", "d")]);
        expect(
            "postgresql://u:p%40%2F%3a%25%20@h",
            &[("user", "u"), ("password", "p@/:% "), ("host", "h")],
        );
        expect(
            "postgresql://u:a?b&c=d@h",
            &[("user", "u"), ("password", "a?b&c=d"), ("host", "h")],
        );
        expect(
            "postgresql://u:a:b@h",
            &[("user", "u"), ("password", "a:b"), ("host", "h")],
        );
        expect(
            "postgresql://h/d?user=a@b",
            &[("host", "h"), ("dbname", "d"), ("user", "a@b")],
        );
        expect(
            "postgresql://[::1]:5433/d",
            &[("host", "::1"), ("port", "5433"), ("dbname", "d")],
        );
        expect("postgresql://[::1]", &[("host", "::1")]);
        expect("postgresql://%2Fvar%2Frun/d", &[("host", "/var/run"), ("dbname", "d")]);
        expect(
            "postgresql:///d?host=/tmp&port=1",
            &[("dbname", "d"), ("host", "/tmp"), ("port", "1")],
        );
        expect("postgresql://h?&", &[("host", "h")]);
        expect("postgresql://h?ssl=true&", &[("host", "h"), ("sslmode", "require")]);
        expect(
            "postgresql://%C3%BC@h/%e2%82%ac",
            &[("user", "ü"), ("host", "h"), ("dbname", "€")],
        );
    }

    #[test]
    fn what_cannot_be_read_is_refused_without_being_quoted() {
        for text in [
            "hunter2",
            "password=hunter2 hunter2",
            "password='hunter2",
            "postgresql://u:hunter2%@h",
            "postgresql://u:hunter2%zz@h",
            "postgresql://u:hunter2%00@h",
            "postgresql://u:hunter2%ff@h",
            "postgresql://h?hunter2",
            "postgresql://[::1",
            "postgresql://[::1]x",
            "postgresql://h/d?password=a&hunter2",
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{text}");
            assert!(!format!("{error:#}").contains("hunter2"), "{error:#}");
        }
    }
}
