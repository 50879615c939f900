//! What the server stores: rows with the transactions that wrote them, and the log from which all of it is made again after a crash.
//!
//! A change is a [`Record`]; it is applied and appended to the log. What a crash leaves is the flushed part of the log, applied
//! anew. Nothing here decides anything: that is the business of the statements.

use wire::snapshot::Snapshot;

use super::schedule::{CONSUMERS, ROWS};

/// A 64-bit transaction id.
pub(crate) type Xid = u64;

/// Event tables of a queue.
pub(crate) const TABLES: usize = 3;
/// The transaction that created the queue.
pub(crate) const CREATION: Xid = 3;
/// How far a sequence is ahead in the log of the numbers it gave.
const PRELOGGED: i64 = 32;

/// A row of an event table.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    /// Tells it from all others; no server knows it.
    pub(crate) label: u32,
    /// `ev_id`.
    pub(crate) id: i64,
    /// `ev_txid`.
    pub(crate) txid: Xid,
    /// The transaction or subtransaction that wrote the row.
    pub(crate) by: Xid,
    /// `ev_owner`: the subscription that alone gets it.
    pub(crate) owner: Option<u32>,
    /// The captured row, and which of its changes this is.
    pub(crate) change: Option<(u8, u32)>,
    /// The entry of the retry queue that this was.
    pub(crate) retried: Option<u32>,
}

/// A row of `pgq.queue`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Control {
    pub(crate) table: usize,
    pub(crate) step1: Xid,
    pub(crate) step2: Option<Xid>,
}

/// A row of `pgq.tick`.
#[derive(Debug, Clone)]
pub(crate) struct Tick {
    pub(crate) id: i64,
    pub(crate) snapshot: Snapshot,
    pub(crate) seq: i64,
    pub(crate) by: Xid,
    /// Who deleted it.
    pub(crate) gone: Option<Xid>,
}

/// A row of `pgq.subscription`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subscription {
    /// `sub_id`: another one each time a consumer is registered.
    pub(crate) id: u32,
    pub(crate) last: i64,
    /// The open batch and the tick that ends it.
    pub(crate) batch: Option<(i64, i64)>,
}

/// A row of `pgq.retry_queue`.
#[derive(Debug, Clone)]
pub(crate) struct Retry {
    pub(crate) number: u32,
    pub(crate) owner: u32,
    pub(crate) event: i64,
    pub(crate) by: Xid,
    pub(crate) gone: Option<Xid>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Running,
    Committed,
    Aborted,
}

/// The sequences, as indexes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sequence {
    Events,
    Ticks,
    Batches,
}

/// A change, as the log has it.
#[derive(Debug, Clone)]
pub(crate) enum Record {
    Event(usize, Event),
    Tick(Tick),
    TickGone(Xid, i64),
    Control(Xid, Control),
    Subscription(Xid, usize, Option<Subscription>),
    Row(Xid, usize),
    Retry(Retry),
    RetryGone(Xid, u32),
    Truncate(Xid, usize),
    Drawn(Sequence, i64),
    Commit(Xid),
    /// Of a transaction or of a subtransaction.
    Abort(Xid),
    Prepare(Xid),
    /// A subtransaction and its transaction.
    Belongs(Xid, Xid),
}

/// Where a sequence stands.
#[derive(Debug, Clone, Copy)]
struct Position {
    last: i64,
    called: bool,
    logged: i64,
}

#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub(crate) tables: [Vec<Event>; TABLES],
    /// What tables held before a TRUNCATE that is not committed.
    cut: Vec<(Xid, usize, Vec<Event>)>,
    pub(crate) control: Vec<(Xid, Control)>,
    pub(crate) ticks: Vec<Tick>,
    pub(crate) subscriptions: [Vec<(Xid, Option<Subscription>)>; CONSUMERS],
    /// Who changed the captured rows.
    pub(crate) rows: [Vec<Xid>; ROWS],
    pub(crate) retries: Vec<Retry>,
    /// All events ever written, for the properties.
    pub(crate) written: Vec<Event>,
    sequences: [Position; 3],
    /// By transaction id: the top-level transaction, and what became of it.
    xids: Vec<(Xid, Status)>,
}

impl Store {
    /// A queue, and its first consumer, at the first tick.
    pub(crate) fn new() -> Self {
        let mut xids: Vec<_> = (0..=CREATION).map(|xid| (xid, Status::Aborted)).collect();
        xids[3].1 = Status::Committed;
        let fresh = Position {
            last: 1,
            called: false,
            logged: 0,
        };
        let mut subscriptions: [Vec<_>; CONSUMERS] = Default::default();
        subscriptions[0].push((
            CREATION,
            Some(Subscription {
                id: 0,
                last: 1,
                batch: None,
            }),
        ));
        Self {
            tables: Default::default(),
            cut: Vec::new(),
            control: vec![(
                CREATION,
                Control {
                    table: 0,
                    step1: CREATION,
                    step2: Some(CREATION),
                },
            )],
            ticks: vec![Tick {
                id: 1,
                snapshot: Snapshot {
                    xmin: CREATION,
                    xmax: CREATION,
                    in_progress: Vec::new(),
                },
                seq: 1,
                by: CREATION,
                gone: None,
            }],
            subscriptions,
            rows: Default::default(),
            retries: Vec::new(),
            written: Vec::new(),
            sequences: [fresh, Position { called: true, ..fresh }, fresh],
            xids,
        }
    }

    /// What the log says, on a server that was started just now; those in `prepared` are still running.
    /// That the others have ended goes into the log, for the next time.
    pub(crate) fn recovered(log: &mut Vec<Record>, prepared: &[Xid]) -> Self {
        let mut store = Self::new();
        for record in log.iter() {
            if let Record::Drawn(sequence, upto) = *record {
                store.sequences[sequence as usize] = Position {
                    last: upto,
                    called: true,
                    logged: upto,
                };
            }
            store.apply(record);
        }
        for xid in 0..store.xids.len() as Xid {
            let (top, status) = store.xids[index(xid)];
            if status == Status::Running && !prepared.contains(&top) {
                store.apply(&Record::Abort(xid));
                log.push(Record::Abort(xid));
            }
        }
        store
    }

    pub(crate) fn apply(&mut self, record: &Record) {
        match record {
            Record::Event(table, event) => {
                self.know(event.by);
                self.tables[*table].push(event.clone());
                self.written.push(event.clone());
            }
            Record::Tick(tick) => {
                self.know(tick.by);
                self.ticks.push(tick.clone());
            }
            Record::TickGone(by, id) => {
                self.know(*by);
                for tick in self.ticks.iter_mut().filter(|tick| tick.id == *id) {
                    tick.gone = Some(*by);
                }
            }
            Record::Control(by, control) => {
                self.know(*by);
                self.control.push((*by, *control));
            }
            Record::Subscription(by, consumer, subscription) => {
                self.know(*by);
                self.subscriptions[*consumer].push((*by, *subscription));
            }
            Record::Row(by, row) => {
                self.know(*by);
                self.rows[*row].push(*by);
            }
            Record::Retry(retry) => {
                self.know(retry.by);
                self.retries.push(retry.clone());
            }
            Record::RetryGone(by, number) => {
                self.know(*by);
                for retry in self.retries.iter_mut().filter(|retry| retry.number == *number) {
                    retry.gone = Some(*by);
                }
            }
            Record::Truncate(by, table) => {
                self.know(*by);
                let rows = std::mem::take(&mut self.tables[*table]);
                self.cut.push((*by, *table, rows));
            }
            Record::Drawn(..) => {}
            Record::Commit(xid) => {
                self.know(*xid);
                for entry in &mut self.xids {
                    if entry.0 == *xid && entry.1 == Status::Running {
                        entry.1 = Status::Committed;
                    }
                }
                let xids = &self.xids;
                self.cut.retain(|(by, ..)| xids[index(*by)].1 == Status::Running);
            }
            Record::Abort(xid) => {
                self.know(*xid);
                for (of, entry) in self.xids.iter_mut().enumerate() {
                    // A transaction takes those below it along.
                    if (of as Xid == *xid || entry.0 == *xid) && entry.1 == Status::Running {
                        entry.1 = Status::Aborted;
                    }
                }
                while let Some(at) = self.cut.iter().position(|(by, ..)| self.status(*by) == Status::Aborted) {
                    let (_, table, rows) = self.cut.swap_remove(at);
                    self.tables[table] = rows;
                }
            }
            Record::Prepare(xid) => self.know(*xid),
            Record::Belongs(xid, top) => {
                self.know(*top);
                self.know(*xid);
                self.xids[index(*xid)].0 = *top;
            }
        }
    }

    /// Makes room for a transaction id.
    pub(crate) fn know(&mut self, xid: Xid) {
        while self.xids.len() as Xid <= xid {
            self.xids.push((self.xids.len() as Xid, Status::Running));
        }
    }

    /// The first transaction id that was never used.
    pub(crate) fn unused(&self) -> Xid {
        self.xids.len() as Xid
    }

    pub(crate) fn status(&self, xid: Xid) -> Status {
        self.xids[index(xid)].1
    }

    pub(crate) fn top(&self, xid: Xid) -> Xid {
        self.xids[index(xid)].0
    }

    pub(crate) fn committed(&self, xid: Xid) -> bool {
        self.status(xid) == Status::Committed
    }

    /// Whether a row written by `by` is visible to a transaction with that snapshot and that id of its own.
    pub(crate) fn visible(&self, by: Xid, snapshot: &Snapshot, own: Option<Xid>) -> bool {
        let (top, status) = self.xids[index(by)];
        if Some(top) == own {
            status != Status::Aborted
        } else {
            status == Status::Committed && snapshot.sees(top)
        }
    }

    /// `last_value`.
    pub(crate) fn last_value(&self, sequence: Sequence) -> i64 {
        self.sequences[sequence as usize].last
    }

    /// The next number, and the record to be logged, if any.
    pub(crate) fn draw(&mut self, sequence: Sequence) -> (i64, Option<Record>) {
        let position = &mut self.sequences[sequence as usize];
        position.last += i64::from(position.called);
        position.called = true;
        let ahead = position.last > position.logged;
        if ahead {
            position.logged = position.last + PRELOGGED;
        }
        (position.last, ahead.then_some(Record::Drawn(sequence, position.logged)))
    }
}

#[allow(clippy::cast_possible_truncation, reason = "there are few of them")]
fn index(xid: Xid) -> usize {
    xid as usize
}
