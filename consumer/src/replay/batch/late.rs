//! When late partitions can be made although there was no event of them (partitions/make.rs): once all is applied that was
//! committed when they were seen, what was kept of their tables (held.rs) included.

use wire::snapshot::Snapshot;

use super::super::stream::Decoder;
use super::super::{Memory, goal, setup};
use super::Stream;
use crate::error::Result;

/// What has to be applied before.
pub(super) enum Until {
    /// No partition is late.
    Never,
    /// What this snapshot of the provider sees.
    Seen(Snapshot),
    /// What the provider had itself: it is a branch, and makes its partitions by the same rule.
    Tick(i64),
}

impl Until {
    /// To be asked after the look at the partitions.
    pub(super) async fn now(ready: &setup::Ready, decoder: &Decoder, queue: &str) -> Result<Self> {
        let p = &ready.provider.client;
        Ok(match decoder.late().next() {
            None => Self::Never,
            Some(_) if ready.external => Self::Tick(goal::goal_tick(p, queue).await?),
            Some(_) => Self::Seen(goal::goal(p, queue).await?),
        })
    }
}

impl Stream<'_> {
    /// Whether the subscriber has got partitions, or is to get some now: then all begins again with a look at them.
    pub(super) fn partitions_change(&self, reached: Option<&Snapshot>, memory: &mut Memory) -> bool {
        let Some(decoder) = &self.decoder else { return false };
        let ripe = match &self.late {
            Until::Never => false,
            Until::Seen(seen) => reached.is_some_and(|reached| reached.includes(seen)),
            Until::Tick(tick) => self.ready.tick >= *tick,
        };
        // Kept events are from before that, and yet to come.
        if ripe && !decoder.late_are_held() {
            memory.ripe = decoder.late().cloned().collect();
        }
        decoder.made || !memory.ripe.is_empty()
    }
}
