//! An event as it comes over the wire: one row of a binary COPY, or a line of a row that is a pack.
//!
//! COPY, because it is the cheapest way to get many rows out of a server; binary, because then a field is a length and
//! its bytes and nothing has to be unescaped. Packs (sql/pack.sql) are taken apart here and not by the server, for which that is as much
//! work as everything else about them. Called by stream.rs; knows nothing of tables.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use bytes::Bytes;
use wire::pack;

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

/// The columns that the decoder wants, of the rows that have events behind one (and of all packs, whose last id no column has), in a form
/// that costs it least.
/// `ev_extra2` is of use where rows are filtered, and of what is to be executed; `ev_extra4` while a table without a key is copied.
pub(super) fn events_query(rows: &str, (by_rows, by_place): (bool, bool), behind: Option<i64>, order: Order) -> String {
    let extra4 = if by_place { "ev_extra4" } else { "null::text" };
    let extra2 = if by_rows {
        "ev_extra2"
    } else {
        "case ev_type when 'EXECUTE' then ev_extra2 end"
    };
    let behind = behind.map_or_else(String::new, |id| format!("where ev_id > {id} or ev_retry < 0 "));
    let (rows, order) = match order {
        Order::ById => (rows, "order by ev_id"),
        Order::AsStored => (rows.strip_suffix("order by 1").unwrap_or(rows), ""),
    };
    format!(
        "copy (select ev_id, ev_txid, ev_type, ev_data, ev_extra1, {extra2}, {extra4}, ev_retry from ({rows}) batch {behind}{order}) to stdout (format binary)"
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
    /// It is many: [`Packs`].
    pub(super) is_pack: bool,
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
        if fields != [0, 8] {
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
        let retry = next()?.map(|bytes| bytes.try_into().map(i32::from_be_bytes));
        let retry = retry.transpose().map_err(|_| malformed())?;
        Ok(Some(Self {
            message,
            id,
            txid,
            event_type,
            data,
            table,
            extra2,
            place,
            is_pack: retry.is_some_and(|retry| retry < 0),
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

/// Packs that have events left, of rows that came in the order of their first ones. Those of transactions that wrote at the same time
/// overlap: their events go by turns, so that all come in the order of ids. As many are open as there were such transactions.
#[derive(Default)]
pub(super) struct Packs(BinaryHeap<Reverse<Open>>);

/// A pack whose next event is `id`.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Open {
    id: i64,
    first: i64,
    txid: u64,
    message: Bytes,
    event_type: Bytes,
    table: Option<Bytes>,
    extra2: Option<Bytes>,
    place: Option<Bytes>,
    lines: Bytes,
    data: (usize, usize),
    next: Option<usize>,
}

impl Packs {
    /// Opens one.
    pub(super) fn open(&mut self, row: &Event<'_>) -> Result<()> {
        let part = |part: &[u8]| row.message.slice_ref(part);
        let mut open = Open {
            id: row.id,
            first: row.id,
            txid: row.txid,
            message: row.message.clone(),
            event_type: part(row.event_type),
            table: row.table.map(part),
            extra2: row.extra2.map(part),
            place: row.place.map(part),
            lines: part(row.data.unwrap_or_default()),
            data: (0, 0),
            next: Some(0),
        };
        open.go_on()?;
        self.0.push(Reverse(open));
        Ok(())
    }

    /// The next event, if its id is below that of the next row.
    pub(super) fn event(&self, row: Option<i64>) -> Option<Event<'_>> {
        let Reverse(open) = self.0.peek()?;
        row.is_none_or(|row| open.id < row).then(|| open.event())
    }

    /// That one is dealt with.
    pub(super) fn go_on(&mut self) -> Result<()> {
        let Some(mut first) = self.0.peek_mut() else {
            return Ok(());
        };
        if first.0.next.is_some() {
            first.0.go_on()
        } else {
            PeekMut::pop(first);
            Ok(())
        }
    }
}

impl Open {
    fn go_on(&mut self) -> Result<()> {
        let Some(start) = self.next else { return Ok(()) };
        let line = pack::event(self.first, &self.lines, start).map_err(|error| {
            Error::failure(format!(
                "the events that are packed in row {} cannot be told apart: {error}",
                self.first
            ))
            .hint("Was something written into the event tables by hand? There a negative ev_retry means a pack.")
        })?;
        (self.id, self.data, self.next) = (line.id, (line.data.start, line.data.end), line.next);
        Ok(())
    }

    fn event(&self) -> Event<'_> {
        let (start, end) = self.data;
        Event {
            message: &self.message,
            id: self.id,
            txid: self.txid,
            event_type: &self.event_type,
            data: Some(self.lines.get(start..end).unwrap_or_default()),
            table: self.table.as_deref(),
            extra2: self.extra2.as_deref(),
            place: self.place.as_deref(),
            is_pack: false,
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

    fn message(fields: [Option<&[u8]>; 8]) -> Bytes {
        let mut out = vec![0, 8];
        for field in fields {
            out.extend_from_slice(
                &field
                    .map_or(-1, |bytes| i32::try_from(bytes.len()).unwrap())
                    .to_be_bytes(),
            );
            out.extend_from_slice(field.unwrap_or_default());
        }
        out.into()
    }

    fn row() -> Bytes {
        message([
            Some(&7_i64.to_be_bytes()),
            Some(&9_i64.to_be_bytes()),
            Some(b"I:id"),
            None,
            Some(b""),
            Some(b"t"),
            Some(b"7:5:100:3"),
            None,
        ])
    }

    fn stored(id: i64, txid: i64, retry: Option<i32>, data: &str) -> Bytes {
        let retry = retry.map(i32::to_be_bytes);
        message([
            Some(&id.to_be_bytes()),
            Some(&txid.to_be_bytes()),
            Some(b"I:id"),
            Some(data.as_bytes()),
            Some(b"public.t"),
            None,
            None,
            retry.as_ref().map(<[u8; 4]>::as_slice),
        ])
    }

    /// Id, transaction and data of each event, as [`Packs`] brings them.
    fn events(rows: &[Bytes]) -> Result<Vec<(i64, u64, String)>> {
        let (mut packs, mut events) = (Packs::default(), Vec::new());
        let told = |event: &Event<'_>| {
            assert_eq!((event.event_type, event.table), (&b"I:id"[..], Some(&b"public.t"[..])));
            let data = event.keep(event.data.unwrap_or_default());
            (event.id, event.txid, String::from_utf8(data.to_vec()).unwrap())
        };
        let ends = rows.iter().map(Some).chain([None]);
        for row in ends {
            let row = row.map(Event::parse).transpose()?.flatten();
            while let Some(packed) = packs.event(row.as_ref().map(|row| row.id)) {
                events.push(told(&packed));
                packs.go_on()?;
            }
            match row {
                Some(row) if row.is_pack => packs.open(&row)?,
                Some(row) => events.push(told(&row)),
                None => {}
            }
        }
        Ok(events)
    }

    #[test]
    fn packs_that_overlap_go_by_turns() {
        let rows = [
            stored(1, 5, Some(-4), "0\ta\n1\tb\n4\te\n9\tj"),
            stored(3, 6, Some(-2), "0\tc\n1\td"),
            stored(6, 7, None, "f"),
            stored(7, 6, Some(-3), "0\tg\n1\th\n2\ti"),
            stored(11, 8, Some(1), "retried"),
        ];
        let told = events(&rows).unwrap();
        let ids: Vec<i64> = told.iter().map(|event| event.0).collect();
        assert_eq!(ids, (1..=11).collect::<Vec<_>>());
        let data: String = told.iter().take(10).map(|event| event.2.as_str()).collect();
        assert_eq!(data, "abcdefghij");
        let transactions: Vec<u64> = told.iter().map(|event| event.1).collect();
        assert_eq!(transactions, [5, 5, 6, 6, 5, 7, 6, 6, 6, 5, 8]);
    }

    #[test]
    fn a_row_that_is_no_pack_is_said_so() {
        let error = events(&[stored(1, 5, Some(-2), "0\ta\nid=2")]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("packed in row 1 cannot be told apart: tab missing at byte 8"),
            "{text}"
        );
    }

    #[test]
    fn a_row_is_taken_apart() {
        let message = row();
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
        let message = row();
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
