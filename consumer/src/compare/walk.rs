//! Gives the steps to the workers, and gathers what they find.
//!
//! The steps that are to be done lie on one stack, so that a part is finished before the next one is begun, and what waits is
//! bounded by the depth and not by the size of a table. A worker is a pair of sessions; a step that failed for a reason that
//! may be gone (a lock, a deadlock, a lost connection) is put back, some times. Any other failure ends its table, and the
//! others go on.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::ends::Ends;
use super::piece::{self, Found, Step};
use super::report::TableReport;
use super::script::Script;
use super::shape::{Part, Shape};
use super::{Mend, Scope};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::shutdown::Shutdown;

/// How often a step is tried.
const ATTEMPTS: u32 = 8;

/// How often the position is looked at while rows wait for it.
const POLL: Duration = Duration::from_millis(10);

/// A table that is being compared.
pub(super) struct Table {
    pub(super) shape: Arc<Shape>,
    pub(super) report: TableReport,
    /// Rows to be looked up again.
    flying: Vec<(Vec<String>, Part)>,
    /// Steps that are not done.
    left: usize,
    name: String,
}

impl Table {
    pub(super) fn new(shape: Shape, report: TableReport) -> Self {
        Self {
            name: report.table.clone(),
            shape: Arc::new(shape),
            report,
            flying: Vec::new(),
            left: 0,
        }
    }
}

struct Job {
    table: usize,
    step: Step,
    attempt: u32,
}

type Done = (Job, Option<Ends>, Result<Found>);

/// Compares tables.
pub(super) struct Walk<'a> {
    scope: Arc<Scope>,
    pub(super) tables: Vec<Table>,
    stack: Vec<Job>,
    idle: Vec<Ends>,
    shutdown: &'a Shutdown,
    progress: &'a Progress,
    /// The oldest tick of the last looks.
    tick: i64,
    /// Where a repair is written down.
    pub(super) script: Option<Script>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(scope: Arc<Scope>, first: Ends, shutdown: &'a Shutdown, progress: &'a Progress) -> Self {
        Self {
            scope,
            tables: Vec::new(),
            stack: Vec::new(),
            idle: vec![first],
            shutdown,
            progress,
            tick: i64::MAX,
            script: None,
        }
    }

    /// The sessions that are there before any work is done.
    pub(super) fn first(&self) -> Result<&Ends> {
        self.idle.first().ok_or_else(|| Error::failure("no session is open"))
    }

    /// Opens the sessions of the other workers. Where there is no room for them, there are fewer.
    pub(super) async fn open(&mut self) -> Result<()> {
        while self.idle.len() < self.scope.jobs {
            match Ends::open(&self.scope).await {
                Ok(ends) => self.idle.push(ends),
                Err(error) => {
                    tracing::warn!("{error}; comparing goes on with fewer sessions");
                    break;
                }
            }
        }
        Ok(())
    }

    /// Puts steps on the stack, the first on top.
    fn push(&mut self, table: usize, steps: Vec<Step>) {
        self.tables[table].left += steps.len();
        self.stack.extend(steps.into_iter().rev().map(|step| Job {
            table,
            step,
            attempt: 1,
        }));
    }

    /// Compares all tables, each beginning with these parts.
    pub(super) async fn compare(&mut self, parts: Vec<Vec<Part>>) -> Result<()> {
        for (table, parts) in parts.into_iter().enumerate().rev() {
            self.push(table, parts.into_iter().map(Step::Sum).collect());
        }
        self.work().await?;
        self.settle().await
    }

    /// Looks the rows up again whose events were on their way, whenever the subscriber has moved on.
    async fn settle(&mut self) -> Result<()> {
        let deadline = Instant::now() + self.scope.wait;
        while self.tables.iter().any(|table| !table.flying.is_empty()) {
            if !self.moved_on(deadline).await? {
                break;
            }
            self.tick = i64::MAX;
            for table in 0..self.tables.len() {
                let flying = std::mem::take(&mut self.tables[table].flying);
                let mut steps = Vec::new();
                for same in flying.chunk_by(|(_, one), (_, other)| one == other) {
                    let suspects = same.iter().map(|(identity, _)| identity.clone()).collect();
                    steps.extend(piece::looks(&self.tables[table].shape, suspects, &same[0].1));
                }
                self.push(table, steps);
            }
            self.work().await?;
        }
        for table in &mut self.tables {
            table.report.unsettled = table.flying.len() as u64;
        }
        Ok(())
    }

    /// Waits until the subscriber is past the tick of the last looks. False at the deadline.
    async fn moved_on(&mut self, deadline: Instant) -> Result<bool> {
        loop {
            if self.shutdown.requested() {
                return Err(stopped());
            }
            if self.first()?.closed() {
                self.idle[0] = Ends::open(&self.scope).await?;
            }
            if self.first()?.at(&self.scope).await? != Some(self.tick) {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Does what is on the stack.
    async fn work(&mut self) -> Result<()> {
        let mut running: JoinSet<Done> = JoinSet::new();
        loop {
            while !self.shutdown.requested()
                && let Some(ends) = self.idle.pop()
            {
                let Some(job) = self.stack.pop() else {
                    self.idle.push(ends);
                    break;
                };
                let table = &self.tables[job.table];
                if table.report.error.is_some() {
                    self.idle.push(ends);
                    continue;
                }
                let (scope, shape) = (Arc::clone(&self.scope), Arc::clone(&table.shape));
                running.spawn(step(scope, shape, ends, job));
            }
            let Some(done) = running.join_next().await else { break };
            let (job, ends, outcome) =
                done.map_err(|error| Error::failure(format!("a task that compares ended: {error}")))?;
            match ends {
                Some(ends) => self.idle.push(ends),
                None => {
                    // The connection is lost. Without any there is nothing to go on with.
                    match Ends::open(&self.scope).await {
                        Ok(ends) => self.idle.push(ends),
                        Err(error) if self.idle.is_empty() && running.is_empty() => return Err(error),
                        Err(error) => tracing::warn!("{error}; comparing goes on with fewer sessions"),
                    }
                }
            }
            self.gather(job, outcome)?;
        }
        if self.shutdown.requested() {
            return Err(stopped());
        }
        Ok(())
    }

    fn gather(&mut self, mut job: Job, outcome: Result<Found>) -> Result<()> {
        let table = &mut self.tables[job.table];
        let found = match outcome {
            Ok(found) => found,
            Err(error) if error.is_transient() && job.attempt < ATTEMPTS => {
                tracing::debug!(table = table.name, attempt = job.attempt, "{error}; it is tried again");
                job.attempt += 1;
                self.stack.insert(0, job);
                return Ok(());
            }
            Err(error) => {
                table.report.failed(&error);
                self.progress.copy_done(&table.name);
                return Ok(());
            }
        };
        table.left -= 1;
        table.report.rows += found.rows;
        table.report.rows_read += found.read;
        self.progress.copied(&table.name, found.rows, 0);
        let looked = matches!(job.step, Step::Look(..));
        if looked && !matches!(self.scope.mend, Mend::No) {
            // They are counted when they are mended, as they may be gone by then.
            let suspects: Vec<Vec<String>> = found.differences.into_iter().map(|one| one.identity).collect();
            if !suspects.is_empty() {
                self.push(job.table, vec![Step::Mend(suspects)]);
            }
        } else {
            for difference in found.differences {
                table.report.add(&table.shape, difference, self.scope.rows);
            }
        }
        let table = &mut self.tables[job.table];
        if let Some(repair) = &mut table.report.repair {
            repair.inserted += found.mended.inserted;
            repair.updated += found.mended.updated;
            repair.deleted += found.mended.deleted;
        }
        if let Some(script) = &mut self.script {
            for statement in found.script {
                script.statement(&statement)?;
            }
        }
        if !found.flying.is_empty() {
            self.tick = self.tick.min(found.tick);
        }
        table.flying.extend(found.flying);
        self.push(job.table, found.steps);
        let table = &self.tables[job.table];
        if table.left == 0 && table.flying.is_empty() {
            self.progress.copy_done(&table.name);
        }
        Ok(())
    }
}

fn stopped() -> Error {
    Error::failure("stopped before everything was compared")
}

/// One step, and the sessions back if they can be used again.
async fn step(scope: Arc<Scope>, shape: Arc<Shape>, ends: Ends, job: Job) -> Done {
    if job.attempt > 1 {
        tokio::time::sleep(Duration::from_millis(50) * job.attempt * job.attempt).await;
    }
    let outcome = piece::take(&ends, &scope, &shape, &job.step, job.attempt > 1).await;
    let ended = ends.end().await;
    let usable = ended.is_ok() && !ends.closed();
    let outcome = match (outcome, ended) {
        (Ok(_), Err(error)) => Err(error),
        (outcome, _) => outcome,
    };
    (job, usable.then_some(ends), outcome)
}
