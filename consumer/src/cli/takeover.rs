//! `consumer takeover`: what a user may type.

use clap::Args;

use super::CascadeArgs;

#[derive(Args)]
pub(crate) struct TakeoverArgs {
    /// The node that becomes the root: a branch; with --promoted-standby the root itself.
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) cascade: CascadeArgs,
    /// The root as it is now; another one is refused.
    #[arg(long, value_name = "NODE", conflicts_with_all = ["resume", "abort"])]
    pub(crate) from: Option<String>,
    /// The root is gone for good: do without it. What no other node has is lost. With --resume: it was lost after it had handed over.
    #[arg(long, value_name = "NODE", group = "loss", conflicts_with_all = ["from", "abort"])]
    pub(crate) dead: Option<String>,
    /// --db is a standby of the root that was promoted; it is to be the root. What branches have and it lacks it fetches from
    /// them. Typed again, an interrupted takeover of it goes on.
    #[arg(long, group = "loss", conflicts_with = "from")]
    pub(crate) promoted_standby: bool,
    /// With --promoted-standby: how the other nodes' replays reach it from now on; it must not hold a password [default: as
    /// --db].
    #[arg(long, value_name = "CONNINFO", requires = "promoted_standby")]
    pub(crate) location: Option<String>,
    /// Another node that is gone with it, and is not asked; may be repeated. What only that one has is lost, too.
    #[arg(long, value_name = "NODE", requires = "loss")]
    pub(crate) lost: Vec<String>,
    /// A standby of the old root that counts for its confirm gate, and is not asked; may be repeated. What only that one has is lost, too.
    #[arg(long, value_name = "NAME", requires = "loss")]
    pub(crate) lost_standby: Vec<String>,
    /// With --promoted-standby: the name by which it counted for the confirm gate [default: the application_name that it connected with, as
    /// its settings say].
    #[arg(long, value_name = "NAME", requires = "promoted_standby")]
    pub(crate) standby_name: Option<String>,
    /// How the old root was made sure to be off, in words for the journal; needed where no other branch is left that could
    /// confirm the new root.
    #[arg(long, value_name = "TEXT", requires = "loss")]
    pub(crate) fenced_by: Option<String>,
    /// Print what would be done and what stands against it, and change nothing.
    #[arg(long)]
    pub(crate) plan: bool,
    /// Go on with a takeover that was interrupted, wherever it was.
    #[arg(long, conflicts_with_all = ["plan", "abort"])]
    pub(crate) resume: bool,
    /// Give up a takeover that was interrupted: the old root opens again. Not possible once the new one is promoted.
    #[arg(long, conflicts_with = "plan")]
    pub(crate) abort: bool,
    /// A table that the new root need not have; may be repeated.
    #[arg(long, value_name = "SCHEMA.TABLE", conflicts_with_all = ["promoted_standby", "abort"])]
    pub(crate) ignore_table: Vec<String>,
    /// How many seconds each wait may take: for the new root, during which nobody can write, for a lock, for a server's answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) timeout: u64,
    /// How many milliseconds transactions that write are waited for when the old root is closed. New ones wait as long.
    #[arg(long, value_name = "MS", default_value_t = 5000)]
    pub(crate) fence_timeout: u32,
}
