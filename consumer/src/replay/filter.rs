//! What of a table is replayed, when it is not all of it: `--only`, `--except` and `--where` of `consumer table add`.
//!
//! Both are applied where the change happens, in the capture trigger, and in the copy. The trigger belongs to the queue:
//! what its consumers want of a table must fit together (triggers.rs).
//!
//! Columns that are left out are `ignore=`d by the trigger that this consumer makes. Others that come through nevertheless,
//! by a trigger that was there or because the table got them later, the decoder leaves out.
//!
//! Rows: an update can move a row into the filter or out of it, and a trigger's `when=` sees only the new row. So inserts and
//! deletes are captured `when=` the row passes, and updates all, each with the outcome for its new row in `ev_extra2`.
//! One that passes is applied as an insert that replaces the row if it is there, one that does not as a delete that need not
//! meet a row. The filter must not use a column that is left out, as an update of that one makes no event.

use std::fmt::Display;

use tokio_postgres::Client;

use super::findings::{Findings, Kind};
use super::table::{Table, quoted};
use super::triggers::{Capture, DELETE, INSERT, TRUNCATE, UPDATE};
use crate::connect::End;
use crate::error::{Doing, Result};

/// Which part of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) columns: Columns,
    /// A condition.
    pub(super) rows: Option<String>,
}

/// Which columns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Columns {
    #[default]
    All,
    Only(Vec<String>),
    Except(Vec<String>),
}

impl Filter {
    pub(super) fn leaves_out(&self, column: &str) -> bool {
        match &self.columns {
            Columns::All => false,
            Columns::Only(names) => !names.iter().any(|name| name == column),
            Columns::Except(names) => names.iter().any(|name| name == column),
        }
    }

    /// The condition as it is asked everywhere: NULL means no. The line end closes a comment.
    pub(super) fn condition(&self) -> Option<String> {
        self.rows.as_ref().map(|rows| format!("(({rows}\n) is true)"))
    }

    /// The provider's table as if it had nothing but what is replayed.
    pub(super) fn part_of(&self, table: &Table) -> Table {
        let mut part = table.clone();
        part.columns.retain(|column| !self.leaves_out(&column.name));
        part.indexes
            .retain(|index| !index.needed.iter().any(|column| self.leaves_out(column)));
        part
    }

    /// Whether it can be had of this table of the provider.
    pub(super) async fn check(&self, provider: &Client, table: &Table, findings: &mut Findings) -> Result<()> {
        let name = &table.name;
        let object: (End, &dyn Display) = (End::Provider, name);
        let named = match &self.columns {
            Columns::All => &[][..],
            Columns::Only(names) | Columns::Except(names) => names,
        };
        let before = findings.len();
        for column in named.iter().filter(|column| table.column(column).is_none()) {
            findings.add(
                Kind::Filter,
                object,
                format!("table {name} of the provider has no column \"{column}\""),
                "correct --only or --except",
            );
        }
        for column in table.primary_key().iter().filter(|column| self.leaves_out(column)) {
            findings.add(
                Kind::Filter,
                object,
                format!("column \"{column}\" of table {name} cannot be left out, as it is of the primary key"),
                "correct --only or --except",
            );
        }
        for column in table.part_columns.iter().filter(|column| self.leaves_out(column)) {
            findings.add(
                Kind::Filter,
                object,
                format!("column \"{column}\" of table {name} cannot be left out, as the table is partitioned by it"),
                "correct --only or --except",
            );
        }
        let Some(condition) = self.condition() else {
            return Ok(());
        };
        if table.primary_key().is_empty() {
            findings.add(
                Kind::Filter,
                object,
                format!("table {name} has no primary key, which --where needs"),
                format!("alter table {} add primary key (...) on the provider", name.quoted()),
            );
        }
        if findings.len() > before {
            return Ok(());
        }
        let columns: Vec<String> = table
            .columns
            .iter()
            .filter(|column| !self.leaves_out(&column.name))
            .map(|column| quoted(&column.name))
            .collect();
        let sql = format!(
            "select {condition} from (select {} from {}) only_what_is_replayed limit 0",
            columns.join(", "),
            name.quoted()
        );
        if let Err(error) = provider.query(&sql, &[]).await {
            let Some(reason) = error.as_db_error().map(|error| error.message().to_owned()) else {
                return Err(error).doing(|| format!("try the condition of --where on table {name} of the provider"));
            };
            findings.add(
                Kind::Filter,
                object,
                format!("the condition of --where cannot be used for table {name}: {reason}"),
                "correct it; it sees the table's columns that are replayed, by their plain names, and functions of other schemas \
                 than pg_catalog only with their schema",
            );
        }
        Ok(())
    }
}

impl Filter {
    /// The triggers that capture this part of the table.
    pub(super) fn captures(&self, table: &Table) -> Vec<Capture> {
        let ignored: Vec<String> = table
            .columns
            .iter()
            .filter(|column| self.leaves_out(&column.name))
            .map(|column| column.name.clone())
            .collect();
        let rows = |events, argument: Option<String>| Capture {
            events,
            ignored: ignored.clone(),
            arguments: argument.into_iter().collect(),
        };
        let mut captures = match self.condition() {
            None => vec![rows(INSERT | DELETE | UPDATE, None)],
            Some(condition) => vec![
                rows(INSERT | DELETE, Some(format!("when={condition}"))),
                rows(UPDATE, Some(format!("ev_extra2={condition}"))),
            ],
        };
        captures.push(Capture {
            events: TRUNCATE,
            ignored: Vec::new(),
            arguments: Vec::new(),
        });
        captures
    }
}
