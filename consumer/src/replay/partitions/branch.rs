//! A branch of a cascade has the partitions of its provider, by the same names and with the same bounds.
//!
//! Its events have the names of the root's partitions, as they go on to the nodes below it, which ask it what they mean; and
//! when it is the root itself, it writes those of its own. Called by preflight.rs and survey.rs; changes nothing.

use std::fmt::Display;

use super::super::findings::{Findings, Kind, Remedy};
use super::super::preflight::Pair;
use super::super::table;
use super::super::table::{Name, quoted};
use super::{FOREIGN, Partition, Partitions, make};
use crate::connect::End;

impl Partitions {
    /// Adds a finding for everything in which a branch's table is divided otherwise than its provider's. It may have more
    /// partitions. `makes`: those that are missing are going to be made.
    pub(in crate::replay) fn check_branch(&self, pair: &Pair<'_>, role: &str, makes: bool, findings: &mut Findings) {
        let Pair {
            entry,
            provider,
            subscriber,
        } = pair;
        findings.about(Some(&entry.provider));
        let by = |table: &table::Table| match &table.part_key {
            Some(key) => format!("partitioned by {key}"),
            None => "not partitioned".to_owned(),
        };
        if provider.part_key != subscriber.part_key {
            findings.add(
                Kind::PartitionOther,
                (End::Subscriber, &subscriber.name),
                format!(
                    "table {} of the subscriber, which is a branch, is {}, and that of the provider is {}",
                    subscriber.name,
                    by(subscriber),
                    by(provider)
                ),
                "make it like the provider's: drop it, and let replay make it with --create",
            );
            return;
        }
        let there = self.below(End::Subscriber, subscriber);
        for part in self
            .below(End::Provider, provider)
            .iter()
            .filter(|part| part.kind != FOREIGN)
        {
            let name = &part.name;
            let by_name = there.iter().find(|there| there.name == *name);
            let by_place = there.iter().find(|there| there.place == part.place);
            let (what, remedy) = match (by_name, by_place) {
                (Some(there), _) if there.place == part.place && there.part_key == part.part_key => continue,
                (None, None) if makes => continue,
                (None, None) => (
                    format!("partition {name} of the provider is missing on the subscriber, which is a branch"),
                    Remedy::run(End::Subscriber, make::statement(part))
                        .words("let replay make partitions with --create, or"),
                ),
                (None, Some(there)) => (
                    format!(
                        "partition {name} of the provider is called {} on the subscriber, which is a branch",
                        there.name
                    ),
                    rename(&there.name, name),
                ),
                (Some(_), _) => (
                    format!(
                        "partition {name} of the subscriber, which is a branch, has other bounds or parts than that of the provider"
                    ),
                    "make it like the provider's: detach or rename it there".into(),
                ),
            };
            findings.add(Kind::PartitionOther, (End::Subscriber, name), what, remedy);
        }
        for part in there.iter().filter(|part| lacks_right(part)) {
            let name = &part.name;
            findings.add(
                Kind::TriggerRight,
                (End::Subscriber, name),
                format!(
                    "role \"{role}\" may not make triggers on partition {name} of the subscriber, which is a branch"
                ),
                Remedy::run(
                    End::Subscriber,
                    format!("grant trigger on {} to {}", name.quoted(), quoted(role)),
                ),
            );
        }
    }
}

fn lacks_right(part: &Partition) -> bool {
    part.is_leaf && !part.captures_truncate && !part.may_trigger
}

fn rename(from: &Name, to: &Name) -> Remedy {
    let mut sql = Vec::new();
    if from.schema != to.schema {
        sql.push(format!(
            "alter table {} set schema {}",
            from.quoted(),
            quoted(&to.schema)
        ));
    }
    if from.table != to.table {
        let moved = Name::new(to.schema.as_str(), from.table.as_str());
        sql.push(format!(
            "alter table {} rename to {}",
            moved.quoted(),
            quoted(&to.table)
        ));
    }
    let named: &dyn Display = to;
    Remedy::run(End::Subscriber, sql.join("; ")).words(format!("call it {named} there, too"))
}
