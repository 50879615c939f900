//! Cascades: nodes made by `consumer node`, each with a `consumer replay` that is told only which node it is. The nodes
//! are databases of one cluster.
#![allow(missing_docs, dead_code, reason = "a test binary has no interface")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod cluster;

#[path = "cascade/tree.rs"]
mod tree;

#[path = "cascade/addresses.rs"]
mod addresses;
#[path = "cascade/branch.rs"]
mod branch;
#[path = "cascade/change.rs"]
mod change;
#[path = "cascade/check.rs"]
mod check;
#[path = "cascade/copies.rs"]
mod copies;
#[path = "cascade/copy_from.rs"]
mod copy_from;
#[path = "cascade/gate.rs"]
mod gate;
#[path = "cascade/large.rs"]
mod large;
#[path = "cascade/merge.rs"]
mod merge;
#[path = "cascade/names.rs"]
mod names;
#[path = "cascade/partitions.rs"]
mod partitions;
#[path = "cascade/refusals.rs"]
mod refusals;
#[path = "cascade/root_copies.rs"]
mod root_copies;
#[path = "cascade/sources.rs"]
mod sources;
#[path = "cascade/status.rs"]
mod status;
#[path = "cascade/tables.rs"]
mod tables;
#[path = "cascade/waits.rs"]
mod waits;
