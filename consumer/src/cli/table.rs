//! The command line of `consumer table` and its verbs.

use clap::{Args, Subcommand};

use super::{CompareArgs, EndsArgs, RepairArgs};
use crate::config::ReplaySettings;

/// The verbs.
#[derive(Subcommand)]
pub(crate) enum TableCommand {
    #[command(flatten)]
    Set(SetCommand),
    /// The same as consumer compare.
    Compare(Box<CompareArgs>),
    /// The same as consumer repair.
    Repair(Box<RepairArgs>),
}

/// Those that look at the set of tables, or change it.
#[derive(Subcommand)]
pub(crate) enum SetCommand {
    /// Add tables to those that are replayed.
    ///
    /// Checks both ends, makes what is missing (on the provider the triggers, the queue and the registration; on the
    /// subscriber the state and, with --create, the tables) and records the tables. Replay, if it runs, goes on with them
    /// by itself: it copies them and then applies their changes. A trigger belongs to the queue, so all its consumers get
    /// the same rows of a table, and no more columns than its trigger captures.
    Add(Box<AddArgs>),
    /// Take tables out: their rows stay on the subscriber, their changes are not replayed any more.
    ///
    /// The capture triggers on the provider are dropped, unless another consumer of the queue may need them.
    Remove(RemoveArgs),
    /// Show the tables that are replayed: state, name on the subscriber, filter, error.
    List(ListArgs),
    /// Copy tables again, with the present rows of the subscriber replaced by the provider's.
    Resync(ResyncArgs),
    /// Show what is not replayed: the provider's tables that are not in the set, and those of the set that are not complete.
    Missing(MissingArgs),
}

/// Whose tables.
#[derive(Args)]
pub(crate) struct WhoseArgs {
    #[command(flatten)]
    pub(crate) ends: EndsArgs,
    /// The queue.
    #[arg(long, value_name = "NAME")]
    pub(crate) queue: Option<String>,
    /// The consumer's name [default: as for replay].
    #[arg(long, value_name = "NAME")]
    pub(crate) consumer: Option<String>,
}

impl WhoseArgs {
    /// As replay's settings, with those of the file.
    pub(crate) fn settings(self) -> crate::error::Result<ReplaySettings> {
        self.ends.settings(self.queue, self.consumer)
    }
}

#[derive(Args)]
pub(crate) struct AddArgs {
    /// Tables of the provider, as schema.table; `*` and `?` stand for any characters, and without a schema it is public's.
    #[arg(value_name = "PATTERN", required_unless_present = "all")]
    pub(crate) patterns: Vec<String>,
    #[command(flatten)]
    pub(crate) whose: WhoseArgs,
    /// Every table of the provider that is not replayed yet.
    #[arg(long, conflicts_with = "patterns")]
    pub(crate) all: bool,
    /// Replay these columns only, which must include the primary key. Commas between them; letters are lower case unless
    /// in double quotes.
    #[arg(long, value_name = "COLUMNS", conflicts_with = "except")]
    pub(crate) only: Option<String>,
    /// Leave these columns out.
    #[arg(long, value_name = "COLUMNS")]
    pub(crate) except: Option<String>,
    /// Replay the rows only for which this SQL condition is true. It sees the columns by their plain names.
    #[arg(long = "where", value_name = "CONDITION")]
    pub(crate) condition: Option<String>,
    /// The table's name on the subscriber, as schema.table; schema.* changes the schema of all of them.
    #[arg(long, value_name = "NAME")]
    pub(crate) rename: Option<String>,
    /// Make the tables that the subscriber lacks, with columns, defaults, keys, indexes and foreign keys like the provider's.
    #[arg(long)]
    pub(crate) create: bool,
    /// As --create, with the provider's triggers, policies, grants, comments and options of storage, too.
    #[arg(long)]
    pub(crate) create_full: bool,
    /// With --create: make no foreign keys.
    #[arg(long)]
    pub(crate) no_foreign_keys: bool,
    /// Do not copy the rows that are already there: the subscriber's tables hold them, or do not need them.
    #[arg(long)]
    pub(crate) no_copy: bool,
    /// Replay runs with --no-sequences: no rights on sequences are needed.
    #[arg(long)]
    pub(crate) no_sequences: bool,
    /// Replace the rows that the subscriber's tables have. Without this a table that has rows is refused.
    #[arg(long, conflicts_with = "no_copy")]
    pub(crate) replace: bool,
    /// The subscriber's tables may have rows of other sources, which other queues bring: copy beside them.
    #[arg(long, conflicts_with_all = ["no_copy", "replace"])]
    pub(crate) merge: bool,
}

#[derive(Args)]
pub(crate) struct RemoveArgs {
    /// Tables, by their names on the provider; patterns as for add.
    #[arg(value_name = "PATTERN", required = true)]
    pub(crate) patterns: Vec<String>,
    #[command(flatten)]
    pub(crate) whose: WhoseArgs,
    /// Leave the capture triggers on the provider as they are.
    #[arg(long)]
    pub(crate) keep_triggers: bool,
}

#[derive(Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) whose: WhoseArgs,
    /// Print one JSON object per table instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct ResyncArgs {
    /// Tables, by their names on the provider; patterns as for add.
    #[arg(value_name = "PATTERN", required = true)]
    pub(crate) patterns: Vec<String>,
    #[command(flatten)]
    pub(crate) whose: WhoseArgs,
}

#[derive(Args)]
pub(crate) struct MissingArgs {
    #[command(flatten)]
    pub(crate) whose: WhoseArgs,
    /// Print one JSON object per table instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}
