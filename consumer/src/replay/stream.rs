//! A batch's events, from the provider's COPY to rows of values that can be applied.
//!
//! [`Decoder::read`] takes the events as they arrive, leaves out what is not for this replay (other tables, what a copy
//! holds already) and sends the rest on in chunks of bounded size through a channel that holds one: while a chunk is
//! applied the next one is being read, and nothing further is.

mod late;
mod row;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use wire::event_type::{self, Operation};
use wire::snapshot::Snapshot;

use super::batch::{Part, Source};
use super::chunk::{Chunk, Held, Mark, Shape};
use super::collapse::{Collapse, Freedom};
use super::displaced::OtherKeys;
use super::event::{self, Event, Order, Packs};
use super::execute::{self, Execute};
use super::filter::Filter;
use super::partitions::Leaf;
use super::setup::Target;
use super::table::Name;
use super::table_state::{Copied, Entry, State};
use crate::config::Policy;
use crate::connect::flow::{Message, Reading};
use crate::error::{Doing, Error, Result};
use row::fill;

/// However small the events are: what is pipelined on the subscriber is bounded, too.
const CHUNK_EVENTS: usize = 16 * 1024;

/// So many tables and types are remembered that are not for us; of further ones nothing is said.
const IGNORED: usize = 1_000;

/// A batch in numbers.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Summary {
    /// All events of the batch, also those that are not for us.
    pub(super) events: u64,
    /// Bytes of their data.
    pub(super) bytes: u64,
    /// The size of the largest one.
    pub(super) largest: usize,
    /// There was one of the cascade itself, see duty.rs.
    pub(super) told: bool,
}

/// What was read of a batch so far.
#[derive(Default)]
struct Read {
    summary: Summary,
    chunk: Chunk,
    execute: Option<Execute>,
}

/// What the decoder knows of a table.
struct Route {
    name: Name,
    /// Every column of the subscriber: is it stored (not generated)? Names as bytes in the event's encoding.
    columns: HashMap<Vec<u8>, (String, bool)>,
    primary_key: Vec<String>,
    /// By the name as the event has it.
    parts: HashMap<Vec<u8>, Leaf>,
    /// Columns of the provider that the subscriber need not have.
    left_out: HashSet<Vec<u8>>,
    /// What of the table is replayed.
    filter: Filter,
    /// What of the events is in the copy.
    copied: Option<Copied>,
    /// The copy is not there, or not all events from before its end are applied: new ones have to be kept (held.rs).
    hold: bool,
    freedom: Freedom,
    /// By which rows that are settling may be in each other's way, see displaced.rs.
    other_keys: OtherKeys,
    /// Of some event it is not known whether the copy has its row: no further ones are applied.
    unplaced: bool,
    /// The shape of the last insert, update, delete, truncate, of the last that were settling, and of those that made way besides: nearly
    /// always that of the next.
    last: [Option<usize>; 12],
}

impl Route {
    fn is_by_primary_key(&self, event: &Event<'_>) -> bool {
        let is_key = |name: &[u8]| self.primary_key.iter().any(|column| column.as_bytes() == name);
        let parsed = event_type::parse(event.event_type);
        parsed.is_ok_and(|parsed| {
            parsed.key.len() == self.primary_key.len() && parsed.key.iter().all(|name| is_key(name))
        })
    }
}

/// Turns events into rows. Lives as long as the sessions; knows the tables as they were then.
pub(super) struct Decoder {
    routes: Vec<Route>,
    by_name: HashMap<Vec<u8>, usize>,
    shapes: Vec<Arc<Shape>>,
    /// Tables and types of events that are not for us, to say so once; and parked tables, of which the start speaks.
    ignored: HashSet<Vec<u8>>,
    collapse: Collapse,
    /// Where events are read as they are stored, the id above which the next one's has to be.
    above: Option<i64>,
    /// Of packs the events up to this one are not wanted.
    behind: Option<i64>,
    /// In the careful mode every event is applied, in its order.
    careful: bool,
    /// What is being read are the kept events of a table, to be applied now.
    draining: bool,
    /// There was an event of the cascade itself.
    told: bool,
    /// A partition was made on the way.
    pub(super) made: bool,
    /// Some table has a policy, so that the careful mode needs the events as they came.
    keeps_originals: bool,
    /// The table whose event could not be read.
    pub(super) failed: Option<usize>,
    chunk_bytes: usize,
}

impl Decoder {
    /// `held` are the tables of which events are kept on the subscriber, `parked` those whose events are left out.
    pub(super) fn new(targets: &[Target], held: &HashSet<Name>, parked: &[Entry], chunk_bytes: usize) -> Self {
        let routes: Vec<Route> = targets
            .iter()
            .map(|target| Route {
                name: target.provider.name.clone(),
                primary_key: target.provider.primary_key().to_vec(),
                columns: target
                    .subscriber
                    .columns
                    .iter()
                    .map(|column| {
                        (
                            column.name.clone().into_bytes(),
                            (column.name.clone(), !column.generated),
                        )
                    })
                    .collect(),
                parts: target
                    .leaves
                    .iter()
                    .map(|leaf| (leaf.name.on_the_wire(), leaf.clone()))
                    .collect(),
                left_out: target
                    .provider
                    .columns
                    .iter()
                    .filter(|column| column.generated && target.subscriber.column(&column.name).is_none())
                    .map(|column| column.name.clone().into_bytes())
                    .collect(),
                filter: target.filter.clone(),
                copied: match &target.state {
                    State::CatchingUp(copied) => Some(copied.clone()),
                    State::InChunks(from) => Some(Copied {
                        from: from.clone(),
                        to: None,
                        places: None,
                    }),
                    State::InCopy | State::Ok | State::Broken => None,
                },
                hold: target.state.to_copy() || held.contains(&target.provider.name),
                freedom: target.freedom(),
                other_keys: target.other_keys().unwrap_or_default(),
                unplaced: false,
                last: [None; 12],
            })
            .collect();
        let mut by_name: HashMap<Vec<u8>, usize> = HashMap::new();
        for (i, route) in routes.iter().enumerate() {
            // A table by its own name comes before one that has, or had, a partition of that name.
            by_name.insert(route.name.on_the_wire(), i);
            for part in route.parts.keys() {
                by_name.entry(part.clone()).or_insert(i);
            }
        }
        Self {
            routes,
            by_name,
            shapes: Vec::new(),
            ignored: parked.iter().map(|entry| entry.provider.on_the_wire()).collect(),
            collapse: Collapse::default(),
            above: None,
            behind: None,
            careful: false,
            draining: false,
            told: false,
            made: false,
            keeps_originals: targets.iter().any(|target| target.policy != Policy::Stop),
            failed: None,
            chunk_bytes,
        }
    }

    /// The tables whose copy this tick leaves behind: none of its snapshots' events can come any more. They are not
    /// filtered from the next batch on.
    pub(super) fn caught_up(&self, tick: &Snapshot) -> Vec<usize> {
        let behind = |copied: &Copied| tick.xmin >= copied.last().xmax;
        (0..self.routes.len())
            .filter(|&i| !self.routes[i].hold && self.routes[i].copied.as_ref().is_some_and(behind))
            .collect()
    }

    /// The table's copy is there.
    pub(super) fn copied(&mut self, table: usize, copied: Copied) {
        self.routes[table].copied = Some(copied);
    }

    /// All kept events of the table are applied: what comes now is applied at once.
    pub(super) fn release(&mut self, table: usize) {
        self.routes[table].hold = false;
    }

    /// The tables of which events are being kept.
    pub(super) fn held(&self) -> HashSet<Name> {
        let held = self.routes.iter().filter(|route| route.hold);
        held.map(|route| route.name.clone()).collect()
    }

    /// Whether events of a table are being kept.
    pub(super) fn holds(&self) -> bool {
        self.routes.iter().any(|route| route.hold)
    }

    /// Whether any table's rows are filtered.
    pub(super) fn by_rows(&self) -> bool {
        self.routes.iter().any(|route| route.filter.rows.is_some())
    }

    /// Whether the places of rows matter, see places.rs.
    pub(super) fn by_place(&self) -> bool {
        let is_by_place = |route: &Route| (route.hold || route.copied.is_some()) && route.primary_key.is_empty();
        self.routes.iter().any(is_by_place)
    }

    /// The tables that have to be copied again, as it was not known of some event whether the copy has its row.
    pub(super) fn unplaced(&self) -> Vec<usize> {
        (0..self.routes.len()).filter(|&i| self.routes[i].unplaced).collect()
    }

    /// These are to be, whatever comes.
    pub(super) fn refuse(&mut self, unplaced: &[usize]) {
        for &table in unplaced {
            self.routes[table].unplaced = true;
        }
    }

    /// To be called when the transaction that says so is committed.
    pub(super) fn stop_filtering(&mut self, table: usize) {
        self.routes[table].copied = None;
    }

    /// Whether a batch's end changes nothing here: what comes behind it may be decoded before it is committed.
    pub(super) fn is_settled(&self) -> bool {
        let is_settled = |route: &Route| !route.hold && route.copied.is_none();
        !self.made && self.late().next().is_none() && self.routes.iter().all(is_settled)
    }

    /// Of what is going to be read.
    pub(super) fn begin(&mut self, order: Order, source: Source, careful: bool) {
        self.above = (order == Order::AsStored).then_some(i64::MIN);
        self.behind = match source {
            Source::Behind(event) => Some(event),
            Source::Batch | Source::Kept => None,
        };
        self.draining = source == Source::Kept;
        self.careful = careful;
    }

    /// Reads a batch up to its end, or to what is to be executed there. Ends early, without an error, when nobody takes the
    /// chunks any more.
    pub(super) async fn read(
        &mut self,
        mut source: Reading,
        parts: &mpsc::Sender<Part>,
    ) -> Result<(Summary, Option<Execute>)> {
        let what = || "read the batch from the provider".to_owned();
        let mut read = Read::default();
        let mut packs = Packs::default();
        let mut header_seen = false;
        'rows: loop {
            let (mut bytes, hold) = match source.next().await {
                Some(message) => {
                    let Message { bytes, hold } = message.doing(what)?;
                    (Some(bytes), hold)
                }
                None => (None, None),
            };
            if let Some(first) = bytes.take_if(|_| !header_seen) {
                header_seen = true;
                let row = event::without_header(first)?;
                if row.is_empty() {
                    continue;
                }
                bytes = Some(row);
            }
            let row = bytes.as_ref().map(Event::parse).transpose()?.flatten();
            while let Some(packed) = packs.event(row.as_ref().map(|row| row.id)) {
                self.take(&packed, &mut read)?;
                if read.execute.is_some() {
                    break 'rows;
                }
                packs.go_on()?;
                if !self.hand_on(&mut read, parts).await {
                    return Ok((read.summary, None));
                }
            }
            let Some(row) = row else { break };
            read.summary.largest = read.summary.largest.max(bytes.as_ref().map_or(0, Bytes::len));
            if row.is_pack {
                packs.open(&row)?;
            } else {
                self.take(&row, &mut read)?;
                if read.execute.is_some() {
                    break;
                }
            }
            read.chunk.keep(hold);
            // The chunk has what is needed of it, and may have to wait for its turn.
            drop(bytes);
            if !self.hand_on(&mut read, parts).await {
                return Ok((read.summary, None));
            }
        }
        if read.chunk.events() > 0 {
            // Whoever stopped taking them knows why.
            let _ = parts.send(Part::Chunk(self.finish(&mut read.chunk))).await;
        }
        read.summary.told = std::mem::take(&mut self.told);
        Ok((read.summary, read.execute))
    }

    /// Takes the next event: into the chunk, or as what is to be executed.
    fn take(&mut self, event: &Event<'_>, read: &mut Read) -> Result<()> {
        if self.behind.is_some_and(|behind| event.id <= behind) {
            return Ok(());
        }
        read.summary.events += 1;
        read.summary.bytes += event.data.map_or(0, <[u8]>::len) as u64;
        let is_execute = event.event_type == execute::EVENT_TYPE;
        if let Some(above) = &mut self.above {
            // What comes behind one that is to be executed is asked for by id.
            if event.id <= *above || is_execute {
                return Err(Error::failure(format!("event {} is not stored by event id", event.id)));
            }
            *above = event.id;
        }
        if is_execute {
            read.execute = Some(Execute::of(event)?);
            return Ok(());
        }
        self.decode(event, &mut read.chunk).map_err(|(table, error)| {
            self.failed = Some(table);
            error
        })
    }

    /// Sends a chunk on that is full. False: nobody takes it.
    async fn hand_on(&mut self, read: &mut Read, parts: &mpsc::Sender<Part>) -> bool {
        if read.chunk.bytes() < self.chunk_bytes && read.chunk.events() < CHUNK_EVENTS {
            return true;
        }
        let full = self.finish(&mut read.chunk);
        parts.send(Part::Chunk(full)).await.is_ok()
    }

    fn finish(&mut self, chunk: &mut Chunk) -> Chunk {
        chunk.shapes.clone_from(&self.shapes);
        if self.careful {
            chunk.net = vec![false; self.routes.len()];
        } else {
            let freedom = |route: &Route| match (&route.copied, route.freedom) {
                // What is settling must not be taken for what it looks like, nor be overtaken by what is not.
                (Some(Copied { to: Some(_), .. }), Freedom::Net) => Freedom::Ordered,
                (_, Freedom::Net) if route.filter.rows.is_some() => Freedom::Ordered,
                (_, freedom) => freedom,
            };
            let freedom: Vec<Freedom> = self.routes.iter().map(freedom).collect();
            self.collapse.run(chunk, &freedom);
        }
        std::mem::take(chunk)
    }

    /// Adds the event to the chunk, unless it is not for us.
    fn decode(&mut self, event: &Event<'_>, chunk: &mut Chunk) -> Result<(), (usize, Error)> {
        let Some(route) = self.route(event) else { return Ok(()) };
        self.decode_for(route, event, chunk).map_err(|error| (route, error))
    }

    fn decode_for(&mut self, route: usize, event: &Event<'_>, chunk: &mut Chunk) -> Result<()> {
        let mut settling = false;
        if let Some(copied) = &self.routes[route].copied {
            if copied.from.sees(event.txid) {
                return Ok(());
            }
            settling = copied.to.as_ref().is_some_and(|to| to.sees(event.txid));
            if let Some(places) = copied.places.as_ref().filter(|_| settling) {
                match places.has_row(event) {
                    Some(true) => return Ok(()),
                    Some(false) => settling = false,
                    None => self.routes[route].unplaced = true,
                }
            }
        }
        if self.routes[route].unplaced {
            return Ok(());
        }
        if self.routes[route].hold && !self.draining {
            let is_keyless = self.routes[route].primary_key.is_empty();
            chunk.hold(Held {
                table: route,
                name: event.table.unwrap_or_default().to_vec(),
                id: event.id,
                txid: event.txid,
                event_type: event.event_type.to_vec(),
                data: event.data.map(|data| event.keep(data)),
                extra2: event.extra2.map(<[u8]>::to_vec),
                place: event.place.filter(|_| is_keyless).map(<[u8]>::to_vec),
            });
            return Ok(());
        }
        let makes_way = settling;
        self.make_late(route, event, chunk);
        let mark = chunk.mark();
        let mut kind = match event.event_type.first() {
            Some(b'I') => 0,
            Some(b'U') => 1,
            Some(b'D') => 2,
            _ => 3,
        };
        // See filter.rs.
        let mut becomes = None;
        if self.routes[route].filter.rows.is_some() {
            match (event.extra2, kind) {
                (Some(b"t"), 1) => (kind, becomes) = (0, Some(Operation::Insert)),
                (Some(b"f"), 0..=2) => (kind, becomes) = (2, Some(Operation::Delete)),
                _ => {}
            }
            settling |= becomes.is_some();
        }
        if makes_way && kind == 1 && self.routes[route].is_by_primary_key(event) {
            // Its row may have been in the way of another one, and is gone: whatever keys there are now.
            (kind, becomes) = (0, Some(Operation::Insert));
        }
        let kind = kind + 4 * (usize::from(settling) + usize::from(makes_way));
        // Those of partitions look all the same.
        if kind % 4 < 3
            && let Some(shape) = self.routes[route].last[kind]
        {
            match fill(&self.shapes[shape], event, chunk) {
                Ok(true) => {
                    self.add(chunk, mark, event, shape);
                    return Ok(());
                }
                Ok(false) => {
                    chunk.take_back(mark);
                }
                Err(what) => return Err(self.unreadable(route, event, &what)),
            }
        }
        let shape = self.shape(route, event, becomes, (settling, makes_way))?;
        self.routes[route].last[kind] = Some(shape);
        match fill(&self.shapes[shape], event, chunk) {
            Ok(true) => {
                self.add(chunk, mark, event, shape);
                Ok(())
            }
            Ok(false) => Err(self.unreadable(route, event, "it changed its columns while it was read")),
            Err(what) => Err(self.unreadable(route, event, &what)),
        }
    }

    fn add(&self, chunk: &mut Chunk, mark: Mark, event: &Event<'_>, shape: usize) {
        chunk.add_row(mark, event.id, shape);
        if self.careful && self.keeps_originals {
            chunk.keep_original(event);
        }
    }

    fn route(&mut self, event: &Event<'_>) -> Option<usize> {
        let name = event.table.unwrap_or_default();
        if let Some(&route) = self.by_name.get(name) {
            return Some(route);
        }
        if event.event_type.starts_with(b"pgq.") {
            self.told = true;
            return None;
        }
        let seen = if name.is_empty() { event.event_type } else { name };
        if self.ignored.len() < IGNORED && !self.ignored.contains(seen) {
            self.ignored.insert(seen.to_vec());
            let table = String::from_utf8_lossy(name);
            let event_type = String::from_utf8_lossy(event.event_type);
            tracing::warn!(ev_id = event.id, %table, %event_type, "events that belong to no table of the set are ignored (said once)");
        }
        None
    }
}
