//! What `--on-conflict` says of which table; conflict.rs does it.

use super::findings::{Findings, Kind};
use super::pattern::Pattern;
use super::table::Name;
use super::table_state::Entry;
use crate::config::{Policy, ReplayConfig};
use crate::connect::End;
use crate::error::Result;

/// The policies, in the order in which they are written; without a pattern it is any table's.
pub(super) struct Policies(Vec<(Option<Pattern>, Policy)>);

impl Policies {
    /// As configured.
    pub(super) fn of_start(config: &ReplayConfig) -> Result<Self> {
        let parse = |text: &String| Pattern::parse(text);
        let policies = config.on_conflict.iter();
        let policies = policies.map(|(table, policy)| Ok((table.as_ref().map(parse).transpose()?, *policy)));
        Ok(Self(policies.collect::<Result<_>>()?))
    }

    /// That of the table with this name on the provider: its own, or that of all, or to stop.
    pub(super) fn of(&self, name: &Name) -> Policy {
        let own = |(pattern, _): &&(Option<Pattern>, _)| pattern.as_ref().is_some_and(|pattern| pattern.matches(name));
        let all = |(pattern, _): &&(Option<Pattern>, _)| pattern.is_none();
        let mut latest = self.0.iter().rev();
        let found = latest.clone().find(own).or_else(|| latest.find(all));
        found.map_or(Policy::Stop, |&(_, policy)| policy)
    }

    /// A policy of no table is a finding.
    pub(super) fn check(&self, entries: &[Entry], findings: &mut Findings) {
        for pattern in self.0.iter().filter_map(|(pattern, _)| pattern.as_ref()) {
            if !entries.iter().any(|entry| pattern.matches(&entry.provider)) {
                findings.add(
                    Kind::NoTable,
                    (End::Provider, pattern),
                    format!("no table that is replayed matches \"{pattern}\" of --on-conflict"),
                    "correct --on-conflict or --table",
                );
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_tables_own_goes_before_that_of_all() {
        let of = |policies: &[(Option<&str>, Policy)]| {
            let parse = |text: &str| Pattern::parse(text).unwrap();
            let policies = policies.iter().map(|(text, policy)| (text.map(parse), *policy));
            Policies(policies.collect()).of(&Name::new("public", "t"))
        };
        assert_eq!(of(&[]), Policy::Stop);
        assert_eq!(
            of(&[(None, Policy::Skip), (None, Policy::Overwrite)]),
            Policy::Overwrite
        );
        assert_eq!(
            of(&[(Some("t"), Policy::Skip), (None, Policy::Overwrite)]),
            Policy::Skip
        );
        assert_eq!(
            of(&[(Some("*"), Policy::Skip), (Some("t"), Policy::Stop)]),
            Policy::Stop
        );
        assert_eq!(of(&[(Some("u"), Policy::Skip)]), Policy::Stop);
    }
}
