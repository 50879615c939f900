//! From a configuration to two sessions that can stream: everything replay does before the first batch.
//!
//! The order matters, and every step can be repeated after a crash:
//! 1. connect to both ends ([`open`]); take the consumer's lock on both, so that there is one replay of it, whoever started
//!    it;
//! 2. look at everything and change nothing (survey.rs): all findings are reported at once (findings.rs, preflight.rs); only
//!    what an older version made for itself on the subscriber is brought up to date before (state.rs);
//! 3. make the missing tables (`--create`) and the schema pgcascade_replay on the subscriber;
//! 4. make the queue, write the intent, register the consumer, write its first tick: the stream begins here; a node of a cascade
//!    has all that, and takes its place at its provider (duty.rs);
//! 5. make the triggers: every change from here on is in the stream;
//! 6. record the tables that are new; only then copy what has no copy yet (copy.rs): what its snapshot does not see is in
//!    the stream.
//!
//! Called again after each lost connection and after each change of the set of tables; then it finds everything in place
//! and only checks. `consumer table add` does steps 2 to 6 for its tables, without the consumer's lock, while replay runs or
//! not; a lock of their own keeps two of these apart. `consumer check` does step 2 only.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future;
use tokio_postgres::Client;

use super::collapse::Freedom;
use super::create;
use super::displaced::{self, OtherKeys};
use super::filter::Filter;
use super::findings::{Finding, Findings, Kind};
use super::foreign_keys;
use super::parking::{self};
use super::partitions::{Fingerprint, Leaf, Partition, Partitions, Source};
use super::policy::Policies;
use super::position::{Subscription, Who};
use super::preflight::{self};
use super::sequences::{self, Sequences};
use super::session;
use super::survey::{self, Facts, Look, Survey};
use super::table::{Name, Table};
use super::table_state::{self, Entry, State};
use super::watch::Watch;
use super::wish::Wish;
use super::{Memory, duty, merge, state, triggers};
use crate::cascade::{Node, Role};
use crate::config::{Policy, ReplayConfig};
use crate::connect::{End, Session, connect};
use crate::error::{Doing, Error, Result};
use crate::shutdown::Shutdown;

/// The two sessions, and what the streaming and copying parts need to know.
pub(super) struct Ready {
    pub(super) provider: Session,
    pub(super) subscriber: Session,
    pub(super) who: Who,
    /// The last tick that is applied.
    pub(super) tick: i64,
    pub(super) queue_id: i32,
    /// Its ticks come from elsewhere: the provider is a branch.
    pub(super) external: bool,
    /// Which database the provider is.
    pub(super) identity: String,
    /// The provider has PgQ's extension instead of ours.
    pub(super) of_pgq: bool,
    /// The provider's.
    pub(super) encoding: String,
    /// That of the set of tables.
    pub(super) revision: i64,
    /// A file was executed on the provider and is still to come: until then the tables may differ, and none is copied.
    pub(super) pending: bool,
    pub(super) targets: Vec<Target>,
    /// Tables of the set whose events are left out.
    pub(super) parked: Vec<Entry>,
    pub(super) sequences: Sequences,
    pub(super) partitions: Fingerprint,
    pub(super) watch: Watch,
}

/// A table that is replayed.
pub(super) struct Target {
    /// The part of the provider's that is replayed.
    pub(super) provider: Arc<Table>,
    pub(super) subscriber: Arc<Table>,
    pub(super) state: State,
    pub(super) filter: Filter,
    pub(super) replace_rows: bool,
    pub(super) made: bool,
    /// See [`Entry`].
    pub(super) revision: i64,
    pub(super) policy: Policy,
    /// Of a partitioned table: the names that its events have.
    pub(super) leaves: Vec<Leaf>,
}

impl Target {
    /// What may be done with the order of its changes.
    pub(super) fn freedom(&self) -> Freedom {
        let freedom = Freedom::of(&self.subscriber, self.provider.primary_key());
        if freedom == Freedom::Net && self.constraint_to_come() {
            Freedom::Ordered
        } else {
            freedom
        }
    }

    /// A unique index that is made at the end of the copy counts from the start on: its rows have to be in the copy as if it were there, and
    /// nobody looks at the table again when it is.
    fn constraint_to_come(&self) -> bool {
        self.made
            && self.state.to_copy()
            && create::later_indexes(&self.provider, &self.subscriber).any(|later| later.constrains)
    }

    /// By which keys its chunks' rows may be in each other's way, where that is no worse than displaced.rs knows what to do about. None: it
    /// is.
    pub(super) fn other_keys(&self) -> Option<OtherKeys> {
        let keys = displaced::other_keys(&self.provider, &self.subscriber);
        let fits = self.freedom() != Freedom::Watched && !self.constraint_to_come();
        keys.filter(|_| fits)
    }
}

/// The two sessions, and what they are.
pub(super) struct Ends {
    pub(super) provider: Session,
    pub(super) subscriber: Session,
    facts: Facts,
    pub(super) who: Who,
    /// The node that the subscriber is, if it is one of the queue's cascade.
    node: Option<Node>,
    /// Both ends are one database (donated.rs).
    donated: bool,
}

/// Connects to both ends.
pub(super) async fn open(config: &ReplayConfig, program: &str) -> Result<Ends> {
    let who = config.who();
    let application_name = format!("pgcascade {program} {} {}", who.queue, who.consumer);
    let (provider, subscriber) = future::try_join(
        connect(&config.provider, End::Provider, &application_name),
        connect(&config.subscriber, End::Subscriber, &application_name),
    )
    .await?;
    let (p, s) = (&provider.client, &subscriber.client);
    let facts = survey::facts(p, s).await?;
    let mut findings = Findings::default();
    let leaf = config.node.as_ref().is_some_and(|node| node.role == Role::Leaf);
    session::check_ends(&facts, leaf, config.donated, &mut findings);
    // After a failover the address may lead to a standby for a while, or to what somebody keeps others from writing to meanwhile.
    let passes = findings.all(&[Kind::Standby, Kind::ReadOnly]);
    findings
        .into_warnings()
        .map_err(|error| if passes { error.transient() } else { error })?;
    session::set_up_sessions(p, s).await?;
    Ok(Ends {
        provider,
        subscriber,
        facts,
        who,
        node: config.node.clone(),
        donated: config.donated,
    })
}

/// Does all of it but the copies.
pub(super) async fn prepare(
    config: &ReplayConfig,
    wish: &Wish,
    policies: &Policies,
    shutdown: &Shutdown,
    memory: &mut Memory,
) -> Result<Ready> {
    let ends = open(config, "replay").await?;
    let patience = if memory.connected {
        session::LOCK_PATIENCE_AGAIN
    } else {
        session::LOCK_PATIENCE
    };
    memory.another_runs = true;
    if !ends.donated {
        session::lock_unless_stopped(&ends.provider.client, End::Provider, &ends.who, patience, shutdown).await?;
    }
    session::lock_unless_stopped(&ends.subscriber.client, End::Subscriber, &ends.who, patience, shutdown).await?;
    memory.another_runs = false;
    memory.connected = true;

    let ripe = std::mem::take(&mut memory.ripe);
    // --table is `table add` at the start: what was removed since stays away until the next.
    let at_start = !memory.tables_added && !ends.donated;
    let look = Look {
        policies: at_start.then_some(policies),
        parking: config.park.then_some(&memory.parking),
        ripe: &ripe,
        ..Look::of_start(config, policies)
    };
    let base = ends.make(at_start.then_some(wish), look).await?;
    if !ends.donated {
        memory.tables_added = !base.pending;
    }
    memory.parking.begin(base.revision);
    for warning in base.warnings {
        if memory.warned.insert(warning.sentence.clone()) {
            tracing::warn!("{}; {}", warning.sentence, warning.remedy);
        }
    }

    let mut targets = Vec::new();
    for entry in base.entries {
        let (Some(provider), Some(subscriber)) = (
            base.at_provider.get(&entry.provider),
            base.at_subscriber.get(&entry.subscriber),
        ) else {
            return Err(Error::failure(format!("table {} was dropped meanwhile", entry.provider)).transient());
        };
        targets.push(Target {
            leaves: base.partitions.leaves(
                provider,
                subscriber,
                base.late.get(&entry.provider).map_or(&[], Vec::as_slice),
            ),
            provider: Arc::new(entry.filter.part_of(provider)),
            subscriber: Arc::new(subscriber.clone()),
            state: entry.state,
            filter: entry.filter,
            replace_rows: entry.replace_rows,
            made: entry.made,
            revision: entry.revision,
            policy: policies.of(&entry.provider),
        });
    }
    let sequences = if config.sequences {
        let pairs = targets.iter().map(|target| (&*target.provider, &*target.subscriber));
        let pairs: Vec<sequences::Pair<'_>> = pairs.collect();
        sequences::match_up(&ends.provider.client, &ends.subscriber.client, &pairs).await?
    } else {
        Sequences::default()
    };
    if targets.is_empty() && base.parked.is_empty() {
        tracing::warn!("the set of tables is empty; consumer table add fills it");
    }
    ends.provider
        .client
        .batch_execute("listen pgcascade_tick")
        .await
        .doing(|| "listen for ticks on the provider".to_owned())?;
    Ok(Ready {
        provider: ends.provider,
        subscriber: ends.subscriber,
        who: ends.who,
        tick: base.tick,
        queue_id: base.queue_id,
        external: base.external,
        of_pgq: ends.facts.provider.of_pgq(),
        identity: ends.facts.provider.identity,
        encoding: ends.facts.provider.encoding,
        revision: base.revision,
        pending: base.pending,
        targets,
        parked: base.parked,
        sequences,
        partitions: base.partitions.fingerprint,
        watch: base.watch,
    })
}

/// What is in place when the set of tables is.
pub(super) struct Base {
    tick: i64,
    queue_id: i32,
    external: bool,
    revision: i64,
    pending: bool,
    /// Those that were looked at.
    pub(super) entries: Vec<Entry>,
    parked: Vec<Entry>,
    at_provider: HashMap<Name, Table>,
    at_subscriber: HashMap<Name, Table>,
    partitions: Partitions,
    watch: Watch,
    late: HashMap<Name, Vec<Partition>>,
    /// What does not keep it from being replayed.
    pub(super) warnings: Vec<Finding>,
}

impl Ends {
    /// Checks everything, then makes what is missing and adds the tables that are wished for.
    pub(super) async fn make(&self, wish: Option<&Wish>, look: Look<'_>) -> Result<Base> {
        let (s, key) = (&self.subscriber.client, self.who.tables_lock_key());
        let what = || "lock the set of tables on the subscriber".to_owned();
        s.execute("select pg_catalog.pg_advisory_lock($1)", &[&key])
            .await
            .doing(what)?;
        let base = self.make_locked(wish, look).await?;
        s.execute("select pg_catalog.pg_advisory_unlock($1)", &[&key])
            .await
            .doing(what)?;
        Ok(base)
    }

    async fn make_locked(&self, wish: Option<&Wish>, look: Look<'_>) -> Result<Base> {
        let (p, s, who, facts) = (&self.provider.client, &self.subscriber.client, &self.who, &self.facts);
        if facts.subscriber.may_state {
            state::bring_up_to_date(s, End::Subscriber, &facts.subscriber).await?;
        }
        let node = self.node.as_ref();
        let reads = node.filter(|_| facts.subscriber.installed && !look.new_only && !self.donated);
        if let Some(node) = reads {
            duty::start_copies_over(s, node).await?;
        }
        let mut survey = survey::survey((p, s), who, node, facts, wish, look).await?;
        if node.is_none() {
            // A lost position first: whatever else is missing, putting it right would not help.
            survey::check_position((p, s), who, facts, survey.queue_id).await?;
        }
        if look.parking.is_some() {
            parking::leave_out(s, who, &mut survey).await?;
        }
        let findings = std::mem::take(&mut survey.findings);
        let waits = wish.filter(|wish| look.waits && findings.all(&[Kind::NoTable]) && !wish.patterns.is_empty());
        let warnings = match (findings.into_warnings(), node, waits) {
            (Err(error), Some(node), Some(wish)) => return Err(duty::not_yet(p, node, wish, error).await?),
            (outcome, ..) => outcome?,
        };

        survey.create((p, s), who, node, look).await?;
        if !facts.subscriber.installed {
            state::bring_up_to_date(s, End::Subscriber, &facts.subscriber).await?;
        }
        let (queue_id, tick) = match (node, survey.queue_id) {
            (None, _) => {
                let queue_id = make_queue(p, who).await?;
                let identity = format!("{}:{queue_id}", facts.provider.identity);
                (queue_id, register(p, s, who, &identity).await?)
            }
            (Some(_), None) => return Err(who.lost("the provider does not have the queue any more")),
            (Some(node), Some(queue_id)) if look.new_only => {
                duty::upstream(p, node).await?;
                (queue_id, node.tick)
            }
            (Some(node), Some(queue_id)) if self.donated => (queue_id, duty::stay(s, node).await?),
            (Some(node), Some(queue_id)) => (queue_id, duty::attach(p, s, node).await?),
        };
        let external = preflight::external(p, who).await?;
        let Survey {
            mut entries,
            parked,
            mut revision,
            pending,
            at_provider,
            at_subscriber,
            partitions,
            late,
            keys,
            ..
        } = survey;
        if let Some(node) = node {
            duty::check_source(p, node, &entries, look.waits).await?;
            merge::check_source(p, &node.queue, &entries).await?;
            merge::check_tables(s, node, &entries, &at_provider).await?;
        }
        let mut watch = Watch::nothing();
        if !external {
            let tables = entries.iter().map(|entry| (entry, at_provider.get(&entry.provider)));
            let oids: Vec<u32> = tables.clone().filter_map(|(_, table)| Some(table?.oid)).collect();
            loop {
                watch = Watch::take(p, oids.clone()).await?;
                if !self.capture(p, End::Provider, tables.clone()).await? {
                    break;
                }
            }
            for table in tables.filter_map(|(_, table)| table) {
                for part in partitions.without_truncate(End::Provider, table) {
                    triggers::make_of_partition(p, End::Provider, who, part).await?;
                }
            }
        }
        if node.is_some_and(|node| node.role == Role::Branch) {
            // What is replayed does not fire them; they are there for the day on which this is the root, and until then
            // they keep others from writing to the tables.
            let tables = entries
                .iter()
                .map(|entry| (entry, at_subscriber.get(&entry.subscriber)));
            self.capture(s, End::Subscriber, tables.clone()).await?;
            for table in tables.filter_map(|(_, table)| table) {
                for part in partitions.without_truncate(End::Subscriber, table) {
                    triggers::make_of_partition(s, End::Subscriber, who, part).await?;
                }
            }
        }
        // After the triggers: a table that has a state and no triggers is one that lost them.
        if entries.iter().any(|entry| entry.is_new) {
            let what = || "add tables to the set on the subscriber".to_owned();
            let number = table_state::begin_change(s, who).await?;
            revision = Some(number);
            for entry in entries.iter_mut().filter(|entry| entry.is_new) {
                entry.revision = number;
                table_state::add(s, who, entry, number).await?;
            }
            foreign_keys::record(s, who, &keys, &entries).await?;
            s.batch_execute("commit").await.doing(what)?;
        }
        if let Some(node) = reads.filter(|_| entries.iter().any(Entry::to_copy)) {
            duty::note_copies(s, node).await?;
        }
        if let Some(node) = node {
            // Once more: either this end sees that the other one copies, or the other one that this one captures.
            merge::check_source(p, &node.queue, &entries).await?;
            merge::check_tables(s, node, &entries, &at_provider).await?;
        }
        let source = Source {
            provider: p,
            identity: &facts.provider.identity,
            external,
            who,
            ripe: look.ripe,
        };
        let partitions = partitions
            .remember(source, s, &entries, (&at_provider, &at_subscriber))
            .await?;
        Ok(Base {
            tick,
            queue_id,
            external,
            revision: revision.unwrap_or(0),
            pending,
            entries,
            parked,
            at_provider,
            at_subscriber,
            partitions,
            watch,
            late,
            warnings,
        })
    }

    /// Makes the triggers that tables lack. Whether there were any.
    async fn capture<'a>(
        &self,
        client: &Client,
        end: End,
        tables: impl Iterator<Item = (&'a Entry, Option<&'a Table>)> + Clone,
    ) -> Result<bool> {
        let there = tables.clone().filter_map(|(_, table)| table);
        let mut captured = triggers::found(client, end, &self.who, there).await?;
        let mut made = false;
        for (entry, table) in tables {
            let Some(table) = table else { continue };
            let found = captured.remove(&table.oid).unwrap_or_default();
            let wanted = entry.captures(table, self.node.as_ref());
            let lacking = triggers::lacking(&wanted, &found);
            if lacking.is_empty() {
                continue;
            }
            if end == End::Provider && entry.needs_capture() {
                return Err(
                    Error::failure(format!("the triggers of table {} were changed meanwhile", table.name)).transient(),
                );
            }
            let has_key = !table.primary_key().is_empty();
            triggers::make(client, end, &self.who, (&table.name, has_key), &lacking, &found).await?;
            made = true;
        }
        Ok(made)
    }
}

/// The queue's id; makes the queue if need be.
async fn make_queue(provider: &Client, who: &Who) -> Result<i32> {
    let what = || format!("make queue \"{}\" on the provider", who.queue);
    const FIND: &str = "select queue_id from pgq.queue where queue_name = $1";
    if let Some(row) = provider.query_opt(FIND, &[&who.queue]).await.doing(what)? {
        return Ok(row.get(0));
    }
    let made = provider
        .query_one(include_str!("sql/make_queue.sql"), &[&who.queue])
        .await
        .doing(what)?;
    if made.get::<_, Option<i32>>(0).is_some() {
        tracing::info!(queue = who.queue, "queue made on the provider");
    }
    Ok(provider.query_one(FIND, &[&who.queue]).await.doing(what)?.get(0))
}

/// Returns the tick to go on from; registers the consumer if it is new.
async fn register(provider: &Client, subscriber: &Client, who: &Who, identity: &str) -> Result<i64> {
    let (position, known) = who.both(provider, subscriber).await?;
    match position {
        None if known.is_some() => return Err(who.taken()),
        Some(position) => {
            who.check(&position, identity, known)?;
            if let Some(tick) = position.tick {
                return Ok(tick);
            }
        }
        None => {}
    }
    who.write_intent(subscriber, identity).await?;
    provider
        .query_one("select pgq.register_consumer($1, $2)", &[&who.queue, &who.consumer])
        .await
        .doing(|| format!("register consumer \"{}\" on the provider", who.consumer))?;
    let Some(Subscription { last_tick, .. }) = who.subscription(provider).await? else {
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
