//! `consumer node`: making, changing and dropping the nodes of a cascade.
//!
//! Every command is a list of steps that each can be done again: whoever is interrupted types the same command once
//! more. What several nodes have to know is written where it is needed first, and on the node itself last; until then
//! the cascade is the one from before. Nothing here applies data: that is replay's, which asks its node at every batch
//! what it is to do (replay/duty.rs).

mod adopt;
pub(crate) mod change;
mod create;
mod drop;
pub(crate) mod epoch;
pub(crate) mod gravestone;
mod location;
mod rejoin;
mod rename;
pub(crate) mod tree;
mod wait;

use crate::cli::{NodeArgs, NodeCommand};
use crate::error::Result;
use crate::shutdown::Shutdown;

/// Runs one of them. A signal ends it between two of its steps, or wherever it waits.
pub(crate) async fn run(args: NodeArgs, shutdown: Shutdown) -> Result<()> {
    let command = async {
        match args.command {
            NodeCommand::CreateRoot(args) => create::root(args).await,
            NodeCommand::CreateBranch(args) => create::branch(args).await,
            NodeCommand::CreateLeaf(args) => create::leaf(args).await,
            NodeCommand::Adopt(args) => adopt::run(args).await,
            NodeCommand::Rename(args) => rename::run(args).await,
            NodeCommand::Drop(args) => drop::run(args).await,
            NodeCommand::Pause(args) => change::pause(args, true).await,
            NodeCommand::Resume(args) => change::pause(args, false).await,
            NodeCommand::ChangeProvider(args) => change::provider(args).await,
            NodeCommand::ChangeLocation(args) => location::run(args).await,
            NodeCommand::Rejoin(args) => rejoin::run(args).await,
            NodeCommand::Wait(args) => wait::run(args).await,
        }
    };
    // Each step is one transaction, so what is dropped half way is rolled back by its server.
    tokio::select! {
        outcome = Box::pin(command) => outcome,
        () = shutdown.wait() => Ok(()),
    }
}
