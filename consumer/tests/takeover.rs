//! `consumer takeover`: the root of a cascade moves while applications write to it. The nodes are databases of one cluster,
//! each with a replay of its own, which is told nothing of takeovers.
//!
//! Every write has a number that no other has, in a table without a key: what is lost or applied twice shows in it.
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

#[path = "takeover/abort.rs"]
mod abort;
#[path = "takeover/adopted.rs"]
mod adopted;
#[path = "takeover/again.rs"]
mod again;
#[path = "takeover/changes.rs"]
mod changes;
#[path = "takeover/copying.rs"]
mod copying;
#[path = "takeover/dead.rs"]
mod dead;
#[path = "takeover/donor.rs"]
mod donor;
#[path = "takeover/gate.rs"]
mod gate;
#[path = "takeover/history.rs"]
mod history;
#[path = "takeover/keys.rs"]
mod keys;
#[path = "takeover/later.rs"]
mod later;
#[path = "takeover/leaf.rs"]
mod leaf;
#[path = "takeover/load.rs"]
mod load;
#[path = "takeover/merges.rs"]
mod merges;
#[path = "takeover/onward.rs"]
mod onward;
#[path = "takeover/partitions.rs"]
mod partitions;
#[path = "takeover/planned.rs"]
mod planned;
#[path = "takeover/returned.rs"]
mod returned;
#[path = "takeover/silent.rs"]
mod silent;
#[path = "takeover/standby.rs"]
mod standby;
#[path = "takeover/untold.rs"]
mod untold;
#[path = "takeover/writers.rs"]
mod writers;
