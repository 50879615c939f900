//! The journal of takeovers, on the new root, and the steps that are taken there.

use tokio_postgres::Row;

use super::step::{Kind, Step};
use crate::error::{Doing, Error, Result};
use crate::node::tree::Reached;

/// A takeover, as its journal had it.
#[derive(Debug, Clone)]
pub(super) struct Op {
    pub(super) id: String,
    pub(super) queue: String,
    pub(super) kind: Kind,
    /// The last step that was taken; None: it was aborted.
    pub(super) step: Option<Step>,
    pub(super) old: String,
    pub(super) epoch: i64,
    /// The last tick of the old epoch, once that is known.
    pub(super) fork: Option<i64>,
    /// Who had that.
    pub(super) donor: Option<String>,
    /// Since when, as text.
    pub(super) since: String,
    pub(super) error: Option<String>,
    /// Who is dead because of it.
    pub(super) lost: Vec<String>,
    /// This run has looked at the tables while nobody could write.
    pub(super) looked: bool,
    /// This run of the command.
    holder: String,
}

const COLUMNS: &str =
    "op_id::text, queue_name, kind, step, old_node, epoch_new, fork_tick, updated_at::text, error, donor, lost";

fn op(row: &Row, holder: String) -> Result<Op> {
    let step: &str = row.get(3);
    Ok(Op {
        id: row.get(0),
        queue: row.get(1),
        kind: Kind::parse(row.get(2))?,
        step: if step == "aborted" {
            None
        } else {
            Some(Step::parse(step)?)
        },
        old: row.get(4),
        epoch: row.get(5),
        fork: row.get(6),
        since: row.get(7),
        error: row.get(8),
        donor: row.get(9),
        lost: row.get(10),
        looked: false,
        holder,
    })
}

/// Tells this run from every other.
fn holder() -> String {
    format!("pid {}-{:08x}", std::process::id(), rand::random::<u32>())
}

/// The last takeover that was begun on this node.
pub(super) async fn last(new: &Reached) -> Result<Option<Op>> {
    let row = new
        .client()
        .query_opt(
            &format!("select {COLUMNS} from pgcascade.takeover where queue_name = $1 order by started desc limit 1"),
            &[&new.node.queue],
        )
        .await
        .doing(|| format!("read the journal of {}", new.node.title()))?;
    row.map(|row| op(&row, String::new())).transpose()
}

/// What is to be begun.
pub(super) struct Begin {
    pub(super) kind: Kind,
    pub(super) old: String,
    /// The lowest epoch that it may have.
    pub(super) epoch: i64,
    /// How many other nodes have to confirm.
    pub(super) confirms: i32,
}

/// Enters a new one.
pub(super) async fn begin(new: &Reached, begin: &Begin, fenced_by: Option<&str>, lost: &[&str]) -> Result<Op> {
    let holder = holder();
    let what = || format!("begin a takeover to {}", new.node.title());
    new.client()
        .execute(
            "select pgcascade.takeover_begin($1, $2, $3, $4, $5, $6, $7, $8)",
            &[
                &new.node.queue,
                &begin.kind.word(),
                &begin.old,
                &begin.epoch,
                &holder,
                &begin.confirms,
                &fenced_by,
                &lost,
            ],
        )
        .await
        .doing(what)
        .map_err(|error| {
            if new.client().is_closed() {
                error.hint(
                    "It may have begun all the same: consumer takeover --plan shows that, and --abort gives it up.",
                )
            } else {
                error
            }
        })?;
    let row = new
        .client()
        .query_one(
            &format!("select {COLUMNS} from pgcascade.takeover where queue_name = $1 and holder = $2"),
            &[&new.node.queue, &holder],
        )
        .await
        .doing(what)?;
    op(&row, holder)
}

/// Takes it over from the run that had it.
pub(super) async fn claim(new: &Reached, known: Op) -> Result<Op> {
    let holder = holder();
    let row = new
        .client()
        .query_one(
            &format!("select {COLUMNS} from pgcascade.takeover_claim($1::text::uuid, $2)"),
            &[&known.id, &holder],
        )
        .await
        .doing(|| format!("go on with takeover {}", known.id))?;
    op(&row, holder)
}

impl Op {
    /// Goes on without the old root, which was lost after the promotion. Nothing changes where that is not needed any more.
    pub(super) async fn without_old(
        self,
        new: &Reached,
        confirms: i32,
        fenced_by: Option<&str>,
        lost: &[&str],
    ) -> Result<Self> {
        let what = || format!("go on with takeover {} without \"{}\"", self.id, self.old);
        new.client()
            .execute(
                "select pgcascade.takeover_without_old($1::text::uuid, $2, $3, $4, $5)",
                &[&self.id, &self.holder, &confirms, &fenced_by, &lost],
            )
            .await
            .doing(what)?;
        let row = new
            .client()
            .query_one(
                &format!("select {COLUMNS} from pgcascade.takeover where op_id = $1::text::uuid"),
                &[&self.id],
            )
            .await
            .doing(what)?;
        op(&row, self.holder.clone())
    }

    /// The last tick of the old epoch, in a step before which it must be known.
    pub(super) fn fork(&self) -> Result<i64> {
        self.fork
            .ok_or_else(|| Error::failure(format!("the journal of takeover {} has no closing tick", self.id)))
    }

    /// Who has it.
    pub(super) fn donor(&self) -> Result<&str> {
        self.donor
            .as_deref()
            .ok_or_else(|| Error::failure(format!("the journal of takeover {} has no donor", self.id)))
    }

    /// Lets the new root fetch from the donor up to the last tick of the old epoch.
    pub(super) async fn fetch(&self, new: &Reached, donor: &str, epochs: &Option<String>) -> Result<()> {
        new.client()
            .execute(
                "select pgcascade.takeover_fetch($1::text::uuid, $2, $3, $4::text::jsonb)",
                &[&self.id, &self.holder, &donor, epochs],
            )
            .await
            .doing(|| format!("have {} read from \"{donor}\"", new.node.title()))?;
        Ok(())
    }

    /// Enters a step that was taken elsewhere.
    pub(super) async fn advance(&self, new: &Reached, step: Step) -> Result<()> {
        new.client()
            .execute(
                "select pgcascade.takeover_advance($1::text::uuid, $2, $3, $4, $5)",
                &[&self.id, &self.holder, &step.word(), &self.fork, &self.donor],
            )
            .await
            .doing(|| {
                format!(
                    "enter in the journal of takeover {} that it is {}",
                    self.id,
                    step.word()
                )
            })?;
        Ok(())
    }

    /// The change of root. Returns the epochs, as the other nodes have to learn them.
    pub(super) async fn promote(&self, new: &Reached, max_tick: i64, max_event: i64) -> Result<String> {
        let row = new
            .client()
            .query_one(
                "select pgcascade.takeover_promote($1::text::uuid, $2, $3, $4, $5)::text",
                &[&self.id, &self.holder, &self.fork()?, &max_tick, &max_event],
            )
            .await
            .doing(|| format!("promote {}", new.node.title()))?;
        Ok(row.get(0))
    }

    /// Enters who has confirmed.
    pub(super) async fn confirmed(&self, new: &Reached, by: &str) -> Result<()> {
        new.client()
            .execute(
                "select pgcascade.takeover_confirmed($1::text::uuid, $2, $3)",
                &[&self.id, &self.holder, &by],
            )
            .await
            .doing(|| {
                format!(
                    "enter in the journal of takeover {} that \"{by}\" has confirmed",
                    self.id
                )
            })?;
        Ok(())
    }

    /// Lets applications write to the new root.
    pub(super) async fn open(&self, new: &Reached) -> Result<()> {
        new.client()
            .execute(
                "select pgcascade.takeover_open($1::text::uuid, $2)",
                &[&self.id, &self.holder],
            )
            .await
            .doing(|| format!("open {}", new.node.title()))?;
        Ok(())
    }
}

/// From here on it cannot promote.
pub(super) async fn abort(new: &Reached, op: &Op, why: &str) -> Result<()> {
    new.client()
        .execute(
            "select pgcascade.takeover_abort($1::text::uuid, $2, $3)",
            &[&op.id, &op.holder, &why],
        )
        .await
        .doing(|| format!("abort takeover {}", op.id))?;
    Ok(())
}

/// Notes why it does not go on.
pub(super) async fn failed(new: &Reached, op: &Op, why: &str) -> Result<()> {
    new.client()
        .execute(
            "select pgcascade.takeover_failed($1::text::uuid, $2, $3)",
            &[&op.id, &op.holder, &why],
        )
        .await
        .doing(|| format!("note why takeover {} stopped", op.id))?;
    Ok(())
}
