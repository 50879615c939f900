//! What `replay` is to do, from flags and from the configuration file.
//!
//! In two steps. [`ReplaySettings`] is exactly what somebody wrote, and the same structure for both sources: each field
//! is the flag `--field` and the key `field` of the file, so neither can have what the other lacks. [`ReplayConfig`] is
//! what it comes to: complete, checked, ready to use. Whatever is wrong is a usage error (exit code 2) that names the
//! flag, or the file, line and key. Messages never quote a value of the file, which may hold a password.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use tokio_postgres::Client;

use crate::cascade::{self, Node};
use crate::conninfo::ConnInfo;
use crate::error::{Doing, Error, Result};
use crate::replay::Who;

/// What somebody wrote, on the command line or in the file.
#[derive(Args, Deserialize, Default, Clone)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct ReplaySettings {
    /// The database that changes are captured in. It must have the extension pgcascade. Left out, the subscriber is a node of
    /// the queue's cascade, which knows its provider: replay runs the node's duties, whatever they are.
    #[arg(long, value_name = "CONNINFO")]
    pub(crate) provider: Option<String>,
    /// The database that they are replayed into. It needs no extension, unless it is the root or a branch of a cascade.
    #[arg(long, value_name = "CONNINFO")]
    pub(crate) subscriber: Option<String>,
    /// The queue on the provider that holds the changes; made when missing.
    #[arg(long, value_name = "NAME")]
    pub(crate) queue: Option<String>,
    /// A table to add to those that are replayed, as schema.table; `*` and `?` stand for any characters, and without a
    /// schema it is public's. May be given several times, in the file as a list. `consumer table` shows and changes the set.
    #[arg(long, value_name = "PATTERN")]
    pub(crate) table: Vec<String>,
    /// The consumer's name, under which the provider and the subscriber keep the position. Two subscribers of one queue
    /// need two names [default: replay_ and the subscriber's host, port (unless 5432) and database].
    #[arg(long, value_name = "NAME")]
    pub(crate) consumer: Option<String>,
    /// Make the tables that the subscriber lacks, with columns, defaults, keys, indexes and foreign keys like the provider's.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) create: Option<bool>,
    /// As --create, with the provider's triggers, policies, grants, comments and options of storage, too.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) create_full: Option<bool>,
    /// With --create: make no foreign keys.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) no_foreign_keys: Option<bool>,
    /// Do not copy the rows that are already there: the subscriber's tables hold them, or do not need them.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) no_copy: Option<bool>,
    /// Empty a table on the subscriber before the provider's rows are copied into it. Without this a table that has
    /// rows is refused.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) truncate: Option<bool>,
    /// A table may have rows of other sources, which other queues bring: copy beside them.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) merge: Option<bool>,
    /// Leave the subscriber's sequences alone. Otherwise those of identity and serial columns are kept ahead of the
    /// provider's.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) no_sequences: Option<bool>,
    /// With --until-caught-up: at the end set those sequences to exactly what the provider's are. Stop writers first.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) exact_sequences: Option<bool>,
    /// Exit with 0 as soon as everything up to the provider's last tick at the start is applied.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) until_caught_up: Option<bool>,
    /// Ticks that are there already are applied together, in one transaction, up to about so many events: 1 to
    /// 1000000 [default: 4000]. What one transaction wrote stays together whatever it is; a branch takes each tick by itself.
    #[arg(long, value_name = "EVENTS")]
    pub(crate) batch_events: Option<u64>,
    /// How many bytes of memory replay may fill with events on their way: 8388608 to 4294967296 [default: 67108864]. A
    /// larger value passes all the same, by itself.
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_memory: Option<u64>,
    /// The role of the subscriber as which files of `consumer execute` are executed there. Without it replay stops at one.
    #[arg(long, value_name = "ROLE")]
    pub(crate) execute_as: Option<String>,
    /// How many sessions at each end copy tables at the same time: 1 to 64 [default: 2].
    #[arg(long, value_name = "NUMBER")]
    pub(crate) jobs: Option<u64>,
    /// Tables that are larger than twice this are copied in chunks of about so many bytes, each of which is done once
    /// whatever happens: 65536 to 1099511627776 [default: 67108864].
    #[arg(long, value_name = "BYTES")]
    pub(crate) copy_chunk_bytes: Option<u64>,
    /// Read the rows of tables that are copied from there and not from the provider: a standby of it, or a branch of the
    /// cascade; as a connection string, or the name of a node.
    #[arg(long, value_name = "PLACE")]
    pub(crate) copy_from: Option<String>,
    /// What to do with an event that finds something else on the subscriber than it did on the provider (a row that is
    /// there already or is not there, a missing parent): stop, skip or overwrite. TABLE=POLICY is for the tables that a
    /// pattern like those of --table means, and goes before a policy for all; of several the last counts
    /// [default: stop].
    #[arg(long, value_name = "[TABLE=]POLICY")]
    pub(crate) on_conflict: Vec<String>,
    /// What to do when an event of a table cannot be applied: stop, or park that table and go on without it [default:
    /// stop].
    #[arg(long, value_name = "ACTION")]
    pub(crate) on_error: Option<String>,
    /// Seconds after which the provider is asked for a batch although no notification came: 1 to 3600 [default: 1].
    #[arg(long, value_name = "SECONDS")]
    pub(crate) poll_interval: Option<u64>,
    /// The longest pause, in seconds, between two attempts to connect again after a connection was lost: 1 to 3600
    /// [default: 30].
    #[arg(long, value_name = "SECONDS")]
    pub(crate) retry_max: Option<u64>,
    /// How often, in seconds, a node of a cascade tells the node above which tick it and those below still need: 1 to 3600
    /// [default: 60].
    #[arg(long, value_name = "SECONDS")]
    pub(crate) watermark_interval: Option<u64>,
    /// Of a node of a cascade: a query on its own database that is asked where nodes are, that which it reads from first of all, before the
    /// address that is stored. It has the node's name as $1, gives one text, or no row, and may take five seconds.
    #[arg(long, value_name = "SQL")]
    pub(crate) address_query: Option<String>,
    /// How many bytes the journal of a leaf may have: events that it has applied and that other nodes may lack, for a takeover
    /// after the root was lost; 0: none is kept. Up to 1099511627776 [default: 268435456].
    #[arg(long, value_name = "BYTES")]
    pub(crate) journal_bytes: Option<u64>,
}

/// What an event is answered with that finds something else on the subscriber than it did on the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// Replay ends, or the table is parked: see `--on-error`.
    Stop,
    /// The event is left out.
    Skip,
    /// The row becomes what the event says.
    Overwrite,
}

impl Policy {
    /// As it is written.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Skip => "skip",
            Self::Overwrite => "overwrite",
        }
    }
}

/// How much memory events on their way may fill, and how it is divided: docs/replay.md, "Memory".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MaxMemory(usize);

impl MaxMemory {
    /// What is decoded before it is applied. There are three at once: one is read, one waits, one is applied; and of the last
    /// there may be two copies, encoded for the subscriber.
    pub(crate) fn chunk(self) -> usize {
        self.0 / 16
    }

    /// From so many bytes on that large events take, no further ones are read. More than a chunk, which is sent on
    /// when it is full: whoever fills it never waits for itself.
    pub(crate) fn kept(self) -> usize {
        self.0 / 8
    }

    /// An event of this size leaves buffers behind in the sessions that are worth giving back.
    pub(crate) fn swells(self) -> usize {
        self.0 / 2
    }
}

/// Everything that `replay` needs to know, checked.
#[derive(Debug, Clone)]
pub(crate) struct ReplayConfig {
    /// Where changes are captured.
    pub(crate) provider: ConnInfo,
    /// Where they are replayed.
    pub(crate) subscriber: ConnInfo,
    /// The queue on the provider; made when missing.
    pub(crate) queue: String,
    /// The consumer's name, on the provider and in the position.
    pub(crate) consumer: String,
    /// Patterns of tables that are added at the start: `schema.table`, with `*` and `?`; a pattern without a schema means `public`.
    pub(crate) tables: Vec<String>,
    /// Make tables that the subscriber lacks.
    pub(crate) create: bool,
    /// With what else they have on the provider.
    pub(crate) create_full: bool,
    /// With their foreign keys.
    pub(crate) foreign_keys: bool,
    /// Copy the rows that are there when a table is added.
    pub(crate) copy: bool,
    /// Empty the subscriber's table before it is copied.
    pub(crate) truncate: bool,
    /// Copy beside the rows of other sources.
    pub(crate) merge: bool,
    /// Keep the sequences of the subscriber's columns ahead.
    pub(crate) sequences: bool,
    /// Set them exactly at the end.
    pub(crate) exact_sequences: bool,
    /// Exit 0 once everything up to the last tick at the start is applied.
    pub(crate) until_caught_up: bool,
    /// About how many events ticks are merged up to.
    pub(crate) batch_events: i32,
    /// How much memory events on their way may fill.
    pub(crate) max_memory: MaxMemory,
    /// The role as which files are executed on the subscriber.
    pub(crate) execute_as: Option<String>,
    /// How many sessions at each end copy.
    pub(crate) jobs: usize,
    /// How large a chunk of a copied table is, about.
    pub(crate) copy_chunk_bytes: u64,
    /// Where the rows are read; None: at the provider.
    pub(crate) copy_from: Option<String>,
    /// What conflicts are answered with: a pattern of tables, or none for all, and the policy.
    pub(crate) on_conflict: Vec<(Option<String>, Policy)>,
    /// Whether a table whose events cannot be applied is parked.
    pub(crate) park: bool,
    /// How often the provider is asked for a batch when no notification comes.
    pub(crate) poll_interval: Duration,
    /// The longest pause between two attempts to connect.
    pub(crate) retry_max: Duration,
    /// How often a node tells which tick it still needs.
    pub(crate) watermark_interval: Duration,
    /// What is asked where the nodes of a cascade are.
    pub(crate) address_query: Option<Arc<str>>,
    /// How much of what it has applied a leaf keeps.
    pub(crate) journal_bytes: u64,
    /// The node that the subscriber is, if it is one of the queue's cascade.
    pub(crate) node: Option<Node>,
    /// The node reads what it was given from a leaf's journal, in its own database, which then is the provider.
    pub(crate) donated: bool,
}

/// What there is to replay.
pub(crate) enum Job {
    /// From one database to another.
    Hop(Box<ReplayConfig>),
    /// Whatever the node that the subscriber is has to do.
    Node(Box<NodeConfig>),
}

/// What is known of a node's work before the node is asked who its provider is.
pub(crate) struct NodeConfig {
    settings: ReplaySettings,
    /// All that can be known now: everything but the provider, in whose place stands the node, and the consumer.
    pub(crate) checked: ReplayConfig,
}

impl NodeConfig {
    /// The node, as it is now.
    pub(crate) async fn load(&self, subscriber: &Client) -> Result<Option<Node>> {
        match cascade::load(subscriber, &self.checked.queue).await? {
            Some(node) => node
                .asking(subscriber, self.checked.address_query.clone())
                .await
                .map(Some),
            None => Ok(None),
        }
    }

    /// The hop from its provider to it.
    pub(crate) fn hop(&self, node: &Node) -> Result<ReplayConfig> {
        let Some(location) = &node.provider_location else {
            return Err(Error::failure(format!(
                "{} reads from node \"{}\", and nobody told it where that is",
                node.title(),
                node.provider
            ))
            .hint("Have it read from another one: consumer node change-provider"));
        };
        ConnInfo::parse(location)
            .map_err(|error| error.within(format_args!("the location of node \"{}\"", node.provider)))?;
        let settings = ReplaySettings {
            provider: Some(location.clone()),
            consumer: Some(node.worker.clone()),
            ..self.settings.clone()
        };
        Ok(ReplayConfig {
            node: Some(node.clone()),
            ..settings.resolve()?
        })
    }

    /// The same where what its provider, a leaf, gave it is in its own database (replay/donated.rs).
    pub(crate) fn donated(&self, node: &Node) -> Result<ReplayConfig> {
        let settings = ReplaySettings {
            provider: self.settings.subscriber.clone(),
            consumer: Some(node.worker.clone()),
            no_sequences: Some(true),
            exact_sequences: None,
            ..self.settings.clone()
        };
        Ok(ReplayConfig {
            node: Some(node.clone()),
            donated: true,
            ..settings.resolve()?
        })
    }
}

impl ReplayConfig {
    /// The key of everything that the subscriber keeps for it.
    pub(crate) fn who(&self) -> Who {
        Who {
            consumer: self.consumer.clone(),
            queue: self.queue.clone(),
        }
    }
}

impl ReplaySettings {
    /// These settings, and what is not among them from the file, if there is one.
    pub(crate) fn with_file(self, file: Option<&Path>) -> Result<Self> {
        // What cannot be read will be refused with its flag's name later.
        if holds_password(&self).unwrap_or(false) {
            tracing::warn!(
                "everybody on this machine can read a password on the command line; ~/.pgpass or PGPASSFILE keeps it"
            );
        }
        match file {
            Some(path) => Ok(self.over(read_file(path)?)),
            None => Ok(self),
        }
    }

    fn over(self, file: Self) -> Self {
        Self {
            provider: self.provider.or(file.provider),
            subscriber: self.subscriber.or(file.subscriber),
            queue: self.queue.or(file.queue),
            table: if self.table.is_empty() { file.table } else { self.table },
            consumer: self.consumer.or(file.consumer),
            create: self.create.or(file.create),
            create_full: self.create_full.or(file.create_full),
            no_foreign_keys: self.no_foreign_keys.or(file.no_foreign_keys),
            no_copy: self.no_copy.or(file.no_copy),
            truncate: self.truncate.or(file.truncate),
            merge: self.merge.or(file.merge),
            no_sequences: self.no_sequences.or(file.no_sequences),
            exact_sequences: self.exact_sequences.or(file.exact_sequences),
            until_caught_up: self.until_caught_up.or(file.until_caught_up),
            batch_events: self.batch_events.or(file.batch_events),
            max_memory: self.max_memory.or(file.max_memory),
            jobs: self.jobs.or(file.jobs),
            execute_as: self.execute_as.or(file.execute_as),
            copy_chunk_bytes: self.copy_chunk_bytes.or(file.copy_chunk_bytes),
            copy_from: self.copy_from.or(file.copy_from),
            on_conflict: if self.on_conflict.is_empty() {
                file.on_conflict
            } else {
                self.on_conflict
            },
            on_error: self.on_error.or(file.on_error),
            poll_interval: self.poll_interval.or(file.poll_interval),
            retry_max: self.retry_max.or(file.retry_max),
            watermark_interval: self.watermark_interval.or(file.watermark_interval),
            address_query: self.address_query.or(file.address_query),
            journal_bytes: self.journal_bytes.or(file.journal_bytes),
        }
    }

    /// What these settings ask for; everything is checked that can be.
    pub(crate) fn job(self) -> Result<Job> {
        if self.provider.is_some() || self.subscriber.is_none() {
            if self.address_query.is_some() {
                return Err(
                    Error::usage("--address-query is for a node of a cascade, and --provider is given")
                        .hint("Leave one of the two out."),
                );
            }
            return self.resolve().map(|config| Job::Hop(Box::new(config)));
        }
        if self.consumer.is_some() {
            return Err(Error::usage("--consumer is given and --provider is missing").hint(
                "Give both; or leave out both, if the subscriber is a node of a cascade, which has a name of its own.",
            ));
        }
        let checked = Self {
            provider: self.subscriber.clone(),
            ..self.clone()
        }
        .resolve()?;
        Ok(Job::Node(Box::new(NodeConfig {
            settings: self,
            checked,
        })))
    }

    /// The complete configuration, or what is missing or wrong.
    pub(crate) fn resolve(self) -> Result<ReplayConfig> {
        let provider = conninfo("provider", self.provider.as_deref())?;
        let subscriber = conninfo("subscriber", self.subscriber.as_deref())?;
        let queue = name("queue", self.queue.as_deref())?;
        let consumer = match self.consumer.as_deref() {
            consumer @ Some(_) => name("consumer", consumer)?,
            None => subscriber.default_consumer(),
        };
        for pattern in &self.table {
            name("table", Some(pattern))?;
        }
        let no_copy = self.no_copy.unwrap_or(false);
        let truncate = self.truncate.unwrap_or(false);
        if no_copy && truncate {
            return Err(Error::usage("--no-copy and --truncate contradict each other")
                .hint("--truncate empties a table in order to copy it; leave one of the two out."));
        }
        let sequences = !self.no_sequences.unwrap_or(false);
        let exact_sequences = self.exact_sequences.unwrap_or(false);
        let until_caught_up = self.until_caught_up.unwrap_or(false);
        if exact_sequences && !sequences {
            return Err(
                Error::usage("--exact-sequences and --no-sequences contradict each other")
                    .hint("Leave one of the two out."),
            );
        }
        if exact_sequences && !until_caught_up {
            return Err(Error::usage("--exact-sequences needs --until-caught-up")
                .hint("It sets the sequences at the end; a replay that goes on keeps them ahead."));
        }
        // Not many more by itself: a row that one transaction updates n times costs n squared, as each update passes the versions
        // before it, and every queue has its hot rows.
        let batch_events = within("batch-events", self.batch_events.unwrap_or(4_000), 1, 1_000_000)?;
        let max_memory = within("max-memory", self.max_memory.unwrap_or(64 << 20), 8 << 20, 4 << 30)?;
        let seconds = |flag, given: Option<u64>, default| {
            within(flag, given.unwrap_or(default), 1, 3600).map(Duration::from_secs)
        };
        Ok(ReplayConfig {
            provider,
            subscriber,
            queue,
            consumer,
            tables: self.table,
            create: self.create.unwrap_or(false) || self.create_full.unwrap_or(false),
            create_full: self.create_full.unwrap_or(false),
            foreign_keys: !self.no_foreign_keys.unwrap_or(false),
            copy: !no_copy,
            truncate,
            merge: self.merge.unwrap_or(false),
            sequences,
            exact_sequences,
            until_caught_up,
            batch_events: i32::try_from(batch_events).unwrap_or(4_000),
            max_memory: MaxMemory(usize::try_from(max_memory).unwrap_or(64 << 20)),
            execute_as: match self.execute_as.as_deref() {
                role @ Some(_) => Some(name("execute-as", role)?),
                None => None,
            },
            jobs: usize::try_from(within("jobs", self.jobs.unwrap_or(2), 1, 64)?).unwrap_or(1),
            copy_chunk_bytes: within(
                "copy-chunk-bytes",
                self.copy_chunk_bytes.unwrap_or(64 << 20),
                64 << 10,
                1 << 40,
            )?,
            copy_from: match self.copy_from.as_deref() {
                place @ Some(_) => Some(name("copy-from", place)?),
                None => None,
            },
            on_conflict: self
                .on_conflict
                .iter()
                .map(|text| on_conflict(text))
                .collect::<Result<_>>()?,
            park: match self.on_error.as_deref() {
                None | Some("stop") => false,
                Some("park") => true,
                Some(_) => return Err(Error::usage("--on-error is neither stop nor park")),
            },
            poll_interval: seconds("poll-interval", self.poll_interval, 1)?,
            retry_max: seconds("retry-max", self.retry_max, 30)?,
            watermark_interval: seconds("watermark-interval", self.watermark_interval, 60)?,
            address_query: self.address_query.map(Into::into),
            journal_bytes: within("journal-bytes", self.journal_bytes.unwrap_or(256 << 20), 0, 1 << 40)?,
            node: None,
            donated: false,
        })
    }
}

/// The connection string of `--flag`, which must be there.
pub(crate) fn conninfo(flag: &str, text: Option<&str>) -> Result<ConnInfo> {
    let text = text.ok_or_else(|| missing(flag, "CONNINFO"))?;
    ConnInfo::parse(text).map_err(|error| error.within(format_args!("--{flag}")))
}

fn missing(flag: &str, value: &str) -> Error {
    Error::usage(format!("--{flag} is missing")).hint(format!(
        "Give --{flag} {value}, or the key {flag} in the file of --config."
    ))
}

/// `POLICY` or `TABLE=POLICY`. A table's name may hold an equals sign, a policy does not.
fn on_conflict(text: &str) -> Result<(Option<String>, Policy)> {
    let (table, policy) = match text.rsplit_once('=') {
        Some((table, policy)) => (Some(name("on-conflict", Some(table))?), policy),
        None => (None, text),
    };
    [Policy::Stop, Policy::Skip, Policy::Overwrite]
        .into_iter()
        .find(|known| known.name() == policy)
        .map(|policy| (table, policy))
        .ok_or_else(|| {
            Error::usage("--on-conflict: the policy is none of stop, skip and overwrite")
                .hint("Write --on-conflict POLICY, or --on-conflict TABLE=POLICY for some tables.")
        })
}

/// The name of `--flag`, which must be there and one that the server can store: not empty, and without the byte 0.
pub(crate) fn name(flag: &str, text: Option<&str>) -> Result<String> {
    let text = text.ok_or_else(|| missing(flag, "NAME"))?;
    if text.is_empty() {
        return Err(Error::usage(format!("--{flag} is empty")));
    }
    if text.contains('\0') {
        return Err(Error::usage(format!("--{flag} holds a zero byte, which no name can")));
    }
    Ok(text.to_owned())
}

fn within(flag: &str, value: u64, least: u64, most: u64) -> Result<u64> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(Error::usage(format!(
        "--{flag} is {value}, but must be from {least} to {most}"
    )))
}

/// Reads the file, and refuses one that gives a password away.
fn read_file(path: &Path) -> Result<ReplaySettings> {
    let shown = path.display();
    let usage = |error: Error| Error::usage(error.to_string());
    let mut file = File::open(path)
        .doing(|| format!("open the configuration file {shown}"))
        .map_err(usage)?;
    // Of the open file, so that it is the one that is read even if somebody puts another in its place.
    let mode = file
        .metadata()
        .doing(|| format!("look at the configuration file {shown}"))
        .map_err(usage)?
        .mode();
    let mut text = String::new();
    file.read_to_string(&mut text)
        .doing(|| format!("read the configuration file {shown}"))
        .map_err(usage)?;
    let settings = parse_file(&text).map_err(|error| error.within(shown.to_string()))?;
    if mode & 0o077 != 0 && holds_password(&settings)? {
        return Err(Error::usage(format!(
            "{shown} holds a password and others than its owner may read it (mode {:03o})",
            mode & 0o777
        ))
        .hint(format!("Run: chmod 600 '{shown}'. Or put the password into ~/.pgpass.")));
    }
    Ok(settings)
}

fn holds_password(settings: &ReplaySettings) -> Result<bool> {
    for text in [&settings.provider, &settings.subscriber].into_iter().flatten() {
        if crate::conninfo::mentions_password(text)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The file's keys; the error names line and key, but no value.
fn parse_file(text: &str) -> Result<ReplaySettings> {
    toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(text.len(), |span| span.start.min(text.len()));
        let line = text.get(..at).unwrap_or(text).matches('\n').count() + 1;
        let message = without_value(error.message());
        match key_at(text, line) {
            Some(key) => Error::usage(format!("line {line}: {key}: {message}")),
            None => Error::usage(format!("line {line}: {message}")),
        }
    })
}

/// The key that a line belongs to: its own, or that of the list that it is a part of.
fn key_at(text: &str, line: usize) -> Option<&str> {
    let lines: Vec<&str> = text.lines().take(line).collect();
    lines.iter().rev().find_map(|line| {
        let (key, _) = line.split_once('=')?;
        let key = key.trim().trim_matches('"');
        let is_key = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        is_key.then_some(key)
    })
}

/// serde quotes the value that it could not use; that may be a connection string.
fn without_value(message: &str) -> String {
    let message = message.trim().replace('\n', ", ");
    for start in ["invalid type: ", "invalid value: "] {
        if let Some(rest) = message.strip_prefix(start)
            && let Some(kind) = ["string", "integer", "floating point", "boolean"]
                .iter()
                .find(|kind| rest.starts_with(**kind))
            && let Some(expected) = rest.rfind(", expected ")
        {
            return format!("{start}{kind}{}", rest.get(expected..).unwrap_or(""));
        }
    }
    message
}

#[cfg(test)]
mod tests;
