//! SQL literals, as sqltriga writes them: `'it''s'`, and `E'C:\\'` where there is a backslash, so that the meaning does not
//! depend on standard_conforming_strings. Written for the statement fragments in sqltriga's events; nothing here reads them back.

use crate::runs;

const PLAIN: runs::Plain = runs::table(b"'\\", false);

/// Appends the literal. NULL is the caller's: it is a keyword and not a literal.
#[inline]
pub fn push(out: &mut Vec<u8>, value: &[u8]) {
    if value.contains(&b'\\') {
        out.push(b'E');
    }
    out.push(b'\'');
    // Both special bytes are escaped by writing them twice.
    runs::push(out, value, &PLAIN, |out, byte| out.extend_from_slice(&[byte, byte]));
    out.push(b'\'');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::push;

    fn literal(value: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        push(&mut out, value);
        out
    }

    #[test]
    fn as_upstream_writes_them() {
        for (value, expected) in [
            (&b""[..], &b"''"[..]),
            (b"one", b"'one'"),
            (b"it's", b"'it''s'"),
            (b"''", b"''''''"),
            (b"\\", b"E'\\\\'"),
            (b"a b\\c'd\"e/f", b"E'a b\\\\c''d\"e/f'"),
            (b"\n\x01\x7f\xe9", b"'\n\x01\x7f\xe9'"),
        ] {
            assert_eq!(literal(value), expected);
        }
    }

    proptest! {
        #[test]
        fn reads_back(value in prop::collection::vec(any::<u8>(), 0..60)) {
            let text = literal(&value);
            let escaped = text[0] == b'E';
            prop_assert_eq!(escaped, value.contains(&b'\\'));
            let mut body = text[if escaped { 2 } else { 1 }..text.len() - 1].iter();
            let mut read = Vec::new();
            while let Some(&byte) = body.next() {
                if byte == b'\'' || byte == b'\\' {
                    prop_assert_eq!(body.next(), Some(&byte));
                }
                read.push(byte);
            }
            prop_assert_eq!(read, value);
        }
    }
}
