//! What becomes a pack: which events of a statement may be one row, and that row (`wire::pack` is its notation).
//!
//! An event may be, if it is small and has data without a newline. It goes into the pack before it, if all its other texts are the same
//! and the row stays within a quarter of a page, which is what the server stores as it is. Called by gathered.rs.

use wire::pack::{self, Pack};

use super::gathered::{LARGE, Nulls, Values};
use crate::pg;

/// What a row takes besides its texts, and each text besides its bytes, at most.
const HEAD: usize = 96;
const TEXT_HEAD: usize = 8;

/// The texts that the events of a pack have in common: all but `ev_data`. Positions among a row's columns.
const SHARED: [usize; 5] = [5, 7, 8, 9, 10];
const ID: usize = 0;
const RETRY: usize = 4;
const DATA: usize = 6;

/// Events that are to be one row.
pub(super) struct Packed {
    pack: Pack,
    /// The columns of the first one that are no texts.
    values: Values,
    nulls: Nulls,
    texts: [Option<Vec<u8>>; SHARED.len()],
    /// At most so many bytes besides the lines.
    head: usize,
}

/// An event that may go into a pack.
pub(super) struct Packable<'a> {
    id: i64,
    data: &'a [u8],
    texts: [Option<&'a [u8]>; SHARED.len()],
}

impl<'a> Packable<'a> {
    /// None: it is a row of its own.
    ///
    /// # Safety
    /// The values must be of the types of an event table's columns; the result lives no longer than the values.
    pub(super) unsafe fn of(values: &Values, nulls: &Nulls) -> Option<Self> {
        // SAFETY: all of these columns are texts.
        let text = |column: usize| unsafe { (!nulls[column]).then(|| pg::text_bytes(values[column])) };
        let event = Self {
            id: values[ID].value() as i64,
            data: text(DATA)?,
            texts: SHARED.map(text),
        };
        let fits = event.head() + event.data.len() + pack::MOST_PER_LINE < LARGE;
        (fits && Pack::default().takes(event.id, event.data)).then_some(event)
    }

    fn head(&self) -> usize {
        let texts = self.texts.iter().flatten();
        HEAD + TEXT_HEAD + texts.map(|text| TEXT_HEAD + text.len()).sum::<usize>()
    }
}

impl Packed {
    /// Of one event, with the columns that it has.
    pub(super) fn begin(event: &Packable<'_>, values: Values, nulls: Nulls) -> Self {
        let mut pack = Pack::default();
        pack.add(event.id, event.data);
        Self {
            pack,
            values,
            nulls,
            texts: event.texts.map(|text| text.map(<[u8]>::to_vec)),
            head: event.head(),
        }
    }

    /// Whether the event can be added: it has the same texts, and there is room.
    pub(super) fn takes(&self, event: &Packable<'_>) -> bool {
        let texts = self.texts.iter().map(Option::as_deref);
        self.head + self.pack.len() + event.data.len() + pack::MOST_PER_LINE < LARGE
            && texts.eq(event.texts)
            && self.pack.takes(event.id, event.data)
    }

    /// Adds an event, of which [`Packed::takes`] said that it can be.
    pub(super) fn add(&mut self, event: &Packable<'_>) {
        self.pack.add(event.id, event.data);
    }

    /// The columns of the row, with texts in the current memory context.
    pub(super) fn row(mut self) -> (Values, Nulls) {
        let (id, retry, data) = self.pack.row();
        self.values[ID] = id.into();
        self.nulls[RETRY] = retry.is_none();
        self.values[RETRY] = retry.unwrap_or_default().into();
        self.values[DATA] = pg::text_datum(data);
        for (column, text) in SHARED.into_iter().zip(&self.texts) {
            if let Some(text) = text {
                self.values[column] = pg::text_datum(text);
            }
        }
        (self.values, self.nulls)
    }
}
