//! An event's values: which columns they are of, and their way into a chunk.

use std::sync::Arc;

use wire::event_type::{self, Operation};
use wire::urlenc;

use super::super::chunk::{Chunk, Shape};
use super::super::event::Event;
use super::Decoder;
use crate::connect::flow::LARGE;
use crate::error::{Error, Result};

impl Decoder {
    /// The shape of the event, which may become another operation; a new one if there is none like it.
    pub(super) fn shape(
        &mut self,
        route: usize,
        event: &Event<'_>,
        becomes: Option<Operation>,
        (settling, makes_way): (bool, bool),
    ) -> Result<usize> {
        let mut parsed = event_type::parse(event.event_type)
            .map_err(|error| self.unreadable(route, event, &format!("its type is not logutriga's: {error}")))?;
        parsed.operation = becomes.unwrap_or(parsed.operation);
        let mut names = Vec::new();
        if parsed.operation != Operation::Truncate {
            for pair in urlenc::raw_pairs(event.data.unwrap_or_default()) {
                let (name, _) = pair.map_err(|error| self.unreadable(route, event, &error.to_string()))?;
                names.push(name.decode().into_owned());
            }
        }
        let part = match self.routes[route].parts.get(event.table.unwrap_or_default()) {
            Some(part) if parsed.operation == Operation::Truncate => Some(part.truncate.clone().ok_or_else(|| {
                self.unreadable(
                    route,
                    event,
                    "it truncates a partition by hash, and the subscriber has none with the same rows that the role may truncate",
                )
            })?),
            _ => None,
        };
        if let Some(shape) = self.shapes.iter().find(|shape| {
            shape.table == route
                && shape.operation == parsed.operation
                && shape.part == part
                && shape.settling == settling
                && shape.makes_way.is_some() == makes_way
                && shape.event_type == event.event_type
                && shape.names.iter().map(|(name, _)| name).eq(names.iter())
        }) {
            return Ok(shape.id);
        }
        let keyed = matches!(parsed.operation, Operation::Update | Operation::Delete);
        let mut columns = Vec::new();
        let mut kept = Vec::new();
        for name in names {
            let keep = match self.routes[route].columns.get(&name) {
                _ if self.routes[route].filter.leaves_out(&String::from_utf8_lossy(&name)) => false,
                Some((_, stored)) => {
                    *stored && (parsed.operation != Operation::Delete || parsed.key.iter().any(|key| **key == *name))
                }
                None if self.routes[route].left_out.contains(&name) => false,
                None => {
                    let column = String::from_utf8_lossy(&name).into_owned();
                    return Err(Error::failure(format!(
                        "table {} on the subscriber has no column \"{column}\", which event {} of the provider has",
                        self.routes[route].name, event.id
                    ))
                    .of_one_table()
                    .hint(
                        "Add the column on the subscriber, then start replay again; nothing of the batch was applied.",
                    ));
                }
            };
            if keep && let Some((column, _)) = self.routes[route].columns.get(&name) {
                columns.push(column.clone());
            }
            kept.push((name, keep));
        }
        let mut key = Vec::new();
        if keyed {
            if parsed.key.is_empty() {
                return Err(self.unreadable(route, event, "it changes a row and names no key"));
            }
            for name in &parsed.key {
                let at = columns.iter().position(|column| column.as_bytes() == &**name);
                key.push(at.ok_or_else(|| {
                    self.unreadable(
                        route,
                        event,
                        &format!("its key column \"{}\" has no value", String::from_utf8_lossy(name)),
                    )
                })?);
            }
        }
        let primary_key = &self.routes[route].primary_key;
        let in_its_order: Option<Vec<usize>> = primary_key
            .iter()
            .map(|name| columns.iter().position(|column| column == name))
            .collect();
        let in_its_order = in_its_order.filter(|order| !order.is_empty());
        let by_primary_key = in_its_order
            .as_ref()
            .is_some_and(|order| !keyed || (key.len() == order.len() && key.iter().all(|at| order.contains(at))));
        if by_primary_key && let Some(order) = in_its_order {
            key = order;
        }
        let id = self.shapes.len();
        self.shapes.push(Arc::new(Shape {
            id,
            table: route,
            operation: parsed.operation,
            columns,
            key,
            by_primary_key,
            settling,
            makes_way: makes_way.then(|| Arc::clone(&self.routes[route].other_keys)),
            part,
            event_type: event.event_type.to_vec(),
            names: kept,
        }));
        Ok(id)
    }

    pub(super) fn unreadable(&self, route: usize, event: &Event<'_>, why: &str) -> Error {
        Error::failure(format!(
            "event {} of table {} cannot be read: {why}",
            event.id, self.routes[route].name
        ))
        .of_one_table()
        .hint("Events of replayed tables are written by pgq.logutriga; see it with: consumer tail")
    }
}

/// Puts the event's values into the chunk. False if the event does not have this shape; the caller takes back what was
/// put in.
pub(super) fn fill(shape: &Shape, event: &Event<'_>, chunk: &mut Chunk) -> Result<bool, String> {
    if shape.event_type != event.event_type {
        return Ok(false);
    }
    if shape.operation == Operation::Truncate {
        return Ok(true);
    }
    let mut names = shape.names.iter();
    let mut column = 0;
    for pair in urlenc::raw_pairs(event.data.unwrap_or_default()) {
        let (name, value) = pair.map_err(|error| error.to_string())?;
        match names.next() {
            Some((expected, keep)) if name.is(expected) => {
                if *keep {
                    match value {
                        // Those of the key are compared.
                        Some(value) if value.bytes().len() >= LARGE && !shape.key.contains(&column) => {
                            chunk.push_large(value.held_by(|bytes| event.keep(bytes)))?;
                        }
                        value => chunk.push(value)?,
                    }
                    column += 1;
                }
            }
            _ => return Ok(false),
        }
    }
    Ok(names.next().is_none())
}
