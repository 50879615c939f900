//! Tables that are left out because one of their events could not be applied, with `--on-error park`.
//!
//! An attempt that fails notes its table here; the next one is set up without it (setup.rs), and its first transaction
//! makes the table `broken` on the subscriber (table_state.rs). What was noted of another set of tables counts no more:
//! somebody has copied the table again meanwhile, or taken it out, and nothing of that may be overridden.

use tokio_postgres::Client;

use super::position::Who;
use super::survey::Survey;
use super::table::Name;
use super::table_state;
use crate::error::Result;

/// Those of which the subscriber does not know yet, and why.
#[derive(Debug, Default)]
pub(super) struct Parking {
    /// That of the set of tables, when the last attempt was set up.
    revision: i64,
    tables: Vec<(Name, String)>,
}

impl Parking {
    /// Whether the table is to be left out of the set that has this revision.
    pub(super) fn has(&self, table: &Name, revision: Option<i64>) -> bool {
        revision == Some(self.revision) && self.tables.iter().any(|(other, _)| other == table)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// An attempt was set up with the set that has this revision.
    pub(super) fn begin(&mut self, revision: i64) {
        if revision != self.revision {
            self.revision = revision;
            self.tables.clear();
        }
    }

    /// Notes a table. False: it was left out already, so that is not what helps.
    pub(super) fn add(&mut self, table: &Name, error: String) -> bool {
        let is_new = !self.has(table, Some(self.revision));
        if is_new {
            self.tables.push((table.clone(), error));
        }
        is_new
    }

    /// Inside the transaction that goes on without them.
    pub(super) async fn write(&self, subscriber: &Client, who: &Who) -> Result<()> {
        for (table, error) in &self.tables {
            table_state::park(subscriber, who, table, error).await?;
        }
        Ok(())
    }

    /// That transaction is committed.
    pub(super) fn done(&mut self) {
        for (table, _) in self.tables.drain(..) {
            tracing::warn!(%table, "table parked: it is broken until it is copied again");
        }
    }
}

/// Parks the tables that do not pass the checks, as they would be at their next event. Not those that are new: there
/// the configuration is wrong.
pub(super) async fn leave_out(subscriber: &Client, who: &Who, survey: &mut Survey) -> Result<()> {
    let entries = &survey.entries;
    let was_replayed = |name: &Name| entries.iter().any(|entry| !entry.is_new && entry.provider == *name);
    for (table, sentence) in survey.findings.take_tables(was_replayed) {
        table_state::park(subscriber, who, &table, &sentence).await?;
        tracing::warn!(%table, "table parked, it is broken until it is copied again: {sentence}");
        survey
            .parked
            .extend(survey.entries.extract_if(.., |entry| entry.provider == table));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_set_of_tables_makes_forget() {
        let (a, b) = (Name::new("public", "a"), Name::new("public", "b"));
        let mut parking = Parking::default();
        parking.begin(3);
        assert!(parking.add(&a, "error".to_owned()) && !parking.add(&a, "error".to_owned()));
        assert!(parking.has(&a, Some(3)) && !parking.has(&b, Some(3)));
        assert!(!parking.has(&a, Some(4)) && !parking.has(&a, None));
        parking.begin(3);
        assert!(!parking.is_empty());
        parking.begin(4);
        assert!(parking.is_empty());
    }
}
