//! Rows as url-encoded text: `id=7&note=two+words&gone`, the data of a logutriga event.
//!
//! A name without `=` has the value NULL, so `note=` is the empty string and `note` is not. Order is kept, and a name may come
//! twice. The encoder writes one form only (a space as `+`, letters, digits and `_ . -` as they are, all else `%xx` with lower-case
//! digits). The decoder also takes what other url encoders write, and refuses everything that is not url-encoded text, so that an event in
//! another format is noticed and not taken for a row.

use std::borrow::Cow;

use crate::Error;
use crate::runs;

const PLAIN: runs::Plain = runs::table(
    b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_.-",
    true,
);

/// What a decoder meets unescaped: our own set, and the marks that one or another url encoder leaves alone.
const LITERAL: runs::Plain = runs::table(
    b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_.-~*!'()",
    true,
);

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Appends one column; `None` is NULL. The name must not be empty (no column's is).
#[inline]
pub fn push(out: &mut Vec<u8>, name: &[u8], value: Option<&[u8]>) {
    if !out.is_empty() {
        out.push(b'&');
    }
    push_encoded(out, name);
    if let Some(value) = value {
        out.push(b'=');
        push_encoded(out, value);
    }
}

/// Appends the encoded form of one name or value, without any separator: for callers that encode a name once and write it often.
#[inline]
pub fn push_encoded(out: &mut Vec<u8>, value: &[u8]) {
    runs::push(out, value, &PLAIN, |out, byte| match byte {
        b' ' => out.push(b'+'),
        _ => out.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]),
    });
}

/// The columns of a row, in order. Borrows from `data` wherever there was nothing to unescape. Ends after the first error.
pub fn pairs(data: &[u8]) -> impl Iterator<Item = Result<Pair<'_>, Error>> {
    raw_pairs(data).map(|pair| pair.map(|(name, value)| (name.decode(), value.map(|value| value.decode()))))
}

/// The same, checked but not unescaped: for callers that have a place of their own for the values.
pub fn raw_pairs(data: &[u8]) -> RawPairs<'_> {
    RawPairs {
        data,
        at: 0,
        done: data.is_empty(),
    }
}

/// The iterator made by [`raw_pairs`].
#[derive(Debug, Clone)]
pub struct RawPairs<'a> {
    data: &'a [u8],
    at: usize,
    done: bool,
}

/// One column of a row: its name, and its value unless that is NULL.
pub type Pair<'a> = (Cow<'a, [u8]>, Option<Cow<'a, [u8]>>);

/// The same, not unescaped.
pub type RawPair<'a> = (Encoded<&'a [u8]>, Option<Encoded<&'a [u8]>>);

impl<'a> Iterator for RawPairs<'a> {
    type Item = Result<RawPair<'a>, Error>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let pair = self.pair();
        self.done |= pair.is_err();
        Some(pair)
    }
}

impl std::iter::FusedIterator for RawPairs<'_> {}

impl<'a> RawPairs<'a> {
    #[inline]
    fn pair(&mut self) -> Result<RawPair<'a>, Error> {
        let start = self.at;
        let name = self.token()?;
        if name.bytes.is_empty() {
            return Err(Error::at(start, "empty column name"));
        }
        let mut value = None;
        if self.data.get(self.at) == Some(&b'=') {
            self.at += 1;
            value = Some(self.token()?);
        }
        match self.data.get(self.at) {
            None => self.done = true,
            Some(b'&') => self.at += 1,
            Some(_) => return Err(Error::at(self.at, "byte that url encoding would have escaped")),
        }
        Ok((name, value))
    }

    /// Reads up to the next byte that can be part neither of a name nor of a value.
    #[inline]
    fn token(&mut self) -> Result<Encoded<&'a [u8]>, Error> {
        let data = self.data;
        let start = self.at;
        let (mut escapes, mut plain) = (0, true);
        while let Some(&byte) = data.get(self.at) {
            if !LITERAL[usize::from(byte)] {
                if byte == b'%' {
                    unhex(data, self.at)?;
                    escapes += 1;
                    self.at += 2;
                } else if byte != b'+' {
                    break;
                }
                plain = false;
            }
            self.at += 1;
        }
        Ok(Encoded {
            bytes: &data[start..self.at],
            escapes,
            plain,
        })
    }
}

/// A name or a value that was found to be url-encoded text, as it is in the data. `B` holds the bytes.
#[derive(Debug, Clone, Copy)]
pub struct Encoded<B> {
    bytes: B,
    /// How many `%xx` there are.
    escapes: usize,
    /// There is nothing to unescape.
    plain: bool,
}

impl<B: AsRef<[u8]>> Encoded<B> {
    /// As it is in the data.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// How long it is without the escapes.
    pub fn decoded_len(&self) -> usize {
        self.bytes().len().saturating_sub(2 * self.escapes)
    }

    /// The same bytes, held by something else.
    pub fn held_by<C: AsRef<[u8]>>(&self, hold: impl FnOnce(&[u8]) -> C) -> Encoded<C> {
        Encoded {
            bytes: hold(self.bytes()),
            escapes: self.escapes,
            plain: self.plain,
        }
    }

    /// Appends it to `out`, unescaped.
    #[inline]
    pub fn decode_into(&self, out: &mut Vec<u8>) {
        if self.plain {
            out.extend_from_slice(self.bytes());
        } else {
            out.reserve(self.decoded_len());
            let mut rest = self.bytes();
            decode(&mut rest, out, usize::MAX);
        }
    }

    /// It in pieces of at most `most` bytes, unescaped: each call of the result gives the next one, in place of what
    /// was in the buffer; false when there is none left.
    pub fn pieces(&self, most: usize) -> impl FnMut(&mut Vec<u8>) -> bool {
        let mut rest = self.bytes();
        move |piece| {
            piece.clear();
            decode(&mut rest, piece, most);
            !piece.is_empty()
        }
    }

    /// Whether it is this name.
    #[inline]
    pub fn is(&self, name: &[u8]) -> bool {
        if self.plain {
            self.bytes() == name
        } else {
            *self.decoded() == *name
        }
    }

    fn decoded(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.decode_into(&mut out);
        out
    }
}

impl<'a> Encoded<&'a [u8]> {
    /// Unescaped; borrowed where it is that already.
    pub fn decode(self) -> Cow<'a, [u8]> {
        if self.plain {
            Cow::Borrowed(self.bytes)
        } else {
            Cow::Owned(self.decoded())
        }
    }
}

/// Moves from `rest` to `out`, unescaped, until either there is nothing left or `out` has got `most` bytes.
fn decode(rest: &mut &[u8], out: &mut Vec<u8>, most: usize) {
    let end = out.len().saturating_add(most);
    while out.len() < end && !rest.is_empty() {
        let within = rest.len().min(end - out.len());
        let run = rest[..within]
            .iter()
            .position(|byte| matches!(byte, b'%' | b'+'))
            .unwrap_or(within);
        out.extend_from_slice(&rest[..run]);
        *rest = &rest[run..];
        if run == within {
            continue;
        }
        if rest[0] == b'+' {
            out.push(b' ');
            *rest = &rest[1..];
        } else {
            out.push(unhex(rest, 0).unwrap_or_default());
            *rest = rest.get(3..).unwrap_or_default();
        }
    }
}

/// The byte written as `%xx` at `at`.
fn unhex(data: &[u8], at: usize) -> Result<u8, Error> {
    let digit = |i: usize| {
        let byte = *data.get(at + i)?;
        match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            b'A'..=b'F' => Some(byte - b'A' + 10),
            _ => None,
        }
    };
    match (digit(1), digit(2)) {
        (Some(high), Some(low)) => Ok(high << 4 | low),
        _ => Err(Error::at(at, "percent sign without two hexadecimal digits")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test fails by panicking
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(value: &[u8]) -> String {
        let mut out = Vec::new();
        push_encoded(&mut out, value);
        String::from_utf8(out).unwrap()
    }

    type Owned = (Vec<u8>, Option<Vec<u8>>);

    fn decoded(data: &[u8]) -> Result<Vec<Owned>, Error> {
        pairs(data)
            .map(|pair| pair.map(|(name, value)| (name.into_owned(), value.map(Cow::into_owned))))
            .collect()
    }

    fn text(name: &str, value: Option<&str>) -> Owned {
        (name.as_bytes().to_vec(), value.map(|value| value.as_bytes().to_vec()))
    }

    #[test]
    fn every_byte_as_upstream_writes_it() {
        for byte in 0..=255u8 {
            let expected = match byte {
                b' ' => "+".to_owned(),
                b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'_' | b'.' | b'-' => char::from(byte).to_string(),
                _ => format!("%{byte:02x}"),
            };
            assert_eq!(encoded(&[byte]), expected);
        }
        assert_eq!(encoded("a b\\c'd\"e/f é".as_bytes()), "a+b%5cc%27d%22e%2ff+%c3%a9");
    }

    #[test]
    fn null_and_empty_differ() {
        let mut out = Vec::new();
        push(&mut out, b"id", Some(b"7"));
        push(&mut out, b"empty", Some(b""));
        push(&mut out, b"no thing", None);
        assert_eq!(out, b"id=7&empty=&no+thing");
        assert_eq!(
            decoded(&out).unwrap(),
            [text("id", Some("7")), text("empty", Some("")), text("no thing", None)]
        );
        assert_eq!(decoded(b"").unwrap(), []);
        assert_eq!(decoded(b"a").unwrap(), [text("a", None)]);
    }

    #[test]
    fn nothing_to_unescape_is_borrowed() {
        let pair = pairs(b"id=12.5").next().unwrap().unwrap();
        assert!(matches!(pair, (Cow::Borrowed(_), Some(Cow::Borrowed(_)))));
    }

    #[test]
    fn in_pieces() {
        let data = b"a=b+c%26%c3%a9d";
        let (name, value) = raw_pairs(data).next().unwrap().unwrap();
        assert!(name.is(b"a") && !name.is(b"b"));
        let value = value.unwrap().held_by(<[u8]>::to_vec);
        let whole = "b c&\u{e9}d".as_bytes();
        assert_eq!(value.decoded_len(), whole.len());
        for most in 1..=8 {
            let (mut next, mut piece, mut all) = (value.pieces(most), Vec::new(), Vec::new());
            while next(&mut piece) {
                assert!(piece.len() <= most);
                all.extend_from_slice(&piece);
            }
            assert_eq!(all, whole, "{most}");
        }
    }

    #[test]
    fn an_escaped_name_is_the_name() {
        let (name, _) = raw_pairs(b"no+th%69ng").next().unwrap().unwrap();
        assert!(name.is(b"no thing") && !name.is(b"no+thing"));
    }

    #[test]
    fn other_encoders() {
        assert_eq!(decoded(b"a=%C3%A9%2F~*!'()").unwrap(), [text("a", Some("é/~*!'()"))]);
    }

    #[test]
    fn refused() {
        for (data, offset) in [
            (&b"a=%"[..], 2),
            (b"a=%4", 2),
            (b"a=x%zz", 3),
            (b"%=a", 0),
            (b"a=b=c", 3),
            (b"a=%20=", 5),
            (b"&", 0),
            (b"=a", 0),
            (b"a&", 2),
            (b"a&&b", 2),
            (b"{\"id\":1}", 0),
            (b"id='1'&x y", 8),
            (b"a=\xff", 2),
        ] {
            assert_eq!(
                decoded(data).unwrap_err().offset(),
                offset,
                "{}",
                String::from_utf8_lossy(data)
            );
        }
        let mut broken = raw_pairs(b"a=%&b=1");
        assert!(broken.next().unwrap().is_err());
        assert!(broken.next().is_none());
    }

    proptest! {
        #[test]
        fn round_trip(row in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..20), prop::option::of(prop::collection::vec(any::<u8>(), 0..60))), 0..12)) {
            let mut out = Vec::new();
            for (name, value) in &row {
                push(&mut out, name, value.as_deref());
            }
            prop_assert_eq!(decoded(&out).unwrap(), row);
        }

        #[test]
        fn no_input_panics(data in prop::collection::vec(prop::sample::select(&b"ab%+&=2fG\x00\xff"[..]), 0..40)) {
            // What is accepted must mean the same again once written by our own encoder.
            if let Ok(row) = decoded(&data) {
                let mut out = Vec::new();
                for (name, value) in &row {
                    push(&mut out, name, value.as_deref());
                }
                prop_assert_eq!(decoded(&out).unwrap(), row);
            }
        }
    }
}
