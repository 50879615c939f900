//! The text of a snapshot, `xmin:xmax:in-progress,..`, and what it shows. A tick is one of these; a batch is what one tick shows and the
//! one before it does not. Transaction ids are the 64-bit ones, which never wrap. Called by the consumer, to filter out of the first
//! batches what an initial copy already holds, and to see that ticks only ever show more.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// Which transactions had ended when the snapshot was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Everything below has ended.
    pub xmin: u64,
    /// Everything from here on had not started.
    pub xmax: u64,
    /// What was running in between: sorted, without doubles, all at least `xmin` and below `xmax`.
    pub in_progress: Vec<u64>,
}

impl Snapshot {
    /// Had the transaction ended? (Whether it committed is not the snapshot's to say.)
    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && self.in_progress.binary_search(&xid).is_err())
    }

    /// Does this snapshot see every transaction that `other` sees? So it must be, from each tick to the next.
    pub fn includes(&self, other: &Self) -> bool {
        // Nothing that is hidden here may be visible there. Hidden here are the transactions that were running, ...
        if self.in_progress.iter().any(|&xid| other.sees(xid)) {
            return false;
        }
        // ... and all from our xmax on: the other one may reach further only by transactions that were all still running. Counting
        // them is enough, as they are distinct and each lies below the other's xmax.
        let beyond = other.in_progress.len() - other.in_progress.partition_point(|&xid| xid < self.xmax);
        match other.xmax.checked_sub(self.xmax) {
            None | Some(0) => true,
            Some(reach) => u64::try_from(beyond) == Ok(reach),
        }
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (i, xid) in self.in_progress.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(f, "{comma}{xid}")?;
        }
        Ok(())
    }
}

impl FromStr for Snapshot {
    type Err = Error;

    /// Reads what the server writes, with its rules: ids from 1 on, sorted, inside the limits; a repeated id counts once.
    fn from_str(text: &str) -> Result<Self, Error> {
        let mut at = 0;
        let xmin = number(text, &mut at)?;
        colon(text, &mut at)?;
        let xmax = number(text, &mut at)?;
        if xmax < xmin {
            return Err(Error::at(at, "snapshot whose xmax is below its xmin"));
        }
        colon(text, &mut at)?;
        let mut in_progress: Vec<u64> = Vec::new();
        while at < text.len() {
            if !in_progress.is_empty() {
                if text.as_bytes().get(at) != Some(&b',') {
                    return Err(Error::at(at, "no comma between transaction ids"));
                }
                at += 1;
            }
            let start = at;
            let xid = number(text, &mut at)?;
            let last = in_progress.last().copied();
            if xid < xmin || xid >= xmax || last.is_some_and(|last| xid < last) {
                return Err(Error::at(start, "transaction id out of place"));
            }
            if last != Some(xid) {
                in_progress.push(xid);
            }
        }
        Ok(Self {
            xmin,
            xmax,
            in_progress,
        })
    }
}

/// The transaction id at `at`, which is moved behind it.
fn number(text: &str, at: &mut usize) -> Result<u64, Error> {
    let start = *at;
    let digits = text.as_bytes()[start..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    let end = start + digits;
    match text.get(start..end).map(str::parse) {
        Some(Ok(xid)) if xid > 0 => {
            *at = end;
            Ok(xid)
        }
        _ => Err(Error::at(start, "no transaction id")),
    }
}

fn colon(text: &str, at: &mut usize) -> Result<(), Error> {
    if text.as_bytes().get(*at) != Some(&b':') {
        return Err(Error::at(*at, "no colon between the parts of a snapshot"));
    }
    *at += 1;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test fails by panicking
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn snapshot(text: &str) -> Snapshot {
        text.parse().unwrap()
    }

    #[test]
    fn text() {
        for text in [
            "1:1:",
            "804:804:",
            "10:20:10,14,15,19",
            "18446744073709551614:18446744073709551615:18446744073709551614",
        ] {
            assert_eq!(snapshot(text).to_string(), text);
        }
        assert_eq!(snapshot("10:20:10,14,14,15").to_string(), "10:20:10,14,15");
    }

    #[test]
    fn refused() {
        for (text, offset) in [
            ("", 0),
            ("1", 1),
            ("1:", 2),
            ("1:2", 3),
            ("0:1:", 0),
            ("2:1:", 3),
            ("1:2:3", 4),
            ("5:9:4", 4),
            ("5:9:9", 4),
            ("5:9:7,6", 6),
            ("5:9:7,", 6),
            ("5:9:,7", 4),
            ("5:9:7 ", 5),
            ("-1:2:", 0),
            ("+1:2:", 0),
            ("18446744073709551616:1:", 0),
            ("１:2:", 0),
        ] {
            assert_eq!(text.parse::<Snapshot>().unwrap_err().offset(), offset, "{text}");
        }
    }

    #[test]
    fn sees() {
        let s = snapshot("10:20:10,14");
        for (xid, seen) in [
            (1, true),
            (9, true),
            (10, false),
            (11, true),
            (14, false),
            (19, true),
            (20, false),
            (u64::MAX, false),
        ] {
            assert_eq!(s.sees(xid), seen, "{xid}");
        }
    }

    #[test]
    fn includes() {
        for (later, earlier, expected) in [
            ("804:804:", "803:803:", true),
            ("803:803:", "804:804:", false),
            ("10:20:10,14", "10:20:10,14", true),
            ("10:20:14", "10:20:10,14", true),
            ("10:20:10,14", "10:20:14", false),
            // The earlier one reaches further, but shows nothing of what it reaches.
            ("10:10:", "10:12:10,11", true),
            ("10:10:", "10:12:10", false),
            ("10:12:10,11", "10:10:", true),
            ("1:1:", "2:2:", false),
        ] {
            assert_eq!(
                snapshot(later).includes(&snapshot(earlier)),
                expected,
                "{later} includes {earlier}"
            );
        }
    }

    prop_compose! {
        fn any_snapshot()(xmin in 1..12u64, reach in 0..12u64)
            (in_progress in prop::sample::subsequence((xmin..xmin + reach).collect::<Vec<_>>(), 0..=usize::try_from(reach).unwrap()), xmin in Just(xmin), reach in Just(reach))
            -> Snapshot {
            Snapshot { xmin, xmax: xmin + reach, in_progress }
        }
    }

    proptest! {
        #[test]
        fn round_trip(s in any_snapshot()) {
            prop_assert_eq!(snapshot(&s.to_string()), s);
        }

        #[test]
        fn includes_is_what_it_says(a in any_snapshot(), b in any_snapshot()) {
            // No snapshot here reaches beyond 24: past that nothing is visible to either.
            let expected = (0..30).all(|xid| !b.sees(xid) || a.sees(xid));
            prop_assert_eq!(a.includes(&b), expected);
        }

        #[test]
        fn no_input_panics(text in "[0-9:,x]{0,20}|\\PC{0,10}") {
            if let Ok(s) = text.parse::<Snapshot>() {
                prop_assert_eq!(snapshot(&s.to_string()), s);
            }
        }
    }
}
