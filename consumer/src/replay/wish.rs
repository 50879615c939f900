//! What is to be added to the set of tables: which, and how. `--table` of replay wishes at its start, `consumer table add`
//! at any time.

use tokio_postgres::Client;

use super::filter::Filter;
use super::findings::{Findings, Kind};
use super::pattern::{self, Pattern, Relation};
use super::table::{Name, literal};
use super::table_state::{Entry, State};
use crate::config::ReplayConfig;
use crate::connect::End;
use crate::error::{Error, Result};

/// A wish.
pub(super) struct Wish {
    pub(super) patterns: Vec<Pattern>,
    /// Copy the rows that are there.
    pub(super) copy: bool,
    /// The copy removes the rows that the subscriber has.
    pub(super) replace_rows: bool,
    /// Make the provider's plain indexes after the copy, and partitions that come later.
    pub(super) made: bool,
    pub(super) filter: Filter,
    pub(super) rename: Option<Rename>,
    /// Whether a table that is in the set already is an error.
    pub(super) all_new: bool,
}

/// What the tables are called on the subscriber.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rename {
    /// `schema.*`
    Schema(String),
    /// `schema.table`
    Table(Name),
}

impl Rename {
    pub(super) fn parse(text: &str) -> Result<Self> {
        match Pattern::parse(text)?.literals() {
            (Some(schema), Some(table)) => Ok(Self::Table(Name::new(schema, table))),
            (Some(schema), None) if text.ends_with(".*") => Ok(Self::Schema(schema)),
            _ => Err(Error::usage(format!("the new name \"{text}\" has a wildcard"))
                .hint("Write schema.table, or schema.* to change the schema only.")),
        }
    }

    fn of(&self, name: &Name) -> Name {
        match self {
            Self::Schema(schema) => Name::new(schema.as_str(), name.table.as_str()),
            Self::Table(name) => name.clone(),
        }
    }
}

impl Wish {
    /// What `--table` says.
    pub(super) fn of_start(config: &ReplayConfig) -> Result<Self> {
        Ok(Self {
            patterns: config
                .tables
                .iter()
                .map(|text| Pattern::parse(text))
                .collect::<Result<_>>()?,
            copy: config.copy,
            replace_rows: false,
            made: config.create,
            filter: Filter::default(),
            rename: None,
            all_new: false,
        })
    }

    /// The tables that are new. `present` are those of the set.
    pub(super) async fn entries(
        &self,
        provider: &Client,
        present: &[Entry],
        findings: &mut Findings,
    ) -> Result<Vec<Entry>> {
        let relations = pattern::relations(provider).await?;
        let in_set = |name: &Name| present.iter().any(|entry| entry.provider == *name);
        let in_parts = pattern::above(&relations, in_set);
        let mut entries: Vec<Entry> = Vec::new();
        for Relation {
            name, above: tables, ..
        } in pattern::resolve(&relations, &in_parts, &self.patterns, findings)
        {
            let by_name = |pattern: &&Pattern| pattern.is_literal() && pattern.matches(name);
            let is_named = self.patterns.iter().any(|pattern| by_name(&pattern));
            if let Some(table) = present.iter().find(|entry| tables.contains(&entry.provider)) {
                if is_named {
                    findings.add(
                        Kind::InSet,
                        (End::Provider, name),
                        format!("partition {name} is replayed already, with table {}", table.provider),
                        "leave it out",
                    );
                }
                continue;
            }
            if in_parts.contains(name) && !in_set(name) {
                let parts = relations
                    .iter()
                    .filter(|part| part.above.contains(name) && in_set(&part.name));
                let parts: Vec<String> = parts.map(|part| literal(&part.name.to_string())).collect();
                findings.add(
                    Kind::InSet,
                    (End::Provider, name),
                    format!("partitions of table {name} are replayed by themselves"),
                    format!("take them out first: consumer table remove {}", parts.join(" ")),
                );
                continue;
            }
            if let Some(entry) = present.iter().find(|entry| entry.provider == *name) {
                if self.all_new && is_named {
                    let shown = literal(&entry.provider.to_string());
                    findings.add(
                        Kind::InSet,
                        (End::Provider, name),
                        format!("table {name} is replayed already"),
                        format!(
                            "consumer table resync {shown} copies it again, consumer table remove {shown} takes it out"
                        ),
                    );
                }
                continue;
            }
            let subscriber = self
                .rename
                .as_ref()
                .map_or_else(|| name.clone(), |rename| rename.of(name));
            let other = present
                .iter()
                .chain(&entries)
                .find(|other| other.subscriber == subscriber);
            if let Some(other) = other {
                findings.add(
                    Kind::InSet,
                    (End::Subscriber, &subscriber),
                    format!(
                        "table {name} would go into {subscriber} on the subscriber, where {} goes",
                        other.provider
                    ),
                    "give it another name with --rename",
                );
                continue;
            }
            entries.push(Entry {
                provider: name.clone(),
                subscriber,
                state: if self.copy { State::InCopy } else { State::Ok },
                state_name: if self.copy { "in-copy" } else { "ok" }.to_owned(),
                filter: self.filter.clone(),
                replace_rows: self.replace_rows,
                made: self.made,
                revision: 0,
                error: None,
                waits: None,
                is_new: true,
            });
        }
        Ok(entries)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn new_names() {
        let of = |text: &str| Rename::parse(text).map(|rename| rename.of(&Name::new("s", "t")));
        assert_eq!(of("a.b").unwrap(), Name::new("a", "b"));
        assert_eq!(of("b").unwrap(), Name::new("public", "b"));
        assert_eq!(of("\"A\".*").unwrap(), Name::new("A", "t"));
        assert_eq!(of("a.\"*\"").unwrap(), Name::new("a", "*"));
        for text in ["*.b", "a.b*", "*", "a.?"] {
            assert_eq!(of(text).unwrap_err().exit_code(), 2, "{text}");
        }
    }
}
