//! What only the server knows of captured rows: the types of their columns, and the characters that their bytes stand
//! for in a database that is not UTF-8.
//!
//! It has a session of its own, because the one that reads the events is in the middle of an answer. Types are looked
//! up when a table first comes in a window and forgotten with the window: they are those of the moment, not of the event.
//! So a value that its column's type could not have is printed as text (value.rs), and never as something else.

use std::collections::HashMap;

use tokio_postgres::error::SqlState;

use super::event::{Change, RawChange};
use super::value::Kind;
use crate::connect::Session;
use crate::error::{Doing, Result};

/// How the values of a table's columns are printed, by name; a column that is not there is text.
pub(super) type Kinds = HashMap<String, Kind>;

/// The types of a table's columns; of a domain those of what it is made of.
const TYPES: &str = "\
with recursive type as (
    select a.attname, t.oid, t.typtype, t.typbasetype
      from pg_catalog.pg_attribute a
      join pg_catalog.pg_class c on c.oid = a.attrelid
      join pg_catalog.pg_namespace n on n.oid = c.relnamespace
      join pg_catalog.pg_type t on t.oid = a.atttypid
     where n.nspname = $1 and c.relname = $2 and a.attnum > 0 and not a.attisdropped
    union all
    select type.attname, t.oid, t.typtype, t.typbasetype
      from type join pg_catalog.pg_type t on t.oid = type.typbasetype
     where type.typtype = 'd'
)
select attname::text, oid from type where typtype <> 'd'";

pub(super) struct Columns {
    session: Session,
    /// Whether captured bytes are UTF-8.
    utf8: bool,
    /// By schema and table.
    known: HashMap<(String, String), Kinds>,
}

impl Columns {
    pub(super) fn new(session: Session, utf8: bool) -> Self {
        Self {
            session,
            utf8,
            known: HashMap::new(),
        }
    }

    pub(super) fn forget(&mut self) {
        self.known.clear();
    }

    pub(super) async fn kinds(&mut self, table: (String, String)) -> Result<&Kinds> {
        // Looked up twice, as a reference from the first look would keep the second from inserting.
        if !self.known.contains_key(&table) {
            let rows = self
                .session
                .client
                .query(TYPES, &[&table.0, &table.1])
                .await
                .doing(|| format!("read the columns of table {}.{}", table.0, table.1))?;
            let kinds = rows
                .iter()
                .map(|row| (row.get(0), Kind::of(row.get(1))))
                .collect::<Kinds>();
            self.known.insert(table.clone(), kinds);
        }
        Ok(self.known.entry(table).or_default())
    }

    /// The change as text; None if its bytes are not text in the database's encoding.
    pub(super) async fn decode(&self, change: RawChange<'_>) -> Result<Option<Change>> {
        if self.utf8 || change.is_ascii() {
            return Ok(change.utf8());
        }
        let converted = self
            .session
            .client
            .query_one(
                "select array(select pg_catalog.convert_from(bytes, pg_catalog.getdatabaseencoding())
                                from pg_catalog.unnest($1::bytea[]) with ordinality as part (bytes, n) order by n)",
                &[&change.bytes()],
            )
            .await;
        if let Err(error) = &converted
            && matches!(
                error.code(),
                Some(&SqlState::CHARACTER_NOT_IN_REPERTOIRE | &SqlState::UNTRANSLATABLE_CHARACTER)
            )
        {
            return Ok(None);
        }
        let row = converted.doing(|| "convert an event from the database's encoding".to_owned())?;
        Ok(change.with(row.get(0)))
    }
}
