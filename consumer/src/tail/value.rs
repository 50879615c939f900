//! A captured value as JSON, typed where JSON can hold it exactly.
//!
//! Booleans, integers up to 2^53 and finite floats become what they are; bytea becomes base64. All else is the text that
//! the server wrote: larger integers and numeric (readers of JSON take numbers for doubles), NaN and the infinities,
//! dates and times, json, arrays. Text that the column's type could not have written (the table was altered since) is
//! left as it is.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Number, Value};
use tokio_postgres::types::Type;

/// What becomes of a type's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Kind {
    Boolean,
    Integer,
    Float,
    Bytes,
    #[default]
    Text,
}

/// The largest number up to which every integer is a double.
const EXACT: u64 = 1 << 53;

/// No float is written with more digits than this.
const FLOAT_DIGITS: usize = 17;

impl Kind {
    pub(super) fn of(oid: u32) -> Self {
        match Type::from_oid(oid) {
            Some(Type::BOOL) => Self::Boolean,
            Some(Type::INT2 | Type::INT4 | Type::INT8 | Type::OID) => Self::Integer,
            Some(Type::FLOAT4 | Type::FLOAT8) => Self::Float,
            Some(Type::BYTEA) => Self::Bytes,
            _ => Self::Text,
        }
    }

    pub(super) fn value(self, text: String) -> Value {
        let typed = match self {
            Self::Boolean => boolean(&text),
            Self::Integer => integer(&text),
            Self::Float => float(&text),
            Self::Bytes => bytes(&text).map(|bytes| STANDARD.encode(bytes).into()),
            Self::Text => None,
        };
        typed.unwrap_or(Value::String(text))
    }
}

fn boolean(text: &str) -> Option<Value> {
    match text {
        "t" => Some(true.into()),
        "f" => Some(false.into()),
        _ => None,
    }
}

fn integer(text: &str) -> Option<Value> {
    let number: i64 = text.parse().ok()?;
    (number.unsigned_abs() <= EXACT && number.to_string() == text).then(|| number.into())
}

fn float(text: &str) -> Option<Value> {
    let mantissa = text.split(['e', 'E']).next().unwrap_or_default();
    let digits = mantissa.trim_start_matches(['-', '0', '.']).bytes();
    if digits.filter(u8::is_ascii_digit).count() > FLOAT_DIGITS {
        return None;
    }
    // The grammar of JSON's numbers leaves out NaN and Infinity.
    text.parse::<Number>().ok().map(Value::Number)
}

/// From hex, and from the escape format that stands in events when `pgcascade.fixed_output` is off.
fn bytes(text: &str) -> Option<Vec<u8>> {
    if let Some(hex) = text.strip_prefix("\\x") {
        let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
        return rest.is_empty().then(|| {
            pairs
                .iter()
                .map(|[high, low]| Some(digit(*high, 16)? << 4 | digit(*low, 16)?))
                .collect()
        })?;
    }
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    loop {
        match rest {
            [] => return Some(out),
            [b'\\', b'\\', after @ ..] => {
                out.push(b'\\');
                rest = after;
            }
            [b'\\', first @ b'0'..=b'3', second, third, after @ ..] => {
                out.push(digit(*first, 8)? << 6 | digit(*second, 8)? << 3 | digit(*third, 8)?);
                rest = after;
            }
            [byte @ b' '..=b'~', after @ ..] if *byte != b'\\' => {
                out.push(*byte);
                rest = after;
            }
            _ => return None,
        }
    }
}

fn digit(byte: u8, base: u32) -> Option<u8> {
    char::from(byte)
        .to_digit(base)
        .and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(kind: Kind, text: &str) -> String {
        kind.value(text.to_owned()).to_string()
    }

    #[test]
    fn exact_values_are_typed() {
        for (kind, text, shown) in [
            (Kind::Boolean, "t", "true"),
            (Kind::Boolean, "f", "false"),
            (Kind::Integer, "-7", "-7"),
            (Kind::Integer, "9007199254740992", "9007199254740992"),
            (Kind::Float, "0.1", "0.1"),
            (Kind::Float, "-0", "-0.0"),
            (Kind::Float, "1.7976931348623157e+308", "1.7976931348623157e+308"),
            (Kind::Float, "5e-324", "5e-324"),
            (Kind::Float, "100", "100"),
            (Kind::Bytes, "\\x00ff41", "\"AP9B\""),
            (Kind::Bytes, "\\x", "\"\""),
            (Kind::Bytes, "a\\000\\377\\\\", "\"YQD/XA==\""),
            (Kind::Text, "1", "\"1\""),
        ] {
            assert_eq!(json(kind, text), shown, "{kind:?} {text}");
        }
    }

    #[test]
    fn anything_else_stays_text() {
        for (kind, text) in [
            (Kind::Boolean, "yes"),
            (Kind::Integer, "9007199254740993"),
            (Kind::Integer, "-9007199254740993"),
            (Kind::Integer, "007"),
            (Kind::Integer, "+7"),
            (Kind::Integer, "1.5"),
            (Kind::Float, "NaN"),
            (Kind::Float, "-Infinity"),
            (Kind::Float, "1e999"),
            (Kind::Float, "007.5"),
            (Kind::Float, "0.123456789012345678"),
            (Kind::Bytes, "\\x0"),
            (Kind::Bytes, "\\xzz"),
            (Kind::Bytes, "\\9"),
            (Kind::Bytes, "\u{fc}"),
        ] {
            assert_eq!(
                kind.value(text.to_owned()),
                Value::String(text.to_owned()),
                "{kind:?} {text}"
            );
        }
    }
}
