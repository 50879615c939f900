//! Reading in a task of its own: a batch while it is applied, and the next one while the present one still is.
//!
//! [`Reader`] is the task: it takes events from the provider, decodes them, and hands on chunks, of which one waits. When it has read
//! its batch it goes on with the next, where the consumer is behind ([`Ahead`]): through a second session at the provider, whose answer is on its way
//! while the subscriber is busy with the batch before. That costs a provider far away no round trip of its own, and one nearby some of the
//! processor that was idle.
//!
//! What was read ahead is nothing but a guess until the provider offers that batch: only if the query for its rows is the very
//! same, which names both ticks by their snapshots, it is used. Otherwise it is thrown away, with the session. Nothing is said to the provider
//! before its time, so nothing can be lost or done twice by it.
//!
//! The decoder goes with the reader, and knows the tables as they were when the batch before was read. So nothing is read ahead while
//! the end of a batch may change that ([`Decoder::is_settled`]), nor behind what is to be executed. As much is in memory as without: two
//! batches' chunks pass through the same place. Only what is large is bounded by its session, so behind a batch that had such an event none is read ahead.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Statement};

use super::super::chunk::Chunk;
use super::super::event::{self, Order};
use super::super::execute::Execute;
use super::super::position::Who;
use super::super::session;
use super::super::stream::{Decoder, Summary};
use super::{Batch, Source, Stream, offer};
use crate::config::ReplayConfig;
use crate::connect::flow::{LARGE, Reading};
use crate::connect::{End, Session, connect};
use crate::conninfo::ConnInfo;
use crate::error::{Doing, Error, Result};

/// What reads.
pub(super) struct Reader {
    parts: mpsc::Receiver<Part>,
    /// What follows the batch at hand.
    next: mpsc::Sender<Option<Coming>>,
    /// So many batches are read, and so many have been taken.
    read: Arc<AtomicUsize>,
    taken: usize,
    /// It may go on behind the batch at hand.
    goes_on: bool,
}

/// What it hands on: of each batch its chunks and the end; then, if it goes on, what with.
pub(in crate::replay) enum Part {
    Chunk(Chunk),
    Ended(Box<Ended>),
    Next(Next),
    /// The next batch could not be told.
    NoNext(Box<Decoder>),
}

/// How the read of a batch ended.
pub(in crate::replay) struct Ended {
    pub(in crate::replay) outcome: Result<(Summary, Option<Execute>)>,
    /// The table whose event could not be read.
    pub(in crate::replay) table: Option<usize>,
    /// None: the reader goes on.
    pub(in crate::replay) decoder: Option<Decoder>,
}

/// A batch as it is read ahead.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::replay) struct Next {
    rows: String,
    order: Order,
}

/// The next batch: it is being asked for.
type Coming = JoinHandle<Option<(Next, Reading)>>;

impl Reader {
    /// Begins to read. It stops behind that unless it `goes_on`, and then it has to be told what with.
    pub(super) fn start(decoder: Decoder, source: Reading, goes_on: bool) -> Self {
        // One chunk waits while another is applied, and the reader holds a third.
        let (sender, parts) = mpsc::channel(1);
        let (next, coming) = mpsc::channel(1);
        let read = Arc::default();
        let goes_on = goes_on && decoder.is_settled();
        tokio::spawn(read_on(
            decoder,
            source,
            sender,
            goes_on.then_some(coming),
            Arc::clone(&read),
        ));
        Self {
            parts,
            next,
            read,
            taken: 0,
            goes_on,
        }
    }

    /// Says what follows the batch that is going to be applied.
    pub(super) fn goes_on_with(&self, coming: impl FnOnce() -> Option<Coming>) {
        let coming = if self.goes_on { coming() } else { None };
        // A reader that has failed takes nothing more.
        let _ = self.next.try_send(coming);
    }

    /// None: the task ended before its time.
    pub(super) async fn part(&mut self) -> Option<Part> {
        let part = self.parts.recv().await;
        self.taken += usize::from(matches!(part, Some(Part::Ended(_))));
        part
    }

    /// Whether the batch at hand is read to its end.
    pub(super) fn has_read(&self) -> bool {
        self.read.load(Ordering::Acquire) > self.taken
    }
}

async fn read_on(
    mut decoder: Decoder,
    mut source: Reading,
    parts: mpsc::Sender<Part>,
    mut next: Option<mpsc::Receiver<Option<Coming>>>,
    read: Arc<AtomicUsize>,
) {
    loop {
        let outcome = decoder.read(source, &parts).await;
        read.fetch_add(1, Ordering::AcqRel);
        let may_go_on = matches!(&outcome, Ok((summary, None)) if summary.largest < LARGE) && decoder.is_settled();
        let coming = match &mut next {
            Some(next) if may_go_on => next.recv().await.flatten(),
            _ => None,
        };
        let mut ended = Ended {
            outcome,
            table: decoder.failed,
            decoder: None,
        };
        // Whoever stopped taking parts knows why.
        let Some(coming) = coming else {
            ended.decoder = Some(decoder);
            let _ = parts.send(Part::Ended(Box::new(ended))).await;
            return;
        };
        if parts.send(Part::Ended(Box::new(ended))).await.is_err() {
            return;
        }
        let Ok(Some((batch, answer))) = coming.await else {
            let _ = parts.send(Part::NoNext(Box::new(decoder))).await;
            return;
        };
        decoder.begin(batch.order, Source::Batch, false);
        if parts.send(Part::Next(batch)).await.is_err() {
            return;
        }
        source = answer;
    }
}

/// Asks for the next batch, by a session of its own.
pub(super) struct Ahead {
    place: Arc<Place>,
    second: Arc<Mutex<Second>>,
}

struct Place {
    provider: ConnInfo,
    who: Who,
    /// When the server began that the stream's own session is at: a second connection may lead to another one.
    server: String,
    next: &'static str,
    tick_by_tick: bool,
    wanted: i32,
    by_rows: bool,
    most: usize,
}

enum Second {
    /// It is opened when it would be of use, and not before.
    NotYet(Instant),
    Open(Box<Session>, Statement),
}

/// After a failure it is done without for so long.
const PAUSE: Duration = Duration::from_secs(60);

impl Ahead {
    /// For batches as next_batch.sql offers them, or with `tick_by_tick` next_tick.sql.
    pub(super) async fn new(
        config: &ReplayConfig,
        provider: &Client,
        tick_by_tick: bool,
        by_rows: bool,
    ) -> Result<Self> {
        Ok(Self {
            place: Arc::new(Place {
                provider: config.provider.clone(),
                who: config.who(),
                server: server(provider).await?,
                next: if tick_by_tick {
                    include_str!("../sql/ahead_tick.sql")
                } else {
                    include_str!("../sql/ahead.sql")
                },
                tick_by_tick,
                wanted: config.batch_events,
                by_rows,
                most: config.max_memory.kept(),
            }),
            second: Arc::new(Mutex::new(Second::NotYet(Instant::now()))),
        })
    }

    /// Begins to read the batch behind this one, if there is one, and the session is there. `sorted`: whatever its size.
    pub(super) fn of(&self, batch: &Batch, sorted: bool) -> Option<Coming> {
        let lag = &batch.lag;
        let is_behind = if self.place.tick_by_tick {
            lag.lag_ticks > 0
        } else {
            lag.lag_events > 2 * u64::from(self.place.wanted.unsigned_abs())
        };
        // Somebody has it who opens it. No batch waits for that: a pooler in between may have none left for a while.
        let mut second = Arc::clone(&self.second).try_lock_owned().ok().filter(|_| is_behind)?;
        let (place, tick) = (Arc::clone(&self.place), batch.to);
        match *second {
            Second::NotYet(from) if Instant::now() < from => None,
            Second::NotYet(_) => {
                tokio::spawn(async move {
                    *second = place.open().await.unwrap_or_else(given_up);
                    let is_open = matches!(*second, Second::Open(..));
                    drop(second);
                    if is_open {
                        tracing::debug!("the session that reads ahead is there");
                    }
                });
                None
            }
            Second::Open(..) => Some(tokio::spawn(async move {
                let answer = place.read(&second, tick, sorted).await;
                answer.unwrap_or_else(|error| {
                    *second = given_up(error);
                    None
                })
            })),
        }
    }

    /// What it has begun to read is not wanted.
    pub(super) fn give_up(&mut self) {
        self.second = Arc::new(Mutex::new(Second::NotYet(Instant::now())));
    }
}

impl Place {
    async fn read(&self, second: &Second, tick: i64, sorted: bool) -> Result<Option<(Next, Reading)>> {
        let Second::Open(session, next) = second else {
            return Ok(None);
        };
        let what = || format!("read the batch behind tick {tick} from the provider");
        let (queue, consumer) = (&self.who.queue, &self.who.consumer);
        let row = session
            .client
            .query_opt(next, &[queue, consumer, &self.wanted, &tick])
            .await
            .doing(what)?;
        let Some(row) = row else { return Ok(None) };
        let Some(rows) = offer::query_of(&row, "rows") else {
            return Ok(None);
        };
        let order = offer::order(row.get("events_about"), sorted);
        // Nothing is read ahead while a table is copied.
        let query = event::events_query(&rows, (self.by_rows, false), None, order);
        let answer = Reading::begin(session, &query, self.most).await.doing(what)?;
        Ok(Some((Next { rows, order }, answer)))
    }

    async fn open(&self) -> Result<Second> {
        let application_name = format!("pgcascade ahead {} {}", self.who.queue, self.who.consumer);
        let session = connect(&self.provider, End::Provider, &application_name).await?;
        let client = &session.client;
        session::set_up(client, End::Provider).await?;
        if server(client).await? != self.server {
            return Err(Error::failure(
                "a second connection to the provider leads to another server",
            ));
        }
        let what = || "prepare the query for the next batch on the provider".to_owned();
        let next = client.prepare(self.next).await.doing(what)?;
        Ok(Second::Open(Box::new(session), next))
    }
}

fn given_up(error: Error) -> Second {
    tracing::info!("batches are not read ahead: {error}");
    Second::NotYet(Instant::now() + PAUSE)
}

async fn server(client: &Client) -> Result<String> {
    let row = client
        .query_one("select pg_catalog.pg_postmaster_start_time()::text", &[])
        .await
        .doing(|| "ask the provider since when it runs".to_owned())?;
    Ok(row.get(0))
}

impl Next {
    fn is(&self, batch: &Batch) -> bool {
        batch.rows.as_ref() == Some(&self.rows) && batch.order == self.order
    }
}

impl Stream<'_> {
    /// The reader that has begun with the batch, if one has.
    pub(super) async fn read_ahead(&mut self, batch: &Batch) -> Option<Reader> {
        let mut reader = self.reader.take()?;
        match reader.part().await {
            Some(Part::Next(next)) if next.is(batch) => return Some(reader),
            Some(Part::NoNext(decoder)) => self.decoder = Some(*decoder),
            _ => {
                tracing::debug!(tick = batch.to, "what was read ahead is another batch");
                self.forget_ahead();
            }
        }
        None
    }

    /// Nothing of what was read ahead is wanted.
    pub(super) fn forget_ahead(&mut self) {
        self.reader = None;
        if let Some(ahead) = &mut self.ahead {
            ahead.give_up();
        }
        self.begin_anew();
    }
}
