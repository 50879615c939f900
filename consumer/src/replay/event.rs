//! An event as it comes over the wire: one row of a binary COPY.
//!
//! COPY, because it is the cheapest way to get many rows out of a server; binary, because then a field is a length and
//! its bytes and nothing has to be unescaped. Called by stream.rs; knows nothing of tables.

use bytes::Bytes;

use crate::connect::flow::LARGE;
use crate::error::{Error, Result};

/// In which order a batch is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// By event id, which is the order of the changes (docs/concurrency.md).
    ById,
    /// As the events are stored: without a sort the first ones come at once. One transaction's are stored by event id as a rule,
    /// and no rule says so: who reads them has to look, and to read again by id where they are not.
    AsStored,
}

/// The columns that the decoder wants, of the events behind one, in a form that costs it least. The last but one is of use where
/// rows are filtered, and of what is to be executed; the last one while a table without a key is copied.
pub(super) fn events_query(
    events: &str,
    (by_rows, by_place): (bool, bool),
    behind: Option<i64>,
    order: Order,
) -> String {
    let extra4 = if by_place { "ev_extra4" } else { "null::text" };
    let extra2 = if by_rows {
        "ev_extra2"
    } else {
        "case ev_type when 'EXECUTE' then ev_extra2 end"
    };
    let behind = behind.map_or_else(String::new, |id| format!("where ev_id > {id} "));
    let (events, order) = match order {
        Order::ById => (events, "order by ev_id"),
        Order::AsStored => (events.strip_suffix("order by 1").unwrap_or(events), ""),
    };
    format!(
        "copy (select ev_id, ev_txid, ev_type, ev_data, ev_extra1, {extra2}, {extra4} from ({events}) batch {behind}{order}) to stdout (format binary)"
    )
}

/// One row of the query that [`events_query`] makes, borrowed from its message.
pub(super) struct Event<'a> {
    message: &'a Bytes,
    pub(super) id: i64,
    pub(super) txid: u64,
    pub(super) event_type: &'a [u8],
    pub(super) data: Option<&'a [u8]>,
    pub(super) table: Option<&'a [u8]>,
    /// Whether the row passes the filter, where the trigger says so: `t` or `f`. The attributes of what is to be executed.
    pub(super) extra2: Option<&'a [u8]>,
    /// Where an inserted row is, where the trigger says so (places.rs).
    pub(super) place: Option<&'a [u8]>,
}

/// The header of a binary COPY: signature, flags, length of an extension.
pub(super) const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";

/// The first message without the header.
pub(super) fn without_header(mut message: Bytes) -> Result<Bytes> {
    let length = SIGNATURE.len() + 8;
    if message.len() < length || !message.starts_with(SIGNATURE) {
        return Err(malformed());
    }
    Ok(message.split_off(length))
}

fn malformed() -> Error {
    Error::failure("the provider's answer is not a binary COPY of events")
        .hint("Is there a proxy in between that changes the protocol?")
}

impl<'a> Event<'a> {
    /// Takes a message apart: the server sends one row in each. None: the trailer.
    pub(super) fn parse(message: &'a Bytes) -> Result<Option<Self>> {
        let mut rest: &[u8] = message;
        let fields = take(&mut rest, 2).ok_or_else(malformed)?;
        if fields == [0xff, 0xff] {
            return Ok(None);
        }
        if fields != [0, 7] {
            return Err(malformed());
        }
        let mut next = || -> Result<Option<&'a [u8]>> {
            let length = take(&mut rest, 4)
                .and_then(|bytes| bytes.try_into().ok())
                .map(i32::from_be_bytes)
                .ok_or_else(malformed)?;
            match usize::try_from(length) {
                Ok(length) => Ok(Some(take(&mut rest, length).ok_or_else(malformed)?)),
                Err(_) => Ok(None),
            }
        };
        let number = |field: Option<&[u8]>| {
            field
                .and_then(|bytes| bytes.try_into().ok())
                .map(i64::from_be_bytes)
                .ok_or_else(malformed)
        };
        let id = number(next()?)?;
        let txid = u64::try_from(number(next()?)?).map_err(|_| malformed())?;
        let event_type = next()?.unwrap_or_default();
        let data = next()?;
        let table = next()?;
        let extra2 = next()?;
        let place = next()?;
        Ok(Some(Self {
            message,
            id,
            txid,
            event_type,
            data,
            table,
            extra2,
            place,
        }))
    }
}

impl Event<'_> {
    /// A part of the event, to be kept: if it is large, the message itself is kept for it.
    pub(super) fn keep(&self, part: &[u8]) -> Bytes {
        if part.len() >= LARGE {
            self.message.slice_ref(part)
        } else {
            Bytes::copy_from_slice(part)
        }
    }
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(taken)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn row() -> Vec<u8> {
        let mut out = vec![0, 7];
        let fields: [Option<&[u8]>; 7] = [
            Some(&7_i64.to_be_bytes()),
            Some(&9_i64.to_be_bytes()),
            Some(b"I:id"),
            None,
            Some(b""),
            Some(b"t"),
            Some(b"7:5:100:3"),
        ];
        for field in fields {
            out.extend_from_slice(
                &field
                    .map_or(-1, |bytes| i32::try_from(bytes.len()).unwrap())
                    .to_be_bytes(),
            );
            out.extend_from_slice(field.unwrap_or_default());
        }
        out
    }

    #[test]
    fn a_row_is_taken_apart() {
        let message = Bytes::from(row());
        let event = Event::parse(&message).unwrap().unwrap();
        assert_eq!((event.id, event.txid, event.event_type), (7, 9, &b"I:id"[..]));
        assert_eq!(
            (event.data, event.table, event.extra2, event.place),
            (None, Some(&b""[..]), Some(&b"t"[..]), Some(&b"7:5:100:3"[..]))
        );
        assert!(Event::parse(&Bytes::from_static(&[0xff, 0xff])).unwrap().is_none());
    }

    #[test]
    fn no_prefix_of_a_row_is_one() {
        let message = Bytes::from(row());
        for end in 0..message.len() {
            assert!(Event::parse(&message.slice(..end)).is_err(), "{end}");
        }
    }

    #[test]
    fn the_header_goes() {
        let mut message = SIGNATURE.to_vec();
        message.extend_from_slice(&[0; 8]);
        assert!(without_header(Bytes::from(message.clone())).unwrap().is_empty());
        message.extend_from_slice(b"row");
        assert_eq!(
            without_header(Bytes::from(message)).unwrap(),
            Bytes::from_static(b"row")
        );
        assert!(without_header(Bytes::from_static(b"PGCOPY")).is_err());
    }
}
