//! A session at each end, and the pair of snapshots that rows are compared in.
//!
//! [`Ends::begin`] makes such a pair: first the subscriber's, which says at which tick it is, then the provider's, which
//! therefore sees everything that the tick sees. The tables are locked (ACCESS SHARE, as any SELECT does) before the
//! snapshots are taken, as a TRUNCATE between the two would leave rows out that the snapshot should see. For a look at events
//! the event tables are locked as well: rotation forgets a tick in the transaction that empties a table of its events, so
//! while the tick is there, so are all events after it.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::{TryStreamExt, future};
use tokio_postgres::{Client, Row};
use wire::event_type::{self, Operation};
use wire::snapshot::Snapshot;
use wire::urlenc;

use super::shape::Shape;
use super::{Mend, Scope};
use crate::connect::{End, connect};
use crate::error::{Doing, Error, Result};
use crate::replay::Name;

/// One worker's sessions.
pub(super) struct Ends {
    pub(super) provider: Client,
    pub(super) subscriber: Client,
    /// Whether they are inside of a transaction, as to end none is a warning in the server's log.
    provider_began: AtomicBool,
    subscriber_began: AtomicBool,
}

/// A transaction at each end.
pub(super) struct Moment {
    /// Where the subscriber is.
    pub(super) tick: i64,
    /// What of the provider is in its table; only where events are wanted.
    sees: Option<Snapshot>,
    /// Some of what came after that may be, too.
    pub(super) settling: bool,
}

/// What the subscriber's transaction says of a table.
struct Position {
    tick: i64,
    /// The snapshots of a copy that replay has not caught up with, see table_state.rs.
    copied: Option<(Snapshot, Option<Snapshot>)>,
}

/// The first event of a row that the subscriber has not applied yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct First {
    id: i64,
    /// It makes the row, so there was none; else there was one.
    pub(super) inserts: bool,
}

/// Rows that have such events.
pub(super) enum Flying {
    /// All that are in the list.
    These(HashMap<Vec<String>, First>),
    /// Any may.
    Any,
}

/// Both connections are given at most this long a wait for a lock, as replay may be waiting for ours meanwhile.
const LOCK_TIMEOUT: &str = "set lock_timeout = '5s'";

impl Ends {
    pub(super) async fn open(scope: &Scope) -> Result<Self> {
        let name = format!("consumer compare {} {}", scope.who.queue, scope.who.consumer);
        let (provider, subscriber) = future::try_join(
            connect(&scope.provider, End::Provider, &name),
            connect(&scope.subscriber, End::Subscriber, &name),
        )
        .await?;
        let ends = Self {
            provider: provider.client,
            subscriber: subscriber.client,
            provider_began: AtomicBool::new(false),
            subscriber_began: AtomicBool::new(false),
        };
        for (client, end) in [(&ends.provider, End::Provider), (&ends.subscriber, End::Subscriber)] {
            client
                .batch_execute(LOCK_TIMEOUT)
                .await
                .doing(|| format!("set up the session on the {end}"))?;
        }
        if matches!(scope.mend, Mend::Apply) {
            ends.subscriber
                .batch_execute("set session_replication_role = replica")
                .await
                .doing(|| "set session_replication_role on the subscriber".to_owned())?;
        }
        Ok(ends)
    }

    /// Whether one of the connections is lost.
    pub(super) fn closed(&self) -> bool {
        self.provider.is_closed() || self.subscriber.is_closed()
    }

    /// The tick that the subscriber is at now.
    pub(super) async fn at(&self, scope: &Scope) -> Result<Option<i64>> {
        let row = self
            .subscriber
            .query_opt(
                "select tick from pgcascade_replay.position where queue = $1 and consumer = $2",
                &[&scope.who.queue, &scope.who.consumer],
            )
            .await
            .doing(|| "read the position on the subscriber".to_owned())?;
        Ok(row.and_then(|row| row.get(0)))
    }

    /// One row from each end.
    pub(super) async fn both(&self, sql: &str, what: &str) -> Result<(Row, Row)> {
        let ask = async |client: &Client, end: End| {
            client
                .query_one(sql, &[])
                .await
                .doing(|| format!("{what} on the {end}"))
        };
        future::try_join(
            ask(&self.provider, End::Provider),
            ask(&self.subscriber, End::Subscriber),
        )
        .await
    }

    /// Begins a transaction at each end, see above.
    pub(super) async fn begin(&self, scope: &Scope, shape: &Shape, events: bool) -> Result<Moment> {
        let what = || format!("begin to read table {} of the subscriber", shape.subscriber.name);
        self.subscriber_began.store(true, Ordering::Relaxed);
        self.subscriber
            .batch_execute(&begin(&[shape.subscriber.name.quoted()]))
            .await
            .doing(what)?;
        let position = self.position(scope, shape).await?;
        self.begin_on_provider(scope, shape, position, events).await
    }

    /// The same with a transaction that may write to the subscriber, and that keeps replay at its tick: replay locks the
    /// position in each of its transactions, before any row.
    pub(super) async fn begin_mending(&self, scope: &Scope, shape: &Shape) -> Result<Moment> {
        let what = || "lock the position on the subscriber".to_owned();
        self.subscriber_began.store(true, Ordering::Relaxed);
        // A batch that is being applied may take its time.
        self.subscriber
            .batch_execute("begin isolation level read committed, read write; set local lock_timeout = '60s'")
            .await
            .doing(what)?;
        self.subscriber
            .query(
                "select from pgcascade_replay.position where queue = $1 and consumer = $2 for update",
                &[&scope.who.queue, &scope.who.consumer],
            )
            .await
            .doing(what)?;
        self.subscriber
            .batch_execute("set local lock_timeout = '5s'")
            .await
            .doing(what)?;
        let position = self.position(scope, shape).await?;
        self.begin_on_provider(scope, shape, position, true).await
    }

    async fn begin_on_provider(
        &self,
        scope: &Scope,
        shape: &Shape,
        position: Position,
        events: bool,
    ) -> Result<Moment> {
        let mut locks = vec![shape.provider.name.quoted()];
        if events {
            locks.push(scope.events.clone());
        }
        self.provider_began.store(true, Ordering::Relaxed);
        self.provider
            .batch_execute(&begin(&locks))
            .await
            .doing(|| format!("begin to read table {} of the provider", shape.provider.name))?;
        let mut moment = Moment {
            tick: position.tick,
            sees: None,
            settling: false,
        };
        if events {
            let mut sees = self.tick(scope, position.tick).await?;
            if let Some((from, to)) = position.copied {
                moment.settling = to.is_some_and(|to| !sees.includes(&to));
                // One of the two shows all that the other does.
                if from.includes(&sees) {
                    sees = from;
                }
            }
            moment.sees = Some(sees);
        }
        Ok(moment)
    }

    /// Where the subscriber's transaction is, if its table is what the provider had at some moment.
    async fn position(&self, scope: &Scope, shape: &Shape) -> Result<Position> {
        let name = &shape.provider.name;
        let what = || "read the position on the subscriber".to_owned();
        let row = self
            .subscriber
            .query_opt(
                include_str!("position.sql"),
                &[&scope.who.queue, &scope.who.consumer, &name.schema, &name.table],
            )
            .await
            .doing(what)?
            .ok_or_else(|| Error::failure(format!("table {name} is not replayed any more")))?;
        if row.try_get::<_, &str>(1).doing(what)? != scope.identity {
            return Err(Error::failure("the subscriber replays from another provider now")
                .hint("Compare again, with that one as --provider."));
        }
        let snapshot = |at: usize| {
            row.try_get::<_, Option<&str>>(at)
                .doing(what)?
                .map(str::parse::<Snapshot>)
                .transpose()
                .map_err(|error| Error::failure(format!("the state of table {name} cannot be read: {error}")))
        };
        match (row.try_get(0).doing(what)?, row.try_get::<_, &str>(2).doing(what)?) {
            (Some(tick), "ok") => Ok(Position { tick, copied: None }),
            (Some(tick), "catching-up") => Ok(Position {
                tick,
                copied: snapshot(3)?
                    .map(|from| Ok::<_, Error>((from, snapshot(4)?)))
                    .transpose()?,
            }),
            (_, state) => Err(Error::failure(format!(
                "table {name} is {state}, so it is not what the provider had at any moment"
            ))
            .hint("Compare it again when `consumer status` shows it as ok.")),
        }
    }

    async fn tick(&self, scope: &Scope, tick: i64) -> Result<Snapshot> {
        let row = self
            .provider
            .query_opt(
                "select tick_snapshot::text from pgq.tick where tick_queue = $1 and tick_id = $2",
                &[&scope.queue_id, &tick],
            )
            .await
            .doing(|| format!("look up tick {tick} on the provider"))?;
        let Some(row) = row else {
            // The subscriber has moved on, and rotation came after it.
            return Err(Error::failure(format!(
                "the provider has no tick {tick} any more, at which the subscriber is"
            ))
            .transient());
        };
        row.get::<_, &str>(0)
            .parse()
            .map_err(|error| Error::failure(format!("the snapshot of tick {tick} cannot be read: {error}")))
    }

    /// Commits what was done to the subscriber.
    pub(super) async fn commit(&self, shape: &Shape) -> Result<()> {
        self.subscriber_began.store(false, Ordering::Relaxed);
        self.subscriber
            .batch_execute("commit")
            .await
            .doing(|| format!("commit the repair of table {}", shape.subscriber.name))
    }

    /// Ends the transactions that are open, whatever became of them.
    pub(super) async fn end(&self) -> Result<()> {
        for (client, began, end) in [
            (&self.provider, &self.provider_began, End::Provider),
            (&self.subscriber, &self.subscriber_began, End::Subscriber),
        ] {
            if !began.swap(false, Ordering::Relaxed) {
                continue;
            }
            client
                .batch_execute("rollback")
                .await
                .doing(|| format!("end a transaction on the {end}"))?;
        }
        Ok(())
    }

    /// The same question to both ends, at the same time.
    pub(super) async fn ask(&self, shape: &Shape, provider: &str, subscriber: &str) -> Result<(Vec<Row>, Vec<Row>)> {
        let ask = async |client: &Client, sql: &str, end: End, name| {
            client
                .query(sql, &[])
                .await
                .doing(|| format!("read table {name} of the {end}"))
        };
        future::try_join(
            ask(&self.provider, provider, End::Provider, &shape.provider.name),
            ask(&self.subscriber, subscriber, End::Subscriber, &shape.subscriber.name),
        )
        .await
    }

    /// The names that events of a table have: its own, and those of the partitions that it has, or had when replay looked.
    async fn names_of_events(&self, scope: &Scope, shape: &Shape) -> Result<Vec<String>> {
        let name = &shape.provider.name;
        let mut names = vec![name.clone()];
        if shape.provider_table.kind == "p" {
            let what = |end| move || format!("read the partitions of table {name} of the {end}");
            let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
                [&scope.who.queue, &scope.who.consumer, &name.schema, &name.table];
            let (there, known) = future::join(
                self.provider
                    .query(include_str!("partitions.sql"), &[&shape.provider_table.oid]),
                self.subscriber.query(
                    "select partition_schema, partition_table from pgcascade_replay.partition
                      where queue = $1 and consumer = $2 and provider_schema = $3 and provider_table = $4",
                    &parameters,
                ),
            )
            .await;
            let (there, known) = (there.doing(what(End::Provider))?, known.doing(what(End::Subscriber))?);
            names.extend(
                there
                    .iter()
                    .chain(&known)
                    .map(|row| Name::new(row.get::<_, &str>(0), row.get::<_, &str>(1))),
            );
        }
        names.sort();
        names.dedup();
        Ok(names
            .iter()
            .map(|name| String::from_utf8_lossy(&name.on_the_wire()).into_owned())
            .collect())
    }

    /// What events are read from, as the snapshot of the provider's transaction has it: the queue may have been told to have packs since.
    async fn event_source(&self, scope: &Scope) -> Result<String> {
        let what = || format!("look up how the events of queue \"{}\" are stored", scope.who.queue);
        // PgQ's own has no such function.
        let is_ours = "select pg_catalog.to_regproc('pgcascade.event_source') is not null";
        if !self
            .provider
            .query_one(is_ours, &[])
            .await
            .doing(what)?
            .get::<_, bool>(0)
        {
            return Ok(scope.events.clone());
        }
        let source = "select pgcascade.event_source($1)";
        let row = self.provider.query_one(source, &[&scope.queue_id]).await.doing(what)?;
        row.get::<_, Option<String>>(0)
            .ok_or_else(|| Error::failure(format!("queue \"{}\" of the provider was dropped", scope.who.queue)))
    }

    /// Which of these rows have events that the provider's transaction sees and the moment's tick does not.
    pub(super) async fn flying(
        &self,
        scope: &Scope,
        shape: &Shape,
        moment: &Moment,
        wanted: &HashSet<&Vec<String>>,
    ) -> Result<Flying> {
        let Some(sees) = &moment.sees else {
            return Ok(Flying::Any);
        };
        let what = || format!("read queue \"{}\"", scope.who.queue);
        let names = self.names_of_events(scope, shape).await?;
        let number = |xid: u64| i64::try_from(xid).unwrap_or(i64::MAX);
        let in_progress: Vec<i64> = sees.in_progress.iter().copied().map(number).collect();
        // By value, and not a range from xmin on: that one may be as old as the oldest transaction that was open.
        let sql = format!(
            "select ev_type, ev_data, ev_id from {0} e where ev_txid >= $1 and ev_extra1 = any ($3)
             union all
             select ev_type, ev_data, ev_id from {0} e where ev_txid = any ($2) and ev_extra1 = any ($3)",
            self.event_source(scope).await?
        );
        let statement = self.provider.prepare(&sql).await.doing(what)?;
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 3] = [&number(sees.xmax), &in_progress, &names];
        let mut rows = pin!(self.provider.query_raw(&statement, parameters).await.doing(what)?);
        let mut firsts = Some(HashMap::new());
        while let Some(row) = rows.try_next().await.doing(what)? {
            let kind: &str = row.try_get::<_, Option<&str>>(0).doing(what)?.unwrap_or_default();
            let first = First {
                id: row.try_get(2).doing(what)?,
                inserts: kind.starts_with('I'),
            };
            match (identity(scope, shape, kind, row.try_get(1).doing(what)?), &mut firsts) {
                (Some(identity), Some(firsts)) if wanted.contains(&identity) => {
                    let before = firsts.entry(identity).or_insert(first);
                    if first.id < before.id {
                        *before = first;
                    }
                }
                (None, _) => firsts = None,
                (Some(_), _) => {}
            }
        }
        Ok(firsts.map_or(Flying::Any, Flying::These))
    }
}

fn begin(tables: &[String]) -> String {
    let locks: Vec<String> = tables
        .iter()
        .map(|table| format!("; lock table {table} in access share mode"))
        .collect();
    format!("begin isolation level repeatable read, read only{}", locks.concat())
}

/// The row that an event changes; None if it may be any.
fn identity(scope: &Scope, shape: &Shape, kind: &str, data: Option<&str>) -> Option<Vec<String>> {
    let parsed = event_type::parse(kind.as_bytes()).ok()?;
    // A trigger may have been told of another key, which stays when the table's changes.
    let by_our_key = parsed.key.len() == shape.key.len()
        && parsed
            .key
            .iter()
            .all(|name| shape.key.iter().any(|ours| ours.as_bytes() == &**name));
    if parsed.operation == Operation::Truncate || !by_our_key || !shape.keys_are_texts() {
        return None;
    }
    let mut texts: Vec<Option<String>> = vec![None; shape.key.len()];
    for pair in urlenc::pairs(data?.as_bytes()) {
        let (name, value) = pair.ok()?;
        if let Some(at) = shape.key.iter().position(|ours| ours.as_bytes() == &*name) {
            let value = value?;
            if !scope.utf8 && !value.is_ascii() {
                return None;
            }
            texts[at] = Some(String::from_utf8(value.into_owned()).ok()?);
        }
    }
    Some(shape.identity(texts.into_iter().collect::<Option<_>>()?))
}

/// Rows of [`super::shape::Side::sum`]: how many, and their sum.
pub(super) fn sum(rows: &[Row]) -> Result<(u64, String)> {
    let what = || "read a checksum".to_owned();
    let Some(row) = rows.first() else {
        return Err(Error::failure("a checksum came without a row"));
    };
    Ok((
        u64::try_from(row.try_get::<_, i64>(0).doing(what)?).unwrap_or(0),
        row.try_get(1).doing(what)?,
    ))
}
