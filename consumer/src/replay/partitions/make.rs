//! Making the partitions that the subscriber lacks (`--create`): with their table (create.rs), later as they come (survey.rs), or
//! between two events.
//!
//! Where there is a default partition, the moment matters. On the provider the rows that belong into the new one were moved or
//! deleted before it was made, perhaps by a TRUNCATE of the default one; here they are still there when that is yet to come. So
//! such a partition is late ([`Partitions::late`]): it is made in the batch's transaction, before the first event that it has
//! (stream.rs), or when all is applied that was there when it was seen, so that it has none among that (batch.rs).

use tokio_postgres::Client;

use super::super::create::{in_schema, make_schema, partition_by};
use super::super::table::Table;
use super::super::table_state::{Entry, State};
use super::{Partition, Partitions};
use crate::connect::End;
use crate::error::{Doing, Result};

/// What makes a partition like this one, for somebody to run.
pub(in crate::replay) fn statement(part: &Partition) -> String {
    in_schema(&part.name) + &ddl(part, "")
}

fn ddl(part: &Partition, unless: &str) -> String {
    let (name, parent) = (part.name.quoted(), part.parent.quoted());
    let by = partition_by(part.part_key.as_deref());
    format!("create table {unless}{name} partition of {parent} {}{by}", part.bound)
}

/// Makes partitions, which are given from the top down.
pub(in crate::replay) async fn make(subscriber: &Client, parts: &[Partition]) -> Result<()> {
    for part in parts {
        make_schema(subscriber, &part.name.schema).await?;
        subscriber
            .batch_execute(&ddl(part, ""))
            .await
            .doing(|| format!("make partition {} on the subscriber", part.name))?;
        tracing::info!(partition = %part.name, "partition made on the subscriber");
    }
    Ok(())
}

impl Partitions {
    /// Of the partitions that a subscriber's table lacks and is to have, those that have to wait for the events before
    /// them. `missing` are all, from the top down.
    pub(in crate::replay) fn late(
        &self,
        entry: &Entry,
        provider: &Table,
        subscriber: &Table,
        missing: &[Partition],
    ) -> Vec<Partition> {
        // What is copied from now on has the rows as they are divided now.
        if entry.is_new || entry.state == State::InCopy {
            return Vec::new();
        }
        let there = self.below(End::Subscriber, subscriber);
        let mut late: Vec<Partition> = Vec::new();
        for part in missing {
            let is_ripe = self
                .below(End::Provider, provider)
                .iter()
                .any(|above| above.place == part.place && self.ripe.contains(&above.name));
            let has_default = there
                .iter()
                .any(|there| there.parent == part.parent && there.bound == "DEFAULT");
            if has_default && !is_ripe || late.iter().any(|above| above.name == part.parent) {
                late.push(part.clone());
            }
        }
        late
    }
}

/// What makes one of these, and those above it, unless they are there.
pub(super) fn chain(late: &[Partition], place: &str) -> Option<String> {
    let mut part = late.iter().find(|part| part.place == place)?;
    let mut sql = String::new();
    loop {
        let ddl = ddl(part, "if not exists ");
        sql = format!("{}{ddl}; {sql}", in_schema(&part.name));
        match late.iter().find(|above| above.name == part.parent) {
            Some(above) => part = above,
            None => return Some(sql),
        }
    }
}
