//! The steps of a takeover by a promoted standby of the root: a copy of the root, up to some place in its log, that is to
//! be the root under the same name at another place.
//!
//! They are those of a takeover without the old root (dead.rs), and what differs is how it catches up. Branches, or a leaf with its
//! journal, may have ticks that it lacks, while it has a part of their events, and events that no branch has: it sets aside what no tick of its own shows, goes on as a
//! branch of the furthest one, be it a leaf, and replays what is missing with the program's own replay, which leaves out what it had
//! (sql/takeover_standby.sql). merge.rs, a test, shows that nothing simpler is right.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::dead;
use super::journal::Op;
use super::leaves;
use super::planned::{self, Limits};
use super::step::Step;
use crate::cascade::{Role, ask, newer_epochs, set_location};
use crate::cli::TakeoverArgs;
use crate::config::ReplaySettings;
use crate::conninfo::refuse_password;
use crate::error::{Doing, Error, Result};
use crate::failpoint::failpoint;
use crate::node::tree::{self, Reached};
use crate::progress::Progress;
use crate::replay;
use crate::shutdown::Shutdown;

/// How often a server is asked whether its recovery has ended.
const POLL: Duration = Duration::from_millis(100);

/// Where the new root is.
pub(super) struct Place {
    /// For this command.
    pub(super) db: String,
    /// For the other nodes, where that was said.
    location: Option<String>,
    pub(super) shutdown: Shutdown,
}

impl Place {
    pub(super) fn of(args: &TakeoverArgs, shutdown: Shutdown) -> Result<Self> {
        let db = args.cascade.db.clone();
        let (flag, told) = match &args.location {
            Some(location) => ("--location", location),
            None => ("--db", &db),
        };
        if args.promoted_standby {
            refuse_password(flag, told)?;
        }
        Ok(Self {
            db,
            location: args.location.clone(),
            shutdown,
        })
    }

    /// What the other nodes are to be told when it begins.
    pub(super) fn told(&self) -> &str {
        self.location.as_deref().unwrap_or(&self.db)
    }

    /// The same later on: what was said when it began, unless this command says something else.
    async fn location(&self, new: &Reached) -> Result<String> {
        match &self.location {
            Some(location) => Ok(location.clone()),
            None => Ok(tree::find(new, &new.node.name).await?.location),
        }
    }
}

/// The promoted standby itself: nobody else knows where it is. Waits for the end of its recovery.
pub(super) async fn itself(entry: Reached, args: &TakeoverArgs) -> Result<Reached> {
    if entry.node.name != args.name {
        return Err(Error::usage(format!(
            "--db leads to node \"{}\", and not to the promoted standby of node \"{}\"",
            entry.node.name, args.name
        ))
        .hint("Give the database on the promoted server in --db."));
    }
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    loop {
        let row = entry
            .client()
            .query_one("select pg_catalog.pg_is_in_recovery()", &[])
            .await
            .doing(|| format!("see whether the server of {} is a standby", entry.node.title()))?;
        if !row.get::<_, bool>(0) {
            return Ok(entry);
        }
        if Instant::now() >= deadline {
            return Err(
                Error::failure(format!("the server of {} is still a standby", entry.node.title()))
                    .hint("Promote it first; or wait longer for that with --timeout."),
            );
        }
        sleep(POLL).await;
    }
}

/// Takes one step.
pub(super) async fn step(new: &Reached, op: &mut Op, step: Step, limits: &Limits, place: &Place) -> Result<()> {
    match step {
        Step::Promised => dead::promise(new, op).await,
        Step::Elected => elect(new, op).await,
        Step::CaughtUp => catch_up(new, op, limits, place).await,
        Step::Promoted => dead::promote(new, op).await,
        Step::Repointed => repoint(new, op, limits, place).await,
        Step::Opened => dead::open(new, op, limits).await,
        Step::Done => tell(new, op, place).await,
        Step::Prepared | Step::Fenced | Step::Drained | Step::Demoted => Err(Error::failure(format!(
            "a takeover by a promoted standby has no step {}",
            step.word()
        ))),
    }
}

async fn elect(new: &Reached, op: &mut Op) -> Result<()> {
    let ours = dead::promised(new, op).await?;
    let mut furthest = (ours, new.node.name.clone());
    for other in dead::branches(new, op).await? {
        let there = dead::promised(&other, op).await?;
        if there.0 > ours.0 {
            return Err(Error::failure(format!(
                "{} is in epoch {}, and the promoted standby in epoch {}: it is no standby of the root",
                other.node.title(),
                there.0,
                ours.0
            )));
        }
        if there.0 == ours.0
            && let Some(what) = differ(new, ours.1, &other, there.1).await?
        {
            return Err(Error::failure(what));
        }
        if there > furthest.0 {
            furthest = (there, other.node.name);
        }
    }
    let ((_, mut tick), mut donor) = furthest;
    if let Some(ahead) = leaves::ahead(new, op, tick).await? {
        (donor, tick) = ahead;
    }
    (op.fork, op.donor) = (Some(tick), Some(donor));
    op.advance(new, Step::Elected).await
}

/// A tick of a node and what came with it.
struct Digest {
    tick: i64,
    made: i64,
    event_seq: i64,
    /// None: the node does not have the tick before.
    events: Option<String>,
}

async fn digest(at: &Reached, tick: i64) -> Result<Option<Digest>> {
    let row = at
        .client()
        .query_opt(
            "select tick_id, (extract(epoch from tick_time) * 1000000)::int8, event_seq, digest from pgcascade.tick_digest($1, $2)",
            &[&at.node.queue, &tick],
        )
        .await
        .doing(|| format!("look at tick {tick} of {}", at.node.title()))?;
    Ok(row.map(|row| Digest {
        tick: row.get(0),
        made: row.get(1),
        event_seq: row.get(2),
        events: row.get(3),
    }))
}

/// How the two went different ways, or that the branch can not give what the standby lacks; None: neither.
pub(super) async fn differ(new: &Reached, ours: i64, other: &Reached, theirs: i64) -> Result<Option<String>> {
    let last = ours.min(theirs);
    let (here, there) = (digest(new, last).await?, digest(other, last).await?);
    let name = &other.node.name;
    let Some((here, there)) = here.zip(there) else {
        return Ok(Some(format!(
            "the promoted standby is at tick {ours} and branch \"{name}\" at tick {theirs}, and not both have tick {last} any more"
        )));
    };
    let same = here.tick == there.tick && here.made == there.made && here.event_seq == there.event_seq;
    if !same
        || here
            .events
            .as_ref()
            .zip(there.events.as_ref())
            .is_some_and(|(a, b)| a != b)
    {
        return Ok(Some(format!(
            "the promoted standby and branch \"{name}\" do not have the same ticks: tick {last} differs"
        )));
    }
    Ok(None)
}

async fn catch_up(new: &Reached, op: &Op, limits: &Limits, place: &Place) -> Result<()> {
    let (fork, donor) = (op.fork()?, op.donor()?);
    let now = new.node.reload(&new.client()).await?;
    if donor != new.node.name && now.tick < fork {
        let from = tree::reach_known(&tree::find(new, donor).await?, &op.queue).await?;
        let epochs = if from.node.role == Role::Leaf {
            leaves::check_journal(&from, &now).await?;
            leaves::epochs(new, op).await?
        } else {
            newer_epochs(&from.client(), &op.queue, 0).await?
        };
        op.fetch(new, donor, &epochs).await?;
        failpoint("takeover_set_aside");
        fetch(new, op, fork, limits, place).await?;
    }
    leaves::settle(new, op).await?;
    op.advance(new, Step::CaughtUp).await
}

/// Replays up to the fork; where another replay of the node runs, that one does it.
async fn fetch(new: &Reached, op: &Op, fork: i64, limits: &Limits, place: &Place) -> Result<()> {
    let settings = ReplaySettings {
        subscriber: Some(place.db.clone()),
        queue: Some(op.queue.clone()),
        until_caught_up: Some(true),
        retry_max: Some(1),
        ..ReplaySettings::default()
    };
    let replay = replay::run(settings.job()?, place.shutdown.clone(), Progress::silent());
    tokio::select! {
        reached = planned::reach(new, fork, limits) => reached,
        // Dropped half way, its session ends, and the server rolls back.
        outcome = Box::pin(replay) => {
            outcome?;
            planned::reach(new, fork, limits).await
        }
    }
}

/// All nodes learn where the root is now, and those that read from it begin to read there.
async fn repoint(new: &Reached, op: &Op, limits: &Limits, place: &Place) -> Result<()> {
    let location = place.location(new).await?;
    let introduce = async |other: &Reached| {
        set_location(&other.client(), &other.node, &new.node.name, &location, false).await?;
        failpoint("takeover_located");
        Ok(())
    };
    dead::repoint_survivors(new, op, limits, &new.node.name, introduce).await
}

/// The root's events tell everybody, also who could not be reached.
async fn tell(new: &Reached, op: &Op, place: &Place) -> Result<()> {
    let title = new.node.title();
    let call = "pgq_node.register_location($1, $2, $3, $4)";
    let location = place.location(new).await?;
    ask(
        &new.client(),
        &title,
        call,
        &[&op.queue, &new.node.name, &location, &false],
    )
    .await?;
    for gone in tree::known(new).await?.iter().filter(|known| known.dead) {
        ask(
            &new.client(),
            &title,
            call,
            &[&op.queue, &gone.name, &gone.location, &true],
        )
        .await?;
    }
    op.advance(new, Step::Done).await
}
