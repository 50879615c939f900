//! `consumer node`: what a user may type.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

#[derive(Args)]
pub(crate) struct NodeArgs {
    #[command(subcommand)]
    pub(crate) command: NodeCommand,
}

#[derive(Subcommand)]
pub(crate) enum NodeCommand {
    /// Make a database the root of a cascade: applications write there.
    ///
    /// The queue is made if it is missing. Done again, it finds everything in place.
    CreateRoot(CreateRootArgs),
    /// Make a database a branch: it gets the tables and its own copy of the queue, and can become the root.
    ///
    /// It needs the extension. It becomes known on the root and on its provider, which keeps what it still needs; then
    /// start its replay: consumer replay --subscriber CONNINFO --queue NAME --table PATTERN. Done again after an
    /// interruption, it completes what is missing.
    CreateBranch(CreateArgs),
    /// Make a database a leaf: it gets the tables, and needs no extension.
    ///
    /// Otherwise as create-branch.
    CreateLeaf(CreateLeafArgs),
    /// Make a copy of a node a node of its own: a restored dump, a base backup, a state of another time.
    ///
    /// It goes on at its last tick, and no table is copied. The copy of a root or branch becomes a branch, that of a leaf a leaf.
    /// Done again after an interruption, it completes what is missing.
    Adopt(AdoptArgs),
    /// Give a node another name.
    ///
    /// Everything may run meanwhile. All nodes have to be reachable, and no takeover under way. Done again after an
    /// interruption, it completes what is missing.
    Rename(RenameArgs),
    /// Take a node out of the cascade.
    ///
    /// Its tables stay, with their rows; its queue, its capture triggers and its position go. Its replay must have been stopped,
    /// and nobody may read from it any more.
    Drop(DropArgs),
    /// Have a node's replay stop after the batch at hand, and wait until it has.
    Pause(WaitingArgs),
    /// Have a paused node's replay go on.
    Resume(WaitingArgs),
    /// Have a node read from another node of the cascade.
    ///
    /// Nothing is lost or applied twice: the position is a tick, which is the same on every node. A node that was not told of a change of
    /// root is told; if the others do not know it, --db is its own database. Interrupted anywhere, it can be typed again.
    ChangeProvider(ChangeProviderArgs),
    /// Say where a node's database is now, or how else it is reached.
    ///
    /// Every node that can be reached is told at once, the others by the root's events. The address has to lead to that node.
    /// Interrupted anywhere, it can be typed again.
    ChangeLocation(ChangeLocationArgs),
    /// Have a root that was given up (takeover --dead) and is there again join as a branch; resurrect, as PgQ calls it.
    ///
    /// It is closed for writers. What was committed there and no other node has is written to a file and kept in its table
    /// pgcascade.lost_event; then it goes out of its queue, and the tables it has changed are copied again by the node's replay.
    /// Nothing is removed before the file was read back. Interrupted anywhere, it can be typed again.
    Rejoin(RejoinArgs),
    /// Wait until a node has applied what its provider, or the root, has at this moment.
    Wait(WaitArgs),
}

/// Where the cascade is.
#[derive(Args)]
pub(crate) struct CascadeArgs {
    /// The queue of the cascade.
    #[arg(long, value_name = "NAME")]
    pub(crate) queue: String,
    /// Any node of the cascade; it knows where the others are.
    #[arg(long, value_name = "CONNINFO")]
    pub(crate) db: String,
}

/// The database that is to be a node.
#[derive(Args)]
pub(crate) struct NewNodeArgs {
    /// The node's name, which no other node of the cascade has.
    pub(crate) name: String,
    /// The queue of the cascade.
    #[arg(long, value_name = "NAME")]
    pub(crate) queue: String,
    /// The database.
    #[arg(long, value_name = "CONNINFO")]
    pub(crate) db: String,
    /// How the other nodes' replays reach the database; every node stores it, so it must not hold a password [default: as
    /// --db].
    #[arg(long, value_name = "CONNINFO")]
    pub(crate) location: Option<String>,
    /// How administrators reach it, where that is another way: with another role, through another network. The commands use it in
    /// place of --location; every node stores it, so it must not hold a password.
    #[arg(long, value_name = "CONNINFO")]
    pub(crate) admin_location: Option<String>,
    /// The name of its replay, as a consumer [default: the node's name and _worker].
    #[arg(long, value_name = "NAME")]
    pub(crate) worker: Option<String>,
}

#[derive(Args)]
pub(crate) struct CreateRootArgs {
    #[command(flatten)]
    pub(crate) node: NewNodeArgs,
}

#[derive(Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    pub(crate) node: NewNodeArgs,
    /// The node that it is to read from: the root, or a branch.
    #[arg(long, value_name = "CONNINFO")]
    pub(crate) provider: String,
}

#[derive(Args)]
pub(crate) struct CreateLeafArgs {
    #[command(flatten)]
    pub(crate) node: CreateArgs,
    /// The events also go into this queue of the database, which is its root; or come through it, if the database is a branch of it.
    #[arg(long, value_name = "QUEUE")]
    pub(crate) merge: Option<String>,
}

#[derive(Args)]
pub(crate) struct AdoptArgs {
    #[command(flatten)]
    pub(crate) node: NewNodeArgs,
    /// The node that it is to read from [default: the one that the original reads from; if it is the root, the original].
    #[arg(long, value_name = "CONNINFO")]
    pub(crate) provider: Option<String>,
}

#[derive(Args)]
pub(crate) struct RenameArgs {
    /// The node.
    pub(crate) old: String,
    /// The name that it gets.
    pub(crate) new: String,
    #[command(flatten)]
    pub(crate) cascade: CascadeArgs,
    /// How many seconds its replay is waited for.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) timeout: u64,
}

#[derive(Args)]
pub(crate) struct DropArgs {
    /// The node to drop.
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) cascade: CascadeArgs,
    /// The node cannot be reached, and will not come back: the others forget it.
    #[arg(long)]
    pub(crate) dead: bool,
}

#[derive(Args)]
pub(crate) struct WaitingArgs {
    /// The node.
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) cascade: CascadeArgs,
    /// How many seconds its replay is waited for.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) timeout: u64,
}

#[derive(Args)]
pub(crate) struct ChangeProviderArgs {
    /// The node whose provider is changed.
    pub(crate) name: String,
    /// The name of the node that it is to read from.
    #[arg(long, value_name = "NODE")]
    pub(crate) provider: String,
    #[command(flatten)]
    pub(crate) cascade: CascadeArgs,
    /// How many seconds its replay is waited for.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) timeout: u64,
}

#[derive(Args)]
pub(crate) struct ChangeLocationArgs {
    /// The node.
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) cascade: CascadeArgs,
    /// How the other nodes' replays reach it [default: as before].
    #[arg(long, value_name = "CONNINFO")]
    pub(crate) location: Option<String>,
    /// How administrators reach it, where that is another way [default: as before, if that still leads to it].
    #[arg(long, value_name = "CONNINFO")]
    pub(crate) admin_location: Option<String>,
    /// Administrators reach it as the other nodes' replays do.
    #[arg(long, conflicts_with = "admin_location")]
    pub(crate) no_admin_location: bool,
}

#[derive(Args)]
pub(crate) struct RejoinArgs {
    /// The old root.
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) cascade: CascadeArgs,
    /// The node that it is to read from: the root, or a branch [default: the root].
    #[arg(long, value_name = "NODE")]
    pub(crate) provider: Option<String>,
    /// The file that events which only this node has are written to, one JSON object per line; needed if there are any.
    #[arg(long, value_name = "FILE")]
    pub(crate) lost_events: Option<PathBuf>,
    /// How many milliseconds transactions that still write there are waited for.
    #[arg(long, value_name = "MS", default_value_t = 5000)]
    pub(crate) fence_timeout: u32,
}

#[derive(Args)]
pub(crate) struct WaitArgs {
    /// The node.
    pub(crate) name: String,
    /// Whose present tick it is to reach.
    #[arg(long, value_name = "WHOSE", value_enum, default_value_t = Whose::Root)]
    pub(crate) for_tick_of: Whose,
    #[command(flatten)]
    pub(crate) cascade: CascadeArgs,
    /// How many seconds it is waited for.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) timeout: u64,
}

/// Whose present tick `wait` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Whose {
    /// The root's.
    Root,
    /// The node's own provider's.
    Provider,
}
