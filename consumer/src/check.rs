//! `consumer check`: what would stop or spoil replay, printed with what to do about it.
//!
//! The looking is replay's (replay/check.rs), so that the two never disagree; here are the flags, the output and the exit
//! code: 1 if anything stops replication, or if the check could not be made, else 0.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::CheckArgs;
use crate::config::Job;
use crate::connect::End;
use crate::error::{Error, Result};
use crate::replay::{self, Finding, Severity};
use crate::shutdown::Shutdown;
use crate::status::print;

/// The shape of --json.
#[derive(Serialize)]
struct Report<'a> {
    /// Null: the subscriber is the root of a cascade.
    provider: Option<String>,
    subscriber: String,
    /// How many findings stop replication.
    stops: usize,
    warns: usize,
    findings: Vec<Line<'a>>,
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    finding: &'a Finding,
    /// The whole of it, for a person.
    remedy: String,
    /// The part that can be run as it stands, and where.
    statement: Option<&'a str>,
    run_at: Option<End>,
}

/// Prints what is found.
pub(crate) async fn run(args: CheckArgs, shutdown: Shutdown) -> Result<ExitCode> {
    let replay = args.replay;
    let job = replay.settings.with_file(replay.config.as_deref())?.job()?;
    let look = async {
        let (subscriber, hop) = match job {
            Job::Hop(config) => (config.subscriber.to_string(), Some(*config)),
            Job::Node(node) => (node.checked.subscriber.to_string(), replay::hop(&node).await?),
        };
        let findings = match &hop {
            Some(config) => replay::check(config).await?,
            None => Vec::new(),
        };
        Ok::<_, Error>((hop.map(|config| config.provider.to_string()), subscriber, findings))
    };
    // Only reads are under way, and all connections end with the process.
    let (provider, subscriber, findings) = tokio::select! {
        looked = Box::pin(look) => looked?,
        () = shutdown.wait() => return Err(Error::failure("stopped before everything was looked at")),
    };
    let stops = findings
        .iter()
        .filter(|finding| finding.severity == Severity::Stops)
        .count();
    let text = if args.json {
        let report = Report {
            provider,
            subscriber,
            stops,
            warns: findings.len() - stops,
            findings: findings.iter().map(line).collect(),
        };
        serde_json::to_string(&report).map_err(|error| Error::failure(format!("could not write JSON: {error}")))? + "\n"
    } else {
        text(provider.as_deref(), &subscriber, &findings, stops)
    };
    print(&text)?;
    Ok(if stops == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn line(finding: &Finding) -> Line<'_> {
    Line {
        finding,
        remedy: finding.remedy.to_string(),
        statement: finding.remedy.statement.as_deref(),
        run_at: finding.remedy.run_at,
    }
}

/// (Writing into a String cannot fail, so the outcome of each `write!` is dropped.)
fn text(provider: Option<&str>, subscriber: &str, findings: &[Finding], stops: usize) -> String {
    let provider = provider.unwrap_or("none: the subscriber is the root of the cascade");
    let mut out = format!("provider    {provider}\nsubscriber  {subscriber}\n");
    for finding in findings {
        let severity = match finding.severity {
            Severity::Stops => "STOPS",
            Severity::Warns => "WARNS",
        };
        let _ = writeln!(
            out,
            "{severity}  {}: {}\n       {}",
            finding.kind, finding.sentence, finding.remedy
        );
    }
    let _ = match (stops, findings.len() - stops) {
        (0, 0) => writeln!(out, "Nothing was found that would stop replication."),
        (0, warns) => writeln!(out, "Nothing was found that would stop replication; warnings: {warns}."),
        (stops, warns) => writeln!(out, "Findings that stop replication: {stops}; warnings: {warns}."),
    };
    out
}
