//! A branch that was adopted as a copy of the root, and lacks ticks that its last changes are in.

use super::Found;
use crate::error::{Doing, Result};
use crate::node::tree::Reached;
use crate::takeover::step::Kind;

impl Found {
    /// While the root is there, it gives what the copy lacks, and takeover_begin() refuses. Without the root the copy can be the next one as a
    /// promoted standby can (sql/takeover_standby.sql), unless the cascade went on without it before.
    pub(super) async fn adopted(&mut self, new: &Reached) -> Result<()> {
        let row = new
            .client()
            .query_opt(
                "select a.complete_tick, h.epoch, h.start_tick,
                        (select count(*) from pgcascade.takeover_tail t where t.op_id = a.op_id and t.tick_id is null)
                   from pgcascade.adoption a cross join pgcascade.adoption_end(a.queue_name) h where a.queue_name = $1",
                &[&new.node.queue],
            )
            .await
            .doing(|| format!("look whether {} was a copy of the root", new.node.title()))?;
        let Some(row) = row else {
            return Ok(());
        };
        let (complete, epoch, start): (i64, Option<i64>, Option<i64>) = (row.get(0), row.get(1), row.get(2));
        let adopted = format!("\"{}\" was adopted as a copy of the root", new.node.name);
        if let Some((epoch, start)) = epoch.zip(start) {
            self.add(
                format!("node {adopted}, and epoch {epoch} began after tick {start} without all that it was made with"),
                "choose another branch; behind that one its replay saves what only it has",
            );
        } else if self.kind == Kind::Planned {
            self.add(
                format!("node {adopted}, and does not have tick {complete} yet, by which it has got all that it was made with"),
                "let its replay go on, which gets that from the root; or choose another branch",
            );
        } else {
            self.others.push(format!(
                "{adopted}; of the {} events that it was made with and has not seen in a tick, what nobody has is in the first tick of the new epoch",
                row.get::<_, i64>(3)
            ));
        }
        Ok(())
    }
}
