//! What is wrong with partitions: changes that are not captured, or twice, and rows without a place.
//!
//! Called by setup.rs for replay's start and by `consumer check`; changes nothing.

use std::fmt::Display;

use tokio_postgres::Client;

use super::super::findings::{Findings, Kind, Remedy};
use super::super::table::{Name, Table, kind_name, literal, quoted};
use super::super::table_state::{Entry, State};
use super::{FOREIGN, Partition, Partitions, Source, make, was_copied};
use crate::connect::End;
use crate::error::{Doing, Result};

impl Partitions {
    /// Adds a finding for every partition of the provider whose rows have no place on the subscriber, as far as that can be seen.
    pub(in crate::replay) fn check_places(
        &self,
        entry: &Entry,
        provider: &Table,
        subscriber: &Table,
        findings: &mut Findings,
    ) {
        let missing = self.missing(entry, provider, subscriber);
        let there = self.below(End::Subscriber, subscriber);
        for part in &missing {
            let below = part.place.strip_prefix(&part.bound).unwrap_or_default();
            let is_default = |there: &Partition| there.place.strip_prefix("DEFAULT") == Some(below);
            if !there.iter().any(is_default) && !missing.iter().any(|above| above.name == part.parent) {
                findings.add(
                    Kind::PartitionMissing,
                    (End::Subscriber, &part.name),
                    format!(
                        "table {} of the subscriber has no partition for the rows of the provider's partition {}",
                        subscriber.name, part.name
                    ),
                    Remedy::run(End::Subscriber, make::statement(part))
                        .words("let replay make partitions with --create, or"),
                );
            }
        }
    }

    /// Adds a finding for every partition whose changes are not all captured, or come twice, or cannot be captured.
    pub(in crate::replay) async fn check(
        &self,
        source: Source<'_>,
        role: &str,
        (entry, table): (&Entry, &Table),
        entries: &[Entry],
        findings: &mut Findings,
    ) -> Result<()> {
        findings.about(Some(&entry.provider));
        let resync = format!(
            "copy the table again: consumer table resync {}",
            literal(&table.name.quoted())
        );
        let was_copied = was_copied(entry);
        let known = self.known.get(&table.name).map_or(&[][..], Vec::as_slice);
        let grant = |what: &str, name: &Name| {
            Remedy::run(
                End::Provider,
                format!("grant {what} on {} to {}", name.quoted(), quoted(role)),
            )
        };
        for part in self.below(End::Provider, table) {
            let name = &part.name;
            let object: (End, &dyn Display) = (End::Provider, name);
            if part.kind == FOREIGN {
                findings.add(
                    Kind::NotATable,
                    object,
                    format!(
                        "partition {name} of table {} of the provider is a {}, whose rows change elsewhere",
                        table.name,
                        kind_name(&part.kind)
                    ),
                    "detach it, or replay the other partitions by their names",
                );
                continue;
            }
            if let Some(trigger) = &part.own_trigger {
                findings.add(
                    Kind::TriggerTwice,
                    object,
                    format!(
                        "partition {name} of the provider has a capture trigger of its own, beside that of table {}",
                        table.name
                    ),
                    Remedy::run(
                        End::Provider,
                        format!("drop trigger {} on {}", quoted(trigger), name.quoted()),
                    ),
                );
            }
            if entries.iter().any(|entry| entry.provider == *name) {
                findings.add(
                    Kind::InSet,
                    object,
                    format!("partition {name} of table {} is replayed by itself, too", table.name),
                    format!("take it out: consumer table remove {}", literal(&name.to_string())),
                );
            }
            if !part.is_leaf || source.external {
                continue;
            }
            if !part.captures_truncate && !part.may_trigger {
                findings.add(
                    Kind::TriggerRight,
                    object,
                    format!("role \"{role}\" may not make triggers on partition {name} of the provider"),
                    grant("trigger", name),
                );
            }
            let Some(clone) = &part.clone else { continue };
            if let Some(trigger) = &clone.disabled {
                findings.add(
                    Kind::TriggerDisabled,
                    object,
                    format!(
                        "trigger {} of partition {name} of the provider is disabled",
                        quoted(trigger)
                    ),
                    Remedy::run(
                        End::Provider,
                        format!("alter table {} enable trigger {}", name.quoted(), quoted(trigger)),
                    )
                    .then(&resync),
                );
            }
            // By whatever name; one that was seen in another database is another trigger here.
            let is_known = known.iter().any(|known| {
                if known.provider.as_deref() == Some(&self.identity) {
                    known.clone == Some(clone.oid)
                } else {
                    known.name == *name
                }
            });
            if !was_copied || is_known {
                continue;
            }
            let why = if clone.born_here && part.rewritten {
                "may have been truncated before replay saw it"
            } else if matches!(entry.state, State::InChunks(_)) {
                // It gets a chunk.
                continue;
            } else if !part.may_read {
                findings.add(
                    Kind::TableRight,
                    object,
                    format!("role \"{role}\" may not read partition {name} of the provider, which is new"),
                    grant("select", name),
                );
                continue;
            } else if has_older(source.provider, name, &clone.made_by).await? {
                "was attached with rows, which are not in the queue"
            } else {
                continue;
            };
            findings.add(
                Kind::CaptureLost,
                object,
                format!("partition {name} of table {} of the provider {why}", table.name),
                resync.as_str(),
            );
        }
        findings.about(None);
        Ok(())
    }
}

/// Whether a table has rows from before a command.
async fn has_older(provider: &Client, name: &Name, (transaction, command): &(String, i64)) -> Result<bool> {
    let sql = format!(
        "select exists (select from {} where pg_catalog.age(xmin) > pg_catalog.age({1}::pg_catalog.xid)
                            or xmin = {1}::pg_catalog.xid and cmin::pg_catalog.text::pg_catalog.int8 < {command})",
        name.quoted(),
        literal(transaction)
    );
    let row = provider
        .query_one(&sql, &[])
        .await
        .doing(|| format!("look for older rows in partition {name} of the provider"))?;
    Ok(row.get(0))
}
