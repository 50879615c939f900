//! Names with letters beyond ASCII where the provider's encoding is not UTF-8.
//!
//! What streams is in the provider's encoding, and the subscriber's session is told to take it so (session.rs): a statement or
//! argument with such a name would arrive there as another one.

use std::collections::HashMap;

use crate::connect::End;
use crate::replay::findings::{Findings, Kind};
use crate::replay::position::Who;
use crate::replay::session;
use crate::replay::table::{Name, Table};
use crate::replay::table_state::Entry;

pub(in crate::replay) fn check(
    encoding: &str,
    who: &Who,
    entries: &[Entry],
    tables: &HashMap<Name, Table>,
    findings: &mut Findings,
) {
    if !session::converts_from(encoding) {
        return;
    }
    let mut refuse = |what: String| {
        findings.add(
            Kind::EncodingNames,
            (End::Provider, &what),
            format!("the name of {what} has letters beyond ASCII, and the provider's encoding is {encoding}"),
            "give it a name of ASCII letters, or replay from a database in UTF8",
        );
    };
    for (what, name) in [("queue", &who.queue), ("consumer", &who.consumer)] {
        if !name.is_ascii() {
            refuse(format!("{what} {name}"));
        }
    }
    for entry in entries {
        let (there, here) = (&entry.provider, &entry.subscriber);
        for name in [Some(there), (here != there).then_some(here)].into_iter().flatten() {
            if !(name.schema.is_ascii() && name.table.is_ascii()) {
                refuse(format!("table {name}"));
            }
        }
        let columns = tables.get(there).map_or(&[][..], |table| &table.columns);
        for column in columns.iter().filter(|column| !column.name.is_ascii()) {
            refuse(format!("column {} of table {there}", column.name));
        }
    }
}
