//! What the loop does when there is nothing to apply.

use super::super::copy::{self, Copies};
use super::super::{Memory, trouble};
use super::{Stream, arrived};
use crate::config::ReplayConfig;
use crate::error::Result;

impl Stream<'_> {
    /// Until there may be something to do.
    pub(super) async fn wait(
        &mut self,
        config: &ReplayConfig,
        copies: &mut Copies,
        memory: &mut Memory,
    ) -> Result<Option<copy::Done>> {
        // All four are cancel-safe. A closed channel is a lost connection, which the next query reports.
        tokio::select! {
            _ = self.ready.provider.notifications.recv() => Ok(None),
            () = tokio::time::sleep(config.poll_interval) => Ok(None),
            () = self.shutdown.wait() => Ok(None),
            done = copies.next(), if copies.running() => arrived(done, &self.ready, memory).await,
        }
    }

    /// Whether the sessions have buffers that are worth giving back. There is no other way to that than to end them.
    pub(super) fn is_swollen(&self) -> bool {
        self.largest >= self.max_memory.swells()
    }

    /// There is nothing to apply, and nothing went wrong on the way to knowing that. False: the set of tables was changed meanwhile; a
    /// transaction is open then, so nothing may follow but the end of the session.
    pub(super) async fn in_order(&self, memory: &mut Memory) -> Result<bool> {
        if memory.in_order && memory.parking.is_empty() {
            return Ok(true);
        }
        let (client, who) = (&self.ready.subscriber.client, &self.ready.who);
        if self.begin().await? != self.ready.revision {
            return Ok(false);
        }
        memory.parking.write(client, who).await?;
        trouble::over(client, who).await?;
        who.commit(client, self.ready.tick, "").await?;
        memory.parking.done();
        memory.in_order = true;
        Ok(true)
    }
}
