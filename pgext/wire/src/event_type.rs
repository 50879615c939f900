//! The type of a logutriga event: what happened, and which columns are the key. `I:id`, `U:order,line`, `D:id`; `I:` for a table without
//! a key; `R` alone for a truncate. sqltriga's types have the letter without a colon; they are refused here, since what follows them is
//! SQL text and not a row.

use std::borrow::Cow;

use crate::{Error, name};

/// What happened to the row, or to the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A row was stored.
    Insert,
    /// A row was replaced; its key stayed.
    Update,
    /// A row was removed.
    Delete,
    /// All rows were removed at once.
    Truncate,
}

impl Operation {
    /// The letter that stands for it in an event type.
    pub const fn letter(self) -> u8 {
        match self {
            Self::Insert => b'I',
            Self::Update => b'U',
            Self::Delete => b'D',
            Self::Truncate => b'R',
        }
    }
}

/// An event type taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventType<'a> {
    /// What happened.
    pub operation: Operation,
    /// The names of the key columns, in the key's order; empty for a table without one, and for a truncate.
    pub key: Vec<Cow<'a, [u8]>>,
}

/// Appends the event type. A truncate has no key, whatever `key` holds.
pub fn push(out: &mut Vec<u8>, operation: Operation, key: &[impl AsRef<[u8]>]) {
    out.push(operation.letter());
    if operation == Operation::Truncate {
        return;
    }
    for (i, column) in key.iter().enumerate() {
        out.push(if i == 0 { b':' } else { b',' });
        name::push(out, column.as_ref());
    }
    if key.is_empty() {
        out.push(b':');
    }
}

/// Takes an event type apart.
pub fn parse(text: &[u8]) -> Result<EventType<'_>, Error> {
    let (operation, list) = match text {
        b"R" => {
            return Ok(EventType {
                operation: Operation::Truncate,
                key: Vec::new(),
            });
        }
        [b'R', ..] => return Err(Error::at(1, "text after the truncate's R")),
        [b'I', list @ ..] => (Operation::Insert, list),
        [b'U', list @ ..] => (Operation::Update, list),
        [b'D', list @ ..] => (Operation::Delete, list),
        _ => return Err(Error::at(0, "neither I, U, D nor R")),
    };
    let Some(list) = list.strip_prefix(b":") else {
        return Err(Error::at(1, "no colon after the operation"));
    };
    let key = name::split(list, b',').map_err(|error| error.moved(2))?;
    Ok(EventType { operation, key })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test fails by panicking
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(operation: Operation, key: &[&str]) -> String {
        let mut out = Vec::new();
        push(&mut out, operation, key);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn as_upstream_writes_them() {
        assert_eq!(written(Operation::Insert, &["id"]), "I:id");
        assert_eq!(written(Operation::Update, &["order", "line"]), "U:order,line");
        assert_eq!(written(Operation::Delete, &["Id"]), "D:Id");
        assert_eq!(written(Operation::Insert, &[]), "I:");
        assert_eq!(written(Operation::Truncate, &[]), "R");
        assert_eq!(written(Operation::Truncate, &["id"]), "R");
    }

    #[test]
    fn odd_names_stay_apart() {
        assert_eq!(written(Operation::Update, &["x,y", "z"]), "U:\"x,y\",z");
        assert_eq!(parse(b"U:\"x,y\",z").unwrap().key, [&b"x,y"[..], b"z"]);
    }

    #[test]
    fn refused() {
        for (text, offset) in [
            (&b""[..], 0),
            (b"X:id", 0),
            (b"i:id", 0),
            (b"I", 1),
            (b"Iid", 1),
            (b"R:", 1),
            (b"U:a,,b", 4),
            (b"D:a,", 4),
            (b"D:\"a", 4),
            (b"{\"op\":\"INSERT\"}", 0),
            (b"EXECUTE", 0),
        ] {
            assert_eq!(
                parse(text).unwrap_err().offset(),
                offset,
                "{}",
                String::from_utf8_lossy(text)
            );
        }
        assert_eq!(
            parse(b"D:\"a").unwrap_err().to_string(),
            "missing closing double quote at byte 4"
        );
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop::sample::select(
            &[
                Operation::Insert,
                Operation::Update,
                Operation::Delete,
                Operation::Truncate,
            ][..],
        )
    }

    proptest! {
        #[test]
        fn round_trip(operation in operation(), key in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..8), 0..5)) {
            let mut out = Vec::new();
            push(&mut out, operation, &key);
            let read = parse(&out).unwrap();
            prop_assert_eq!(read.operation, operation);
            prop_assert_eq!(read.key, if operation == Operation::Truncate { Vec::new() } else { key });
        }

        #[test]
        fn no_input_panics(text in prop::collection::vec(prop::sample::select(&b"IUDR:,\"a"[..]), 0..12)) {
            let _ = parse(&text);
        }
    }
}
