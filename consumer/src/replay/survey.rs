//! What there is at both ends, and what is wrong with it, before anything is made.
//!
//! Nothing is changed here: replay's start (setup.rs) makes what is missing afterwards, `consumer check` only tells.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use futures_util::future;
use tokio_postgres::Client;

use super::create::{self, Missing};
use super::findings::{Findings, Kind};
use super::foreign_keys::{self, Key};
use super::parking::Parking;
use super::partitions::{self, Partition, Partitions, Source};
use super::policy::Policies;
use super::position::{Position, Who};
use super::preflight::{self, Pair};
use super::session::{self, ProviderFacts, SubscriberFacts};
use super::sources;
use super::table::{self, Name, Table};
use super::table_state::{self, Entry, State};
use super::wish::Wish;
use super::{execute, sequences};
use crate::cascade::{Node, Role, home};
use crate::config::ReplayConfig;
use crate::connect::End;
use crate::error::{Error, Result};
use crate::failpoint::failpoint;

/// What both ends are.
pub(super) struct Facts {
    pub(super) provider: ProviderFacts,
    pub(super) subscriber: SubscriberFacts,
    pub(super) same_database: bool,
}

pub(super) async fn facts(provider: &Client, subscriber: &Client) -> Result<Facts> {
    let (p, s) = future::try_join(
        session::provider_facts(provider),
        session::subscriber_facts(subscriber, End::Subscriber),
    )
    .await?;
    Ok(Facts {
        // A base backup has the identity of what it was taken of.
        same_database: p.identity == s.identity && home::same_database(provider, subscriber).await?,
        provider: p,
        subscriber: s,
    })
}

/// No partitions.
pub(super) static NONE: LazyLock<HashSet<Name>> = LazyLock::new(HashSet::new);

/// How the set of tables is looked at.
#[derive(Clone, Copy)]
pub(super) struct Look<'a> {
    /// Make the tables that the subscriber lacks.
    pub(super) create: bool,
    /// With what else they have on the provider.
    pub(super) full: bool,
    /// With their foreign keys.
    pub(super) foreign_keys: bool,
    /// Rows on the subscriber do not matter.
    pub(super) truncate: bool,
    /// Those of other sources do not.
    pub(super) merge: bool,
    /// At the tables that are added, not at those that are there.
    pub(super) new_only: bool,
    /// Policies that must be of some table.
    pub(super) policies: Option<&'a Policies>,
    /// Leave out tables that were replayed and do not pass the checks any more, and these; None: that is an error.
    pub(super) parking: Option<&'a Parking>,
    /// Whether the subscriber's sequences are kept ahead.
    pub(super) sequences: bool,
    /// Tables that a branch, which is the provider, does not have yet are waited for.
    pub(super) waits: bool,
    /// Partitions that are not too early any more.
    pub(super) ripe: &'a HashSet<Name>,
}

impl<'a> Look<'a> {
    /// As replay does at its start.
    pub(super) fn of_start(config: &ReplayConfig, policies: &'a Policies) -> Self {
        Self {
            create: config.create,
            full: config.create_full,
            foreign_keys: config.foreign_keys,
            truncate: config.truncate,
            merge: config.merge,
            new_only: false,
            policies: Some(policies),
            parking: None,
            sequences: config.sequences,
            waits: !config.until_caught_up,
            ripe: &NONE,
        }
    }
}

/// The set of tables at both ends, and what is wrong with it.
pub(super) struct Survey {
    /// Those that are looked at, in the order of their names.
    pub(super) entries: Vec<Entry>,
    /// Those of the set that are left out.
    pub(super) parked: Vec<Entry>,
    /// Where the subscriber was before.
    tick: Option<i64>,
    /// Of the set as it is recorded; None: not yet.
    pub(super) revision: Option<i64>,
    pub(super) at_provider: HashMap<Name, Table>,
    /// What of them is replayed.
    pub(super) parts: HashMap<Name, Table>,
    pub(super) at_subscriber: HashMap<Name, Table>,
    pub(super) partitions: Partitions,
    /// Partitions that wait for the events before them, by the table's name on the provider.
    pub(super) late: HashMap<Name, Vec<Partition>>,
    /// Foreign keys of tables that are new and were wished for with --create.
    pub(super) keys: Vec<Key>,
    /// None: not made yet.
    pub(super) queue_id: Option<i32>,
    /// See [`super::setup::Ready`]. Then nothing is added to the set, either.
    pub(super) pending: bool,
    pub(super) findings: Findings,
}

impl Survey {
    /// The tables that are at one end, in the order of their names.
    pub(super) fn tables(&self, end: End) -> Vec<&Table> {
        let entries = self.entries.iter();
        entries
            .filter_map(|entry| match end {
                End::Provider => self.at_provider.get(&entry.provider),
                End::Subscriber | End::Node => self.at_subscriber.get(&entry.subscriber),
            })
            .collect()
    }

    /// Where the rows are at one end: the tables, and the leaves of those that are partitioned, by oid.
    pub(super) fn stored(&self, end: End) -> HashMap<u32, &Name> {
        let mut stored = HashMap::new();
        for table in self.tables(end) {
            if table.kind == "p" {
                let below = self.partitions.below(end, table).iter().filter(|part| part.is_leaf);
                stored.extend(below.map(|part| (part.oid, &part.name)));
            } else {
                stored.insert(table.oid, &table.name);
            }
        }
        stored
    }

    /// The tables that are at both ends.
    pub(super) fn pairs(&self) -> Vec<Pair<'_>> {
        let pair = |entry| {
            Some(Pair {
                entry,
                provider: self.parts.get(&entry.provider)?,
                subscriber: self.at_subscriber.get(&entry.subscriber)?,
            })
        };
        self.entries.iter().filter_map(pair).collect()
    }

    pub(super) fn tables_of_both(&self) -> Vec<sequences::Pair<'_>> {
        let pairs = self.pairs().into_iter();
        pairs.map(|pair| (pair.provider, pair.subscriber)).collect()
    }

    /// What was executed after it was looked for, and before the tables were read, would be found to differ.
    pub(super) async fn unless_executed(&self, p: &Client, who: &Who) -> Result<()> {
        if let Some(tick) = self.tick.filter(|_| !self.pending)
            && execute::pending(p, who, tick).await?
        {
            return Err(
                Error::failure("a file was executed on the provider while the tables were looked at")
                    .hint("Try again.")
                    .transient(),
            );
        }
        Ok(())
    }

    /// The partitions of the provider's tables, and of which table each is; those of all, or of the tables that the subscriber lacks.
    fn parts_of(&self, all: bool) -> foreign_keys::Parts {
        let wanted = self
            .entries
            .iter()
            .filter(|entry| all || !self.at_subscriber.contains_key(&entry.subscriber));
        let tables = wanted.filter_map(|entry| self.parts.get(&entry.provider));
        let parts = tables.flat_map(|table| {
            let below = self.partitions.below(End::Provider, table).iter();
            below.map(|part| (part.name.clone(), table.name.clone()))
        });
        parts.collect()
    }

    /// The tables that the subscriber lacks, as they are to be made there.
    pub(super) fn missing(&self) -> Vec<Missing> {
        let mut missing = Vec::new();
        for entry in &self.entries {
            if !self.at_subscriber.contains_key(&entry.subscriber)
                && let Some(part) = self.parts.get(&entry.provider)
            {
                let mut table = part.clone();
                table.name = entry.subscriber.clone();
                let parts = self.partitions.for_subscriber(entry, part);
                missing.push(Missing { table, parts });
            }
        }
        missing
    }

    pub(super) async fn look_at_subscriber(&mut self, s: &Client, who: &Who) -> Result<()> {
        let names: Vec<Name> = self.entries.iter().map(|entry| entry.subscriber.clone()).collect();
        self.at_subscriber = table::inspect(s, End::Subscriber, &names).await?;
        self.partitions.look_there(s, who, self.at_subscriber.values()).await
    }

    /// Makes what is missing, and what is missing below what is there, each where that is wished for.
    pub(super) async fn create(
        &mut self,
        (p, s): (&Client, &Client),
        who: &Who,
        node: Option<&Node>,
        look: Look<'_>,
    ) -> Result<()> {
        let missing = if look.create { self.missing() } else { Vec::new() };
        let mut made = !missing.is_empty();
        if made {
            let extras = create::extras(p, &missing, look.sequences, look.full).await?;
            create::create(s, &missing, &extras).await?;
        }
        // A file that was executed and is still to come may make partitions, too.
        let pairs = if self.pending { Vec::new() } else { self.pairs() };
        let mut late = HashMap::new();
        let is_branch = node.is_some_and(|node| node.role == Role::Branch);
        for pair in pairs.into_iter().filter(|pair| pair.entry.made || look.create) {
            let mut parts = self.partitions.missing(pair.entry, pair.provider, pair.subscriber);
            let waits = self.partitions.late(pair.entry, pair.provider, pair.subscriber, &parts);
            parts.retain(|part| !waits.iter().any(|late| late.name == part.name));
            if !waits.is_empty() {
                late.insert(pair.entry.provider.clone(), waits);
            }
            made |= !parts.is_empty();
            match partitions::make(s, &parts).await {
                Err(error) if error.is_transient() || is_branch => return Err(error),
                // Somebody divided the table otherwise; its rows have a place, or an event will say that they do not.
                Err(error) => tracing::warn!("{error}"),
                Ok(()) => {}
            }
        }
        self.late = late;
        if made {
            self.look_at_subscriber(s, who).await
        } else {
            Ok(())
        }
    }
}

/// Looks at everything and changes nothing, but for the session's role on the subscriber, which is replica's then.
pub(super) async fn survey(
    (p, s): (&Client, &Client),
    who: &Who,
    node: Option<&Node>,
    facts: &Facts,
    wish: Option<&Wish>,
    look: Look<'_>,
) -> Result<Survey> {
    let tick = match node {
        Some(node) => Some(node.tick),
        None if facts.subscriber.may_state => who.load(s).await?.and_then(|position| position.tick),
        None => None,
    };
    let pending = match tick {
        Some(tick) => execute::pending(p, who, tick).await?,
        None => false,
    };
    failpoint("before_look");
    if pending && look.new_only {
        return Err(Error::failure(format!(
            "a file that was executed on the provider has not come through queue \"{}\" yet",
            who.queue
        ))
        .hint("Add tables when replay has executed it: consumer status shows how far it is behind."));
    }
    let wish = wish.filter(|_| !pending);
    let mut findings = Findings::default();
    let (revision, present) = if facts.subscriber.may_state {
        (table_state::revision(s, who).await?, table_state::load(s, who).await?)
    } else {
        (None, Vec::new())
    };
    failpoint("after_states");
    let new = match wish {
        Some(wish) => wish.entries(p, &present, &mut findings).await?,
        None => Vec::new(),
    };
    let mut entries = if look.new_only { Vec::new() } else { present.clone() };
    entries.extend(new);
    entries.sort_by(|a, b| a.provider.cmp(&b.provider));
    if entries.is_empty() && revision.is_none() && findings.len() == 0 && !pending {
        findings.add(
            Kind::NoTable,
            (End::Provider, &format!("queue {}", who.queue)),
            "there is no table to replay",
            "give --table, or: consumer table add",
        );
    }
    if let Some(policies) = look.policies.filter(|_| !pending) {
        policies.check(&entries, &mut findings);
    }
    preflight::broken(&entries, &mut findings);
    let is_parked = |entry: &Entry| {
        entry.state == State::Broken
            || look
                .parking
                .is_some_and(|parking| parking.has(&entry.provider, revision))
    };
    let (parked, entries): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(is_parked);
    let names: Vec<Name> = entries.iter().map(|entry| entry.provider.clone()).collect();
    let at_provider = table::inspect(p, End::Provider, &names).await?;
    let remembered = facts.subscriber.may_state.then_some(s);
    let source = Source {
        provider: p,
        identity: &facts.provider.identity,
        external: preflight::external(p, who).await?,
        who,
        ripe: look.ripe,
    };
    let partitions = Partitions::look(source, remembered, at_provider.values()).await?;
    let role = &facts.provider.role;
    let queue_id = preflight::provider(p, role, who, node, &entries, &at_provider, &mut findings).await?;
    preflight::names::check(&facts.provider.encoding, who, &entries, &at_provider, &mut findings);
    preflight::subscriber::session(s, &facts.subscriber, &mut findings).await?;
    let mut parts = HashMap::new();
    for entry in &entries {
        let Some(table) = at_provider.get(&entry.provider) else {
            continue;
        };
        if entry.is_new {
            entry.filter.check(p, table, &mut findings).await?;
        }
        if let Some(node) = node {
            preflight::whole(node, entry, &mut findings);
        }
        partitions
            .check(source, role, (entry, table), &entries, &mut findings)
            .await?;
        parts.insert(entry.provider.clone(), entry.filter.part_of(table));
    }
    let mut survey = Survey {
        entries,
        parked,
        tick,
        revision,
        at_provider,
        parts,
        at_subscriber: HashMap::new(),
        partitions,
        late: HashMap::new(),
        keys: Vec::new(),
        queue_id,
        pending,
        findings,
    };
    survey.look_at_subscriber(s, who).await?;
    let mut findings = std::mem::take(&mut survey.findings);
    preflight::missing(&survey.missing(), &survey.entries, look.create, &mut findings);
    if look.create {
        create::check(s, &facts.subscriber, &survey.missing(), &mut findings).await?;
    }
    let role = &facts.subscriber.role;
    preflight::subscriber::tables(role, pending, &survey.pairs(), &mut findings);
    sources::look_for_rows(s, who, &look, &survey.pairs(), &mut findings).await?;
    if let Some(node) = node.filter(|node| node.role == Role::Branch) {
        let more = !survey.missing().is_empty();
        preflight::branch(s, role, who, node, &survey.pairs(), more, &mut findings).await?;
        for pair in survey.pairs().iter().filter(|_| !pending) {
            let makes = look.create || pair.entry.made;
            survey.partitions.check_branch(pair, role, makes, &mut findings);
        }
        findings.about(None);
    }
    if look.sequences {
        let ends = ((p, &*facts.provider.role), (s, role.as_str()));
        sequences::check(ends.0, ends.1, &survey.tables_of_both(), &mut findings).await?;
        if look.create {
            let to_make = survey
                .entries
                .iter()
                .filter(|entry| !survey.at_subscriber.contains_key(&entry.subscriber));
            let to_make = to_make.filter_map(|entry| Some((&entry.provider, survey.parts.get(&entry.provider)?)));
            sequences::check_missing(p, &facts.provider.role, to_make, &mut findings).await?;
        }
    }
    let has_keys = |entry: &&Entry| look.foreign_keys && entry.is_new && entry.made;
    let new = survey.entries.iter().filter(has_keys);
    let new: Vec<&Table> = new
        .filter_map(|entry| survey.at_provider.get(&entry.provider))
        .collect();
    survey.keys = foreign_keys::of_provider(p, who, &new, source.external).await?;
    let all: Vec<&Entry> = present
        .iter()
        .chain(survey.entries.iter().filter(|entry| entry.is_new))
        .collect();
    let mut below = survey.parts_of(true);
    if facts.subscriber.may_state {
        below.extend(foreign_keys::known_parts(s, who).await?);
    }
    foreign_keys::look(s, &survey.keys, &all, survey.parts_of(false), &below, &mut findings).await?;
    survey.findings = findings;
    survey.unless_executed(p, who).await?;
    Ok(survey)
}

/// Whether the provider can go on from where the subscriber is.
pub(super) async fn check_position(
    (p, s): (&Client, &Client),
    who: &Who,
    facts: &Facts,
    queue_id: Option<i32>,
) -> Result<()> {
    if !facts.subscriber.may_state {
        let unseen = facts.subscriber.schema_exists || queue_id.is_none();
        let taken = !unseen && who.subscription(p).await?.is_some();
        return if taken { Err(who.taken()) } else { Ok(()) };
    }
    match (who.both(p, s).await?, queue_id) {
        ((Some(Position { tick: Some(_), .. }), None), None) => {
            Err(who.lost("the provider does not have the queue any more"))
        }
        // Or a first start beside this has just made it.
        (_, None) => Ok(()),
        ((None, known), Some(_)) => known.map_or(Ok(()), |_| Err(who.taken())),
        ((Some(position), known), Some(id)) => {
            who.check(&position, &format!("{}:{id}", facts.provider.identity), known)
        }
    }
}
