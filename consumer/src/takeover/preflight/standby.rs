//! What is looked at before a promoted standby of the root becomes the root.

use tokio::time::timeout;
use tokio_postgres::error::SqlState;

use super::{Found, PROBE, facts, gate};
use crate::cascade::{Role, newer_epochs};
use crate::cli::TakeoverArgs;
use crate::config::conninfo;
use crate::connect::{End, connect_within};
use crate::conninfo::ConnInfo;
use crate::error::{Doing, Result};
use crate::node::tree::{self, Known, Reached};
use crate::takeover::journal::Op;
use crate::takeover::standby::{Place, differ};
use crate::takeover::step::Kind;

/// Which server a database is on, and what the server is.
#[derive(PartialEq, Eq)]
struct Server {
    system: String,
    started: String,
    recovers: bool,
    open: bool,
}

/// Whether the node is a root that takes writes, where it was last seen.
pub(in crate::takeover) async fn is_open(new: &Reached) -> Result<bool> {
    let row = new
        .client()
        .query_one(
            "select s.open and coalesce(s.system_id = c.system_identifier::text and s.timeline = pgcascade.current_timeline(), false)
               from pgcascade.node_state s, pg_catalog.pg_control_system() c where s.queue_name = $1",
            &[&new.node.queue],
        )
        .await
        .doing(|| format!("look at {}", new.node.title()))?;
    Ok(row.get(0))
}

async fn server(place: &ConnInfo, queue: &str) -> Result<Server> {
    let session = connect_within(place, End::Node, "consumer takeover", tree::PATIENCE.get().copied()).await?;
    let row = session
        .ask()
        .query_one(
            "select c.system_identifier::text, pg_catalog.pg_postmaster_start_time()::text, pg_catalog.pg_is_in_recovery(),
                    coalesce((select s.open from pgcascade.node_state s where s.queue_name = $1), false)
               from pg_catalog.pg_control_system() c",
            &[&queue],
        )
        .await
        .doing(|| format!("look at the database ({place})"))?;
    Ok(Server {
        system: row.get(0),
        started: row.get(1),
        recovers: row.get(2),
        open: row.get(3),
    })
}

/// Looks at the promoted standby, at the place of the root that it was a standby of, and at the other nodes.
pub(in crate::takeover) async fn look(
    new: &Reached,
    live: Option<Op>,
    args: &TakeoverArgs,
    place: &Place,
) -> Result<Found> {
    let queue = &new.node.queue;
    let mut found = Found::new(Kind::Standby, new, &new.node.name, live);
    let here = server(&conninfo("db", Some(&place.db))?, queue).await?;
    if server(&conninfo("location", Some(place.told()))?, queue).await? != here {
        found.add(
            "--location leads to another server than --db".to_owned(),
            "correct it: other nodes are told that the root is there",
        );
    }
    found.itself(new).await?;
    let known = tree::known(new).await?;
    for known in &known {
        if known.name == new.node.name {
            found.old_place(known, &here, queue).await;
        }
    }
    let ours = facts(new).await?;
    found.merged(&ours, &new.node.name);
    found.epoch = ours.epoch + 1;
    let (mut branches, mut furthest, mut leaves) = (0, ours.top, Vec::new());
    let mut standbys = Vec::new();
    for known in &known {
        if known.name == new.node.name || args.lost.contains(&known.name) {
            continue;
        }
        match tree::reach_known(known, queue).await {
            Err(_) if known.dead => {}
            Ok(other) if other.node.role == Role::Leaf => leaves.push((known.clone(), other)),
            Ok(other) if other.node.role == Role::Root => found.add(
                format!(
                    "\"{}\" is the root: it was moved there before the standby was promoted",
                    known.name
                ),
                &format!(
                    "do not use the promoted standby as a node; make it anew. If \"{0}\" is not open yet: consumer takeover {0} --resume --dead {1}",
                    known.name, new.node.name
                ),
            ),
            Ok(other) => {
                if newer_epochs(&other.client(), queue, epoch(new).await?).await?.is_some() {
                    found.add(
                        format!(
                            "branch \"{}\" knows a newer epoch than the promoted standby",
                            known.name
                        ),
                        "the root was moved since: do not use the promoted standby as a node; make it anew",
                    );
                    continue;
                }
                let theirs = facts(&other).await?;
                found.epoch = found.epoch.max(theirs.epoch + 1);
                if let Some(what) = differ(new, ours.top, &other, theirs.top).await? {
                    found.add(
                        what,
                        "it cannot be merged: make a branch the root with --dead, or give the branch up with --lost",
                    );
                }
                furthest = furthest.max(theirs.top);
                branches += 1;
                standbys.extend(gate::followed(&other).await?);
                found.others.push(format!(
                    "branch \"{}\" is at tick {}, {}",
                    known.name,
                    theirs.top,
                    match theirs.top - ours.top {
                        0 => "as the promoted standby".to_owned(),
                        n if n < 0 => "which the promoted standby has".to_owned(),
                        _ => format!("and the promoted standby at tick {}", ours.top),
                    }
                ));
            }
            Err(error) => found.add(
                format!(
                    "node \"{}\" cannot be reached, and may have what no other has: {error}",
                    known.name
                ),
                "start it; or give it up with --lost",
            ),
        }
    }
    let top = found.leaves(new, furthest, leaves).await?;
    found.behind = top - ours.top;
    found.other_standbys(new, standbys, top, args).await?;
    if branches == 0 {
        found.confirms = 0;
        if args.fenced_by.is_none() {
            found.add(
                "no branch is there that could confirm the new root".to_owned(),
                "make sure that the old server is off and stays off, and say how: --fenced-by TEXT",
            );
        }
    }
    Ok(found)
}

async fn epoch(at: &Reached) -> Result<i64> {
    let row = at
        .client()
        .query_one(
            "select epoch from pgcascade.node_state where queue_name = $1",
            &[&at.node.queue],
        )
        .await
        .doing(|| format!("look at {}", at.node.title()))?;
    Ok(row.get(0))
}

impl Found {
    /// Whether the node is what it must be, and whether transactions of before the promotion are left.
    async fn itself(&mut self, new: &Reached) -> Result<()> {
        let row = new
            .client()
            .query_one(
                // One that a takeover had closed: it was not noticed yet that it is another server.
                "select s.role = 'root' and (s.open or s.fence_reason like 'promoted outside takeover%'
                                             or s.closing_tick is not null
                                                and (s.system_id, s.timeline) is distinct from
                                                    (c.system_identifier::text, pgcascade.current_timeline())),
                        (select string_agg(quote_literal(p.gid), ', ' order by p.gid) from pg_catalog.pg_prepared_xacts p
                          where p.database = current_database())
                   from pgcascade.node_state s, pg_catalog.pg_control_system() c where s.queue_name = $1",
                &[&new.node.queue],
            )
            .await
            .doing(|| format!("look at {}", new.node.title()))?;
        if !row.get::<_, Option<bool>>(0).unwrap_or(false) {
            self.add(
                format!("{} is no root that was promoted outside takeover", new.node.title()),
                "select * from pgcascade.node_state shows what it is, and why it is closed",
            );
        }
        if let Some(prepared) = row.get::<_, Option<String>>(1) {
            self.add(
                format!("transactions are prepared there, and not ended: {prepared}"),
                "commit or roll them back, as whoever prepared them says",
            );
        }
        Ok(())
    }

    /// The server that the standby was one of must not take writes any more.
    async fn old_place(&mut self, known: &Known, here: &Server, queue: &str) {
        let name = &known.name;
        let remedy = "stop it: what it still takes is lost";
        let look = async { server(&ConnInfo::parse(&known.location)?, queue).await };
        match timeout(PROBE, look).await {
            Ok(Ok(there)) if there == *here || there.recovers || !there.open => {}
            Ok(Ok(_)) => self.add(
                format!("the server that \"{name}\" was on answers, and is open"),
                remedy,
            ),
            Ok(Err(error))
                if error
                    .sqlstate()
                    .is_some_and(|state| *state != SqlState::INVALID_CATALOG_NAME) =>
            {
                self.add(format!("the server that \"{name}\" was on answers: {error}"), remedy);
            }
            _ => {}
        }
    }
}
