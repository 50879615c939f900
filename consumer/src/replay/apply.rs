//! A chunk's rows, applied in their order inside the batch's transaction.
//!
//! Long runs of inserts into one table, unless a trigger watches it, go in by COPY, which may stretch over several chunks; long runs of
//! updates or deletes, which collapse.rs makes, by one statement for all; everything else as prepared statements, one per row,
//! many on their way at once. In the careful mode each row has its statement: that is how the row at fault is found
//! when many fail together. A row that does not do exactly what it did on the provider (an update or delete that meets
//! no row, a key that exists already) ends replay: the two ends differ, and going on would hide it. Unless a policy
//! says otherwise, see conflict.rs.

mod run;
mod truncate;

use std::collections::{HashMap, VecDeque};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use futures_util::{future, poll};
use tokio_postgres::{Client, Statement};
use wire::event_type::Operation;

use super::chunk::{Chunk, Part, Row, Shape};
use super::conflict::{Book, Kind};
use super::setup::Target;
use super::statement::{self, RowSql, Text, Texts};
use super::table::{Name, Table};
use crate::config::Policy;
use crate::error::{Doing, Error, Result};
use run::Run;

/// Fewer inserts in a row than this are cheaper as statements, unless there are large values: a COPY needs an answer before
/// its first row and after its last.
const COPY_FROM: usize = 24;

/// Fewer updates or deletes in a row than this are cheaper as statements of their own.
const SET_FROM: usize = 16;

/// How many statements are on their way at once. Enough to keep the server busy; few enough for its answers to fit into
/// the buffers of the connection.
const IN_FLIGHT: usize = 512;

/// A larger set goes in parts, so that the server has one to work at while the next is on its way.
const SET_MOST: usize = 2048;

/// Why a batch could not be applied.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    /// Which target it happened in.
    pub(super) table: Option<usize>,
    /// Which row it was is not known; the careful mode will tell.
    pub(super) unclear: bool,
    /// It is one that a policy may answer.
    pub(super) conflict: Option<Kind>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            error,
            table: None,
            unclear: false,
            conflict: None,
        }
    }
}

impl Failure {
    /// Of an event of this shape.
    pub(super) fn of_row(error: Error, shape: &Shape) -> Self {
        Self {
            table: Some(shape.table),
            ..error.into()
        }
    }

    /// Of some of many events of this shape.
    fn of_some_row(error: Error, shape: &Shape) -> Self {
        Self {
            unclear: !error.is_transient(),
            ..Self::of_row(error, shape)
        }
    }
}

/// Applies chunks to one session. Lives as long as that session, for the sake of the prepared statements.
pub(super) struct Applier {
    pub(super) tables: Vec<Arc<Table>>,
    pub(super) provider_names: Vec<Name>,
    pub(super) policies: Vec<Policy>,
    prepared: HashMap<usize, Prepared>,
    /// None: not to be applied that way.
    sets: HashMap<usize, Option<Prepared>>,
    copies: HashMap<usize, Statement>,
    open: Option<Run>,
    /// By shape, what overwrites a row.
    pub(super) remedies: HashMap<usize, Prepared>,
    pub(super) recording: Option<Statement>,
    /// Events that were left out of what was applied last, and are to be recorded.
    pub(super) left_out: Vec<i64>,
    /// Conflicts that were answered since the transaction began.
    pub(super) answered: u64,
}

#[derive(Clone)]
pub(super) struct Prepared {
    pub(super) statement: Statement,
    pub(super) parameters: Arc<[usize]>,
}

type Answer<'a> = Pin<Box<dyn Future<Output = Result<u64, tokio_postgres::Error>> + Send + 'a>>;

impl Applier {
    pub(super) fn new(targets: &[Target]) -> Self {
        Self {
            tables: targets.iter().map(|target| Arc::clone(&target.subscriber)).collect(),
            provider_names: targets.iter().map(|target| target.provider.name.clone()).collect(),
            policies: targets.iter().map(|target| target.policy).collect(),
            prepared: HashMap::new(),
            sets: HashMap::new(),
            copies: HashMap::new(),
            open: None,
            remedies: HashMap::new(),
            recording: None,
            left_out: Vec::new(),
            answered: 0,
        }
    }

    /// Applies the chunk; with a book in the careful mode, and what does not fit is answered and goes into the book. A
    /// run of inserts at its end may still be open afterwards; [`Applier::finish`] closes it.
    pub(super) async fn apply(
        &mut self,
        client: &Client,
        chunk: &Chunk,
        careful: Option<&Book>,
    ) -> Result<(), Failure> {
        match careful {
            Some(book) if self.policies.iter().any(|policy| *policy != Policy::Stop) => {
                self.apply_and_answer(client, chunk, book).await
            }
            _ => self.apply_rows(client, chunk, &chunk.rows, careful.is_some()).await,
        }
    }

    /// Applies some of the chunk's rows.
    pub(super) async fn apply_rows(
        &mut self,
        client: &Client,
        chunk: &Chunk,
        all: &[Row],
        careful: bool,
    ) -> Result<(), Failure> {
        let mut waiting: VecDeque<(Answer<'_>, &[Row])> = VecDeque::with_capacity(IN_FLIGHT.min(all.len()));
        let mut at = 0;
        while let Some(row) = all.get(at) {
            let shape = chunk.shape(row);
            let run = all[at..].iter().take_while(|next| next.shape == row.shape).count();
            let rows = &all[at..at + run];
            let continues = self.open.as_ref().is_some_and(|open| open.shape.id == shape.id);
            if !continues {
                self.close_copy().await?;
            }
            match shape.operation {
                Operation::Truncate => {
                    self.drain(chunk, &mut waiting, 0).await?;
                    // One after the other as the events came, so tables that refer to each other are emptied together.
                    let run = match &shape.part {
                        Some(Part::Make(sql)) => {
                            self.run_for_part(client, shape.table, row.ev_id, sql).await?;
                            1
                        }
                        Some(Part::Delete(sql)) => {
                            if self.may_empty(client, shape.table, &[row.ev_id], careful).await? {
                                self.run_for_part(client, shape.table, row.ev_id, sql).await?;
                            }
                            1
                        }
                        Some(Part::Truncate(_)) | None => {
                            let is_one = |next: &&Row| {
                                let shape = chunk.shape(next);
                                shape.operation == Operation::Truncate
                                    && matches!(shape.part, Some(Part::Truncate(_)) | None)
                            };
                            let run = all[at..].iter().take_while(is_one).count();
                            self.truncate(client, chunk, &all[at..at + run], careful).await?;
                            run
                        }
                    };
                    at += run;
                    continue;
                }
                Operation::Insert
                    if !careful
                        && !shape.settling
                        && (continues || run >= COPY_FROM || chunk.has_large())
                        && !shape.columns.is_empty()
                        // They would fire when all rows are there.
                        && !self.tables[shape.table].fires_triggers =>
                {
                    self.drain(chunk, &mut waiting, 0).await?;
                    self.copy(client, chunk, rows).await?;
                }
                Operation::Update | Operation::Delete
                    if chunk.net[shape.table]
                        && run >= SET_FROM
                        && self.set(client, chunk, shape, &mut waiting).await? =>
                {
                    let Some(Some(set)) = self.sets.get(&shape.id).cloned() else {
                        continue;
                    };
                    for rows in rows.chunks(SET_MOST) {
                        let set = set.clone();
                        let answer: Answer<'_> = Box::pin(async move {
                            let texts = |&column: &usize| Texts { chunk, rows, column };
                            client
                                .execute_raw(&set.statement, set.parameters.iter().map(texts))
                                .await
                        });
                        send(answer, rows, &mut waiting).await;
                        let_go(client, chunk).await;
                    }
                }
                _ => {
                    if !self.prepared.contains_key(&shape.id) {
                        // While the answer to PREPARE is awaited nobody takes the others'.
                        self.drain(chunk, &mut waiting, 0).await?;
                        self.prepare(client, shape).await?;
                    }
                    let Some(prepared) = self.prepared.get(&shape.id).cloned() else {
                        continue;
                    };
                    for (i, row) in rows.iter().enumerate() {
                        if waiting.len() >= IN_FLIGHT {
                            self.drain(chunk, &mut waiting, IN_FLIGHT / 2).await?;
                        }
                        let statement = prepared.statement.clone();
                        let parameters = Arc::clone(&prepared.parameters);
                        let answer: Answer<'_> = Box::pin(async move {
                            client
                                .execute_raw(
                                    &statement,
                                    parameters.iter().map(|&column| Text(chunk.value(row, column))),
                                )
                                .await
                        });
                        send(answer, &rows[i..=i], &mut waiting).await;
                        let_go(client, chunk).await;
                    }
                }
            }
            at += run;
        }
        self.drain(chunk, &mut waiting, 0).await
    }

    /// After the batch's last chunk.
    pub(super) async fn finish(&mut self) -> Result<(), Failure> {
        self.close_copy().await
    }

    /// Waits until at most `left` answers are outstanding. In order, so the first error is the cause of all the others.
    async fn drain(
        &self,
        chunk: &Chunk,
        waiting: &mut VecDeque<(Answer<'_>, &[Row])>,
        left: usize,
    ) -> Result<(), Failure> {
        while waiting.len() > left {
            let Some((answer, rows)) = waiting.pop_front() else {
                break;
            };
            self.check(chunk, rows, answer.await)?;
        }
        Ok(())
    }

    /// Whether the rows of a statement did what they should.
    fn check(&self, chunk: &Chunk, rows: &[Row], result: Result<u64, tokio_postgres::Error>) -> Result<(), Failure> {
        let [row] = rows else {
            return self.check_set(chunk, rows, result);
        };
        match result {
            Ok(1) => Ok(()),
            Ok(0) if chunk.shape(row).settling => Ok(()),
            Ok(0) if chunk.shape(row).operation == Operation::Insert => {
                let shape = chunk.shape(row);
                let error = Error::failure(format!(
                    "event {} of the provider {} of table {}, and the subscriber did not store it",
                    row.ev_id,
                    self.deed(chunk, row),
                    self.tables[shape.table].name,
                ));
                Err(Failure::of_row(error.of_one_table().hint(SWALLOWED), shape))
            }
            Ok(count) => {
                let shape = chunk.shape(row);
                let error = Error::failure(format!(
                    "event {} of the provider {} of table {}, and the subscriber has {} such row{}",
                    row.ev_id,
                    self.deed(chunk, row),
                    self.tables[shape.table].name,
                    if count == 0 { "no".to_owned() } else { count.to_string() },
                    if count == 0 { "" } else { "s" }
                ));
                Err(Failure {
                    conflict: Kind::of_missing(shape.operation).filter(|_| count == 0),
                    ..Failure::of_row(error.of_one_table().hint(DIFFERS), shape)
                })
            }
            Err(error) => {
                let shape = chunk.shape(row);
                let table = &self.tables[shape.table];
                let what = format!(
                    "apply event {}, which {} of table {}",
                    row.ev_id,
                    self.deed(chunk, row),
                    table.name
                );
                let Err(error) = Err::<(), _>(error).doing(|| what) else {
                    return Ok(());
                };
                let mut error = error.of_a_value();
                let constraint = error.sqlstate().is_some_and(|state| state.code().starts_with("23"));
                if constraint && error.get_hint().is_none() {
                    error = error.hint(DIFFERS);
                }
                Err(Failure {
                    conflict: Kind::of_error(shape, table, &error),
                    ..Failure::of_row(error, shape)
                })
            }
        }
    }

    fn check_set(
        &self,
        chunk: &Chunk,
        rows: &[Row],
        result: Result<u64, tokio_postgres::Error>,
    ) -> Result<(), Failure> {
        let Some(first) = rows.first() else { return Ok(()) };
        let shape = chunk.shape(first);
        let table = &self.tables[shape.table].name;
        let what = || format!("apply event {} and following to table {table}", first.ev_id);
        let error = match result.doing(what) {
            Ok(count) if count == rows.len() as u64 => return Ok(()),
            Ok(count) => Error::failure(format!("could not {}: {count} of {} rows were met", what(), rows.len())),
            Err(error) => error,
        };
        Err(Failure::of_some_row(error, shape))
    }

    /// "updates row (id)=(5)", for messages.
    fn deed(&self, chunk: &Chunk, row: &Row) -> String {
        let shape = chunk.shape(row);
        let (verb, names) = match shape.operation {
            Operation::Insert => ("inserts", self.tables[shape.table].primary_key().to_vec()),
            Operation::Update => ("updates", shape.key.iter().map(|&i| shape.columns[i].clone()).collect()),
            Operation::Delete => ("deletes", shape.key.iter().map(|&i| shape.columns[i].clone()).collect()),
            Operation::Truncate => ("truncates", Vec::new()),
        };
        if names.is_empty() {
            return format!("{verb} a row");
        }
        let values: Vec<String> = names
            .iter()
            .map(|name| {
                match shape
                    .columns
                    .iter()
                    .position(|column| column == name)
                    .map(|i| chunk.key_value(row, i))
                {
                    None | Some(None) => "null".to_owned(),
                    Some(Some(value)) => String::from_utf8_lossy(&value[..value.len().min(64)]).into_owned(),
                }
            })
            .collect();
        format!("{verb} row ({})=({})", names.join(", "), values.join(", "))
    }

    async fn prepare(&mut self, client: &Client, shape: &Arc<Shape>) -> Result<(), Failure> {
        let table = &self.tables[shape.table];
        if let Some(row_sql) = statement::row_sql(shape, table) {
            let prepared = prepared(client, shape, table, row_sql).await?;
            self.prepared.insert(shape.id, prepared);
        }
        Ok(())
    }

    /// Whether changes of this shape are applied many at once. Then the statement is prepared.
    async fn set<'a>(
        &mut self,
        client: &Client,
        chunk: &Chunk,
        shape: &Arc<Shape>,
        waiting: &mut VecDeque<(Answer<'a>, &'a [Row])>,
    ) -> Result<bool, Failure> {
        if let Some(set) = self.sets.get(&shape.id) {
            return Ok(set.is_some());
        }
        let table = &self.tables[shape.table];
        let set = match statement::set_sql(shape, table) {
            Some(row_sql) => {
                self.drain(chunk, waiting, 0).await?;
                Some(prepared(client, shape, table, row_sql).await?)
            }
            None => None,
        };
        let can = set.is_some();
        self.sets.insert(shape.id, set);
        Ok(can)
    }

    async fn run_for_part(&self, client: &Client, table: usize, event: i64, sql: &str) -> Result<(), Failure> {
        client
            .batch_execute(sql)
            .await
            .doing(|| {
                let name = &self.tables[table].name;
                format!("apply event {event} to a partition of table {name}")
            })
            .map_err(|error| Failure {
                table: Some(table),
                ..Failure::from(error)
            })
    }
}

/// A statement is sent when its future is polled first. Polling here keeps the rows in their order. The answer may be
/// there at once and has to wait for its turn: one before it may say why the transaction is aborted, and this one only
/// that it is.
async fn send<'a>(mut answer: Answer<'a>, rows: &'a [Row], waiting: &mut VecDeque<(Answer<'a>, &'a [Row])>) {
    let answer = match poll!(&mut answer) {
        Poll::Pending => answer,
        Poll::Ready(result) => Box::pin(future::ready(result)),
    };
    waiting.push_back((answer, rows));
}

/// A client keeps the buffer that it encodes statements in, however large it has become, unless it needs another one while the
/// statement is on its way. So behind a large one goes an empty one, for which there is no room left.
async fn let_go(client: &Client, chunk: &Chunk) {
    const BLANK: &str = match str::from_utf8(&[b' '; 2 * statement::ROOM_BEHIND]) {
        Ok(blank) => blank,
        Err(_) => "",
    };
    if chunk.has_large() {
        let mut nothing = pin!(client.batch_execute(BLANK));
        // Its answer is nobody's.
        let _ = poll!(&mut nothing);
    }
}

pub(super) async fn prepared(
    client: &Client,
    shape: &Shape,
    table: &Table,
    row_sql: RowSql,
) -> Result<Prepared, Failure> {
    let statement = client
        .prepare(&row_sql.sql)
        .await
        .doing(|| format!("prepare to apply events of table {}", table.name))
        .map_err(|error| Failure::of_row(error, shape))?;
    Ok(Prepared {
        statement,
        parameters: row_sql.parameters.into(),
    })
}

const DIFFERS: &str = "Nothing of the batch was applied. Somebody else changed the subscriber's table, or its copy began elsewhere: put \
                       the row right and start again; or copy the table again: consumer table resync";

const SWALLOWED: &str = "A trigger or rule on that table that fires always swallows rows: remove it.";

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_that_is_there_at_once_waits_for_its_turn() {
        let mut waiting = VecDeque::new();
        send(Box::pin(future::pending()), &[], &mut waiting).await;
        send(Box::pin(future::ready(Ok(2))), &[], &mut waiting).await;
        let mut answers = Vec::new();
        for (answer, _) in &mut waiting {
            answers.push(poll!(answer).map(|answer| answer.ok()));
        }
        assert_eq!(answers, [Poll::Pending, Poll::Ready(Some(2))]);
    }
}
