//! Names, and names joined into one text: `public.orders` in ev_extra1, `id,line` in an event type.
//!
//! A name is written as it is unless that could be misread: one with a dot, a comma, a double quote or a colon, or an empty one, is put in
//! double quotes, with its own quotes doubled. Hence ordinary names look as upstream's do, and every list splits into exactly
//! the names it was made of. Case, spaces and non-ASCII characters need no quotes: these texts are not SQL.

use std::borrow::Cow;

use crate::Error;

/// Appends one name.
#[inline]
pub fn push(out: &mut Vec<u8>, name: &[u8]) {
    if !name.is_empty() && !name.iter().any(|byte| matches!(byte, b'.' | b',' | b'"' | b':')) {
        out.extend_from_slice(name);
        return;
    }
    out.push(b'"');
    for &byte in name {
        if byte == b'"' {
            out.push(b'"');
        }
        out.push(byte);
    }
    out.push(b'"');
}

/// Appends `schema.table`.
pub fn push_qualified(out: &mut Vec<u8>, schema: &[u8], table: &[u8]) {
    push(out, schema);
    out.push(b'.');
    push(out, table);
}

/// Takes a list apart at `separator` (a comma, or a dot for a qualified name). The empty text is the empty list. A quote inside a bare
/// name, and a missing name, are errors: [`push`] writes neither.
pub fn split(list: &[u8], separator: u8) -> Result<Vec<Cow<'_, [u8]>>, Error> {
    let mut names = Vec::new();
    if list.is_empty() {
        return Ok(names);
    }
    let mut at = 0;
    loop {
        let (name, end) = if list.get(at) == Some(&b'"') {
            quoted(list, at)?
        } else {
            bare(list, at, separator)?
        };
        names.push(name);
        match list.get(end) {
            None => return Ok(names),
            Some(&byte) if byte == separator => at = end + 1,
            Some(_) => return Err(Error::at(end, "text after a quoted name")),
        }
    }
}

/// The bare name at `at`, and where it ends.
fn bare(list: &[u8], at: usize, separator: u8) -> Result<(Cow<'_, [u8]>, usize), Error> {
    let rest = &list[at..];
    let name = rest.split(|&byte| byte == separator).next().unwrap_or(rest);
    if name.is_empty() {
        return Err(Error::at(at, "missing name"));
    }
    match name.iter().position(|&byte| byte == b'"') {
        Some(quote) => Err(Error::at(at + quote, "double quote inside a bare name")),
        None => Ok((Cow::Borrowed(name), at + name.len())),
    }
}

/// The quoted name whose opening quote is at `at`, and where its closing quote ends.
fn quoted(list: &[u8], at: usize) -> Result<(Cow<'_, [u8]>, usize), Error> {
    let start = at + 1;
    let mut name = Cow::Borrowed(&list[start..start]);
    let mut from = start;
    loop {
        let Some(length) = list[from..].iter().position(|&byte| byte == b'"') else {
            return Err(Error::at(list.len(), "missing closing double quote"));
        };
        let quote = from + length;
        let doubled = list.get(quote + 1) == Some(&b'"');
        let until = if doubled { quote + 1 } else { quote };
        if from == start {
            name = Cow::Borrowed(&list[start..until]);
        } else {
            name.to_mut().extend_from_slice(&list[from..until]);
        }
        if !doubled {
            return Ok((name, quote + 1));
        }
        from = quote + 2;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test fails by panicking
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn joined(names: &[Vec<u8>], separator: u8) -> Vec<u8> {
        let mut out = Vec::new();
        for (i, name) in names.iter().enumerate() {
            if i > 0 {
                out.push(separator);
            }
            push(&mut out, name);
        }
        out
    }

    #[test]
    fn quotes_only_where_a_name_could_be_misread() {
        for (name, expected) in [
            ("id", "id"),
            ("Order Line", "Order Line"),
            ("naïve", "naïve"),
            ("50%", "50%"),
            ("it's", "it's"),
            ("a.b", "\"a.b\""),
            ("x,y", "\"x,y\""),
            ("k:v", "\"k:v\""),
            ("say \"hi\"", "\"say \"\"hi\"\"\""),
            ("\"", "\"\"\"\""),
            ("", "\"\""),
        ] {
            let mut out = Vec::new();
            push(&mut out, name.as_bytes());
            assert_eq!(out, expected.as_bytes());
            assert_eq!(split(&out, b',').unwrap(), [name.as_bytes()]);
        }
    }

    #[test]
    fn two_tables_that_upstream_confuses() {
        let qualified = |schema: &[u8], table: &[u8]| {
            let mut out = Vec::new();
            push_qualified(&mut out, schema, table);
            out
        };
        assert_eq!(qualified(b"public", b"orders"), b"public.orders");
        assert_eq!(qualified(b"a.b", b"c"), b"\"a.b\".c");
        assert_eq!(qualified(b"a", b"b.c"), b"a.\"b.c\"");
        assert_eq!(split(b"a.\"b.c\"", b'.').unwrap(), [&b"a"[..], b"b.c"]);
    }

    #[test]
    fn lists() {
        assert_eq!(split(b"", b',').unwrap(), Vec::<&[u8]>::new());
        assert_eq!(split(b"\"\",\"\"", b',').unwrap(), [&b""[..], b""]);
        assert_eq!(split(b"a.b,c:d", b',').unwrap(), [&b"a.b"[..], b"c:d"]);
        assert!(matches!(split(b"\"a,b\",c", b',').unwrap()[0], Cow::Borrowed(b"a,b")));
    }

    #[test]
    fn refused() {
        for (list, offset) in [
            (&b","[..], 0),
            (b"a,", 2),
            (b"a,,b", 2),
            (b"a\"b", 1),
            (b"\"a", 2),
            (b"\"a\"\"", 4),
            (b"\"a\"b", 3),
            (b"\"", 1),
        ] {
            assert_eq!(
                split(list, b',').unwrap_err().offset(),
                offset,
                "{}",
                String::from_utf8_lossy(list)
            );
        }
    }

    fn names() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let byte = prop_oneof![any::<u8>(), prop::sample::select(&b".,\":ab"[..])];
        prop::collection::vec(prop::collection::vec(byte, 0..8), 0..6)
    }

    proptest! {
        #[test]
        fn round_trip(names in names(), separator in prop::sample::select(&b".,"[..])) {
            let list = joined(&names, separator);
            prop_assert_eq!(split(&list, separator).unwrap(), names);
        }

        #[test]
        fn no_input_panics(list in prop::collection::vec(prop::sample::select(&b"ab,.\""[..]), 0..16)) {
            // What is accepted must mean the same again once written by our own encoder.
            if let Ok(names) = split(&list, b',') {
                let names: Vec<Vec<u8>> = names.into_iter().map(Cow::into_owned).collect();
                let list = joined(&names, b',');
                prop_assert_eq!(split(&list, b',').unwrap(), names);
            }
        }
    }
}
