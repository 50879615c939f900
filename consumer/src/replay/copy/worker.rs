//! One worker of a copy: a session at each end, one piece after the other.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, future};
use tokio::sync::mpsc;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::super::displaced;
use super::super::places::{self, Places};
use super::super::session;
use super::super::sources;
use super::super::table::{Name, Table};
use super::super::table_state::{self, Copied};
use super::plan::Plan;
use super::source::Source;
use super::{Broken, Cut, Job, Piece, Shared, Task, begin_reading, copied, indexes, parts, plan, source};
use crate::connect::flow::{self, LARGE, Message, PIECE, Reading};
use crate::connect::{Cancel, End, Session, connect};
use crate::error::{Class, Doing, Error, Result};
use crate::failpoint::failpoint;

pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    /// What is read from, if that is not the provider.
    pub(super) elsewhere: Option<Session>,
    pub(super) provider: Session,
    pub(super) subscriber: Client,
    /// Of all its sessions.
    cancels: Vec<Cancel>,
    done: mpsc::UnboundedSender<(Arc<Job>, Copied)>,
}

/// What came of a task.
enum Step {
    Planned(Vec<Piece>),
    Done,
    /// It is to stop, and what it did is rolled back.
    Stopped,
}

/// How long a task that others are in the way of is put off at least.
const PUT_OFF: Duration = Duration::from_millis(500);

/// After which time the servers are asked once more to cancel what a worker does.
const CANCEL_AGAIN: Duration = Duration::from_millis(200);

/// Works until there is nothing left to do, or until it is to stop.
pub(super) async fn work(shared: Arc<Shared>, done: mpsc::UnboundedSender<(Arc<Job>, Copied)>) -> Result<(), Broken> {
    let outcome = tasks(&shared, &done).await;
    if outcome.is_err() {
        shared.stop();
    }
    outcome
}

async fn tasks(shared: &Arc<Shared>, done: &mpsc::UnboundedSender<(Arc<Job>, Copied)>) -> Result<(), Broken> {
    let mut worker = None;
    while let Some(mut task) = shared.next(worker.is_some()).await {
        let job = Arc::clone(task.job());
        let at_work = match worker.take() {
            Some(at_work) => at_work,
            None => match unless_stopped(shared, start(shared, done)).await.unwrap_or(Ok(None)) {
                Ok(Some(at_work)) => {
                    shared.connected(&task);
                    at_work
                }
                Ok(None) => return Ok(()),
                Err(error) if shared.leave_to_others(task) => {
                    tracing::warn!("{error}; copying goes on with fewer sessions");
                    return Ok(());
                }
                Err(error) => return Err(Broken { error, job: None }),
            },
        };
        // What it waits for may take long. Cancelled half way, its sessions are of no more use.
        let outcome = {
            let mut running = pin!(at_work.run(&task));
            let Some(outcome) = unless_stopped(shared, &mut running).await else {
                at_work.cancel(running).await;
                return Ok(());
            };
            outcome
        };
        match outcome {
            Ok(Step::Planned(pieces)) => shared.planned(&job, pieces),
            Ok(Step::Done) => shared.copied(&job),
            Ok(Step::Stopped) | Err(_) if job.is_given_up() => {
                // They may be inside of a transaction.
                drop(at_work);
                shared.put_off(task);
                continue;
            }
            Ok(Step::Stopped) => return Ok(()),
            Err(Trouble::InTheWay(error)) => {
                // A branch may be behind for hours, and says another tick each time.
                if error.class() == Class::Wait && job.waits.load(Ordering::Relaxed) {
                    tracing::debug!(table = %job.provider.name, "{error}; its copy tries again");
                } else {
                    tracing::warn!(table = %job.provider.name, "{error}; its copy tries again");
                }
                drop(at_work);
                // It has a session of its own.
                unless_stopped(shared, shared.waits(&job, &error)).await;
                shared.put_off(task);
                unless_stopped(shared, tokio::time::sleep(PUT_OFF)).await;
                continue;
            }
            Err(Trouble::Other(error)) if task.goes_aside(&error) => {
                // As it is inside of a COPY at either end.
                drop(at_work);
                shared.put_off(task);
                continue;
            }
            Err(Trouble::Other(error)) => {
                let error = at_work.explained(&job, error).await;
                return Err(Broken { error, job: Some(job) });
            }
        }
        worker = Some(at_work);
    }
    Ok(())
}

/// None: it is time to stop, and the work is dropped wherever it was.
async fn unless_stopped<T>(shared: &Shared, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        done = work => Some(done),
        () = shared.stopped() => None,
    }
}

/// Why a task was not done.
enum Trouble {
    /// Others' locks, or a branch that is behind, before anything was committed. That ends, and nothing else is to begin anew for it: if
    /// it did, the subscriber would be further ahead of the branch each time.
    InTheWay(Error),
    Other(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        if super::is_in_the_way(&error) || error.class() == Class::Wait {
            Self::InTheWay(error)
        } else {
            Self::Other(error)
        }
    }
}

/// Opens the sessions. None: it is to stop.
async fn start(shared: &Arc<Shared>, done: &mpsc::UnboundedSender<(Arc<Job>, Copied)>) -> Result<Option<Worker>> {
    let application_name = format!("pgcascade copy {} {}", shared.who.queue, shared.who.consumer);
    let (provider, subscriber) = future::try_join(
        connect(&shared.config.provider, End::Provider, &application_name),
        connect(&shared.config.subscriber, End::Subscriber, &application_name),
    )
    .await?;
    let mut cancels = vec![provider.cancel(), subscriber.cancel()];
    let subscriber = subscriber.client;
    session::set_up_sessions(&provider.client, &subscriber).await?;
    subscriber
        .batch_execute("set session_replication_role = replica")
        .await
        .doing(|| "set session_replication_role on the subscriber".to_owned())?;
    let elsewhere = match &shared.source {
        Source::Provider => None,
        source => {
            let at = source.at(&shared.config);
            let session = connect(at, End::Node, &application_name).await?;
            session::set_up_sessions(&session.client, &subscriber).await?;
            if matches!(source, Source::Standby(_))
                && !source::wait_for_standby(&provider.client, &session.client, &shared.shutdown).await?
            {
                return Ok(None);
            }
            cancels.push(session.cancel());
            Some(session)
        }
    };
    Ok(Some(Worker {
        shared: Arc::clone(shared),
        elsewhere,
        provider,
        subscriber,
        cancels,
        done: done.clone(),
    }))
}

fn check_stored(table: &Name, read: u64, stored: u64) -> Result<()> {
    if stored == read {
        return Ok(());
    }
    let error = Error::failure(format!(
        "{read} rows of table {table} were read, and {stored} were stored on the subscriber"
    ));
    Err(error.hint("A rule or trigger on the subscriber's table that fires always swallows rows: remove it."))
}

impl Worker {
    /// Has the servers cancel what it does, and waits for their answer: that of a session which was dropped already would go on until
    /// it notices. A request that comes between two statements cancels none.
    async fn cancel(&self, mut running: Pin<&mut impl Future>) {
        loop {
            let ask = async {
                future::join_all(self.cancels.iter().cloned().map(Cancel::send)).await;
                tokio::time::sleep(CANCEL_AGAIN).await;
            };
            tokio::select! {
                _ = &mut running => return,
                () = ask => {}
            }
        }
    }

    async fn run(&self, task: &Task) -> Result<Step, Trouble> {
        let piece = match task {
            Task::Plan(job) => {
                let step = self.plan(job).await?;
                self.shared.goes_on(job).await;
                return Ok(step);
            }
            Task::Copy(piece) => piece,
        };
        let Some(snapshot) = self.copy(piece).await? else {
            return Ok(Step::Stopped);
        };
        self.complete(piece, &snapshot).await.map_err(Trouble::Other)?;
        Ok(Step::Done)
    }

    /// A copy that somebody else completed meanwhile fails in many ways, none of which is the matter.
    async fn explained(&self, job: &Job, error: Error) -> Error {
        if error.is_transient() {
            return error;
        }
        let (s, who, name) = (&self.subscriber, &self.shared.who, &job.provider.name);
        let wanted = async {
            s.batch_execute("rollback")
                .await
                .doing(|| format!("roll back the copy of table {name}"))?;
            table_state::begun(s, who, name).await
        };
        match wanted.await {
            Ok(begun) if begun.is_none_or(|begun| begun.revision != job.revision) => table_state::changed(name),
            _ => error,
        }
    }

    /// Finds out the pieces, and makes what comes before the first.
    async fn plan(&self, job: &Arc<Job>) -> Result<Step> {
        let plan = if job.is_cut {
            Some(plan::load(self, job).await?)
        } else {
            let chunk_bytes = self.shared.config.copy_chunk_bytes;
            // A copy that left some behind would do so again, if the ends do not agree on what a key of theirs says.
            let is_again = displaced::forget(&self.subscriber, &job.subscriber.name).await?;
            indexes::put_aside(&self.subscriber, &self.shared.who, job, chunk_bytes).await?;
            plan::make(self, job, is_again).await?
        };
        let (from, chunks, done_rows) = match plan {
            None => return Ok(Step::Stopped),
            Some(Plan::Whole) => {
                let job = Arc::clone(job);
                return Ok(Step::Planned(vec![Piece {
                    job,
                    chunk: None,
                    aside: false,
                }]));
            }
            Some(Plan::Chunks {
                from,
                chunks,
                done_rows,
            }) => (from, chunks, done_rows),
        };
        if done_rows > 0 {
            let name = job.provider.name.to_string();
            tracing::info!(
                table = name,
                rows = done_rows,
                chunks_left = chunks.len(),
                "going on with its copy"
            );
            self.shared.progress.copied(&name, done_rows, 0);
        }
        // When all were there, and the end of the copy was not recorded, one of no rows leads to that.
        let chunks = if chunks.is_empty() {
            vec![plan::Chunk::none()]
        } else {
            chunks
        };
        let cut = Arc::new(Cut {
            from,
            left: AtomicUsize::new(chunks.len()),
        });
        let piece = |chunk| Piece {
            job: Arc::clone(job),
            chunk: Some((Arc::clone(&cut), chunk)),
            aside: false,
        };
        Ok(Step::Planned(chunks.into_iter().map(piece).collect()))
    }

    /// Copies one piece. Returns the snapshot that it was read with; None: it is to stop, and the piece is rolled back.
    async fn copy(&self, piece: &Piece) -> Result<Option<String>> {
        let job = &piece.job;
        let name = &job.provider.name;
        let s = &self.subscriber;
        s.batch_execute("begin")
            .await
            .doing(|| "begin a transaction on the subscriber".to_owned())?;
        if piece.chunk.is_none() {
            let shared = &self.shared;
            sources::make_room(
                s,
                &shared.who,
                &job.subscriber,
                job.replace_rows,
                shared.config.truncate,
            )
            .await?;
        }
        let snapshot = self.begin_reading(piece).await?;
        let into = if piece.aside {
            displaced::make_aside(s, &job.subscriber, &job.columns).await?;
            displaced::ASIDE.to_owned()
        } else {
            job.subscriber.name.quoted()
        };
        let Some(rows) = self.pump(job, piece, &into).await.map_err(Error::of_a_value)? else {
            s.batch_execute("rollback")
                .await
                .doing(|| format!("roll back the copy of table {name}"))?;
            return Ok(None);
        };
        if piece.aside {
            let keys = &job.other_keys;
            let stored = displaced::store_aside(s, &job.provider, &job.subscriber, &job.columns, keys).await?;
            check_stored(name, rows, stored)?;
        }
        self.reader(piece)
            .client
            .batch_execute("commit")
            .await
            .doing(|| format!("read table {name} of the provider"))?;
        match &piece.chunk {
            None => {
                for index in indexes::later(s, &self.shared.who, job).await? {
                    indexes::make(s, &self.shared.who, name, &index).await?;
                }
                table_state::copied(s, &self.shared.who, name, job.revision, (&snapshot, None), rows).await?;
            }
            Some((_, chunk)) => self.chunk_done(job, chunk, rows, &snapshot).await?,
        }
        s.batch_execute("commit")
            .await
            .doing(|| format!("commit the copy of table {name}"))?;
        failpoint(if piece.chunk.is_some() {
            "after_chunk_commit"
        } else {
            "after_copy_commit"
        });
        Ok(Some(snapshot))
    }

    /// A piece is committed: if it was the last, the copy is complete.
    async fn complete(&self, piece: &Piece, snapshot: &str) -> Result<()> {
        let job = &piece.job;
        let copied = match &piece.chunk {
            None => copied(snapshot, None, None)?,
            Some((cut, _)) if cut.left.fetch_sub(1, Ordering::AcqRel) > 1 => return Ok(()),
            Some((cut, _)) => {
                let (to, places) = self.end(job, &cut.from).await?;
                copied(&cut.from, Some(&to), places)?
            }
        };
        self.analyze(&job.subscriber).await?;
        self.shared.progress.copy_done(&job.provider.name.to_string());
        // Whoever does not listen any more has an error of its own.
        let _ = self.done.send((Arc::clone(job), copied));
        Ok(())
    }

    /// Where a piece is read.
    fn reader(&self, piece: &Piece) -> &Session {
        match &self.elsewhere {
            // Of its blocks the provider says where they are; and a standby does not tell what a whole copy sees.
            Some(_) if piece.stored().is_some() => &self.provider,
            Some(_) if piece.chunk.is_none() && matches!(self.shared.source, Source::Standby(_)) => &self.provider,
            Some(elsewhere) => elsewhere,
            None => &self.provider,
        }
    }

    /// Begins a transaction there, with what the piece is read from locked. Returns the provider's snapshot that it stands for.
    async fn begin_reading(&self, piece: &Piece) -> Result<String> {
        let table = &piece.job.provider;
        let snapshot = self.lock(piece).await?;
        match (&self.shared.source, &self.elsewhere) {
            _ if piece.stored().is_some() => Ok(snapshot),
            (Source::Branch(_, node), Some(branch)) => {
                source::of_branch(
                    &self.provider.client,
                    (&branch.client, node),
                    &table.name,
                    piece.job.position,
                )
                .await
            }
            (Source::Standby(_), Some(standby)) if piece.chunk.is_some() => {
                source::check_standby(&standby.client).await?;
                Ok(snapshot)
            }
            _ => Ok(snapshot),
        }
    }

    async fn lock(&self, piece: &Piece) -> Result<String> {
        let table = &piece.job.provider;
        let reader = &self.reader(piece).client;
        let snapshot = self.lock_rows(piece).await?;
        if let Some(stored) = piece.stored() {
            places::check(reader, piece.partition().unwrap_or(&table.name), stored).await?;
        }
        Ok(snapshot)
    }

    async fn lock_rows(&self, piece: &Piece) -> Result<String> {
        let table = &piece.job.provider;
        let reader = &self.reader(piece).client;
        let Some(partition) = piece.partition() else {
            return begin_reading(reader, &table.name).await;
        };
        let snapshot = begin_reading(reader, partition).await.map_err(|error| {
            if error.sqlstate() == Some(&SqlState::UNDEFINED_TABLE) {
                parts::gone(table, partition)
            } else {
                error
            }
        })?;
        parts::check(reader, table, partition, piece.place()).await?;
        Ok(snapshot)
    }

    /// After the last chunk: makes the indexes that were left for later and records the end of the copy. Returns the
    /// snapshot that sees all that any chunk saw, and where the rows of a table without a key are.
    async fn end(&self, job: &Job, from: &str) -> Result<(String, Option<Places>)> {
        let name = &job.provider.name;
        let what = || format!("end the copy of table {name}");
        let s = &self.subscriber;
        indexes::make_all(&self.shared, s, job).await?;
        s.batch_execute("begin").await.doing(what)?;
        let places = Places::load(s, &self.shared.who, name).await?;
        // What was cut into blocks was read at the provider.
        let source = if places.is_some() {
            &Source::Provider
        } else {
            &self.shared.source
        };
        let to: String = match (source, &self.elsewhere) {
            (Source::Branch(_, node), Some(branch)) => {
                source::of_branch(&self.provider.client, (&branch.client, node), name, job.position).await?
            }
            (Source::Standby(_), Some(standby)) => {
                source::beyond_standby(&self.provider.client, &standby.client).await?
            }
            _ => self
                .provider
                .client
                .query_one("select pg_catalog.pg_current_snapshot()::text", &[])
                .await
                .doing(what)?
                .get(0),
        };
        if let Some(places) = &places {
            // Behind the snapshot: up to there, all places are this root's.
            places
                .check_epoch(&self.provider.client, &self.shared.who.queue, name)
                .await?;
        }
        let who = &self.shared.who;
        let row = s
            .query_one(
                "with gone as (delete from pgcascade_replay.copy_chunk
                                where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4 and place is null
                               returning copied_rows),
                      chunk as (select copied_rows from gone
                                union all
                                select copied_rows from pgcascade_replay.copy_chunk
                                 where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4 and place is not null)
                 select coalesce(sum(copied_rows), 0)::int8, count(*) filter (where copied_rows is null) from chunk",
                &[&who.consumer, &who.queue, &name.schema, &name.table],
            )
            .await
            .doing(what)?;
        if row.get::<_, i64>(1) > 0 {
            return Err(Error::failure(format!(
                "the chunks of table {name} on the subscriber were changed while it was copied"
            ))
            .transient());
        }
        let rows = u64::try_from(row.get::<_, i64>(0)).unwrap_or(0);
        table_state::copied(s, who, name, job.revision, (from, Some(&to)), rows).await?;
        s.batch_execute("commit").await.doing(what)?;
        failpoint("after_copy_commit");
        Ok((to, places))
    }

    async fn chunk_done(&self, job: &Job, chunk: &plan::Chunk, rows: u64, snapshot: &str) -> Result<()> {
        let number = chunk.number;
        if number < 0 {
            return Ok(());
        }
        let name = &job.provider.name;
        let who = &self.shared.who;
        let rows = i64::try_from(rows).unwrap_or(i64::MAX);
        let changed = self
            .subscriber
            .execute(
                "update pgcascade_replay.copy_chunk set copied_rows = $6, snapshot = $7
                  where consumer = $1 and queue = $2 and provider_schema = $3 and provider_table = $4 and chunk = $5
                    and copied_rows is null",
                &[
                    &who.consumer,
                    &who.queue,
                    &name.schema,
                    &name.table,
                    &number,
                    &rows,
                    &chunk.stored.as_ref().map(|_| snapshot),
                ],
            )
            .await
            .doing(|| format!("record a chunk of table {name} on the subscriber"))?;
        if changed == 1 {
            Ok(())
        } else {
            Err(Error::failure(format!(
                "the chunks of table {name} on the subscriber were changed while it was copied"
            ))
            .transient())
        }
    }

    /// Moves the rows and returns how many there were. None: to stop.
    async fn pump(&self, job: &Job, piece: &Piece, into: &str) -> Result<Option<u64>> {
        let from = piece.partition().unwrap_or(&job.provider.name);
        let to = &job.subscriber.name;
        let shown = job.provider.name.to_string();
        let read = || format!("copy table {from} from the provider");
        let write = || format!("copy into table {to} of the subscriber");
        let columns = &job.columns;
        let chunk = piece.chunk.as_ref().map(|(_, chunk)| chunk.condition.as_str());
        let conditions: Vec<&str> = chunk.into_iter().chain(job.condition.as_deref()).collect();
        let partitioned = job.provider.kind == "p" && piece.partition().is_none();
        let selected = format!(
            "select {columns} from {} where {}",
            piece.partition().map_or_else(|| job.provider.own_rows(), Name::quoted),
            if conditions.is_empty() {
                "true".to_owned()
            } else {
                conditions.join(" and ")
            }
        );
        if columns.is_empty() {
            // No list of columns can be empty, and a row of them is a row: as many are made as there are.
            let count = format!("select pg_catalog.count(*) from ({selected}) as t");
            let rows: i64 = self
                .reader(piece)
                .client
                .query_one(&count, &[])
                .await
                .doing(read)?
                .get(0);
            let make = format!("insert into {into} select from pg_catalog.generate_series(1, $1::pg_catalog.int8)");
            let stored = self.subscriber.execute(&make, &[&rows]).await.doing(write)?;
            let rows = u64::try_from(rows).unwrap_or_default();
            check_stored(from, rows, stored)?;
            self.shared.goes_on(job).await;
            self.shared.progress.copied(&shown, rows, 0);
            return Ok(Some(rows));
        }
        // COPY itself does not read a partitioned table.
        let query = if conditions.is_empty() && !partitioned {
            format!("copy {} ({columns}) to stdout (encoding 'UTF8')", from.quoted())
        } else {
            format!("copy ({selected}) to stdout (encoding 'UTF8')")
        };
        let mut source = Reading::begin(self.reader(piece), &query, LARGE).await.doing(read)?;
        let mut sink = pin!(
            self.subscriber
                .copy_in::<_, Bytes>(&format!("copy {into} ({columns}) from stdin (encoding 'UTF8')"))
                .await
                .doing(write)?
        );
        // Both tables are locked.
        self.shared.goes_on(job).await;
        let mut rows = 0;
        let mut gathered = BytesMut::with_capacity(2 * PIECE);
        let mut rows_gathered = 0;
        loop {
            let row = source.next().await.transpose().doing(read)?;
            let at_end = row.is_none();
            let mut large = None;
            if let Some(row) = row {
                // The server sends one row in each message. Small ones go on together: one message, one system call.
                rows_gathered += 1;
                if row.hold.is_some() {
                    large = Some(row);
                } else {
                    gathered.extend_from_slice(&row.bytes);
                }
            }
            if gathered.len() >= PIECE || large.is_some() || at_end {
                rows += rows_gathered;
                let bytes = gathered.len() + large.as_ref().map_or(0, |row| row.bytes.len());
                self.shared
                    .progress
                    .copied(&shown, std::mem::take(&mut rows_gathered), bytes as u64);
                sink.send(gathered.split().freeze()).await.doing(write)?;
                gathered.reserve(2 * PIECE);
                if let Some(Message { bytes, hold: _hold }) = large {
                    flow::send(sink.as_mut(), bytes).await.doing(write)?;
                }
                failpoint("in_copy");
            }
            if at_end {
                break;
            }
            if rows_gathered == 0 && (self.shared.stopping() || job.is_given_up()) {
                // Dropping the sink makes the server end its COPY with an error; the transactions are rolled back by
                // the caller and by the end of the session.
                return Ok(None);
            }
        }
        let stored = sink.finish().await.doing(write)?;
        check_stored(from, rows, stored)?;
        Ok(Some(rows))
    }

    /// The planner must know that the table is not empty before updates look for rows. Without the right to it, a
    /// warning is all.
    async fn analyze(&self, table: &Table) -> Result<()> {
        let analyzed = self
            .subscriber
            .batch_execute(&format!("analyze {}", table.name.quoted()))
            .await
            .doing(|| format!("analyze table {}", table.name));
        match analyzed {
            Err(error) if error.is_transient() => Err(error),
            Err(error) => {
                tracing::warn!(table = %table.name, "{error}");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}
