//! What an event looks like, byte for byte.
//!
//! One module per notation: names and lists of names, url-encoded rows, SQL literals, JSON strings, event types, packs, and the text of a
//! snapshot. Everything takes bytes and gives bytes, because a server's encoding need not be UTF-8; every byte that has a meaning here is
//! ASCII, and in every server encoding a byte below 128 is that ASCII character. Encoders append to a buffer that the caller
//! reuses and cannot fail. Decoders never panic, whatever they are fed, and say where the input is wrong.
//!
//! Callers: the capture triggers encode one row at a time; the consumer decodes batches.

pub mod event_type;
pub mod json;
pub mod literal;
pub mod name;
pub mod pack;
mod runs;
pub mod snapshot;
pub mod urlenc;

use std::fmt;

/// Why a decoder refused its input, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Error {
    offset: usize,
    what: &'static str,
}

impl Error {
    pub(crate) const fn at(offset: usize, what: &'static str) -> Self {
        Self { offset, what }
    }

    /// The first byte of the input that is wrong; its length, where something is missing at the end.
    pub const fn offset(&self) -> usize {
        self.offset
    }

    /// What is wrong, as a phrase that goes before "at byte N".
    pub const fn what(&self) -> &'static str {
        self.what
    }

    /// The same complaint about an input of which the decoder saw only what follows `start`.
    pub(crate) const fn moved(self, start: usize) -> Self {
        Self {
            offset: self.offset + start,
            what: self.what,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.what, self.offset)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::Error;

    #[test]
    fn an_error_names_the_fault_and_the_place() {
        let error = Error::at(3, "malformed escape").moved(4);
        assert_eq!(error.to_string(), "malformed escape at byte 7");
        assert_eq!((error.offset(), error.what()), (7, "malformed escape"));
    }
}
