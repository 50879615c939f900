//! The protocol by which another node of a cascade becomes the root: its steps, and a model of it that is looked through in every
//! order of events. What is modelled is in the database (sql/takeover_node.sql, sql/takeover_journal.sql; docs/takeover.md).

mod model;
mod step;
