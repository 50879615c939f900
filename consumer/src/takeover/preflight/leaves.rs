//! Where leaves are before a takeover without the old root, and whether one that is ahead can give what it has.

use super::Found;
use crate::error::{Doing, Result};
use crate::node::tree::{Known, Reached};
use crate::replay::donated;
use crate::takeover::leaves::REMEDY;

impl Found {
    /// Adds what there is to say of the leaves; `furthest` is where the branches are. Returns the last tick that anybody can give.
    pub(super) async fn leaves(&mut self, new: &Reached, furthest: i64, leaves: Vec<(Known, Reached)>) -> Result<i64> {
        let top = leaves.iter().map(|(_, leaf)| leaf.node.tick).max().unwrap_or(0);
        let branch = new.node.reload(&new.client()).await?;
        let (mut gives, mut lacking) = (None, Vec::new());
        for (known, leaf) in &leaves {
            let (name, tick) = (&leaf.node.name, leaf.node.tick);
            self.epoch = self.epoch.max(promised(leaf).await? + 1);
            let mut line = format!("leaf \"{name}\" is at tick {tick}");
            if tick == top && tick > furthest {
                match donated::lacks(&leaf.client(), &leaf.node, &branch).await? {
                    _ if known.dead => lacking.push(format!("{line}, but was declared dead")),
                    None => {
                        line += ", and gives what no branch has from its journal";
                        gives = Some(tick);
                    }
                    Some(lacks) => lacking.push(format!(
                        "{line}, and no branch is further than {furthest}: it has changes that all others lack, and cannot give \
                         them: {lacks}"
                    )),
                }
            }
            self.others.push(line);
        }
        if gives.is_none() {
            for what in lacking {
                self.add(what, REMEDY);
            }
        }
        Ok(gives.unwrap_or(furthest))
    }

    /// A leaf that is promised to another takeover would not follow this one.
    pub(super) async fn promised_leaf(&mut self, leaf: &Reached) -> Result<()> {
        let row = leaf
            .client()
            .query_one(
                // Versions before 14 have no such column.
                "select string_agg(p.key, ', ' order by p.value::int8)
                   from pgcascade_replay.node n, pg_catalog.jsonb_each_text(pg_catalog.to_jsonb(n) -> 'promises') p where n.queue = $1",
                &[&leaf.node.queue],
            )
            .await
            .doing(|| format!("read what {} has promised", leaf.node.title()))?;
        if let Some(ops) = row.get::<_, Option<String>>(0) {
            self.add(
                format!("leaf \"{}\" is promised to takeover {ops}", leaf.node.name),
                "finish or abort that one first; where it was aborted, start the replay of the leaf, which asks",
            );
        }
        Ok(())
    }
}

/// The highest epoch that the leaf has promised or follows.
async fn promised(leaf: &Reached) -> Result<i64> {
    let row = leaf
        .client()
        .query_one(
            // Versions before 14 have no such columns.
            "select greatest(coalesce((pg_catalog.to_jsonb(n) ->> 'epoch')::int8, 1),
                             (select max(p.value::int8) from pg_catalog.jsonb_each_text(pg_catalog.to_jsonb(n) -> 'promises') p))
               from pgcascade_replay.node n where n.queue = $1",
            &[&leaf.node.queue],
        )
        .await
        .doing(|| format!("read what {} has promised", leaf.node.title()))?;
    Ok(row.get(0))
}
