//! Putting rows back into a table that was emptied in the same transaction, for `pgcascade.compact_positions()`.
//!
//! An ordinary INSERT after TRUNCATE would do, but for transactions with an older snapshot: they would find the table empty,
//! and `finish_batch()` in a REPEATABLE READ transaction would take its batch for finished by somebody else. So rows are stored
//! as frozen, as COPY FREEZE does: every snapshot sees them. That is safe only because the files are new ones of this
//! subtransaction, which vanish if it fails; that is checked here.

use pgrx::{FromDatum, PgSqlErrorCode, pg_sys};

use crate::pg::{self, Relation, native};

native!(put_frozen_wrapper, pg_finfo_put_frozen_wrapper, put_frozen);

/// `pgcascade.put_frozen(regclass, record)`: stores a row of the table, which the caller has locked against everybody, read
/// whole and truncated. Neither triggers nor constraints other than unique indexes are looked at: the row was in the table.
fn put_frozen(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: declared strict with a regclass and a composite value, which is copied before anything is changed. The row's own
    // type says how it is read, and must be the table's.
    unsafe {
        let arguments = (*call).args.as_ptr();
        let table = pg_sys::Oid::from_datum((*arguments).value, false).unwrap_or(pg_sys::InvalidOid);
        let table = Relation::open(table, pg_sys::AccessExclusiveLock);
        let header: pg_sys::HeapTupleHeader = pg_sys::pg_detoast_datum((*arguments.add(1)).value.cast_mut_ptr()).cast();
        if !is_new(&table) || (*header).t_choice.t_datum.datum_typeid != (*(*table.raw()).rd_rel).reltype {
            pg::raise(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "a frozen row can only go back into the table it is from, truncated in this transaction",
                "Only pgcascade.compact_positions() calls this.",
            );
        }
        let mut value = pg_sys::HeapTupleData {
            t_len: pgrx::varsize(header.cast()) as u32,
            t_data: header,
            ..Default::default()
        };
        let columns = (*table.descriptor()).natts as usize;
        let mut values = vec![pg_sys::Datum::null(); columns];
        let mut nulls = vec![true; columns];
        pg_sys::heap_deform_tuple(&mut value, table.descriptor(), values.as_mut_ptr(), nulls.as_mut_ptr());
        let row = pg_sys::heap_form_tuple(table.descriptor(), values.as_mut_ptr(), nulls.as_mut_ptr());
        let frozen = pg_sys::HEAP_INSERT_FROZEN as i32;
        pg_sys::heap_insert(
            table.raw(),
            row,
            pg_sys::GetCurrentCommandId(true),
            frozen,
            std::ptr::null_mut(),
        );
        index(&table, row, &values, &nulls);
        pg_sys::heap_freetuple(row);
    }
    pg_sys::Datum::null()
}

/// Enters a row of these values into the table's indexes, all on plain columns.
///
/// # Safety
/// `row` was inserted into the table, `values` and `nulls` are its columns.
unsafe fn index(table: &Relation, row: pg_sys::HeapTuple, values: &[pg_sys::Datum], nulls: &[bool]) {
    // SAFETY: each index is open while it is used; its column numbers are within the table.
    let odd = unsafe {
        pg::first_index(table.raw(), |index| {
            let info = pg_sys::BuildIndexInfo(index);
            let columns = &(&(*info).ii_IndexAttrNumbers)[..(*info).ii_NumIndexAttrs as usize];
            if !(*info).ii_Predicate.is_null() || columns.iter().any(|column| *column <= 0) {
                return Some(());
            }
            let mut keys: Vec<_> = columns.iter().map(|column| values[*column as usize - 1]).collect();
            let mut empty: Vec<_> = columns.iter().map(|column| nulls[*column as usize - 1]).collect();
            let unique = if (*info).ii_Unique {
                pg_sys::IndexUniqueCheck::UNIQUE_CHECK_YES
            } else {
                pg_sys::IndexUniqueCheck::UNIQUE_CHECK_NO
            };
            let (keys, empty) = (keys.as_mut_ptr(), empty.as_mut_ptr());
            pg_sys::index_insert(index, keys, empty, &mut (*row).t_self, table.raw(), unique, false, info);
            None
        })
    };
    if odd.is_some() {
        pg::raise(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            "a table with partial or expression indexes cannot be compacted",
            "Drop the index that was added to it.",
        );
    }
}

/// Whether the table's file was made in this subtransaction.
fn is_new(table: &Relation) -> bool {
    // SAFETY: reads the relcache entry of an open relation.
    unsafe {
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        let made = (*table.raw()).rd_newRelfilenodeSubid;
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        let made = (*table.raw()).rd_newRelfilelocatorSubid;
        made == pg_sys::GetCurrentSubTransactionId()
    }
}
