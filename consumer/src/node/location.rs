//! `consumer node change-location`: the node's database is somewhere else now, or is reached another way.
//!
//! Nodes learn where others are from the root's events, which those cannot read that read from the very node that has moved. So every
//! node that can be reached is told, each in a write of its own, and the root last, whose event tells the rest: until then the command
//! finds the others as before, and can be typed again. Nobody is told anything before the new address was found to lead to the node.

use std::time::Duration;

use tokio::time::timeout;

use super::create::facts;
use super::tree::{self, Known, Reached};
use crate::cascade::{self, Role, home};
use crate::cli::ChangeLocationArgs;
use crate::config::conninfo;
use crate::conninfo::refuse_password;
use crate::error::{Error, Result};
use crate::failpoint::failpoint;

/// How long an address that the node had is waited for: longer than for a connection, as what is slow for once is neither forgotten nor gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// `change-location`
pub(super) async fn run(args: ChangeLocationArgs) -> Result<()> {
    if args.location.is_none() && args.admin_location.is_none() && !args.no_admin_location {
        return Err(Error::usage("there is nothing to change").hint("Give --location or --admin-location."));
    }
    for (flag, text) in [
        ("--location", &args.location),
        ("--admin-location", &args.admin_location),
    ] {
        if let Some(text) = text {
            refuse_password(flag, text)?;
        }
    }
    let entry = tree::entry(&args.cascade).await?;
    let queue = &entry.node.queue;
    let before = tree::find(&entry, &args.name).await?;
    if before.dead {
        return Err(Error::usage(format!("node \"{}\" is declared dead", args.name))
            .hint("A root that is back joins with consumer node rejoin; another node is dropped and made anew."));
    }
    let location = args.location.clone().unwrap_or_else(|| before.location.clone());
    let at = arrive("location", &location, &args.name, queue).await?;
    let identity: String = facts(&at.client()).await?.get(0);
    let admin_location = match &args.admin_location {
        Some(given) => {
            let other = arrive("admin-location", given, &args.name, queue).await?;
            if facts(&other.client()).await?.get::<_, String>(0) != identity {
                return Err(Error::usage(format!(
                    "--admin-location leads to another database than the address for programs, {location}"
                )));
            }
            Some(given.clone())
        }
        None if args.no_admin_location => None,
        None => still_leads(&before, &at).await,
    };
    check_alone(&before, &at).await?;
    let now = Known {
        location,
        admin_location,
        ..before
    };

    let mut root = (at.node.role == Role::Root).then_some(&at);
    let mut others = Vec::new();
    for known in tree::known(&entry).await? {
        if known.name == now.name || known.dead {
            continue;
        }
        match tree::reach_known(&known, queue).await {
            Ok(other) => others.push(other),
            Err(error) => tracing::warn!(
                node = known.name,
                "{error}; it learns the address from the root's event"
            ),
        }
    }
    root = root.or_else(|| others.iter().find(|other| other.node.role == Role::Root));
    let Some(root) = root else {
        return Err(
            Error::failure("the root cannot be reached, which has to tell all nodes")
                .hint("If it is the root that has moved: consumer node change-location ROOT. Nothing was changed."),
        );
    };
    let itself = (at.node.role != Role::Root).then_some(&at);
    let below = others.iter().filter(|other| other.node.role != Role::Root);
    for node in itself.into_iter().chain(below).chain([root]) {
        now.tell(&node.client(), &node.node).await?;
        failpoint("node_told");
    }
    tracing::info!(
        node = now.name,
        queue,
        location = now.location,
        admin_location = now.admin_location,
        "location changed"
    );
    Ok(())
}

/// Connects to the node where it is said to be.
async fn arrive(flag: &str, text: &str, name: &str, queue: &str) -> Result<Reached> {
    let place = conninfo(flag, Some(text))?;
    let at = tree::reach(&place, queue)
        .await
        .map_err(|error| error.within(format_args!("--{flag}")))?;
    if cascade::is_called(&at.client(), &at.node, name).await? {
        return Ok(at);
    }
    Err(Error::usage(format!(
        "--{flag} ({place}) leads to {}, not to node \"{name}\"",
        at.node.title()
    )))
}

/// The address for administrators, if the node is still there.
async fn still_leads(before: &Known, at: &Reached) -> Option<String> {
    before.admin_location.as_ref()?;
    let look = async {
        let there = tree::reach(&before.place()?, &at.node.queue).await?;
        home::same_database(&at.client(), &there.client()).await
    };
    if let Ok(Ok(true)) = timeout(PATIENCE, look).await {
        return before.admin_location.clone();
    }
    tracing::warn!(
        node = before.name,
        "the address for administrators does not lead there, and is forgotten: --admin-location gives another one"
    );
    None
}

/// Refuses a copy: where the node was until now there must not be another database that says that it is the node.
async fn check_alone(before: &Known, at: &Reached) -> Result<()> {
    let look = async {
        let place = conninfo("location", Some(&before.location))?;
        let there = tree::reach(&place, &at.node.queue).await?;
        let another = there.node.name == at.node.name && !home::same_database(&at.client(), &there.client()).await?;
        Ok::<_, Error>(another)
    };
    match timeout(PATIENCE, look).await {
        Ok(Ok(true)) => Err(Error::failure(format!(
            "{} is still at {}, too: one of the two is a copy",
            at.node.title(),
            before.location
        ))
        .hint("Nothing was changed. Stop the one that is not to go on; or make the copy a node of its own: consumer node adopt")),
        _ => Ok(()),
    }
}
