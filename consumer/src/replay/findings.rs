//! What is wrong at either end, gathered so that a person can put all of it right at once.
//!
//! Every check adds to one [`Findings`], and nothing is changed on either end meanwhile. `consumer check` prints the whole
//! list. Replay's start asks [`Findings::into_warnings`]: what stops replication becomes its error (one finding the error's
//! sentence and hint, several its detail, one line each), the rest it logs. [`Kind`] is the list of all there is to find;
//! docs/check.md explains each.

use std::fmt;

use clap::ValueEnum;
use serde::Serialize;

use super::table::Name;
use crate::connect::End;
use crate::error::{Error, Result};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// Replay does not start, or stops as soon as the table is written.
    Stops,
    /// Replay goes on, but something is lost, or not as one would expect, or depends on the values.
    Warns,
}

/// Everything that can be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    // The ends.
    Unreachable,
    Standby,
    SameDatabase,
    ExtensionMissing,
    ExtensionOld,
    ExtensionUpdate,
    ServerVersion,
    EncodingUnreadable,
    Encoding,
    EncodingNames,
    ReadOnly,
    // What the role may do.
    QueueRight,
    ReaderRight,
    CaptureRight,
    TriggerRight,
    SchemaRight,
    TableRight,
    SequenceRight,
    ReplicaRole,
    StateRight,
    RowSecurity,
    // The queue and the consumer.
    Position,
    ConsumerOwner,
    Ticker,
    TickerUnseen,
    QueuePaused,
    QueueClosed,
    // Tables.
    NoTable,
    InSet,
    Filter,
    NotATable,
    TableMissing,
    PartitionMissing,
    PartitionOther,
    TypeMissing,
    TableNotEmpty,
    TableBroken,
    CaptureLost,
    TriggerDisabled,
    TriggerForeign,
    TriggerBefore,
    TriggerTwice,
    TriggerFormat,
    TriggerArguments,
    WritersUncaptured,
    OutputNotFixed,
    WrittenUncaptured,
    NoKey,
    // Columns and keys.
    ColumnMissing,
    ColumnExtra,
    ColumnGenerated,
    KeyMissing,
    TypeOther,
    TypeNarrower,
    EnumLabel,
    GeneratedThere,
    NotNull,
    CheckExtra,
    UniqueExtra,
    // What is around the tables.
    Unlogged,
    Inheritance,
    ActsInReplica,
    ForeignKey,
    ForeignKeyMissing,
    TruncateReferenced,
    SequenceBehind,
    TwoConsumers,
}

/// As it is called in docs/check.md.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_possible_value() {
            Some(value) => f.write_str(value.get_name()),
            None => Ok(()),
        }
    }
}

impl Kind {
    pub(crate) fn severity(self) -> Severity {
        match self {
            Self::ExtensionUpdate
            | Self::ServerVersion
            | Self::Encoding
            | Self::TickerUnseen
            | Self::TableBroken
            | Self::WritersUncaptured
            | Self::OutputNotFixed
            | Self::WrittenUncaptured
            | Self::PartitionMissing
            | Self::NoKey
            | Self::TypeNarrower
            | Self::GeneratedThere
            | Self::NotNull
            | Self::CheckExtra
            | Self::UniqueExtra
            | Self::Unlogged
            | Self::Inheritance
            | Self::ActsInReplica
            | Self::ForeignKey
            | Self::ForeignKeyMissing
            | Self::SequenceBehind
            | Self::TwoConsumers => Severity::Warns,
            _ => Severity::Stops,
        }
    }
}

/// One of them.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    #[serde(rename = "finding")]
    pub(crate) kind: Kind,
    pub(crate) severity: Severity,
    /// The end that the object is at.
    pub(crate) end: End,
    pub(crate) object: String,
    /// One sentence that names the object, without a full stop.
    pub(crate) sentence: String,
    #[serde(skip)]
    pub(crate) remedy: Remedy,
    /// The tables that it is about, by their names on the provider; none: everything.
    #[serde(skip)]
    about: Vec<Name>,
}

/// What to do about it: words, or a statement with words around it.
#[derive(Debug, Default)]
pub(crate) struct Remedy {
    /// What to do, or what it is that the statement does.
    words: String,
    /// To be run as it stands, at `run_at`.
    pub(crate) statement: Option<String>,
    pub(crate) run_at: Option<End>,
    /// What is left to do after it.
    then: String,
}

impl Remedy {
    /// A statement that puts it right.
    pub(super) fn run(at: End, statement: impl Into<String>) -> Self {
        Self {
            statement: Some(statement.into()),
            run_at: Some(at),
            ..Self::default()
        }
    }

    /// Says what the statement does.
    pub(super) fn words(self, words: impl Into<String>) -> Self {
        Self {
            words: words.into(),
            ..self
        }
    }

    /// Says what is to be done after the statement.
    pub(super) fn then(self, then: impl Into<String>) -> Self {
        Self {
            then: then.into(),
            ..self
        }
    }
}

impl<T: Into<String>> From<T> for Remedy {
    fn from(words: T) -> Self {
        Self::default().words(words)
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)?;
        if let (Some(statement), Some(end)) = (&self.statement, self.run_at) {
            let colon = if self.words.is_empty() { "" } else { ": " };
            write!(f, "{colon}{statement} on the {end}")?;
        }
        if !self.then.is_empty() {
            write!(f, ", then {}", self.then)?;
        }
        Ok(())
    }
}

/// The list.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    list: Vec<Finding>,
    about: Option<Name>,
}

impl Findings {
    /// Adds one, which is about the object at that end. What was said already (a schema has many tables) is said once.
    pub(super) fn add(
        &mut self,
        kind: Kind,
        (end, object): (End, &dyn fmt::Display),
        sentence: impl Into<String>,
        remedy: impl Into<Remedy>,
    ) {
        let sentence = sentence.into();
        if let Some(finding) = self.list.iter_mut().find(|finding| finding.sentence == sentence) {
            finding.about.extend(self.about.clone());
            return;
        }
        self.list.push(Finding {
            kind,
            severity: kind.severity(),
            end,
            object: object.to_string(),
            sentence,
            remedy: remedy.into(),
            about: self.about.iter().cloned().collect(),
        });
    }

    /// What is added from now on stands in the way of this table alone, by its name on the provider; None: of
    /// everything.
    pub(super) fn about(&mut self, table: Option<&Name>) {
        self.about = table.cloned();
    }

    /// Takes out what stops tables that may be left out, and nothing else: the tables, and the first sentence about
    /// each.
    pub(super) fn take_tables(&mut self, may: impl Fn(&Name) -> bool) -> Vec<(Name, String)> {
        let mut tables: Vec<(Name, String)> = Vec::new();
        self.list.retain(|finding| {
            let theirs = !finding.about.is_empty() && finding.about.iter().all(&may);
            if finding.severity != Severity::Stops || !theirs {
                return true;
            }
            for table in &finding.about {
                if !tables.iter().any(|(other, _)| other == table) {
                    tables.push((table.clone(), finding.sentence.clone()));
                }
            }
            false
        });
        tables
    }

    /// Adds what another part reported as an error with a hint; an error that may be gone the next time stays one.
    pub(super) fn add_refusal(
        &mut self,
        kind: Kind,
        object: (End, &dyn fmt::Display),
        outcome: Result<()>,
    ) -> Result<()> {
        match outcome {
            Err(error) if error.sqlstate().is_none() && !error.is_transient() => {
                let remedy = error.get_hint().unwrap_or_default().to_owned();
                self.add(kind, object, error.to_string(), remedy);
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Whether there is nothing but these.
    pub(super) fn all(&self, kinds: &[Kind]) -> bool {
        self.list.iter().all(|finding| kinds.contains(&finding.kind))
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// All of it, what stops replication first.
    pub(crate) fn into_list(mut self) -> Vec<Finding> {
        self.list.sort_by_key(|finding| finding.severity);
        self.list
    }

    /// The warnings, or an error if anything stops replication.
    pub(super) fn into_warnings(self) -> Result<Vec<Finding>> {
        let (mut stops, warnings): (Vec<_>, Vec<_>) = self
            .list
            .into_iter()
            .partition(|finding| finding.severity == Severity::Stops);
        match stops.len() {
            0 => Ok(warnings),
            1 => {
                let Finding { sentence, remedy, .. } = stops.remove(0);
                Err(Error::failure(sentence).hint(remedy.to_string()))
            }
            n => {
                let lines: Vec<String> = stops
                    .into_iter()
                    .map(|Finding { sentence, remedy, .. }| format!("- {sentence}: {remedy}"))
                    .collect();
                Err(Error::failure(format!("{n} things stand in the way of replay"))
                    .detail(lines.join("\n"))
                    .hint("Nothing was changed; put them right and start again."))
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::path::Path;

    use super::*;

    fn two() -> Findings {
        let mut findings = Findings::default();
        findings.add(
            Kind::TableMissing,
            (End::Subscriber, &"a"),
            "table a is missing",
            Remedy::run(End::Subscriber, "create table a ()").then("start again"),
        );
        findings.add(Kind::NoKey, (End::Provider, &"b"), "table b has no key", "make one");
        findings
    }

    #[test]
    fn one_is_a_sentence_and_more_are_a_list() {
        assert!(Findings::default().into_warnings().unwrap().is_empty());
        let error = two().into_warnings().unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "table a is missing\nHINT: create table a () on the subscriber, then start again"
        );
        let mut findings = two();
        findings.add(
            Kind::NotATable,
            (End::Provider, &"b"),
            "table b is a view",
            "leave it out",
        );
        let error = findings.into_warnings().unwrap_err();
        assert_eq!(
            error.get_detail(),
            Some(
                "- table a is missing: create table a () on the subscriber, then start again\n- table b is a view: leave it out"
            )
        );
    }

    #[test]
    fn warnings_stop_nothing() {
        let mut findings = two();
        findings.list.remove(0);
        let warnings = findings.into_warnings().unwrap();
        assert_eq!(warnings.len(), 1);
        assert_eq!(two().into_list()[1].object, "b");
    }

    #[test]
    fn what_stops_a_table_can_be_taken_out() {
        let (a, b) = (Name::new("public", "a"), Name::new("public", "b"));
        let mut findings = Findings::default();
        let schema = (End::Subscriber, &"schema s" as &dyn fmt::Display);
        for table in [&a, &b] {
            findings.about(Some(table));
            findings.add(Kind::SchemaRight, schema, "no rights", "grant");
            findings.add(
                Kind::TableMissing,
                (End::Subscriber, table),
                format!("no {table}"),
                "make it",
            );
            findings.add(
                Kind::NoKey,
                (End::Provider, table),
                format!("no key {table}"),
                "add one",
            );
        }
        findings.about(None);
        findings.add(Kind::ReaderRight, (End::Provider, &"role r"), "no right", "grant");
        // What stands in the way of b, too, stays.
        assert_eq!(
            findings.take_tables(|name| *name == a),
            [(a.clone(), format!("no {a}"))]
        );
        let taken = findings.take_tables(|_| true);
        assert_eq!(taken, [(a, "no rights".to_owned()), (b, "no rights".to_owned())]);
        let left: Vec<Kind> = findings.into_list().iter().map(|finding| finding.kind).collect();
        assert_eq!(left, [Kind::ReaderRight, Kind::NoKey, Kind::NoKey]);
    }

    /// docs/check.md has a line for each kind, with its severity, and consumer/tests/check.rs provokes it.
    #[test]
    fn every_kind_is_explained_and_provoked() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let docs = std::fs::read_to_string(root.join("../docs/check.md")).unwrap();
        let test = std::fs::read_to_string(root.join("tests/check.rs")).unwrap();
        let lines: Vec<&str> = docs.lines().filter(|line| line.starts_with("| `")).collect();
        for kind in Kind::value_variants() {
            let severity = match kind.severity() {
                Severity::Stops => " stops |",
                Severity::Warns => " warns |",
            };
            let explained = |line: &&&str| line.starts_with(&format!("| `{kind}` |")) && line.ends_with(severity);
            assert_eq!(lines.iter().filter(explained).count(), 1, "docs/check.md: {kind}");
            // A standby is made in tests/replay/refusals.rs, a branch in tests/cascade, so old a server is not at hand, and the
            // others are of `table add`.
            let elsewhere = [
                Kind::Standby,
                Kind::PartitionOther,
                Kind::ServerVersion,
                Kind::InSet,
                Kind::Filter,
            ]
            .contains(kind);
            let provoked = test.contains(&format!("\"{kind} ")) || test.contains(&format!("\"{kind}\""));
            assert!(provoked || elsewhere, "tests/check.rs: {kind}");
        }
        assert_eq!(lines.len(), Kind::value_variants().len());
    }
}
