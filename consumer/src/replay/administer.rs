//! `consumer table`: shows and changes the set of tables that a consumer replays, while its replay runs or not.
//!
//! The set is `pgcascade_replay.table_state` (table_state.rs). Every change raises the revision beside the position, so that a
//! replay that runs begins again with the new set at the next batch or poll; one that does not run finds it at its start.
//! Nothing is copied here. What `--table` of replay names is added at its start in the same way (setup.rs).

mod add;
mod change;
mod show;

use tokio_postgres::Client;

use super::pattern::Pattern;
use super::position::Who;
use super::session;
use super::state;
use super::table_state::{self, Entry};
use crate::cascade::{self, Node, Role};
use crate::cli::table::SetCommand;
use crate::config::{ReplaySettings, conninfo, name};
use crate::connect::{End, Session, connect};
use crate::error::{Doing, Error, Result};
use crate::shutdown::Shutdown;

/// Does what a verb says.
pub(crate) async fn run(verb: SetCommand, shutdown: Shutdown) -> Result<()> {
    let work = async {
        match verb {
            SetCommand::Add(args) => add::run(*args).await,
            SetCommand::Remove(args) => change::remove(args).await,
            SetCommand::Resync(args) => change::resync(args).await,
            SetCommand::List(args) => show::list(args).await,
            SetCommand::Missing(args) => show::missing(args).await,
        }
    };
    // Whatever was on its way is rolled back with the sessions; every verb can be repeated.
    tokio::select! {
        outcome = Box::pin(work) => outcome,
        () = shutdown.wait() => Err(Error::failure("stopped before the end").hint("Run it again: what is done already is left as it is.")),
    }
}

/// The set of tables on the subscriber, opened.
struct Set {
    subscriber: Session,
    who: Who,
    entries: Vec<Entry>,
}

/// What a node of a cascade knows by itself, and so is left out of its configuration: its provider, its name as a consumer.
async fn completed(settings: ReplaySettings) -> Result<(ReplaySettings, Option<Node>)> {
    let (None, None, Some(subscriber), Some(queue)) = (
        &settings.provider,
        &settings.consumer,
        &settings.subscriber,
        &settings.queue,
    ) else {
        return Ok((settings, None));
    };
    let target = conninfo("subscriber", Some(subscriber))?;
    let session = connect(&target, End::Subscriber, "consumer table").await?;
    let Some(node) = cascade::load(&session.client, queue).await? else {
        return Ok((settings, None));
    };
    let query = settings.address_query.as_deref().map(Into::into);
    let node = node.asking(&session.client, query).await?;
    if node.role == Role::Root {
        return Err(
            Error::usage(format!("{} is the root, which replays no tables", node.title()))
                .hint("A table is captured there as soon as a node below replays it."),
        );
    }
    let completed = ReplaySettings {
        provider: node.provider_location.clone(),
        consumer: Some(node.worker.clone()),
        ..settings
    };
    Ok((completed, Some(node)))
}

/// Opens the set, with the lock that keeps other changes of it out if it is to be changed.
async fn open(settings: &ReplaySettings, to_change: bool) -> Result<Set> {
    let target = conninfo("subscriber", settings.subscriber.as_deref())?;
    let who = Who {
        queue: name("queue", settings.queue.as_deref())?,
        consumer: match settings.consumer.as_deref() {
            consumer @ Some(_) => name("consumer", consumer)?,
            None => target.default_consumer(),
        },
    };
    let subscriber = connect(&target, End::Subscriber, "consumer table").await?;
    let client = &subscriber.client;
    let facts = session::subscriber_facts(client, End::Subscriber).await?;
    if facts.installed {
        if to_change {
            client
                .execute("select pg_catalog.pg_advisory_lock($1)", &[&who.tables_lock_key()])
                .await
                .doing(|| "lock the set of tables on the subscriber".to_owned())?;
        }
        state::bring_up_to_date(client, End::Subscriber, &facts).await?;
        if who.load(client).await?.is_some() {
            let entries = table_state::load(client, &who).await?;
            return Ok(Set {
                subscriber,
                who,
                entries,
            });
        }
    }
    Err(Error::failure(format!(
        "the subscriber has no consumer \"{}\" of queue \"{}\"",
        who.consumer, who.queue
    ))
    .hint("consumer status shows which it has; consumer table add or consumer replay makes one."))
}

fn patterns(texts: &[String]) -> Result<Vec<Pattern>> {
    texts.iter().map(|text| Pattern::parse(text)).collect()
}

impl Set {
    /// The tables that the patterns mean; each pattern must mean one.
    fn chosen(&self, patterns: &[Pattern]) -> Result<Vec<&Entry>> {
        for pattern in patterns {
            if !self.entries.iter().any(|entry| pattern.matches(&entry.provider)) {
                return Err(Error::failure(format!(
                    "no table that consumer \"{}\" of queue \"{}\" replays matches \"{}\"",
                    self.who.consumer,
                    self.who.queue,
                    pattern.text()
                ))
                .hint("consumer table list shows the tables; they go by their names on the provider."));
            }
        }
        let chosen = |entry: &&Entry| patterns.iter().any(|pattern| pattern.matches(&entry.provider));
        Ok(self.entries.iter().filter(chosen).collect())
    }

    fn client(&self) -> &Client {
        &self.subscriber.client
    }
}
