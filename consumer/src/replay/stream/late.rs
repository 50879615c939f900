//! Partitions that the subscriber gets just before their first event; why is said in partitions/make.rs.

use std::sync::Arc;

use wire::event_type::Operation;

use super::super::chunk::{Chunk, Part, Shape};
use super::super::event::Event;
use super::super::table::Name;
use super::Decoder;

impl Decoder {
    /// Before the first event of a partition that is late: what makes it.
    pub(super) fn make_late(&mut self, route: usize, event: &Event<'_>, chunk: &mut Chunk) {
        let part = self.routes[route].parts.get_mut(event.table.unwrap_or_default());
        let Some(sql) = part.and_then(|part| part.make.take()) else {
            return;
        };
        let id = self.shapes.len();
        self.shapes.push(Arc::new(Shape {
            id,
            table: route,
            operation: Operation::Truncate,
            columns: Vec::new(),
            key: Vec::new(),
            by_primary_key: false,
            settling: false,
            makes_way: None,
            part: Some(Part::Make(sql)),
            event_type: Vec::new(),
            names: Vec::new(),
        }));
        self.made = true;
        let mark = chunk.mark();
        self.add(chunk, mark, event, id);
    }

    /// The late partitions that there has been no event of, by their names on the provider.
    pub(in crate::replay) fn late(&self) -> impl Iterator<Item = &Name> {
        let parts = self.routes.iter().flat_map(|route| route.parts.values());
        parts.filter(|part| part.make.is_some()).map(|part| &part.name)
    }

    /// Whether events are kept of a table that has any.
    pub(in crate::replay) fn late_are_held(&self) -> bool {
        let mut held = self.routes.iter().filter(|route| route.hold);
        held.any(|route| route.parts.values().any(|part| part.make.is_some()))
    }
}
