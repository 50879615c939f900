//! From a configuration to two sessions that can stream: everything replay does before the first batch.
//!
//! The order matters, and every step can be repeated after a crash:
//! 1. connect to both ends; take the consumer's lock on both, so that there is one replay of it, whoever started it;
//! 2. check everything, change nothing: all findings are reported at once (findings.rs, preflight.rs); only what an older
//!    version made for itself on the subscriber is brought up to date before (state.rs);
//! 3. make the missing tables (`--create`) and the schema pgcascade_replay on the subscriber;
//! 4. make the queue, write the intent, register the consumer, write its first tick: the stream begins here;
//! 5. make the triggers: every change from here on is in the stream;
//! 6. only then copy what has no copy yet (copy.rs): what its snapshot does not see is in the stream.
//!
//! Called again after each lost connection; then it finds everything in place and only checks.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future;
use tokio_postgres::Client;

use super::findings::{Findings, Kind, Remedy};
use super::pattern::{self, Pattern};
use super::position::{Position, Subscription, Who};
use super::preflight::{self, Pair};
use super::session::{self, ProviderFacts, SubscriberFacts};
use super::state;
use super::table::{self, Name, Table, literal, quoted};
use super::table_state::{self, State};
use super::{Memory, create};
use crate::config::ReplayConfig;
use crate::connect::{End, Session, connect};
use crate::error::{Doing, Error, Result};

/// The two sessions, and what the streaming and copying parts need to know.
pub(super) struct Ready {
    pub(super) provider: Session,
    pub(super) subscriber: Session,
    pub(super) who: Who,
    /// The last tick that is applied.
    pub(super) tick: i64,
    pub(super) queue_id: i32,
    /// The provider's.
    pub(super) encoding: String,
    pub(super) targets: Vec<Target>,
}

/// A table that is replayed.
pub(super) struct Target {
    pub(super) provider: Arc<Table>,
    pub(super) subscriber: Arc<Table>,
    pub(super) state: State,
}

/// Does all of it but the copies.
pub(super) async fn prepare(config: &ReplayConfig, patterns: &[Pattern], memory: &mut Memory) -> Result<Ready> {
    let who = Who {
        consumer: config.consumer.clone(),
        queue: config.queue.clone(),
    };
    let application_name = format!("pgcascade replay {} {}", who.queue, who.consumer);
    let (provider, subscriber) = future::try_join(
        connect(&config.provider, End::Provider, &application_name),
        connect(&config.subscriber, End::Subscriber, &application_name),
    )
    .await?;
    let (p, s) = (&provider.client, &subscriber.client);

    let facts = facts(p, s).await?;
    let mut findings = Findings::default();
    session::check_ends(&facts.provider, &facts.subscriber, &mut findings);
    findings.into_warnings()?;
    session::set_up_sessions(p, s).await?;
    let patience = if memory.connected {
        session::LOCK_PATIENCE_AGAIN
    } else {
        session::LOCK_PATIENCE
    };
    session::lock(p, End::Provider, &who, patience).await?;
    session::lock(s, End::Subscriber, &who, patience).await?;
    memory.connected = true;
    if facts.subscriber.may_state {
        state::bring_up_to_date(s, &facts.subscriber).await?;
    }

    let mut survey = survey(config, patterns, p, s, &who, &facts).await?;
    // A lost position first: whatever else is missing, putting it right would not help.
    check_position(p, s, &who, &facts, survey.queue_id).await?;
    let warnings = std::mem::take(&mut survey.findings).into_warnings()?;
    if !std::mem::replace(&mut memory.warned, true) {
        for finding in &warnings {
            tracing::warn!("{}; {}", finding.sentence, finding.remedy);
        }
    }
    complete(config, who, provider, subscriber, facts, survey).await
}

/// What both ends are.
pub(super) struct Facts {
    pub(super) provider: ProviderFacts,
    pub(super) subscriber: SubscriberFacts,
}

pub(super) async fn facts(provider: &Client, subscriber: &Client) -> Result<Facts> {
    let (provider, subscriber) =
        future::try_join(session::provider_facts(provider), session::subscriber_facts(subscriber)).await?;
    Ok(Facts { provider, subscriber })
}

/// The tables at both ends, and what is wrong with them.
pub(super) struct Survey {
    /// What --table means.
    pub(super) names: Vec<Name>,
    pub(super) at_provider: HashMap<Name, Table>,
    pub(super) at_subscriber: HashMap<Name, Table>,
    pub(super) states: HashMap<Name, State>,
    /// None: not made yet.
    pub(super) queue_id: Option<i32>,
    pub(super) findings: Findings,
}

impl Survey {
    /// The tables that the subscriber lacks.
    fn missing(&self) -> Vec<&Table> {
        let names = self.names.iter();
        names
            .filter(|name| !self.at_subscriber.contains_key(*name))
            .filter_map(|name| self.at_provider.get(name))
            .collect()
    }

    /// The tables that are at one end, in the order of their names.
    pub(super) fn tables(&self, end: End) -> Vec<&Table> {
        let at = match end {
            End::Provider => &self.at_provider,
            End::Subscriber => &self.at_subscriber,
        };
        self.names.iter().filter_map(|name| at.get(name)).collect()
    }

    /// The tables that are at both ends.
    pub(super) fn pairs(&self) -> Vec<Pair<'_>> {
        let names = self.names.iter();
        names
            .filter_map(|name| Some((self.at_provider.get(name)?, self.at_subscriber.get(name)?)))
            .collect()
    }
}

/// Looks at everything and changes nothing, but for the session's role on the subscriber, which is replica's then.
pub(super) async fn survey(
    config: &ReplayConfig,
    patterns: &[Pattern],
    p: &Client,
    s: &Client,
    who: &Who,
    facts: &Facts,
) -> Result<Survey> {
    let mut findings = Findings::default();
    let names = pattern::resolve(p, patterns, &mut findings).await?;
    let at_provider = table::inspect(p, End::Provider, &names).await?;
    let at_subscriber = table::inspect(s, End::Subscriber, &names).await?;
    let states = if facts.subscriber.may_state {
        table_state::load(s, who).await?
    } else {
        HashMap::new()
    };

    let role = &facts.provider.role;
    let queue_id = preflight::provider(p, role, who, config, &at_provider, &states, &mut findings).await?;
    preflight::subscriber_rights(s, &facts.subscriber, &mut findings).await?;
    let mut survey = Survey {
        names,
        at_provider,
        at_subscriber,
        states,
        queue_id,
        findings: Findings::default(),
    };
    let missing = survey.missing();
    if config.create {
        create::check(s, &missing, &mut findings).await?;
    } else {
        for table in &missing {
            findings.add(
                Kind::TableMissing,
                (End::Subscriber, &table.name),
                format!("table {} does not exist on the subscriber", table.name),
                Remedy::run(End::Subscriber, create::statement(table)).words("let replay make it with --create, or"),
            );
        }
    }
    let role = &facts.subscriber.role;
    preflight::subscriber_tables(s, role, config, &survey.pairs(), &survey.states, &mut findings).await?;
    survey.findings = findings;
    Ok(survey)
}

/// Whether the provider can go on from where the subscriber is.
pub(super) async fn check_position(
    p: &Client,
    s: &Client,
    who: &Who,
    facts: &Facts,
    queue_id: Option<i32>,
) -> Result<()> {
    if facts.subscriber.may_state
        && let Some(position) = who.load(s).await?
    {
        let subscription = subscription(p, who).await?;
        match queue_id {
            None if position.tick.is_some() => return Err(who.lost("the provider does not have the queue any more")),
            None => {}
            Some(id) => who.check(&position, &format!("{}:{id}", facts.provider.identity), subscription)?,
        }
    } else if (facts.subscriber.may_state || !facts.subscriber.schema_exists)
        && queue_id.is_some()
        && subscription(p, who).await?.is_some()
    {
        return Err(who.taken());
    }
    Ok(())
}

/// Makes what is missing.
async fn complete(
    config: &ReplayConfig,
    who: Who,
    provider: Session,
    subscriber: Session,
    facts: Facts,
    mut survey: Survey,
) -> Result<Ready> {
    let (p, s) = (&provider.client, &subscriber.client);
    if !survey.missing().is_empty() {
        create::create(s, &survey.missing()).await?;
        survey.at_subscriber = table::inspect(s, End::Subscriber, &survey.names).await?;
    }
    let Survey {
        names,
        at_provider,
        at_subscriber,
        states,
        ..
    } = survey;
    if !facts.subscriber.installed {
        state::bring_up_to_date(s, &facts.subscriber).await?;
    }
    let queue_id = make_queue(p, &who).await?;
    let tick = register(p, s, &who, &format!("{}:{queue_id}", facts.provider.identity)).await?;

    let mut targets = Vec::new();
    for name in &names {
        let (Some(provider), Some(subscriber)) = (at_provider.get(name), at_subscriber.get(name)) else {
            return Err(Error::failure(format!("table {name} was dropped meanwhile")).transient());
        };
        targets.push(Target {
            provider: Arc::new(provider.clone()),
            subscriber: Arc::new(subscriber.clone()),
            state: states
                .get(name)
                .cloned()
                .unwrap_or(if config.copy { State::InCopy } else { State::Ok }),
        });
    }
    capture(p, &who, &targets).await?;
    // After the triggers: a table that has a state and no triggers is one that lost them.
    forget_removed(s, &who, &states, &names).await?;
    for target in &targets {
        if !states.contains_key(&target.provider.name) {
            table_state::add(s, &who, &target.provider.name, &target.subscriber.name, config.copy).await?;
        }
    }
    p.batch_execute("listen pgcascade_tick")
        .await
        .doing(|| "listen for ticks on the provider".to_owned())?;
    Ok(Ready {
        provider,
        subscriber,
        who,
        tick,
        queue_id,
        encoding: facts.provider.encoding,
        targets,
    })
}

/// The queue's id; makes the queue if need be.
async fn make_queue(provider: &Client, who: &Who) -> Result<i32> {
    let what = || format!("make queue \"{}\" on the provider", who.queue);
    const FIND: &str = "select queue_id from pgq.queue where queue_name = $1";
    if let Some(row) = provider.query_opt(FIND, &[&who.queue]).await.doing(what)? {
        return Ok(row.get(0));
    }
    // One statement, so one transaction. A queue of somebody else's keeps its settings; ours ticks at every chance, so
    // that a committed change is on its way at once.
    let made = provider
        .query_one(
            "select case when pgq.create_queue($1) = 1 then pgq.set_queue_config($1, 'ticker_max_lag', '0') end",
            &[&who.queue],
        )
        .await
        .doing(what)?;
    if made.get::<_, Option<i32>>(0).is_some() {
        tracing::info!(queue = who.queue, "queue made on the provider");
    }
    Ok(provider.query_one(FIND, &[&who.queue]).await.doing(what)?.get(0))
}

async fn subscription(provider: &Client, who: &Who) -> Result<Option<Subscription>> {
    let row = provider
        .query_opt(include_str!("sql/subscription.sql"), &[&who.queue, &who.consumer])
        .await
        .doing(|| format!("look up consumer \"{}\" on the provider", who.consumer))?;
    Ok(row.map(|row| Subscription {
        last_tick: row.get(0),
        next_tick: row.get(1),
    }))
}

/// Returns the tick to go on from; registers the consumer if it is new.
async fn register(provider: &Client, subscriber: &Client, who: &Who, identity: &str) -> Result<i64> {
    let known = subscription(provider, who).await?;
    match who.load(subscriber).await? {
        None if known.is_some() => return Err(who.taken()),
        Some(position @ Position { tick: Some(tick), .. }) => {
            who.check(&position, identity, known)?;
            return Ok(tick);
        }
        Some(position) => who.check(&position, identity, known)?,
        None => {}
    }
    who.write_intent(subscriber, identity).await?;
    provider
        .query_one("select pgq.register_consumer($1, $2)", &[&who.queue, &who.consumer])
        .await
        .doing(|| format!("register consumer \"{}\" on the provider", who.consumer))?;
    let Some(Subscription { last_tick, .. }) = subscription(provider, who).await? else {
        return Err(who.lost("the provider dropped the consumer while it was being registered"));
    };
    who.write_first_tick(subscriber, last_tick).await?;
    tracing::info!(
        consumer = who.consumer,
        queue = who.queue,
        tick = last_tick,
        "consumer registered"
    );
    Ok(last_tick)
}

/// A table that is no longer asked for is forgotten, see table_state.rs.
async fn forget_removed(subscriber: &Client, who: &Who, states: &HashMap<Name, State>, names: &[Name]) -> Result<()> {
    for name in states.keys().filter(|name| !names.contains(name)) {
        table_state::remove(subscriber, who, name).await?;
        tracing::warn!(
            table = %name,
            "no longer replayed, as --table does not name it: its rows stay, its events are ignored, its triggers on the provider \
             stay until they are dropped; named again it has to be copied again"
        );
    }
    Ok(())
}

/// Makes the triggers that are missing, each pair in a transaction of its own: CREATE TRIGGER keeps writers of the
/// table out.
async fn capture(provider: &Client, who: &Who, targets: &[Target]) -> Result<()> {
    let captured = preflight::captured(provider, who, targets.iter().map(|target| target.provider.oid)).await?;
    for target in targets {
        let table = &target.provider;
        let has = captured.get(&table.oid).copied().unwrap_or(0);
        let mut sql = String::new();
        // Only what no other trigger captures: what two capture would come twice.
        let row: &[(&str, i32)] = &[("insert", 4), ("update", 16), ("delete", 8)];
        let statement: &[(&str, i32)] = &[("truncate", preflight::TRUNCATE_EVENT)];
        for (events, level, suffix) in [(row, "row", ""), (statement, "statement", "_truncate")] {
            let events = events.iter().filter(|(_, bit)| has & bit == 0);
            let events: Vec<&str> = events.map(|(event, _)| *event).collect();
            if !events.is_empty() {
                sql.push_str(&format!(
                    "create trigger {} after {} on {} for each {level} execute function pgq.logutriga({});",
                    quoted(&trigger_name(who, suffix)),
                    events.join(" or "),
                    table.name.quoted(),
                    literal(&who.queue)
                ));
            }
        }
        if !sql.is_empty() {
            // Writers queue up behind a CREATE TRIGGER that waits for a long transaction: better to give up and try
            // again.
            provider
                .batch_execute(&format!("begin; set local lock_timeout = '5s'; {sql} commit"))
                .await
                .doing(|| format!("make the capture triggers on table {} of the provider", table.name))?;
            tracing::info!(table = %table.name, "capture triggers made on the provider");
        }
    }
    Ok(())
}

/// One pair per queue and table. A name is at most 63 bytes.
pub(super) fn trigger_name(who: &Who, suffix: &str) -> String {
    let name = format!("pgcascade_capture_{}{suffix}", who.queue);
    if name.len() <= 63 {
        name
    } else {
        format!(
            "pgcascade_capture_{:016x}{suffix}",
            Who {
                consumer: String::new(),
                ..who.clone()
            }
            .lock_key()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trigger_names_fit() {
        let who = |queue: &str| Who {
            consumer: "c".to_owned(),
            queue: queue.to_owned(),
        };
        assert_eq!(trigger_name(&who("q"), "_truncate"), "pgcascade_capture_q_truncate");
        let long = trigger_name(&who(&"x".repeat(60)), "_truncate");
        assert!(long.len() <= 63 && long.ends_with("_truncate"), "{long}");
        assert_ne!(long, trigger_name(&who(&"x".repeat(61)), "_truncate"));
    }
}
