//! A row taken apart into values, one array slot per attribute of its table.

use pgrx::pg_sys;

/// The values of a row, by attribute index. They point into the tuple they came from.
#[derive(Default)]
pub(crate) struct Row {
    pub(crate) values: Vec<pg_sys::Datum>,
    pub(crate) nulls: Vec<bool>,
}

impl Row {
    /// Takes `tuple` apart, reusing the arrays.
    ///
    /// # Safety
    /// `tuple` must be a row of `descriptor`, and outlive the use of the values.
    pub(crate) unsafe fn fill(&mut self, tuple: pg_sys::HeapTuple, descriptor: pg_sys::TupleDesc) {
        // SAFETY: as promised by the caller; the arrays get a slot for each attribute.
        unsafe {
            let width = usize::try_from((*descriptor).natts).unwrap_or(0);
            self.values.resize(width, pg_sys::Datum::from(0usize));
            self.nulls.resize(width, true);
            pg_sys::heap_deform_tuple(tuple, descriptor, self.values.as_mut_ptr(), self.nulls.as_mut_ptr());
        }
    }

    /// The value of an attribute; `None` is NULL.
    pub(crate) fn get(&self, index: usize) -> Option<pg_sys::Datum> {
        (!self.nulls[index]).then(|| self.values[index])
    }
}
