//! JSON strings, as jsontriga writes them: only what JSON demands is escaped, with the short escapes where there are any. The slash, DEL
//! and everything above ASCII stay as they are. Numbers and booleans need no help; readers use a JSON library.

use crate::runs;

const PLAIN: runs::Plain = {
    let mut plain = runs::table(b"\"\\", false);
    let mut control = 0;
    while control < 0x20 {
        plain[control] = false;
        control += 1;
    }
    plain
};

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Appends the quoted string.
#[inline]
pub fn push_string(out: &mut Vec<u8>, value: &[u8]) {
    out.push(b'"');
    runs::push(out, value, &PLAIN, |out, byte| {
        let short = match byte {
            b'"' | b'\\' => byte,
            0x08 => b'b',
            0x0c => b'f',
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            _ => {
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
                return;
            }
        };
        out.extend_from_slice(&[b'\\', short]);
    });
    out.push(b'"');
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test fails by panicking
mod tests {
    use proptest::prelude::*;

    use super::push_string;

    fn string(value: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        push_string(&mut out, value);
        out
    }

    #[test]
    fn every_byte_as_upstream_writes_it() {
        for byte in 0..=255u8 {
            let inside = match byte {
                b'"' => b"\\\"".to_vec(),
                b'\\' => b"\\\\".to_vec(),
                8 => b"\\b".to_vec(),
                9 => b"\\t".to_vec(),
                10 => b"\\n".to_vec(),
                12 => b"\\f".to_vec(),
                13 => b"\\r".to_vec(),
                0..=31 => format!("\\u{byte:04x}").into_bytes(),
                _ => vec![byte],
            };
            assert_eq!(string(&[byte]), [&b"\""[..], &inside, b"\""].concat());
        }
        assert_eq!(
            string("a b\\c'd\"e/f \u{1F600}".as_bytes()),
            "\"a b\\\\c'd\\\"e/f \u{1F600}\"".as_bytes()
        );
    }

    /// A reader of just the escapes that may appear.
    fn read(text: &[u8]) -> Option<Vec<u8>> {
        let mut bytes = text.strip_prefix(b"\"")?.strip_suffix(b"\"")?.iter().copied();
        let mut value = Vec::new();
        while let Some(byte) = bytes.next() {
            value.push(match byte {
                0..0x20 | b'"' => return None,
                b'\\' => match bytes.next()? {
                    quoted @ (b'"' | b'\\') => quoted,
                    b'b' => 8,
                    b't' => 9,
                    b'n' => 10,
                    b'f' => 12,
                    b'r' => 13,
                    b'u' => {
                        let digits: Vec<u8> = bytes.by_ref().take(4).collect();
                        u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
                    }
                    _ => return None,
                },
                _ => byte,
            });
        }
        Some(value)
    }

    proptest! {
        #[test]
        fn reads_back(value in prop::collection::vec(any::<u8>(), 0..60)) {
            prop_assert_eq!(read(&string(&value)).unwrap(), value);
        }
    }
}
