//! Standbys of the old root that counted for its confirm gate (sql/gate_standby.sql): a leaf or a program may have ticks that no branch
//! has, because one of them does. A branch has stored their names before they count, and so has every other standby of the gate.

use super::Found;
use crate::cli::TakeoverArgs;
use crate::error::{Doing, Result};
use crate::node::tree::Reached;

/// A standby that a branch knows of, and up to which tick it may have what others lack; None: no limit.
pub(super) type Standby = (String, Option<i64>);

/// The standbys of the root that a branch has stored.
pub(super) async fn followed(at: &Reached) -> Result<Vec<Standby>> {
    let rows = at
        .client()
        .query(
            "select f.standby_name, f.until_tick from pgcascade.followed_standby f join pgq.queue q using (queue_id) where q.queue_name = $1",
            &[&at.node.queue],
        )
        .await
        .doing(|| format!("read which standbys of the root {} knows", at.node.title()))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// The names of those that may have more than what anybody can give, which is up to tick `furthest`.
fn beyond(known: Vec<Standby>, furthest: i64) -> Vec<String> {
    let mut names: Vec<String> = known
        .into_iter()
        .filter(|(_, until)| until.is_none_or(|until| until > furthest))
        .map(|(name, _)| name)
        .collect();
    names.sort();
    names.dedup();
    names
}

impl Found {
    /// Adds the standbys of the old root, which nobody asks.
    pub(super) fn standbys(&mut self, known: Vec<Standby>, furthest: i64, args: &TakeoverArgs) {
        self.unasked(
            &beyond(known, furthest),
            args,
            "promote it, and make it the root: consumer takeover --promoted-standby",
        );
    }

    /// The same where one of them was promoted: those that it knows of itself, and those that branches know.
    pub(super) async fn other_standbys(
        &mut self,
        new: &Reached,
        known: Vec<Standby>,
        furthest: i64,
        args: &TakeoverArgs,
    ) -> Result<()> {
        let rows = new
            .client()
            .query(
                "select s from pgcascade.other_standbys($1, $2, $3) s",
                &[&new.node.queue, &args.standby_name, &beyond(known, furthest)],
            )
            .await
            .doing(|| format!("read which standbys counted beside {}", new.node.title()))?;
        let names: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        self.unasked(
            &names,
            args,
            "have it stream from this one; if it is this one, say so with --standby-name",
        );
        Ok(())
    }

    fn unasked(&mut self, names: &[String], args: &TakeoverArgs, remedy: &str) {
        for name in names.iter().filter(|name| !args.lost_standby.contains(name)) {
            self.add(
                format!("standby \"{name}\" counted for the confirm gate, and may have what no other has"),
                &format!("{remedy}; or give it up with --lost-standby"),
            );
        }
    }
}
