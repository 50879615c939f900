//! Several events in one row of an event table: a pack.
//!
//! A statement that changes many rows makes as many events, of which most differ only in their id and data. Of those that follow each
//! other one row is made: its `ev_id` is the first one's, its `ev_retry` is how many there are, negative, and its `ev_data` has a line
//! for each: how far its id is from the first one's, a tab, its data. All else is the same for all of them. Ids go up within a pack, but
//! other transactions draw theirs in between: the packs of two may overlap, so that whoever wants events in the order of their ids
//! has to take the packs apart first.
//!
//! A line ends where the next one begins, so data with a newline in it goes into no pack. The captured notations have none.
//!
//! Callers: the capture triggers' store makes packs (pgext/src/insert/gathered.rs), the consumer takes them apart
//! (consumer/src/replay/event.rs). For all others the server does (sql/pack.sql).

use std::ops::Range;

use crate::Error;

/// What a number in a line can add to the bytes of its data: twenty digits, the tab and the newline.
pub const MOST_PER_LINE: usize = 22;

/// A pack that is being made.
#[derive(Debug, Default, Clone)]
pub struct Pack {
    first: i64,
    last: i64,
    count: i32,
    lines: Vec<u8>,
}

impl Pack {
    /// How many events are in it.
    pub const fn count(&self) -> i32 {
        self.count
    }

    /// The bytes that it takes so far.
    pub const fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether no event is in it.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether the event of that id and data can be added: ids go up, and data is one line.
    pub fn takes(&self, id: i64, data: &[u8]) -> bool {
        (self.is_empty() || id > self.last && id.checked_sub(self.first).is_some())
            && self.count < i32::MAX
            && !data.contains(&b'\n')
    }

    /// Adds an event, of which [`Pack::takes`] said that it can be.
    pub fn add(&mut self, id: i64, data: &[u8]) {
        if self.is_empty() {
            self.first = id;
            self.lines.extend_from_slice(b"0");
        } else {
            self.lines.push(b'\n');
            // A Vec takes what it is given.
            let _ = std::io::Write::write_fmt(&mut self.lines, format_args!("{}", id.wrapping_sub(self.first)));
        }
        self.lines.push(b'\t');
        self.lines.extend_from_slice(data);
        self.last = id;
        self.count += 1;
    }

    /// `ev_id`, `ev_retry` and `ev_data` of the row to be stored. One event is a row like any other.
    pub fn row(&self) -> (i64, Option<i32>, &[u8]) {
        if self.count == 1 {
            (self.first, None, self.lines.get(2..).unwrap_or_default())
        } else {
            (self.first, Some(-self.count), &self.lines)
        }
    }
}

/// An event of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its id.
    pub id: i64,
    /// Where its data is in the pack's.
    pub data: Range<usize>,
    /// Where the next one's line begins; none if it is the last.
    pub next: Option<usize>,
}

/// The event whose line begins at `start`, the first at 0, of a row whose `ev_retry` is negative; `first` is its `ev_id`, `lines` its
/// `ev_data`.
pub fn event(first: i64, lines: &[u8], start: usize) -> Result<Line, Error> {
    let line = lines.get(start..).unwrap_or_default();
    let end = line.iter().position(|&byte| byte == b'\n');
    let line = &line[..end.unwrap_or(line.len())];
    let tab = line.iter().position(|&byte| byte == b'\t');
    let tab = tab.ok_or(Error::at(start + line.len(), "tab missing"))?;
    let number = |number: i64, digit: &u8| {
        let digit = digit.is_ascii_digit().then(|| i64::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    };
    let distance = line[..tab].iter().try_fold(0, number).filter(|_| tab > 0);
    let id = distance.and_then(|distance| first.checked_add(distance));
    Ok(Line {
        id: id.ok_or(Error::at(start, "malformed distance of an event id"))?,
        data: start + tab + 1..start + line.len(),
        next: end.map(|end| start + end + 1),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn events(first: i64, lines: &[u8]) -> Result<Vec<(i64, Vec<u8>)>, Error> {
        let mut events = Vec::new();
        let mut next = Some(0);
        while let Some(start) = next {
            let line = event(first, lines, start)?;
            events.push((line.id, lines[line.data].to_vec()));
            next = line.next;
        }
        Ok(events)
    }

    #[test]
    fn a_line_for_each_event() {
        let mut pack = Pack::default();
        for (id, data) in [(7, "id=1&a=%0a"), (8, "id=2"), (19, ""), (20, "a\tb")] {
            assert!(pack.takes(id, data.as_bytes()));
            pack.add(id, data.as_bytes());
        }
        let (first, retry, lines) = pack.row();
        assert_eq!((first, retry), (7, Some(-4)));
        assert_eq!(lines, b"0\tid=1&a=%0a\n1\tid=2\n12\t\n13\ta\tb");
        assert_eq!(events(first, lines).unwrap()[3], (20, b"a\tb".to_vec()));
    }

    #[test]
    fn one_event_is_a_row_like_any_other() {
        let mut pack = Pack::default();
        pack.add(i64::MAX, b"id=1");
        assert_eq!(pack.row(), (i64::MAX, None, &b"id=1"[..]));
    }

    #[test]
    fn what_goes_into_no_pack() {
        let mut pack = Pack::default();
        assert!(!pack.takes(1, b"two\nlines"));
        pack.add(i64::MIN, b"");
        assert!(!pack.takes(i64::MIN, b""));
        assert!(!pack.takes(1, b""), "too far away to be told");
        assert!(pack.takes(-1, b""));
    }

    #[test]
    fn what_is_no_pack_is_told_with_its_place() {
        let wrong = |lines: &'static str| events(1, lines.as_bytes()).err().map(|error| error.to_string());
        assert_eq!(wrong("0\ta\nb").as_deref(), Some("tab missing at byte 5"));
        assert_eq!(wrong("").as_deref(), Some("tab missing at byte 0"));
        for odd in [
            "0\ta\n\tb",
            "0\ta\n-1\tb",
            "0\ta\n9223372036854775807\tb",
            "0\ta\n99999999999999999999\tb",
        ] {
            assert_eq!(
                wrong(odd).as_deref(),
                Some("malformed distance of an event id at byte 4"),
                "{odd}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_went_in_comes_out(
            first in any::<i64>(),
            more in vec((1i64..1_000_000_000, vec(any::<u8>(), 0..20)), 1..40),
        ) {
            let mut pack = Pack::default();
            let mut want = Vec::new();
            let mut id = first;
            for (distance, data) in more {
                if pack.takes(id, &data) {
                    let before = pack.len();
                    pack.add(id, &data);
                    prop_assert!(pack.len() <= before + data.len() + MOST_PER_LINE);
                    want.push((id, data));
                }
                id = id.saturating_add(distance);
            }
            if want.len() > 1 {
                let (first, retry, lines) = pack.row();
                prop_assert_eq!(retry, Some(-i32::try_from(want.len()).unwrap()));
                prop_assert_eq!(events(first, lines), Ok(want));
            }
        }

        #[test]
        fn nothing_makes_it_panic(first in any::<i64>(), lines in vec(any::<u8>(), 0..60)) {
            let _ = events(first, &lines);
        }
    }
}
