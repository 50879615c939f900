//! Everything that can be known to be wrong before anything runs: what `consumer check` prints.
//!
//! The checks that replay makes at its start are survey.rs's and preflight.rs's, and are called here as replay calls them.
//! What is added only warns of, or says more of, what replay cannot refuse to start for. Promised: nothing is changed on
//! either end (both sessions are read-only, and the server holds them to it), and no lock is taken that a replay or a
//! writer would wait for.

mod around;
mod capture;
mod ends;
mod fit;
mod shape;
mod written;

use futures_util::future;
use tokio_postgres::Client;

use super::findings::{Finding, Findings, Kind};
use super::foreign_keys;
use super::policy::Policies;
use super::position::Who;
use super::preflight::Pair;
use super::survey::{self, Facts, Look};
use super::table_state::Entry;
use super::wish::Wish;
use super::{duty, preflight, sequences, session, state, table_state};
use crate::cascade::Role;
use crate::config::ReplayConfig;
use crate::connect::{End, Session, connect};
use crate::conninfo::ConnInfo;
use crate::error::{Doing, Result};

/// How often everything is looked at where it is changed meanwhile: by a replay that begins, a command that changes the set, or a file
/// that is executed.
const LOOKS: u32 = 5;

/// Looks at both ends. What keeps an end from being looked at is a finding, too, and then the only one.
pub(crate) async fn check(config: &ReplayConfig) -> Result<Vec<Finding>> {
    let wish = Wish::of_start(config)?;
    let policies = Policies::of_start(config)?;
    let mut findings = Findings::default();
    let (provider, subscriber) = future::join(
        open(&config.provider, End::Provider),
        open(&config.subscriber, End::Subscriber),
    )
    .await;
    let provider = reached(provider, End::Provider, &config.provider, &mut findings)?;
    let subscriber = reached(subscriber, End::Subscriber, &config.subscriber, &mut findings)?;
    let (Some(provider), Some(subscriber)) = (provider, subscriber) else {
        return Ok(findings.into_list());
    };
    let (p, s) = (&provider.client, &subscriber.client);

    let mut looks = 1;
    loop {
        let facts = survey::facts(p, s).await?;
        let leaf = config.node.as_ref().is_some_and(|node| node.role == Role::Leaf);
        let mut findings = Findings::default();
        session::check_ends(&facts, leaf, false, &mut findings);
        if findings.len() > 0 {
            return Ok(findings.into_list());
        }
        let looked = look((p, s), config, &facts, &wish, &policies).await;
        let again = looks < LOOKS && !p.is_closed() && !s.is_closed();
        match looked {
            Err(error) if again && error.is_transient() => tracing::debug!("{error}; everything is looked at again"),
            Ok((_, revision)) if again && revision != revision_now(s, &config.who()).await? => {}
            looked => return looked.map(|(findings, _)| findings.into_list()),
        }
        looks += 1;
    }
}

/// Everything, and the revision of the set of tables when it was looked at.
async fn look(
    (p, s): (&Client, &Client),
    config: &ReplayConfig,
    facts: &Facts,
    wish: &Wish,
    policies: &Policies,
) -> Result<(Findings, Option<i64>)> {
    let who = config.who();
    if facts.subscriber.may_state {
        state::check_version(s).await?;
    }
    let node = config.node.as_ref();
    let look = Look::of_start(config, policies);
    let mut survey = survey::survey((p, s), &who, node, facts, Some(wish), look).await?;
    let position = match node {
        None => survey::check_position((p, s), &who, facts, survey.queue_id).await,
        Some(node) if facts.subscriber.may_state => duty::check_place(p, s, node).await,
        Some(_) => Ok(()),
    };
    let mut findings = std::mem::take(&mut survey.findings);
    let consumer = format!("consumer {} of queue {}", who.consumer, who.queue);
    findings.add_refusal(Kind::Position, (End::Provider, &consumer), position)?;

    ends::ends(p, s, &mut findings).await?;
    if facts.provider.may_read {
        ends::queue(p, &who, &facts.provider, config.node.is_some(), &mut findings).await?;
    }
    let triggers = capture::triggers(p, &who, &survey, &mut findings).await?;
    capture::settings(p, &mut findings).await?;
    let pairs = survey.pairs();
    // What is pending makes them fit, or stops replay when it comes.
    if !survey.pending {
        shape::shapes(p, s, &pairs, &mut findings).await?;
        for pair in &pairs {
            let Pair {
                entry,
                provider,
                subscriber,
            } = pair;
            survey
                .partitions
                .check_places(entry, provider, subscriber, &mut findings);
        }
    }
    around::storage(p, End::Provider, &survey, &mut findings).await?;
    around::storage(s, End::Subscriber, &survey, &mut findings).await?;
    around::acting(s, &survey, &mut findings).await?;
    around::foreign_keys(s, config, &survey, &mut findings).await?;
    sequences::check_places(p, s, config.sequences, &survey.tables_of_both(), &mut findings).await?;
    if facts.subscriber.may_state {
        let all: Vec<&Entry> = survey.entries.iter().chain(&survey.parked).collect();
        foreign_keys::check(s, &who, &all, &mut findings).await?;
        around::other_consumers(s, &who, &pairs, &mut findings).await?;
        // What is replayed to a branch is changed there without an event of its own.
        if facts.provider.may_read && !preflight::external(p, &who).await? {
            written::written(p, s, &who, &survey, &triggers, &mut findings).await?;
        }
    }
    survey.unless_executed(p, &who).await?;
    Ok((findings, survey.revision))
}

/// Another one than before means that a replay began, or a command changed the set, while everything was looked at.
async fn revision_now(subscriber: &Client, who: &Who) -> Result<Option<i64>> {
    let facts = session::subscriber_facts(subscriber, End::Subscriber).await?;
    if facts.may_state {
        table_state::revision(subscriber, who).await
    } else {
        Ok(None)
    }
}

async fn open(target: &ConnInfo, end: End) -> Result<Session> {
    let session = connect(target, end, "consumer check").await?;
    session
        .client
        .batch_execute("set default_transaction_read_only = on")
        .await
        .doing(|| format!("set up the session on the {end}"))?;
    Ok(session)
}

/// An end that does not answer is a finding; a connection string that cannot be used is not.
fn reached(session: Result<Session>, end: End, target: &ConnInfo, findings: &mut Findings) -> Result<Option<Session>> {
    match session {
        Ok(session) => Ok(Some(session)),
        Err(error) if error.exit_code() == 2 => Err(error),
        Err(error) => {
            let remedy = error.get_hint().unwrap_or("see the server's log").to_owned();
            findings.add(Kind::Unreachable, (end, target), error.to_string(), remedy);
            Ok(None)
        }
    }
}
