//! `consumer replay`, the real binary, against real clusters. Needs `make install` into the tree of `regress/cluster`.
#![allow(missing_docs, dead_code, reason = "a test binary has no interface")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod cluster;

#[path = "replay/ahead.rs"]
mod ahead;
#[path = "replay/application.rs"]
mod application;
#[path = "replay/basics.rs"]
mod basics;
#[path = "replay/beside.rs"]
mod beside;
#[path = "replay/chunks.rs"]
mod chunks;
#[path = "replay/conflicts.rs"]
mod conflicts;
#[path = "replay/copies.rs"]
mod copies;
#[path = "replay/copy_from.rs"]
mod copy_from;
#[path = "replay/crashes.rs"]
mod crashes;
#[path = "replay/create_full.rs"]
mod create_full;
#[path = "replay/displaced.rs"]
mod displaced;
#[path = "replay/errors.rs"]
mod errors;
#[path = "replay/findings.rs"]
mod findings;
#[path = "replay/foreign_keys.rs"]
mod foreign_keys;
#[path = "replay/indexes.rs"]
mod indexes;
#[path = "replay/order.rs"]
mod order;
#[path = "replay/partitions.rs"]
mod partitions;
#[path = "replay/places.rs"]
mod places;
#[path = "replay/refusals.rs"]
mod refusals;
#[path = "replay/sequences.rs"]
mod sequences;
#[path = "replay/servers.rs"]
mod servers;
#[path = "replay/sets.rs"]
mod sets;
#[path = "replay/size.rs"]
mod size;
#[path = "replay/torture.rs"]
mod torture;
#[path = "replay/truncate.rs"]
mod truncate;
